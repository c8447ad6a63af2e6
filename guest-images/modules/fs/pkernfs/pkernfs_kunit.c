// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests of the metadata: allocator, serialiser, and that neither a cut at any
 * store nor anything found in a region can do harm.
 *
 * With the code in it and not beside pkernfs.ko, which wants a region.
 */

#include <kunit/test.h>
#include <linux/vmalloc.h>

#include "load.c"
#include "meta.c"

#define TEST_SIZE	(8 * PKERNFS_BLOCK_SIZE)
#define TEST_START	0x140000000ULL

static void free_region(void *base)
{
	vfree(base);
}

static void *new_region(struct kunit *test)
{
	void *base = vzalloc(TEST_SIZE);

	KUNIT_ASSERT_NOT_NULL(test, base);
	KUNIT_ASSERT_EQ(test, kunit_add_action_or_reset(test, free_region, base), 0);
	return base;
}

static void put_meta(void *meta)
{
	pkernfs_meta_free(meta);
}

static struct pkernfs_meta *open_region(struct kunit *test, void *base)
{
	struct pkernfs_meta *meta = pkernfs_meta_alloc(base, TEST_START, TEST_SIZE);

	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, meta);
	KUNIT_ASSERT_EQ(test, kunit_add_action_or_reset(test, put_meta, meta), 0);
	return meta;
}

static struct pkernfs_meta *load_region(struct kunit *test, void *base)
{
	struct pkernfs_meta *meta = open_region(test, base);

	KUNIT_ASSERT_EQ_MSG(test, pkernfs_meta_load(meta), 0, "%s", meta->reason);
	return meta;
}

static struct pkernfs_meta *new_meta(struct kunit *test)
{
	void *base = new_region(test);

	KUNIT_ASSERT_EQ(test, pkernfs_format(base, TEST_START, TEST_SIZE), 0);
	return load_region(test, base);
}

/* Load and forget; what was in the region is as it was before. */
static int try_load(struct kunit *test, void *base, char *reason)
{
	struct pkernfs_meta *meta = pkernfs_meta_alloc(base, TEST_START, TEST_SIZE);
	size_t bytes;
	void *saved;
	int err;

	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, meta);
	bytes = meta->layout.data_offset;
	saved = vmalloc(bytes);
	KUNIT_ASSERT_NOT_NULL(test, saved);
	memcpy(saved, base, bytes);
	err = pkernfs_meta_load(meta);
	if (reason)
		strscpy(reason, meta->reason, PKERNFS_REASON_BYTES);
	if (err)
		KUNIT_EXPECT_EQ_MSG(test, memcmp(saved, base, bytes), 0,
				    "a region that is refused was written to");
	memcpy(base, saved, bytes);
	vfree(saved);
	pkernfs_meta_free(meta);
	return err;
}

static void expect_refused(struct kunit *test, void *base, const char *words)
{
	char reason[PKERNFS_REASON_BYTES];

	KUNIT_EXPECT_EQ(test, try_load(test, base, reason), -EUCLEAN);
	KUNIT_EXPECT_NOT_NULL_MSG(test, strstr(reason, words), "'%s' is not in '%s'",
				  words, reason);
}

static u32 make(struct pkernfs_meta *meta, u32 parent, const char *name, u32 mode)
{
	struct pkernfs_inode record = {};
	u32 ino = pkernfs_meta_new_inode(meta);

	record.ino = cpu_to_le32(ino);
	record.parent = cpu_to_le32(parent);
	record.mode = cpu_to_le32(mode);
	record.size = cpu_to_le64(S_ISREG(mode) ? 2 * PKERNFS_BLOCK_SIZE : 0);
	record.name_len = strlen(name);
	memcpy(record.name, name, record.name_len);
	pkernfs_meta_put(meta, &record);
	return ino;
}

static u32 make_file(struct pkernfs_meta *meta, const char *name)
{
	return make(meta, PKERNFS_ROOT, name, S_IFREG | 0600);
}

