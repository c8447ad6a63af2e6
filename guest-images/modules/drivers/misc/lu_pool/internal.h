/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef _LU_POOL_INTERNAL_H
#define _LU_POOL_INTERNAL_H

#include <linux/bits.h>
#include <linux/kho/abi/lu_pool.h>
#include <linux/miscdevice.h>
#include <linux/mutex.h>
#include <linux/types.h>
#include <linux/lu_pool.h>
#include <uapi/linux/lu_pool.h>

static_assert(LU_POOL_UAPI_NAME_LEN == LU_POOL_NAME_LEN);

/* bitmap.c: which blocks are taken; the caller does the locking */

/**
 * struct lu_pool_bitmap - the allocator
 * @bits:	one for each block, set when it is taken
 * @nr:		how many
 */
struct lu_pool_bitmap {
	unsigned long *bits;
	u32 nr;
};

int lu_pool_bitmap_init(struct lu_pool_bitmap *map, u32 nr);
void lu_pool_bitmap_exit(struct lu_pool_bitmap *map);
int lu_pool_bitmap_alloc(struct lu_pool_bitmap *map, u32 count, u32 *first);
int lu_pool_bitmap_take(struct lu_pool_bitmap *map, u32 first, u32 count);
void lu_pool_bitmap_free(struct lu_pool_bitmap *map, u32 first, u32 count);
u32 lu_pool_bitmap_nr_free(const struct lu_pool_bitmap *map);
u32 lu_pool_bitmap_largest(const struct lu_pool_bitmap *map);

/* table.c: block 0; the caller does the locking */

/**
 * struct lu_pool_table - block 0 as it lies in the region
 * @super:	superblock
 * @entries:	the objects
 */
struct lu_pool_table {
	struct lu_pool_super super;
	struct lu_pool_entry entries[LU_POOL_OBJECTS_MAX];
};

static_assert(offsetof(struct lu_pool_table, entries) == LU_POOL_TABLE_OFFSET);

bool lu_pool_table_is_blank(const struct lu_pool_table *table);
void lu_pool_table_format(struct lu_pool_table *table, u64 region_size);
int lu_pool_table_check(const struct lu_pool_table *table, u64 region_size,
			struct lu_pool_bitmap *map, const char **reason);
struct lu_pool_entry *lu_pool_table_find(struct lu_pool_table *table, const char *name);
struct lu_pool_entry *lu_pool_table_at(struct lu_pool_table *table, u32 block);
int lu_pool_table_add(struct lu_pool_table *table, const char *name, u32 first, u32 count,
		      u64 bytes);
void lu_pool_table_remove(struct lu_pool_table *table, struct lu_pool_entry *entry);
void lu_pool_table_seal(struct lu_pool_table *table, struct lu_pool_entry *entry, u32 crc);
u64 lu_pool_table_bytes(const struct lu_pool_table *table);

/* core.c */

/**
 * struct lu_pool - the one pool of this kernel
 * @lock:	protects all that is below, and the table
 * @start:	physical address of the region; set once
 * @size:	bytes of the region; set once
 * @base:	the region in the kernel's address space; set once
 * @is_ram:	the region has struct pages; set once
 * @table:	block 0; set once
 * @map:	which blocks are taken
 * @users:	for each first block of an object: mappings and drivers that use it
 * @state:	LU_POOL_STATE_*
 * @zeroing:	allocations that have blocks and no object yet
 * @leaving:	the kernel is being left, nothing may change any more
 * @reason:	why the state is LU_POOL_STATE_REFUSED
 */
struct lu_pool {
	struct mutex lock; /* protects the rest, and what is in the table */
	phys_addr_t start;
	u64 size;
	void *base;
	bool is_ram;
	struct lu_pool_table *table;
	struct lu_pool_bitmap map;
	u32 *users;
	u32 state;
	unsigned int zeroing;
	bool leaving;
	const char *reason;
};

extern struct lu_pool lu_pool;
extern struct miscdevice lu_pool_miscdev;

int lu_pool_do_alloc(struct lu_pool_object *object);
int lu_pool_do_info(struct lu_pool_object *object);
int lu_pool_do_free(const char *name);
int lu_pool_do_seal(const char *name);
int lu_pool_do_verify(const char *name);
int lu_pool_do_list(struct lu_pool_list *list);
void lu_pool_do_stat(struct lu_pool_stat *stat);
int lu_pool_do_release(void);
int lu_pool_use(u64 offset, u64 bytes);
void lu_pool_reuse(u64 offset);
void lu_pool_unuse(u64 offset);

#endif /* _LU_POOL_INTERNAL_H */
