// SPDX-License-Identifier: GPL-2.0-only
/*
 * Make a region ours, and check what is found in one. All of it is untrusted:
 * any kernel may have left it, or none.
 *
 * See include/linux/kho/abi/pkernfs.h for what is where.
 */

#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/sort.h>
#include <linux/string.h>
#include <linux/uuid.h>

#include "meta.h"

/**
 * pkernfs_layout() - find where things are in a region
 * @size: of the region in bytes
 * @layout: result
 *
 * Return: 0, or -EINVAL for a region that is too small or too large.
 */
int pkernfs_layout(u64 size, struct pkernfs_layout *layout)
{
	u64 blocks = size >> PKERNFS_BLOCK_SHIFT;
	u64 inodes, end;

	if (size < PKERNFS_MIN_SIZE || size > PKERNFS_MAX_SIZE ||
	    size % PKERNFS_BLOCK_SIZE)
		return -EINVAL;
	inodes = min_t(u64, blocks + PKERNFS_MORE_INODES, PKERNFS_MAX_INODES);
	/* a word more than needed for each block that the metadata takes */
	end = PKERNFS_TABLE_OFFSET + blocks * sizeof(__le64);
	layout->inode_count = inodes;
	layout->inode_offset = ALIGN(end, PKERNFS_PAGE_SIZE);
	end = layout->inode_offset + inodes * 2 * sizeof(struct pkernfs_inode);
	layout->data_offset = ALIGN(end, PKERNFS_BLOCK_SIZE);
	if (layout->data_offset >= size)
		return -EINVAL;
	layout->block_count = (size - layout->data_offset) >> PKERNFS_BLOCK_SHIFT;
	return 0;
}

/**
 * pkernfs_is_blank() - tell whether a region was never used
 * @base: the region
 */
bool pkernfs_is_blank(const void *base)
{
	return !memchr_inv(base, 0, PKERNFS_TABLE_OFFSET);
}

static u32 super_checksum(const struct pkernfs_super *super)
{
	const size_t after = offsetofend(struct pkernfs_super, checksum);
	const __le32 zero = 0;
	u32 crc;

	crc = crc32c(~0, super, offsetof(struct pkernfs_super, checksum));
	crc = crc32c(crc, &zero, sizeof(zero));
	return crc32c(crc, (const void *)super + after, sizeof(*super) - after);
}

static u32 seed_of(const struct pkernfs_super *super)
{
	return crc32c(~0, super->uuid, sizeof(super->uuid));
}

/**
 * pkernfs_format() - make a region ours
 * @base: the region; what is in it is lost
 * @start: its physical address
 * @size: its size in bytes
 *
 * Return: 0, or -EINVAL for a region of a size that cannot be.
 */
int pkernfs_format(void *base, phys_addr_t start, u64 size)
{
	struct pkernfs_super *super = base;
	struct pkernfs_layout layout;
	struct pkernfs_inode *root;
	struct pkernfs_state *state = base + PKERNFS_STATE_OFFSET;
	u32 seed, crc;
	u64 at;
	int err;

	err = pkernfs_layout(size, &layout);
	if (err)
		return err;
	for (at = 0; at < layout.data_offset; at += PKERNFS_PAGE_SIZE)
		clear_page(base + at);
	super->version = cpu_to_le32(PKERNFS_VERSION);
	super->start = cpu_to_le64(start);
	super->size = cpu_to_le64(size);
	super->block_count = cpu_to_le64(layout.block_count);
	super->inode_count = cpu_to_le32(layout.inode_count);
	super->block_shift = cpu_to_le32(PKERNFS_BLOCK_SHIFT);
	super->table_offset = cpu_to_le64(PKERNFS_TABLE_OFFSET);
	super->inode_offset = cpu_to_le64(layout.inode_offset);
	super->data_offset = cpu_to_le64(layout.data_offset);
	generate_random_uuid(super->uuid);
	seed = seed_of(super);

	root = base + layout.inode_offset;
	root->ino = cpu_to_le32(PKERNFS_ROOT);
	root->seq = cpu_to_le64(1);
	root->parent = cpu_to_le32(PKERNFS_ROOT);
	root->mode = cpu_to_le32(S_IFDIR | 0755);
	root->checksum = cpu_to_le32(not_zero(inode_checksum(seed, root)));

	state->seq = cpu_to_le64(1);
	state->state = cpu_to_le32(PKERNFS_CLEAN);
	state->inodes = cpu_to_le32(PKERNFS_ROOT);
	crc = crc32c(seed, base + PKERNFS_TABLE_OFFSET,
		     layout.inode_offset - PKERNFS_TABLE_OFFSET);
	crc = crc32c(crc, root, 2 * sizeof(*root));
	state->tables = cpu_to_le32(crc);
	state->checksum = cpu_to_le32(not_zero(state_checksum(seed, state)));

	/* the magic last: it is no superblock without */
	super->magic = cpu_to_le64(PKERNFS_MAGIC);
	super->checksum = cpu_to_le32(super_checksum(super));
	super->magic = 0;
	/* all that it stands for before the magic */
	smp_wmb();
	WRITE_ONCE(super->magic, cpu_to_le64(PKERNFS_MAGIC));
	return 0;
}

