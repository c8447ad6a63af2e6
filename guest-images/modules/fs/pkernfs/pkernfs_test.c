// SPDX-License-Identifier: GPL-2.0-only
/*
 * A driver that opens files of pkernfs, for tests.
 *
 * Into /sys/kernel/debug/pkernfs_test/command one of
 *
 *	write PATH BYTES SEED	fill a file with a pattern and keep it open
 *	check PATH BYTES SEED	open a file, compare it and keep it open
 *	close			close what is open
 *
 * is written. The result is that of the write(2): EILSEQ for another content.
 * "open" in the same directory lists what is open with its physical memory.
 */

#define pr_fmt(fmt) "pkernfs_test: " fmt

#include <linux/debugfs.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pkernfs.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#define MAX_COMMAND 512

static struct dentry *directory;
/* protects opened */
static DEFINE_MUTEX(lock);
static struct pkernfs_file *opened;

/* The 64-bit word at an offset: userspace can make the same. */
static u64 pattern(u64 seed, u64 offset)
{
	u64 word = seed + (offset + 1) * 0x9e3779b97f4a7c15ULL;

	word ^= word >> 29;
	word *= 0xbf58476d1ce4e5b9ULL;
	return word ^ word >> 32;
}

static int walk(struct pkernfs_file *file, u64 bytes, u64 seed, bool is_write)
{
	struct pkernfs_memory memory;
	u64 offset, *word;
	size_t at;
	int err;

	for (offset = 0; offset < bytes; offset += memory.bytes) {
		err = pkernfs_get_memory(file, offset, &memory);
		if (err)
			return err;
		for (at = 0; at < memory.bytes && offset + at < bytes; at += 8) {
			word = memory.address + at;
			if (is_write) {
				*word = pattern(seed, offset + at);
			} else if (*word != pattern(seed, offset + at)) {
				pr_err("%#llx at offset %llu, expected %#llx\n",
				       *word, offset + at,
				       pattern(seed, offset + at));
				return -EILSEQ;
			}
		}
	}
	return 0;
}

static int run(const char *path, u64 bytes, u64 seed, bool is_write)
{
	struct pkernfs_file *file;
	int err;

	if (opened)
		return -EBUSY;
	if (!bytes || bytes % 8)
		return -EINVAL;
	file = pkernfs_open(path, is_write ? bytes : 0);
	if (IS_ERR(file))
		return PTR_ERR(file);
	if (pkernfs_size(file) != bytes)
		err = -EFBIG;
	else
		err = walk(file, bytes, seed, is_write);
	if (err)
		pkernfs_close(file);
	else
		opened = file;
	return err;
}

static int obey(const char *command)
{
	char path[256], verb[8];
	u64 bytes, seed;

	guard(mutex)(&lock);
	if (!strcmp(command, "close")) {
		if (!opened)
			return -ENOENT;
		pkernfs_close(opened);
		opened = NULL;
		return 0;
	}
	if (sscanf(command, "%7s %255s %llu %llu", verb, path, &bytes, &seed) != 4)
		return -EINVAL;
	if (!strcmp(verb, "write"))
		return run(path, bytes, seed, true);
	if (!strcmp(verb, "check"))
		return run(path, bytes, seed, false);
	return -EINVAL;
}

static ssize_t command_write(struct file *file, const char __user *buf,
			     size_t count, loff_t *pos)
{
	char *command;
	int err;

	if (count >= MAX_COMMAND)
		return -E2BIG;
	command = memdup_user_nul(buf, count);
	if (IS_ERR(command))
		return PTR_ERR(command);
	err = obey(strim(command));
	kfree(command);
	return err ?: count;
}

static const struct file_operations command_fops = {
	.owner	= THIS_MODULE,
	.open	= simple_open,
	.write	= command_write,
	.llseek	= noop_llseek,
};

static int open_show(struct seq_file *seq, void *data)
{
	struct pkernfs_memory memory;
	u64 offset;

	guard(mutex)(&lock);
	if (!opened)
		return 0;
	for (offset = 0; !pkernfs_get_memory(opened, offset, &memory);
	     offset += memory.bytes)
		seq_printf(seq, "%#llx %pa %#zx\n", offset, &memory.phys,
			   memory.bytes);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(open);

static int __init pkernfs_test_init(void)
{
	directory = debugfs_create_dir("pkernfs_test", NULL);
	debugfs_create_file("command", 0200, directory, NULL, &command_fops);
	debugfs_create_file("open", 0400, directory, NULL, &open_fops);
	return 0;
}

static void __exit pkernfs_test_exit(void)
{
	debugfs_remove(directory);
	if (opened)
		pkernfs_close(opened);
}

module_init(pkernfs_test_init);
module_exit(pkernfs_test_exit);
MODULE_DESCRIPTION("Test driver that uses files of pkernfs");
MODULE_LICENSE("GPL");
