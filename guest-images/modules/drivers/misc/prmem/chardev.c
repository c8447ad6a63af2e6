// SPDX-License-Identifier: GPL-2.0-only
/*
 * /dev/prmem, see include/uapi/linux/prmem.h.
 */
#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/uaccess.h>

#include "internal.h"

static int get_info(struct prmem_info *info, const void __user *arg)
{
	if (copy_from_user(info, arg, sizeof(*info)))
		return -EFAULT;
	if (strnlen(info->name, sizeof(info->name)) == sizeof(info->name))
		return -EINVAL;
	return 0;
}

/* An ioctl about one instance, whose answer goes back in the same struct. */
static long call_with_answer(int (*call)(struct prmem_info *), void __user *arg)
{
	struct prmem_info info;
	int err;

	err = get_info(&info, arg);
	if (!err)
		err = call(&info);
	if (!err && copy_to_user(arg, &info, sizeof(info)))
		err = -EFAULT;
	return err;
}

static long call_by_name(int (*call)(const char *), const void __user *arg)
{
	struct prmem_info info;
	int err;

	err = get_info(&info, arg);
	return err ? err : call(info.name);
}

static long set_value(const void __user *arg)
{
	struct prmem_info info;
	int err;

	err = get_info(&info, arg);
	return err ? err : prmem_do_set_value(&info);
}

static long list_instance(void __user *arg)
{
	struct prmem_list list;
	int err;

	if (copy_from_user(&list, arg, sizeof(list)))
		return -EFAULT;
	if (list.reserved)
		return -EINVAL;
	err = prmem_do_list(&list);
	if (!err && copy_to_user(arg, &list, sizeof(list)))
		err = -EFAULT;
	return err;
}

static long stat_all(void __user *arg)
{
	struct prmem_stat stat = {};

	prmem_do_stat(&stat);
	return copy_to_user(arg, &stat, sizeof(stat)) ? -EFAULT : 0;
}

static long release_all(const u64 __user *arg)
{
	u64 confirm;

	if (get_user(confirm, arg))
		return -EFAULT;
	if (confirm != PRMEM_RELEASE_CONFIRM)
		return -EINVAL;
	return prmem_do_release();
}

static long prmem_ioctl(struct file *file, unsigned int cmd, unsigned long value)
{
	void __user *arg = (void __user *)value;

	switch (cmd) {
	case PRMEM_CREATE:
		return call_with_answer(prmem_do_create, arg);
	case PRMEM_INFO:
		return call_with_answer(prmem_do_info, arg);
	case PRMEM_FREE:
		return call_by_name(prmem_do_free, arg);
	case PRMEM_GROW:
		return call_with_answer(prmem_do_grow, arg);
	case PRMEM_SET_VALUE:
		return set_value(arg);
	case PRMEM_SEAL:
		return call_by_name(prmem_do_seal, arg);
	case PRMEM_VERIFY:
		return call_by_name(prmem_do_verify, arg);
	case PRMEM_LIST:
		return list_instance(arg);
	case PRMEM_STAT:
		return stat_all(arg);
	case PRMEM_RELEASE:
		return release_all(arg);
	default:
		return -ENOTTY;
	}
}

static int prmem_open(struct inode *inode, struct file *file)
{
	return capable(CAP_SYS_ADMIN) ? 0 : -EPERM;
}

/* --- read and write */

static u64 in_slot(u64 offset)
{
	return offset & (BIT_ULL(PRMEM_SLOT_SHIFT) - 1);
}

/* The bytes from @at on that lie in one page. */
static void *memory_at(struct prmem_instance *instance, u64 at, size_t most, size_t *bytes)
{
	struct page *page = prmem_page(instance, at >> PAGE_SHIFT);

	*bytes = min_t(size_t, most, PAGE_SIZE - offset_in_page(at));
	return page_address(page) + offset_in_page(at);
}

