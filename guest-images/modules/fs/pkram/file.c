// SPDX-License-Identifier: GPL-2.0-only
/*
 * Content: folios of the page allocator, 2 MiB where a file has that much in
 * one piece and they can be had, else a page. There is no page cache: folios
 * are on no list of reclaim or migration, so they stay where they are, and
 * they are not movable, so they never lie in KHO's scratch.
 *
 * What protects what: the inode lock the size against read, write and
 * fallocate; the mapping's invalidate lock folios against faults that would
 * map them while they are taken away; &pkram_fs.lock the making of a save
 * against all of it.
 */

#include <linux/fs.h>
#include <linux/falloc.h>
#include <linux/kexec_handover.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/sched/signal.h>
#include <linux/splice.h>
#include <linux/uio.h>

#include "internal.h"

#define LAST_INDEX	((pgoff_t)PKRAM_MAX_INDEX - 1)

/* Return what a file has at an index, NULL: nothing. */
static struct folio *find_folio(struct pkram_node *node, pgoff_t index)
{
	struct folio *folio = xa_load(&node->folios, ALIGN_DOWN(index, PKRAM_HUGE_PAGES));

	if (folio && folio_test_large(folio))
		return folio;
	return xa_load(&node->folios, index);
}

static pgoff_t first_index(const struct folio *folio, pgoff_t index)
{
	return ALIGN_DOWN(index, folio_nr_pages(folio));
}

/* Where the memory at a position is, and how much of it is in this folio. */
static void *address_of(struct folio *folio, loff_t pos, size_t *bytes)
{
	size_t offset = pos & (folio_size(folio) - 1);

	*bytes = min(*bytes, folio_size(folio) - offset);
	return folio_address(folio) + offset;
}

static struct folio *new_folio(unsigned int order)
{
	gfp_t gfp = GFP_USER | __GFP_ZERO | __GFP_NOWARN;

	/* rather no huge folio than a long wait; rather no memory than killing somebody for it */
	gfp |= order ? __GFP_NORETRY : __GFP_RETRY_MAYFAIL;
	return folio_alloc(gfp, order);
}

static bool is_free(struct pkram_node *node, pgoff_t first, pgoff_t last)
{
	unsigned long index = first;

	return !xa_find(&node->folios, &index, last, XA_PRESENT);
}

/*
 * Give a file a folio. Return what it has there: this one, or one that somebody
 * was faster with; NULL: a part of the place is taken. Or an ERR_PTR().
 */
static struct folio *add_folio(struct inode *inode, pgoff_t index, struct folio *folio)
{
	struct pkram_node *node = pkram_node(inode);
	struct pkram_fs *fs = pkram_fs(inode);
	unsigned long pages = folio_nr_pages(folio);
	struct folio *found;
	int err;

	guard(mutex)(&fs->lock);
	found = find_folio(node, index);
	if (found || !is_free(node, index, index + pages - 1)) {
		folio_put(folio);
		return found;
	}
	err = fs->pages + pages > fs->limit ? -ENOSPC : pkram_change(fs, node);
	if (!err)
		err = xa_err(xa_store(&node->folios, index, folio, GFP_KERNEL));
	if (err) {
		folio_put(folio);
		return ERR_PTR(err);
	}
	node->pages += pages;
	fs->pages += pages;
	return folio;
}

/*
 * Return what a file has at an index, and make it if there is nothing. @end: of
 * what the file has or is about to get, in bytes. Or an ERR_PTR().
 */
static struct folio *need_folio(struct inode *inode, pgoff_t index, loff_t end)
{
	pgoff_t first = ALIGN_DOWN(index, PKRAM_HUGE_PAGES), last = first + PKRAM_HUGE_PAGES - 1;
	struct pkram_node *node = pkram_node(inode);
	struct pkram_fs *fs = pkram_fs(inode);
	struct folio *folio = find_folio(node, index);
	u64 limit = READ_ONCE(fs->limit);

