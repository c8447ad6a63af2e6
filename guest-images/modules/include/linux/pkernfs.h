/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef _LINUX_PKERNFS_H
#define _LINUX_PKERNFS_H

#include <linux/types.h>

/**
 * DOC: pkernfs for drivers
 *
 * A driver opens a file of the region by name and uses its memory as it is:
 * blocks of 2 MiB at a physical address that does not change until the file
 * goes, in this kernel and in the next. While a driver has a file open it can
 * be neither shortened nor removed, whoever tries gets EBUSY.
 *
 * All of it may sleep.
 */

struct pkernfs_file;

/**
 * struct pkernfs_memory - a piece of a file's memory
 * @address: where the kernel sees it; ordinary cached memory
 * @phys: its physical address, for a device
 * @bytes: how many follow, at most to the end of the block or of the file
 */
struct pkernfs_memory {
	void *address;
	phys_addr_t phys;
	size_t bytes;
};

struct pkernfs_file *pkernfs_open(const char *path, u64 size);
void pkernfs_close(struct pkernfs_file *file);
u64 pkernfs_size(struct pkernfs_file *file);
int pkernfs_get_memory(struct pkernfs_file *file, u64 offset,
		       struct pkernfs_memory *memory);

#endif /* _LINUX_PKERNFS_H */
