// SPDX-License-Identifier: GPL-2.0-only
/*
 * The directory of saves and the pages of a save: writing them, and checking
 * those that another kernel has left.
 *
 * What is found is input that nobody vouches for. A save is checked as a
 * whole, once, before anything of it is used. Knows memory and nothing of the
 * VFS, so that KUnit can have all of it.
 */

#include <linux/crc32c.h>
#include <linux/memory_hotplug.h>
#include <linux/random.h>
#include <linux/sched.h>
#include <linux/stat.h>
#include <linux/string.h>

#include "internal.h"

/* Of a page of metadata, without the field that the result goes to. */
static u32 checksum(const void *page, size_t field)
{
	const __le32 none = 0;
	u32 crc = crc32c(~0, page, field);

	crc = crc32c(crc, &none, sizeof(none));
	field += sizeof(none);
	return ~crc32c(crc, page + field, PKRAM_PAGE_SIZE - field);
}

static u32 dir_checksum(const struct pkram_dir *dir)
{
	return checksum(dir, offsetof(struct pkram_dir, checksum));
}

static u32 page_checksum(const struct pkram_page *page)
{
	return checksum(page, offsetof(struct pkram_page, checksum));
}

static __printf(2, 3) int refuse(char *reason, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vscnprintf(reason, PKRAM_REASON_BYTES, format, args);
	va_end(args);
	return -EUCLEAN;
}

/* Whether a name ends within its field and has only zeroes behind its end. */
static bool is_padded(const u8 *name, size_t len, size_t field)
{
	return len < field && !memchr(name, '\0', len) &&
	       !memchr_inv(name + len, 0, field - len);
}

/* --- the directory */

void pkram_dir_format(struct pkram_dir *dir)
{
	memset(dir, 0, sizeof(*dir));
	dir->magic = cpu_to_le64(PKRAM_DIR_MAGIC);
	dir->version = cpu_to_le32(PKRAM_VERSION);
	pkram_dir_seal(dir);
}

void pkram_dir_seal(struct pkram_dir *dir)
{
	dir->checksum = cpu_to_le32(dir_checksum(dir));
}

/**
 * pkram_dir_check() - decide whether a directory can be believed
 * @dir: one page
 * @reason: set to what is wrong, for people
 *
 * Return: 0 or -EUCLEAN.
 */
int pkram_dir_check(const struct pkram_dir *dir, char *reason)
{
	const struct pkram_dir_entry *entry;
	u32 count = le32_to_cpu(dir->count), i, j;

	if (le64_to_cpu(dir->magic) != PKRAM_DIR_MAGIC)
		return refuse(reason, "magic of the directory does not match");
	if (le32_to_cpu(dir->version) != PKRAM_VERSION)
		return refuse(reason, "version is %u, this kernel reads %u",
			      le32_to_cpu(dir->version), PKRAM_VERSION);
	if (le32_to_cpu(dir->checksum) != dir_checksum(dir))
		return refuse(reason, "checksum of the directory does not match");
	if (count > PKRAM_SAVES_MAX)
		return refuse(reason, "%u saves are more than there can be", count);
	if (memchr_inv(dir->reserved, 0, sizeof(dir->reserved)) ||
	    memchr_inv(dir->reserved2, 0, sizeof(dir->reserved2)) ||
	    memchr_inv(&dir->saves[count], 0, (PKRAM_SAVES_MAX - count) * sizeof(*entry)))
		return refuse(reason, "the directory has fields of another version");
	for (i = 0; i < count; i++) {
		size_t len;

		entry = &dir->saves[i];
		len = strnlen(entry->name, sizeof(entry->name));
		if (!len || !is_padded(entry->name, len, sizeof(entry->name)))
			return refuse(reason, "save %u: its name cannot be", i);
		for (j = 0; j < i; j++)
			if (!memcmp(entry->name, dir->saves[j].name, sizeof(entry->name)))
				return refuse(reason, "saves %u and %u have one name", j, i);
	}
	return 0;
}

struct pkram_dir_entry *pkram_dir_find(struct pkram_dir *dir, const char *name)
{
	u32 i;

