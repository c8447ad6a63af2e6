// SPDX-License-Identifier: GPL-2.0-only
/*
 * Content. There is no page cache: a file's blocks are its content, and a
 * mapping maps them, 2 MiB at a time where address and offset let it.
 *
 * What protects what: the inode lock the size against read, write and
 * fallocate; the mapping's invalidate lock blocks against faults that would
 * map them while they are taken away.
 */

#include <linux/fs.h>
#include <linux/falloc.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/sched/signal.h>
#include <linux/splice.h>
#include <linux/uio.h>

#include "internal.h"

/* Return where a block of a file is; NULL: there is none. */
static void *find_block(struct inode *inode, u64 index)
{
	struct pkernfs_meta *meta = pkernfs_meta_of(inode);
	struct pkernfs_node *node = pkernfs_node(meta, inode->i_ino);
	void *entry = xa_load(&node->blocks, index);

	return entry ? pkernfs_block_address(meta, xa_to_value(entry)) : NULL;
}

/* The same, and make one that is not there. Or an ERR_PTR(). */
static void *need_block(struct inode *inode, u64 index)
{
	struct pkernfs_meta *meta = pkernfs_meta_of(inode);
	void *address = find_block(inode, index);
	u64 block;
	int err;

	if (address)
		return address;
	err = pkernfs_meta_alloc_block(meta, inode->i_ino, index, &block);
	return err ? ERR_PTR(err) : pkernfs_block_address(meta, block);
}

/* Zero what there is from @from to @to, which are in one block. */
static void zero_in_block(struct inode *inode, loff_t from, loff_t to)
{
	void *address = find_block(inode, from >> PKERNFS_BLOCK_SHIFT);

	if (address && to > from)
		memset(address + (from & (PKERNFS_BLOCK_SIZE - 1)), 0, to - from);
}

/*
 * A file gets longer. Behind its end there may be anything in the block that
 * has the end: of a mapping, or of a truncate that was cut short.
 */
static void grow(struct inode *inode, loff_t size)
{
	loff_t old = i_size_read(inode);
	loff_t end = round_up(old, (loff_t)PKERNFS_BLOCK_SIZE);

	zero_in_block(inode, old, min(size, end));
	i_size_write(inode, size);
}

static void unmap_blocks(struct inode *inode, loff_t from, loff_t bytes)
{
	unmap_mapping_range(inode->i_mapping, from, bytes, 1);
}

static int shrink(struct inode *inode, loff_t size)
{
	struct pkernfs_meta *meta = pkernfs_meta_of(inode);
	loff_t page = round_up(size, PAGE_SIZE);
	u64 first = DIV_ROUND_UP_ULL(size, PKERNFS_BLOCK_SIZE);
	const u64 last = PKERNFS_MAX_INDEX - 1;
	int err = 0;

	if (pkernfs_info(inode)->drivers)
		return -EBUSY;
	filemap_invalidate_lock(inode->i_mapping);
	unmap_blocks(inode, page, 0);
	if (pkernfs_meta_is_pinned(meta, inode->i_ino, first, last)) {
		err = -EBUSY;
		goto out;
	}
	i_size_write(inode, size);
	/* only when the region knows may blocks go to somebody else */
	pkernfs_store_inode(inode);
	if (page > size)
		zero_in_block(inode, size, page);
	pkernfs_meta_free_blocks(meta, inode->i_ino, first, last);
out:
	filemap_invalidate_unlock(inode->i_mapping);
	return err;
}

/**
 * pkernfs_set_size() - truncate a file, or make it longer
 * @inode: of a regular file, locked
 * @size: in bytes
 *
 * The caller stores the inode.
 *
 * Return: 0, or -EBUSY if a driver has it or a part to be cut off is pinned.
 */
int pkernfs_set_size(struct inode *inode, loff_t size)
{
	loff_t old = i_size_read(inode);

	if (size < old)
		return shrink(inode, size);
	if (size > old)
		grow(inode, size);
	return 0;
}

static size_t left_in_block(loff_t pos, size_t bytes)
{
	return min_t(size_t, bytes,
		     PKERNFS_BLOCK_SIZE - (pos & (PKERNFS_BLOCK_SIZE - 1)));
}