static __printf(2, 3) int refuse(struct pkernfs_meta *meta, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vscnprintf(meta->reason, sizeof(meta->reason), fmt, args);
	va_end(args);
	return -EUCLEAN;
}

static int check_super(struct pkernfs_meta *meta)
{
	const struct pkernfs_super *super = meta->base;
	const struct pkernfs_layout *layout = &meta->layout;

	if (le64_to_cpu(super->magic) != PKERNFS_MAGIC)
		return refuse(meta, "magic is %#llx, expected %#llx",
			      le64_to_cpu(super->magic), PKERNFS_MAGIC);
	if (le32_to_cpu(super->version) != PKERNFS_VERSION)
		return refuse(meta, "version is %u, this kernel reads %u",
			      le32_to_cpu(super->version), PKERNFS_VERSION);
	if (le32_to_cpu(super->checksum) != super_checksum(super))
		return refuse(meta, "checksum of the superblock does not match");
	if (le64_to_cpu(super->start) != meta->start ||
	    le64_to_cpu(super->size) != meta->size)
		return refuse(meta, "superblock is for %#llx!%#llx, the region is %#llx!%#llx",
			      le64_to_cpu(super->size), le64_to_cpu(super->start),
			      meta->size, (u64)meta->start);
	if (le64_to_cpu(super->block_count) != layout->block_count ||
	    le32_to_cpu(super->inode_count) != layout->inode_count ||
	    le32_to_cpu(super->block_shift) != PKERNFS_BLOCK_SHIFT ||
	    le64_to_cpu(super->table_offset) != PKERNFS_TABLE_OFFSET ||
	    le64_to_cpu(super->inode_offset) != layout->inode_offset ||
	    le64_to_cpu(super->data_offset) != layout->data_offset)
		return refuse(meta, "superblock has another layout");
	meta->seed = seed_of(super);
	return 0;
}

static bool state_is_valid(struct pkernfs_meta *meta, unsigned int slot)
{
	const struct pkernfs_state *state = state_slot(meta, slot);
	u32 value = le32_to_cpu(state->state);

	return le32_to_cpu(state->checksum) ==
		       not_zero(state_checksum(meta->seed, state)) &&
	       (value == PKERNFS_CLEAN || value == PKERNFS_DIRTY);
}