	if (folio)
		return folio;
	if (last < end >> PAGE_SHIFT && READ_ONCE(fs->pages) + PKRAM_HUGE_PAGES <= limit &&
	    is_free(node, first, last)) {
		folio = new_folio(PKRAM_HUGE_ORDER);
		if (folio)
			folio = add_folio(inode, first, folio);
		if (!IS_ERR_OR_NULL(folio) && folio_test_large(folio))
			return folio;
		/* no memory, or somebody was faster with a page of it */
	}
	if (READ_ONCE(fs->pages) >= limit)
		return ERR_PTR(-ENOSPC);
	folio = new_folio(0);
	return folio ? add_folio(inode, index, folio) : ERR_PTR(-ENOMEM);
}

/* Take folios that are all between two indices away from a file, which is in no save. */
void pkram_drop_folios(struct pkram_fs *fs, struct pkram_node *node, pgoff_t first, pgoff_t last)
{
	struct folio *folio;
	unsigned long index, pages;

	xa_for_each_range(&node->folios, index, folio, first, last) {
		pages = folio_nr_pages(folio);
		if (index + pages - 1 > last)
			continue;
		if (xa_get_mark(&node->folios, index, PKRAM_KEPT)) {
			kho_unpreserve_folio(folio);
			fs->kept--;
		}
		xa_erase(&node->folios, index);
		node->pages -= pages;
		fs->pages -= pages;
		/* who has it mapped or pinned has a reference of his own */
		folio_put(folio);
	}
}

/* Zero what the folio at @from has of the bytes to @to. */
static void zero_in_folio(struct inode *inode, loff_t from, loff_t to)
{
	struct folio *folio = find_folio(pkram_node(inode), from >> PAGE_SHIFT);
	size_t bytes = to - from;
	void *address;

	if (!folio || to <= from)
		return;
	address = address_of(folio, from, &bytes);
	memset(address, 0, bytes);
}

static int set_size(struct inode *inode, loff_t size)
{
	struct pkram_fs *fs = pkram_fs(inode);
	int err;

	guard(mutex)(&fs->lock);
	err = pkram_change(fs, pkram_node(inode));
	if (!err)
		i_size_write(inode, size);
	return err;
}

/*
 * A file gets longer. Behind its end there may be anything in the page that
 * has the end: of a mapping.
 */
static int grow(struct inode *inode, loff_t size)
{
	loff_t old = i_size_read(inode);

	zero_in_folio(inode, old, min(size, round_up(old, (loff_t)PAGE_SIZE)));
	return set_size(inode, size);
}

static int drop_between(struct inode *inode, pgoff_t first, pgoff_t last)
{
	struct pkram_node *node = pkram_node(inode);
	struct pkram_fs *fs = pkram_fs(inode);
	int err = 0;

	guard(mutex)(&fs->lock);
	if (!is_free(node, first, last))
		err = pkram_change(fs, node);
	if (!err)
		pkram_drop_folios(fs, node, first, last);
	return err;
}

static int shrink(struct inode *inode, loff_t size)
{
	loff_t page = round_up(size, (loff_t)PAGE_SIZE);
	int err;

	filemap_invalidate_lock(inode->i_mapping);
	unmap_mapping_range(inode->i_mapping, page, 0, 1);
	err = set_size(inode, size);
	if (!err)
		err = drop_between(inode, page >> PAGE_SHIFT, LAST_INDEX);
	/* all that is left behind the end is in one folio */
	if (!err)
		zero_in_folio(inode, size,
			      round_up(size, (loff_t)PKRAM_HUGE_PAGES << PAGE_SHIFT));
	filemap_invalidate_unlock(inode->i_mapping);
	return err;
}

/**
 * pkram_set_size() - truncate a file, or make it longer
 * @inode: of a regular file, locked
 * @size: in bytes
 *
 * Return: 0, or -ESHUTDOWN when the next kernel is about to take the file.
 */
int pkram_set_size(struct inode *inode, loff_t size)
{
	loff_t old = i_size_read(inode);

	if (size < old)
		return shrink(inode, size);
	return size > old ? grow(inode, size) : 0;
}

