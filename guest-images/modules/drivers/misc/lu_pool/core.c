// SPDX-License-Identifier: GPL-2.0-only
/*
 * A pool of memory that outlives the kernel.
 */
/**
 * DOC: lu_pool
 *
 * Memory is set aside at boot, this module cuts it into objects with names,
 * and the next kernel finds them again. There are two ways to set it aside:
 *
 * * ``memmap=SIZE$START`` on the command line of both kernels, told to the
 *   module as ``start=`` and ``size=``. Nobody else knows of that memory: it
 *   has no struct pages and is not in the direct map, and it needs no KHO.
 * * ``reserve_mem=SIZE:ALIGN:NAME``, told as ``reserve=NAME``. The kernel
 *   chooses the place and, where there is KHO, finds it again.
 *
 * Whatever the region holds is checked as a whole when the module is loaded.
 * If it is blank, the first allocation formats it. If it cannot be believed,
 * the pool says why and does nothing, until somebody asks for it to be
 * released. Objects that nobody asks for stay where they are.
 *
 * From the reboot notifier on nothing changes any more, so that no kernel is
 * left in the middle of a change.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/crc32c.h>
#include <linux/io.h>
#include <linux/ioport.h>
#include <linux/memblock.h>
#include <linux/module.h>
#include <linux/overflow.h>
#include <linux/reboot.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "internal.h"

static unsigned long long start;
module_param(start, ullong, 0444);
MODULE_PARM_DESC(start, "physical address of the region");

static unsigned long long size;
module_param(size, ullong, 0444);
MODULE_PARM_DESC(size, "bytes of the region");

static char *reserve;
module_param(reserve, charp, 0444);
MODULE_PARM_DESC(reserve, "name of a reservation made with reserve_mem=, in place of start and size");

struct lu_pool lu_pool = {
	.lock = __MUTEX_INITIALIZER(lu_pool.lock),
};

static u64 offset_of(const struct lu_pool_entry *entry)
{
	return (u64)le32_to_cpu(entry->first_block) << LU_POOL_BLOCK_SHIFT;
}

static void *content_of(const struct lu_pool_entry *entry)
{
	return lu_pool.base + offset_of(entry);
}

static u32 *users_of(const struct lu_pool_entry *entry)
{
	return &lu_pool.users[le32_to_cpu(entry->first_block)];
}

static u32 content_crc(const struct lu_pool_entry *entry)
{
	return ~crc32c(~0, content_of(entry), le64_to_cpu(entry->bytes));
}

/* Whether objects can be used; -EUCLEAN and a reason in the log: they cannot. */
static int check_state(void)
{
	lockdep_assert_held(&lu_pool.lock);
	return lu_pool.state == LU_POOL_STATE_REFUSED ? -EUCLEAN : 0;
}

static int check_changes(void)
{
	return lu_pool.leaving ? -ESHUTDOWN : check_state();
}

/* Sets @entry to the object of that name; the caller holds the lock. */
static int find(const char *name, struct lu_pool_entry **entry)
{
	int err = check_state();

	if (err)
		return err;
	*entry = lu_pool.state == LU_POOL_STATE_READY ? lu_pool_table_find(lu_pool.table, name) :
							NULL;
	return *entry ? 0 : -ENOENT;
}

/* Take blocks that nothing tells of yet; they stay this caller's without the lock. */
static int reserve_blocks(const char *name, u64 bytes, u64 *count, u32 *first)
{
	int err;

	guard(mutex)(&lu_pool.lock);
	err = check_changes();
	if (err)
		return err;
	if (!bytes)
		return -EINVAL;
	if (bytes > lu_pool.size)
		return -ENOSPC;
	if (lu_pool.state == LU_POOL_STATE_READY && lu_pool_table_find(lu_pool.table, name))
		return -EEXIST;
	*count = DIV_ROUND_UP_ULL(bytes, LU_POOL_BLOCK_SIZE);
	err = lu_pool_bitmap_alloc(&lu_pool.map, *count, first);
	if (!err)
		lu_pool.zeroing++;
	return err;
}

