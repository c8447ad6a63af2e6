// SPDX-License-Identifier: GPL-2.0-only
/*
 * The region: memory that the command line keeps from the kernel,
 *
 *	memmap=SIZE$START
 *
 * and that is ours by the parameter of this module
 *
 *	pkernfs.region=SIZE!START
 *
 * It gets struct pages in compound pages of 2 MiB, as device DAX has them, so
 * that whatever pins memory (direct I/O, VFIO, iommufd) works on it, and what
 * is pinned can be told from what is not. They cost 8 KiB for each 2 MiB.
 *
 * It stays in the direct map. Taking it out would need set_direct_map_*(),
 * which are not for modules, and a mapping for each read() and write().
 *
 * /sys/fs/pkernfs/ says what there is. "control" takes the two commands that
 * nothing else does, both only while nothing is mounted and no page is in use:
 * "wipe" makes the region blank, "release" gives it to the page allocator.
 */

#define pr_fmt(fmt) "pkernfs: " fmt

#include <linux/ioport.h>
#include <linux/kernel.h>
#include <linux/kobject.h>
#include <linux/memory.h>
#include <linux/memory_hotplug.h>
#include <linux/memremap.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/reboot.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/sysfs.h>

#include "internal.h"

static char *region;
module_param(region, charp, 0400);
MODULE_PARM_DESC(region, "the region as SIZE!START, as reserved by memmap=SIZE$START");

static struct {
	/* serialises mounts and commands, and protects what follows */
	struct mutex lock;
	phys_addr_t start;
	u64 size;
	/* NULL: released, or pinned beyond our time */
	void *base;
	struct dev_pagemap *pgmap;
	struct pkernfs_meta *mounted;
	char reason[PKERNFS_REASON_BYTES];
	struct kobject *kobj;
} self = { .lock = __MUTEX_INITIALIZER(self.lock) };

static struct folio *block_folio(phys_addr_t phys)
{
	return pfn_folio(PHYS_PFN(phys));
}

/* The one reference that is always there is the region's own. */
static bool is_pinned(phys_addr_t phys)
{
	return folio_ref_count(block_folio(phys)) > 1;
}

static bool block_is_busy(struct pkernfs_meta *meta, u64 block)
{
	return is_pinned(meta->start + meta->layout.data_offset +
			 (block << PKERNFS_BLOCK_SHIFT));
}

static u64 count_pinned(void)
{
	u64 at, count = 0;

	for (at = 0; at < self.size; at += PKERNFS_BLOCK_SIZE)
		count += is_pinned(self.start + at);
	return count;
}

/**
 * pkernfs_region_mount() - check the region and take it into use
 *
 * A region that was never used is formatted. One with anything else in it than
 * pkernfs is left as it is.
 *
 * Return: its metadata, or an ERR_PTR() after saying why in the kernel's log.
 */
struct pkernfs_meta *pkernfs_region_mount(void)
{
	struct pkernfs_meta *meta;
	int err;

	guard(mutex)(&self.lock);
	if (!self.base)
		return ERR_PTR(-ENODEV);
	if (self.mounted)
		return ERR_PTR(-EBUSY);
	if (pkernfs_is_blank(self.base)) {
		err = pkernfs_format(self.base, self.start, self.size);
		if (err)
			return ERR_PTR(err);
		pr_info("formatted %#llx bytes at %pa\n", self.size,
			&self.start);
	}
	meta = pkernfs_meta_alloc(self.base, self.start, self.size);
	if (IS_ERR(meta))
		return meta;
	meta->busy = block_is_busy;
	err = pkernfs_meta_load(meta);
	strscpy(self.reason, meta->reason);
	if (err) {
		pr_err("region at %pa refused: %s; it stays reserved and as it is (%pe)\n",
		       &self.start, meta->reason[0] ? meta->reason : "cannot be read",
		       ERR_PTR(err));
		pkernfs_meta_free(meta);
		return ERR_PTR(err);
	}
	pr_info("mount %llu of %#llx bytes at %pa, %llu of %llu blocks free%s, %u inodes without a name freed\n",
		meta->mounts, self.size, &self.start, meta->free_blocks,
		meta->layout.block_count,
		meta->recovered ? ", was left in the middle of something" : "",
		meta->reaped);
	self.mounted = meta;
	return meta;
}

