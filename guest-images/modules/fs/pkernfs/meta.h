/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What those who read the metadata of a region and those who change them share.
 */
#ifndef _PKERNFS_META_H
#define _PKERNFS_META_H

#include <linux/crc32c.h>
#include <linux/stat.h>

#include "internal.h"

#define WORD_INDEX_SHIFT	PKERNFS_WORD_INO_BITS
#define WORD_INO_MASK		((1ULL << PKERNFS_WORD_INO_BITS) - 1)
#define WORD_CONTENT_MASK	((1ULL << PKERNFS_WORD_CHECK_SHIFT) - 1)

static inline u32 state_checksum(u32 seed, const struct pkernfs_state *state)
{
	return crc32c(seed, state, offsetof(struct pkernfs_state, checksum));
}

static inline u32 inode_checksum(u32 seed, const struct pkernfs_inode *inode)
{
	const size_t after = offsetofend(struct pkernfs_inode, checksum);

	return crc32c(seed, (const void *)inode + after, sizeof(*inode) - after);
}

/* 0 is for what was never written */
static inline u32 not_zero(u32 checksum)
{
	return checksum ?: 1;
}

static inline u16 word_check(u32 seed, u64 block, u64 content)
{
	__le64 data[2] = { cpu_to_le64(block), cpu_to_le64(content) };

	return crc32c(seed, data, sizeof(data));
}

static inline __le64 make_word(u32 seed, u64 block, u32 ino, u64 index)
{
	u64 content = ino | index << WORD_INDEX_SHIFT;
	u64 check = word_check(seed, block, content);

	return cpu_to_le64(content | check << PKERNFS_WORD_CHECK_SHIFT);
}

static inline struct pkernfs_inode *inode_slot(struct pkernfs_meta *meta, u32 ino,
					       unsigned int slot)
{
	return &meta->inodes[(ino - 1) * 2 + slot];
}

static inline struct pkernfs_state *state_slot(struct pkernfs_meta *meta,
					       unsigned int slot)
{
	struct pkernfs_state *states = meta->base + PKERNFS_STATE_OFFSET;

	return &states[slot];
}

static inline u32 tables_checksum(struct pkernfs_meta *meta, u32 inodes)
{
	size_t bytes = meta->layout.inode_offset - PKERNFS_TABLE_OFFSET;
	u32 crc = crc32c(meta->seed, meta->table, bytes);

	return crc32c(crc, meta->inodes,
		      (size_t)inodes * 2 * sizeof(struct pkernfs_inode));
}

static inline const struct pkernfs_inode *record_of(struct pkernfs_meta *meta, u32 ino)
{
	return inode_slot(meta, ino, pkernfs_node(meta, ino)->slot);
}

static inline bool is_orphan(struct pkernfs_meta *meta, u32 ino)
{
	return le32_to_cpu(record_of(meta, ino)->flags) & PKERNFS_ORPHAN;
}

static inline bool is_directory(struct pkernfs_meta *meta, u32 ino)
{
	return S_ISDIR(le32_to_cpu(record_of(meta, ino)->mode));
}

/* meta.c; the caller has the lock */
void pkernfs_write_state(struct pkernfs_meta *meta, u32 value, u32 tables,
			 u32 inodes);
void pkernfs_make_dirty(struct pkernfs_meta *meta);
void pkernfs_write_record(struct pkernfs_meta *meta, struct pkernfs_inode *record);
u64 pkernfs_drop_blocks(struct pkernfs_meta *meta, u32 ino, u64 first, u64 last);
void pkernfs_reap(struct pkernfs_meta *meta, u32 ino);

#endif /* _PKERNFS_META_H */
