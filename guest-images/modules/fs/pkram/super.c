// SPDX-License-Identifier: GPL-2.0-only
/*
 * pkram: a file system in ordinary memory, a save of which the next kernel
 * gets through KHO:
 *
 *	mount -t pkram -o name=NAME none DIR
 *
 * That takes over what was saved under the name, by the previous kernel or
 * before this one unmounted it; or it begins empty. A file system that is
 * unmounted while it is saved is parked: its memory stays, for the next mount
 * of that name or for the next kernel. One that is not saved is gone.
 */

#define pr_fmt(fmt) "pkram: " fmt

#include <linux/fs_context.h>
#include <linux/fs_parser.h>
#include <linux/module.h>
#include <linux/reboot.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/statfs.h>

#include "internal.h"

/* of the file system as statfs(2) says it: "PKRM" */
#define PKRAM_SUPER_MAGIC 0x4d524b50

LIST_HEAD(pkram_list);
/* protects that list; taken before &pkram_fs.lock */
DEFINE_MUTEX(pkram_list_lock);

static struct kmem_cache *inode_cache;

/* a reboot has begun; pkram_list_lock */
static bool leaving;

static struct inode *pkram_alloc_inode(struct super_block *sb)
{
	struct pkram_node *node;

	node = alloc_inode_sb(sb, inode_cache, GFP_KERNEL);
	if (!node)
		return NULL;
	INIT_LIST_HEAD(&node->list);
	xa_init(&node->folios);
	node->parent = NULL;
	node->pages = 0;
	node->name_len = 0;
	memset(node->name, 0, sizeof(node->name));
	return &node->vfs;
}

static void pkram_free_inode(struct inode *inode)
{
	kmem_cache_free(inode_cache, pkram_node(inode));
}

/* The last user is gone: so are all mappings. */
static void pkram_evict_inode(struct inode *inode)
{
	struct pkram_node *node = pkram_node(inode);
	struct pkram_fs *fs = pkram_fs(inode);

	truncate_inode_pages_final(&inode->i_data);
	clear_inode(inode);
	guard(mutex)(&fs->lock);
	if (!fs->keep_folios)
		pkram_drop_folios(fs, node, 0, ULONG_MAX);
	xa_destroy(&node->folios);
	list_del_init(&node->list);
}

static int pkram_statfs(struct dentry *dentry, struct kstatfs *buf)
{
	struct pkram_fs *fs = dentry->d_sb->s_fs_info;
	u64 limit = READ_ONCE(fs->limit);

	buf->f_type = PKRAM_SUPER_MAGIC;
	buf->f_bsize = PAGE_SIZE;
	buf->f_namelen = PKRAM_FILE_NAME_MAX;
	buf->f_blocks = limit;
	buf->f_bfree = limit - min(READ_ONCE(fs->pages), limit);
	buf->f_bavail = buf->f_bfree;
	return 0;
}

static int pkram_show_options(struct seq_file *seq, struct dentry *root)
{
	struct pkram_fs *fs = root->d_sb->s_fs_info;

	seq_puts(seq, ",name=");
	seq_escape(seq, fs->name, " \t\n\\,");
	seq_printf(seq, ",size=%llu", READ_ONCE(fs->limit) << PAGE_SHIFT);
	return 0;
}

static const struct super_operations pkram_super_operations = {
	.alloc_inode	= pkram_alloc_inode,
	.free_inode	= pkram_free_inode,
	.drop_inode	= inode_just_drop,
	.evict_inode	= pkram_evict_inode,
	.statfs		= pkram_statfs,
	.show_options	= pkram_show_options,
};

static struct pkram_fs *find_fs(const char *name)
{
	struct pkram_fs *fs;

	list_for_each_entry(fs, &pkram_list, list)
		if (!strcmp(fs->name, name))
			return fs;
	return NULL;
}

/* Begin empty, or with what was saved. pkram_list_lock is held. */
static int fill(struct super_block *sb, struct pkram_fs *parked)
{
	struct pkram_fs *fs = sb->s_fs_info;
	struct pkram_dir_entry entry;
	int err;

	if (parked) {
		err = pkram_load(sb, &parked->save, false);
		if (err)
			return err;
		fs->save = parked->save;
		fs->saved = true;
		list_del(&parked->list);
		kfree(parked);
		module_put(THIS_MODULE);
		return 0;
	}
	err = pkram_incoming_find(fs->name, &entry);
	if (err == -ENOENT)
		return 0;
	return err ?: pkram_load(sb, &entry, true);
}

static int pkram_fill_super(struct super_block *sb, struct fs_context *fc)
{
	struct pkram_fs *fs = sb->s_fs_info, *found;
	int err;

	sb->s_magic = PKRAM_SUPER_MAGIC;
	sb->s_maxbytes = PKRAM_MAX_FILE;
	sb->s_blocksize = PAGE_SIZE;
	sb->s_blocksize_bits = PAGE_SHIFT;
	sb->s_time_gran = 1;
	sb->s_flags |= SB_NOATIME;
	sb->s_op = &pkram_super_operations;
	sb->s_root = d_make_root(pkram_new_root(sb));
	if (!sb->s_root)
		return -ENOMEM;
	guard(mutex)(&pkram_list_lock);
	/* it would take a save that the next kernel is about to take */
	if (leaving)
		return -ESHUTDOWN;
	found = find_fs(fs->name);
	if (found && !found->parked)
		return invalf(fc, "pkram: '%s' is mounted", fs->name);
	err = fill(sb, found);
	if (err)
		return err;
	list_add(&fs->list, &pkram_list);
	return 0;
}