/* Set @inodes to the number of inodes that can be in use. */
static int check_state(struct pkernfs_meta *meta, u32 *inodes)
{
	const struct pkernfs_state *state, *other;
	bool valid[2] = { state_is_valid(meta, 0), state_is_valid(meta, 1) };

	if (!valid[0] && !valid[1])
		return refuse(meta, "neither of the two states has a checksum that matches");
	state = state_slot(meta, 0);
	other = state_slot(meta, 1);
	meta->state_slot = !valid[0] || (valid[1] && le64_to_cpu(other->seq) >
						     le64_to_cpu(state->seq));
	state = state_slot(meta, meta->state_slot);
	meta->seq = le64_to_cpu(state->seq);
	meta->mounts = le64_to_cpu(state->mounts);
	meta->dirty = le32_to_cpu(state->state) == PKERNFS_DIRTY;
	*inodes = meta->layout.inode_count;
	if (meta->dirty)
		return 0;
	*inodes = le32_to_cpu(state->inodes);
	if (*inodes < 1 || *inodes > meta->layout.inode_count)
		return refuse(meta, "state says %u inodes, there are %u",
			      *inodes, meta->layout.inode_count);
	if (tables_checksum(meta, *inodes) != le32_to_cpu(state->tables))
		return refuse(meta, "checksum of blocks and inodes does not match");
	return 0;
}

static bool name_is_valid(const struct pkernfs_inode *inode)
{
	size_t len = inode->name_len;

	if (!len || memchr(inode->name, '/', len) || memchr(inode->name, 0, len))
		return false;
	if (inode->name[0] == '.' &&
	    (len == 1 || (len == 2 && inode->name[1] == '.')))
		return false;
	return !memchr_inv(inode->name + len, 0, sizeof(inode->name) - len);
}

/* Return what is wrong with a record whose checksum matches; NULL: nothing. */
static const char *check_record(struct pkernfs_meta *meta, u32 ino,
				const struct pkernfs_inode *inode)
{
	u32 mode = le32_to_cpu(inode->mode);
	u32 parent = le32_to_cpu(inode->parent);
	u32 flags = le32_to_cpu(inode->flags);

	if (mode & ~(S_IFMT | 07777))
		return "its mode cannot be";
	if (ino == PKERNFS_ROOT) {
		if (!S_ISDIR(mode) || parent != PKERNFS_ROOT || flags ||
		    inode->name_len)
			return "it is no root";
		return NULL;
	}
	if (!mode)
		return NULL;
	if (!S_ISREG(mode) && !S_ISDIR(mode))
		return "it is neither file nor directory";
	if (parent < 1 || parent > meta->layout.inode_count || parent == ino)
		return "its directory cannot be";
	if (flags & ~PKERNFS_ALL_FLAGS)
		return "it has unknown flags";
	if (le64_to_cpu(inode->size) > (S_ISREG(mode) ? PKERNFS_MAX_FILE : 0))
		return "its size cannot be";
	if (le32_to_cpu(inode->mtime_ns) >= NSEC_PER_SEC ||
	    le64_to_cpu(inode->mtime_s) > S64_MAX / NSEC_PER_SEC)
		return "its time cannot be";
	if (!name_is_valid(inode))
		return "its name cannot be";
	return NULL;
}

static int load_inode(struct pkernfs_meta *meta, u32 ino)
{
	struct pkernfs_node *node = pkernfs_node(meta, ino);
	const struct pkernfs_inode *inode;
	bool valid[2], blank[2];
	const char *wrong;
	int i;

	for (i = 0; i < 2; i++) {
		inode = inode_slot(meta, ino, i);
		valid[i] = le32_to_cpu(inode->checksum) ==
				   not_zero(inode_checksum(meta->seed, inode)) &&
			   le32_to_cpu(inode->ino) == ino;
		blank[i] = !valid[i] && !memchr_inv(inode, 0, sizeof(*inode));
	}
	if (!valid[0] && !valid[1]) {
		/* with one of them blank: torn before it ever was a file */
		if ((blank[0] && blank[1]) ||
		    (meta->dirty && (blank[0] || blank[1]) && ino != PKERNFS_ROOT))
			return 0;
		return refuse(meta, "inode %u: checksum does not match", ino);
	}
	node->slot = !valid[0] ||
		     (valid[1] && le64_to_cpu(inode_slot(meta, ino, 1)->seq) >
					  le64_to_cpu(inode_slot(meta, ino, 0)->seq));
	inode = inode_slot(meta, ino, node->slot);
	wrong = check_record(meta, ino, inode);
	if (wrong)
		return refuse(meta, "inode %u: %s", ino, wrong);
	meta->seq = max(meta->seq, le64_to_cpu(inode->seq));
	node->used = inode->mode != 0;
	return 0;
}

