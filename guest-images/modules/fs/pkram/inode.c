// SPDX-License-Identifier: GPL-2.0-only
/*
 * Names: what libfs does in the dentry cache, and beside it a list of all nodes
 * with their names, from which a save is made.
 */

#include <linux/blk_types.h>
#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/stat.h>
#include <uapi/linux/pkram.h>

#include "internal.h"

static const struct inode_operations pkram_file_inode_operations;
static const struct inode_operations pkram_dir_inode_operations;
static const struct file_operations pkram_dir_operations;

static int pkram_getattr(struct mnt_idmap *idmap, const struct path *path, struct kstat *stat,
			 u32 request_mask, unsigned int flags)
{
	struct inode *inode = d_inode(path->dentry);

	generic_fillattr(idmap, request_mask, inode, stat);
	stat->blocks = READ_ONCE(pkram_node(inode)->pages) << (PAGE_SHIFT - SECTOR_SHIFT);
	return 0;
}

static int pkram_setattr(struct mnt_idmap *idmap, struct dentry *dentry, struct iattr *attr)
{
	struct inode *inode = d_inode(dentry);
	struct pkram_fs *fs = pkram_fs(inode);
	int err;

	err = setattr_prepare(idmap, dentry, attr);
	if (err)
		return err;
	if (attr->ia_valid & ATTR_SIZE) {
		err = pkram_set_size(inode, attr->ia_size);
		if (err)
			return err;
	}
	guard(mutex)(&fs->lock);
	if (attr->ia_valid & (ATTR_MODE | ATTR_UID | ATTR_GID | ATTR_MTIME_SET)) {
		err = pkram_change(fs, pkram_node(inode));
		if (err)
			return err;
	}
	setattr_copy(idmap, inode, attr);
	return 0;
}

static struct inode *new_node(struct super_block *sb, umode_t mode)
{
	struct inode *inode = new_inode(sb);

	if (!inode)
		return NULL;
	inode->i_ino = get_next_ino();
	inode->i_mode = mode;
	simple_inode_init_ts(inode);
	if (S_ISDIR(mode)) {
		inode->i_op = &pkram_dir_inode_operations;
		inode->i_fop = &pkram_dir_operations;
		set_nlink(inode, 2);
	} else {
		inode->i_op = &pkram_file_inode_operations;
		inode->i_fop = &pkram_file_operations;
	}
	return inode;
}

struct inode *pkram_new_root(struct super_block *sb)
{
	struct inode *inode = new_node(sb, S_IFDIR | 0700);
	struct pkram_fs *fs = sb->s_fs_info;

	if (inode)
		list_add(&pkram_node(inode)->list, &fs->nodes);
	return inode;
}

static void name_node(struct pkram_node *node, struct inode *dir, const char *name, size_t len)
{
	node->parent = pkram_node(dir);
	node->name_len = len;
	memset(node->name, 0, sizeof(node->name));
	memcpy(node->name, name, len);
}

/* It has a name no longer, so the next kernel does not get it. */
static int drop_node(struct pkram_fs *fs, struct inode *inode)
{
	struct pkram_node *node = pkram_node(inode);
	int err = pkram_change(fs, node);

	if (err)
		return err;
	pkram_unkeep(fs, node);
	list_del_init(&node->list);
	return 0;
}

void pkram_take_attributes(struct inode *inode, const struct pkram_inode *record)
{
	struct timespec64 mtime = {
		.tv_sec = le64_to_cpu(record->mtime_s),
		.tv_nsec = le32_to_cpu(record->mtime_ns),
	};

	inode->i_mode = le32_to_cpu(record->mode);
	i_uid_write(inode, le32_to_cpu(record->uid));
	i_gid_write(inode, le32_to_cpu(record->gid));
	i_size_write(inode, le64_to_cpu(record->size));
	inode_set_mtime_to_ts(inode, mtime);
	inode_set_ctime_to_ts(inode, mtime);
	inode_set_atime_to_ts(inode, mtime);
}

/**
 * pkram_add() - make the inode and the name that a record tells of
 * @sb: is being mounted
 * @record: has been checked
 * @parent: its directory
 * @result: has the name; the caller puts it
 *
 * Return: 0, -EEXIST or -ENOMEM.
 */
int pkram_add(struct super_block *sb, const struct pkram_inode *record, struct dentry *parent,
	      struct dentry **result)
{
	struct pkram_fs *fs = sb->s_fs_info;
	struct dentry *dentry;
	struct inode *inode;

	dentry = d_alloc_name(parent, record->name);
	if (!dentry)
		return -ENOMEM;
	*result = d_lookup(parent, &dentry->d_name);
	if (*result) {
		dput(*result);
		dput(dentry);
		return -EEXIST;
	}
	inode = new_node(sb, le32_to_cpu(record->mode));
	if (!inode) {
		dput(dentry);
		return -ENOMEM;
	}
	pkram_take_attributes(inode, record);
	if (S_ISDIR(inode->i_mode))
		inc_nlink(d_inode(parent));
	name_node(pkram_node(inode), d_inode(parent), record->name, record->name_len);
	list_add_tail(&pkram_node(inode)->list, &fs->nodes);
	d_make_persistent(dentry, inode);
	*result = dentry;
	return 0;
}

