// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests of the allocator, of what is believed of roots and records, and of the
 * interface for drivers.
 */
#include <kunit/test.h>
#include <linux/err.h>
#include <linux/io.h>
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "internal.h"

/* --- runs.c */

static int runs_test_init(struct kunit *test)
{
	test->priv = kunit_kzalloc(test, sizeof(struct prmem_runs), GFP_KERNEL);
	return test->priv ? 0 : -ENOMEM;
}

static void runs_join_what_is_one_piece(struct kunit *test)
{
	struct prmem_runs *runs = test->priv;

	KUNIT_ASSERT_EQ(test, prmem_runs_add(runs, 0x1000, 9), 0);
	KUNIT_ASSERT_EQ(test, prmem_runs_add(runs, 0x1200, 9), 0);
	KUNIT_EXPECT_EQ(test, runs->nr, 1);
	/* another size, and another place */
	KUNIT_ASSERT_EQ(test, prmem_runs_add(runs, 0x1400, 0), 0);
	KUNIT_ASSERT_EQ(test, prmem_runs_add(runs, 0x1402, 0), 0);
	KUNIT_EXPECT_EQ(test, runs->nr, 3);
	KUNIT_EXPECT_EQ(test, runs->pages, 2 * 512 + 2);
	KUNIT_EXPECT_EQ(test, page_to_pfn(prmem_runs_page(runs, 0)), 0x1000);
	KUNIT_EXPECT_EQ(test, page_to_pfn(prmem_runs_page(runs, 1023)), 0x13ff);
	KUNIT_EXPECT_EQ(test, page_to_pfn(prmem_runs_page(runs, 1024)), 0x1400);
	KUNIT_EXPECT_EQ(test, page_to_pfn(prmem_runs_page(runs, 1025)), 0x1402);
	KUNIT_EXPECT_NULL(test, prmem_runs_page(runs, 1026));
	/* nobody allocated them */
	kvfree(runs->run);
}

static void runs_find_every_page_of_many(struct kunit *test)
{
	struct prmem_runs *runs = test->priv;
	u32 i;

	for (i = 0; i < 1000; i++)
		KUNIT_ASSERT_EQ(test, prmem_runs_add(runs, 0x1000 + 2 * i, 0), 0);
	KUNIT_EXPECT_EQ(test, runs->nr, 1000);
	for (i = 0; i < 1000; i++)
		KUNIT_ASSERT_EQ(test, page_to_pfn(prmem_runs_page(runs, i)), 0x1000 + 2 * i);
	kvfree(runs->run);
}

/* Every page is there, zeroed, and in a folio that is aligned to its size. */
static void expect_good(struct kunit *test, const struct prmem_runs *runs, u64 from)
{
	struct folio *folio;
	struct page *page;
	u64 i;

	for (i = from; i < runs->pages; i++) {
		page = prmem_runs_page(runs, i);
		KUNIT_ASSERT_NOT_NULL(test, page);
		KUNIT_ASSERT_NULL(test, memchr_inv(page_address(page), 0, PAGE_SIZE));
		folio = page_folio(page);
		KUNIT_ASSERT_EQ(test, folio_page_idx(folio, page), i % folio_nr_pages(folio));
	}
}

static void runs_grow_and_are_trimmed(struct kunit *test)
{
	struct prmem_runs *runs = test->priv;
	struct page *first;

	KUNIT_ASSERT_EQ(test, prmem_runs_grow(runs, 5), 0);
	KUNIT_EXPECT_EQ(test, runs->pages, 5);
	expect_good(test, runs, 0);
	first = prmem_runs_page(runs, 0);
	memset(page_address(first), 1, PAGE_SIZE);
	KUNIT_ASSERT_EQ(test, prmem_runs_grow(runs, 1500), 0);
	KUNIT_EXPECT_EQ(test, runs->pages, 1500);
	expect_good(test, runs, 1);
	KUNIT_EXPECT_PTR_EQ(test, prmem_runs_page(runs, 0), first);
	KUNIT_EXPECT_EQ(test, prmem_runs_grow(runs, 7), 0);
	KUNIT_EXPECT_EQ(test, runs->pages, 1500);
	prmem_runs_trim(runs, 5);
	KUNIT_EXPECT_EQ(test, runs->pages, 5);
	KUNIT_EXPECT_NULL(test, prmem_runs_page(runs, 5));
	prmem_runs_free(runs);
	KUNIT_EXPECT_EQ(test, runs->pages, 0);
}

