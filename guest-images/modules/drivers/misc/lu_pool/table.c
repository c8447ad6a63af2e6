// SPDX-License-Identifier: GPL-2.0-only
/*
 * Block 0 of a pool: writing it, and reading what another kernel has left.
 *
 * What is found is input that nobody vouches for. It is checked as a whole,
 * once, before anything of it is used.
 */
#include <kunit/visibility.h>
#include <linux/crc32c.h>
#include <linux/errno.h>
#include <linux/string.h>

#include "internal.h"

/* Blocks that @bytes bytes take. */
static u64 blocks_of(u64 bytes)
{
	return (bytes >> LU_POOL_BLOCK_SHIFT) + !!(bytes & (LU_POOL_BLOCK_SIZE - 1));
}

static u32 checksum(const struct lu_pool_table *table, u32 nr_objects)
{
	struct lu_pool_super super = table->super;
	u32 crc;

	super.crc = 0;
	crc = crc32c(~0, &super, sizeof(super));
	return ~crc32c(crc, table->entries, nr_objects * sizeof(table->entries[0]));
}

static void sign(struct lu_pool_table *table)
{
	table->super.sequence = cpu_to_le64(le64_to_cpu(table->super.sequence) + 1);
	table->super.crc = cpu_to_le32(checksum(table, le32_to_cpu(table->super.nr_objects)));
}

/* Whether nobody has ever written here: the first 4 KiB are zero. */
bool lu_pool_table_is_blank(const struct lu_pool_table *table)
{
	return !memchr_inv(table, 0, SZ_4K);
}
EXPORT_SYMBOL_IF_KUNIT(lu_pool_table_is_blank);

/**
 * lu_pool_table_format() - describe a pool without objects
 * @table:	block 0
 * @region_size: bytes of the region
 */
void lu_pool_table_format(struct lu_pool_table *table, u64 region_size)
{
	memset(table, 0, sizeof(*table));
	table->super.magic = cpu_to_le64(LU_POOL_MAGIC);
	table->super.version = cpu_to_le32(LU_POOL_VERSION);
	table->super.block_shift = cpu_to_le32(LU_POOL_BLOCK_SHIFT);
	table->super.region_size = cpu_to_le64(region_size);
	sign(table);
}
EXPORT_SYMBOL_IF_KUNIT(lu_pool_table_format);

/* Whether a name ends within its field and has only zeroes behind its end. */
static bool is_name(const char *name)
{
	size_t len = strnlen(name, LU_POOL_NAME_LEN);

	return len && len < LU_POOL_NAME_LEN && !memchr_inv(name + len, 0, LU_POOL_NAME_LEN - len);
}

static const char *check_entry(const struct lu_pool_entry *entry, struct lu_pool_bitmap *map)
{
	u64 bytes = le64_to_cpu(entry->bytes);

	if (!is_name(entry->name))
		return "an object has no proper name";
	if (le32_to_cpu(entry->flags) & ~LU_POOL_F_SEALED ||
	    memchr_inv(entry->reserved, 0, sizeof(entry->reserved)))
		return "an object has flags of another version";
	if (!bytes || blocks_of(bytes) != le32_to_cpu(entry->nr_blocks))
		return "the size of an object does not fit its blocks";
	switch (lu_pool_bitmap_take(map, le32_to_cpu(entry->first_block),
				    le32_to_cpu(entry->nr_blocks))) {
	case 0:
		return NULL;
	case -ERANGE:
		return "an object reaches out of the region";
	default:
		return "two objects overlap";
	}
}

static const char *check_super(const struct lu_pool_super *super, u64 region_size)
{
	if (le64_to_cpu(super->magic) != LU_POOL_MAGIC)
		return "it does not begin like a pool";
	if (le32_to_cpu(super->version) != LU_POOL_VERSION)
		return "it has another version";
	if (le32_to_cpu(super->block_shift) != LU_POOL_BLOCK_SHIFT)
		return "it has other blocks";
	if (le64_to_cpu(super->region_size) != region_size)
		return "it was made for a region of another size";
	if (le32_to_cpu(super->nr_objects) > LU_POOL_OBJECTS_MAX)
		return "it has more objects than there can be";
	if (memchr_inv(super->reserved, 0, sizeof(super->reserved)))
		return "it has fields of another version";
	return NULL;
}

/**
 * lu_pool_table_check() - decide whether what is there can be believed
 * @table:	block 0
 * @region_size: bytes of the region, as this kernel was told
 * @map:	fresh allocator; gets all blocks that objects have
 * @reason:	set to what is wrong, for people
 *
 * Return: 0 or -EUCLEAN; @map is of no use then.
 */
