/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef _LINUX_KHO_ABI_PKERNFS_H
#define _LINUX_KHO_ABI_PKERNFS_H

#include <linux/bits.h>
#include <linux/build_bug.h>
#include <linux/sizes.h>
#include <linux/stddef.h>
#include <linux/types.h>

/**
 * DOC: pkernfs region ABI
 *
 * What one kernel leaves in the region and the next one reads. It is a
 * contract: whoever changes the meaning or the place of anything here has to
 * count PKERNFS_VERSION up, and a kernel refuses every version but its own.
 * All numbers are little-endian. A block is 2 MiB, a page 4 KiB.
 *
 * ::
 *
 *   page 0        struct pkernfs_super, written once, by the format
 *   page 1        two struct pkernfs_state, see there
 *   page 2 ...    table of blocks: one 64-bit word for each data block
 *   next page ... inodes: two struct pkernfs_inode for each number, from 1
 *   next block .. data blocks, to the end of the region
 *
 * Where each part begins and how many inodes there are follows from the
 * region's size alone (pkernfs_layout()); the superblock repeats it and is
 * refused if it says anything else.
 *
 * There is no list that could be walked in circles: a block says in the table
 * whose it is, an inode says its name and its directory. So no block can
 * belong to two files, and there is nothing that could disagree with a bitmap.
 *
 * Updates are ordered, not journalled. Each is one of these:
 *
 * - a word of the table, a single 64-bit store that carries its own checksum;
 * - an inode, written to the older of its two places under a higher sequence
 *   number and the checksum last: a torn one does not check, and the one
 *   before it holds;
 * - the state, the same way.
 *
 * A change of two inodes (a rename onto another file) is the source first and
 * the target second; of two inodes with one name the higher sequence number
 * has it. A block is zeroed before it is given to a file, and a file's record
 * says that it is gone before its blocks are given away.
 */

#define PKERNFS_MAGIC		0x3153464e52454b50ULL	/* "PKERNFS1" */
#define PKERNFS_VERSION		1

#define PKERNFS_PAGE_SIZE	SZ_4K
#define PKERNFS_BLOCK_SHIFT	21
#define PKERNFS_BLOCK_SIZE	SZ_2M

/* smaller than this there is no room for anything; larger needs more bits */
#define PKERNFS_MIN_SIZE	(4 * PKERNFS_BLOCK_SIZE)
#define PKERNFS_MAX_SIZE	SZ_16T

/* one inode for each block and these, up to the most a table word can name */
#define PKERNFS_MORE_INODES	64
#define PKERNFS_MAX_INODES	SZ_64K
#define PKERNFS_ROOT		1
#define PKERNFS_NAME_MAX	255

#define PKERNFS_SUPER_OFFSET	0
#define PKERNFS_STATE_OFFSET	PKERNFS_PAGE_SIZE
#define PKERNFS_TABLE_OFFSET	(2 * PKERNFS_PAGE_SIZE)

/**
 * struct pkernfs_super - what the region is; never changes after the format
 * @magic: PKERNFS_MAGIC
 * @version: PKERNFS_VERSION
 * @checksum: CRC-32C of the whole page with this field 0
 * @start: physical address of the region
 * @size: of the region in bytes
 * @block_count: data blocks
 * @inode_count: inodes
 * @block_shift: PKERNFS_BLOCK_SHIFT
 * @table_offset: of the table of blocks from the start of the region
 * @inode_offset: of the inodes
 * @data_offset: of the first data block
 * @uuid: of this format; all other checksums are seeded with it
 * @reserved: 0
 */
struct pkernfs_super {
	__le64 magic;
	__le32 version;
	__le32 checksum;
	__le64 start;
	__le64 size;
	__le64 block_count;
	__le32 inode_count;
	__le32 block_shift;
	__le64 table_offset;
	__le64 inode_offset;
	__le64 data_offset;
	__u8 uuid[16];
	__u8 reserved[4008];
};

static_assert(sizeof(struct pkernfs_super) == PKERNFS_PAGE_SIZE);
static_assert(offsetof(struct pkernfs_super, uuid) == 72);

#define PKERNFS_CLEAN	0x6e61656cU
#define PKERNFS_DIRTY	0x79747264U

/**
 * struct pkernfs_state - whether the rest is at rest
 * @seq: the valid one of the two with the higher number counts
 * @state: PKERNFS_DIRTY before anything changes, PKERNFS_CLEAN when all that
 *         has changed is there
 * @tables: with PKERNFS_CLEAN: seeded CRC-32C of everything from the table of
 *          blocks to the end of inode @inodes
 * @inodes: with PKERNFS_CLEAN: the inodes after this one are free
 * @mounts: how often the region has been mounted
 * @reserved: 0
 * @checksum: seeded CRC-32C of all before it
 */
struct pkernfs_state {
	__le64 seq;
	__le32 state;
	__le32 tables;
	__le64 mounts;
	__le32 inodes;
	__le32 reserved[8];
	__le32 checksum;
};

static_assert(sizeof(struct pkernfs_state) == 64);

/*
 * A word of the table of blocks: 0 for a block that is free, else number of
 * the inode, index of the block in the file, and the low half of the seeded
 * CRC-32C of the block's number and the other 48 bits.
 */
#define PKERNFS_WORD_INO_BITS	20
#define PKERNFS_WORD_INDEX_BITS	28
#define PKERNFS_WORD_CHECK_SHIFT 48
#define PKERNFS_MAX_INDEX	BIT_ULL(PKERNFS_WORD_INDEX_BITS)
#define PKERNFS_MAX_FILE	(PKERNFS_MAX_INDEX << PKERNFS_BLOCK_SHIFT)

/* the inode has no name any more; what it has is freed by the next mount */
#define PKERNFS_ORPHAN		1U
#define PKERNFS_ALL_FLAGS	PKERNFS_ORPHAN

/**
 * struct pkernfs_inode - a file or a directory, and its name
 * @checksum: seeded CRC-32C of all after it
 * @ino: its own number
 * @seq: the valid one of the two with the higher number counts
 * @parent: number of its directory; the root's own for the root
 * @mode: as in stat(2), a regular file or a directory; 0: it is free
 * @uid: owner
 * @gid: group
 * @size: in bytes
 * @mtime_s: last change, seconds since the epoch
 * @mtime_ns: and nanoseconds
 * @flags: PKERNFS_ORPHAN or 0
 * @name_len: length of the name, 0 for the root
 * @reserved: 0
 * @name: without '/' or NUL, padded with 0
 * @reserved2: 0
 */
struct pkernfs_inode {
	__le32 checksum;
	__le32 ino;
	__le64 seq;
	__le32 parent;
	__le32 mode;
	__le32 uid;
	__le32 gid;
	__le64 size;
	__le64 mtime_s;
	__le32 mtime_ns;
	__le32 flags;
	__u8 name_len;
	__u8 reserved[7];
	__u8 name[256];
	__u8 reserved2[192];
};

static_assert(sizeof(struct pkernfs_inode) == 512);
static_assert(offsetof(struct pkernfs_inode, name) == 64);

#endif /* _LINUX_KHO_ABI_PKERNFS_H */
