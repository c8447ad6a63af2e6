// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory that outlives the kernel and grows with use.
 */
/**
 * DOC: prmem
 *
 * No memory is set aside at boot: instances with names are allocated from the
 * page allocator, grow, and are freed to it again. KHO keeps their folios and
 * passes the pointer to the root; see include/linux/kho/abi/prmem.h.
 *
 * What the previous kernel has left is checked when the module is loaded.
 * When the root cannot be believed, nothing is handed out. When the record of
 * one instance cannot, this instance is refused and the others live on;
 * strict=1 refuses all of them instead. KHO keeps the memory of what is
 * refused reserved. It is forgotten on request only; nobody can tell then what
 * belonged to it, so that it is free after the next kexec and not earlier.
 *
 * Root and records are up to date after every change. From the reboot
 * notifier on nothing changes any more, so that no kernel is left in the
 * middle of a change.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/crc32c.h>
#include <linux/io.h>
#include <linux/kexec_handover.h>
#include <linux/memory_hotplug.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/reboot.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "internal.h"

static unsigned long long max_bytes = ULLONG_MAX;
module_param(max_bytes, ullong, 0644);
MODULE_PARM_DESC(max_bytes, "how much memory all instances may have together");

static bool strict;
module_param(strict, bool, 0444);
MODULE_PARM_DESC(strict, "refuse all instances when one cannot be believed");

/* protects everything below, and root and records */
static DECLARE_RWSEM(lock);
static struct prmem_root *root;
static struct prmem_instance *instances[PRMEM_INSTANCES_MAX];
/* why everything is refused, or NULL */
static const char *refused;
/* where the root is that was refused */
static phys_addr_t refused_at;
static u64 total_pages;
static u32 last_slot;
/* the kernel is being left, nothing may change any more */
static bool leaving;

static struct prmem_entry *entry_of(const struct prmem_instance *instance)
{
	return &root->entries[instance->at];
}

static u64 offset_of(const struct prmem_instance *instance)
{
	return (u64)instance->slot << PRMEM_SLOT_SHIFT;
}

static u64 pages_of(u64 bytes)
{
	return (bytes >> PAGE_SHIFT) + !!offset_in_page(bytes);
}

static int check_changes(void)
{
	if (leaving)
		return -ESHUTDOWN;
	return refused ? -EUCLEAN : 0;
}

/* The instance of that name, whatever it is worth; the caller holds the lock. */
static struct prmem_instance *find_any(const char *name)
{
	int at;

	if (refused)
		return ERR_PTR(-EUCLEAN);
	at = prmem_root_find(root, name);
	return at < 0 ? ERR_PTR(at) : instances[at];
}

static struct prmem_instance *find(const char *name)
{
	struct prmem_instance *instance = find_any(name);

	if (!IS_ERR(instance) && instance->reason)
		return ERR_PTR(-EUCLEAN);
	return instance;
}

static u32 content_crc(const struct prmem_instance *instance)
{
	u64 left = instance->record.bytes, index = 0;
	u32 crc = ~0, part;

	while (left) {
		part = min_t(u64, left, PAGE_SIZE);
		crc = crc32c(crc, page_address(prmem_runs_page(&instance->record.runs, index)),
			     part);
		left -= part;
		index++;
	}
	return ~crc;
}

/* --- instances */

/* A number that no instance has, so that an old offset leads nowhere. */
static u32 new_slot(void)
{
	u32 i;

again:
	last_slot = last_slot % (PRMEM_SLOTS_MAX - 1) + 1;
	for (i = 0; i < le32_to_cpu(root->nr_instances); i++)
		if (instances[i] && instances[i]->slot == last_slot)
			goto again;
	return last_slot;
}

static void free_nodes(struct prmem_instance *instance)
{
	u32 i;

	if (!instance->head)
		return;
	for (i = 0; i < instance->nr_nodes; i++)
		kho_unpreserve_free(phys_to_virt(le64_to_cpu(instance->head->nodes[i].phys)));
	kho_unpreserve_free(instance->head);
	instance->head = NULL;
}