static u32 make_dir(struct pkernfs_meta *meta, u32 parent, const char *name)
{
	return make(meta, parent, name, S_IFDIR | 0700);
}

static void rename_to(struct pkernfs_meta *meta, u32 ino, u32 parent, const char *name)
{
	struct pkernfs_inode record;

	pkernfs_meta_get(meta, ino, &record);
	record.parent = cpu_to_le32(parent);
	memset(record.name, 0, sizeof(record.name));
	record.name_len = strlen(name);
	memcpy(record.name, name, record.name_len);
	pkernfs_meta_put(meta, &record);
}

static void remove_name(struct pkernfs_meta *meta, u32 ino)
{
	guard(mutex)(&meta->lock);
	make_orphan(meta, ino);
}

static void test_layout(struct kunit *test)
{
	struct pkernfs_layout layout;
	u64 size;

	KUNIT_EXPECT_EQ(test, pkernfs_layout(0, &layout), -EINVAL);
	KUNIT_EXPECT_EQ(test, pkernfs_layout(PKERNFS_MIN_SIZE - 1, &layout), -EINVAL);
	KUNIT_EXPECT_EQ(test, pkernfs_layout(PKERNFS_MIN_SIZE + 4096, &layout), -EINVAL);
	KUNIT_EXPECT_EQ(test, pkernfs_layout(PKERNFS_MAX_SIZE * 2, &layout), -EINVAL);
	for (size = PKERNFS_MIN_SIZE; size <= PKERNFS_MAX_SIZE; size *= 2) {
		KUNIT_ASSERT_EQ(test, pkernfs_layout(size, &layout), 0);
		KUNIT_EXPECT_EQ(test, layout.data_offset % PKERNFS_BLOCK_SIZE, 0);
		KUNIT_EXPECT_EQ(test, size, layout.data_offset +
				(layout.block_count << PKERNFS_BLOCK_SHIFT));
		/* the table does not reach into the inodes, nor they into the data */
		KUNIT_EXPECT_GE(test, layout.inode_offset,
				PKERNFS_TABLE_OFFSET + layout.block_count * 8);
		KUNIT_EXPECT_GE(test, layout.data_offset, layout.inode_offset +
				layout.inode_count * 2 * sizeof(struct pkernfs_inode));
		/* the budget: less than 0.5 % */
		if (size >= SZ_512M)
			KUNIT_EXPECT_LT(test, layout.data_offset * 200, size);
	}
}

static void test_blank(struct kunit *test)
{
	char *base = new_region(test);

	KUNIT_EXPECT_TRUE(test, pkernfs_is_blank(base));
	base[100] = 1;
	KUNIT_EXPECT_FALSE(test, pkernfs_is_blank(base));
	base[100] = 0;
	base[PKERNFS_STATE_OFFSET + 100] = 1;
	KUNIT_EXPECT_FALSE(test, pkernfs_is_blank(base));
	expect_refused(test, base, "magic");
}

static void test_names_and_blocks_are_found_again(struct kunit *test)
{
	struct pkernfs_meta *meta = new_meta(test);
	u32 dir = make_dir(meta, PKERNFS_ROOT, "dir");
	u32 file = make(meta, dir, "file", S_IFREG | 0640);
	struct pkernfs_inode record;
	u64 block;
	void *entry;

	KUNIT_ASSERT_EQ(test, pkernfs_meta_alloc_block(meta, file, 0, &block), 0);
	KUNIT_ASSERT_EQ(test, pkernfs_meta_alloc_block(meta, file, 1, &block), 0);
	pkernfs_meta_commit(meta);
	meta = load_region(test, meta->base);
	KUNIT_EXPECT_FALSE(test, meta->recovered);
	KUNIT_EXPECT_EQ(test, meta->mounts, 2);
	KUNIT_EXPECT_EQ(test, meta->free_blocks, meta->layout.block_count - 2);
	KUNIT_EXPECT_EQ(test, meta->free_inodes, meta->layout.inode_count - 3);
	KUNIT_EXPECT_EQ(test, pkernfs_node(meta, file)->count, 2);
	entry = xa_load(&pkernfs_node(meta, file)->blocks, 1);
	KUNIT_ASSERT_NOT_NULL(test, entry);
	KUNIT_EXPECT_EQ(test, xa_to_value(entry), block);
	pkernfs_meta_get(meta, file, &record);
	KUNIT_EXPECT_STREQ(test, (char *)record.name, "file");
	KUNIT_EXPECT_EQ(test, le32_to_cpu(record.parent), dir);
	KUNIT_EXPECT_EQ(test, le32_to_cpu(record.mode), S_IFREG | 0640);
}

