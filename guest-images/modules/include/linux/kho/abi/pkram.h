/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef _LINUX_KHO_ABI_PKRAM_H
#define _LINUX_KHO_ABI_PKRAM_H

#include <linux/bits.h>
#include <linux/build_bug.h>
#include <linux/sizes.h>
#include <linux/stddef.h>
#include <linux/types.h>

/**
 * DOC: pkram ABI
 *
 * What one kernel leaves and the next one reads. It is a contract: whoever
 * changes the meaning or the place of anything here has to count
 * PKRAM_VERSION up, and a kernel refuses every version but its own. All
 * numbers are little-endian, a page is 4 KiB, and every page of metadata is
 * preserved through KHO as a folio of order 0.
 *
 * ::
 *
 *   KHO's subtree "pkram" -> struct pkram_dir, the directory of saves
 *     entry of a save      -> struct pkram_page -> struct pkram_page -> ...
 *
 * A save is the whole tree of one mount under one name. Its pages come in a
 * chain: first those with inodes, the root first and every directory before
 * what is in it; then those with folios, by file and index. So there is
 * nothing that could be walked in circles, and each page vouches for itself:
 * checksum, number in the chain, and the random id that the directory has of
 * the save.
 *
 * A folio in a save is preserved through KHO with its order; nothing is copied
 * and no checksum covers its content, which may change until the jump.
 */

#define PKRAM_KHO_NODE		"pkram"
#define PKRAM_DIR_MAGIC		0x315249444d524b50ULL	/* "PKRMDIR1" */
#define PKRAM_PAGE_MAGIC	0x314345524d524b50ULL	/* "PKRMREC1" */
#define PKRAM_VERSION		1

#define PKRAM_PAGE_SIZE		SZ_4K
#define PKRAM_HUGE_ORDER	9
#define PKRAM_HUGE_PAGES	BIT(PKRAM_HUGE_ORDER)

#define PKRAM_NAME_LEN		64
#define PKRAM_SAVES_MAX		32
#define PKRAM_INODES_MAX	SZ_64K
#define PKRAM_FILE_NAME_MAX	255

/**
 * struct pkram_dir_entry - a save
 * @name: of the save; not empty, ends with NUL and is padded with it
 * @first: physical address of its first page of records
 * @id: random; in all of its pages
 * @pages: how many there are
 * @inodes: how many inodes are in them
 * @folios: and how many folios
 */
struct pkram_dir_entry {
	__u8 name[PKRAM_NAME_LEN];
	__le64 first;
	__le64 id;
	__le32 pages;
	__le32 inodes;
	__le64 folios;
};

static_assert(sizeof(struct pkram_dir_entry) == 96);

/**
 * struct pkram_dir - what saves there are
 * @magic: PKRAM_DIR_MAGIC
 * @version: PKRAM_VERSION
 * @checksum: CRC-32C of the whole page with this field 0
 * @count: of @saves in use
 * @reserved: 0
 * @saves: those in use first, the others 0
 * @reserved2: 0
 */
struct pkram_dir {
	__le64 magic;
	__le32 version;
	__le32 checksum;
	__le32 count;
	__u8 reserved[44];
	struct pkram_dir_entry saves[PKRAM_SAVES_MAX];
	__u8 reserved2[960];
};

static_assert(sizeof(struct pkram_dir) == PKRAM_PAGE_SIZE);
static_assert(offsetof(struct pkram_dir, saves) == 64);

#define PKRAM_INODES		1U
#define PKRAM_FOLIOS		2U

/**
 * struct pkram_page - some records of a save
 * @magic: PKRAM_PAGE_MAGIC
 * @checksum: CRC-32C of the whole page with this field 0
 * @number: in the chain, from 0
 * @id: of the save
 * @next: physical address of the next page, 0 in the last one
 * @type: of the records: PKRAM_INODES or PKRAM_FOLIOS
 * @count: of records; all from the start of @data
 * @reserved: 0
 * @data: struct pkram_inode or struct pkram_folio
 */
struct pkram_page {
	__le64 magic;
	__le32 checksum;
	__le32 number;
	__le64 id;
	__le64 next;
	__le32 type;
	__le32 count;
	__u8 reserved[24];
	__u8 data[4032];
};

static_assert(sizeof(struct pkram_page) == PKRAM_PAGE_SIZE);
static_assert(offsetof(struct pkram_page, data) == 64);

/**
 * struct pkram_inode - a file or a directory, and its name
 * @ino: 1 for the root, then one more for each
 * @parent: number of its directory, which is lower; 1 for the root
 * @mode: as in stat(2), a regular file or a directory
 * @uid: owner
 * @gid: group
 * @mtime_ns: last change: nanoseconds of the second
 * @mtime_s: and seconds since the epoch
 * @size: in bytes, 0 for a directory
 * @reserved: 0
 * @name_len: length of the name, 0 for the root
 * @name: without '/' or NUL, padded with 0
 */
struct pkram_inode {
	__le32 ino;
	__le32 parent;
	__le32 mode;
	__le32 uid;
	__le32 gid;
	__le32 mtime_ns;
	__le64 mtime_s;
	__le64 size;
	__u8 reserved[23];
	__u8 name_len;
	__u8 name[256];
};

static_assert(sizeof(struct pkram_inode) == 320);
static_assert(offsetof(struct pkram_inode, name) == 64);

/**
 * struct pkram_folio - memory of a file
 * @where: physical address, and in the low 12 bits the order: 0 or
 *         PKRAM_HUGE_ORDER
 * @index: of its first page in the file, in pages; a multiple of its size
 * @ino: number of the file
 */
struct pkram_folio {
	__le64 where;
	__le32 index;
	__le32 ino;
};

static_assert(sizeof(struct pkram_folio) == 16);

#define PKRAM_ORDER_MASK	0xfffULL
#define PKRAM_INODES_IN_PAGE	(sizeof_field(struct pkram_page, data) / sizeof(struct pkram_inode))
#define PKRAM_FOLIOS_IN_PAGE	(sizeof_field(struct pkram_page, data) / sizeof(struct pkram_folio))
#define PKRAM_MAX_INDEX		BIT_ULL(32)
#define PKRAM_MAX_FILE		((PKRAM_MAX_INDEX - PKRAM_HUGE_PAGES) * PKRAM_PAGE_SIZE)

#endif /* _LINUX_KHO_ABI_PKRAM_H */