/* Bring the record and the root up to date. */
static int write_record(struct prmem_instance *instance)
{
	u32 nr = prmem_nodes_for(instance->record.runs.nr);
	void *node;

	while (instance->nr_nodes < nr) {
		node = kho_alloc_preserve(PRMEM_NODE_SIZE);
		if (IS_ERR(node))
			return PTR_ERR(node);
		instance->head->nodes[instance->nr_nodes++].phys = cpu_to_le64(virt_to_phys(node));
	}
	prmem_head_write(instance->head, &instance->record, &entry_of(instance)->head);
	prmem_root_sign(root);
	return 0;
}

/* Whether there may be an instance of that size, which has @before pages now. */
static int check_size(u64 bytes, u64 before)
{
	u64 pages = pages_of(bytes);

	if (!bytes)
		return -EINVAL;
	if (bytes > BIT_ULL(PRMEM_SLOT_SHIFT))
		return -ENOSPC;
	if (pages > before && total_pages + pages - before > max_bytes >> PAGE_SHIFT)
		return -ENOSPC;
	return 0;
}

static int set_size(struct prmem_instance *instance, u64 bytes)
{
	struct prmem_record *record = &instance->record;
	u64 before = record->runs.pages, bytes_before = record->bytes;
	int err;

	if (bytes < record->bytes)
		return -EINVAL;
	err = check_size(bytes, before);
	if (err)
		return err;
	if (record->flags & PRMEM_F_SEALED)
		return -EPERM;
	err = prmem_runs_grow(&record->runs, pages_of(bytes));
	if (err)
		return err;
	record->bytes = bytes;
	err = write_record(instance);
	if (err) {
		prmem_runs_trim(&record->runs, before);
		record->bytes = bytes_before;
		return err;
	}
	total_pages += record->runs.pages - before;
	return 0;
}

/* Take an instance out of the root and give back what is its. */
static void forget(struct prmem_instance *instance)
{
	u32 last = le32_to_cpu(root->nr_instances) - 1;
	u32 at = instance->at;

	prmem_root_remove(root, at);
	prmem_root_sign(root);
	instances[at] = instances[last];
	instances[at]->at = at;
	instances[last] = NULL;
	total_pages -= instance->record.runs.pages;
	prmem_runs_free(&instance->record.runs);
	free_nodes(instance);
	kfree(instance);
	module_put(THIS_MODULE);
}

/* An instance without memory, entered in the root. */
static struct prmem_instance *add(const char *name, u64 value)
{
	struct prmem_instance *instance;
	int at;

	instance = kzalloc_obj(*instance);
	if (!instance)
		return ERR_PTR(-ENOMEM);
	at = prmem_root_add(root, name, value);
	if (at < 0) {
		kfree(instance);
		return ERR_PTR(at);
	}
	instance->at = at;
	instance->slot = new_slot();
	instances[at] = instance;
	/* it is not unloaded while it has something */
	__module_get(THIS_MODULE);
	return instance;
}

static void describe(const struct prmem_instance *instance, struct prmem_info *info)
{
	const struct prmem_entry *entry = entry_of(instance);

	memset(info, 0, sizeof(*info));
	strscpy_pad(info->name, entry->name);
	info->value = le64_to_cpu(entry->value);
	info->users = instance->users;
	if (instance->reason) {
		info->flags = PRMEM_INSTANCE_REFUSED;
		strscpy_pad(info->reason, instance->reason);
		return;
	}
	info->bytes = instance->record.bytes;
	info->offset = offset_of(instance);
	info->record = virt_to_phys(instance->head);
	info->flags = instance->record.flags & PRMEM_F_SEALED ? PRMEM_INSTANCE_SEALED : 0;
}

/* What can be said of a new instance before there is memory for it. */
static int check_new(const char *name, u64 bytes)
{
	int err;

	guard(rwsem_read)(&lock);
	err = check_changes();
	if (!err && prmem_root_find(root, name) >= 0)
		err = -EEXIST;
	return err ? err : check_size(bytes, 0);
}

/* Enter an instance with the memory of @runs, which is its own then. */
static struct prmem_instance *enter(const char *name, u64 bytes, u64 value, struct prmem_runs *runs)
{
	struct prmem_instance *instance;
	int err;