static void runs_end_where_a_record_ends(struct kunit *test)
{
	const u32 most = PRMEM_EXTENT_NODES_MAX * PRMEM_EXTENTS_PER_NODE;
	struct prmem_runs *runs = test->priv;

	runs->run = kvcalloc(most, sizeof(*runs->run), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, runs->run);
	runs->room = most;
	runs->nr = most - 1;
	KUNIT_EXPECT_EQ(test, prmem_runs_add(runs, 0x1000, 0), 0);
	KUNIT_EXPECT_EQ(test, prmem_runs_add(runs, 0x1001, 0), 0);
	KUNIT_EXPECT_EQ(test, prmem_runs_add(runs, 0x1003, 0), -EFBIG);
	KUNIT_EXPECT_EQ(test, runs->nr, most);
	kvfree(runs->run);
}

static struct kunit_case runs_cases[] = {
	KUNIT_CASE(runs_join_what_is_one_piece),
	KUNIT_CASE(runs_find_every_page_of_many),
	KUNIT_CASE(runs_grow_and_are_trimmed),
	KUNIT_CASE(runs_end_where_a_record_ends),
	{}
};

static struct kunit_suite runs_suite = {
	.name = "prmem_runs",
	.init = runs_test_init,
	.test_cases = runs_cases,
};

/* --- meta.c */

/* pages of an instance that is described in two nodes */
#define MANY	(PRMEM_EXTENTS_PER_NODE + 7)

struct meta_test {
	struct prmem_root *root;
	struct prmem_head *head;
	struct prmem_extent *extents[2];
	struct prmem_record record;
};

static void *get_node(struct kunit *test)
{
	void *node = alloc_pages_exact(PRMEM_NODE_SIZE, GFP_KERNEL | __GFP_ZERO);

	KUNIT_ASSERT_NOT_NULL(test, node);
	return node;
}

static struct prmem_ref *ref_of(const struct meta_test *meta)
{
	return &meta->root->entries[1].head;
}

static void write_again(struct meta_test *meta)
{
	prmem_head_write(meta->head, &meta->record, ref_of(meta));
	prmem_root_sign(meta->root);
}

static int meta_test_init(struct kunit *test)
{
	struct meta_test *meta = kunit_kzalloc(test, sizeof(*meta), GFP_KERNEL);
	int i;

	KUNIT_ASSERT_NOT_NULL(test, meta);
	test->priv = meta;
	meta->root = get_node(test);
	meta->head = get_node(test);
	for (i = 0; i < 2; i++) {
		meta->extents[i] = get_node(test);
		meta->head->nodes[i].phys = cpu_to_le64(virt_to_phys(meta->extents[i]));
	}
	prmem_root_format(meta->root);
	KUNIT_ASSERT_EQ(test, prmem_root_add(meta->root, "zero", 0), 0);
	KUNIT_ASSERT_EQ(test, prmem_root_add(meta->root, "one", 1), 1);
	for (i = 0; i < MANY; i++)
		KUNIT_ASSERT_EQ(test, prmem_runs_add(&meta->record.runs, 0x1000 + 2 * i, 0), 0);
	meta->record.bytes = (u64)MANY * PAGE_SIZE - 5;
	meta->record.flags = PRMEM_F_SEALED;
	meta->record.content_crc = 0x1234;
	write_again(meta);
	return 0;
}

static void meta_test_exit(struct kunit *test)
{
	struct meta_test *meta = test->priv;

	kvfree(meta->record.runs.run);
	free_pages_exact(meta->root, PRMEM_NODE_SIZE);
	free_pages_exact(meta->head, PRMEM_NODE_SIZE);
	free_pages_exact(meta->extents[0], PRMEM_NODE_SIZE);
	free_pages_exact(meta->extents[1], PRMEM_NODE_SIZE);
}

static void expect_root(struct kunit *test, const char *why)
{
	const struct meta_test *meta = test->priv;
	const char *reason;

	KUNIT_EXPECT_EQ(test, prmem_root_check(meta->root, &reason), why ? -EUCLEAN : 0);
	KUNIT_EXPECT_STREQ(test, reason ? reason : "", why ? why : "");
}

static void expect_record(struct kunit *test, const char *why)
{
	const char *reason;

	KUNIT_EXPECT_EQ(test, prmem_head_check(ref_of(test->priv), &reason), why ? -EUCLEAN : 0);
	KUNIT_EXPECT_STREQ(test, reason ? reason : "", why ? why : "");
}

