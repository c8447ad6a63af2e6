// SPDX-License-Identifier: Apache-2.0
/*
 * The journal: numbered records that are durable when the next one begins.
 *
 * In a thread of its own, because a write blocks for as long as the disk does.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <linux/fs.h>
#include <sys/ioctl.h>

#include "payload.h"

#define JOURNAL_DISK	"/dev/vda"
#define CHUNK_SECTORS	512

static int disk = -1;
static uint64_t sectors;
static struct lu_journal *buffer;

static bool is_record(const struct lu_journal *record, uint64_t sector)
{
	return !memcmp(record->magic, LU_JOURNAL_MAGIC, sizeof(record->magic)) &&
	       record->seq && (record->seq - 1) % sectors == sector &&
	       record->crc32 == crc32_of(record, offsetof(struct lu_journal, crc32));
}

/* Find the record to go on from. Return: its number, 0 when there is none. */
static uint64_t find_newest(uint32_t *crc)
{
	uint64_t newest = 0;

	*crc = 0;
	for (uint64_t sector = 0; sector < sectors; ) {
		uint64_t count = sectors - sector;
		ssize_t n;

		if (count > CHUNK_SECTORS)
			count = CHUNK_SECTORS;
		n = pread(disk, buffer, count * LU_JOURNAL_SECTOR,
			  (off_t)(sector * LU_JOURNAL_SECTOR));
		if (n < LU_JOURNAL_SECTOR) {
			report("journal: cannot read sector %llu: %s",
			       (unsigned long long)sector, n < 0 ? strerror(errno) : "end of disk");
			/* what cannot be read cannot be continued; look at the rest */
			sector += count;
			continue;
		}
		count = (uint64_t)n / LU_JOURNAL_SECTOR;
		for (uint64_t i = 0; i < count; i++, sector++) {
			if (is_record(&buffer[i], sector) && buffer[i].seq > newest) {
				newest = buffer[i].seq;
				*crc = buffer[i].crc32;
			}
		}
	}
	return newest;
}

static bool write_record(uint64_t seq, uint32_t *crc)
{
	struct lu_journal *record = buffer;
	off_t offset = (off_t)((seq - 1) % sectors * LU_JOURNAL_SECTOR);
	ssize_t n;

	memset(record, 0, sizeof(*record));
	memcpy(record->magic, LU_JOURNAL_MAGIC, sizeof(record->magic));
	record->boot = config.boot;
	record->seq = seq;
	record->monotonic_ns = clock_ns(CLOCK_MONOTONIC);
	record->realtime_ns = clock_ns(CLOCK_REALTIME);
	record->prev_crc = *crc;
	record->crc32 = crc32_of(record, offsetof(struct lu_journal, crc32));
	n = pwrite(disk, record, sizeof(*record), offset);
	if (n != sizeof(*record)) {
		if (n >= 0)
			errno = EIO;
		return false;
	}
	*crc = record->crc32;
	return true;
}

static void *journal_thread(void *arg)
{
	struct pace pace;
	bool failing = false;
	uint32_t crc;
	uint64_t seq = find_newest(&crc);

	pace_start(&pace, config.journal_ms);
	do {
		/* A number is used again until its record is durable. */
		if (!write_record(seq + 1, &crc)) {
			if (!failing)
				report("journal: record %llu: %s",
				       (unsigned long long)seq + 1, strerror(errno));
			failing = true;
			continue;
		}
		failing = false;
		seq++;
		atomic_store(&state.journal_seq, seq);
		if (!atomic_exchange(&state.journal_settled, true))
			port_wake();
	} while (pace_wait(&pace));
	return arg;
}

/* Return: false when there is no disk, or after a report. */
bool journal_start(void)
{
	pthread_t thread;
	uint64_t bytes = 0;
	void *area = NULL;
	int err;

	disk = open(JOURNAL_DISK, O_RDWR | O_DIRECT | O_DSYNC | O_CLOEXEC);
	if (disk < 0) {
		if (errno != ENOENT && errno != ENXIO)
			report("journal: %s: %s", JOURNAL_DISK, strerror(errno));
		goto out;
	}
	if (ioctl(disk, BLKGETSIZE64, &bytes) < 0 || bytes < LU_JOURNAL_SECTOR) {
		report("journal: no size of %s", JOURNAL_DISK);
		goto out;
	}
	err = posix_memalign(&area, LU_PAGE_SIZE, CHUNK_SECTORS * sizeof(*buffer));
	if (err) {
		report("journal: buffer: %s", strerror(err));
		goto out;
	}
	buffer = area;
	sectors = bytes / LU_JOURNAL_SECTOR;
	err = pthread_create(&thread, NULL, journal_thread, NULL);
	if (err) {
		report("journal thread: %s", strerror(err));
		sectors = 0;
		goto out;
	}
	pthread_detach(thread);
	return true;

out:
	atomic_store(&state.journal_settled, true);
	return false;
}

/* Return: sectors of the disk, 0 when there is no journal. */
uint64_t journal_sectors(void)
{
	return sectors;
}