/**
 * pkernfs_region_unmount() - put the region at rest
 * @meta: from pkernfs_region_mount()
 */
void pkernfs_region_unmount(struct pkernfs_meta *meta)
{
	guard(mutex)(&self.lock);
	pkernfs_meta_commit(meta);
	pkernfs_meta_free(meta);
	self.mounted = NULL;
}

/**
 * pkernfs_region_sync() - have what is in the region checked as a whole
 */
void pkernfs_region_sync(void)
{
	guard(mutex)(&self.lock);
	if (self.mounted)
		pkernfs_meta_commit(self.mounted);
}

static int before_reboot(struct notifier_block *block, unsigned long action,
			 void *data)
{
	pkernfs_region_sync();
	return NOTIFY_DONE;
}

static struct notifier_block reboot_notifier = { .notifier_call = before_reboot };

static int map_region(void)
{
	struct dev_pagemap *pgmap;
	void *base;

	pgmap = kzalloc_obj(*pgmap);
	if (!pgmap)
		return -ENOMEM;
	pgmap->type = MEMORY_DEVICE_GENERIC;
	pgmap->vmemmap_shift = PKERNFS_BLOCK_SHIFT - PAGE_SHIFT;
	pgmap->nr_range = 1;
	pgmap->range.start = self.start;
	pgmap->range.end = self.start + self.size - 1;
	base = memremap_pages(pgmap, NUMA_NO_NODE);
	if (IS_ERR(base)) {
		kfree(pgmap);
		return PTR_ERR(base);
	}
	self.pgmap = pgmap;
	self.base = base;
	return 0;
}

static void unmap_region(void)
{
	memunmap_pages(self.pgmap);
	kfree(self.pgmap);
	self.pgmap = NULL;
	self.base = NULL;
}

/* Everything that is read at a mount, so that none of it is found again. */
static void wipe(void)
{
	struct pkernfs_layout layout;
	u64 at;

	if (pkernfs_layout(self.size, &layout))
		return;
	for (at = 0; at < layout.data_offset; at += PAGE_SIZE)
		clear_page(self.base + at);
	self.reason[0] = '\0';
	pr_info("wiped %#llx bytes at %pa\n", self.size, &self.start);
}

static int release(void)
{
	int err;

	if (!IS_ALIGNED(self.start | self.size, memory_block_size_bytes())) {
		pr_err("only whole memory blocks of %#lx bytes can be released\n",
		       memory_block_size_bytes());
		return -EINVAL;
	}
	wipe();
	unmap_region();
	release_mem_region(self.start, self.size);
	err = add_memory_driver_managed(numa_mem_id(), self.start, self.size,
					"System RAM (pkernfs)", MHP_NONE);
	if (err)
		pr_err("cannot give the region to the kernel (%pe), nobody has it now\n",
		       ERR_PTR(err));
	else
		pr_info("released %#llx bytes at %pa\n", self.size, &self.start);
	return err;
}

static ssize_t control_store(struct kobject *kobj, struct kobj_attribute *attr,
			     const char *buf, size_t count)
{
	bool is_wipe = sysfs_streq(buf, "wipe");
	int err = 0;

	if (!is_wipe && !sysfs_streq(buf, "release"))
		return -EINVAL;
	guard(mutex)(&self.lock);
	if (!self.base)
		return -ENODEV;
	if (self.mounted || count_pinned())
		return -EBUSY;
	if (is_wipe)
		wipe();
	else
		err = release();
	return err ?: count;
}

static struct kobj_attribute control_attr = __ATTR_WO(control);

static ssize_t region_show(struct kobject *kobj, struct kobj_attribute *attr,
			   char *buf)
{
	return sysfs_emit(buf, "%#llx!%#llx\n", self.size, (u64)self.start);
}

static struct kobj_attribute region_attr = __ATTR_RO(region);

static ssize_t state_show(struct kobject *kobj, struct kobj_attribute *attr,
			  char *buf)
{
	guard(mutex)(&self.lock);
	if (!self.base)
		return sysfs_emit(buf, "released\n");
	if (self.mounted)
		return sysfs_emit(buf, "mounted\n");
	if (self.reason[0])
		return sysfs_emit(buf, "refused: %s\n", self.reason);
	return sysfs_emit(buf, "%s\n",
			  pkernfs_is_blank(self.base) ? "blank" : "unmounted");
}

