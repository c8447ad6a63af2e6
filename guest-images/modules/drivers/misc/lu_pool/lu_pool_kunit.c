// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests of the allocator and of what is believed of a table.
 */
#include <kunit/test.h>
#include <linux/sizes.h>
#include <linux/string.h>

#include "internal.h"

#define BLOCKS	16U
#define REGION	((u64)BLOCKS << LU_POOL_BLOCK_SHIFT)

/* --- bitmap.c */

static int bitmap_test_init(struct kunit *test)
{
	struct lu_pool_bitmap *map = kunit_kzalloc(test, sizeof(*map), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, map);
	KUNIT_ASSERT_EQ(test, lu_pool_bitmap_init(map, BLOCKS), 0);
	test->priv = map;
	return 0;
}

static void bitmap_test_exit(struct kunit *test)
{
	lu_pool_bitmap_exit(test->priv);
}

static void bitmap_never_gives_block_0(struct kunit *test)
{
	struct lu_pool_bitmap *map = test->priv;
	u32 first;

	KUNIT_EXPECT_EQ(test, lu_pool_bitmap_nr_free(map), BLOCKS - 1);
	KUNIT_ASSERT_EQ(test, lu_pool_bitmap_alloc(map, 1, &first), 0);
	KUNIT_EXPECT_EQ(test, first, 1);
	KUNIT_EXPECT_EQ(test, lu_pool_bitmap_take(map, 0, 1), -EEXIST);
}

static void bitmap_fills_up_and_says_so(struct kunit *test)
{
	struct lu_pool_bitmap *map = test->priv;
	u32 first, i;

	for (i = 1; i < BLOCKS; i++) {
		KUNIT_ASSERT_EQ(test, lu_pool_bitmap_alloc(map, 1, &first), 0);
		KUNIT_EXPECT_EQ(test, first, i);
	}
	KUNIT_EXPECT_EQ(test, lu_pool_bitmap_alloc(map, 1, &first), -ENOSPC);
	KUNIT_EXPECT_EQ(test, lu_pool_bitmap_nr_free(map), 0);
	KUNIT_EXPECT_EQ(test, lu_pool_bitmap_largest(map), 0);
}

static void bitmap_takes_the_first_hole_that_fits(struct kunit *test)
{
	struct lu_pool_bitmap *map = test->priv;
	u32 first;

	KUNIT_ASSERT_EQ(test, lu_pool_bitmap_alloc(map, BLOCKS - 1, &first), 0);
	lu_pool_bitmap_free(map, 2, 2);
	lu_pool_bitmap_free(map, 8, 4);
	KUNIT_EXPECT_EQ(test, lu_pool_bitmap_largest(map), 4);
	KUNIT_EXPECT_EQ(test, lu_pool_bitmap_nr_free(map), 6);
	KUNIT_ASSERT_EQ(test, lu_pool_bitmap_alloc(map, 3, &first), 0);
	KUNIT_EXPECT_EQ(test, first, 8);
	KUNIT_ASSERT_EQ(test, lu_pool_bitmap_alloc(map, 2, &first), 0);
	KUNIT_EXPECT_EQ(test, first, 2);
	/* one block is left, two are not */
	KUNIT_EXPECT_EQ(test, lu_pool_bitmap_alloc(map, 2, &first), -ENOSPC);
}

static void bitmap_refuses_nonsense(struct kunit *test)
{
	struct lu_pool_bitmap *map = test->priv, other;
	u32 first;

	KUNIT_EXPECT_EQ(test, lu_pool_bitmap_alloc(map, 0, &first), -EINVAL);
	KUNIT_EXPECT_EQ(test, lu_pool_bitmap_alloc(map, BLOCKS, &first), -ENOSPC);
	KUNIT_EXPECT_EQ(test, lu_pool_bitmap_alloc(map, U32_MAX, &first), -ENOSPC);
	KUNIT_EXPECT_EQ(test, lu_pool_bitmap_take(map, 1, 0), -ERANGE);
	KUNIT_EXPECT_EQ(test, lu_pool_bitmap_take(map, BLOCKS, 1), -ERANGE);
	KUNIT_EXPECT_EQ(test, lu_pool_bitmap_take(map, BLOCKS - 1, 2), -ERANGE);
	KUNIT_EXPECT_EQ(test, lu_pool_bitmap_take(map, 2, U32_MAX - 1), -ERANGE);
	KUNIT_EXPECT_EQ(test, lu_pool_bitmap_nr_free(map), BLOCKS - 1);
	KUNIT_EXPECT_EQ(test, lu_pool_bitmap_init(&other, 1), -EINVAL);
	KUNIT_EXPECT_EQ(test, lu_pool_bitmap_init(&other, LU_POOL_BLOCKS_MAX + 1), -EINVAL);
}

static struct kunit_case bitmap_cases[] = {
	KUNIT_CASE(bitmap_never_gives_block_0),
	KUNIT_CASE(bitmap_fills_up_and_says_so),
	KUNIT_CASE(bitmap_takes_the_first_hole_that_fits),
	KUNIT_CASE(bitmap_refuses_nonsense),
	{}
};

