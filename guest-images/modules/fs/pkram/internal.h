/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef _PKRAM_INTERNAL_H
#define _PKRAM_INTERNAL_H

#include <linux/fs.h>
#include <linux/io.h>
#include <linux/kho/abi/pkram.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/types.h>
#include <linux/xarray.h>

static_assert(PAGE_SIZE == PKRAM_PAGE_SIZE);

#define PKRAM_REASON_BYTES	128

/* --- record.c: the pages of a save; knows memory and nothing of the VFS */

/**
 * struct pkram_writer - a save that is being written
 * @alloc: gives a zeroed page that is preserved, or an ERR_PTR()
 * @free: takes it back
 * @first: page of the chain
 * @last: page of the chain, which is being filled
 * @entry: what the directory has to say of it; its name is the caller's
 */
struct pkram_writer {
	void *(*alloc)(size_t bytes);
	void (*free)(void *page);
	struct pkram_page *first;
	struct pkram_page *last;
	struct pkram_dir_entry entry;
};

int pkram_write_inode(struct pkram_writer *writer, const struct pkram_inode *record);
int pkram_write_folio(struct pkram_writer *writer, u32 ino, u64 index, phys_addr_t phys,
		      unsigned int order);
void pkram_write_end(struct pkram_writer *writer);
void pkram_write_undo(struct pkram_writer *writer);

void pkram_dir_format(struct pkram_dir *dir);
void pkram_dir_seal(struct pkram_dir *dir);
int pkram_dir_check(const struct pkram_dir *dir, char *reason);
struct pkram_dir_entry *pkram_dir_find(struct pkram_dir *dir, const char *name);
int pkram_dir_add(struct pkram_dir *dir, const struct pkram_dir_entry *entry);
void pkram_dir_remove(struct pkram_dir *dir, struct pkram_dir_entry *entry);

int pkram_records_check(const struct pkram_dir_entry *entry, u32 *good, char *reason);
void *pkram_page_at(u64 phys);

static inline const struct pkram_inode *pkram_inode_at(const struct pkram_page *page, u32 at)
{
	return (const struct pkram_inode *)page->data + at;
}

static inline const struct pkram_folio *pkram_folio_at(const struct pkram_page *page, u32 at)
{
	return (const struct pkram_folio *)page->data + at;
}

static inline phys_addr_t pkram_folio_phys(const struct pkram_folio *record)
{
	return le64_to_cpu(record->where) & ~PKRAM_ORDER_MASK;
}

static inline unsigned int pkram_folio_order(const struct pkram_folio *record)
{
	return le64_to_cpu(record->where) & PKRAM_ORDER_MASK;
}

/* The page behind this one; the chain has been checked. */
static inline struct pkram_page *pkram_page_next(const struct pkram_page *page)
{
	return page->next ? phys_to_virt(le64_to_cpu(page->next)) : NULL;
}

/* --- the file system */

/* of a folio in &pkram_node.folios: it is preserved through KHO */
#define PKRAM_KEPT	XA_MARK_0

/**
 * struct pkram_node - a file or a directory
 * @list: in &pkram_fs.nodes; empty when it has no name any more; &pkram_fs.lock
 * @parent: its directory, NULL for the root; &pkram_fs.lock
 * @folios: a file's memory, each folio at the index of its first page; changes
 *          under &pkram_fs.lock
 * @number: in the save that is being made; &pkram_fs.lock
 * @pages: in @folios; &pkram_fs.lock
 * @name_len: of @name; &pkram_fs.lock
 * @name: padded with NUL; &pkram_fs.lock
 * @vfs: what the VFS sees
 */
struct pkram_node {
	struct list_head list;
	struct pkram_node *parent;
	struct xarray folios;
	u32 number;
	u64 pages;
	u8 name_len;
	char name[PKRAM_FILE_NAME_MAX + 1];
	struct inode vfs;
};

/**
 * struct pkram_fs - a file system, mounted or parked
 * @list: in pkram_list; pkram_list_lock
 * @name: of its save; never changes
 * @lock: protects what follows, and all that a save says
 * @nodes: all with a name, the root first
 * @limit: pages it may have
 * @pages: it has
 * @kept: folios that are preserved through KHO
 * @save: what the directory has of its save, if it is saved
 * @saved: what is in it now is what the next kernel gets
 * @leaving: a reboot has begun: a save stays as it is
 * @parked: saved, and not mounted: only the save is left; pkram_list_lock
 * @keep_folios: it goes, but its folios belong to somebody else
 */
struct pkram_fs {
	struct list_head list;
	char name[PKRAM_NAME_LEN];
	struct mutex lock; /* what follows */
	struct list_head nodes;
	u64 limit;
	u64 pages;
	u64 kept;
	struct pkram_dir_entry save;
	bool saved;
	bool leaving;
	bool parked;
	bool keep_folios;
};

extern struct list_head pkram_list;
extern struct mutex pkram_list_lock;

static inline struct pkram_node *pkram_node(struct inode *inode)
{
	return container_of(inode, struct pkram_node, vfs);
}

static inline struct pkram_fs *pkram_fs(const struct inode *inode)
{
	return inode->i_sb->s_fs_info;
}

/* directory.c: the saves that came in, those that go out, and what sysfs says */
int pkram_directory_init(void);
void pkram_directory_exit(void);
int pkram_outgoing_add(const struct pkram_dir_entry *entry);
void pkram_outgoing_remove(const char *name);
int pkram_incoming_find(const char *name, struct pkram_dir_entry *entry);
void pkram_incoming_refuse(const char *name, const char *reason);
void pkram_incoming_take(const char *name);

/* save.c */
int pkram_save(struct pkram_fs *fs);
int pkram_forget(struct pkram_fs *fs);
void pkram_leave(struct pkram_fs *fs);
void pkram_tidy(struct pkram_fs *fs);
int pkram_change(struct pkram_fs *fs, const struct pkram_node *node);
void pkram_unkeep(struct pkram_fs *fs, struct pkram_node *node);
int pkram_load(struct super_block *sb, const struct pkram_dir_entry *entry, bool incoming);
void pkram_release(const struct pkram_dir_entry *entry);

/* inode.c */
struct inode *pkram_new_root(struct super_block *sb);
int pkram_add(struct super_block *sb, const struct pkram_inode *record,
	      struct dentry *parent, struct dentry **result);
void pkram_take_attributes(struct inode *inode, const struct pkram_inode *record);

/* file.c */
extern const struct file_operations pkram_file_operations;
int pkram_set_size(struct inode *inode, loff_t size);
void pkram_drop_folios(struct pkram_fs *fs, struct pkram_node *node, pgoff_t first, pgoff_t last);

#endif /* _PKRAM_INTERNAL_H */
