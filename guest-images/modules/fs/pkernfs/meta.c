// SPDX-License-Identifier: GPL-2.0-only
/*
 * Change the metadata of a region: find room, and keep the order of updates,
 * so that a kernel may stop between any two stores.
 *
 * See include/linux/kho/abi/pkernfs.h for why that is enough. Knows memory and
 * nothing of the VFS, as does load.c, so that KUnit can have all of it.
 */

#include <linux/bitmap.h>
#include <linux/mm.h>
#include <linux/sched.h>
#include <linux/slab.h>

#include "meta.h"

/**
 * pkernfs_meta_alloc() - prepare to use a region
 * @base: the region
 * @start: its physical address
 * @size: its size in bytes
 *
 * Return: nothing of the region has been looked at yet, see
 * pkernfs_meta_load(); or an ERR_PTR().
 */
struct pkernfs_meta *pkernfs_meta_alloc(void *base, phys_addr_t start, u64 size)
{
	struct pkernfs_meta *meta;
	u32 i;
	int err;

	meta = kzalloc_obj(*meta);
	if (!meta)
		return ERR_PTR(-ENOMEM);
	mutex_init(&meta->lock);
	meta->base = base;
	meta->start = start;
	meta->size = size;
	err = pkernfs_layout(size, &meta->layout);
	if (err)
		goto err_free;
	meta->table = base + PKERNFS_TABLE_OFFSET;
	meta->inodes = base + meta->layout.inode_offset;
	err = -ENOMEM;
	meta->nodes = kvcalloc(meta->layout.inode_count, sizeof(*meta->nodes),
			       GFP_KERNEL);
	if (!meta->nodes)
		goto err_free;
	meta->taken = bitmap_zalloc(meta->layout.block_count, GFP_KERNEL);
	if (!meta->taken)
		goto err_nodes;
	for (i = 0; i < meta->layout.inode_count; i++)
		xa_init(&meta->nodes[i].blocks);
	return meta;

err_nodes:
	kvfree(meta->nodes);
err_free:
	kfree(meta);
	return ERR_PTR(err);
}

void pkernfs_meta_free(struct pkernfs_meta *meta)
{
	u32 i;

	for (i = 0; i < meta->layout.inode_count; i++)
		xa_destroy(&meta->nodes[i].blocks);
	bitmap_free(meta->taken);
	kvfree(meta->nodes);
	kfree(meta);
}

/* Tests copy the region at each of these: a kernel may have stopped here. */
static void stored(struct pkernfs_meta *meta)
{
	/* the next kernel must not see what comes after without this */
	smp_wmb();
	if (meta->stored)
		meta->stored(meta);
}

void pkernfs_write_state(struct pkernfs_meta *meta, u32 value, u32 tables,
			 u32 inodes)
{
	struct pkernfs_state *slot = state_slot(meta, !meta->state_slot);
	struct pkernfs_state state = {
		.seq = cpu_to_le64(++meta->seq),
		.state = cpu_to_le32(value),
		.tables = cpu_to_le32(tables),
		.mounts = cpu_to_le64(meta->mounts),
		.inodes = cpu_to_le32(inodes),
	};
	u32 checksum = not_zero(state_checksum(meta->seed, &state));

	memcpy(slot, &state, offsetof(struct pkernfs_state, checksum));
	stored(meta);
	WRITE_ONCE(slot->checksum, cpu_to_le32(checksum));
	stored(meta);
	meta->state_slot = !meta->state_slot;
}

void pkernfs_make_dirty(struct pkernfs_meta *meta)
{
	if (meta->dirty)
		return;
	pkernfs_write_state(meta, PKERNFS_DIRTY, 0, 0);
	meta->dirty = true;
}

/**
 * pkernfs_meta_commit() - say that the metadata are at rest
 * @meta: they are not changed if they say so already
 */
void pkernfs_meta_commit(struct pkernfs_meta *meta)
{
	u32 inodes;

	guard(mutex)(&meta->lock);
	if (!meta->dirty)
		return;
	for (inodes = meta->layout.inode_count; inodes > 1; inodes--)
		if (pkernfs_node(meta, inodes)->used)
			break;
	pkernfs_write_state(meta, PKERNFS_CLEAN, tables_checksum(meta, inodes), inodes);
	meta->dirty = false;
}

