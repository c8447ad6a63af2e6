// SPDX-License-Identifier: GPL-2.0-only
/*
 * From a file system to a save, and back.
 *
 * A save is a snapshot of names and of where memory is, not of what is in it.
 * Whatever makes it untrue gives it up at once: a jump then carries nothing
 * over, and a part never passes for the whole.
 */

#define pr_fmt(fmt) "pkram: " fmt

#include <linux/dcache.h>
#include <linux/kexec_handover.h>
#include <linux/list_sort.h>
#include <linux/slab.h>

#include "internal.h"

/* --- out */

static int keep_folios(struct pkram_fs *fs, struct pkram_node *node)
{
	struct folio *folio;
	unsigned long index;
	int err;

	xa_for_each(&node->folios, index, folio) {
		if (xa_get_mark(&node->folios, index, PKRAM_KEPT))
			continue;
		err = kho_preserve_folio(folio);
		if (err)
			return err;
		xa_set_mark(&node->folios, index, PKRAM_KEPT);
		fs->kept++;
	}
	return 0;
}

/**
 * pkram_unkeep() - have KHO forget the folios of a file
 * @fs: &pkram_fs.lock is held, and nothing is saved
 * @node: the file
 */
void pkram_unkeep(struct pkram_fs *fs, struct pkram_node *node)
{
	struct folio *folio;
	unsigned long index;

	xa_for_each_marked(&node->folios, index, folio, PKRAM_KEPT) {
		kho_unpreserve_folio(folio);
		xa_clear_mark(&node->folios, index, PKRAM_KEPT);
		fs->kept--;
	}
}

/* Number the nodes, each after its directory: as many rounds as the tree is deep. */
static void number_nodes(struct pkram_fs *fs)
{
	struct pkram_node *node;
	u32 number = 0;
	bool again = true;

	list_for_each_entry(node, &fs->nodes, list)
		node->number = 0;
	while (again) {
		again = false;
		list_for_each_entry(node, &fs->nodes, list) {
			if (node->number || (node->parent && !node->parent->number))
				continue;
			node->number = ++number;
			again = true;
		}
	}
}

static void fill_record(struct pkram_node *node, struct pkram_inode *record)
{
	struct inode *inode = &node->vfs;
	struct timespec64 mtime = inode_get_mtime(inode);

	memset(record, 0, sizeof(*record));
	record->parent = cpu_to_le32(node->parent ? node->parent->number : 1);
	record->mode = cpu_to_le32(inode->i_mode);
	record->uid = cpu_to_le32(i_uid_read(inode));
	record->gid = cpu_to_le32(i_gid_read(inode));
	record->mtime_s = cpu_to_le64(mtime.tv_sec);
	record->mtime_ns = cpu_to_le32(mtime.tv_nsec);
	record->size = cpu_to_le64(S_ISREG(inode->i_mode) ? i_size_read(inode) : 0);
	record->name_len = node->name_len;
	memcpy(record->name, node->name, sizeof(record->name));
}

static int compare_numbers(void *priv, const struct list_head *a, const struct list_head *b)
{
	const struct pkram_node *x = list_entry(a, struct pkram_node, list);
	const struct pkram_node *y = list_entry(b, struct pkram_node, list);

	return x->number > y->number;
}

static int write_folios(struct pkram_writer *writer, struct pkram_node *node)
{
	struct folio *folio;
	unsigned long index;
	int err;

	xa_for_each(&node->folios, index, folio) {
		err = pkram_write_folio(writer, node->number, index, PFN_PHYS(folio_pfn(folio)),
					folio_order(folio));
		if (err)
			return err;
	}
	return 0;
}

static int write_save(struct pkram_fs *fs, struct pkram_writer *writer)
{
	struct pkram_inode record;
	struct pkram_node *node;
	int err;

	number_nodes(fs);
	list_sort(NULL, &fs->nodes, compare_numbers);
	list_for_each_entry(node, &fs->nodes, list) {
		fill_record(node, &record);
		err = pkram_write_inode(writer, &record);
		if (err)
			return err;
	}
	list_for_each_entry(node, &fs->nodes, list) {
		err = write_folios(writer, node);
		if (err)
			return err;
	}
	pkram_write_end(writer);
	strscpy(writer->entry.name, fs->name);
	return 0;
}

/* Free the pages of a save that goes out. */
static void free_outgoing_pages(const struct pkram_dir_entry *entry)
{
	struct pkram_page *page = phys_to_virt(le64_to_cpu(entry->first)), *next;

	for (; page; page = next) {
		next = pkram_page_next(page);
		kho_unpreserve_free(page);
	}
}

static void give_up(struct pkram_fs *fs)
{
	pkram_outgoing_remove(fs->name);
	free_outgoing_pages(&fs->save);
	fs->saved = false;
}

/**
 * pkram_change() - give up the save, which is about to become untrue
 * @fs: &pkram_fs.lock is held
 * @node: what changes; without a name it is in no save
 *
 * Return: 0, or -ESHUTDOWN when the next kernel is about to take the save. The
 * change must not be made then: to give the save up would take its folios from
 * code that counts on them, and the CPU that does it might be stopped half-way.
 */