	for (i = 0; i < le32_to_cpu(dir->count); i++)
		if (!strcmp(dir->saves[i].name, name))
			return &dir->saves[i];
	return NULL;
}

/* Return: 0, -EEXIST, or -ENOSPC. */
int pkram_dir_add(struct pkram_dir *dir, const struct pkram_dir_entry *entry)
{
	u32 count = le32_to_cpu(dir->count);

	if (pkram_dir_find(dir, entry->name))
		return -EEXIST;
	if (count >= PKRAM_SAVES_MAX)
		return -ENOSPC;
	dir->saves[count] = *entry;
	dir->count = cpu_to_le32(count + 1);
	pkram_dir_seal(dir);
	return 0;
}

/* Take a save out of the directory; the last one moves to its place. */
void pkram_dir_remove(struct pkram_dir *dir, struct pkram_dir_entry *entry)
{
	u32 last = le32_to_cpu(dir->count) - 1;

	*entry = dir->saves[last];
	memset(&dir->saves[last], 0, sizeof(*entry));
	dir->count = cpu_to_le32(last);
	pkram_dir_seal(dir);
}

/* --- writing */

static size_t record_bytes(u32 type)
{
	return type == PKRAM_INODES ? sizeof(struct pkram_inode) : sizeof(struct pkram_folio);
}

static u32 records_max(u32 type)
{
	return type == PKRAM_INODES ? PKRAM_INODES_IN_PAGE : PKRAM_FOLIOS_IN_PAGE;
}

static struct pkram_page *new_page(struct pkram_writer *writer, u32 type)
{
	struct pkram_page *page;
	u32 pages = le32_to_cpu(writer->entry.pages);

	page = writer->alloc(sizeof(*page));
	if (IS_ERR(page))
		return page;
	if (!writer->first) {
		writer->entry.id = cpu_to_le64(get_random_u64());
		writer->entry.first = cpu_to_le64(virt_to_phys(page));
		writer->first = page;
	} else {
		writer->last->next = cpu_to_le64(virt_to_phys(page));
	}
	page->magic = cpu_to_le64(PKRAM_PAGE_MAGIC);
	page->number = cpu_to_le32(pages);
	page->id = writer->entry.id;
	page->type = cpu_to_le32(type);
	writer->last = page;
	writer->entry.pages = cpu_to_le32(pages + 1);
	return page;
}

/* Return where the next record goes, or an ERR_PTR(). */
static void *new_record(struct pkram_writer *writer, u32 type)
{
	struct pkram_page *page = writer->last;
	u32 count;

	if (!page || le32_to_cpu(page->type) != type ||
	    le32_to_cpu(page->count) == records_max(type)) {
		page = new_page(writer, type);
		if (IS_ERR(page))
			return page;
	}
	count = le32_to_cpu(page->count);
	page->count = cpu_to_le32(count + 1);
	return page->data + count * record_bytes(type);
}

/**
 * pkram_write_inode() - add an inode to a save
 * @writer: the root comes first, directories before what is in them
 * @record: everything but its number, which follows from the order
 *
 * Return: 0, -ENOSPC or -ENOMEM.
 */
int pkram_write_inode(struct pkram_writer *writer, const struct pkram_inode *record)
{
	u32 inodes = le32_to_cpu(writer->entry.inodes) + 1;
	struct pkram_inode *place;

	if (inodes > PKRAM_INODES_MAX)
		return -ENOSPC;
	place = new_record(writer, PKRAM_INODES);
	if (IS_ERR(place))
		return PTR_ERR(place);
	*place = *record;
	place->ino = cpu_to_le32(inodes);
	writer->entry.inodes = cpu_to_le32(inodes);
	return 0;
}

/**
 * pkram_write_folio() - add a folio to a save
 * @writer: has all inodes already
 * @ino: number of the file; not lower than that of the folio before
 * @index: of the first page, in pages; behind the folio before
 * @phys: physical address
 * @order: 0 or PKRAM_HUGE_ORDER
 *
 * Return: 0 or -ENOMEM.
 */
