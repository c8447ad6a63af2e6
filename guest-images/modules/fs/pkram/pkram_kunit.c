// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests of what a save looks like: that it is read as it was written, and that
 * nothing found in one can do harm.
 *
 * With the code in it and not beside pkram.ko, whose symbols are its own.
 */

#include <kunit/test.h>
#include <linux/slab.h>

#include "record.c"

/* enough for two pages of folios, with those of 2 MiB */
#define TEST_FOLIOS	300
#define TEST_FILE	3
#define TEST_HUGE	2

static void *new_metadata(size_t bytes)
{
	void *page = (void *)get_zeroed_page(GFP_KERNEL);

	return page ?: ERR_PTR(-ENOMEM);
}

static void free_metadata(void *page)
{
	free_page((unsigned long)page);
}

static void undo(void *writer)
{
	pkram_write_undo(writer);
}

static struct pkram_inode make_inode(u32 parent, u32 mode, const char *name, u64 size)
{
	struct pkram_inode record = {
		.parent = cpu_to_le32(parent),
		.mode = cpu_to_le32(mode),
		.size = cpu_to_le64(size),
		.name_len = strlen(name),
	};

	memcpy(record.name, name, record.name_len);
	return record;
}

static void add_inode(struct kunit *test, struct pkram_writer *writer, u32 parent, u32 mode,
		      const char *name)
{
	struct pkram_inode record = make_inode(parent, mode, name, S_ISREG(mode) ? SZ_8M : 0);

	KUNIT_ASSERT_EQ(test, pkram_write_inode(writer, &record), 0);
}

/* Some memory that there is; nobody touches it. */
static phys_addr_t some_phys(void)
{
	return ALIGN_DOWN(virt_to_phys(&contig_page_data), PAGE_SIZE << PKRAM_HUGE_ORDER);
}

/* The root, "dir", "dir/file" with 2 huge folios and then pages. */
static struct pkram_writer *new_save(struct kunit *test)
{
	struct pkram_writer *writer = kunit_kzalloc(test, sizeof(*writer), GFP_KERNEL);
	phys_addr_t phys = some_phys();
	u64 i;

	KUNIT_ASSERT_NOT_NULL(test, writer);
	writer->alloc = new_metadata;
	writer->free = free_metadata;
	KUNIT_ASSERT_EQ(test, kunit_add_action_or_reset(test, undo, writer), 0);
	add_inode(test, writer, 1, S_IFDIR | 0700, "");
	add_inode(test, writer, 1, S_IFDIR | 0750, "dir");
	add_inode(test, writer, 2, S_IFREG | 0640, "file");
	for (i = 0; i < TEST_HUGE; i++)
		KUNIT_ASSERT_EQ(test, pkram_write_folio(writer, TEST_FILE, i * PKRAM_HUGE_PAGES,
							phys, PKRAM_HUGE_ORDER), 0);
	for (; i < TEST_FOLIOS; i++)
		KUNIT_ASSERT_EQ(test, pkram_write_folio(writer, TEST_FILE,
							TEST_HUGE * PKRAM_HUGE_PAGES + i,
							phys + i * PAGE_SIZE, 0), 0);
	pkram_write_end(writer);
	strscpy(writer->entry.name, "test");
	return writer;
}

static int check(struct pkram_writer *writer, char *reason)
{
	char unused[PKRAM_REASON_BYTES];
	u32 good;

	return pkram_records_check(&writer->entry, &good, reason ?: unused);
}

static void expect_good(struct kunit *test, struct pkram_writer *writer)
{
	char reason[PKRAM_REASON_BYTES] = "";

	KUNIT_EXPECT_EQ_MSG(test, check(writer, reason), 0, "%s", reason);
}

static void expect_refused(struct kunit *test, struct pkram_writer *writer, const char *words)
{
	char reason[PKRAM_REASON_BYTES] = "";

	KUNIT_EXPECT_EQ(test, check(writer, reason), -EUCLEAN);
	KUNIT_EXPECT_NOT_NULL_MSG(test, strstr(reason, words), "'%s' is not in '%s'", words,
				  reason);
}