int lu_pool_table_check(const struct lu_pool_table *table, u64 region_size,
			struct lu_pool_bitmap *map, const char **reason)
{
	u32 nr = le32_to_cpu(table->super.nr_objects);
	u32 i, j;

	*reason = check_super(&table->super, region_size);
	if (!*reason && checksum(table, nr) != le32_to_cpu(table->super.crc))
		*reason = "its checksum is wrong";
	for (i = 0; i < nr && !*reason; i++) {
		*reason = check_entry(&table->entries[i], map);
		for (j = 0; j < i && !*reason; j++)
			if (!strcmp(table->entries[i].name, table->entries[j].name))
				*reason = "two objects have one name";
	}
	return *reason ? -EUCLEAN : 0;
}
EXPORT_SYMBOL_IF_KUNIT(lu_pool_table_check);

struct lu_pool_entry *lu_pool_table_find(struct lu_pool_table *table, const char *name)
{
	u32 i;

	for (i = 0; i < le32_to_cpu(table->super.nr_objects); i++)
		if (!strcmp(table->entries[i].name, name))
			return &table->entries[i];
	return NULL;
}
EXPORT_SYMBOL_IF_KUNIT(lu_pool_table_find);

/* The object that has this block, or NULL. */
struct lu_pool_entry *lu_pool_table_at(struct lu_pool_table *table, u32 block)
{
	u32 i, first;

	for (i = 0; i < le32_to_cpu(table->super.nr_objects); i++) {
		first = le32_to_cpu(table->entries[i].first_block);
		if (block >= first && block - first < le32_to_cpu(table->entries[i].nr_blocks))
			return &table->entries[i];
	}
	return NULL;
}
EXPORT_SYMBOL_IF_KUNIT(lu_pool_table_at);

/**
 * lu_pool_table_add() - enter an object
 * @table:	block 0
 * @name:	NUL-terminated
 * @first:	first block
 * @count:	number of blocks
 * @bytes:	how much of them is asked for
 *
 * Return: 0, -EINVAL for a name that is none, -EEXIST, -ENFILE when the table is full.
 */
int lu_pool_table_add(struct lu_pool_table *table, const char *name, u32 first, u32 count,
		      u64 bytes)
{
	u32 nr = le32_to_cpu(table->super.nr_objects);
	struct lu_pool_entry *entry = &table->entries[nr];
	size_t len = strnlen(name, LU_POOL_NAME_LEN);

	if (!len || len == LU_POOL_NAME_LEN)
		return -EINVAL;
	if (lu_pool_table_find(table, name))
		return -EEXIST;
	if (nr >= LU_POOL_OBJECTS_MAX)
		return -ENFILE;
	memset(entry, 0, sizeof(*entry));
	memcpy(entry->name, name, len);
	entry->first_block = cpu_to_le32(first);
	entry->nr_blocks = cpu_to_le32(count);
	entry->bytes = cpu_to_le64(bytes);
	table->super.nr_objects = cpu_to_le32(nr + 1);
	sign(table);
	return 0;
}
EXPORT_SYMBOL_IF_KUNIT(lu_pool_table_add);

/* Take an object out of the table; the last one moves to its place. */
void lu_pool_table_remove(struct lu_pool_table *table, struct lu_pool_entry *entry)
{
	u32 last = le32_to_cpu(table->super.nr_objects) - 1;

	if (entry != &table->entries[last])
		*entry = table->entries[last];
	memset(&table->entries[last], 0, sizeof(*entry));
	table->super.nr_objects = cpu_to_le32(last);
	sign(table);
}
EXPORT_SYMBOL_IF_KUNIT(lu_pool_table_remove);

void lu_pool_table_seal(struct lu_pool_table *table, struct lu_pool_entry *entry, u32 crc)
{
	entry->flags = cpu_to_le32(LU_POOL_F_SEALED);
	entry->content_crc = cpu_to_le32(crc);
	sign(table);
}
EXPORT_SYMBOL_IF_KUNIT(lu_pool_table_seal);

/* Bytes of the description that are in use. */
u64 lu_pool_table_bytes(const struct lu_pool_table *table)
{
	return sizeof(table->super) +
	       le32_to_cpu(table->super.nr_objects) * sizeof(table->entries[0]);
}
EXPORT_SYMBOL_IF_KUNIT(lu_pool_table_bytes);