int pkram_write_folio(struct pkram_writer *writer, u32 ino, u64 index, phys_addr_t phys,
		      unsigned int order)
{
	struct pkram_folio *record = new_record(writer, PKRAM_FOLIOS);

	if (IS_ERR(record))
		return PTR_ERR(record);
	record->where = cpu_to_le64(phys | order);
	record->index = cpu_to_le32(index);
	record->ino = cpu_to_le32(ino);
	le64_add_cpu(&writer->entry.folios, 1);
	return 0;
}

/* All is there: nothing of the chain changes any more. */
void pkram_write_end(struct pkram_writer *writer)
{
	struct pkram_page *page;

	for (page = writer->first; page; page = pkram_page_next(page))
		page->checksum = cpu_to_le32(page_checksum(page));
}

/* Give the pages back. */
void pkram_write_undo(struct pkram_writer *writer)
{
	struct pkram_page *page = writer->first, *next;

	for (; page; page = next) {
		next = pkram_page_next(page);
		writer->free(page);
	}
	writer->first = NULL;
	writer->last = NULL;
}

/* --- checking */

/**
 * struct check - what has been seen of a save so far
 * @entry: what the directory says
 * @is_dir: a bit for each inode
 * @inodes: how many have been seen
 * @folios: how many have been seen
 * @ino: file of the last folio
 * @index: the first one that is behind it
 * @reason: why it is refused
 */
struct check {
	const struct pkram_dir_entry *entry;
	unsigned long *is_dir;
	u32 inodes;
	u64 folios;
	u32 ino;
	u64 index;
	char *reason;
};

/* Return where some memory of this kernel is, or NULL if it has none there. */
void *pkram_page_at(u64 phys)
{
	if (!phys || !IS_ALIGNED(phys, PAGE_SIZE) || phys != PFN_PHYS(PHYS_PFN(phys)) ||
	    !pfn_to_online_page(PHYS_PFN(phys)))
		return NULL;
	return phys_to_virt(phys);
}

static bool is_name(const struct pkram_inode *record)
{
	const u8 *name = record->name;
	size_t len = record->name_len;

	if (!is_padded(name, len, sizeof(record->name)) || memchr(name, '/', len))
		return false;
	if (le32_to_cpu(record->ino) == 1)
		return !len;
	return len && !(len == 1 && name[0] == '.') &&
	       !(len == 2 && name[0] == '.' && name[1] == '.');
}

static int check_inode(struct check *check, const struct pkram_inode *record)
{
	u32 ino = ++check->inodes, parent = le32_to_cpu(record->parent);
	u32 mode = le32_to_cpu(record->mode);
	u64 size = le64_to_cpu(record->size);

	if (ino > le32_to_cpu(check->entry->inodes) || le32_to_cpu(record->ino) != ino)
		return refuse(check->reason, "inode %u: it is not its turn", ino);
	if (!S_ISREG(mode) && !S_ISDIR(mode))
		return refuse(check->reason, "inode %u: neither file nor directory", ino);
	if (S_ISDIR(mode))
		__set_bit(ino, check->is_dir);
	if (ino == 1 ? parent != 1 : !parent || parent >= ino)
		return refuse(check->reason, "inode %u: its directory cannot be", ino);
	if (!test_bit(parent, check->is_dir))
		return refuse(check->reason, "inode %u: %u is no directory", ino, parent);
	if (S_ISDIR(mode) ? size : size > PKRAM_MAX_FILE)
		return refuse(check->reason, "inode %u: its size cannot be", ino);
	if (le32_to_cpu(record->mtime_ns) >= NSEC_PER_SEC)
		return refuse(check->reason, "inode %u: its time cannot be", ino);
	if (!is_name(record))
		return refuse(check->reason, "inode %u: its name cannot be", ino);
	if (memchr_inv(record->reserved, 0, sizeof(record->reserved)))
		return refuse(check->reason, "inode %u: fields of another version", ino);
	return 0;
}

