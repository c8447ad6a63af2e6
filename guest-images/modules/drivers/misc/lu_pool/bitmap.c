// SPDX-License-Identifier: GPL-2.0-only
/*
 * The allocator: one bit for each block of 2 MiB, first fit.
 *
 * It lives in ordinary memory and is made anew from the table of objects by
 * every kernel, so that there is nothing in the region that could disagree.
 */
#include <kunit/visibility.h>
#include <linux/bitmap.h>
#include <linux/errno.h>
#include <linux/slab.h>

#include "internal.h"

/**
 * lu_pool_bitmap_init() - begin with all blocks free but the first
 * @map:	what to set up
 * @nr:		number of blocks
 *
 * Return: 0, -EINVAL for a number that no pool has, -ENOMEM.
 */
int lu_pool_bitmap_init(struct lu_pool_bitmap *map, u32 nr)
{
	if (nr < 2 || nr > LU_POOL_BLOCKS_MAX)
		return -EINVAL;
	map->bits = bitmap_zalloc(nr, GFP_KERNEL);
	if (!map->bits)
		return -ENOMEM;
	map->nr = nr;
	__set_bit(0, map->bits);
	return 0;
}
EXPORT_SYMBOL_IF_KUNIT(lu_pool_bitmap_init);

void lu_pool_bitmap_exit(struct lu_pool_bitmap *map)
{
	bitmap_free(map->bits);
	map->bits = NULL;
	map->nr = 0;
}
EXPORT_SYMBOL_IF_KUNIT(lu_pool_bitmap_exit);

/**
 * lu_pool_bitmap_alloc() - take a run of blocks
 * @map:	the allocator
 * @count:	how many blocks, in one piece
 * @first:	set to the first of them
 *
 * Return: 0, -EINVAL for none, -ENOSPC when there is no such piece.
 */
int lu_pool_bitmap_alloc(struct lu_pool_bitmap *map, u32 count, u32 *first)
{
	unsigned long found;

	if (!count)
		return -EINVAL;
	if (count >= map->nr)
		return -ENOSPC;
	found = bitmap_find_next_zero_area(map->bits, map->nr, 1, count, 0);
	if (found >= map->nr)
		return -ENOSPC;
	bitmap_set(map->bits, found, count);
	*first = found;
	return 0;
}
EXPORT_SYMBOL_IF_KUNIT(lu_pool_bitmap_alloc);

/**
 * lu_pool_bitmap_take() - take blocks that somebody has already
 * @map:	the allocator
 * @first:	first block; from a table that nobody has checked yet
 * @count:	number of blocks; likewise
 *
 * Return: 0, -ERANGE when they are not all there, -EEXIST when one is taken.
 */
int lu_pool_bitmap_take(struct lu_pool_bitmap *map, u32 first, u32 count)
{
	if (!count || first >= map->nr || count > map->nr - first)
		return -ERANGE;
	if (find_next_bit(map->bits, first + count, first) < first + count)
		return -EEXIST;
	bitmap_set(map->bits, first, count);
	return 0;
}
EXPORT_SYMBOL_IF_KUNIT(lu_pool_bitmap_take);

void lu_pool_bitmap_free(struct lu_pool_bitmap *map, u32 first, u32 count)
{
	bitmap_clear(map->bits, first, count);
}
EXPORT_SYMBOL_IF_KUNIT(lu_pool_bitmap_free);

u32 lu_pool_bitmap_nr_free(const struct lu_pool_bitmap *map)
{
	return map->nr - bitmap_weight(map->bits, map->nr);
}
EXPORT_SYMBOL_IF_KUNIT(lu_pool_bitmap_nr_free);

/* The longest run of free blocks. */
u32 lu_pool_bitmap_largest(const struct lu_pool_bitmap *map)
{
	unsigned long at = 0, end;
	u32 largest = 0;

	while ((at = find_next_zero_bit(map->bits, map->nr, at)) < map->nr) {
		end = find_next_bit(map->bits, map->nr, at);
		largest = max_t(u32, largest, end - at);
		at = end;
	}
	return largest;
}
EXPORT_SYMBOL_IF_KUNIT(lu_pool_bitmap_largest);
