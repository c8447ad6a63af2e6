// SPDX-License-Identifier: GPL-2.0-only
/*
 * A driver that keeps memory in prmem, for tests.
 *
 * Into /sys/kernel/debug/prmem_test/command one of
 *
 *	keep NAME BYTES SEED	create an instance in two steps, fill it with a
 *				pattern, and leave the seed as its value
 *	check NAME BYTES	compare an instance with the pattern of its value
 *	flip PHYS		flip a bit of the byte at a physical address
 *
 * is written. The result is that of the write(2): EILSEQ for another content.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/debugfs.h>
#include <linux/err.h>
#include <linux/io.h>
#include <linux/memory_hotplug.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/prmem.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#define MAX_COMMAND	256

static struct dentry *directory;

/* The 64-bit word at an offset: userspace can make the same. */
static u64 pattern(u64 seed, u64 offset)
{
	u64 word = seed + (offset + 1) * 0x9e3779b97f4a7c15ULL;

	word ^= word >> 29;
	word *= 0xbf58476d1ce4e5b9ULL;
	return word ^ word >> 32;
}

static u64 *word_at(struct prmem_instance *instance, u64 offset)
{
	return page_address(prmem_page(instance, offset >> PAGE_SHIFT)) + offset_in_page(offset);
}

static int keep(const char *name, u64 bytes, u64 seed)
{
	struct prmem_instance *instance;
	u64 offset;
	int err;

	instance = prmem_create(name, PAGE_SIZE);
	if (IS_ERR(instance))
		return PTR_ERR(instance);
	err = prmem_grow(instance, bytes);
	if (!err)
		err = prmem_set_value(instance, seed);
	for (offset = 0; !err && offset < bytes; offset += sizeof(u64))
		*word_at(instance, offset) = pattern(seed, offset);
	prmem_put(instance);
	return err;
}

static int check(const char *name, u64 bytes)
{
	struct prmem_instance *instance;
	u64 offset, seed;
	int err = 0;

	instance = prmem_get(name);
	if (IS_ERR(instance))
		return PTR_ERR(instance);
	seed = prmem_value(instance);
	if (prmem_bytes(instance) != bytes)
		err = -EFBIG;
	for (offset = 0; !err && offset < bytes; offset += sizeof(u64))
		if (*word_at(instance, offset) != pattern(seed, offset))
			err = -EILSEQ;
	prmem_put(instance);
	return err;
}

static int flip(u64 phys)
{
	if (!pfn_to_online_page(PHYS_PFN(phys)))
		return -EFAULT;
	*(u8 *)phys_to_virt(phys) ^= 1;
	return 0;
}

static int obey(const char *command)
{
	u64 bytes, seed, phys;
	char name[64];

	if (sscanf(command, "keep %63s %llu %llu", name, &bytes, &seed) == 3)
		return bytes % sizeof(u64) ? -EINVAL : keep(name, bytes, seed);
	if (sscanf(command, "check %63s %llu", name, &bytes) == 2)
		return bytes % sizeof(u64) ? -EINVAL : check(name, bytes);
	if (sscanf(command, "flip %llx", &phys) == 1)
		return flip(phys);
	return -EINVAL;
}

static ssize_t command_write(struct file *file, const char __user *buf, size_t count, loff_t *pos)
{
	char *command;
	int err;

	if (count >= MAX_COMMAND)
		return -E2BIG;
	command = memdup_user_nul(buf, count);
	if (IS_ERR(command))
		return PTR_ERR(command);
	err = obey(command);
	kfree(command);
	return err ? err : count;
}

static const struct file_operations command_fops = {
	.owner = THIS_MODULE,
	.open = simple_open,
	.write = command_write,
	.llseek = noop_llseek,
};

static int __init prmem_test_init(void)
{
	directory = debugfs_create_dir("prmem_test", NULL);
	debugfs_create_file("command", 0200, directory, NULL, &command_fops);
	return 0;
}

static void __exit prmem_test_exit(void)
{
	debugfs_remove(directory);
}

module_init(prmem_test_init);
module_exit(prmem_test_exit);

MODULE_DESCRIPTION("Driver that keeps memory in prmem, for tests");
MODULE_LICENSE("GPL");
