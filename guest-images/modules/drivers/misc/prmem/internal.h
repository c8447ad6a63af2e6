/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef _PRMEM_INTERNAL_H
#define _PRMEM_INTERNAL_H

#include <linux/kho/abi/prmem.h>
#include <linux/miscdevice.h>
#include <linux/prmem.h>
#include <linux/rwsem.h>
#include <linux/types.h>
#include <uapi/linux/prmem.h>

static_assert(PRMEM_UAPI_NAME_LEN == PRMEM_NAME_LEN);
/* offset of an instance in the device: its slot, as long as this kernel runs */
#define PRMEM_SLOT_SHIFT	40
#define PRMEM_SLOTS_MAX		BIT(22)

/* runs.c: the allocator; the caller does the locking */

/**
 * struct prmem_run - folios of one size, one behind the other
 * @index:	of the first page in the instance
 * @pfn:	of the first page
 * @order:	of each folio
 * @count:	how many
 */
struct prmem_run {
	u64 index;
	unsigned long pfn;
	u32 order;
	u32 count;
};

/**
 * struct prmem_runs - memory of an instance
 * @run:	in the order of their pages, without gaps
 * @nr:		how many
 * @room:	for how many @run has memory
 * @pages:	in all
 */
struct prmem_runs {
	struct prmem_run *run;
	u32 nr;
	u32 room;
	u64 pages;
};

int prmem_runs_add(struct prmem_runs *runs, unsigned long pfn, u32 order);
int prmem_runs_grow(struct prmem_runs *runs, u64 pages);
void prmem_runs_trim(struct prmem_runs *runs, u64 pages);
void prmem_runs_free(struct prmem_runs *runs);
struct page *prmem_runs_page(const struct prmem_runs *runs, u64 index);

/* meta.c: what the next kernel reads; the caller does the locking */

/**
 * struct prmem_record - an instance as its record tells it
 * @bytes:	what the owner asked for
 * @flags:	PRMEM_F_*
 * @content_crc: of a sealed instance
 * @runs:	its memory
 */
struct prmem_record {
	u64 bytes;
	u32 flags;
	u32 content_crc;
	struct prmem_runs runs;
};

void prmem_root_format(struct prmem_root *root);
void prmem_root_sign(struct prmem_root *root);
int prmem_root_check(const struct prmem_root *root, const char **reason);
int prmem_root_find(const struct prmem_root *root, const char *name);
int prmem_root_add(struct prmem_root *root, const char *name, u64 value);
void prmem_root_remove(struct prmem_root *root, u32 at);
u32 prmem_nodes_for(u32 nr_extents);
void prmem_head_write(struct prmem_head *head, const struct prmem_record *record,
		      struct prmem_ref *ref);
int prmem_head_check(const struct prmem_ref *ref, const char **reason);
int prmem_heads_check(const struct prmem_root *root, const char **reason);
int prmem_head_read(const struct prmem_head *head, struct prmem_record *record,
		    int (*take)(struct prmem_runs *runs, u64 phys, u32 order));

/* core.c */

/**
 * struct prmem_instance - an instance of this kernel, or one that it took over
 * @at:		its entry in the root
 * @slot:	its place in the device
 * @users:	mappings and drivers that use it
 * @head:	its record, NULL when it is refused
 * @nr_nodes:	nodes that the record has
 * @record:	what is in the record
 * @reason:	why it is refused, or NULL
 */
struct prmem_instance {
	u32 at;
	u32 slot;
	u32 users;
	struct prmem_head *head;
	u32 nr_nodes;
	struct prmem_record record;
	const char *reason;
};

extern struct miscdevice prmem_miscdev;

int prmem_do_create(struct prmem_info *info);
int prmem_do_info(struct prmem_info *info);
int prmem_do_free(const char *name);
int prmem_do_grow(struct prmem_info *info);
int prmem_do_set_value(struct prmem_info *info);
int prmem_do_seal(const char *name);
int prmem_do_verify(const char *name);
int prmem_do_list(struct prmem_list *list);
void prmem_do_stat(struct prmem_stat *stat);
int prmem_do_release(void);
struct prmem_instance *prmem_use(u64 offset, u64 bytes);
void prmem_reuse(struct prmem_instance *instance);

#endif /* _PRMEM_INTERNAL_H */
