/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef _PKERNFS_INTERNAL_H
#define _PKERNFS_INTERNAL_H

#include <linux/atomic.h>
#include <linux/fs.h>
#include <linux/kho/abi/pkernfs.h>
#include <linux/mutex.h>
#include <linux/types.h>
#include <linux/xarray.h>

#define PKERNFS_BLOCK_PAGES	(PKERNFS_BLOCK_SIZE >> PAGE_SHIFT)
#define PKERNFS_REASON_BYTES	160

/**
 * struct pkernfs_node - what the kernel keeps in mind of an inode in the region
 * @blocks: number of the data block by index, as xa_mk_value()
 * @count: of @blocks; &pkernfs_meta.lock
 * @slot: which of the two places holds the valid record; &pkernfs_meta.lock
 * @used: the record is not free; &pkernfs_meta.lock
 * @waiting: gone but for blocks that somebody still has pinned;
 *           &pkernfs_meta.lock
 */
struct pkernfs_node {
	struct xarray blocks;
	u64 count;
	u8 slot;
	bool used;
	bool waiting;
};

/**
 * struct pkernfs_layout - where things are in a region of a certain size
 * @block_count: data blocks
 * @inode_count: inodes
 * @inode_offset: of the inodes from the start of the region
 * @data_offset: of the first data block; all before it is metadata
 */
struct pkernfs_layout {
	u64 block_count;
	u32 inode_count;
	u64 inode_offset;
	u64 data_offset;
};

/**
 * struct pkernfs_meta - the metadata of a region, in use
 * @base: the region
 * @start: its physical address
 * @size: its size in bytes
 * @layout: where things are
 * @table: the table of blocks
 * @inodes: two for each number; that of number 1 first
 * @nodes: for each number; number 1 first
 * @taken: a bit for each data block that is not free; @lock
 * @free_blocks: data blocks that are free; @lock
 * @free_inodes: inodes that are free; @lock
 * @hint: where to look for a free block; @lock
 * @seed: of the checksums
 * @seq: the highest sequence number there is; @lock
 * @mounts: how often the region has been mounted
 * @state_slot: which of the two states is valid; @lock
 * @dirty: that state says so; @lock
 * @recovered: it was dirty when it was found
 * @reaped: inodes without a name that were freed when it was found
 * @busy: whether somebody has a block pinned, NULL: nobody can
 * @stored: told of each step of each update, for tests; NULL otherwise
 * @private: of who set @busy and @stored
 * @lock: serialises all changes
 * @reason: why it was refused
 */
struct pkernfs_meta {
	void *base;
	phys_addr_t start;
	u64 size;
	struct pkernfs_layout layout;
	__le64 *table;
	struct pkernfs_inode *inodes;
	struct pkernfs_node *nodes;
	unsigned long *taken;
	u64 free_blocks;
	u32 free_inodes;
	u64 hint;
	u32 seed;
	u64 seq;
	u64 mounts;
	u8 state_slot;
	bool dirty;
	bool recovered;
	u32 reaped;
	bool (*busy)(struct pkernfs_meta *meta, u64 block);
	void (*stored)(struct pkernfs_meta *meta);
	void *private;
	struct mutex lock; /* all changes */
	char reason[PKERNFS_REASON_BYTES];
};

/* meta.c */
int pkernfs_layout(u64 size, struct pkernfs_layout *layout);
bool pkernfs_is_blank(const void *base);
int pkernfs_format(void *base, phys_addr_t start, u64 size);
struct pkernfs_meta *pkernfs_meta_alloc(void *base, phys_addr_t start, u64 size);
int pkernfs_meta_load(struct pkernfs_meta *meta);
void pkernfs_meta_free(struct pkernfs_meta *meta);
void pkernfs_meta_commit(struct pkernfs_meta *meta);
void pkernfs_meta_get(struct pkernfs_meta *meta, u32 ino,
		      struct pkernfs_inode *record);
void pkernfs_meta_put(struct pkernfs_meta *meta, struct pkernfs_inode *record);
u32 pkernfs_meta_new_inode(struct pkernfs_meta *meta);
void pkernfs_meta_reap(struct pkernfs_meta *meta, u32 ino);
int pkernfs_meta_alloc_block(struct pkernfs_meta *meta, u32 ino, u64 index,
			     u64 *block);
bool pkernfs_meta_is_pinned(struct pkernfs_meta *meta, u32 ino, u64 first,
			    u64 last);
void pkernfs_meta_free_blocks(struct pkernfs_meta *meta, u32 ino, u64 first,
			      u64 last);
u64 pkernfs_meta_available(struct pkernfs_meta *meta);

static inline struct pkernfs_node *pkernfs_node(struct pkernfs_meta *meta,
						u32 ino)
{
	return &meta->nodes[ino - 1];
}

static inline void *pkernfs_block_address(struct pkernfs_meta *meta, u64 block)
{
	return meta->base + meta->layout.data_offset +
	       (block << PKERNFS_BLOCK_SHIFT);
}

/**
 * struct pkernfs_inode_info - an inode of ours in the VFS
 * @drivers: how many drivers have it open; changes under inode_lock()
 * @vfs: what the VFS sees
 */
struct pkernfs_inode_info {
	unsigned int drivers;
	struct inode vfs;
};

static inline struct pkernfs_inode_info *pkernfs_info(struct inode *inode)
{
	return container_of(inode, struct pkernfs_inode_info, vfs);
}

static inline struct pkernfs_meta *pkernfs_meta_of(const struct inode *inode)
{
	return inode->i_sb->s_fs_info;
}

/* region.c */
struct pkernfs_meta *pkernfs_region_mount(void);
void pkernfs_region_unmount(struct pkernfs_meta *meta);
void pkernfs_region_sync(void);

/* super.c */
extern struct file_system_type pkernfs_type;
int pkernfs_super_init(void);
void pkernfs_super_exit(void);

/* inode.c */
extern const struct inode_operations pkernfs_file_inode_operations;
struct inode *pkernfs_iget(struct super_block *sb, u32 ino);
void pkernfs_store_inode(struct inode *inode);
int pkernfs_getattr(struct mnt_idmap *idmap, const struct path *path,
		    struct kstat *stat, u32 request_mask, unsigned int flags);

/* file.c */
extern const struct file_operations pkernfs_file_operations;
int pkernfs_set_size(struct inode *inode, loff_t size);

#endif /* _PKERNFS_INTERNAL_H */