/* Nobody gets to see what was there before. Takes seconds where there is much of it. */
static void zero_blocks(u64 count, u32 first)
{
	for (; count--; first++) {
		memset(lu_pool.base + ((u64)first << LU_POOL_BLOCK_SHIFT), 0, LU_POOL_BLOCK_SIZE);
		cond_resched();
	}
}

/* Let the table tell of an object; the caller holds the lock. */
static int add_object(const char *name, u64 bytes, u64 count, u32 first,
		      struct lu_pool_entry **entry)
{
	int err;

	lockdep_assert_held(&lu_pool.lock);
	lu_pool.zeroing--;
	err = check_changes();
	if (!err && lu_pool.state == LU_POOL_STATE_BLANK) {
		lu_pool_table_format(lu_pool.table, lu_pool.size);
		lu_pool.state = LU_POOL_STATE_READY;
	}
	if (!err)
		err = lu_pool_table_add(lu_pool.table, name, first, count, bytes);
	if (err) {
		lu_pool_bitmap_free(&lu_pool.map, first, count);
		return err;
	}
	*entry = lu_pool_table_find(lu_pool.table, name);
	return 0;
}

static void describe(const struct lu_pool_entry *entry, struct lu_pool_object *object)
{
	strscpy_pad(object->name, entry->name);
	object->bytes = le64_to_cpu(entry->bytes);
	object->offset = offset_of(entry);
	object->flags = le32_to_cpu(entry->flags) & LU_POOL_F_SEALED ? LU_POOL_OBJECT_SEALED : 0;
	object->users = *users_of(entry);
}

int lu_pool_do_alloc(struct lu_pool_object *object)
{
	struct lu_pool_entry *entry;
	u64 count;
	u32 first;
	int err;

	err = reserve_blocks(object->name, object->bytes, &count, &first);
	if (err)
		return err;
	zero_blocks(count, first);
	guard(mutex)(&lu_pool.lock);
	err = add_object(object->name, object->bytes, count, first, &entry);
	if (!err)
		describe(entry, object);
	return err;
}

int lu_pool_do_info(struct lu_pool_object *object)
{
	struct lu_pool_entry *entry;
	int err;

	guard(mutex)(&lu_pool.lock);
	err = find(object->name, &entry);
	if (!err)
		describe(entry, object);
	return err;
}

int lu_pool_do_free(const char *name)
{
	struct lu_pool_entry *entry;
	int err;

	guard(mutex)(&lu_pool.lock);
	err = check_changes();
	if (!err)
		err = find(name, &entry);
	if (err)
		return err;
	if (*users_of(entry))
		return -EBUSY;
	lu_pool_bitmap_free(&lu_pool.map, le32_to_cpu(entry->first_block),
			    le32_to_cpu(entry->nr_blocks));
	lu_pool_table_remove(lu_pool.table, entry);
	return 0;
}

/* Note that the content is final. Sealing anew is fine: the last word counts. */
int lu_pool_do_seal(const char *name)
{
	struct lu_pool_entry *entry;
	int err;

	guard(mutex)(&lu_pool.lock);
	err = check_changes();
	if (!err)
		err = find(name, &entry);
	if (!err)
		lu_pool_table_seal(lu_pool.table, entry, content_crc(entry));
	return err;
}

int lu_pool_do_verify(const char *name)
{
	struct lu_pool_entry *entry;
	int err;

	guard(mutex)(&lu_pool.lock);
	err = find(name, &entry);
	if (err)
		return err;
	if (!(le32_to_cpu(entry->flags) & LU_POOL_F_SEALED))
		return -ENODATA;
	return content_crc(entry) == le32_to_cpu(entry->content_crc) ? 0 : -EBADMSG;
}

int lu_pool_do_list(struct lu_pool_list *list)
{
	int err;

	guard(mutex)(&lu_pool.lock);
	err = check_state();
	if (err)
		return err;
	if (lu_pool.state != LU_POOL_STATE_READY ||
	    list->index >= le32_to_cpu(lu_pool.table->super.nr_objects))
		return -ENOENT;
	describe(&lu_pool.table->entries[list->index], &list->object);
	return 0;
}

