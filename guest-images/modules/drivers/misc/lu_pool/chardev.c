// SPDX-License-Identifier: GPL-2.0-only
/*
 * /dev/lu_pool, see include/uapi/linux/lu_pool.h.
 */
#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/uaccess.h>

#include "internal.h"

static int get_object(struct lu_pool_object *object, const void __user *arg)
{
	if (copy_from_user(object, arg, sizeof(*object)))
		return -EFAULT;
	if (strnlen(object->name, sizeof(object->name)) == sizeof(object->name))
		return -EINVAL;
	return 0;
}

/* An ioctl about one object, whose answer goes back in the same struct. */
static long call_with_answer(int (*call)(struct lu_pool_object *), void __user *arg)
{
	struct lu_pool_object object;
	int err;

	err = get_object(&object, arg);
	if (!err)
		err = call(&object);
	if (!err && copy_to_user(arg, &object, sizeof(object)))
		err = -EFAULT;
	return err;
}

static long call_by_name(int (*call)(const char *), const void __user *arg)
{
	struct lu_pool_object object;
	int err;

	err = get_object(&object, arg);
	return err ? err : call(object.name);
}

static long list_object(void __user *arg)
{
	struct lu_pool_list list;
	int err;

	if (copy_from_user(&list, arg, sizeof(list)))
		return -EFAULT;
	if (list.reserved)
		return -EINVAL;
	err = lu_pool_do_list(&list);
	if (!err && copy_to_user(arg, &list, sizeof(list)))
		err = -EFAULT;
	return err;
}

static long stat_pool(void __user *arg)
{
	struct lu_pool_stat stat = {};

	lu_pool_do_stat(&stat);
	return copy_to_user(arg, &stat, sizeof(stat)) ? -EFAULT : 0;
}

static long release_pool(const u64 __user *arg)
{
	u64 confirm;

	if (get_user(confirm, arg))
		return -EFAULT;
	if (confirm != LU_POOL_RELEASE_CONFIRM)
		return -EINVAL;
	return lu_pool_do_release();
}

static long lu_pool_ioctl(struct file *file, unsigned int cmd, unsigned long value)
{
	void __user *arg = (void __user *)value;

	switch (cmd) {
	case LU_POOL_ALLOC:
		return call_with_answer(lu_pool_do_alloc, arg);
	case LU_POOL_INFO:
		return call_with_answer(lu_pool_do_info, arg);
	case LU_POOL_FREE:
		return call_by_name(lu_pool_do_free, arg);
	case LU_POOL_SEAL:
		return call_by_name(lu_pool_do_seal, arg);
	case LU_POOL_VERIFY:
		return call_by_name(lu_pool_do_verify, arg);
	case LU_POOL_LIST:
		return list_object(arg);
	case LU_POOL_STAT:
		return stat_pool(arg);
	case LU_POOL_RELEASE:
		return release_pool(arg);
	default:
		return -ENOTTY;
	}
}

static int lu_pool_open(struct inode *inode, struct file *file)
{
	return capable(CAP_SYS_ADMIN) ? 0 : -EPERM;
}

/* Within one object, as everywhere; a read or write that is not is refused whole. */
static ssize_t lu_pool_read(struct file *file, char __user *buf, size_t count, loff_t *pos)
{
	ssize_t done = count;
	int err;

	if (!count)
		return 0;
	err = lu_pool_use(*pos, count);
	if (err)
		return err;
	if (copy_to_user(buf, lu_pool.base + *pos, count))
		done = -EFAULT;
	lu_pool_unuse(*pos);
	if (done > 0)
		*pos += done;
	return done;
}

static ssize_t lu_pool_write(struct file *file, const char __user *buf, size_t count, loff_t *pos)
{
	ssize_t done = count;
	int err;

	if (!count)
		return 0;
	err = lu_pool_use(*pos, count);
	if (err)
		return err;
	if (copy_from_user(lu_pool.base + *pos, buf, count))
		done = -EFAULT;
	lu_pool_unuse(*pos);
	if (done > 0)
		*pos += done;
	return done;
}

static loff_t lu_pool_llseek(struct file *file, loff_t offset, int whence)
{
	return fixed_size_llseek(file, offset, whence, lu_pool.size);
}

/* --- mappings */

static u64 offset_of(const struct vm_area_struct *vma)
{
	return (u64)vma->vm_pgoff << PAGE_SHIFT;
}

static void lu_pool_vma_open(struct vm_area_struct *vma)
{
	lu_pool_reuse(offset_of(vma));
}

static void lu_pool_vma_close(struct vm_area_struct *vma)
{
	lu_pool_unuse(offset_of(vma));
}

static vm_fault_t lu_pool_huge_fault(struct vm_fault *vmf, unsigned int order)
{
	struct vm_area_struct *vma = vmf->vma;
	unsigned long size = PAGE_SIZE << order;
	unsigned long addr = ALIGN_DOWN(vmf->address, size);
	unsigned long pfn;

	if (addr < vma->vm_start || addr + size > vma->vm_end)
		return VM_FAULT_FALLBACK;
	pfn = PHYS_PFN(lu_pool.start) + vma->vm_pgoff + ((addr - vma->vm_start) >> PAGE_SHIFT);
	if (!IS_ALIGNED(pfn, 1UL << order))
		return VM_FAULT_FALLBACK;
	switch (order) {
	case 0:
		return vmf_insert_mixed(vma, addr, pfn);
	case PMD_ORDER:
		return vmf_insert_pfn_pmd(vmf, pfn, vmf->flags & FAULT_FLAG_WRITE);
	default:
		return VM_FAULT_FALLBACK;
	}
}

static vm_fault_t lu_pool_fault(struct vm_fault *vmf)
{
	return lu_pool_huge_fault(vmf, 0);
}

static const struct vm_operations_struct lu_pool_vm_ops = {
	.open = lu_pool_vma_open,
	.close = lu_pool_vma_close,
	.fault = lu_pool_fault,
	.huge_fault = lu_pool_huge_fault,
};

static int lu_pool_mmap(struct file *file, struct vm_area_struct *vma)
{
	int err;

	if (!(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	err = lu_pool_use(offset_of(vma), vma->vm_end - vma->vm_start);
	if (err)
		return err;
	/* not VM_PFNMAP, which pagemap takes for a hole: placement is to be seen */
	vm_flags_set(vma, VM_MIXEDMAP | VM_IO | VM_DONTEXPAND | VM_DONTDUMP);
	vma->vm_ops = &lu_pool_vm_ops;
	return 0;
}

static const struct file_operations lu_pool_fops = {
	.owner = THIS_MODULE,
	.open = lu_pool_open,
	.read = lu_pool_read,
	.write = lu_pool_write,
	.llseek = lu_pool_llseek,
	.unlocked_ioctl = lu_pool_ioctl,
	.mmap = lu_pool_mmap,
};

struct miscdevice lu_pool_miscdev = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "lu_pool",
	.mode = 0600,
	.fops = &lu_pool_fops,
};