static void test_allocator(struct kunit *test)
{
	struct pkernfs_meta *meta = new_meta(test);
	u64 count = meta->layout.block_count, block, again, i;
	u32 file = make_file(meta, "file");
	DECLARE_BITMAP(seen, TEST_SIZE / PKERNFS_BLOCK_SIZE) = {};

	for (i = 0; i < count; i++) {
		memset(meta->base + meta->layout.data_offset +
		       (i << PKERNFS_BLOCK_SHIFT), 0xa5, PKERNFS_BLOCK_SIZE);
	}
	for (i = 0; i < count; i++) {
		KUNIT_ASSERT_EQ(test, pkernfs_meta_alloc_block(meta, file, i * 3, &block), 0);
		KUNIT_ASSERT_LT(test, block, count);
		KUNIT_EXPECT_FALSE(test, test_and_set_bit(block, seen));
		KUNIT_EXPECT_NULL(test, memchr_inv(pkernfs_block_address(meta, block), 0,
						   PKERNFS_BLOCK_SIZE));
	}
	KUNIT_EXPECT_EQ(test, pkernfs_meta_alloc_block(meta, file, 1, &block), -ENOSPC);
	KUNIT_EXPECT_EQ(test, pkernfs_meta_available(meta), 0);
	/* one that is there already is found, room or not: 2 faults at once */
	pkernfs_meta_free_blocks(meta, file, 3, 3);
	KUNIT_ASSERT_EQ(test, pkernfs_meta_alloc_block(meta, file, 0, &again), 0);
	KUNIT_EXPECT_EQ(test, again, 0);
	KUNIT_EXPECT_EQ(test, pkernfs_meta_available(meta), 1);
	pkernfs_meta_free_blocks(meta, file, 0, PKERNFS_MAX_INDEX - 1);
	KUNIT_EXPECT_EQ(test, pkernfs_meta_available(meta), count);
	KUNIT_EXPECT_EQ(test, pkernfs_node(meta, file)->count, 0);
}

static void test_inodes_run_out(struct kunit *test)
{
	struct pkernfs_meta *meta = new_meta(test);
	char name[16];
	u32 i;

	for (i = 1; i < meta->layout.inode_count; i++) {
		snprintf(name, sizeof(name), "f%u", i);
		KUNIT_ASSERT_NE(test, make_file(meta, name), 0);
	}
	KUNIT_EXPECT_EQ(test, pkernfs_meta_new_inode(meta), 0);
	KUNIT_EXPECT_EQ(test, try_load(test, meta->base, NULL), 0);
	remove_name(meta, 7);
	pkernfs_meta_reap(meta, 7);
	KUNIT_EXPECT_EQ(test, pkernfs_meta_new_inode(meta), 7);
}

static void flip(void *base, u64 bit)
{
	((u8 *)base)[bit / 8] ^= 1 << bit % 8;
}

