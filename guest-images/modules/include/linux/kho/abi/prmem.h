/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What persistent memory of named instances looks like to the next kernel.
 */
#ifndef _LINUX_KHO_ABI_PRMEM_H
#define _LINUX_KHO_ABI_PRMEM_H

#include <linux/build_bug.h>
#include <linux/sizes.h>
#include <linux/types.h>

/**
 * DOC: prmem ABI
 *
 * Memory is any folios that KHO preserves. The KHO subtree PRMEM_KHO_NAME is
 * the pointer that is passed: to the root, a node of 16 KiB. The root has a
 * table of instances without gaps, which is the key/value store: a name, a
 * number, and a reference to the instance's record. The record is a head, a
 * node too, with references to nodes of extents. All numbers are little endian.
 *
 * A reference is an address and the CRC-32C of the whole node that is there,
 * so that a checksum has been seen to be right before its node is followed.
 * The root has its own (taken with @crc being 0). It vouches for everything,
 * all or nothing; when the record of one instance is not what the root says,
 * the others are as good as before.
 *
 * What is in instances is not covered, except that the head of a sealed
 * instance has a checksum of its content.
 *
 * This is a contract between kernels. Any change to it is a new version, with
 * a new PRMEM_VERSION; a reader refuses a version that it does not know.
 */
#define PRMEM_KHO_NAME		"prmem"
#define PRMEM_MAGIC		0x314d454d52502d4cULL	/* "L-PRMEM1" */
#define PRMEM_HEAD_MAGIC	0x3144414548504d4cULL	/* "LMPHEAD1" */
#define PRMEM_VERSION		1

#define PRMEM_NODE_SIZE		SZ_16K
#define PRMEM_NAME_LEN		64

/**
 * struct prmem_ref - where a node is, and what it has to be
 * @phys:	physical address, aligned to PRMEM_NODE_SIZE
 * @crc:	CRC-32C of the node
 * @reserved:	0
 */
struct prmem_ref {
	__le64 phys;
	__le32 crc;
	__le32 reserved;
} __packed;
static_assert(sizeof(struct prmem_ref) == 16);

/**
 * struct prmem_entry - an instance, in the root
 * @name:	the key: NUL-terminated, not empty, zeroes behind it; no two are the same
 * @value:	a number of the owner's
 * @head:	its record; address 0: an earlier kernel could not believe it
 * @reserved:	0
 */
struct prmem_entry {
	char name[PRMEM_NAME_LEN];
	__le64 value;
	struct prmem_ref head;
	__le64 reserved;
} __packed;
static_assert(sizeof(struct prmem_entry) == 96);

#define PRMEM_INSTANCES_MAX	170

/**
 * struct prmem_root - the node that the subtree points to
 * @magic:	PRMEM_MAGIC
 * @version:	PRMEM_VERSION
 * @crc:	CRC-32C of this node
 * @sequence:	goes up with every change
 * @nr_instances: entries in use
 * @reserved:	0
 * @entries:	the table; unused entries are zero
 */
struct prmem_root {
	__le64 magic;
	__le32 version;
	__le32 crc;
	__le64 sequence;
	__le32 nr_instances;
	__le32 reserved[9];
	struct prmem_entry entries[PRMEM_INSTANCES_MAX];
} __packed;
static_assert(sizeof(struct prmem_root) == PRMEM_NODE_SIZE);

/* the content is final, and @content_crc is its checksum */
#define PRMEM_F_SEALED		1

#define PRMEM_EXTENT_NODES_MAX	1020

/**
 * struct prmem_head - the record of an instance
 * @magic:	PRMEM_HEAD_MAGIC
 * @bytes:	what the owner asked for
 * @pages:	4 KiB pages of all extents; at least @bytes
 * @nr_extents:	how many
 * @flags:	PRMEM_F_*
 * @content_crc: CRC-32C of the first @bytes bytes when sealed, else 0
 * @reserved:	0
 * @nodes:	of extents; all are full but the last, unused ones are zero
 */
struct prmem_head {
	__le64 magic;
	__le64 bytes;
	__le64 pages;
	__le32 nr_extents;
	__le32 flags;
	__le32 content_crc;
	__le32 reserved[7];
	struct prmem_ref nodes[PRMEM_EXTENT_NODES_MAX];
} __packed;
static_assert(sizeof(struct prmem_head) == PRMEM_NODE_SIZE);

/**
 * struct prmem_extent - folios of one size, one behind the other
 * @phys:	physical address of the first, aligned to its size
 * @order:	of each: 4 KiB << order
 * @count:	how many; never 0
 */
struct prmem_extent {
	__le64 phys;
	__le32 order;
	__le32 count;
} __packed;
static_assert(sizeof(struct prmem_extent) == 16);

#define PRMEM_EXTENTS_PER_NODE	(PRMEM_NODE_SIZE / sizeof(struct prmem_extent))

#endif /* _LINUX_KHO_ABI_PRMEM_H */