static struct kobj_attribute state_attr = __ATTR_RO(state);

static ssize_t metadata_bytes_show(struct kobject *kobj,
				   struct kobj_attribute *attr, char *buf)
{
	struct pkernfs_layout layout;
	int err = pkernfs_layout(self.size, &layout);

	return err ?: sysfs_emit(buf, "%llu\n", layout.data_offset);
}

static struct kobj_attribute metadata_bytes_attr = __ATTR_RO(metadata_bytes);

static ssize_t pinned_blocks_show(struct kobject *kobj,
				  struct kobj_attribute *attr, char *buf)
{
	guard(mutex)(&self.lock);
	return sysfs_emit(buf, "%llu\n", self.base ? count_pinned() : 0);
}

static struct kobj_attribute pinned_blocks_attr = __ATTR_RO(pinned_blocks);

static struct attribute *region_attrs[] = {
	&control_attr.attr,
	&region_attr.attr,
	&state_attr.attr,
	&metadata_bytes_attr.attr,
	&pinned_blocks_attr.attr,
	NULL
};
ATTRIBUTE_GROUPS(region);

static int parse_region(void)
{
	struct pkernfs_layout layout;
	char *rest;

	if (!region) {
		pr_err("no region, say pkernfs.region=SIZE!START\n");
		return -EINVAL;
	}
	self.size = memparse(region, &rest);
	if (*rest == '!')
		self.start = memparse(rest + 1, &rest);
	if (*rest || !self.start) {
		pr_err("region '%s' is not SIZE!START\n", region);
		return -EINVAL;
	}
	if (pkernfs_layout(self.size, &layout) ||
	    !IS_ALIGNED(self.start, PKERNFS_BLOCK_SIZE) ||
	    self.start + self.size < self.start) {
		pr_err("region '%s' does not consist of at least %u whole blocks of 2 MiB\n",
		       region, PKERNFS_MIN_SIZE / PKERNFS_BLOCK_SIZE);
		return -EINVAL;
	}
	return 0;
}

/* What the kernel hands out itself must not be touched, whoever says so. */
static int check_region(void)
{
	if (region_intersects(self.start, self.size, IORESOURCE_MEM,
			      IORES_DESC_RESERVED) == REGION_INTERSECTS)
		return 0;
	pr_err("region '%s' is not reserved, say memmap=%#llx$%#llx\n", region,
	       self.size, (u64)self.start);
	return -EBUSY;
}

static int __init pkernfs_init(void)
{
	int err;

	err = parse_region();
	if (!err)
		err = check_region();
	if (err)
		return err;
	if (!request_mem_region(self.start, self.size, "pkernfs")) {
		pr_err("region '%s' is in use\n", region);
		return -EBUSY;
	}
	err = map_region();
	if (err) {
		pr_err("region '%s' cannot be mapped (%pe)\n", region,
		       ERR_PTR(err));
		goto err_release;
	}
	err = -ENOMEM;
	self.kobj = kobject_create_and_add("pkernfs", fs_kobj);
	if (!self.kobj)
		goto err_unmap;
	err = sysfs_create_groups(self.kobj, region_groups);
	if (err)
		goto err_kobj;
	err = register_reboot_notifier(&reboot_notifier);
	if (err)
		goto err_kobj;
	err = pkernfs_super_init();
	if (err)
		goto err_notifier;
	return 0;

err_notifier:
	unregister_reboot_notifier(&reboot_notifier);
err_kobj:
	kobject_put(self.kobj);
err_unmap:
	unmap_region();
err_release:
	release_mem_region(self.start, self.size);
	return err;
}

static void __exit pkernfs_exit(void)
{
	pkernfs_super_exit();
	unregister_reboot_notifier(&reboot_notifier);
	kobject_put(self.kobj);
	if (!self.base)
		return;
	if (count_pinned()) {
		/* their struct pages must stay, and nobody may have the region */
		pr_warn("%llu blocks are still pinned, the region stays mapped\n",
			count_pinned());
		return;
	}
	unmap_region();
	release_mem_region(self.start, self.size);
}

module_init(pkernfs_init);
module_exit(pkernfs_exit);
MODULE_DESCRIPTION("File system in reserved memory that outlives a kexec");
MODULE_LICENSE("GPL");
MODULE_ALIAS_FS("pkernfs");