/* The same with checksums that are right: what a kernel with bad intentions leaves. */
static void expect_sealed_refused(struct kunit *test, struct pkram_writer *writer,
				  const char *words)
{
	pkram_write_end(writer);
	expect_refused(test, writer, words);
}

static struct pkram_page *page_of(struct pkram_writer *writer, u32 number)
{
	struct pkram_page *page = writer->first;

	while (number--)
		page = pkram_page_next(page);
	return page;
}

static void test_what_was_written_is_read(struct kunit *test)
{
	struct pkram_writer *writer = new_save(test);
	const struct pkram_folio *folio;
	const struct pkram_inode *inode;
	u32 good;
	char reason[PKRAM_REASON_BYTES];

	KUNIT_EXPECT_EQ(test, le32_to_cpu(writer->entry.pages), 3);
	KUNIT_EXPECT_EQ(test, le32_to_cpu(writer->entry.inodes), 3);
	KUNIT_EXPECT_EQ(test, le64_to_cpu(writer->entry.folios), TEST_FOLIOS);
	KUNIT_EXPECT_EQ(test, pkram_records_check(&writer->entry, &good, reason), 0);
	KUNIT_EXPECT_EQ(test, good, 3);
	inode = pkram_inode_at(writer->first, TEST_FILE - 1);
	KUNIT_EXPECT_EQ(test, le32_to_cpu(inode->ino), TEST_FILE);
	KUNIT_EXPECT_EQ(test, le32_to_cpu(inode->parent), 2);
	KUNIT_EXPECT_STREQ(test, (const char *)inode->name, "file");
	folio = pkram_folio_at(page_of(writer, 1), 1);
	KUNIT_EXPECT_EQ(test, pkram_folio_order(folio), PKRAM_HUGE_ORDER);
	KUNIT_EXPECT_EQ(test, pkram_folio_phys(folio), some_phys());
	KUNIT_EXPECT_EQ(test, le32_to_cpu(folio->index), PKRAM_HUGE_PAGES);
	folio = pkram_folio_at(page_of(writer, 2), 0);
	KUNIT_EXPECT_EQ(test, pkram_folio_order(folio), 0);
	KUNIT_EXPECT_EQ(test, pkram_folio_phys(folio),
			some_phys() + PKRAM_FOLIOS_IN_PAGE * PAGE_SIZE);
}

static void test_many_inodes_take_many_pages(struct kunit *test)
{
	struct pkram_writer *writer = kunit_kzalloc(test, sizeof(*writer), GFP_KERNEL);
	char name[16];
	u32 i;

	KUNIT_ASSERT_NOT_NULL(test, writer);
	writer->alloc = new_metadata;
	writer->free = free_metadata;
	KUNIT_ASSERT_EQ(test, kunit_add_action_or_reset(test, undo, writer), 0);
	add_inode(test, writer, 1, S_IFDIR | 0700, "");
	for (i = 0; i < 100; i++) {
		snprintf(name, sizeof(name), "f%u", i);
		add_inode(test, writer, 1, S_IFREG | 0600, name);
	}
	pkram_write_end(writer);
	expect_good(test, writer);
	KUNIT_EXPECT_EQ(test, le32_to_cpu(writer->entry.pages),
			DIV_ROUND_UP(101, PKRAM_INODES_IN_PAGE));
}

static void test_every_flipped_bit_is_seen(struct kunit *test)
{
	struct pkram_writer *writer = new_save(test);
	u32 number, bit;

	for (number = 0; number < 3; number++) {
		u8 *bytes = (u8 *)page_of(writer, number);

		for (bit = 0; bit < PKRAM_PAGE_SIZE * 8; bit += bit < 1024 ? 1 : 61) {
			bytes[bit / 8] ^= 1 << bit % 8;
			KUNIT_EXPECT_EQ(test, check(writer, NULL), -EUCLEAN);
			bytes[bit / 8] ^= 1 << bit % 8;
		}
	}
	expect_good(test, writer);
}

