// SPDX-License-Identifier: GPL-2.0-only
/*
 * Root and records: writing them, and reading what another kernel has left.
 *
 * What is found is input that nobody vouches for. A node is read only when it
 * has the checksum that the node before has told, and is checked as a whole
 * before anything of it is used.
 */
#include <kunit/visibility.h>
#include <linux/crc32c.h>
#include <linux/errno.h>
#include <linux/io.h>
#include <linux/memory_hotplug.h>
#include <linux/mm.h>
#include <linux/string.h>

#include "internal.h"

static u32 crc_of(const void *node)
{
	return ~crc32c(~0, node, PRMEM_NODE_SIZE);
}

static u32 crc_of_root(const struct prmem_root *root)
{
	const size_t behind = offsetofend(struct prmem_root, crc);
	const __le32 none = 0;
	u32 crc;

	crc = crc32c(~0, root, offsetof(struct prmem_root, crc));
	crc = crc32c(crc, &none, sizeof(none));
	return ~crc32c(crc, (const void *)root + behind, sizeof(*root) - behind);
}

/* The node of a reference, or NULL when there cannot be one. */
static const void *node_at(const struct prmem_ref *ref)
{
	u64 phys = le64_to_cpu(ref->phys);

	if (!phys || !IS_ALIGNED(phys, PRMEM_NODE_SIZE) || ref->reserved ||
	    !pfn_to_online_page(PHYS_PFN(phys)))
		return NULL;
	return phys_to_virt(phys);
}

/* --- root */

void prmem_root_sign(struct prmem_root *root)
{
	root->sequence = cpu_to_le64(le64_to_cpu(root->sequence) + 1);
	root->crc = cpu_to_le32(crc_of_root(root));
}
EXPORT_SYMBOL_IF_KUNIT(prmem_root_sign);

void prmem_root_format(struct prmem_root *root)
{
	memset(root, 0, sizeof(*root));
	root->magic = cpu_to_le64(PRMEM_MAGIC);
	root->version = cpu_to_le32(PRMEM_VERSION);
	prmem_root_sign(root);
}
EXPORT_SYMBOL_IF_KUNIT(prmem_root_format);

/* Whether a name ends within its field and has only zeroes behind its end. */
static bool is_name(const char *name)
{
	size_t len = strnlen(name, PRMEM_NAME_LEN);

	return len && len < PRMEM_NAME_LEN && !memchr_inv(name + len, 0, PRMEM_NAME_LEN - len);
}

static const char *check_entries(const struct prmem_root *root, u32 nr)
{
	u32 i, j;

	for (i = 0; i < nr; i++) {
		if (!is_name(root->entries[i].name))
			return "an instance has no proper name";
		if (root->entries[i].reserved)
			return "an instance has fields of another version";
		for (j = 0; j < i; j++)
			if (!strcmp(root->entries[i].name, root->entries[j].name))
				return "two instances have one name";
	}
	return NULL;
}

static const char *check_root(const struct prmem_root *root)
{
	u32 nr = le32_to_cpu(root->nr_instances);
	const void *unused;

	if (le64_to_cpu(root->magic) != PRMEM_MAGIC)
		return "it does not begin like persistent memory";
	if (le32_to_cpu(root->version) != PRMEM_VERSION)
		return "it has another version";
	if (le32_to_cpu(root->crc) != crc_of_root(root))
		return "its checksum is wrong";
	if (nr > PRMEM_INSTANCES_MAX)
		return "it has more instances than there can be";
	unused = &root->entries[nr];
	if (memchr_inv(root->reserved, 0, sizeof(root->reserved)) ||
	    memchr_inv(unused, 0, (const void *)(root + 1) - unused))
		return "it has fields of another version";
	return check_entries(root, nr);
}

/**
 * prmem_root_check() - decide whether a root can be believed
 * @root:	what was handed over
 * @reason:	set to what is wrong, for people
 *
 * Return: 0 or -EUCLEAN.
 */
int prmem_root_check(const struct prmem_root *root, const char **reason)
{
	*reason = check_root(root);
	return *reason ? -EUCLEAN : 0;
}
EXPORT_SYMBOL_IF_KUNIT(prmem_root_check);

/* Number of the entry with that name, or -ENOENT. */
int prmem_root_find(const struct prmem_root *root, const char *name)
{
	u32 i;

	for (i = 0; i < le32_to_cpu(root->nr_instances); i++)
		if (!strcmp(root->entries[i].name, name))
			return i;
	return -ENOENT;
}
EXPORT_SYMBOL_IF_KUNIT(prmem_root_find);