static struct kunit_suite bitmap_suite = {
	.name = "lu_pool_bitmap",
	.init = bitmap_test_init,
	.exit = bitmap_test_exit,
	.test_cases = bitmap_cases,
};

/* --- table.c */

static int table_test_init(struct kunit *test)
{
	struct lu_pool_table *table = kunit_kzalloc(test, sizeof(*table), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, table);
	lu_pool_table_format(table, REGION);
	KUNIT_ASSERT_EQ(test, lu_pool_table_add(table, "one", 1, 2, LU_POOL_BLOCK_SIZE + 1), 0);
	KUNIT_ASSERT_EQ(test, lu_pool_table_add(table, "two", 3, 1, 5), 0);
	test->priv = table;
	return 0;
}

/* What a kernel makes of the table that was told a region of @size bytes. */
static int check(struct kunit *test, u64 size, const char **reason)
{
	struct lu_pool_bitmap map;
	int err;

	KUNIT_ASSERT_EQ(test, lu_pool_bitmap_init(&map, BLOCKS), 0);
	err = lu_pool_table_check(test->priv, size, &map, reason);
	lu_pool_bitmap_exit(&map);
	return err;
}

static void expect_refused(struct kunit *test, const char *why)
{
	const char *reason = NULL;

	KUNIT_EXPECT_EQ(test, check(test, REGION, &reason), -EUCLEAN);
	KUNIT_EXPECT_STREQ(test, reason, why);
}

/*
 * Make the checksum right again, as whoever means harm would: adding and
 * removing an object signs the table anew.
 */
static void sign_again(struct kunit *test)
{
	struct lu_pool_table *table = test->priv;

	KUNIT_ASSERT_EQ(test, lu_pool_table_add(table, "signs", 9, 1, 1), 0);
	lu_pool_table_remove(table, lu_pool_table_find(table, "signs"));
}

static void table_is_read_as_written(struct kunit *test)
{
	struct lu_pool_table *table = test->priv;
	struct lu_pool_entry *entry = lu_pool_table_find(table, "one");
	struct lu_pool_bitmap map;
	const char *reason;

	KUNIT_ASSERT_EQ(test, lu_pool_bitmap_init(&map, BLOCKS), 0);
	KUNIT_EXPECT_EQ(test, lu_pool_table_check(table, REGION, &map, &reason), 0);
	KUNIT_EXPECT_EQ(test, lu_pool_bitmap_nr_free(&map), BLOCKS - 4);
	lu_pool_bitmap_exit(&map);
	KUNIT_ASSERT_NOT_NULL(test, entry);
	KUNIT_EXPECT_EQ(test, le64_to_cpu(entry->bytes), LU_POOL_BLOCK_SIZE + 1);
	KUNIT_EXPECT_PTR_EQ(test, lu_pool_table_at(table, 2), entry);
	KUNIT_EXPECT_NULL(test, lu_pool_table_at(table, 4));
	KUNIT_EXPECT_NULL(test, lu_pool_table_find(table, "three"));
	KUNIT_EXPECT_EQ(test, lu_pool_table_bytes(table), 64 + 2 * 128);
}

static void table_removes_without_gaps(struct kunit *test)
{
	struct lu_pool_table *table = test->priv;
	const char *reason;

	lu_pool_table_remove(table, lu_pool_table_find(table, "one"));
	KUNIT_EXPECT_EQ(test, check(test, REGION, &reason), 0);
	KUNIT_EXPECT_NULL(test, lu_pool_table_find(table, "one"));
	KUNIT_EXPECT_PTR_EQ(test, lu_pool_table_find(table, "two"), &table->entries[0]);
	lu_pool_table_remove(table, &table->entries[0]);
	KUNIT_EXPECT_EQ(test, check(test, REGION, &reason), 0);
	KUNIT_EXPECT_NULL(test, lu_pool_table_at(table, 3));
}

static void table_seals(struct kunit *test)
{
	struct lu_pool_table *table = test->priv;
	struct lu_pool_entry *entry = lu_pool_table_find(table, "two");
	const char *reason;

	lu_pool_table_seal(table, entry, 0x1234);
	KUNIT_EXPECT_EQ(test, check(test, REGION, &reason), 0);
	KUNIT_EXPECT_EQ(test, le32_to_cpu(entry->content_crc), 0x1234);
}

static void table_refuses_names(struct kunit *test)
{
	struct lu_pool_table *table = test->priv;
	char name[LU_POOL_NAME_LEN + 1] = {};

	memset(name, 'x', LU_POOL_NAME_LEN);
	KUNIT_EXPECT_EQ(test, lu_pool_table_add(table, name, 5, 1, 1), -EINVAL);
	KUNIT_EXPECT_EQ(test, lu_pool_table_add(table, "", 5, 1, 1), -EINVAL);
	KUNIT_EXPECT_EQ(test, lu_pool_table_add(table, "one", 5, 1, 1), -EEXIST);
	KUNIT_EXPECT_EQ(test, le32_to_cpu(table->super.nr_objects), 2);
	name[LU_POOL_NAME_LEN - 1] = '\0';
	KUNIT_EXPECT_EQ(test, lu_pool_table_add(table, name, 5, 1, 1), 0);
}

