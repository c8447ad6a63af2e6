// SPDX-License-Identifier: GPL-2.0-only
/*
 * Names: what libfs does in the dentry cache, and a record in the region for
 * each of it. The record comes first, so that nobody has seen what an unclean
 * jump could undo.
 */

#include <linux/blk_types.h>
#include <linux/fs.h>
#include <linux/stat.h>

#include "internal.h"

static const struct inode_operations pkernfs_dir_inode_operations;

/* Make the record of an inode what the VFS has of it, but for its name. */
static void fill_record(struct inode *inode, struct pkernfs_inode *record)
{
	struct timespec64 mtime = inode_get_mtime(inode);

	record->ino = cpu_to_le32(inode->i_ino);
	record->mode = cpu_to_le32(inode->i_mode);
	record->uid = cpu_to_le32(i_uid_read(inode));
	record->gid = cpu_to_le32(i_gid_read(inode));
	record->size = cpu_to_le64(S_ISREG(inode->i_mode) ? i_size_read(inode) : 0);
	record->mtime_s = cpu_to_le64(mtime.tv_sec);
	record->mtime_ns = cpu_to_le32(mtime.tv_nsec);
}

static void fill_name(struct pkernfs_inode *record, const struct inode *dir,
		      const struct dentry *dentry)
{
	record->parent = cpu_to_le32(dir->i_ino);
	record->name_len = dentry->d_name.len;
	memset(record->name, 0, sizeof(record->name));
	memcpy(record->name, dentry->d_name.name, dentry->d_name.len);
}

/**
 * pkernfs_store_inode() - have the region know of size, owner, mode and time
 * @inode: its name stays what it is
 */
void pkernfs_store_inode(struct inode *inode)
{
	struct pkernfs_meta *meta = pkernfs_meta_of(inode);
	struct pkernfs_inode record;

	pkernfs_meta_get(meta, inode->i_ino, &record);
	fill_record(inode, &record);
	pkernfs_meta_put(meta, &record);
}

static void store_orphan(struct inode *inode)
{
	struct pkernfs_meta *meta = pkernfs_meta_of(inode);
	struct pkernfs_inode record;

	pkernfs_meta_get(meta, inode->i_ino, &record);
	record.flags |= cpu_to_le32(PKERNFS_ORPHAN);
	pkernfs_meta_put(meta, &record);
}

int pkernfs_getattr(struct mnt_idmap *idmap, const struct path *path,
		    struct kstat *stat, u32 request_mask, unsigned int flags)
{
	struct inode *inode = d_inode(path->dentry);
	struct pkernfs_meta *meta = pkernfs_meta_of(inode);

	generic_fillattr(idmap, request_mask, inode, stat);
	stat->blksize = PKERNFS_BLOCK_SIZE;
	stat->blocks = READ_ONCE(pkernfs_node(meta, inode->i_ino)->count)
		       << (PKERNFS_BLOCK_SHIFT - SECTOR_SHIFT);
	return 0;
}

static int pkernfs_setattr(struct mnt_idmap *idmap, struct dentry *dentry,
			   struct iattr *attr)
{
	struct inode *inode = d_inode(dentry);
	int err;

	err = setattr_prepare(idmap, dentry, attr);
	if (err)
		return err;
	if (attr->ia_valid & ATTR_SIZE) {
		err = pkernfs_set_size(inode, attr->ia_size);
		if (err)
			return err;
	}
	setattr_copy(idmap, inode, attr);
	pkernfs_store_inode(inode);
	return 0;
}

const struct inode_operations pkernfs_file_inode_operations = {
	.getattr	= pkernfs_getattr,
	.setattr	= pkernfs_setattr,
};

static void set_operations(struct inode *inode)
{
	if (S_ISDIR(inode->i_mode)) {
		inode->i_op = &pkernfs_dir_inode_operations;
		inode->i_fop = &simple_dir_operations;
		set_nlink(inode, 2);
	} else {
		inode->i_op = &pkernfs_file_inode_operations;
		inode->i_fop = &pkernfs_file_operations;
	}
}

/**
 * pkernfs_iget() - make the VFS's inode of one that is in the region
 * @sb: where
 * @ino: its number; nobody has made one of it yet
 *
 * Return: the inode, or NULL if there is no memory.
 */
struct inode *pkernfs_iget(struct super_block *sb, u32 ino)
{
	struct pkernfs_inode record;
	struct timespec64 mtime;
	struct inode *inode;