/**
 * prmem_root_add() - enter an instance whose record is still to be told
 * @root:	root
 * @name:	NUL-terminated
 * @value:	of its owner's
 *
 * Return: number of the entry, which is the last one; -EINVAL for a name that
 * is none, -EEXIST, -ENFILE when the table is full.
 */
int prmem_root_add(struct prmem_root *root, const char *name, u64 value)
{
	u32 nr = le32_to_cpu(root->nr_instances);
	size_t len = strnlen(name, PRMEM_NAME_LEN);
	struct prmem_entry *entry = &root->entries[nr];

	if (!len || len == PRMEM_NAME_LEN)
		return -EINVAL;
	if (prmem_root_find(root, name) >= 0)
		return -EEXIST;
	if (nr >= PRMEM_INSTANCES_MAX)
		return -ENFILE;
	memset(entry, 0, sizeof(*entry));
	memcpy(entry->name, name, len);
	entry->value = cpu_to_le64(value);
	root->nr_instances = cpu_to_le32(nr + 1);
	return nr;
}
EXPORT_SYMBOL_IF_KUNIT(prmem_root_add);

/* Take an entry out of the table; the last one moves to its place. */
void prmem_root_remove(struct prmem_root *root, u32 at)
{
	u32 last = le32_to_cpu(root->nr_instances) - 1;

	if (at != last)
		root->entries[at] = root->entries[last];
	memset(&root->entries[last], 0, sizeof(root->entries[last]));
	root->nr_instances = cpu_to_le32(last);
}
EXPORT_SYMBOL_IF_KUNIT(prmem_root_remove);

/* --- records */

/* How many nodes so many extents take. */
u32 prmem_nodes_for(u32 nr_extents)
{
	return DIV_ROUND_UP(nr_extents, PRMEM_EXTENTS_PER_NODE);
}
EXPORT_SYMBOL_IF_KUNIT(prmem_nodes_for);

/**
 * prmem_head_write() - tell the next kernel about an instance
 * @head:	its record; there are addresses of enough nodes in it
 * @record:	what has to be in it
 * @ref:	set to what the root has to say of it
 */
void prmem_head_write(struct prmem_head *head, const struct prmem_record *record,
		      struct prmem_ref *ref)
{
	struct prmem_extent *extents = NULL;
	u32 i, at, in_node;

	for (i = 0; i < record->runs.nr; i++) {
		const struct prmem_run *run = &record->runs.run[i];

		at = i / PRMEM_EXTENTS_PER_NODE;
		in_node = i % PRMEM_EXTENTS_PER_NODE;
		if (!in_node) {
			extents = phys_to_virt(le64_to_cpu(head->nodes[at].phys));
			memset(extents, 0, PRMEM_NODE_SIZE);
		}
		extents[in_node].phys = cpu_to_le64(PFN_PHYS(run->pfn));
		extents[in_node].order = cpu_to_le32(run->order);
		extents[in_node].count = cpu_to_le32(run->count);
		if (in_node == PRMEM_EXTENTS_PER_NODE - 1 || i == record->runs.nr - 1)
			head->nodes[at].crc = cpu_to_le32(crc_of(extents));
	}
	head->magic = cpu_to_le64(PRMEM_HEAD_MAGIC);
	head->bytes = cpu_to_le64(record->bytes);
	head->pages = cpu_to_le64(record->runs.pages);
	head->nr_extents = cpu_to_le32(record->runs.nr);
	head->flags = cpu_to_le32(record->flags);
	head->content_crc = cpu_to_le32(record->content_crc);
	ref->phys = cpu_to_le64(virt_to_phys(head));
	ref->crc = cpu_to_le32(crc_of(head));
}
EXPORT_SYMBOL_IF_KUNIT(prmem_head_write);

static const char *check_extent(const struct prmem_extent *extent, u64 *pages)
{
	u64 phys = le64_to_cpu(extent->phys), bytes;
	u32 order = le32_to_cpu(extent->order), count = le32_to_cpu(extent->count);

	if (order > MAX_PAGE_ORDER || !count)
		return "its memory has pieces that cannot be";
	bytes = (u64)count << (PAGE_SHIFT + order);
	if (!phys || !IS_ALIGNED(phys, PAGE_SIZE << order) || phys + bytes < phys)
		return "its memory is where it cannot be";
	*pages += (u64)count << order;
	return NULL;
}