/*
 * Every name must lead to the root. Children are listed by their directories,
 * and those that the root leads to are counted: what is in a circle is not
 * among them.
 */
static int check_tree(struct pkernfs_meta *meta)
{
	u32 count = meta->layout.inode_count;
	u32 *child, *sibling, *todo;
	u32 ino, parent, named = 0, reached = 0, pending = 0;
	int err = 0;

	child = kvcalloc(3 * (size_t)(count + 1), sizeof(*child), GFP_KERNEL);
	if (!child)
		return -ENOMEM;
	sibling = child + count + 1;
	todo = sibling + count + 1;
	for (ino = 1; ino <= count; ino++) {
		if (!pkernfs_node(meta, ino)->used || is_orphan(meta, ino))
			continue;
		named++;
		if (ino == PKERNFS_ROOT)
			continue;
		parent = le32_to_cpu(record_of(meta, ino)->parent);
		if (!pkernfs_node(meta, parent)->used ||
		    is_orphan(meta, parent) || !is_directory(meta, parent)) {
			err = refuse(meta, "inode %u: %u is no directory", ino,
				     parent);
			goto out;
		}
		sibling[ino] = child[parent];
		child[parent] = ino;
	}
	todo[pending++] = PKERNFS_ROOT;
	while (pending) {
		parent = todo[--pending];
		reached++;
		for (ino = child[parent]; ino; ino = sibling[ino])
			todo[pending++] = ino;
	}
	if (reached != named)
		err = refuse(meta, "%u inodes are in directories that do not lead to the root",
			     named - reached);
out:
	kvfree(child);
	return err;
}

static int compare_names(const void *a, const void *b, const void *priv)
{
	struct pkernfs_meta *meta = (void *)priv;
	const struct pkernfs_inode *x = record_of(meta, *(const u32 *)a);
	const struct pkernfs_inode *y = record_of(meta, *(const u32 *)b);
	int order;

	if (x->parent != y->parent)
		return le32_to_cpu(x->parent) < le32_to_cpu(y->parent) ? -1 : 1;
	order = memcmp(x->name, y->name, sizeof(x->name));
	if (order)
		return order;
	/* who has the name comes first */
	return le64_to_cpu(x->seq) > le64_to_cpu(y->seq) ? -1 : 1;
}

static bool has_children(struct pkernfs_meta *meta, u32 parent)
{
	u32 ino;

	for (ino = PKERNFS_ROOT + 1; ino <= meta->layout.inode_count; ino++)
		if (pkernfs_node(meta, ino)->used && !is_orphan(meta, ino) &&
		    le32_to_cpu(record_of(meta, ino)->parent) == parent)
			return true;
	return false;
}

static void make_orphan(struct pkernfs_meta *meta, u32 ino)
{
	struct pkernfs_inode record = *record_of(meta, ino);

	record.flags |= cpu_to_le32(PKERNFS_ORPHAN);
	pkernfs_write_record(meta, &record);
}

/* Two inodes of one name: a rename was cut short, the newer one has it. */
static int check_names(struct pkernfs_meta *meta)
{
	u32 count = meta->layout.inode_count;
	const struct pkernfs_inode *x, *y;
	u32 ino, i, named = 0;
	int err = 0;
	u32 *list;

	list = kvcalloc(count, sizeof(*list), GFP_KERNEL);
	if (!list)
		return -ENOMEM;
	for (ino = PKERNFS_ROOT + 1; ino <= count; ino++)
		if (pkernfs_node(meta, ino)->used && !is_orphan(meta, ino))
			list[named++] = ino;
	sort_r(list, named, sizeof(*list), compare_names, NULL, meta);
	for (i = 1; i < named && !err; i++) {
		x = record_of(meta, list[i - 1]);
		y = record_of(meta, list[i]);
		if (x->parent != y->parent ||
		    memcmp(x->name, y->name, sizeof(x->name)))
			continue;
		if (!meta->dirty || is_directory(meta, list[i]) !=
					    is_directory(meta, list[i - 1]) ||
		    has_children(meta, list[i]))
			err = refuse(meta, "inodes %u and %u have one name",
				     list[i - 1], list[i]);
		else
			make_orphan(meta, list[i]);
	}
	kvfree(list);
	return err;
}