void lu_pool_do_stat(struct lu_pool_stat *stat)
{
	guard(mutex)(&lu_pool.lock);
	stat->state = lu_pool.state;
	stat->start = lu_pool.start;
	stat->size = lu_pool.size;
	if (lu_pool.state == LU_POOL_STATE_REFUSED) {
		strscpy_pad(stat->reason, lu_pool.reason);
		return;
	}
	stat->free = (u64)lu_pool_bitmap_nr_free(&lu_pool.map) << LU_POOL_BLOCK_SHIFT;
	stat->largest = (u64)lu_pool_bitmap_largest(&lu_pool.map) << LU_POOL_BLOCK_SHIFT;
	if (lu_pool.state == LU_POOL_STATE_READY) {
		stat->nr_objects = le32_to_cpu(lu_pool.table->super.nr_objects);
		stat->sequence = le64_to_cpu(lu_pool.table->super.sequence);
		stat->meta = lu_pool_table_bytes(lu_pool.table);
	}
}

/* Forget all that is there: the one way out of LU_POOL_STATE_REFUSED. */
int lu_pool_do_release(void)
{
	u32 i;

	guard(mutex)(&lu_pool.lock);
	if (lu_pool.leaving)
		return -ESHUTDOWN;
	if (lu_pool.zeroing)
		return -EBUSY;
	for (i = 0; i < lu_pool.map.nr; i++)
		if (lu_pool.users[i])
			return -EBUSY;
	memset(lu_pool.table, 0, sizeof(*lu_pool.table));
	lu_pool_bitmap_free(&lu_pool.map, 1, lu_pool.map.nr - 1);
	lu_pool.state = LU_POOL_STATE_BLANK;
	lu_pool.reason = NULL;
	pr_info("released on request\n");
	return 0;
}

/**
 * lu_pool_use() - begin to use memory of an object
 * @offset:	first byte, in the region
 * @bytes:	how many, in whole pages
 *
 * Return: 0, -EINVAL when this is not within one object, -EUCLEAN.
 */
int lu_pool_use(u64 offset, u64 bytes)
{
	struct lu_pool_entry *entry;
	u64 end, last;
	int err;

	guard(mutex)(&lu_pool.lock);
	err = check_state();
	if (err)
		return err;
	if (lu_pool.state != LU_POOL_STATE_READY || !bytes ||
	    check_add_overflow(offset, bytes, &end) || end > lu_pool.size)
		return -EINVAL;
	entry = lu_pool_table_at(lu_pool.table, offset >> LU_POOL_BLOCK_SHIFT);
	if (!entry)
		return -EINVAL;
	last = offset_of(entry) + PAGE_ALIGN(le64_to_cpu(entry->bytes));
	if (end > last)
		return -EINVAL;
	(*users_of(entry))++;
	return 0;
}

/* One more user of an object that has one; @offset is anywhere in it. */
void lu_pool_reuse(u64 offset)
{
	struct lu_pool_entry *entry;

	guard(mutex)(&lu_pool.lock);
	entry = lu_pool_table_at(lu_pool.table, offset >> LU_POOL_BLOCK_SHIFT);
	if (!WARN_ON_ONCE(!entry))
		(*users_of(entry))++;
}

void lu_pool_unuse(u64 offset)
{
	struct lu_pool_entry *entry;

	guard(mutex)(&lu_pool.lock);
	entry = lu_pool_table_at(lu_pool.table, offset >> LU_POOL_BLOCK_SHIFT);
	if (!WARN_ON_ONCE(!entry || !*users_of(entry)))
		(*users_of(entry))--;
}

/* --- for drivers */

static void fill_range(const struct lu_pool_entry *entry, struct lu_pool_range *range)
{
	range->phys = lu_pool.start + offset_of(entry);
	range->bytes = le64_to_cpu(entry->bytes);
	range->vaddr = content_of(entry);
	(*users_of(entry))++;
}