static int add_only(struct prmem_runs *runs, u64 phys, u32 order)
{
	return prmem_runs_add(runs, PHYS_PFN(phys), order);
}

static int refuse_some(struct prmem_runs *runs, u64 phys, u32 order)
{
	return runs->pages == 3 ? -EUCLEAN : add_only(runs, phys, order);
}

static void meta_is_read_as_written(struct kunit *test)
{
	struct meta_test *meta = test->priv;
	struct prmem_record found = {};
	int i;

	expect_root(test, NULL);
	expect_record(test, NULL);
	KUNIT_EXPECT_EQ(test, prmem_root_find(meta->root, "one"), 1);
	KUNIT_EXPECT_EQ(test, prmem_root_find(meta->root, "two"), -ENOENT);
	KUNIT_ASSERT_EQ(test, prmem_head_read(meta->head, &found, add_only), 0);
	KUNIT_EXPECT_EQ(test, found.bytes, meta->record.bytes);
	KUNIT_EXPECT_EQ(test, found.flags, PRMEM_F_SEALED);
	KUNIT_EXPECT_EQ(test, found.content_crc, 0x1234);
	KUNIT_ASSERT_EQ(test, found.runs.pages, meta->record.runs.pages);
	for (i = 0; i < MANY; i++)
		KUNIT_EXPECT_PTR_EQ(test, prmem_runs_page(&found.runs, i),
				    prmem_runs_page(&meta->record.runs, i));
	kvfree(found.runs.run);
}

static void meta_says_what_was_taken_when_the_rest_is_not_there(struct kunit *test)
{
	struct meta_test *meta = test->priv;
	struct prmem_record found = {};

	KUNIT_EXPECT_EQ(test, prmem_head_read(meta->head, &found, refuse_some), -EUCLEAN);
	KUNIT_EXPECT_EQ(test, found.runs.pages, 3);
	kvfree(found.runs.run);
}

static void meta_refuses_names(struct kunit *test)
{
	struct prmem_root *root = ((struct meta_test *)test->priv)->root;
	char name[PRMEM_NAME_LEN + 1] = {};
	int i;

	memset(name, 'x', PRMEM_NAME_LEN);
	KUNIT_EXPECT_EQ(test, prmem_root_add(root, name, 0), -EINVAL);
	KUNIT_EXPECT_EQ(test, prmem_root_add(root, "", 0), -EINVAL);
	KUNIT_EXPECT_EQ(test, prmem_root_add(root, "one", 0), -EEXIST);
	name[PRMEM_NAME_LEN - 1] = '\0';
	KUNIT_EXPECT_EQ(test, prmem_root_add(root, name, 0), 2);
	for (i = 3; i < PRMEM_INSTANCES_MAX; i++) {
		snprintf(name, sizeof(name), "instance-%d", i);
		KUNIT_ASSERT_EQ(test, prmem_root_add(root, name, 0), i);
	}
	KUNIT_EXPECT_EQ(test, prmem_root_add(root, "one too many", 0), -ENFILE);
	prmem_root_sign(root);
	expect_root(test, NULL);
}

static void meta_removes_without_gaps(struct kunit *test)
{
	struct prmem_root *root = ((struct meta_test *)test->priv)->root;

	prmem_root_remove(root, 0);
	prmem_root_sign(root);
	expect_root(test, NULL);
	KUNIT_EXPECT_EQ(test, prmem_root_find(root, "one"), 0);
	KUNIT_EXPECT_EQ(test, prmem_root_find(root, "zero"), -ENOENT);
	prmem_root_remove(root, 0);
	prmem_root_sign(root);
	expect_root(test, NULL);
}

static void meta_refuses_a_flipped_bit_of_the_root(struct kunit *test)
{
	struct meta_test *meta = test->priv;
	u8 *bytes = (u8 *)meta->root;
	const char *reason;
	unsigned int i;

	for (i = 0; i < PRMEM_NODE_SIZE; i++) {
		bytes[i] ^= 1 << (i % 8);
		KUNIT_EXPECT_EQ_MSG(test, prmem_root_check(meta->root, &reason), -EUCLEAN,
				    "byte %u", i);
		bytes[i] ^= 1 << (i % 8);
	}
	expect_root(test, NULL);
}

