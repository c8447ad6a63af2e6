/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What a pool of memory that outlives the kernel looks like to the next one.
 */
#ifndef _LINUX_KHO_ABI_LU_POOL_H
#define _LINUX_KHO_ABI_LU_POOL_H

#include <linux/bits.h>
#include <linux/build_bug.h>
#include <linux/types.h>

/**
 * DOC: lu_pool ABI
 *
 * A pool is one range of physical memory, cut into blocks of 2 MiB. Block 0
 * describes it: a superblock, and behind it a table of objects without gaps.
 * An object is a name and one run of blocks. All other blocks are free. All
 * numbers are little endian.
 *
 * The checksum covers the superblock (taken with @crc being 0) and the
 * entries in use, so that a description is believed as a whole or not at all.
 * It does not cover what is in objects, except that the entry of a sealed
 * object has a checksum of its content.
 *
 * This is a contract between kernels. Any change to it is a new version, with
 * a new LU_POOL_VERSION; a reader refuses a version that it does not know.
 */
#define LU_POOL_MAGIC		0x314c4f4f502d554cULL	/* "LU-POOL1" */
#define LU_POOL_VERSION		1

#define LU_POOL_BLOCK_SHIFT	21
#define LU_POOL_BLOCK_SIZE	BIT(LU_POOL_BLOCK_SHIFT)
#define LU_POOL_NAME_LEN	64
#define LU_POOL_OBJECTS_MAX	1024
/* 2^17 blocks are 256 GiB */
#define LU_POOL_BLOCKS_MAX	BIT(17)

/**
 * struct lu_pool_super - the first bytes of a pool
 * @magic:	LU_POOL_MAGIC
 * @version:	LU_POOL_VERSION
 * @block_shift: LU_POOL_BLOCK_SHIFT
 * @region_size: bytes of the whole range, this block included
 * @sequence:	goes up with every change
 * @nr_objects:	entries of the table in use
 * @crc:	CRC-32C of superblock and entries in use
 * @reserved:	0
 */
struct lu_pool_super {
	__le64 magic;
	__le32 version;
	__le32 block_shift;
	__le64 region_size;
	__le64 sequence;
	__le32 nr_objects;
	__le32 crc;
	__le64 reserved[3];
} __packed;
static_assert(sizeof(struct lu_pool_super) == 64);

/* the content is final, and @content_crc is its checksum */
#define LU_POOL_F_SEALED	1

/**
 * struct lu_pool_entry - an object
 * @name:	NUL-terminated, not empty, zeroes behind it; no two are the same
 * @first_block: of the run; never 0
 * @nr_blocks:	how many; never 0
 * @bytes:	how much of them the owner asked for
 * @flags:	LU_POOL_F_*
 * @content_crc: CRC-32C of the first @bytes bytes when sealed, else 0
 * @reserved:	0
 */
struct lu_pool_entry {
	char name[LU_POOL_NAME_LEN];
	__le32 first_block;
	__le32 nr_blocks;
	__le64 bytes;
	__le32 flags;
	__le32 content_crc;
	__le64 reserved[5];
} __packed;
static_assert(sizeof(struct lu_pool_entry) == 128);

#define LU_POOL_TABLE_OFFSET	sizeof(struct lu_pool_super)
static_assert(LU_POOL_TABLE_OFFSET + LU_POOL_OBJECTS_MAX * sizeof(struct lu_pool_entry) <=
	      LU_POOL_BLOCK_SIZE);

#endif /* _LINUX_KHO_ABI_LU_POOL_H */