/**
 * lu_pool_alloc() - allocate an object that outlives this kernel
 * @name:	what it will be found by
 * @bytes:	its size
 * @range:	set to its memory, which is zeroed and in use by the caller
 *
 * Return: 0, -EEXIST, -ENOSPC, -ENFILE, -EINVAL, -EUCLEAN, -ESHUTDOWN.
 */
int lu_pool_alloc(const char *name, u64 bytes, struct lu_pool_range *range)
{
	struct lu_pool_entry *entry;
	u64 count;
	u32 first;
	int err;

	err = reserve_blocks(name, bytes, &count, &first);
	if (err)
		return err;
	zero_blocks(count, first);
	guard(mutex)(&lu_pool.lock);
	err = add_object(name, bytes, count, first, &entry);
	if (!err)
		fill_range(entry, range);
	return err;
}
EXPORT_SYMBOL_GPL(lu_pool_alloc);

/**
 * lu_pool_get() - find an object, of this kernel or of one before it
 * @name:	its name
 * @range:	set to its memory, which is in use by the caller
 *
 * Return: 0, -ENOENT, -EUCLEAN.
 */
int lu_pool_get(const char *name, struct lu_pool_range *range)
{
	struct lu_pool_entry *entry;
	int err;

	guard(mutex)(&lu_pool.lock);
	err = find(name, &entry);
	if (!err)
		fill_range(entry, range);
	return err;
}
EXPORT_SYMBOL_GPL(lu_pool_get);

/**
 * lu_pool_get_at() - find the object that begins at an address
 * @phys:	physical address, which may be anything
 * @range:	set to its memory, which is in use by the caller
 *
 * Return: 0, -ENOENT, -EUCLEAN.
 */
int lu_pool_get_at(phys_addr_t phys, struct lu_pool_range *range)
{
	struct lu_pool_entry *entry;
	int err;

	guard(mutex)(&lu_pool.lock);
	err = check_state();
	if (err)
		return err;
	if (lu_pool.state != LU_POOL_STATE_READY || phys < lu_pool.start ||
	    phys - lu_pool.start >= lu_pool.size)
		return -ENOENT;
	entry = lu_pool_table_at(lu_pool.table, (phys - lu_pool.start) >> LU_POOL_BLOCK_SHIFT);
	if (!entry || lu_pool.start + offset_of(entry) != phys)
		return -ENOENT;
	fill_range(entry, range);
	return 0;
}
EXPORT_SYMBOL_GPL(lu_pool_get_at);

/**
 * lu_pool_put() - stop using an object; it stays where it is
 * @range:	as lu_pool_alloc() or lu_pool_get() filled it
 */
void lu_pool_put(const struct lu_pool_range *range)
{
	lu_pool_unuse(range->phys - lu_pool.start);
}
EXPORT_SYMBOL_GPL(lu_pool_put);

/**
 * lu_pool_free() - give an object's memory back to the pool
 * @name:	its name
 *
 * Return: 0, -ENOENT, -EBUSY while somebody uses it, -EUCLEAN, -ESHUTDOWN.
 */
int lu_pool_free(const char *name)
{
	return lu_pool_do_free(name);
}
EXPORT_SYMBOL_GPL(lu_pool_free);

/* --- coming and going */

static int leave(struct notifier_block *block, unsigned long action, void *data)
{
	guard(mutex)(&lu_pool.lock);
	lu_pool.leaving = true;
	return NOTIFY_DONE;
}

static struct notifier_block leave_notifier = {
	.notifier_call = leave,
};