static ssize_t pkernfs_read_iter(struct kiocb *iocb, struct iov_iter *to)
{
	struct inode *inode = file_inode(iocb->ki_filp);
	size_t done = 0, bytes, copied;
	loff_t size;
	void *address;

	inode_lock_shared(inode);
	size = i_size_read(inode);
	while (iov_iter_count(to) && iocb->ki_pos < size) {
		bytes = min_t(u64, iov_iter_count(to), size - iocb->ki_pos);
		bytes = left_in_block(iocb->ki_pos, bytes);
		address = find_block(inode, iocb->ki_pos >> PKERNFS_BLOCK_SHIFT);
		if (address)
			copied = copy_to_iter(address + (iocb->ki_pos &
							 (PKERNFS_BLOCK_SIZE - 1)),
					      bytes, to);
		else
			copied = iov_iter_zero(bytes, to);
		done += copied;
		iocb->ki_pos += copied;
		if (copied < bytes) {
			inode_unlock_shared(inode);
			return done ?: -EFAULT;
		}
	}
	inode_unlock_shared(inode);
	return done;
}

static ssize_t write_blocks(struct inode *inode, struct kiocb *iocb,
			    struct iov_iter *from)
{
	size_t done = 0, bytes, copied;
	void *address;

	while (iov_iter_count(from)) {
		bytes = left_in_block(iocb->ki_pos, iov_iter_count(from));
		address = need_block(inode, iocb->ki_pos >> PKERNFS_BLOCK_SHIFT);
		if (IS_ERR(address))
			return done ?: PTR_ERR(address);
		copied = copy_from_iter(address + (iocb->ki_pos &
						   (PKERNFS_BLOCK_SIZE - 1)),
					bytes, from);
		done += copied;
		iocb->ki_pos += copied;
		if (copied < bytes)
			return done ?: -EFAULT;
	}
	return done;
}

static ssize_t pkernfs_write_iter(struct kiocb *iocb, struct iov_iter *from)
{
	struct inode *inode = file_inode(iocb->ki_filp);
	ssize_t done;
	loff_t old;

	inode_lock(inode);
	done = generic_write_checks(iocb, from);
	if (done <= 0)
		goto out;
	done = file_remove_privs(iocb->ki_filp);
	if (!done)
		done = file_update_time(iocb->ki_filp);
	if (done)
		goto out;
	old = i_size_read(inode);
	if (iocb->ki_pos > old)
		grow(inode, iocb->ki_pos);
	done = write_blocks(inode, iocb, from);
	if (done > 0 && iocb->ki_pos > i_size_read(inode))
		i_size_write(inode, iocb->ki_pos);
	if (i_size_read(inode) != old)
		pkernfs_store_inode(inode);
out:
	inode_unlock(inode);
	return done;
}

static int allocate(struct inode *inode, loff_t offset, loff_t end, bool keep)
{
	struct pkernfs_meta *meta = pkernfs_meta_of(inode);
	u64 first = offset >> PKERNFS_BLOCK_SHIFT;
	u64 last = (end - 1) >> PKERNFS_BLOCK_SHIFT;
	u64 index, missing = 0;
	void *address;
	int err;

	if (!keep && end > i_size_read(inode)) {
		err = inode_newsize_ok(inode, end);
		if (err)
			return err;
	}
	if (last - first >= meta->layout.block_count)
		return -ENOSPC;
	for (index = first; index <= last; index++)
		missing += !find_block(inode, index);
	if (missing > pkernfs_meta_available(meta))
		return -ENOSPC;
	for (index = first; index <= last; index++) {
		if (fatal_signal_pending(current))
			return -EINTR;
		address = need_block(inode, index);
		if (IS_ERR(address))
			return PTR_ERR(address);
	}
	if (!keep && end > i_size_read(inode)) {
		grow(inode, end);
		pkernfs_store_inode(inode);
	}
	return 0;
}

static int punch(struct inode *inode, loff_t offset, loff_t end)
{
	struct pkernfs_meta *meta = pkernfs_meta_of(inode);
	u64 first = DIV_ROUND_UP_ULL(offset, PKERNFS_BLOCK_SIZE);
	u64 behind = end >> PKERNFS_BLOCK_SHIFT;
	loff_t from = first << PKERNFS_BLOCK_SHIFT;
	loff_t to = behind << PKERNFS_BLOCK_SHIFT;
	int err = 0;

	if (pkernfs_info(inode)->drivers)
		return -EBUSY;
	filemap_invalidate_lock(inode->i_mapping);
	if (behind > first) {
		unmap_blocks(inode, from, to - from);
		if (pkernfs_meta_is_pinned(meta, inode->i_ino, first, behind - 1)) {
			err = -EBUSY;
			goto out;
		}
		pkernfs_meta_free_blocks(meta, inode->i_ino, first, behind - 1);
	}
	if (from > to) {
		/* all of it is in one block */
		zero_in_block(inode, offset, end);
	} else {
		zero_in_block(inode, offset, from);
		zero_in_block(inode, to, end);
	}
out:
	filemap_invalidate_unlock(inode->i_mapping);
	return err;
}

