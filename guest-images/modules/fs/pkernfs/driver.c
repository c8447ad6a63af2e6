// SPDX-License-Identifier: GPL-2.0-only
/*
 * For drivers: see include/linux/pkernfs.h.
 */

#include <linux/err.h>
#include <linux/fcntl.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/module.h>
#include <linux/mount.h>
#include <linux/path.h>
#include <linux/pkernfs.h>
#include <linux/slab.h>

#include "internal.h"

/**
 * struct pkernfs_file - a file that a driver has open
 * @file: keeps the inode and a mount of our own
 */
struct pkernfs_file {
	struct file *file;
};

/* one mount for all drivers, for as long as one of them has something open */
static struct vfsmount *mount;
static int mount_users;

static struct file *open_file(const char *path, u64 size)
{
	int flags = O_RDWR | O_LARGEFILE | (size ? O_CREAT : 0);
	struct path root = { .mnt = mount, .dentry = mount->mnt_root };
	struct file *file;
	int err = 0;

	file = file_open_root(&root, path, flags, 0600);
	if (IS_ERR(file))
		return file;
	if (file->f_op != &pkernfs_file_operations)
		err = -EISDIR;
	else if (size)
		err = vfs_fallocate(file, 0, 0, size);
	if (err) {
		fput(file);
		return ERR_PTR(err);
	}
	return file;
}

/**
 * pkernfs_open() - open a file of the region, whether it is mounted or not
 * @path: from the root of the file system; its directory must exist
 * @size: at least so many bytes are to be there, and if need be the file is
 *        made; 0: it has to exist
 *
 * With the credentials of the caller.
 *
 * Return: the file, or an ERR_PTR(): -ENOENT, -ENOSPC, -EUCLEAN if the region
 * is not fit to be used.
 */
struct pkernfs_file *pkernfs_open(const char *path, u64 size)
{
	struct pkernfs_file *file;
	struct inode *inode;
	int err;

	file = kzalloc_obj(*file);
	if (!file)
		return ERR_PTR(-ENOMEM);
	err = simple_pin_fs(&pkernfs_type, &mount, &mount_users);
	if (err)
		goto err_free;
	file->file = open_file(path, size);
	if (IS_ERR(file->file)) {
		err = PTR_ERR(file->file);
		goto err_unpin;
	}
	inode = file_inode(file->file);
	inode_lock(inode);
	pkernfs_info(inode)->drivers++;
	/* somebody may have been faster */
	if (!inode->i_nlink || i_size_read(inode) < size)
		err = -ESTALE;
	inode_unlock(inode);
	if (err) {
		pkernfs_close(file);
		return ERR_PTR(err);
	}
	return file;

err_unpin:
	simple_release_fs(&mount, &mount_users);
err_free:
	kfree(file);
	return ERR_PTR(err);
}
EXPORT_SYMBOL_GPL(pkernfs_open);

/**
 * pkernfs_close() - have done with a file; it stays, for whoever comes next
 * @file: from pkernfs_open()
 */
void pkernfs_close(struct pkernfs_file *file)
{
	struct inode *inode = file_inode(file->file);

	inode_lock(inode);
	pkernfs_info(inode)->drivers--;
	inode_unlock(inode);
	fput(file->file);
	simple_release_fs(&mount, &mount_users);
	kfree(file);
}
EXPORT_SYMBOL_GPL(pkernfs_close);

/**
 * pkernfs_size() - return how long a file is
 * @file: from pkernfs_open()
 *
 * It may get longer, but not shorter.
 */
u64 pkernfs_size(struct pkernfs_file *file)
{
	return i_size_read(file_inode(file->file));
}
EXPORT_SYMBOL_GPL(pkernfs_size);

/**
 * pkernfs_get_memory() - find the memory of a part of a file
 * @file: from pkernfs_open(); what is found is there until pkernfs_close()
 * @offset: into the file
 * @memory: result; to go on, ask again at @offset + &pkernfs_memory.bytes
 *
 * Return: 0; -ERANGE at and behind the end; -ENODATA in a hole.
 */
int pkernfs_get_memory(struct pkernfs_file *file, u64 offset,
		       struct pkernfs_memory *memory)
{
	struct inode *inode = file_inode(file->file);
	struct pkernfs_meta *meta = pkernfs_meta_of(inode);
	u64 size = i_size_read(inode);
	u64 within = offset & (PKERNFS_BLOCK_SIZE - 1);
	void *entry;

	if (offset >= size)
		return -ERANGE;
	entry = xa_load(&pkernfs_node(meta, inode->i_ino)->blocks,
			offset >> PKERNFS_BLOCK_SHIFT);
	if (!entry)
		return -ENODATA;
	memory->address = pkernfs_block_address(meta, xa_to_value(entry)) + within;
	memory->phys = meta->start + (memory->address - meta->base);
	memory->bytes = min(PKERNFS_BLOCK_SIZE - within, size - offset);
	return 0;
}
EXPORT_SYMBOL_GPL(pkernfs_get_memory);
