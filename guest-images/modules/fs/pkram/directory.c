// SPDX-License-Identifier: GPL-2.0-only
/*
 * The directory that came in, the one that goes out, and /sys/fs/pkram/, which
 * tells of both. "control" takes what nothing else does: "release NAME" frees
 * a save that nobody wants, or what can be believed of one that is refused;
 * "release" forgets a directory that is refused. Memory that nobody can
 * describe any more stays reserved for as long as this kernel runs.
 */

#define pr_fmt(fmt) "pkram: " fmt

#include <linux/kexec_handover.h>
#include <linux/kobject.h>
#include <linux/string.h>
#include <linux/sysfs.h>

#include "internal.h"

static struct {
	/* protects what follows; taken within pkram_list_lock and pkram_fs.lock */
	struct mutex lock;
	/*
	 * As the previous kernel left it, less what has been taken. It stays
	 * reserved: if this module is loaded again it finds what is left.
	 */
	struct pkram_dir *in;
	/* why nothing of it can be believed; or empty */
	char refused[PKRAM_REASON_BYTES];
	/* and why this or that save cannot, by its place */
	char why[PKRAM_SAVES_MAX][PKRAM_REASON_BYTES];
	/* NULL until there is something to save */
	struct pkram_dir *out;
	struct kobject *kobj;
} self = { .lock = __MUTEX_INITIALIZER(self.lock) };

/* --- out */

static int make_outgoing(void)
{
	struct pkram_dir *dir;
	int err;

	if (!kho_is_enabled())
		return -EOPNOTSUPP;
	dir = kho_alloc_preserve(sizeof(*dir));
	if (IS_ERR(dir))
		return PTR_ERR(dir);
	pkram_dir_format(dir);
	err = kho_add_subtree(PKRAM_KHO_NODE, dir, sizeof(*dir));
	if (err) {
		kho_unpreserve_free(dir);
		return err;
	}
	self.out = dir;
	return 0;
}

int pkram_outgoing_add(const struct pkram_dir_entry *entry)
{
	int err = 0;

	guard(mutex)(&self.lock);
	if (!self.out)
		err = make_outgoing();
	return err ?: pkram_dir_add(self.out, entry);
}

void pkram_outgoing_remove(const char *name)
{
	struct pkram_dir_entry *entry;

	guard(mutex)(&self.lock);
	entry = pkram_dir_find(self.out, name);
	if (!WARN_ON_ONCE(!entry))
		pkram_dir_remove(self.out, entry);
}

/* --- in */

/**
 * pkram_incoming_find() - look for a save of the previous kernel
 * @name: of the save
 * @entry: result; its pages have not been checked
 *
 * Return: 0, -ENOENT, or -EUCLEAN when it is not to be believed, or when
 * nothing is.
 */
int pkram_incoming_find(const char *name, struct pkram_dir_entry *entry)
{
	struct pkram_dir_entry *found;

	guard(mutex)(&self.lock);
	if (self.refused[0]) {
		pr_err("'%s' refused: %s; memory of all saves stays reserved\n", name,
		       self.refused);
		return -EUCLEAN;
	}
	found = self.in ? pkram_dir_find(self.in, name) : NULL;
	if (!found)
		return -ENOENT;
	*entry = *found;
	return 0;
}

void pkram_incoming_refuse(const char *name, const char *reason)
{
	struct pkram_dir_entry *found;

	guard(mutex)(&self.lock);
	pr_err("'%s' refused: %s; its memory stays reserved\n", name, reason);
	found = pkram_dir_find(self.in, name);
	if (found)
		strscpy(self.why[found - self.in->saves], reason);
}

/* Its memory has found somebody; nobody else gets it. */
void pkram_incoming_take(const char *name)
{
	struct pkram_dir_entry *found;
	u32 last;

	guard(mutex)(&self.lock);
	found = pkram_dir_find(self.in, name);
	if (!found)
		return;
	/* the last one moves to its place */
	last = le32_to_cpu(self.in->count) - 1;
	memmove(self.why[found - self.in->saves], self.why[last], PKRAM_REASON_BYTES);
	self.why[last][0] = '\0';
	pkram_dir_remove(self.in, found);
}

static void find_incoming(void)
{
	phys_addr_t phys;
	size_t bytes;
	int err;

	err = kho_retrieve_subtree(PKRAM_KHO_NODE, &phys, &bytes);
	if (err == -ENOENT)
		return;
	if (!err && bytes == sizeof(*self.in))
		self.in = pkram_page_at(phys);
	if (self.in)
		err = pkram_dir_check(self.in, self.refused);
	else
		strscpy(self.refused, "what KHO has of the directory cannot be");
	if (self.refused[0])
		pr_err("what the previous kernel left is refused: %s; its memory stays reserved (%pe)\n",
		       self.refused, ERR_PTR(err));
	else
		pr_info("the previous kernel left %u saves\n", le32_to_cpu(self.in->count));
}