static const char *check_extents(const struct prmem_head *head, u64 *pages)
{
	const struct prmem_extent *extents = NULL;
	const char *reason;
	u32 i, at;

	*pages = 0;
	for (i = 0; i < le32_to_cpu(head->nr_extents); i++) {
		at = i / PRMEM_EXTENTS_PER_NODE;
		if (i % PRMEM_EXTENTS_PER_NODE == 0) {
			extents = node_at(&head->nodes[at]);
			if (!extents)
				return "its record leads nowhere";
			if (crc_of(extents) != le32_to_cpu(head->nodes[at].crc))
				return "the checksum of its list of memory is wrong";
		}
		reason = check_extent(&extents[i % PRMEM_EXTENTS_PER_NODE], pages);
		if (reason)
			return reason;
	}
	return NULL;
}

static const char *check_head(const struct prmem_ref *ref)
{
	const struct prmem_head *head;
	const char *reason;
	u64 pages, bytes;

	if (!ref->phys)
		return "an earlier kernel refused it already";
	head = node_at(ref);
	if (!head)
		return "its record is nowhere";
	if (crc_of(head) != le32_to_cpu(ref->crc))
		return "the checksum of its record is wrong";
	if (le64_to_cpu(head->magic) != PRMEM_HEAD_MAGIC)
		return "its record does not begin like one";
	if (le32_to_cpu(head->flags) & ~PRMEM_F_SEALED ||
	    memchr_inv(head->reserved, 0, sizeof(head->reserved)))
		return "its record has fields of another version";
	/* first, as the number of nodes is made of it */
	if (le32_to_cpu(head->nr_extents) > PRMEM_EXTENT_NODES_MAX * PRMEM_EXTENTS_PER_NODE)
		return "it has more pieces than there can be";
	reason = check_extents(head, &pages);
	if (reason)
		return reason;
	bytes = le64_to_cpu(head->bytes);
	if (pages != le64_to_cpu(head->pages) || !bytes || (bytes - 1) >> PAGE_SHIFT >= pages)
		return "its size does not fit its memory";
	return NULL;
}

/**
 * prmem_head_check() - decide whether a record can be believed
 * @ref:	what the root says of it
 * @reason:	set to what is wrong, for people
 *
 * Return: 0 or -EUCLEAN.
 */
int prmem_head_check(const struct prmem_ref *ref, const char **reason)
{
	*reason = check_head(ref);
	return *reason ? -EUCLEAN : 0;
}
EXPORT_SYMBOL_IF_KUNIT(prmem_head_check);

/**
 * prmem_heads_check() - decide whether all records can be believed
 * @root:	a root that was checked
 * @reason:	set to what is wrong with the first that cannot, for people
 *
 * Return: 0 or -EUCLEAN.
 */
int prmem_heads_check(const struct prmem_root *root, const char **reason)
{
	u32 i;

	*reason = NULL;
	for (i = 0; i < le32_to_cpu(root->nr_instances) && !*reason; i++)
		*reason = check_head(&root->entries[i].head);
	return *reason ? -EUCLEAN : 0;
}
EXPORT_SYMBOL_IF_KUNIT(prmem_heads_check);

/**
 * prmem_head_read() - take the memory that a record tells of
 * @head:	a record that was checked
 * @record:	filled; when this fails, with what was taken until then
 * @take:	called for each folio in turn, to make it this kernel's and to
 *		add it to the memory
 *
 * Return: 0, or what @take says.
 */
int prmem_head_read(const struct prmem_head *head, struct prmem_record *record,
		    int (*take)(struct prmem_runs *runs, u64 phys, u32 order))
{
	const struct prmem_extent *extent;
	u32 i, nr, order;
	int err;

	record->bytes = le64_to_cpu(head->bytes);
	record->flags = le32_to_cpu(head->flags);
	record->content_crc = le32_to_cpu(head->content_crc);
	for (i = 0; i < le32_to_cpu(head->nr_extents); i++) {
		extent = phys_to_virt(le64_to_cpu(head->nodes[i / PRMEM_EXTENTS_PER_NODE].phys));
		extent += i % PRMEM_EXTENTS_PER_NODE;
		order = le32_to_cpu(extent->order);
		for (nr = 0; nr < le32_to_cpu(extent->count); nr++) {
			err = take(&record->runs,
				   le64_to_cpu(extent->phys) + ((u64)nr << (PAGE_SHIFT + order)),
				   order);
			if (err)
				return err;
		}
	}
	return 0;
}
EXPORT_SYMBOL_IF_KUNIT(prmem_head_read);