/* Within one instance, as everywhere; a read or write that is not is refused whole. */
static ssize_t prmem_read(struct file *file, char __user *buf, size_t count, loff_t *pos)
{
	struct prmem_instance *instance;
	size_t done, bytes;
	void *memory;

	if (!count)
		return 0;
	instance = prmem_use(*pos, count);
	if (IS_ERR(instance))
		return PTR_ERR(instance);
	for (done = 0; done < count; done += bytes) {
		memory = memory_at(instance, in_slot(*pos + done), count - done, &bytes);
		if (copy_to_user(buf + done, memory, bytes))
			break;
	}
	prmem_put(instance);
	*pos += done;
	return done ? done : -EFAULT;
}

static ssize_t prmem_write(struct file *file, const char __user *buf, size_t count, loff_t *pos)
{
	struct prmem_instance *instance;
	size_t done, bytes;
	void *memory;

	if (!count)
		return 0;
	instance = prmem_use(*pos, count);
	if (IS_ERR(instance))
		return PTR_ERR(instance);
	for (done = 0; done < count; done += bytes) {
		memory = memory_at(instance, in_slot(*pos + done), count - done, &bytes);
		if (copy_from_user(memory, buf + done, bytes))
			break;
	}
	prmem_put(instance);
	*pos += done;
	return done ? done : -EFAULT;
}

static loff_t prmem_llseek(struct file *file, loff_t offset, int whence)
{
	return no_seek_end_llseek(file, offset, whence);
}

/* --- mappings */

static void prmem_vma_open(struct vm_area_struct *vma)
{
	prmem_reuse(vma->vm_private_data);
}

static void prmem_vma_close(struct vm_area_struct *vma)
{
	prmem_put(vma->vm_private_data);
}

static struct page *page_at(const struct vm_area_struct *vma, unsigned long address)
{
	u64 at = (u64)vma->vm_pgoff + ((address - vma->vm_start) >> PAGE_SHIFT);

	return prmem_page(vma->vm_private_data, in_slot(at << PAGE_SHIFT) >> PAGE_SHIFT);
}

static vm_fault_t prmem_fault(struct vm_fault *vmf)
{
	struct page *page = page_at(vmf->vma, vmf->address);

	if (!page)
		return VM_FAULT_SIGBUS;
	get_page(page);
	vmf->page = page;
	return 0;
}

static vm_fault_t prmem_huge_fault(struct vm_fault *vmf, unsigned int order)
{
	struct vm_area_struct *vma = vmf->vma;
	unsigned long address = vmf->address & PMD_MASK;
	struct folio *folio;
	struct page *page;

	if (order != PMD_ORDER || address < vma->vm_start || address + PMD_SIZE > vma->vm_end)
		return VM_FAULT_FALLBACK;
	page = page_at(vma, address);
	if (!page)
		return VM_FAULT_FALLBACK;
	folio = page_folio(page);
	if (folio_order(folio) != PMD_ORDER || page != &folio->page)
		return VM_FAULT_FALLBACK;
	return vmf_insert_folio_pmd(vmf, folio, vmf->flags & FAULT_FLAG_WRITE);
}

static const struct vm_operations_struct prmem_vm_ops = {
	.open = prmem_vma_open,
	.close = prmem_vma_close,
	.fault = prmem_fault,
	.huge_fault = prmem_huge_fault,
};

static int prmem_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct prmem_instance *instance;

	if (!(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	instance = prmem_use((u64)vma->vm_pgoff << PAGE_SHIFT, vma->vm_end - vma->vm_start);
	if (IS_ERR(instance))
		return PTR_ERR(instance);
	/* neither VM_PFNMAP nor VM_MIXEDMAP: these are pages with references */
	vm_flags_set(vma, VM_DONTEXPAND | VM_DONTDUMP);
	vma->vm_private_data = instance;
	vma->vm_ops = &prmem_vm_ops;
	return 0;
}

static const struct file_operations prmem_fops = {
	.owner = THIS_MODULE,
	.open = prmem_open,
	.read = prmem_read,
	.write = prmem_write,
	.llseek = prmem_llseek,
	.unlocked_ioctl = prmem_ioctl,
	.mmap = prmem_mmap,
};

struct miscdevice prmem_miscdev = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "prmem",
	.mode = 0600,
	.fops = &prmem_fops,
};