void pkernfs_write_record(struct pkernfs_meta *meta, struct pkernfs_inode *record)
{
	u32 ino = le32_to_cpu(record->ino);
	struct pkernfs_node *node = pkernfs_node(meta, ino);
	struct pkernfs_inode *slot = inode_slot(meta, ino, !node->slot);
	const size_t after = offsetofend(struct pkernfs_inode, checksum);

	pkernfs_make_dirty(meta);
	record->seq = cpu_to_le64(++meta->seq);
	record->checksum =
		cpu_to_le32(not_zero(inode_checksum(meta->seed, record)));
	memcpy((void *)slot + after, (void *)record + after,
	       sizeof(*record) - after);
	stored(meta);
	WRITE_ONCE(slot->checksum, record->checksum);
	stored(meta);
	node->slot = !node->slot;
}

static void free_word(struct pkernfs_meta *meta, u64 block)
{
	pkernfs_make_dirty(meta);
	WRITE_ONCE(meta->table[block], 0);
	stored(meta);
	__clear_bit(block, meta->taken);
	meta->free_blocks++;
	meta->hint = min(meta->hint, block);
}

/* Free what nobody has pinned of the blocks from @first to @last. */
u64 pkernfs_drop_blocks(struct pkernfs_meta *meta, u32 ino, u64 first, u64 last)
{
	struct pkernfs_node *node = pkernfs_node(meta, ino);
	unsigned long index;
	u64 kept = 0;
	void *entry;

	xa_for_each_range(&node->blocks, index, entry, first, last) {
		u64 block = xa_to_value(entry);

		if (meta->busy && meta->busy(meta, block)) {
			kept++;
			continue;
		}
		xa_erase(&node->blocks, index);
		node->count--;
		free_word(meta, block);
	}
	return kept;
}

void pkernfs_reap(struct pkernfs_meta *meta, u32 ino)
{
	struct pkernfs_node *node = pkernfs_node(meta, ino);
	struct pkernfs_inode record = { .ino = cpu_to_le32(ino) };

	node->waiting = pkernfs_drop_blocks(meta, ino, 0, PKERNFS_MAX_INDEX - 1) > 0;
	if (node->waiting)
		return;
	pkernfs_write_record(meta, &record);
	node->used = false;
	meta->free_inodes++;
}

/**
 * pkernfs_meta_get() - copy an inode's record
 * @meta: where
 * @ino: of an inode in use
 * @record: result
 */
void pkernfs_meta_get(struct pkernfs_meta *meta, u32 ino,
		      struct pkernfs_inode *record)
{
	guard(mutex)(&meta->lock);
	*record = *record_of(meta, ino);
}

/**
 * pkernfs_meta_put() - replace an inode's record, all of it or nothing
 * @meta: where
 * @record: everything but sequence number and checksum
 */
void pkernfs_meta_put(struct pkernfs_meta *meta, struct pkernfs_inode *record)
{
	guard(mutex)(&meta->lock);
	pkernfs_write_record(meta, record);
}

/**
 * pkernfs_meta_new_inode() - find an inode that is free
 * @meta: where
 *
 * Return: its number, or 0 if there is none. It is taken in memory only until
 * pkernfs_meta_put() gives it a record.
 */
u32 pkernfs_meta_new_inode(struct pkernfs_meta *meta)
{
	struct pkernfs_node *node;
	u32 ino;

	guard(mutex)(&meta->lock);
	for (ino = PKERNFS_ROOT + 1; ino <= meta->layout.inode_count; ino++) {
		node = pkernfs_node(meta, ino);
		if (node->used)
			continue;
		node->used = true;
		meta->free_inodes--;
		return ino;
	}
	return 0;
}

/**
 * pkernfs_meta_reap() - free an inode that has no name, and its blocks
 * @meta: where
 * @ino: its record says that it is an orphan
 *
 * Blocks that somebody has pinned stay, and the inode with them, until they
 * are needed and free.
 */
void pkernfs_meta_reap(struct pkernfs_meta *meta, u32 ino)
{
	guard(mutex)(&meta->lock);
	pkernfs_reap(meta, ino);
}