	/* much may have happened since check_new() */
	err = check_changes();
	if (!err)
		err = check_size(bytes, 0);
	if (err)
		return ERR_PTR(err);
	instance = add(name, value);
	if (IS_ERR(instance))
		return instance;
	instance->head = kho_alloc_preserve(PRMEM_NODE_SIZE);
	if (IS_ERR(instance->head)) {
		err = PTR_ERR(instance->head);
		instance->head = NULL;
	} else {
		instance->record.bytes = bytes;
		instance->record.runs = *runs;
		err = write_record(instance);
	}
	if (err) {
		memset(&instance->record, 0, sizeof(instance->record));
		forget(instance);
		return ERR_PTR(err);
	}
	memset(runs, 0, sizeof(*runs));
	total_pages += instance->record.runs.pages;
	return instance;
}

/*
 * Make an instance with @users users. Its memory is allocated and zeroed before
 * the lock is taken: whoever faults on other instances does not wait for that.
 */
static int create(struct prmem_info *info, u32 users, struct prmem_instance **made)
{
	struct prmem_runs runs = {};
	int err;

	err = check_new(info->name, info->bytes);
	if (!err)
		err = prmem_runs_grow(&runs, pages_of(info->bytes));
	if (err)
		goto out;
	scoped_guard(rwsem_write, &lock) {
		*made = enter(info->name, info->bytes, info->value, &runs);
		err = PTR_ERR_OR_ZERO(*made);
		if (!err) {
			(*made)->users = users;
			describe(*made, info);
		}
	}
out:
	prmem_runs_free(&runs);
	return err;
}

static int free_by_name(const char *name)
{
	struct prmem_instance *instance;

	if (leaving)
		return -ESHUTDOWN;
	instance = find_any(name);
	if (IS_ERR(instance))
		return PTR_ERR(instance);
	if (instance->users)
		return -EBUSY;
	forget(instance);
	return 0;
}

/* --- for user space */

int prmem_do_create(struct prmem_info *info)
{
	struct prmem_instance *made;

	return create(info, 0, &made);
}

int prmem_do_info(struct prmem_info *info)
{
	struct prmem_instance *instance;

	guard(rwsem_read)(&lock);
	instance = find_any(info->name);
	if (IS_ERR(instance))
		return PTR_ERR(instance);
	describe(instance, info);
	return 0;
}

int prmem_do_free(const char *name)
{
	guard(rwsem_write)(&lock);
	return free_by_name(name);
}

int prmem_do_grow(struct prmem_info *info)
{
	struct prmem_instance *instance;
	int err;

	guard(rwsem_write)(&lock);
	err = check_changes();
	if (err)
		return err;
	instance = find(info->name);
	if (IS_ERR(instance))
		return PTR_ERR(instance);
	err = set_size(instance, info->bytes);
	if (!err)
		describe(instance, info);
	return err;
}

static int set_value(struct prmem_instance *instance, u64 value)
{
	int err = check_changes();

	if (err)
		return err;
	entry_of(instance)->value = cpu_to_le64(value);
	prmem_root_sign(root);
	return 0;
}

int prmem_do_set_value(struct prmem_info *info)
{
	struct prmem_instance *instance;

	guard(rwsem_write)(&lock);
	instance = find(info->name);
	return IS_ERR(instance) ? PTR_ERR(instance) : set_value(instance, info->value);
}

/* Note that the content is final. Sealing anew is fine: the last word counts. */
int prmem_do_seal(const char *name)
{
	struct prmem_instance *instance;
	int err;

	guard(rwsem_write)(&lock);
	err = check_changes();
	if (err)
		return err;
	instance = find(name);
	if (IS_ERR(instance))
		return PTR_ERR(instance);
	instance->record.flags |= PRMEM_F_SEALED;
	instance->record.content_crc = content_crc(instance);
	return write_record(instance);
}

int prmem_do_verify(const char *name)
{
	struct prmem_instance *instance;

	guard(rwsem_read)(&lock);
	instance = find(name);
	if (IS_ERR(instance))
		return PTR_ERR(instance);
	if (!(instance->record.flags & PRMEM_F_SEALED))
		return -ENODATA;
	return content_crc(instance) == instance->record.content_crc ? 0 : -EBADMSG;
}

