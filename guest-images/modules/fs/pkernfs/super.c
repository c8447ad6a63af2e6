// SPDX-License-Identifier: GPL-2.0-only
/*
 * Mounting: all names are in the dentry cache for as long as it is mounted, as
 * with ramfs; there are few of them, and no lookup has to read the region.
 */

#include <linux/dcache.h>
#include <linux/fs_context.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/statfs.h>

#include "internal.h"

/* of the file system as statfs(2) says it: "PKFS" */
#define PKERNFS_SUPER_MAGIC 0x53464b50

static struct kmem_cache *inode_cache;

static struct inode *pkernfs_alloc_inode(struct super_block *sb)
{
	struct pkernfs_inode_info *info;

	info = alloc_inode_sb(sb, inode_cache, GFP_KERNEL);
	if (!info)
		return NULL;
	info->drivers = 0;
	return &info->vfs;
}

static void pkernfs_free_inode(struct inode *inode)
{
	kmem_cache_free(inode_cache, pkernfs_info(inode));
}

/* The last user of a file without a name is gone: so are its mappings. */
static void pkernfs_evict_inode(struct inode *inode)
{
	truncate_inode_pages_final(&inode->i_data);
	clear_inode(inode);
	if (!inode->i_nlink)
		pkernfs_meta_reap(pkernfs_meta_of(inode), inode->i_ino);
}

static int pkernfs_statfs(struct dentry *dentry, struct kstatfs *buf)
{
	struct pkernfs_meta *meta = dentry->d_sb->s_fs_info;

	buf->f_type = PKERNFS_SUPER_MAGIC;
	buf->f_bsize = PKERNFS_BLOCK_SIZE;
	buf->f_namelen = PKERNFS_NAME_MAX;
	buf->f_blocks = meta->layout.block_count;
	buf->f_bfree = pkernfs_meta_available(meta);
	buf->f_bavail = buf->f_bfree;
	buf->f_files = meta->layout.inode_count;
	buf->f_ffree = READ_ONCE(meta->free_inodes);
	return 0;
}

static int pkernfs_sync_fs(struct super_block *sb, int wait)
{
	if (wait)
		pkernfs_meta_commit(sb->s_fs_info);
	return 0;
}

static void pkernfs_put_super(struct super_block *sb)
{
	pkernfs_region_unmount(sb->s_fs_info);
}

static const struct super_operations pkernfs_super_operations = {
	.alloc_inode	= pkernfs_alloc_inode,
	.free_inode	= pkernfs_free_inode,
	.drop_inode	= inode_just_drop,
	.evict_inode	= pkernfs_evict_inode,
	.statfs		= pkernfs_statfs,
	.sync_fs	= pkernfs_sync_fs,
	.put_super	= pkernfs_put_super,
};

/* Hang one name into the tree; its directory is there already. */
static struct dentry *add_name(struct super_block *sb, u32 ino,
			       struct dentry *parent)
{
	struct pkernfs_inode record;
	struct dentry *dentry;
	struct inode *inode;

	pkernfs_meta_get(sb->s_fs_info, ino, &record);
	dentry = d_alloc_name(parent, record.name);
	if (!dentry)
		return ERR_PTR(-ENOMEM);
	inode = pkernfs_iget(sb, ino);
	if (!inode) {
		dput(dentry);
		return ERR_PTR(-ENOMEM);
	}
	if (S_ISDIR(inode->i_mode))
		inc_nlink(d_inode(parent));
	d_make_persistent(dentry, inode);
	dput(dentry);
	return dentry;
}

/*
 * pkernfs_meta_load() has seen to it that every name leads to the root, so
 * going round until all have their place ends, after as many rounds as the
 * tree is deep; usually one or two.
 */
static int add_names(struct super_block *sb)
{
	struct pkernfs_meta *meta = sb->s_fs_info;
	u32 count = meta->layout.inode_count;
	struct pkernfs_inode record;
	struct dentry **dentries;
	struct dentry *dentry;
	u32 ino, parent;
	bool again = true;
	int err = 0;

	dentries = kvcalloc(count + 1, sizeof(struct dentry *), GFP_KERNEL);
	if (!dentries)
		return -ENOMEM;
	dentries[PKERNFS_ROOT] = sb->s_root;
	while (again) {
		again = false;
		for (ino = PKERNFS_ROOT + 1; ino <= count; ino++) {
			if (dentries[ino] || !pkernfs_node(meta, ino)->used)
				continue;
			pkernfs_meta_get(meta, ino, &record);
			parent = le32_to_cpu(record.parent);
			if (le32_to_cpu(record.flags) & PKERNFS_ORPHAN ||
			    !dentries[parent])
				continue;
			dentry = add_name(sb, ino, dentries[parent]);
			if (IS_ERR(dentry)) {
				err = PTR_ERR(dentry);
				goto out;
			}
			dentries[ino] = dentry;
			again = true;
		}
	}
out:
	kvfree(dentries);
	return err;
}

static int pkernfs_fill_super(struct super_block *sb, struct fs_context *fc)
{
	struct pkernfs_meta *meta = pkernfs_region_mount();
	struct inode *root;

	if (IS_ERR(meta))
		return PTR_ERR(meta);
	sb->s_fs_info = meta;
	sb->s_magic = PKERNFS_SUPER_MAGIC;
	sb->s_maxbytes = PKERNFS_MAX_FILE;
	sb->s_blocksize = PAGE_SIZE;
	sb->s_blocksize_bits = PAGE_SHIFT;
	sb->s_time_gran = 1;
	sb->s_time_min = 0;
	sb->s_time_max = S64_MAX / NSEC_PER_SEC;
	sb->s_flags |= SB_NOATIME;
	sb->s_op = &pkernfs_super_operations;
	root = pkernfs_iget(sb, PKERNFS_ROOT);
	sb->s_root = d_make_root(root);
	if (!sb->s_root) {
		/* without a root there is no ->put_super() */
		pkernfs_region_unmount(meta);
		return -ENOMEM;
	}
	return add_names(sb);
}

static int pkernfs_get_tree(struct fs_context *fc)
{
	if (fc->sb_flags & SB_RDONLY)
		return invalf(fc, "pkernfs: cannot be mounted read-only");
	return get_tree_single(fc, pkernfs_fill_super);
}

static const struct fs_context_operations pkernfs_context_ops = {
	.get_tree	= pkernfs_get_tree,
};

static int pkernfs_init_fs_context(struct fs_context *fc)
{
	fc->ops = &pkernfs_context_ops;
	return 0;
}

struct file_system_type pkernfs_type = {
	.owner			= THIS_MODULE,
	.name			= "pkernfs",
	.init_fs_context	= pkernfs_init_fs_context,
	.kill_sb		= kill_anon_super,
};

static void init_once(void *object)
{
	struct pkernfs_inode_info *info = object;

	inode_init_once(&info->vfs);
}

int pkernfs_super_init(void)
{
	int err;

	inode_cache = kmem_cache_create("pkernfs_inode",
					sizeof(struct pkernfs_inode_info), 0,
					SLAB_RECLAIM_ACCOUNT | SLAB_ACCOUNT,
					init_once);
	if (!inode_cache)
		return -ENOMEM;
	err = register_filesystem(&pkernfs_type);
	if (err)
		kmem_cache_destroy(inode_cache);
	return err;
}

void pkernfs_super_exit(void)
{
	unregister_filesystem(&pkernfs_type);
	/* inodes are freed after a grace period */
	rcu_barrier();
	kmem_cache_destroy(inode_cache);
}