static int check_folio(struct check *check, const struct pkram_folio *record)
{
	phys_addr_t phys = pkram_folio_phys(record);
	unsigned int order = pkram_folio_order(record);
	u32 ino = le32_to_cpu(record->ino);
	u64 index = le32_to_cpu(record->index);
	u64 number = check->folios++;

	if (number >= le64_to_cpu(check->entry->folios))
		return refuse(check->reason, "folio %llu: it is one too many", number);
	if (order && order != PKRAM_HUGE_ORDER)
		return refuse(check->reason, "folio %llu: order %u cannot be", number, order);
	if (!IS_ALIGNED(phys, PAGE_SIZE << order) || !pkram_page_at(phys) ||
	    !pkram_page_at(phys + (PAGE_SIZE << order) - PAGE_SIZE))
		return refuse(check->reason, "folio %llu: no memory at %pa", number, &phys);
	if (!ino || ino > check->inodes || test_bit(ino, check->is_dir))
		return refuse(check->reason, "folio %llu: %u is no file", number, ino);
	if (ino < check->ino || (ino == check->ino && index < check->index))
		return refuse(check->reason, "folio %llu: it is not its turn", number);
	if (!IS_ALIGNED(index, 1UL << order) || index >= PKRAM_MAX_INDEX - PKRAM_HUGE_PAGES)
		return refuse(check->reason, "folio %llu: index %llu cannot be", number, index);
	check->ino = ino;
	check->index = index + (1UL << order);
	return 0;
}

static int check_page(struct check *check, const struct pkram_page *page, u32 number, u32 *type)
{
	u32 found = le32_to_cpu(page->type), count = le32_to_cpu(page->count), i;
	int err = 0;

	if (le64_to_cpu(page->magic) != PKRAM_PAGE_MAGIC)
		return refuse(check->reason, "page %u: magic does not match", number);
	if (le32_to_cpu(page->checksum) != page_checksum(page))
		return refuse(check->reason, "page %u: checksum does not match", number);
	if (page->id != check->entry->id || le32_to_cpu(page->number) != number)
		return refuse(check->reason, "page %u: it belongs somewhere else", number);
	if ((found != PKRAM_INODES && found != PKRAM_FOLIOS) || found < *type)
		return refuse(check->reason, "page %u: type %u cannot be", number, found);
	if (!count || count > records_max(found) ||
	    memchr_inv(page->reserved, 0, sizeof(page->reserved)))
		return refuse(check->reason, "page %u: %u records cannot be", number, count);
	*type = found;
	for (i = 0; i < count && !err; i++)
		err = found == PKRAM_INODES ? check_inode(check, pkram_inode_at(page, i)) :
					      check_folio(check, pkram_folio_at(page, i));
	return err;
}

/**
 * pkram_records_check() - decide whether the pages of a save can be believed
 * @entry: the save, from a directory that can
 * @good: set to how many pages from the first on can, whatever the result
 * @reason: set to what is wrong, for people
 *
 * Only reads. Whether KHO has the folios turns out when they are restored.
 *
 * Return: 0, -EUCLEAN or -ENOMEM.
 */
int pkram_records_check(const struct pkram_dir_entry *entry, u32 *good, char *reason)
{
	u32 pages = le32_to_cpu(entry->pages), inodes = le32_to_cpu(entry->inodes);
	struct check check = { .entry = entry, .reason = reason };
	u64 next = le64_to_cpu(entry->first);
	const struct pkram_page *page;
	u32 type = PKRAM_INODES;
	int err = 0;

	*good = 0;
	if (!inodes || inodes > PKRAM_INODES_MAX)
		return refuse(reason, "%u inodes cannot be", inodes);
	check.is_dir = bitmap_zalloc(inodes + 1, GFP_KERNEL);
	if (!check.is_dir)
		return -ENOMEM;
	while (*good < pages) {
		page = pkram_page_at(next);
		if (!page)
			err = refuse(reason, "page %u: no memory at %#llx", *good, next);
		else
			err = check_page(&check, page, *good, &type);
		if (err)
			goto out;
		next = le64_to_cpu(page->next);
		++*good;
		cond_resched();
	}
	if (next)
		err = refuse(reason, "there are more pages than %u", pages);
	else if (check.inodes != inodes || check.folios != le64_to_cpu(entry->folios))
		err = refuse(reason, "%u inodes and %llu folios are not all", check.inodes,
			     check.folios);
out:
	bitmap_free(check.is_dir);
	return err;
}