static void test_chain_that_is_not_whole_is_refused(struct kunit *test)
{
	struct pkram_writer *writer = new_save(test);
	struct pkram_page *second = page_of(writer, 1), *third = page_of(writer, 2);
	const __le64 first = writer->entry.first;

	writer->entry.pages = cpu_to_le32(2);
	expect_refused(test, writer, "there are more pages than 2");
	writer->entry.pages = cpu_to_le32(4);
	expect_refused(test, writer, "page 3: no memory at 0");
	writer->entry.pages = cpu_to_le32(3);
	writer->entry.inodes = cpu_to_le32(4);
	expect_refused(test, writer, "are not all");
	writer->entry.inodes = cpu_to_le32(0);
	expect_refused(test, writer, "0 inodes cannot be");
	writer->entry.inodes = cpu_to_le32(2);
	expect_refused(test, writer, "inode 3: it is not its turn");
	writer->entry.inodes = cpu_to_le32(3);
	writer->entry.folios = cpu_to_le64(TEST_FOLIOS - 1);
	expect_refused(test, writer, "it is one too many");
	writer->entry.folios = cpu_to_le64(TEST_FOLIOS);
	/* nobody's, and those of somebody else */
	writer->entry.first = cpu_to_le64(first ^ cpu_to_le64(1));
	expect_refused(test, writer, "page 0: no memory");
	writer->entry.first = cpu_to_le64(PFN_PHYS(1ULL << 39));
	expect_refused(test, writer, "page 0: no memory");
	writer->entry.first = cpu_to_le64(virt_to_phys(second));
	expect_refused(test, writer, "page 0: it belongs somewhere else");
	writer->entry.first = first;
	writer->entry.id ^= cpu_to_le64(1);
	expect_refused(test, writer, "page 0: it belongs somewhere else");
	writer->entry.id ^= cpu_to_le64(1);
	/* a circle */
	second->checksum = 0;
	second->next = first;
	second->checksum = cpu_to_le32(page_checksum(second));
	expect_refused(test, writer, "page 2: it belongs somewhere else");
	second->next = cpu_to_le64(virt_to_phys(third));
	second->checksum = cpu_to_le32(page_checksum(second));
	expect_good(test, writer);
	second->type = cpu_to_le32(PKRAM_INODES + 7);
	expect_sealed_refused(test, writer, "page 1: type 8 cannot be");
	second->type = cpu_to_le32(PKRAM_FOLIOS);
	third->count = cpu_to_le32(PKRAM_FOLIOS_IN_PAGE + 1);
	expect_sealed_refused(test, writer, "page 2: 253 records cannot be");
	third->count = 0;
	expect_sealed_refused(test, writer, "page 2: 0 records cannot be");
}