static ssize_t pkram_read_iter(struct kiocb *iocb, struct iov_iter *to)
{
	struct inode *inode = file_inode(iocb->ki_filp);
	size_t done = 0, bytes, copied;
	struct folio *folio;
	void *address;
	loff_t size;

	inode_lock_shared(inode);
	size = i_size_read(inode);
	while (iov_iter_count(to) && iocb->ki_pos < size) {
		bytes = min_t(u64, iov_iter_count(to), size - iocb->ki_pos);
		folio = find_folio(pkram_node(inode), iocb->ki_pos >> PAGE_SHIFT);
		if (folio) {
			address = address_of(folio, iocb->ki_pos, &bytes);
			copied = copy_to_iter(address, bytes, to);
		} else {
			bytes = min(bytes, PAGE_SIZE - offset_in_page(iocb->ki_pos));
			copied = iov_iter_zero(bytes, to);
		}
		done += copied;
		iocb->ki_pos += copied;
		if (copied < bytes) {
			inode_unlock_shared(inode);
			return done ?: -EFAULT;
		}
		cond_resched();
	}
	inode_unlock_shared(inode);
	return done;
}

static ssize_t write_folios(struct inode *inode, struct kiocb *iocb, struct iov_iter *from)
{
	loff_t end = max(i_size_read(inode), iocb->ki_pos + (loff_t)iov_iter_count(from));
	size_t done = 0, bytes, copied;
	struct folio *folio;
	void *address;

	while (iov_iter_count(from)) {
		bytes = iov_iter_count(from);
		folio = need_folio(inode, iocb->ki_pos >> PAGE_SHIFT, end);
		if (IS_ERR(folio))
			return done ?: PTR_ERR(folio);
		address = address_of(folio, iocb->ki_pos, &bytes);
		copied = copy_from_iter(address, bytes, from);
		done += copied;
		iocb->ki_pos += copied;
		if (copied < bytes)
			return done ?: -EFAULT;
		cond_resched();
	}
	return done;
}

static ssize_t pkram_write_iter(struct kiocb *iocb, struct iov_iter *from)
{
	struct inode *inode = file_inode(iocb->ki_filp);
	ssize_t done;
	int err;

	inode_lock(inode);
	done = generic_write_checks(iocb, from);
	if (done <= 0)
		goto out;
	done = file_remove_privs(iocb->ki_filp);
	if (!done)
		done = file_update_time(iocb->ki_filp);
	if (done)
		goto out;
	if (iocb->ki_pos > i_size_read(inode))
		done = grow(inode, iocb->ki_pos);
	if (!done)
		done = write_folios(inode, iocb, from);
	if (done > 0 && iocb->ki_pos > i_size_read(inode)) {
		err = set_size(inode, iocb->ki_pos);
		if (err)
			done = err;
	}
out:
	inode_unlock(inode);
	return done;
}

static int allocate(struct inode *inode, loff_t offset, loff_t end, bool keep)
{
	pgoff_t index = offset >> PAGE_SHIFT, behind = DIV_ROUND_UP_ULL(end, PAGE_SIZE);
	loff_t size = max(i_size_read(inode), end);
	struct folio *folio;
	int err;

	err = inode_newsize_ok(inode, size);
	if (err)
		return err;
	if (behind - index > READ_ONCE(pkram_fs(inode)->limit))
		return -ENOSPC;
	while (index < behind) {
		if (fatal_signal_pending(current))
			return -EINTR;
		folio = need_folio(inode, index, size);
		if (IS_ERR(folio))
			return PTR_ERR(folio);
		index = first_index(folio, index) + folio_nr_pages(folio);
		cond_resched();
	}
	return keep || end <= i_size_read(inode) ? 0 : grow(inode, end);
}

static int punch(struct inode *inode, loff_t offset, loff_t end)
{
	loff_t from = round_up(offset, (loff_t)PAGE_SIZE), to = round_down(end, (loff_t)PAGE_SIZE);
	loff_t huge = (loff_t)PKRAM_HUGE_PAGES << PAGE_SHIFT, next;
	int err = 0;

	filemap_invalidate_lock(inode->i_mapping);
	if (to > from) {
		unmap_mapping_range(inode->i_mapping, from, to - from, 1);
		err = drop_between(inode, from >> PAGE_SHIFT, (to >> PAGE_SHIFT) - 1);
	}
	if (err)
		goto out;
	/* what is left of it is in huge folios that reach over an edge, and in part pages */
	next = min(end, round_up(offset + 1, huge));
	zero_in_folio(inode, offset, min(next, from));
	zero_in_folio(inode, from, next);
	if (end > next) {
		zero_in_folio(inode, max(next, round_down(end, huge)), end);
		zero_in_folio(inode, max(next, to), end);
	}
out:
	filemap_invalidate_unlock(inode->i_mapping);
	return err;
}