static void sweep(struct pkernfs_meta *meta)
{
	u32 ino;

	for (ino = 1; ino <= meta->layout.inode_count; ino++)
		if (pkernfs_node(meta, ino)->waiting)
			pkernfs_reap(meta, ino);
}

/**
 * pkernfs_meta_available() - count the blocks that can be had
 * @meta: where
 */
u64 pkernfs_meta_available(struct pkernfs_meta *meta)
{
	guard(mutex)(&meta->lock);
	sweep(meta);
	return meta->free_blocks;
}

static int take_block(struct pkernfs_meta *meta, u64 *block)
{
	u64 count = meta->layout.block_count;

	if (!meta->free_blocks)
		sweep(meta);
	if (!meta->free_blocks)
		return -ENOSPC;
	*block = find_next_zero_bit(meta->taken, count, meta->hint);
	if (*block >= count)
		*block = find_first_zero_bit(meta->taken, count);
	if (WARN_ON_ONCE(*block >= count))
		return -ENOSPC;
	__set_bit(*block, meta->taken);
	meta->free_blocks--;
	meta->hint = *block + 1;
	return 0;
}

static void untake_block(struct pkernfs_meta *meta, u64 block)
{
	__clear_bit(block, meta->taken);
	meta->free_blocks++;
	meta->hint = min(meta->hint, block);
}

/**
 * pkernfs_meta_alloc_block() - give a file a zeroed block
 * @meta: where
 * @ino: a file in use, which the caller keeps from going
 * @index: of the block in the file
 * @block: result
 *
 * It is fine if the file has one there: then that is the result.
 *
 * Return: 0, -ENOSPC or -ENOMEM.
 */
int pkernfs_meta_alloc_block(struct pkernfs_meta *meta, u32 ino, u64 index,
			     u64 *block)
{
	struct pkernfs_node *node = pkernfs_node(meta, ino);
	void *address, *entry;
	unsigned int i;
	int err;

	if (WARN_ON_ONCE(index >= PKERNFS_MAX_INDEX))
		return -ENOSPC;
	scoped_guard(mutex, &meta->lock)
		err = take_block(meta, block);
	if (err)
		return err;

	/* takes long, and nobody else knows of this block yet */
	address = pkernfs_block_address(meta, *block);
	for (i = 0; i < PKERNFS_BLOCK_PAGES; i++)
		clear_page(address + i * PAGE_SIZE);
	cond_resched();

	guard(mutex)(&meta->lock);
	entry = xa_load(&node->blocks, index);
	if (entry) {
		untake_block(meta, *block);
		*block = xa_to_value(entry);
		return 0;
	}
	err = xa_err(xa_store(&node->blocks, index, xa_mk_value(*block),
			      GFP_KERNEL));
	if (err) {
		untake_block(meta, *block);
		return err;
	}
	node->count++;
	pkernfs_make_dirty(meta);
	stored(meta);
	WRITE_ONCE(meta->table[*block],
		   make_word(meta->seed, *block, ino, index));
	stored(meta);
	return 0;
}

/**
 * pkernfs_meta_is_pinned() - tell whether somebody has blocks of a file pinned
 * @meta: where
 * @ino: a file in use
 * @first: index of the first block
 * @last: index of the last
 */
bool pkernfs_meta_is_pinned(struct pkernfs_meta *meta, u32 ino, u64 first,
			    u64 last)
{
	struct pkernfs_node *node = pkernfs_node(meta, ino);
	unsigned long index;
	void *entry;

	if (!meta->busy)
		return false;
	guard(mutex)(&meta->lock);
	xa_for_each_range(&node->blocks, index, entry, first, last)
		if (meta->busy(meta, xa_to_value(entry)))
			return true;
	return false;
}

/**
 * pkernfs_meta_free_blocks() - take blocks away from a file
 * @meta: where
 * @ino: a file in use
 * @first: index of the first block
 * @last: index of the last
 *
 * The caller has taken away all mappings, keeps new ones from being made, and
 * has made sure that nothing is pinned. What is so nevertheless stays.
 */
void pkernfs_meta_free_blocks(struct pkernfs_meta *meta, u32 ino, u64 first,
			      u64 last)
{
	guard(mutex)(&meta->lock);
	WARN_ON_ONCE(pkernfs_drop_blocks(meta, ino, first, last));
}