static void test_every_flipped_bit_is_seen(struct kunit *test)
{
	struct pkernfs_meta *meta = new_meta(test);
	u32 file = make_file(meta, "file");
	u64 block, bit, word, inode;
	void *base = meta->base;

	KUNIT_ASSERT_EQ(test, pkernfs_meta_alloc_block(meta, file, 5, &block), 0);
	word = PKERNFS_TABLE_OFFSET + block * 8;
	inode = (void *)record_of(meta, file) - base;

	/* at rest, and in the middle of something, without the checksum of all */
	KUNIT_ASSERT_EQ(test, try_load(test, base, NULL), 0);
	for (bit = 0; bit < 128; bit++) {
		flip(base + word, bit);
		expect_refused(test, base, "block");
		flip(base + word, bit);
	}
	pkernfs_meta_commit(meta);
	KUNIT_ASSERT_EQ(test, try_load(test, base, NULL), 0);
	for (bit = 0; bit < sizeof(struct pkernfs_inode) * 8; bit += 5) {
		flip(base + inode, bit);
		expect_refused(test, base, "checksum of blocks and inodes");
		flip(base + inode, bit);
	}
	for (bit = 0; bit < PKERNFS_PAGE_SIZE * 8; bit += bit < 1024 ? 1 : 61) {
		flip(base, bit);
		KUNIT_EXPECT_EQ(test, try_load(test, base, NULL), -EUCLEAN);
		flip(base, bit);
	}
	KUNIT_EXPECT_EQ(test, try_load(test, base, NULL), 0);
}

static void seal_super(struct pkernfs_super *super)
{
	super->checksum = cpu_to_le32(super_checksum(super));
}

static void test_another_superblock_is_refused(struct kunit *test)
{
	struct pkernfs_meta *meta = new_meta(test);
	struct pkernfs_super *super = meta->base;
	struct pkernfs_super *saved = kunit_kmalloc(test, sizeof(*saved), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, saved);
	*saved = *super;
	super->version = cpu_to_le32(PKERNFS_VERSION + 1);
	seal_super(super);
	expect_refused(test, super, "version is 2, this kernel reads 1");
	*super = *saved;
	super->size = cpu_to_le64(TEST_SIZE * 2);
	seal_super(super);
	expect_refused(test, super, "superblock is for");
	*super = *saved;
	super->data_offset = cpu_to_le64(U64_MAX);
	seal_super(super);
	expect_refused(test, super, "layout");
	*super = *saved;
	super->inode_count = cpu_to_le32(U32_MAX);
	seal_super(super);
	expect_refused(test, super, "layout");
	*super = *saved;
	/* all else is seeded with it */
	super->uuid[3] ^= 1;
	seal_super(super);
	expect_refused(test, super, "states");
}

static void test_circle_of_directories_is_refused(struct kunit *test)
{
	struct pkernfs_meta *meta = new_meta(test);
	u32 a = make_dir(meta, PKERNFS_ROOT, "a");
	u32 b = make_dir(meta, a, "b");

	KUNIT_EXPECT_EQ(test, try_load(test, meta->base, NULL), 0);
	rename_to(meta, a, b, "a");
	expect_refused(test, meta->base, "do not lead to the root");
}

static void test_directory_that_is_none_is_refused(struct kunit *test)
{
	struct pkernfs_meta *meta = new_meta(test);
	u32 file = make_file(meta, "file"), child = make_file(meta, "child");

	rename_to(meta, child, file, "child");
	expect_refused(test, meta->base, "is no directory");
	rename_to(meta, child, 9, "child");
	expect_refused(test, meta->base, "is no directory");
	rename_to(meta, child, meta->layout.inode_count + 1, "child");
	expect_refused(test, meta->base, "its directory cannot be");
	rename_to(meta, child, 0, "child");
	expect_refused(test, meta->base, "its directory cannot be");
}

static void test_name_that_cannot_be_is_refused(struct kunit *test)
{
	static const char * const names[] = { "", ".", "..", "a/b" };
	struct pkernfs_meta *meta = new_meta(test);
	struct pkernfs_inode record;
	u32 file = make_file(meta, "file");
	int i;

	for (i = 0; i < ARRAY_SIZE(names); i++) {
		rename_to(meta, file, PKERNFS_ROOT, names[i]);
		expect_refused(test, meta->base, "its name cannot be");
	}
	/* more of it than it says, and less */
	rename_to(meta, file, PKERNFS_ROOT, "file");
	pkernfs_meta_get(meta, file, &record);
	record.name_len = 3;
	pkernfs_meta_put(meta, &record);
	expect_refused(test, meta->base, "its name cannot be");
	record.name_len = 5;
	pkernfs_meta_put(meta, &record);
	expect_refused(test, meta->base, "its name cannot be");
}