int prmem_do_list(struct prmem_list *list)
{
	guard(rwsem_read)(&lock);
	if (refused)
		return -EUCLEAN;
	if (list->index >= le32_to_cpu(root->nr_instances))
		return -ENOENT;
	describe(instances[list->index], &list->info);
	return 0;
}

void prmem_do_stat(struct prmem_stat *stat)
{
	u32 i;

	guard(rwsem_read)(&lock);
	stat->max_bytes = max_bytes;
	if (refused) {
		stat->state = PRMEM_STATE_REFUSED;
		stat->root = refused_at;
		strscpy_pad(stat->reason, refused);
		return;
	}
	stat->nr_instances = le32_to_cpu(root->nr_instances);
	stat->state = stat->nr_instances ? PRMEM_STATE_READY : PRMEM_STATE_BLANK;
	stat->bytes = total_pages << PAGE_SHIFT;
	stat->sequence = le64_to_cpu(root->sequence);
	stat->root = virt_to_phys(root);
	stat->meta = PRMEM_NODE_SIZE;
	for (i = 0; i < stat->nr_instances; i++) {
		if (instances[i]->reason)
			stat->nr_refused++;
		if (instances[i]->head)
			stat->meta += (1 + instances[i]->nr_nodes) * PRMEM_NODE_SIZE;
	}
}

/* Forget all that is there: the one way out of PRMEM_STATE_REFUSED. */
int prmem_do_release(void)
{
	u32 i;

	guard(rwsem_write)(&lock);
	if (leaving)
		return -ESHUTDOWN;
	for (i = 0; i < le32_to_cpu(root->nr_instances); i++)
		if (instances[i]->users)
			return -EBUSY;
	while (root->nr_instances)
		forget(instances[le32_to_cpu(root->nr_instances) - 1]);
	refused = NULL;
	refused_at = 0;
	pr_info("released on request\n");
	return 0;
}

/**
 * prmem_use() - begin to use memory of an instance
 * @offset:	first byte, in the device
 * @bytes:	how many, in whole pages
 *
 * Return: the instance, -EINVAL when this is not within one, -EUCLEAN.
 */
struct prmem_instance *prmem_use(u64 offset, u64 bytes)
{
	const u64 at = offset & (BIT_ULL(PRMEM_SLOT_SHIFT) - 1);
	struct prmem_instance *instance;
	u32 i;

	guard(rwsem_write)(&lock);
	if (refused)
		return ERR_PTR(-EUCLEAN);
	for (i = 0; i < le32_to_cpu(root->nr_instances); i++) {
		instance = instances[i];
		if (instance->slot != offset >> PRMEM_SLOT_SHIFT)
			continue;
		if (instance->reason)
			return ERR_PTR(-EUCLEAN);
		if (!bytes || bytes > PAGE_ALIGN(instance->record.bytes) ||
		    at > PAGE_ALIGN(instance->record.bytes) - bytes)
			break;
		instance->users++;
		return instance;
	}
	return ERR_PTR(-EINVAL);
}

/* One more user of an instance that has one. */
void prmem_reuse(struct prmem_instance *instance)
{
	guard(rwsem_write)(&lock);
	instance->users++;
}

/* --- for drivers */

/**
 * prmem_create() - allocate an instance that outlives this kernel
 * @name:	what it will be found by
 * @bytes:	its size
 *
 * Return: the instance, whose memory is zeroed, in use by the caller; -EEXIST,
 * -ENOSPC, -ENOMEM, -ENFILE, -EFBIG, -EINVAL, -EUCLEAN, -ESHUTDOWN.
 */
struct prmem_instance *prmem_create(const char *name, u64 bytes)
{
	struct prmem_info info = { .bytes = bytes };
	struct prmem_instance *made;
	int err;

	if (strscpy(info.name, name) < 0)
		return ERR_PTR(-EINVAL);
	err = create(&info, 1, &made);
	return err ? ERR_PTR(err) : made;
}
EXPORT_SYMBOL_GPL(prmem_create);

/**
 * prmem_get() - find an instance, of this kernel or of one before it
 * @name:	its name
 *
 * Return: the instance, in use by the caller; -ENOENT; -EUCLEAN when it cannot
 * be believed.
 */
struct prmem_instance *prmem_get(const char *name)
{
	struct prmem_instance *instance;

