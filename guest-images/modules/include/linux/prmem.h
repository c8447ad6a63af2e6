/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Memory that outlives the kernel and grows with use, for drivers.
 */
#ifndef _LINUX_PRMEM_H
#define _LINUX_PRMEM_H

#include <linux/types.h>

struct page;
struct prmem_instance;

struct prmem_instance *prmem_create(const char *name, u64 bytes);
struct prmem_instance *prmem_get(const char *name);
void prmem_put(struct prmem_instance *instance);
int prmem_grow(struct prmem_instance *instance, u64 bytes);
int prmem_free(const char *name);

u64 prmem_bytes(struct prmem_instance *instance);
struct page *prmem_page(struct prmem_instance *instance, pgoff_t index);
int prmem_set_value(struct prmem_instance *instance, u64 value);
u64 prmem_value(struct prmem_instance *instance);

#endif /* _LINUX_PRMEM_H */