static void test_inode_that_cannot_be_is_refused(struct kunit *test)
{
	static const char * const names[] = { "", ".", "..", "a/b" };
	struct pkram_writer *writer = new_save(test);
	struct pkram_inode *dir = (struct pkram_inode *)pkram_inode_at(writer->first, 1);
	struct pkram_inode *file = (struct pkram_inode *)pkram_inode_at(writer->first, 2);
	const struct pkram_inode good = *file;
	int i;

	for (i = 0; i < ARRAY_SIZE(names); i++) {
		*file = make_inode(2, S_IFREG | 0600, names[i], 0);
		file->ino = good.ino;
		expect_sealed_refused(test, writer, "inode 3: its name cannot be");
	}
	*file = good;
	file->name_len++;
	expect_sealed_refused(test, writer, "its name cannot be");
	*file = good;
	file->name[200] = 'x';
	expect_sealed_refused(test, writer, "its name cannot be");
	*file = good;
	file->parent = cpu_to_le32(3);
	expect_sealed_refused(test, writer, "its directory cannot be");
	file->parent = 0;
	expect_sealed_refused(test, writer, "its directory cannot be");
	*file = good;
	file->mode = cpu_to_le32(S_IFCHR | 0600);
	expect_sealed_refused(test, writer, "neither file nor directory");
	*file = good;
	file->size = cpu_to_le64(PKRAM_MAX_FILE + 1);
	expect_sealed_refused(test, writer, "its size cannot be");
	*file = good;
	file->mtime_ns = cpu_to_le32(NSEC_PER_SEC);
	expect_sealed_refused(test, writer, "its time cannot be");
	*file = good;
	file->ino = cpu_to_le32(1);
	expect_sealed_refused(test, writer, "it is not its turn");
	*file = good;
	file->reserved[5] = 1;
	expect_sealed_refused(test, writer, "fields of another version");
	*file = good;
	dir->mode = cpu_to_le32(S_IFREG | 0600);
	expect_sealed_refused(test, writer, "inode 3: 2 is no directory");
}

static void test_folio_that_cannot_be_is_refused(struct kunit *test)
{
	struct pkram_writer *writer = new_save(test);
	struct pkram_page *page = page_of(writer, 1);
	struct pkram_folio *huge = (struct pkram_folio *)pkram_folio_at(page, 1);
	struct pkram_folio *small = (struct pkram_folio *)pkram_folio_at(page, TEST_HUGE);
	const struct pkram_folio good = *huge, good_small = *small;

	huge->where = cpu_to_le64(some_phys() | 1);
	expect_sealed_refused(test, writer, "folio 1: order 1 cannot be");
	huge->where = cpu_to_le64((some_phys() + PAGE_SIZE) | PKRAM_HUGE_ORDER);
	expect_sealed_refused(test, writer, "folio 1: no memory");
	huge->where = cpu_to_le64(PFN_PHYS(1ULL << 39) | PKRAM_HUGE_ORDER);
	expect_sealed_refused(test, writer, "folio 1: no memory");
	*huge = good;
	huge->index = cpu_to_le32(PKRAM_HUGE_PAGES + 1);
	expect_sealed_refused(test, writer, "index 513 cannot be");
	/* over the one before, and under the one behind */
	huge->index = 0;
	expect_sealed_refused(test, writer, "folio 1: it is not its turn");
	*huge = good;
	small->index = cpu_to_le32(TEST_HUGE * PKRAM_HUGE_PAGES - 1);
	expect_sealed_refused(test, writer, "folio 2: it is not its turn");
	*small = good_small;
	small->ino = cpu_to_le32(2);
	expect_sealed_refused(test, writer, "folio 2: 2 is no file");
	small->ino = cpu_to_le32(4);
	expect_sealed_refused(test, writer, "folio 2: 4 is no file");
	*small = good_small;
	pkram_write_end(writer);
	expect_good(test, writer);
}

static void expect_dir_refused(struct kunit *test, const struct pkram_dir *dir, const char *words)
{
	char reason[PKRAM_REASON_BYTES] = "";

	KUNIT_EXPECT_EQ(test, pkram_dir_check(dir, reason), -EUCLEAN);
	KUNIT_EXPECT_NOT_NULL_MSG(test, strstr(reason, words), "'%s' is not in '%s'", words,
				  reason);
}