	guard(rwsem_write)(&lock);
	instance = find(name);
	if (!IS_ERR(instance))
		instance->users++;
	return instance;
}
EXPORT_SYMBOL_GPL(prmem_get);

/**
 * prmem_put() - stop using an instance; it stays
 * @instance:	as prmem_create() or prmem_get() returned it
 */
void prmem_put(struct prmem_instance *instance)
{
	guard(rwsem_write)(&lock);
	if (!WARN_ON_ONCE(!instance->users))
		instance->users--;
}
EXPORT_SYMBOL_GPL(prmem_put);

/**
 * prmem_grow() - make an instance larger
 * @instance:	in use by the caller
 * @bytes:	its new size
 *
 * What is there stays where it is; what is new is zeroed.
 *
 * Return: 0; -EINVAL for a smaller size, -EPERM when it is sealed, -ENOSPC,
 * -ENOMEM, -EFBIG, -ESHUTDOWN: nothing has changed.
 */
int prmem_grow(struct prmem_instance *instance, u64 bytes)
{
	int err;

	guard(rwsem_write)(&lock);
	err = check_changes();
	return err ? err : set_size(instance, bytes);
}
EXPORT_SYMBOL_GPL(prmem_grow);

/**
 * prmem_free() - give an instance's memory back to the kernel
 * @name:	its name
 *
 * Return: 0, -ENOENT, -EBUSY while somebody uses it, -EUCLEAN, -ESHUTDOWN.
 */
int prmem_free(const char *name)
{
	return prmem_do_free(name);
}
EXPORT_SYMBOL_GPL(prmem_free);

/* Size of an instance that the caller uses, as was asked for. */
u64 prmem_bytes(struct prmem_instance *instance)
{
	guard(rwsem_read)(&lock);
	return instance->record.bytes;
}
EXPORT_SYMBOL_GPL(prmem_bytes);

/**
 * prmem_page() - find memory of an instance
 * @instance:	in use by the caller
 * @index:	of the page in the instance
 *
 * Return: the page, which stays as long as the instance is used; NULL behind
 * its end.
 */
struct page *prmem_page(struct prmem_instance *instance, pgoff_t index)
{
	guard(rwsem_read)(&lock);
	return prmem_runs_page(&instance->record.runs, index);
}
EXPORT_SYMBOL_GPL(prmem_page);

/**
 * prmem_set_value() - leave a number beside an instance's memory
 * @instance:	in use by the caller
 * @value:	the number
 *
 * Return: 0, -ESHUTDOWN.
 */
int prmem_set_value(struct prmem_instance *instance, u64 value)
{
	guard(rwsem_write)(&lock);
	return set_value(instance, value);
}
EXPORT_SYMBOL_GPL(prmem_set_value);

u64 prmem_value(struct prmem_instance *instance)
{
	guard(rwsem_read)(&lock);
	return le64_to_cpu(entry_of(instance)->value);
}
EXPORT_SYMBOL_GPL(prmem_value);

/* --- coming and going */

static int leave(struct notifier_block *block, unsigned long action, void *data)
{
	guard(rwsem_write)(&lock);
	leaving = true;
	return NOTIFY_DONE;
}

static struct notifier_block leave_notifier = {
	.notifier_call = leave,
};

/* Make a folio that KHO has kept this kernel's, and have it kept again. */
static struct folio *take_folio(u64 phys, u32 order)
{
	struct folio *folio;
	int err;

	folio = kho_restore_folio(phys);
	if (!folio)
		return ERR_PTR(-EUCLEAN);
	err = folio_order(folio) == order ? kho_preserve_folio(folio) : -EUCLEAN;
	/* When it fails nobody can say whose it is: it is kept from everybody. */
	return err ? ERR_PTR(err) : folio;
}

static int take_memory(struct prmem_runs *runs, u64 phys, u32 order)
{
	struct folio *folio = take_folio(phys, order);

	if (IS_ERR(folio))
		return PTR_ERR(folio);
	return prmem_runs_add(runs, folio_pfn(folio), order);
}