/* --- /sys/fs/pkram/ */

static ssize_t incoming_show(struct kobject *kobj, struct kobj_attribute *attr, char *buf)
{
	ssize_t at = 0;
	u32 i;

	guard(mutex)(&self.lock);
	if (self.refused[0])
		return sysfs_emit(buf, "refused: %s\n", self.refused);
	for (i = 0; self.in && i < le32_to_cpu(self.in->count); i++)
		at += sysfs_emit_at(buf, at, "%s %s%s\n", self.in->saves[i].name,
				    self.why[i][0] ? "refused: " : "ready", self.why[i]);
	return at;
}

static struct kobj_attribute incoming_attr = __ATTR_RO(incoming);

static ssize_t outgoing_show(struct kobject *kobj, struct kobj_attribute *attr, char *buf)
{
	const struct pkram_dir_entry *entry;
	ssize_t at = 0;
	u32 i;

	guard(mutex)(&self.lock);
	for (i = 0; self.out && i < le32_to_cpu(self.out->count); i++) {
		entry = &self.out->saves[i];
		at += sysfs_emit_at(buf, at, "%s pages=%u inodes=%u folios=%llu\n", entry->name,
				    le32_to_cpu(entry->pages), le32_to_cpu(entry->inodes),
				    le64_to_cpu(entry->folios));
	}
	return at;
}

static struct kobj_attribute outgoing_attr = __ATTR_RO(outgoing);

/* What is preserved beside the contents of files. */
static ssize_t metadata_bytes_show(struct kobject *kobj, struct kobj_attribute *attr, char *buf)
{
	u64 pages = 0;
	u32 i;

	guard(mutex)(&self.lock);
	if (self.out)
		pages++;
	for (i = 0; self.out && i < le32_to_cpu(self.out->count); i++)
		pages += le32_to_cpu(self.out->saves[i].pages);
	return sysfs_emit(buf, "%llu\n", pages * PKRAM_PAGE_SIZE);
}

static struct kobj_attribute metadata_bytes_attr = __ATTR_RO(metadata_bytes);

static int release_incoming(const char *name)
{
	struct pkram_dir_entry entry;
	int err = pkram_incoming_find(name, &entry);

	if (err)
		return err;
	pkram_incoming_take(name);
	pkram_release(&entry);
	return 0;
}

static int release_all(void)
{
	guard(mutex)(&self.lock);
	if (!self.refused[0])
		return -ENOENT;
	pr_warn("the directory is forgotten; what it told of stays reserved until the next kernel\n");
	self.refused[0] = '\0';
	/* nor is it to be found by this module, loaded again */
	if (self.in)
		pkram_dir_format(self.in);
	return 0;
}

static ssize_t control_store(struct kobject *kobj, struct kobj_attribute *attr, const char *buf,
			     size_t count)
{
	char command[PKRAM_NAME_LEN + 16], *name;
	int err;

	if (strscpy(command, buf) < 0)
		return -EINVAL;
	name = strim(command);
	if (!str_has_prefix(name, "release"))
		return -EINVAL;
	name += strlen("release");
	if (*name && *name != ' ')
		return -EINVAL;
	name = skip_spaces(name);
	/* nobody may be mounting it */
	guard(mutex)(&pkram_list_lock);
	err = *name ? release_incoming(name) : release_all();
	return err ?: count;
}

static struct kobj_attribute control_attr = __ATTR_WO(control);

static struct attribute *pkram_attrs[] = {
	&incoming_attr.attr,
	&outgoing_attr.attr,
	&metadata_bytes_attr.attr,
	&control_attr.attr,
	NULL
};
ATTRIBUTE_GROUPS(pkram);

int pkram_directory_init(void)
{
	int err;

	self.kobj = kobject_create_and_add("pkram", fs_kobj);
	if (!self.kobj)
		return -ENOMEM;
	find_incoming();
	err = sysfs_create_groups(self.kobj, pkram_groups);
	if (err)
		kobject_put(self.kobj);
	return err;
}

/* Nothing is mounted or parked: nothing goes out. */
void pkram_directory_exit(void)
{
	kobject_put(self.kobj);
	if (!self.out)
		return;
	kho_remove_subtree(self.out);
	kho_unpreserve_free(self.out);
}