int pkram_change(struct pkram_fs *fs, const struct pkram_node *node)
{
	if (!fs->saved || list_empty(&node->list))
		return 0;
	if (fs->leaving)
		return -ESHUTDOWN;
	give_up(fs);
	return 0;
}

static void forget(struct pkram_fs *fs)
{
	struct pkram_node *node;

	if (fs->saved)
		give_up(fs);
	list_for_each_entry(node, &fs->nodes, list)
		pkram_unkeep(fs, node);
}

/**
 * pkram_forget() - preserve nothing of a file system any more
 * @fs: it is mounted
 *
 * Return: 0, or -ESHUTDOWN when the next kernel is about to take it.
 */
int pkram_forget(struct pkram_fs *fs)
{
	guard(mutex)(&fs->lock);
	if (fs->leaving)
		return -ESHUTDOWN;
	forget(fs);
	return 0;
}

/**
 * pkram_leave() - a reboot has begun: a save stays as it is from here on
 * @fs: mounted or parked
 */
void pkram_leave(struct pkram_fs *fs)
{
	guard(mutex)(&fs->lock);
	fs->leaving = true;
}

/**
 * pkram_tidy() - forget what is in no save
 * @fs: is leaving
 *
 * What was preserved and is in no save would be lost memory to the next kernel.
 */
void pkram_tidy(struct pkram_fs *fs)
{
	guard(mutex)(&fs->lock);
	if (fs->saved || !fs->kept)
		return;
	pr_warn("'%s' was saved, but has changed since: nothing of it is carried over\n",
		fs->name);
	forget(fs);
}

/**
 * pkram_save() - have what is in a file system now carried over
 * @fs: it is mounted
 *
 * Return: 0, or an error; then nothing of it is preserved.
 */
int pkram_save(struct pkram_fs *fs)
{
	struct pkram_writer writer = {
		.alloc = kho_alloc_preserve,
		.free = kho_unpreserve_free,
	};
	struct pkram_node *node;
	int err = 0;

	guard(mutex)(&fs->lock);
	if (fs->saved)
		return 0;
	if (fs->leaving)
		return -ESHUTDOWN;
	if (!kho_is_enabled())
		return -EOPNOTSUPP;
	list_for_each_entry(node, &fs->nodes, list) {
		err = keep_folios(fs, node);
		if (err)
			goto err_forget;
	}
	err = write_save(fs, &writer);
	if (err)
		goto err_undo;
	err = pkram_outgoing_add(&writer.entry);
	if (err)
		goto err_undo;
	fs->save = writer.entry;
	fs->saved = true;
	return 0;

err_undo:
	pkram_write_undo(&writer);
err_forget:
	forget(fs);
	pr_err("'%s' cannot be saved (%pe)\n", fs->name, ERR_PTR(err));
	return err;
}

/* --- in */

/* Make names and inodes; nothing of the save is used up. */
static int load_inodes(struct super_block *sb, const struct pkram_page *page,
		       struct inode **inodes)
{
	const struct pkram_inode *record;
	struct dentry *dentry, *parent;
	u32 i, ino = 0;
	int err;

	for (; page && le32_to_cpu(page->type) == PKRAM_INODES; page = pkram_page_next(page)) {
		for (i = 0; i < le32_to_cpu(page->count); i++) {
			record = pkram_inode_at(page, i);
			if (!ino++) {
				inodes[ino] = d_inode(sb->s_root);
				pkram_take_attributes(inodes[ino], record);
				continue;
			}
			parent = d_find_any_alias(inodes[le32_to_cpu(record->parent)]);
			err = pkram_add(sb, record, parent, &dentry);
			dput(parent);
			if (err)
				return err;
			/* the name keeps it */
			inodes[ino] = d_inode(dentry);
			dput(dentry);
		}
	}
	return 0;
}

typedef int (*folio_call_t)(struct pkram_fs *fs, struct pkram_node *node,
			   const struct pkram_folio *record);

static int walk_folios(struct pkram_fs *fs, const struct pkram_page *page,
		       struct inode **inodes, folio_call_t call)
{
	const struct pkram_folio *record;
	u32 i;
	int err;

	for (; page; page = pkram_page_next(page)) {
		if (le32_to_cpu(page->type) != PKRAM_FOLIOS)
			continue;
		for (i = 0; i < le32_to_cpu(page->count); i++) {
			record = pkram_folio_at(page, i);
			err = call(fs, pkram_node(inodes[le32_to_cpu(record->ino)]), record);
			if (err)
				return err;
		}
		cond_resched();
	}
	return 0;
}

static struct folio *folio_of(const struct pkram_folio *record)
{
	return pfn_folio(PHYS_PFN(pkram_folio_phys(record)));
}

/* Note down where it will be; nobody has it yet. */
static int place_folio(struct pkram_fs *fs, struct pkram_node *node,
		       const struct pkram_folio *record)
{
	int err = xa_err(xa_store(&node->folios, le32_to_cpu(record->index), folio_of(record),
				  GFP_KERNEL));

	if (!err) {
		node->pages += 1UL << pkram_folio_order(record);
		fs->pages += 1UL << pkram_folio_order(record);
	}
	return err;
}