	inode = new_inode(sb);
	if (!inode)
		return NULL;
	pkernfs_meta_get(sb->s_fs_info, ino, &record);
	inode->i_ino = ino;
	inode->i_mode = le32_to_cpu(record.mode);
	i_uid_write(inode, le32_to_cpu(record.uid));
	i_gid_write(inode, le32_to_cpu(record.gid));
	i_size_write(inode, le64_to_cpu(record.size));
	mtime.tv_sec = le64_to_cpu(record.mtime_s);
	mtime.tv_nsec = le32_to_cpu(record.mtime_ns);
	inode_set_mtime_to_ts(inode, mtime);
	inode_set_ctime_to_ts(inode, mtime);
	inode_set_atime_to_ts(inode, mtime);
	set_operations(inode);
	return inode;
}

static int make_inode(struct mnt_idmap *idmap, struct inode *dir,
		      struct dentry *dentry, umode_t mode)
{
	struct pkernfs_meta *meta = pkernfs_meta_of(dir);
	struct pkernfs_inode record = {};
	struct inode *inode;
	u32 ino;

	if (dentry->d_name.len > PKERNFS_NAME_MAX)
		return -ENAMETOOLONG;
	inode = new_inode(dir->i_sb);
	if (!inode)
		return -ENOMEM;
	ino = pkernfs_meta_new_inode(meta);
	if (!ino) {
		iput(inode);
		return -ENOSPC;
	}
	inode->i_ino = ino;
	inode_init_owner(idmap, inode, dir, mode);
	simple_inode_init_ts(inode);
	set_operations(inode);
	fill_record(inode, &record);
	fill_name(&record, dir, dentry);
	pkernfs_meta_put(meta, &record);
	d_make_persistent(dentry, inode);
	inode_set_mtime_to_ts(dir, inode_set_ctime_current(dir));
	pkernfs_store_inode(dir);
	return 0;
}

static int pkernfs_create(struct mnt_idmap *idmap, struct inode *dir,
			  struct dentry *dentry, umode_t mode)
{
	return make_inode(idmap, dir, dentry, mode | S_IFREG);
}

static struct dentry *pkernfs_mkdir(struct mnt_idmap *idmap, struct inode *dir,
				    struct dentry *dentry, umode_t mode)
{
	int err = make_inode(idmap, dir, dentry, mode | S_IFDIR);

	if (!err)
		inc_nlink(dir);
	return ERR_PTR(err);
}

/* A driver's memory may be under DMA that goes on: its file stays. */
static bool is_driven(const struct dentry *dentry)
{
	struct inode *inode = d_inode(dentry);

	return inode && pkernfs_info(inode)->drivers;
}

static int pkernfs_unlink(struct inode *dir, struct dentry *dentry)
{
	if (is_driven(dentry))
		return -EBUSY;
	store_orphan(d_inode(dentry));
	simple_unlink(dir, dentry);
	pkernfs_store_inode(dir);
	return 0;
}

static int pkernfs_rmdir(struct inode *dir, struct dentry *dentry)
{
	if (!simple_empty(dentry))
		return -ENOTEMPTY;
	store_orphan(d_inode(dentry));
	/* libfs counts it down to 0 links, then it is reaped */
	return simple_rmdir(dir, dentry);
}

static int pkernfs_rename(struct mnt_idmap *idmap, struct inode *old_dir,
			  struct dentry *old_dentry, struct inode *new_dir,
			  struct dentry *new_dentry, unsigned int flags)
{
	struct inode *inode = d_inode(old_dentry);
	struct pkernfs_meta *meta = pkernfs_meta_of(inode);
	struct pkernfs_inode record;

	if (flags & ~RENAME_NOREPLACE)
		return -EINVAL;
	if (new_dentry->d_name.len > PKERNFS_NAME_MAX)
		return -ENAMETOOLONG;
	if (is_driven(new_dentry))
		return -EBUSY;
	if (!simple_empty(new_dentry))
		return -ENOTEMPTY;

	pkernfs_meta_get(meta, inode->i_ino, &record);
	fill_name(&record, new_dir, new_dentry);
	pkernfs_meta_put(meta, &record);
	if (d_really_is_positive(new_dentry))
		store_orphan(d_inode(new_dentry));
	return simple_rename(idmap, old_dir, old_dentry, new_dir, new_dentry,
			     flags);
}

static const struct inode_operations pkernfs_dir_inode_operations = {
	.create		= pkernfs_create,
	.lookup		= simple_lookup,
	.unlink		= pkernfs_unlink,
	.mkdir		= pkernfs_mkdir,
	.rmdir		= pkernfs_rmdir,
	.rename		= pkernfs_rename,
	.getattr	= pkernfs_getattr,
	.setattr	= pkernfs_setattr,
};