/* The root vouches for the record: damage of one is no damage of the other. */
static void meta_refuses_a_flipped_bit_of_a_record(struct kunit *test)
{
	struct meta_test *meta = test->priv;
	const char *reason;
	unsigned int i;

	for (i = 0; i < PRMEM_NODE_SIZE; i += 13) {
		((u8 *)meta->head)[i] ^= 1 << (i % 8);
		KUNIT_EXPECT_EQ_MSG(test, prmem_head_check(ref_of(meta), &reason), -EUCLEAN,
				    "byte %u", i);
		expect_root(test, NULL);
		((u8 *)meta->head)[i] ^= 1 << (i % 8);
	}
	for (i = 0; i < 2; i++) {
		((u8 *)meta->extents[i])[77] ^= 1;
		expect_record(test, "the checksum of its list of memory is wrong");
		((u8 *)meta->extents[i])[77] ^= 1;
	}
	expect_record(test, NULL);
}

/* With strict=1 one that cannot be believed is one too many. */
static void meta_refuses_all_for_one(struct kunit *test)
{
	struct meta_test *meta = test->priv;
	const char *reason;

	/* "zero" has no record */
	KUNIT_EXPECT_EQ(test, prmem_heads_check(meta->root, &reason), -EUCLEAN);
	KUNIT_EXPECT_STREQ(test, reason, "an earlier kernel refused it already");
	prmem_root_remove(meta->root, 0);
	KUNIT_EXPECT_EQ(test, prmem_heads_check(meta->root, &reason), 0);
	KUNIT_EXPECT_NULL(test, reason);
	meta->head->bytes ^= cpu_to_le64(1);
	KUNIT_EXPECT_EQ(test, prmem_heads_check(meta->root, &reason), -EUCLEAN);
	KUNIT_EXPECT_STREQ(test, reason, "the checksum of its record is wrong");
}

static void meta_refuses_what_is_foreign(struct kunit *test)
{
	struct prmem_root *root = ((struct meta_test *)test->priv)->root;

	root->version = cpu_to_le32(PRMEM_VERSION + 1);
	prmem_root_sign(root);
	expect_root(test, "it has another version");
	root->magic = 0;
	prmem_root_sign(root);
	expect_root(test, "it does not begin like persistent memory");
}

/* Signed, so that only the checks behind the checksum can find it. */
static void meta_refuses_a_root_that_lies(struct kunit *test)
{
	struct prmem_root *root = ((struct meta_test *)test->priv)->root;

	root->nr_instances = cpu_to_le32(U32_MAX);
	prmem_root_sign(root);
	expect_root(test, "it has more instances than there can be");
	root->nr_instances = cpu_to_le32(1);
	prmem_root_sign(root);
	expect_root(test, "it has fields of another version");
	root->nr_instances = cpu_to_le32(2);
	strscpy_pad(root->entries[0].name, "one");
	prmem_root_sign(root);
	expect_root(test, "two instances have one name");
	memset(root->entries[0].name, 'x', PRMEM_NAME_LEN);
	prmem_root_sign(root);
	expect_root(test, "an instance has no proper name");
}

static void meta_refuses_references_that_lie(struct kunit *test)
{
	struct meta_test *meta = test->priv;
	struct prmem_ref *ref = ref_of(meta), saved = *ref;

	ref->phys = 0;
	expect_record(test, "an earlier kernel refused it already");
	ref->phys = cpu_to_le64(le64_to_cpu(saved.phys) + PAGE_SIZE);
	expect_record(test, "its record is nowhere");
	ref->phys = cpu_to_le64(BIT_ULL(51));
	expect_record(test, "its record is nowhere");
	*ref = saved;
	ref->reserved = cpu_to_le32(1);
	expect_record(test, "its record is nowhere");
	*ref = saved;
	expect_record(test, NULL);
}

static void meta_refuses_records_that_lie(struct kunit *test)
{
	struct meta_test *meta = test->priv;
	struct prmem_record *record = &meta->record;
	struct prmem_run *run = &record->runs.run[3], saved = *run;
	u64 bytes = record->bytes;

	record->bytes = 0;
	write_again(meta);
	expect_record(test, "its size does not fit its memory");
	record->bytes = U64_MAX;
	write_again(meta);
	expect_record(test, "its size does not fit its memory");
	record->bytes = bytes;
	record->runs.pages++;
	write_again(meta);
	expect_record(test, "its size does not fit its memory");
	record->runs.pages--;
	record->flags = 2;
	write_again(meta);
	expect_record(test, "its record has fields of another version");
	record->flags = 0;
	run->order = MAX_PAGE_ORDER + 1;
	write_again(meta);
	expect_record(test, "its memory has pieces that cannot be");
	*run = saved;
	run->count = 0;
	write_again(meta);
	expect_record(test, "its memory has pieces that cannot be");
	*run = saved;
	run->order = 9;
	write_again(meta);
	expect_record(test, "its memory is where it cannot be");
	*run = saved;
	run->pfn = 0;
	write_again(meta);
	expect_record(test, "its memory is where it cannot be");
	*run = saved;
	write_again(meta);
	expect_record(test, NULL);
}