static int make_node(struct mnt_idmap *idmap, struct inode *dir, struct dentry *dentry,
		     umode_t mode)
{
	struct pkram_fs *fs = pkram_fs(dir);
	struct inode *inode;
	int err;

	if (dentry->d_name.len > PKRAM_FILE_NAME_MAX)
		return -ENAMETOOLONG;
	inode = new_node(dir->i_sb, mode);
	if (!inode)
		return -ENOMEM;
	inode_init_owner(idmap, inode, dir, mode);
	mutex_lock(&fs->lock);
	err = pkram_change(fs, pkram_node(dir));
	if (err) {
		mutex_unlock(&fs->lock);
		iput(inode);
		return err;
	}
	name_node(pkram_node(inode), dir, dentry->d_name.name, dentry->d_name.len);
	list_add_tail(&pkram_node(inode)->list, &fs->nodes);
	d_make_persistent(dentry, inode);
	inode_set_mtime_to_ts(dir, inode_set_ctime_current(dir));
	mutex_unlock(&fs->lock);
	return 0;
}

static int pkram_create(struct mnt_idmap *idmap, struct inode *dir, struct dentry *dentry,
			umode_t mode)
{
	return make_node(idmap, dir, dentry, mode | S_IFREG);
}

static struct dentry *pkram_mkdir(struct mnt_idmap *idmap, struct inode *dir,
				  struct dentry *dentry, umode_t mode)
{
	int err = make_node(idmap, dir, dentry, mode | S_IFDIR);

	if (!err)
		inc_nlink(dir);
	return ERR_PTR(err);
}

static int pkram_unlink(struct inode *dir, struct dentry *dentry)
{
	struct pkram_fs *fs = pkram_fs(dir);
	int err;

	guard(mutex)(&fs->lock);
	err = drop_node(fs, d_inode(dentry));
	return err ?: simple_unlink(dir, dentry);
}

static int pkram_rmdir(struct inode *dir, struct dentry *dentry)
{
	struct pkram_fs *fs = pkram_fs(dir);
	int err;

	if (!simple_empty(dentry))
		return -ENOTEMPTY;
	guard(mutex)(&fs->lock);
	err = drop_node(fs, d_inode(dentry));
	return err ?: simple_rmdir(dir, dentry);
}

static int pkram_rename(struct mnt_idmap *idmap, struct inode *old_dir,
			struct dentry *old_dentry, struct inode *new_dir,
			struct dentry *new_dentry, unsigned int flags)
{
	struct pkram_fs *fs = pkram_fs(old_dir);
	int err;

	if (flags & ~RENAME_NOREPLACE)
		return -EINVAL;
	if (new_dentry->d_name.len > PKRAM_FILE_NAME_MAX)
		return -ENAMETOOLONG;
	if (!simple_empty(new_dentry))
		return -ENOTEMPTY;
	guard(mutex)(&fs->lock);
	err = pkram_change(fs, pkram_node(d_inode(old_dentry)));
	if (!err && d_really_is_positive(new_dentry))
		err = drop_node(fs, d_inode(new_dentry));
	if (err)
		return err;
	name_node(pkram_node(d_inode(old_dentry)), new_dir, new_dentry->d_name.name,
		  new_dentry->d_name.len);
	return simple_rename(idmap, old_dir, old_dentry, new_dir, new_dentry, flags);
}

static long pkram_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct inode *inode = file_inode(file);
	struct pkram_fs *fs = pkram_fs(inode);

	if (cmd != PKRAM_SAVE && cmd != PKRAM_FORGET)
		return -ENOTTY;
	if (!capable(CAP_SYS_ADMIN))
		return -EPERM;
	if (inode != d_inode(inode->i_sb->s_root))
		return -EINVAL;
	if (cmd == PKRAM_SAVE)
		return pkram_save(fs);
	return pkram_forget(fs);
}

static const struct file_operations pkram_dir_operations = {
	.open		= dcache_dir_open,
	.release	= dcache_dir_close,
	.llseek		= dcache_dir_lseek,
	.read		= generic_read_dir,
	.iterate_shared	= dcache_readdir,
	.fsync		= noop_fsync,
	.unlocked_ioctl	= pkram_ioctl,
};

static const struct inode_operations pkram_file_inode_operations = {
	.getattr	= pkram_getattr,
	.setattr	= pkram_setattr,
};

static const struct inode_operations pkram_dir_inode_operations = {
	.create		= pkram_create,
	.lookup		= simple_lookup,
	.unlink		= pkram_unlink,
	.mkdir		= pkram_mkdir,
	.rmdir		= pkram_rmdir,
	.rename		= pkram_rename,
	.getattr	= pkram_getattr,
	.setattr	= pkram_setattr,
};