static void test_directory(struct kunit *test)
{
	struct pkram_dir *dir = kunit_kzalloc(test, sizeof(*dir), GFP_KERNEL);
	struct pkram_dir_entry entry = {};
	char reason[PKRAM_REASON_BYTES];
	u32 i, bit;

	KUNIT_ASSERT_NOT_NULL(test, dir);
	expect_dir_refused(test, dir, "magic");
	pkram_dir_format(dir);
	KUNIT_EXPECT_EQ(test, pkram_dir_check(dir, reason), 0);
	for (i = 0; i < PKRAM_SAVES_MAX; i++) {
		snprintf(entry.name, sizeof(entry.name), "save-%u", i);
		KUNIT_EXPECT_EQ(test, pkram_dir_add(dir, &entry), 0);
		KUNIT_EXPECT_EQ(test, pkram_dir_add(dir, &entry), -EEXIST);
	}
	strscpy_pad(entry.name, "more");
	KUNIT_EXPECT_EQ(test, pkram_dir_add(dir, &entry), -ENOSPC);
	KUNIT_EXPECT_EQ(test, pkram_dir_check(dir, reason), 0);
	pkram_dir_remove(dir, pkram_dir_find(dir, "save-3"));
	pkram_dir_remove(dir, pkram_dir_find(dir, "save-30"));
	KUNIT_EXPECT_EQ(test, pkram_dir_check(dir, reason), 0);
	KUNIT_EXPECT_NULL(test, pkram_dir_find(dir, "save-3"));
	KUNIT_EXPECT_NOT_NULL(test, pkram_dir_find(dir, "save-31"));
	for (bit = 0; bit < PKRAM_PAGE_SIZE * 8; bit += bit < 1024 ? 1 : 61) {
		((u8 *)dir)[bit / 8] ^= 1 << bit % 8;
		KUNIT_EXPECT_EQ(test, pkram_dir_check(dir, reason), -EUCLEAN);
		((u8 *)dir)[bit / 8] ^= 1 << bit % 8;
	}
}

static void test_directory_that_cannot_be_is_refused(struct kunit *test)
{
	struct pkram_dir *dir = kunit_kzalloc(test, sizeof(*dir), GFP_KERNEL);
	struct pkram_dir_entry entry = { .name = "save" };

	KUNIT_ASSERT_NOT_NULL(test, dir);
	pkram_dir_format(dir);
	KUNIT_ASSERT_EQ(test, pkram_dir_add(dir, &entry), 0);
	dir->version = cpu_to_le32(PKRAM_VERSION + 1);
	pkram_dir_seal(dir);
	expect_dir_refused(test, dir, "version is 2, this kernel reads 1");
	dir->version = cpu_to_le32(PKRAM_VERSION);
	dir->saves[1] = dir->saves[0];
	pkram_dir_seal(dir);
	expect_dir_refused(test, dir, "fields of another version");
	dir->count = cpu_to_le32(2);
	pkram_dir_seal(dir);
	expect_dir_refused(test, dir, "saves 0 and 1 have one name");
	dir->saves[1].name[0] = '\0';
	pkram_dir_seal(dir);
	expect_dir_refused(test, dir, "save 1: its name cannot be");
	memset(dir->saves[1].name, 'x', PKRAM_NAME_LEN);
	pkram_dir_seal(dir);
	expect_dir_refused(test, dir, "save 1: its name cannot be");
	dir->count = cpu_to_le32(U32_MAX);
	pkram_dir_seal(dir);
	expect_dir_refused(test, dir, "saves are more than there can be");
}

static struct kunit_case pkram_cases[] = {
	KUNIT_CASE(test_what_was_written_is_read),
	KUNIT_CASE(test_many_inodes_take_many_pages),
	KUNIT_CASE_SLOW(test_every_flipped_bit_is_seen),
	KUNIT_CASE(test_chain_that_is_not_whole_is_refused),
	KUNIT_CASE(test_inode_that_cannot_be_is_refused),
	KUNIT_CASE(test_folio_that_cannot_be_is_refused),
	KUNIT_CASE(test_directory),
	KUNIT_CASE(test_directory_that_cannot_be_is_refused),
	{}
};

static struct kunit_suite pkram_suite = {
	.name = "pkram",
	.test_cases = pkram_cases,
};

kunit_test_suite(pkram_suite);

MODULE_DESCRIPTION("KUnit tests of pkram");
MODULE_LICENSE("GPL");
