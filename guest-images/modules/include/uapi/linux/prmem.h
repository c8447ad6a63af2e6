/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * /dev/prmem: memory that outlives the kernel and grows with use, for user space.
 *
 * Instances are created and found by name. Their content is reached with
 * mmap(), pread() and pwrite() at the offset that PRMEM_CREATE and PRMEM_INFO
 * tell, which is another one after the next kexec. A mapping must lie within
 * one instance, and an instance that is mapped is not freed. Its pages are
 * ordinary ones: direct I/O and VFIO can pin them.
 *
 * Errors that are particular to it:
 *   EUCLEAN	what the previous kernel has left cannot be believed: all of it
 *		(PRMEM_STAT has the reason; PRMEM_RELEASE forgets it), or this
 *		instance (PRMEM_INFO has the reason; PRMEM_FREE forgets it)
 *   EBUSY	the instance is mapped, or a driver uses it
 *   ENODATA	the instance was never sealed
 *   EBADMSG	the instance's content is not what was sealed
 *   ENOSPC	there would be more than the limit (parameter max_bytes)
 *   ESHUTDOWN	the kernel is being left
 */
#ifndef _UAPI_LINUX_PRMEM_H
#define _UAPI_LINUX_PRMEM_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define PRMEM_UAPI_NAME_LEN	64
#define PRMEM_REASON_LEN	96

/**
 * struct prmem_info - argument of the ioctls about one instance
 * @name:	in: NUL-terminated
 * @bytes:	in (PRMEM_CREATE, PRMEM_GROW), out: size
 * @value:	in (PRMEM_SET_VALUE), out: a number of the owner's
 * @offset:	out: of its content in the device
 * @record:	out: physical address of what describes it
 * @flags:	out: PRMEM_INSTANCE_*
 * @users:	out: mappings and drivers that use it now
 * @reason:	out: why it is refused, or ""
 */
struct prmem_info {
	char name[PRMEM_UAPI_NAME_LEN];
	__u64 bytes;
	__u64 value;
	__u64 offset;
	__u64 record;
	__u32 flags;
	__u32 users;
	char reason[PRMEM_REASON_LEN];
};

#define PRMEM_INSTANCE_SEALED	1
#define PRMEM_INSTANCE_REFUSED	2

/* the previous kernel has left nothing */
#define PRMEM_STATE_BLANK	0
#define PRMEM_STATE_READY	1
#define PRMEM_STATE_REFUSED	2

/**
 * struct prmem_stat - what PRMEM_STAT tells
 * @state:	PRMEM_STATE_*
 * @nr_instances: how many there are, refused ones too
 * @nr_refused:	how many of them are refused
 * @reserved:	0
 * @bytes:	memory of all instances
 * @max_bytes:	how much it may become
 * @sequence:	changes so far
 * @meta:	bytes of what describes the instances
 * @root:	physical address of what the next kernel is given
 * @reason:	why everything is refused, or ""
 */
struct prmem_stat {
	__u32 state;
	__u32 nr_instances;
	__u32 nr_refused;
	__u32 reserved;
	__u64 bytes;
	__u64 max_bytes;
	__u64 sequence;
	__u64 meta;
	__u64 root;
	char reason[PRMEM_REASON_LEN];
};

/**
 * struct prmem_list - argument of PRMEM_LIST
 * @index:	in: from 0 on; ENOENT ends the list
 * @reserved:	0
 * @info:	out
 */
struct prmem_list {
	__u32 index;
	__u32 reserved;
	struct prmem_info info;
};

/* argument of PRMEM_RELEASE, so that nobody calls it by accident */
#define PRMEM_RELEASE_CONFIRM	0x72656c65617365ULL

#define PRMEM_CREATE	_IOWR('l', 0x60, struct prmem_info)
#define PRMEM_INFO	_IOWR('l', 0x61, struct prmem_info)
/* also the way to forget an instance that is refused */
#define PRMEM_FREE	_IOW('l', 0x62, struct prmem_info)
/* larger only; what is mapped stays where it is */
#define PRMEM_GROW	_IOWR('l', 0x63, struct prmem_info)
#define PRMEM_SET_VALUE	_IOW('l', 0x64, struct prmem_info)
#define PRMEM_SEAL	_IOW('l', 0x65, struct prmem_info)
/* is the content what was sealed? */
#define PRMEM_VERIFY	_IOW('l', 0x66, struct prmem_info)
#define PRMEM_LIST	_IOWR('l', 0x67, struct prmem_list)
#define PRMEM_STAT	_IOR('l', 0x68, struct prmem_stat)
/* forget everything, whatever is there; EBUSY when something is in use */
#define PRMEM_RELEASE	_IOW('l', 0x69, __u64)

#endif /* _UAPI_LINUX_PRMEM_H */