static void table_ends(struct kunit *test)
{
	struct lu_pool_table *table = test->priv;
	char name[LU_POOL_NAME_LEN];
	int i;

	for (i = 2; i < LU_POOL_OBJECTS_MAX; i++) {
		snprintf(name, sizeof(name), "object-%d", i);
		KUNIT_ASSERT_EQ(test, lu_pool_table_add(table, name, 4, 1, 1), 0);
	}
	KUNIT_EXPECT_EQ(test, lu_pool_table_add(table, "one too many", 4, 1, 1), -ENFILE);
}

static void table_refuses_a_flipped_bit(struct kunit *test)
{
	struct lu_pool_table *table = test->priv;
	unsigned int used = lu_pool_table_bytes(table);
	const char *reason;
	unsigned int i;

	for (i = 0; i < used; i++) {
		((u8 *)table)[i] ^= 1 << (i % 8);
		KUNIT_EXPECT_EQ_MSG(test, check(test, REGION, &reason), -EUCLEAN, "byte %u", i);
		((u8 *)table)[i] ^= 1 << (i % 8);
	}
	KUNIT_EXPECT_EQ(test, check(test, REGION, &reason), 0);
}

static void table_refuses_what_is_foreign(struct kunit *test)
{
	struct lu_pool_table *table = test->priv;
	const char *reason;

	KUNIT_EXPECT_EQ(test, check(test, REGION - LU_POOL_BLOCK_SIZE, &reason), -EUCLEAN);
	KUNIT_EXPECT_STREQ(test, reason, "it was made for a region of another size");
	table->super.version = cpu_to_le32(LU_POOL_VERSION + 1);
	sign_again(test);
	expect_refused(test, "it has another version");
	table->super.magic = 0;
	expect_refused(test, "it does not begin like a pool");
	KUNIT_EXPECT_FALSE(test, lu_pool_table_is_blank(table));
	memset(table, 0, sizeof(*table));
	KUNIT_EXPECT_TRUE(test, lu_pool_table_is_blank(table));
}

static void table_refuses_a_count_that_lies(struct kunit *test)
{
	struct lu_pool_table *table = test->priv;

	table->super.nr_objects = cpu_to_le32(U32_MAX);
	expect_refused(test, "it has more objects than there can be");
}

/* Signed, so that only the checks behind the checksum can find it. */
static void table_refuses_objects_that_lie(struct kunit *test)
{
	struct lu_pool_table *table = test->priv;
	struct lu_pool_entry *two = lu_pool_table_find(table, "two"), saved = *two;

	two->first_block = cpu_to_le32(2);
	sign_again(test);
	expect_refused(test, "two objects overlap");
	two->first_block = 0;
	sign_again(test);
	expect_refused(test, "two objects overlap");
	two->first_block = cpu_to_le32(BLOCKS);
	sign_again(test);
	expect_refused(test, "an object reaches out of the region");
	*two = saved;
	two->nr_blocks = cpu_to_le32(U32_MAX);
	two->bytes = cpu_to_le64((u64)U32_MAX << LU_POOL_BLOCK_SHIFT);
	sign_again(test);
	expect_refused(test, "an object reaches out of the region");
	*two = saved;
	two->bytes = cpu_to_le64(U64_MAX);
	sign_again(test);
	expect_refused(test, "the size of an object does not fit its blocks");
	*two = saved;
	memset(two->name, 'x', sizeof(two->name));
	sign_again(test);
	expect_refused(test, "an object has no proper name");
	*two = saved;
	strscpy_pad(two->name, "one");
	sign_again(test);
	expect_refused(test, "two objects have one name");
	*two = saved;
	two->flags = cpu_to_le32(2);
	sign_again(test);
	expect_refused(test, "an object has flags of another version");
}

static struct kunit_case table_cases[] = {
	KUNIT_CASE(table_is_read_as_written),
	KUNIT_CASE(table_removes_without_gaps),
	KUNIT_CASE(table_seals),
	KUNIT_CASE(table_refuses_names),
	KUNIT_CASE(table_ends),
	KUNIT_CASE(table_refuses_a_flipped_bit),
	KUNIT_CASE(table_refuses_what_is_foreign),
	KUNIT_CASE(table_refuses_a_count_that_lies),
	KUNIT_CASE(table_refuses_objects_that_lie),
	{}
};

static struct kunit_suite table_suite = {
	.name = "lu_pool_table",
	.init = table_test_init,
	.test_cases = table_cases,
};

kunit_test_suites(&bitmap_suite, &table_suite);

MODULE_DESCRIPTION("KUnit tests of lu_pool");
MODULE_LICENSE("GPL");
MODULE_IMPORT_NS("EXPORTED_FOR_KUNIT_TESTING");