static struct folio *restore(const struct pkram_folio *record)
{
	struct folio *folio = kho_restore_folio(pkram_folio_phys(record));

	if (folio && folio_order(folio) > 1)
		folio_set_large_rmappable(folio);
	return folio;
}

static int restore_folio(struct pkram_fs *fs, struct pkram_node *node,
			 const struct pkram_folio *record)
{
	struct folio *folio = restore(record);

	return folio && folio_order(folio) == pkram_folio_order(record) ? 0 : -EUCLEAN;
}

/* It was never away: a file system that was parked is mounted again. */
static int readopt_folio(struct pkram_fs *fs, struct pkram_node *node,
			 const struct pkram_folio *record)
{
	xa_set_mark(&node->folios, le32_to_cpu(record->index), PKRAM_KEPT);
	fs->kept++;
	return 0;
}

static void free_incoming_pages(struct pkram_page *page, u32 count)
{
	struct pkram_page *next;

	for (; count; count--, page = next) {
		next = pkram_page_next(page);
		kho_restore_free(page);
	}
}

static int load_pages(struct super_block *sb, const struct pkram_dir_entry *entry, bool incoming,
		      char *reason)
{
	struct pkram_page *first = phys_to_virt(le64_to_cpu(entry->first));
	struct pkram_fs *fs = sb->s_fs_info;
	struct inode **inodes;
	int err;

	inodes = kvcalloc(le32_to_cpu(entry->inodes) + 1, sizeof(*inodes), GFP_KERNEL);
	if (!inodes)
		return -ENOMEM;
	err = load_inodes(sb, first, inodes);
	if (!err)
		err = walk_folios(fs, first, inodes, place_folio);
	if (err) {
		if (err == -EEXIST)
			strscpy(reason, "two inodes have one name", PKRAM_REASON_BYTES);
		goto out;
	}
	/* from here on nothing can fail for want of memory */
	err = walk_folios(fs, first, inodes, incoming ? restore_folio : readopt_folio);
	if (err) {
		strscpy(reason, "KHO has not all of its folios", PKRAM_REASON_BYTES);
		goto out;
	}
	fs->keep_folios = false;
	if (incoming)
		free_incoming_pages(first, le32_to_cpu(entry->pages));
out:
	kvfree(inodes);
	return err;
}

/**
 * pkram_load() - fill a file system with what is in a save
 * @sb: has a root and nothing else
 * @entry: the save
 * @incoming: the previous kernel left it; else it was parked by this one
 *
 * If it fails, the folios of the file system are not its own: what has been
 * restored is leaked rather than given to somebody else.
 *
 * Return: 0, -EUCLEAN or -ENOMEM.
 */
int pkram_load(struct super_block *sb, const struct pkram_dir_entry *entry, bool incoming)
{
	struct pkram_fs *fs = sb->s_fs_info;
	char reason[PKRAM_REASON_BYTES] = "";
	u32 good;
	int err;

	guard(mutex)(&fs->lock);
	fs->keep_folios = true;
	err = pkram_records_check(entry, &good, reason);
	if (!err)
		err = load_pages(sb, entry, incoming, reason);
	if (err == -EEXIST)
		err = -EUCLEAN;
	if (err) {
		if (!reason[0])
			snprintf(reason, sizeof(reason), "%pe", ERR_PTR(err));
		if (incoming)
			pkram_incoming_refuse(fs->name, reason);
		return err;
	}
	if (incoming)
		pkram_incoming_take(fs->name);
	pr_info("'%s' is back: %u inodes, %llu folios, %llu pages\n", fs->name,
		le32_to_cpu(entry->inodes), le64_to_cpu(entry->folios), fs->pages);
	return 0;
}

/**
 * pkram_release() - free a save that came in, or what can be believed of it
 * @entry: nobody finds it any more
 */
void pkram_release(const struct pkram_dir_entry *entry)
{
	char reason[PKRAM_REASON_BYTES] = "";
	struct pkram_page *page;
	struct folio *folio;
	u64 folios = 0;
	u32 good, number, i;

	pkram_records_check(entry, &good, reason);
	page = phys_to_virt(le64_to_cpu(entry->first));
	for (number = 0; number < good; number++, page = pkram_page_next(page)) {
		if (le32_to_cpu(page->type) != PKRAM_FOLIOS)
			continue;
		for (i = 0; i < le32_to_cpu(page->count); i++) {
			folio = restore(pkram_folio_at(page, i));
			if (folio) {
				folio_put(folio);
				folios++;
			}
		}
	}
	page = phys_to_virt(le64_to_cpu(entry->first));
	free_incoming_pages(page, good);
	pr_info("'%s' is released: %llu of %llu folios%s%s\n", entry->name, folios,
		le64_to_cpu(entry->folios), reason[0] ? "; the others stay reserved: " : "",
		reason);
}