static int take_record(struct prmem_instance *instance, u64 phys)
{
	const u32 order = get_order(PRMEM_NODE_SIZE);
	struct folio *folio;
	u32 i, nr;

	folio = take_folio(phys, order);
	if (IS_ERR(folio))
		return PTR_ERR(folio);
	instance->head = folio_address(folio);
	nr = prmem_nodes_for(le32_to_cpu(instance->head->nr_extents));
	for (i = 0; i < nr; i++) {
		folio = take_folio(le64_to_cpu(instance->head->nodes[i].phys), order);
		if (IS_ERR(folio))
			return PTR_ERR(folio);
		instance->nr_nodes++;
	}
	return prmem_head_read(instance->head, &instance->record, take_memory);
}

/* Take over one instance; it is refused when it cannot be. */
static int take_instance(const struct prmem_entry *old)
{
	struct prmem_instance *instance;
	const char *reason;
	int err;

	instance = add(old->name, le64_to_cpu(old->value));
	if (IS_ERR(instance))
		return PTR_ERR(instance);
	if (!prmem_head_check(&old->head, &reason)) {
		err = take_record(instance, le64_to_cpu(old->head.phys));
		total_pages += instance->record.runs.pages;
		if (!err) {
			entry_of(instance)->head = old->head;
			return 0;
		}
		reason = err == -ENOMEM ? "there is no memory to take it over" :
					  "its memory was not handed over";
	}
	instance->reason = reason;
	pr_err("instance '%s' refused: %s; its memory is left alone\n", old->name, reason);
	return 0;
}

static int take_over(void)
{
	struct prmem_root *old;
	phys_addr_t phys;
	size_t size;
	int err;
	u32 i;

	err = kho_retrieve_subtree(PRMEM_KHO_NAME, &phys, &size);
	if (err == -ENOENT)
		return 0;
	if (err)
		return err;
	old = phys_to_virt(phys);
	if (size != PRMEM_NODE_SIZE || !IS_ALIGNED(phys, PRMEM_NODE_SIZE) ||
	    !pfn_to_online_page(PHYS_PFN(phys)))
		refused = "its root is where or as large as it cannot be";
	else if (!prmem_root_check(old, &refused) && strict)
		prmem_heads_check(old, &refused);
	if (refused) {
		refused_at = phys;
		pr_err("memory at %pa refused: %s; it is left alone\n", &phys, refused);
		return 0;
	}
	for (i = 0; i < le32_to_cpu(old->nr_instances); i++) {
		err = take_instance(&old->entries[i]);
		if (err)
			return err;
	}
	prmem_root_sign(root);
	kho_restore_free(old);
	pr_info("%u instances with %llu MiB\n", le32_to_cpu(root->nr_instances),
		total_pages >> (20 - PAGE_SHIFT));
	return 0;
}

static void forget_all(void)
{
	while (root->nr_instances)
		forget(instances[le32_to_cpu(root->nr_instances) - 1]);
	kho_unpreserve_free(root);
}

static int __init prmem_init(void)
{
	int err;

	if (!kho_is_enabled()) {
		pr_err("KHO is switched off: kho=on has to be on the command line\n");
		return -EOPNOTSUPP;
	}
	root = kho_alloc_preserve(PRMEM_NODE_SIZE);
	if (IS_ERR(root))
		return PTR_ERR(root);
	prmem_root_format(root);
	err = take_over();
	if (err)
		goto err_forget;
	err = kho_add_subtree(PRMEM_KHO_NAME, root, PRMEM_NODE_SIZE);
	if (err)
		goto err_forget;
	err = register_reboot_notifier(&leave_notifier);
	if (err)
		goto err_remove;
	err = misc_register(&prmem_miscdev);
	if (err)
		goto err_unregister;
	return 0;

err_unregister:
	unregister_reboot_notifier(&leave_notifier);
err_remove:
	kho_remove_subtree(root);
err_forget:
	forget_all();
	return err;
}

/* There are no instances: each of them keeps the module. */
static void __exit prmem_exit(void)
{
	misc_deregister(&prmem_miscdev);
	unregister_reboot_notifier(&leave_notifier);
	kho_remove_subtree(root);
	forget_all();
}

module_init(prmem_init);
module_exit(prmem_exit);

MODULE_DESCRIPTION("Memory that outlives the kernel and grows with use");
MODULE_LICENSE("GPL");