static int load_block(struct pkernfs_meta *meta, u64 block)
{
	u64 word = le64_to_cpu(meta->table[block]);
	u64 content = word & WORD_CONTENT_MASK;
	u32 ino = content & WORD_INO_MASK;
	u64 index = content >> WORD_INDEX_SHIFT;
	struct pkernfs_node *node;
	int err;

	if (!word)
		return 0;
	if (word >> PKERNFS_WORD_CHECK_SHIFT !=
	    word_check(meta->seed, block, content))
		return refuse(meta, "block %llu: checksum does not match", block);
	if (ino < 1 || ino > meta->layout.inode_count ||
	    !pkernfs_node(meta, ino)->used || is_directory(meta, ino))
		return refuse(meta, "block %llu: %u is no file", block, ino);
	node = pkernfs_node(meta, ino);
	err = xa_insert(&node->blocks, index, xa_mk_value(block), GFP_KERNEL);
	if (err == -EBUSY)
		return refuse(meta, "block %llu: file %u has another at %llu",
			      block, ino, index);
	if (err)
		return err;
	node->count++;
	__set_bit(block, meta->taken);
	meta->free_blocks--;
	return 0;
}

static void recover(struct pkernfs_meta *meta)
{
	struct pkernfs_node *node;
	u64 size, end;
	u32 ino;

	for (ino = 1; ino <= meta->layout.inode_count; ino++) {
		node = pkernfs_node(meta, ino);
		if (!node->used)
			continue;
		if (is_orphan(meta, ino)) {
			pkernfs_reap(meta, ino);
			meta->reaped++;
		} else if (meta->recovered) {
			/* beyond the end is what a cut truncate left */
			size = le64_to_cpu(record_of(meta, ino)->size);
			end = DIV_ROUND_UP_ULL(size, PKERNFS_BLOCK_SIZE);
			pkernfs_drop_blocks(meta, ino, end, PKERNFS_MAX_INDEX - 1);
		}
	}
}

/**
 * pkernfs_meta_load() - check what is in a region and take it over
 * @meta: fresh from pkernfs_meta_alloc()
 *
 * What an outgoing kernel did not finish is finished or undone, and what has
 * no name any more is freed. Nothing in the region changes before all of it
 * has been checked.
 *
 * Return: 0; -EUCLEAN, then &pkernfs_meta.reason says why; -ENOMEM.
 */
int pkernfs_meta_load(struct pkernfs_meta *meta)
{
	u64 block;
	u32 ino, inodes;
	int err;

	guard(mutex)(&meta->lock);
	err = check_super(meta);
	if (!err)
		err = check_state(meta, &inodes);
	for (ino = 1; !err && ino <= inodes; ino++)
		err = load_inode(meta, ino);
	if (err)
		return err;
	if (!pkernfs_node(meta, PKERNFS_ROOT)->used)
		return refuse(meta, "there is no root");
	meta->recovered = meta->dirty;
	err = check_tree(meta);
	if (err)
		return err;
	meta->free_blocks = meta->layout.block_count;
	for (block = 0; block < meta->layout.block_count; block++) {
		err = load_block(meta, block);
		if (err)
			return err;
	}
	for (ino = 1; ino <= meta->layout.inode_count; ino++)
		meta->free_inodes += !pkernfs_node(meta, ino)->used;
	err = check_names(meta);
	if (err)
		return err;
	meta->mounts++;
	recover(meta);
	pkernfs_make_dirty(meta);
	return 0;
}
