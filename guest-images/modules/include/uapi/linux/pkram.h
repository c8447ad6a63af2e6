/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
#ifndef _UAPI_LINUX_PKRAM_H
#define _UAPI_LINUX_PKRAM_H

#include <linux/ioctl.h>

/**
 * PKRAM_SAVE - have what is in the file system now carried over by the next kexec
 *
 * On a descriptor of the root directory, by CAP_SYS_ADMIN. All memory of all
 * files is preserved through KHO, and the save gets the name that the file
 * system was mounted with. Files may still be written to where they have
 * memory; any other change (a name, a size, a hole that is filled) gives the
 * save up, and it has to be made again. That costs what is new, and the
 * description of all.
 *
 * EOPNOTSUPP: this kernel has no KHO. ENOSPC: there are too many saves or
 * inodes. ENOMEM.
 */
#define PKRAM_SAVE	_IO('p', 0xc0)

/**
 * PKRAM_FORGET - have nothing of the file system carried over
 *
 * As after a change; and its memory is not preserved any more.
 */
#define PKRAM_FORGET	_IO('p', 0xc1)

#endif /* _UAPI_LINUX_PKRAM_H */
