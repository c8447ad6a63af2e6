/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Memory that outlives the kernel, for drivers.
 */
#ifndef _LINUX_LU_POOL_H
#define _LINUX_LU_POOL_H

#include <linux/types.h>

/**
 * struct lu_pool_range - the memory of an object
 * @phys:	physical address, aligned to 2 MiB
 * @bytes:	as was asked for
 * @vaddr:	the same memory in the kernel's address space
 */
struct lu_pool_range {
	phys_addr_t phys;
	u64 bytes;
	void *vaddr;
};

int lu_pool_alloc(const char *name, u64 bytes, struct lu_pool_range *range);
int lu_pool_get(const char *name, struct lu_pool_range *range);
int lu_pool_get_at(phys_addr_t phys, struct lu_pool_range *range);
void lu_pool_put(const struct lu_pool_range *range);
int lu_pool_free(const char *name);

#endif /* _LINUX_LU_POOL_H */
