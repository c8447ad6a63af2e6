/* SPDX-License-Identifier: Apache-2.0 */
/*
 * DOC: what the payload shows to the outside
 *
 * Three structures leave the guest: the tick page (read from the machine's RAM),
 * the echo frame (on the wire) and the journal record (on the disk). They are a
 * contract with liveupdate/formats/{tickpage,echo,journal}.py; a test compiles
 * this header and compares every offset with the Python side. A change of
 * layout changes the magic or the version.
 *
 * All fields are little-endian. Every crc32 is the one of zlib and Ethernet
 * (polynomial 0xedb88320, initial value and final xor 0xffffffff) over all bytes
 * of the structure before it.
 */
#ifndef LIVEUPDATE_PAYLOAD_ABI_H
#define LIVEUPDATE_PAYLOAD_ABI_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#define LU_PAGE_SIZE		4096
#define LU_WORDS_PER_PAGE	(LU_PAGE_SIZE / 8)

#define LU_TICK_MAGIC		"LUTICK01"
#define LU_TICK_VERSION		1

/**
 * struct lu_tick - head of the tick page
 * @magic:		LU_TICK_MAGIC, without a NUL
 * @version:		LU_TICK_VERSION
 * @size:		sizeof(struct lu_tick)
 * @lock:		sequence lock, odd while the rest is being written
 * @boot:		random number of this boot of the guest
 * @seq:		number of the tick, from 1
 * @tsc:		time stamp counter
 * @monotonic_ns:	CLOCK_MONOTONIC
 * @boottime_ns:	CLOCK_BOOTTIME
 * @realtime_ns:	CLOCK_REALTIME
 * @seed:		seed of the RAM pattern
 * @pattern_pages:	pages of the RAM pattern, 0 until it is filled
 * @pattern_bad:	pages that the last verification found changed
 * @journal_seq:	newest durable journal record, 0 for none
 * @echo_count:		echo requests answered
 * @reserved:		zero
 * @reserved2:		zero
 * @crc32:		over the bytes before, with @lock at the even value that
 *			is stored when the writer is done
 */
struct lu_tick {
	char		magic[8];
	uint32_t	version;
	uint32_t	size;
	uint64_t	lock;
	uint64_t	boot;
	uint64_t	seq;
	uint64_t	tsc;
	uint64_t	monotonic_ns;
	uint64_t	boottime_ns;
	uint64_t	realtime_ns;
	uint64_t	seed;
	uint64_t	pattern_pages;
	uint64_t	pattern_bad;
	uint64_t	journal_seq;
	uint64_t	echo_count;
	uint64_t	reserved;
	uint32_t	reserved2;
	uint32_t	crc32;
};

#define LU_ECHO_ETHERTYPE	0x88b5
#define LU_ECHO_MAGIC		0x4345554cU	/* "LUEC" in memory */
#define LU_ECHO_VERSION		1
#define LU_ECHO_REQUEST		1
#define LU_ECHO_REPLY		2

/**
 * struct lu_echo - an echo frame after its Ethernet header
 * @magic:		LU_ECHO_MAGIC
 * @version:		LU_ECHO_VERSION
 * @kind:		LU_ECHO_REQUEST or LU_ECHO_REPLY
 * @seq:		number given by the sender, returned as it is
 * @sender_ns:		time given by the sender, returned as it is
 * @boot:		boot of the guest; this and what follows is 0 in a request
 * @tick_seq:		newest tick when the request was seen
 * @tsc:		time stamp counter then
 * @monotonic_ns:	CLOCK_MONOTONIC then
 * @boottime_ns:	CLOCK_BOOTTIME then
 * @realtime_ns:	CLOCK_REALTIME then
 * @crc32:		over the bytes before
 */
struct lu_echo {
	uint32_t	magic;
	uint16_t	version;
	uint16_t	kind;
	uint64_t	seq;
	uint64_t	sender_ns;
	uint64_t	boot;
	uint64_t	tick_seq;
	uint64_t	tsc;
	uint64_t	monotonic_ns;
	uint64_t	boottime_ns;
	uint64_t	realtime_ns;
	uint32_t	crc32;
} __attribute__((packed));

#define LU_JOURNAL_MAGIC	"LUJRNL01"
#define LU_JOURNAL_SECTOR	512

/**
 * struct lu_journal - a journal record, one sector
 * @magic:		LU_JOURNAL_MAGIC, without a NUL
 * @boot:		boot of the guest that wrote it
 * @seq:		number of the record, from 1; record s lies at sector
 *			(s - 1) % sectors
 * @monotonic_ns:	CLOCK_MONOTONIC at the time of writing
 * @realtime_ns:	CLOCK_REALTIME at the time of writing
 * @prev_crc:		crc32 of record @seq - 1, 0 for the first of a disk
 * @zero:		zero
 * @crc32:		over the bytes before
 */
struct lu_journal {
	char		magic[8];
	uint64_t	boot;
	uint64_t	seq;
	uint64_t	monotonic_ns;
	uint64_t	realtime_ns;
	uint32_t	prev_crc;
	uint8_t		zero[464];
	uint32_t	crc32;
};

static_assert(sizeof(struct lu_tick) == 128, "tick page");
static_assert(offsetof(struct lu_tick, lock) == 16, "tick page: lock");
static_assert(offsetof(struct lu_tick, crc32) == 124, "tick page: crc32");
static_assert(sizeof(struct lu_echo) == 76, "echo frame");
static_assert(offsetof(struct lu_echo, crc32) == 72, "echo frame: crc32");
static_assert(sizeof(struct lu_journal) == LU_JOURNAL_SECTOR, "journal record");
static_assert(offsetof(struct lu_journal, prev_crc) == 40, "journal record: prev_crc");
static_assert(offsetof(struct lu_journal, crc32) == 508, "journal record: crc32");

#define LU_PATTERN_STEP	0x9e3779b97f4a7c15ULL

/**
 * lu_pattern_word() - one word of the RAM pattern
 * @seed:	lu.seed=
 * @index:	page number in the pattern * LU_WORDS_PER_PAGE + word in the page
 *
 * The page's first word is the first output of splitmix64 (Steele, Lea, Flood
 * 2014) with the state @seed + page; from there each word adds an odd constant.
 * One addition a word, because a guest that is nested in an emulator pays for
 * each; any page can still be checked alone, and no two pages are alike.
 */
static inline uint64_t lu_pattern_word(uint64_t seed, uint64_t index)
{
	uint64_t z = seed + index / LU_WORDS_PER_PAGE + LU_PATTERN_STEP;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
	z ^= z >> 31;
	return z + index % LU_WORDS_PER_PAGE * LU_PATTERN_STEP;
}

#endif /* LIVEUPDATE_PAYLOAD_ABI_H */