static void test_record_that_cannot_be_is_refused(struct kunit *test)
{
	struct pkernfs_meta *meta = new_meta(test);
	u32 file = make_file(meta, "file");
	struct pkernfs_inode good, record;

	pkernfs_meta_get(meta, file, &good);
	record = good;
	record.mode = cpu_to_le32(S_IFCHR | 0600);
	pkernfs_meta_put(meta, &record);
	expect_refused(test, meta->base, "neither file nor directory");
	record = good;
	record.size = cpu_to_le64(PKERNFS_MAX_FILE + 1);
	pkernfs_meta_put(meta, &record);
	expect_refused(test, meta->base, "its size cannot be");
	record = good;
	record.flags = cpu_to_le32(0x80);
	pkernfs_meta_put(meta, &record);
	expect_refused(test, meta->base, "unknown flags");
	record = good;
	record.mtime_ns = cpu_to_le32(NSEC_PER_SEC);
	pkernfs_meta_put(meta, &record);
	expect_refused(test, meta->base, "its time cannot be");
	pkernfs_meta_put(meta, &good);
	KUNIT_EXPECT_EQ(test, try_load(test, meta->base, NULL), 0);
}

static void test_block_that_cannot_be_is_refused(struct kunit *test)
{
	struct pkernfs_meta *meta = new_meta(test);
	u32 file = make_file(meta, "file");
	u32 dir = make_dir(meta, PKERNFS_ROOT, "dir");
	u64 block, other;

	KUNIT_ASSERT_EQ(test, pkernfs_meta_alloc_block(meta, file, 0, &block), 0);
	other = block + 1;
	meta->table[other] = make_word(meta->seed, other, file, 0);
	expect_refused(test, meta->base, "has another at 0");
	meta->table[other] = make_word(meta->seed, other, dir, 0);
	expect_refused(test, meta->base, "is no file");
	meta->table[other] = make_word(meta->seed, other, 40, 0);
	expect_refused(test, meta->base, "is no file");
	meta->table[other] = make_word(meta->seed, other, WORD_INO_MASK, 0);
	expect_refused(test, meta->base, "is no file");
	/* one that is right, but for another block */
	meta->table[other] = make_word(meta->seed, block, file, 1);
	expect_refused(test, meta->base, "checksum does not match");
	meta->table[other] = make_word(meta->seed, other, file, 1);
	KUNIT_EXPECT_EQ(test, try_load(test, meta->base, NULL), 0);
}

static void test_two_of_one_name_at_rest_are_refused(struct kunit *test)
{
	struct pkernfs_meta *meta = new_meta(test);

	make_file(meta, "file");
	make_file(meta, "file");
	/* in the middle of something that is a rename that was cut short */
	KUNIT_EXPECT_EQ(test, try_load(test, meta->base, NULL), 0);
	pkernfs_meta_commit(meta);
	expect_refused(test, meta->base, "have one name");
}

static void test_orphan_is_freed_by_the_next_kernel(struct kunit *test)
{
	struct pkernfs_meta *meta = new_meta(test);
	u32 file = make_file(meta, "file");
	u64 block;

	KUNIT_ASSERT_EQ(test, pkernfs_meta_alloc_block(meta, file, 0, &block), 0);
	remove_name(meta, file);
	pkernfs_meta_commit(meta);
	meta = load_region(test, meta->base);
	KUNIT_EXPECT_EQ(test, meta->reaped, 1);
	KUNIT_EXPECT_EQ(test, meta->free_blocks, meta->layout.block_count);
	KUNIT_EXPECT_FALSE(test, pkernfs_node(meta, file)->used);
}