static long pkram_fallocate(struct file *file, int mode, loff_t offset, loff_t bytes)
{
	struct inode *inode = file_inode(file);
	int err;

	if (mode & ~(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE))
		return -EOPNOTSUPP;
	inode_lock(inode);
	err = file_modified(file);
	if (!err)
		err = mode & FALLOC_FL_PUNCH_HOLE ?
			      punch(inode, offset, offset + bytes) :
			      allocate(inode, offset, offset + bytes, mode & FALLOC_FL_KEEP_SIZE);
	inode_unlock(inode);
	return err;
}

static vm_fault_t fault_of(int err)
{
	return err == -ENOMEM ? VM_FAULT_OOM : VM_FAULT_SIGBUS;
}

static vm_fault_t map_page(struct vm_fault *vmf, struct inode *inode)
{
	struct folio *folio;
	struct page *page;

	if (vmf->pgoff >= DIV_ROUND_UP_ULL(i_size_read(inode), PAGE_SIZE))
		return VM_FAULT_SIGBUS;
	folio = need_folio(inode, vmf->pgoff, i_size_read(inode));
	if (IS_ERR(folio))
		return fault_of(PTR_ERR(folio));
	page = folio_page(folio, vmf->pgoff & (folio_nr_pages(folio) - 1));
	return vmf_insert_page_mkwrite(vmf, page, vmf->flags & FAULT_FLAG_WRITE);
}

static vm_fault_t map_huge(struct vm_fault *vmf, struct inode *inode)
{
	struct vm_area_struct *vma = vmf->vma;
	unsigned long start = vmf->address & PMD_MASK;
	struct folio *folio;
	pgoff_t index;

	if (start < vma->vm_start || start + PMD_SIZE > vma->vm_end)
		return VM_FAULT_FALLBACK;
	index = linear_page_index(vma, start);
	/* pages behind the end must not come with it */
	if (index % PKRAM_HUGE_PAGES ||
	    index + PKRAM_HUGE_PAGES > i_size_read(inode) >> PAGE_SHIFT)
		return VM_FAULT_FALLBACK;
	folio = need_folio(inode, index, i_size_read(inode));
	if (IS_ERR(folio))
		return fault_of(PTR_ERR(folio));
	if (!folio_test_large(folio))
		return VM_FAULT_FALLBACK;
	return vmf_insert_folio_pmd(vmf, folio, vmf->flags & FAULT_FLAG_WRITE);
}

static vm_fault_t pkram_huge_fault(struct vm_fault *vmf, unsigned int order)
{
	struct inode *inode = file_inode(vmf->vma->vm_file);
	vm_fault_t result = VM_FAULT_FALLBACK;

	filemap_invalidate_lock_shared(inode->i_mapping);
	if (order == 0)
		result = map_page(vmf, inode);
	else if (order == PMD_ORDER)
		result = map_huge(vmf, inode);
	filemap_invalidate_unlock_shared(inode->i_mapping);
	return result;
}

static vm_fault_t pkram_fault(struct vm_fault *vmf)
{
	return pkram_huge_fault(vmf, 0);
}

static const struct vm_operations_struct pkram_vm_ops = {
	.fault		= pkram_fault,
	.huge_fault	= pkram_huge_fault,
};

static int pkram_mmap_prepare(struct vm_area_desc *desc)
{
	/* what would be copied on write is not what is kept */
	if (!vma_desc_test(desc, VMA_MAYSHARE_BIT))
		return -EINVAL;
	desc->vm_ops = &pkram_vm_ops;
	vma_desc_set_flags(desc, VMA_HUGEPAGE_BIT);
	return 0;
}

const struct file_operations pkram_file_operations = {
	.owner			= THIS_MODULE,
	.llseek			= generic_file_llseek,
	.read_iter		= pkram_read_iter,
	.write_iter		= pkram_write_iter,
	.splice_read		= copy_splice_read,
	.splice_write		= iter_file_splice_write,
	.fallocate		= pkram_fallocate,
	/* everything is where it stays at once */
	.fsync			= noop_fsync,
	.mmap_prepare		= pkram_mmap_prepare,
	.get_unmapped_area	= thp_get_unmapped_area,
};
