/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * /dev/lu_pool: memory that outlives the kernel, for user space.
 *
 * Objects are allocated and found by name. Their content is reached with
 * mmap(), pread() and pwrite() at the offset that LU_POOL_ALLOC and
 * LU_POOL_INFO tell; a mapping must lie within one object, and an object that
 * is mapped is not freed.
 *
 * Errors that are particular to it:
 *   EUCLEAN	what is in the region cannot be believed; nothing is handed out
 *		before LU_POOL_RELEASE
 *   EBUSY	the object is mapped, or a driver uses it
 *   ENODATA	the object was never sealed
 *   EBADMSG	the object's content is not what was sealed
 *   ESHUTDOWN	the kernel is being left
 */
#ifndef _UAPI_LINUX_LU_POOL_H
#define _UAPI_LINUX_LU_POOL_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define LU_POOL_UAPI_NAME_LEN	64
#define LU_POOL_REASON_LEN	96

/**
 * struct lu_pool_object - argument of the ioctls about one object
 * @name:	in: NUL-terminated
 * @bytes:	in (LU_POOL_ALLOC), out (LU_POOL_INFO): size
 * @offset:	out: of its content in the device
 * @flags:	out: LU_POOL_OBJECT_*
 * @users:	out: mappings and drivers that use it now
 */
struct lu_pool_object {
	char name[LU_POOL_UAPI_NAME_LEN];
	__u64 bytes;
	__u64 offset;
	__u32 flags;
	__u32 users;
};

#define LU_POOL_OBJECT_SEALED	1

/* nothing was ever written to the region */
#define LU_POOL_STATE_BLANK	0
#define LU_POOL_STATE_READY	1
#define LU_POOL_STATE_REFUSED	2

/**
 * struct lu_pool_stat - what LU_POOL_STAT tells
 * @state:	LU_POOL_STATE_*
 * @nr_objects:	how many there are
 * @start:	physical address of the region
 * @size:	bytes of it
 * @free:	bytes that are not allocated, in any number of pieces
 * @largest:	bytes of the largest piece
 * @sequence:	changes so far
 * @meta:	bytes of what describes the objects
 * @reason:	why it is refused, or ""
 */
struct lu_pool_stat {
	__u32 state;
	__u32 nr_objects;
	__u64 start;
	__u64 size;
	__u64 free;
	__u64 largest;
	__u64 sequence;
	__u64 meta;
	char reason[LU_POOL_REASON_LEN];
};

/**
 * struct lu_pool_list - argument of LU_POOL_LIST
 * @index:	in: from 0 on; ENOENT ends the list
 * @reserved:	0
 * @object:	out
 */
struct lu_pool_list {
	__u32 index;
	__u32 reserved;
	struct lu_pool_object object;
};

/* argument of LU_POOL_RELEASE, so that nobody calls it by accident */
#define LU_POOL_RELEASE_CONFIRM	0x72656c65617365ULL

#define LU_POOL_ALLOC	_IOWR('l', 0x40, struct lu_pool_object)
#define LU_POOL_INFO	_IOWR('l', 0x41, struct lu_pool_object)
#define LU_POOL_FREE	_IOW('l', 0x42, struct lu_pool_object)
#define LU_POOL_SEAL	_IOW('l', 0x43, struct lu_pool_object)
/* is the content what was sealed? */
#define LU_POOL_VERIFY	_IOW('l', 0x44, struct lu_pool_object)
#define LU_POOL_LIST	_IOWR('l', 0x45, struct lu_pool_list)
#define LU_POOL_STAT	_IOR('l', 0x46, struct lu_pool_stat)
/* forget all objects, whatever is there; EBUSY when one is in use */
#define LU_POOL_RELEASE	_IOW('l', 0x47, __u64)

#endif /* _UAPI_LINUX_LU_POOL_H */
