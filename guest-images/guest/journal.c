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

#define CHUNK_SECTORS	512
/* a controller that is passed through is probed while we run already */
#define NVME_WAIT_MS	20000
#define NVME_LOOK_MS	20

/**
 * struct journal - one disk that a journal is kept on
 * @path:	of the block device
 * @fd:		open while there is a journal
 * @sectors:	its size, 0 without a journal
 * @buffer:	a chunk of sectors, aligned
 * @seq:	where to tell the newest durable record, or NULL
 */
struct journal {
	const char		*path;
	int			fd;
	uint64_t		sectors;
	struct lu_journal	*buffer;
	_Atomic uint64_t	*seq;
};

static struct journal virtio = { .path = "/dev/vda", .fd = -1, .seq = &state.journal_seq };
static struct journal nvme = { .path = "/dev/nvme0n1", .fd = -1 };

/* journals whose first record is not durable yet, and may still be */
static atomic_int unsettled = 1;

static void settle(void)
{
	if (atomic_fetch_sub(&unsettled, 1) != 1)
		return;
	atomic_store(&state.journal_settled, true);
	port_wake();
}

static bool is_record(const struct journal *journal, const struct lu_journal *record,
		      uint64_t sector)
{
	return !memcmp(record->magic, LU_JOURNAL_MAGIC, sizeof(record->magic)) &&
	       record->seq && (record->seq - 1) % journal->sectors == sector &&
	       record->crc32 == crc32_of(record, offsetof(struct lu_journal, crc32));
}

/* Find the record to go on from. Return: its number, 0 when there is none. */
static uint64_t find_newest(const struct journal *journal, uint32_t *crc)
{
	uint64_t newest = 0;

	*crc = 0;
	for (uint64_t sector = 0; sector < journal->sectors; ) {
		uint64_t count = journal->sectors - sector;
		ssize_t n;

		if (count > CHUNK_SECTORS)
			count = CHUNK_SECTORS;
		n = pread(journal->fd, journal->buffer, count * LU_JOURNAL_SECTOR,
			  (off_t)(sector * LU_JOURNAL_SECTOR));
		if (n < LU_JOURNAL_SECTOR) {
			report("journal: cannot read sector %llu of %s: %s",
			       (unsigned long long)sector, journal->path,
			       n < 0 ? strerror(errno) : "end of disk");
			/* what cannot be read cannot be continued; look at the rest */
			sector += count;
			continue;
		}
		count = (uint64_t)n / LU_JOURNAL_SECTOR;
		for (uint64_t i = 0; i < count; i++, sector++) {
			const struct lu_journal *record = &journal->buffer[i];

			if (is_record(journal, record, sector) && record->seq > newest) {
				newest = record->seq;
				*crc = record->crc32;
			}
		}
	}
	return newest;
}

static bool write_record(const struct journal *journal, uint64_t seq, uint32_t *crc)
{
	struct lu_journal *record = journal->buffer;
	off_t offset = (off_t)((seq - 1) % journal->sectors * LU_JOURNAL_SECTOR);
	ssize_t n;

	memset(record, 0, sizeof(*record));
	memcpy(record->magic, LU_JOURNAL_MAGIC, sizeof(record->magic));
	record->boot = config.boot;
	record->seq = seq;
	record->monotonic_ns = clock_ns(CLOCK_MONOTONIC);
	record->realtime_ns = clock_ns(CLOCK_REALTIME);
	record->prev_crc = *crc;
	record->crc32 = crc32_of(record, offsetof(struct lu_journal, crc32));
	n = pwrite(journal->fd, record, sizeof(*record), offset);
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
	struct journal *journal = arg;
	bool failing = false;
	bool settled = false;
	struct pace pace;
	uint32_t crc;
	uint64_t seq = find_newest(journal, &crc);

	pace_start(&pace, config.journal_ms);
	do {
		/* A number is used again until its record is durable. */
		if (!write_record(journal, seq + 1, &crc)) {
			if (!failing)
				report("journal: record %llu on %s: %s",
				       (unsigned long long)seq + 1, journal->path,
				       strerror(errno));
			failing = true;
			continue;
		}
		failing = false;
		seq++;
		if (journal->seq)
			atomic_store(journal->seq, seq);
		if (!settled)
			settle();
		settled = true;
	} while (pace_wait(&pace));
	return arg;
}

/* Return: false when there is no disk, or after a report. */
static bool start(struct journal *journal)
{
	pthread_t thread;
	uint64_t bytes = 0;
	void *area = NULL;
	int err;

	journal->fd = open(journal->path, O_RDWR | O_DIRECT | O_DSYNC | O_CLOEXEC);
	if (journal->fd < 0) {
		if (errno != ENOENT && errno != ENXIO)
			report("journal: %s: %s", journal->path, strerror(errno));
		return false;
	}
	if (ioctl(journal->fd, BLKGETSIZE64, &bytes) < 0 || bytes < LU_JOURNAL_SECTOR) {
		report("journal: no size of %s", journal->path);
		return false;
	}
	err = posix_memalign(&area, LU_PAGE_SIZE, CHUNK_SECTORS * sizeof(*journal->buffer));
	if (err) {
		report("journal: buffer: %s", strerror(err));
		return false;
	}
	journal->buffer = area;
	journal->sectors = bytes / LU_JOURNAL_SECTOR;
	err = pthread_create(&thread, NULL, journal_thread, journal);
	if (err) {
		report("journal thread: %s", strerror(err));
		journal->sectors = 0;
		return false;
	}
	pthread_detach(thread);
	return true;
}

static bool await_nvme(void)
{
	const struct timespec look = { .tv_nsec = NVME_LOOK_MS * (long)NSEC_PER_MSEC };

	for (int ms = 0; ms < NVME_WAIT_MS; ms += NVME_LOOK_MS) {
		if (access(nvme.path, F_OK) == 0)
			return true;
		clock_nanosleep(CLOCK_MONOTONIC, 0, &look, NULL);
	}
	report("journal: no %s after %d ms", nvme.path, NVME_WAIT_MS);
	return false;
}

void journal_start(void)
{
	if (config.nvme)
		atomic_fetch_add(&unsettled, 1);
	if (!start(&virtio))
		settle();
	if (config.nvme && (!await_nvme() || !start(&nvme)))
		settle();
}

/* Return: sectors of the virtio disk, 0 when there is no journal on it. */
uint64_t journal_sectors(void)
{
	return virtio.sectors;
}