static int pkram_get_tree(struct fs_context *fc)
{
	struct pkram_fs *fs = fc->s_fs_info;

	if (!fs->name[0])
		return invalf(fc, "pkram: needs name=");
	if (fc->sb_flags & SB_RDONLY)
		return invalf(fc, "pkram: cannot be mounted read-only");
	/* as with tmpfs */
	if (!fs->limit)
		fs->limit = totalram_pages() / 2;
	return get_tree_nodev(fc, pkram_fill_super);
}

/* Only the limit can be changed, and not to less than there is. */
static int pkram_reconfigure(struct fs_context *fc)
{
	struct pkram_fs *fs = fc->root->d_sb->s_fs_info;
	const struct pkram_fs *told = fc->s_fs_info;

	if (fc->sb_flags & SB_RDONLY)
		return invalf(fc, "pkram: cannot be mounted read-only");
	if (told->name[0] && strcmp(told->name, fs->name))
		return invalf(fc, "pkram: the name cannot be changed");
	if (!told->limit)
		return 0;
	guard(mutex)(&fs->lock);
	if (told->limit < fs->pages)
		return invalf(fc, "pkram: size is less than what there is");
	WRITE_ONCE(fs->limit, told->limit);
	return 0;
}

enum { OPT_NAME, OPT_SIZE };

static const struct fs_parameter_spec pkram_parameters[] = {
	fsparam_string("name", OPT_NAME),
	fsparam_string("size", OPT_SIZE),
	{}
};

static int pkram_parse_param(struct fs_context *fc, struct fs_parameter *param)
{
	struct pkram_fs *fs = fc->s_fs_info;
	struct fs_parse_result result;
	char *rest;
	int opt;

	opt = fs_parse(fc, pkram_parameters, param, &result);
	if (opt < 0)
		return opt;
	if (opt == OPT_SIZE) {
		fs->limit = memparse(param->string, &rest) >> PAGE_SHIFT;
		return *rest || !fs->limit ? invalf(fc, "pkram: size is no size") : 0;
	}
	if (!param->string[0] || strscpy(fs->name, param->string) < 0)
		return invalf(fc, "pkram: a name has 1 to %u bytes", PKRAM_NAME_LEN - 1);
	return 0;
}

static void pkram_free_fc(struct fs_context *fc)
{
	kfree(fc->s_fs_info);
}

static const struct fs_context_operations pkram_context_ops = {
	.free		= pkram_free_fc,
	.parse_param	= pkram_parse_param,
	.get_tree	= pkram_get_tree,
	.reconfigure	= pkram_reconfigure,
};

static int pkram_init_fs_context(struct fs_context *fc)
{
	struct pkram_fs *fs = kzalloc_obj(*fs);

	if (!fs)
		return -ENOMEM;
	mutex_init(&fs->lock);
	INIT_LIST_HEAD(&fs->list);
	INIT_LIST_HEAD(&fs->nodes);
	fc->s_fs_info = fs;
	fc->ops = &pkram_context_ops;
	return 0;
}

static void pkram_kill_sb(struct super_block *sb)
{
	struct pkram_fs *fs = sb->s_fs_info;

	guard(mutex)(&pkram_list_lock);
	scoped_guard(mutex, &fs->lock) {
		/* not one whose mount has failed */
		fs->parked = fs->saved && !list_empty(&fs->list);
		fs->keep_folios |= fs->parked;
	}
	kill_anon_super(sb);
	if (fs->parked) {
		__module_get(THIS_MODULE);
		pr_info("'%s' is parked\n", fs->name);
		return;
	}
	list_del(&fs->list);
	kfree(fs);
}

static struct file_system_type pkram_type = {
	.owner			= THIS_MODULE,
	.name			= "pkram",
	.init_fs_context	= pkram_init_fs_context,
	.parameters		= pkram_parameters,
	.kill_sb		= pkram_kill_sb,
};

static int before_reboot(struct notifier_block *block, unsigned long action, void *data)
{
	struct pkram_fs *fs;

	guard(mutex)(&pkram_list_lock);
	leaving = true;
	list_for_each_entry(fs, &pkram_list, list)
		pkram_leave(fs);
	list_for_each_entry(fs, &pkram_list, list)
		pkram_tidy(fs);
	return NOTIFY_DONE;
}

static struct notifier_block reboot_notifier = { .notifier_call = before_reboot };

static void init_once(void *object)
{
	struct pkram_node *node = object;

	inode_init_once(&node->vfs);
}

static int __init pkram_init(void)
{
	int err;

	inode_cache = kmem_cache_create("pkram_inode", sizeof(struct pkram_node), 0,
					SLAB_RECLAIM_ACCOUNT | SLAB_ACCOUNT, init_once);
	if (!inode_cache)
		return -ENOMEM;
	err = pkram_directory_init();
	if (err)
		goto err_cache;
	err = register_reboot_notifier(&reboot_notifier);
	if (err)
		goto err_directory;
	err = register_filesystem(&pkram_type);
	if (err)
		goto err_notifier;
	return 0;

err_notifier:
	unregister_reboot_notifier(&reboot_notifier);
err_directory:
	pkram_directory_exit();
err_cache:
	kmem_cache_destroy(inode_cache);
	return err;
}

static void __exit pkram_exit(void)
{
	unregister_filesystem(&pkram_type);
	unregister_reboot_notifier(&reboot_notifier);
	pkram_directory_exit();
	/* inodes are freed after a grace period */
	rcu_barrier();
	kmem_cache_destroy(inode_cache);
}

module_init(pkram_init);
module_exit(pkram_exit);
MODULE_DESCRIPTION("File system in ordinary memory whose saves outlive a kexec");
MODULE_LICENSE("GPL");
MODULE_ALIAS_FS("pkram");