static void test_beyond_the_end_is_freed_after_a_cut(struct kunit *test)
{
	struct pkernfs_meta *meta = new_meta(test);
	u32 file = make_file(meta, "file");
	u64 block;

	/* two blocks long, and a third that a cut truncate left */
	KUNIT_ASSERT_EQ(test, pkernfs_meta_alloc_block(meta, file, 1, &block), 0);
	KUNIT_ASSERT_EQ(test, pkernfs_meta_alloc_block(meta, file, 2, &block), 0);
	meta = load_region(test, meta->base);
	KUNIT_EXPECT_TRUE(test, meta->recovered);
	KUNIT_EXPECT_EQ(test, pkernfs_node(meta, file)->count, 1);
	KUNIT_EXPECT_EQ(test, meta->free_blocks, meta->layout.block_count - 1);
}

static bool all_busy(struct pkernfs_meta *meta, u64 block)
{
	return true;
}

static void test_pinned_blocks_are_not_freed(struct kunit *test)
{
	struct pkernfs_meta *meta = new_meta(test);
	u64 count = meta->layout.block_count, block;
	u32 file = make_file(meta, "file");

	KUNIT_ASSERT_EQ(test, pkernfs_meta_alloc_block(meta, file, 0, &block), 0);
	KUNIT_EXPECT_FALSE(test, pkernfs_meta_is_pinned(meta, file, 0, 0));
	meta->busy = all_busy;
	KUNIT_EXPECT_TRUE(test, pkernfs_meta_is_pinned(meta, file, 0, 0));
	KUNIT_EXPECT_FALSE(test, pkernfs_meta_is_pinned(meta, file, 1, 9));
	remove_name(meta, file);
	pkernfs_meta_reap(meta, file);
	KUNIT_EXPECT_EQ(test, pkernfs_meta_available(meta), count - 1);
	KUNIT_EXPECT_NE(test, pkernfs_meta_new_inode(meta), file);
	meta->busy = NULL;
	KUNIT_EXPECT_EQ(test, pkernfs_meta_available(meta), count);
	KUNIT_EXPECT_EQ(test, pkernfs_meta_new_inode(meta), file);
}

/* what a cut at each store may come to */
struct cut {
	struct kunit *test;
	/* a second region, for the copies */
	void *copy;
	/* a file that is there all the time, under one of two names */
	const char *names[2];
	/* how many files there may be */
	u32 least, most;
	u32 cuts;
};

static bool is_named(struct pkernfs_meta *meta, u32 ino, const char *name)
{
	return pkernfs_node(meta, ino)->used && !is_orphan(meta, ino) &&
	       !strcmp((const char *)record_of(meta, ino)->name, name);
}

static void look_at_cut(struct pkernfs_meta *meta)
{
	struct cut *cut = meta->private;
	struct pkernfs_meta *next;
	u32 ino, named = 0, files = 0;
	int err;

	cut->cuts++;
	memcpy(cut->copy, meta->base, meta->layout.data_offset);
	next = pkernfs_meta_alloc(cut->copy, TEST_START, TEST_SIZE);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(cut->test, next);
	err = pkernfs_meta_load(next);
	KUNIT_EXPECT_EQ_MSG(cut->test, err, 0, "cut %u: %s", cut->cuts, next->reason);
	for (ino = PKERNFS_ROOT + 1; !err && ino <= next->layout.inode_count; ino++) {
		named += is_named(next, ino, cut->names[0]) ||
			 (cut->names[1] && is_named(next, ino, cut->names[1]));
		files += pkernfs_node(next, ino)->used;
	}
	KUNIT_EXPECT_EQ_MSG(cut->test, named, 1, "cut %u", cut->cuts);
	KUNIT_EXPECT_GE_MSG(cut->test, files, cut->least, "cut %u", cut->cuts);
	KUNIT_EXPECT_LE_MSG(cut->test, files, cut->most, "cut %u", cut->cuts);
	/* and what was made of it is good for the kernel after */
	pkernfs_meta_commit(next);
	pkernfs_meta_free(next);
	KUNIT_EXPECT_EQ(cut->test, try_load(cut->test, cut->copy, NULL), 0);
}