static long pkernfs_fallocate(struct file *file, int mode, loff_t offset,
			      loff_t bytes)
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
			      allocate(inode, offset, offset + bytes,
				       mode & FALLOC_FL_KEEP_SIZE);
	inode_unlock(inode);
	return err;
}

static vm_fault_t fault_of(int err)
{
	return err == -ENOMEM ? VM_FAULT_OOM : VM_FAULT_SIGBUS;
}

static vm_fault_t map_page(struct vm_fault *vmf, struct inode *inode)
{
	struct page *page;
	void *address;

	if (vmf->pgoff >= DIV_ROUND_UP_ULL(i_size_read(inode), PAGE_SIZE))
		return VM_FAULT_SIGBUS;
	address = need_block(inode, vmf->pgoff / PKERNFS_BLOCK_PAGES);
	if (IS_ERR(address))
		return fault_of(PTR_ERR(address));
	page = virt_to_page(address + (vmf->pgoff % PKERNFS_BLOCK_PAGES << PAGE_SHIFT));
	return vmf_insert_page_mkwrite(vmf, page, vmf->flags & FAULT_FLAG_WRITE);
}

static vm_fault_t map_block(struct vm_fault *vmf, struct inode *inode)
{
	struct vm_area_struct *vma = vmf->vma;
	unsigned long start = vmf->address & PMD_MASK;
	pgoff_t pgoff;
	void *address;
	u64 index;

	if (start < vma->vm_start || start + PMD_SIZE > vma->vm_end)
		return VM_FAULT_FALLBACK;
	pgoff = linear_page_index(vma, start);
	index = pgoff / PKERNFS_BLOCK_PAGES;
	/* pages behind the end must not come with it */
	if (pgoff % PKERNFS_BLOCK_PAGES ||
	    (index + 1) << PKERNFS_BLOCK_SHIFT > i_size_read(inode))
		return VM_FAULT_FALLBACK;
	address = need_block(inode, index);
	if (IS_ERR(address))
		return fault_of(PTR_ERR(address));
	return vmf_insert_folio_pmd(vmf, virt_to_folio(address),
				    vmf->flags & FAULT_FLAG_WRITE);
}

static vm_fault_t pkernfs_huge_fault(struct vm_fault *vmf, unsigned int order)
{
	struct inode *inode = file_inode(vmf->vma->vm_file);
	vm_fault_t result = VM_FAULT_FALLBACK;

	filemap_invalidate_lock_shared(inode->i_mapping);
	if (order == 0)
		result = map_page(vmf, inode);
	else if (order == PMD_ORDER)
		result = map_block(vmf, inode);
	filemap_invalidate_unlock_shared(inode->i_mapping);
	return result;
}

static vm_fault_t pkernfs_fault(struct vm_fault *vmf)
{
	return pkernfs_huge_fault(vmf, 0);
}

static const struct vm_operations_struct pkernfs_vm_ops = {
	.fault		= pkernfs_fault,
	.huge_fault	= pkernfs_huge_fault,
};

static int pkernfs_mmap_prepare(struct vm_area_desc *desc)
{
	/* what would be copied on write is not what is kept */
	if (!vma_desc_test(desc, VMA_MAYSHARE_BIT))
		return -EINVAL;
	desc->vm_ops = &pkernfs_vm_ops;
	vma_desc_set_flags(desc, VMA_HUGEPAGE_BIT);
	return 0;
}

/* Writing keeps the time in mind only; it is stored when the writer is done. */
static int pkernfs_release(struct inode *inode, struct file *file)
{
	struct pkernfs_inode record;
	struct timespec64 mtime;

	if (!(file->f_mode & FMODE_WRITE))
		return 0;
	inode_lock(inode);
	mtime = inode_get_mtime(inode);
	pkernfs_meta_get(pkernfs_meta_of(inode), inode->i_ino, &record);
	if (le64_to_cpu(record.mtime_s) != mtime.tv_sec ||
	    le32_to_cpu(record.mtime_ns) != mtime.tv_nsec)
		pkernfs_store_inode(inode);
	inode_unlock(inode);
	return 0;
}

const struct file_operations pkernfs_file_operations = {
	.owner			= THIS_MODULE,
	.llseek			= generic_file_llseek,
	.read_iter		= pkernfs_read_iter,
	.write_iter		= pkernfs_write_iter,
	.splice_read		= copy_splice_read,
	.splice_write		= iter_file_splice_write,
	.fallocate		= pkernfs_fallocate,
	/* everything is where it stays at once */
	.fsync			= noop_fsync,
	.mmap_prepare		= pkernfs_mmap_prepare,
	.get_unmapped_area	= thp_get_unmapped_area,
	.release		= pkernfs_release,
};
