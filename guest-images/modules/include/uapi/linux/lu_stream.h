/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * The stream of records that one kernel's user space leaves for the next one's.
 *
 * It lies in memory that outlives the kernel, in one piece, and is found by its
 * physical address: the next kernel has lu.breadcrumb=ADDRESS on its command
 * line. All numbers are little endian. A record is a struct lu_record, a body
 * and zeroes up to a multiple of 8 bytes:
 *
 *   LU_VERSION	first, once: struct lu_version
 *   LU_BUNDLE	begins a bundle: its name, 1 to 63 printable characters without
 *		spaces; no two are the same
 *   LU_RAM	the guest's memory, at most once, first in a bundle: struct lu_ram;
 *		no two overlap
 *   LU_DATA	content: struct lu_data, and the bytes behind it; tokens ascend
 *   LU_END	last, once: struct lu_end
 *
 * A reader refuses a type that it does not know, unless LU_OPTIONAL is set in
 * it. It believes a stream as a whole or not at all. A stream of no use has
 * zeroes in place of its first 8 bytes.
 *
 * This is a contract between kernels. Any change to it that is not a new
 * optional record is a new LU_STREAM_VERSION.
 */
#ifndef _UAPI_LINUX_LU_STREAM_H
#define _UAPI_LINUX_LU_STREAM_H

#include <linux/types.h>

#define LU_STREAM_VERSION	1

#define LU_VERSION	0x562d554cU	/* "LU-V" */
#define LU_BUNDLE	0x422d554cU	/* "LU-B" */
#define LU_RAM		0x522d554cU	/* "LU-R" */
#define LU_DATA		0x442d554cU	/* "LU-D" */
#define LU_END		0x452d554cU	/* "LU-E" */
#define LU_OPTIONAL	0x80000000U

#define LU_BUNDLE_NAME_MAX	63
#define LU_STREAM_RECORDS_MAX	4096

/**
 * struct lu_record - begins every record
 * @type:	LU_*
 * @length:	bytes of the body, without what it is padded with
 */
struct lu_record {
	__le32 type;
	__le32 length;
};

/**
 * struct lu_version - body of LU_VERSION
 * @version:	LU_STREAM_VERSION
 * @reserved:	0
 * @bytes:	of the whole stream, LU_VERSION and LU_END included
 */
struct lu_version {
	__le32 version;
	__le32 reserved;
	__le64 bytes;
};

/**
 * struct lu_ram - body of LU_RAM
 * @start:	physical address, in whole pages
 * @bytes:	how many, in whole pages
 */
struct lu_ram {
	__le64 start;
	__le64 bytes;
};

/**
 * struct lu_data - body of LU_DATA, the content follows
 * @token:	what it is for, by agreement of writer and reader
 */
struct lu_data {
	__le64 token;
};

/**
 * struct lu_end - body of LU_END
 * @records:	how many there are before it
 * @crc:	CRC-32 (IEEE 802.3) of all bytes before this record
 */
struct lu_end {
	__le32 records;
	__le32 crc;
};

#endif /* _UAPI_LINUX_LU_STREAM_H */