static struct kunit_case meta_cases[] = {
	KUNIT_CASE(meta_is_read_as_written),
	KUNIT_CASE(meta_says_what_was_taken_when_the_rest_is_not_there),
	KUNIT_CASE(meta_refuses_names),
	KUNIT_CASE(meta_removes_without_gaps),
	KUNIT_CASE(meta_refuses_a_flipped_bit_of_the_root),
	KUNIT_CASE(meta_refuses_a_flipped_bit_of_a_record),
	KUNIT_CASE(meta_refuses_all_for_one),
	KUNIT_CASE(meta_refuses_what_is_foreign),
	KUNIT_CASE(meta_refuses_a_root_that_lies),
	KUNIT_CASE(meta_refuses_references_that_lie),
	KUNIT_CASE(meta_refuses_records_that_lie),
	{}
};

static struct kunit_suite meta_suite = {
	.name = "prmem_meta",
	.init = meta_test_init,
	.exit = meta_test_exit,
	.test_cases = meta_cases,
};

/* --- the interface for drivers */

static void driver_finds_what_it_created(struct kunit *test)
{
	struct prmem_instance *instance, *again;
	struct page *page;

	instance = prmem_create("kunit", 3);
	KUNIT_ASSERT_FALSE(test, IS_ERR(instance));
	KUNIT_EXPECT_EQ(test, PTR_ERR(prmem_create("kunit", 3)), -EEXIST);
	KUNIT_EXPECT_EQ(test, prmem_set_value(instance, 7), 0);
	page = prmem_page(instance, 0);
	KUNIT_ASSERT_NOT_NULL(test, page);
	memset(page_address(page), 'x', 3);
	again = prmem_get("kunit");
	KUNIT_EXPECT_PTR_EQ(test, again, instance);
	KUNIT_EXPECT_EQ(test, prmem_value(again), 7);
	KUNIT_EXPECT_EQ(test, prmem_bytes(again), 3);
	KUNIT_EXPECT_EQ(test, prmem_grow(again, 2), -EINVAL);
	KUNIT_EXPECT_EQ(test, prmem_grow(again, 3 * PAGE_SIZE), 0);
	KUNIT_EXPECT_PTR_EQ(test, prmem_page(again, 0), page);
	KUNIT_EXPECT_NOT_NULL(test, prmem_page(again, 2));
	prmem_put(again);
	KUNIT_EXPECT_EQ(test, prmem_free("kunit"), -EBUSY);
	prmem_put(instance);
	KUNIT_EXPECT_EQ(test, prmem_free("kunit"), 0);
	KUNIT_EXPECT_EQ(test, prmem_free("kunit"), -ENOENT);
	KUNIT_EXPECT_EQ(test, PTR_ERR(prmem_get("kunit")), -ENOENT);
}

static void driver_is_refused_nonsense(struct kunit *test)
{
	KUNIT_EXPECT_EQ(test, PTR_ERR(prmem_create("", 1)), -EINVAL);
	KUNIT_EXPECT_EQ(test, PTR_ERR(prmem_create("none", 0)), -EINVAL);
	KUNIT_EXPECT_EQ(test, PTR_ERR(prmem_create("all", U64_MAX)), -ENOSPC);
	KUNIT_EXPECT_EQ(test, PTR_ERR(prmem_get("none")), -ENOENT);
}

static struct kunit_case driver_cases[] = {
	KUNIT_CASE(driver_finds_what_it_created),
	KUNIT_CASE(driver_is_refused_nonsense),
	{}
};

static struct kunit_suite driver_suite = {
	.name = "prmem_driver",
	.test_cases = driver_cases,
};

kunit_test_suites(&runs_suite, &meta_suite, &driver_suite);

MODULE_DESCRIPTION("KUnit tests of prmem");
MODULE_LICENSE("GPL");
MODULE_IMPORT_NS("EXPORTED_FOR_KUNIT_TESTING");