static void test_cut_at_any_store(struct kunit *test)
{
	struct pkernfs_meta *meta = new_meta(test);
	struct cut cut = { .test = test, .copy = new_region(test) };
	u32 old = make_file(meta, "old"), other;
	u64 block, i;

	for (i = 0; i < 2; i++)
		KUNIT_ASSERT_EQ(test, pkernfs_meta_alloc_block(meta, old, i, &block), 0);
	pkernfs_meta_commit(meta);
	meta->private = &cut;
	meta->stored = look_at_cut;

	cut.names[0] = "old";
	cut.least = 1;
	cut.most = 2;
	other = make_file(meta, "other");
	KUNIT_ASSERT_EQ(test, pkernfs_meta_alloc_block(meta, other, 0, &block), 0);
	pkernfs_meta_commit(meta);

	/* old onto other: one of them has to be there at any time */
	cut.names[0] = "other";
	rename_to(meta, old, PKERNFS_ROOT, "other");
	remove_name(meta, other);
	pkernfs_meta_reap(meta, other);
	pkernfs_meta_commit(meta);

	cut.names[1] = "new";
	cut.most = 1;
	rename_to(meta, old, PKERNFS_ROOT, "new");
	pkernfs_meta_free_blocks(meta, old, 1, 1);
	pkernfs_meta_commit(meta);
	KUNIT_EXPECT_GT(test, cut.cuts, 20);
	meta->stored = NULL;
}

static void test_torn_record_leaves_the_one_before(struct kunit *test)
{
	struct pkernfs_meta *meta = new_meta(test);
	u32 file = make_file(meta, "before");
	struct pkernfs_inode *slot;

	rename_to(meta, file, PKERNFS_ROOT, "after");
	slot = (struct pkernfs_inode *)record_of(meta, file);
	slot->name[2] ^= 1;
	meta = load_region(test, meta->base);
	KUNIT_EXPECT_STREQ(test, (const char *)record_of(meta, file)->name, "before");
	/* and with both of them gone there is nothing to go by */
	slot = inode_slot(meta, file, 0);
	slot->name[3] ^= 1;
	slot = inode_slot(meta, file, 1);
	slot->name[3] ^= 1;
	expect_refused(test, meta->base, "checksum does not match");
}

static struct kunit_case pkernfs_cases[] = {
	KUNIT_CASE(test_layout),
	KUNIT_CASE(test_blank),
	KUNIT_CASE(test_names_and_blocks_are_found_again),
	KUNIT_CASE(test_allocator),
	KUNIT_CASE(test_inodes_run_out),
	KUNIT_CASE_SLOW(test_every_flipped_bit_is_seen),
	KUNIT_CASE(test_another_superblock_is_refused),
	KUNIT_CASE(test_circle_of_directories_is_refused),
	KUNIT_CASE(test_directory_that_is_none_is_refused),
	KUNIT_CASE(test_name_that_cannot_be_is_refused),
	KUNIT_CASE(test_record_that_cannot_be_is_refused),
	KUNIT_CASE(test_block_that_cannot_be_is_refused),
	KUNIT_CASE(test_two_of_one_name_at_rest_are_refused),
	KUNIT_CASE(test_orphan_is_freed_by_the_next_kernel),
	KUNIT_CASE(test_beyond_the_end_is_freed_after_a_cut),
	KUNIT_CASE(test_pinned_blocks_are_not_freed),
	KUNIT_CASE(test_cut_at_any_store),
	KUNIT_CASE(test_torn_record_leaves_the_one_before),
	{}
};

static struct kunit_suite pkernfs_suite = {
	.name = "pkernfs",
	.test_cases = pkernfs_cases,
};

kunit_test_suite(pkernfs_suite);

MODULE_DESCRIPTION("KUnit tests of pkernfs's metadata");
MODULE_LICENSE("GPL");