/* Find out which memory it is, and that it is nobody else's. */
static int find_region(void)
{
	phys_addr_t at, bytes;

	if (reserve) {
		if (start || size) {
			pr_err("give either reserve= or start= and size=\n");
			return -EINVAL;
		}
		if (!reserve_mem_find_by_name(reserve, &at, &bytes)) {
			pr_err("the kernel made no reservation '%s' (reserve_mem=SIZE:ALIGN:NAME)\n",
			       reserve);
			return -ENOENT;
		}
		lu_pool.is_ram = true;
	} else {
		at = start;
		bytes = size;
	}
	if (!IS_ALIGNED(at, LU_POOL_BLOCK_SIZE) || !IS_ALIGNED(bytes, LU_POOL_BLOCK_SIZE) ||
	    bytes < 2 * LU_POOL_BLOCK_SIZE ||
	    bytes >> LU_POOL_BLOCK_SHIFT > LU_POOL_BLOCKS_MAX || at + bytes < at) {
		pr_err("%pa bytes at %pa are no region: blocks have 2 MiB\n", &bytes, &at);
		return -EINVAL;
	}
	if (!lu_pool.is_ram && region_intersects(at, bytes, IORESOURCE_SYSTEM_RAM,
						 IORES_DESC_NONE) != REGION_DISJOINT) {
		pr_err("memory at %pa is used by the kernel: memmap=SIZE$START has to keep it free\n",
		       &at);
		return -EBUSY;
	}
	lu_pool.start = at;
	lu_pool.size = bytes;
	return 0;
}

static int read_region(void)
{
	u32 nr = lu_pool.size >> LU_POOL_BLOCK_SHIFT;
	int err;

	err = lu_pool_bitmap_init(&lu_pool.map, nr);
	if (err)
		return err;
	lu_pool.users = kvcalloc(nr, sizeof(*lu_pool.users), GFP_KERNEL);
	if (!lu_pool.users) {
		lu_pool_bitmap_exit(&lu_pool.map);
		return -ENOMEM;
	}
	if (lu_pool_table_is_blank(lu_pool.table)) {
		lu_pool.state = LU_POOL_STATE_BLANK;
		pr_info("%llu MiB at %pa, blank\n", lu_pool.size >> 20, &lu_pool.start);
		return 0;
	}
	if (lu_pool_table_check(lu_pool.table, lu_pool.size, &lu_pool.map, &lu_pool.reason)) {
		lu_pool.state = LU_POOL_STATE_REFUSED;
		pr_err("%llu MiB at %pa refused: %s; the memory is left alone\n",
		       lu_pool.size >> 20, &lu_pool.start, lu_pool.reason);
		return 0;
	}
	lu_pool.state = LU_POOL_STATE_READY;
	pr_info("%llu MiB at %pa with %u objects\n", lu_pool.size >> 20, &lu_pool.start,
		le32_to_cpu(lu_pool.table->super.nr_objects));
	return 0;
}

static int __init lu_pool_init(void)
{
	int err;

	err = find_region();
	if (err)
		return err;
	if (!lu_pool.is_ram && !request_mem_region(lu_pool.start, lu_pool.size, KBUILD_MODNAME)) {
		pr_err("memory at %pa is somebody else's\n", &lu_pool.start);
		return -EBUSY;
	}
	lu_pool.base = memremap(lu_pool.start, lu_pool.size, MEMREMAP_WB);
	if (!lu_pool.base) {
		err = -ENOMEM;
		goto err_release;
	}
	lu_pool.table = lu_pool.base;
	err = read_region();
	if (err)
		goto err_unmap;
	err = register_reboot_notifier(&leave_notifier);
	if (err)
		goto err_free;
	err = misc_register(&lu_pool_miscdev);
	if (err)
		goto err_unregister;
	return 0;

err_unregister:
	unregister_reboot_notifier(&leave_notifier);
err_free:
	kvfree(lu_pool.users);
	lu_pool_bitmap_exit(&lu_pool.map);
err_unmap:
	memunmap(lu_pool.base);
err_release:
	if (!lu_pool.is_ram)
		release_mem_region(lu_pool.start, lu_pool.size);
	return err;
}

static void __exit lu_pool_exit(void)
{
	misc_deregister(&lu_pool_miscdev);
	unregister_reboot_notifier(&leave_notifier);
	kvfree(lu_pool.users);
	lu_pool_bitmap_exit(&lu_pool.map);
	memunmap(lu_pool.base);
	if (!lu_pool.is_ram)
		release_mem_region(lu_pool.start, lu_pool.size);
}

module_init(lu_pool_init);
module_exit(lu_pool_exit);

MODULE_DESCRIPTION("Pool of memory that outlives the kernel");
MODULE_LICENSE("GPL");
