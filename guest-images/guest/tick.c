// SPDX-License-Identifier: Apache-2.0
/* The tick page: proof of life that the outside reads from RAM. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "payload.h"

static struct lu_tick *page;
static pthread_t thread;

/*
 * mlock() keeps a page in memory but lets compaction move it, and the outside
 * would then read a stale copy. A page that sits in a pipe has one more
 * reference than its mappings account for, so it cannot be migrated.
 */
static void pin(void)
{
	struct iovec iov = { .iov_base = page, .iov_len = LU_PAGE_SIZE };
	int fds[2];

	if (pipe2(fds, O_CLOEXEC) < 0 || vmsplice(fds[1], &iov, 1, 0) != LU_PAGE_SIZE)
		report("tick page not pinned: %s", strerror(errno));
}

static void publish(uint64_t seq)
{
	struct lu_tick next = *page;
	_Atomic uint64_t *lock = (_Atomic uint64_t *)&page->lock;

	next.lock = page->lock + 2;
	next.seq = seq;
	next.pattern_pages = atomic_load(&state.pattern_pages);
	next.pattern_bad = atomic_load(&state.pattern_bad);
	next.journal_seq = atomic_load(&state.journal_seq);
	next.echo_count = atomic_load(&state.echo_count);
	next.monotonic_ns = clock_ns(CLOCK_MONOTONIC);
	next.boottime_ns = clock_ns(CLOCK_BOOTTIME);
	next.realtime_ns = clock_ns(CLOCK_REALTIME);
	next.tsc = read_tsc();
	next.crc32 = crc32_of(&next, offsetof(struct lu_tick, crc32));

	atomic_store(lock, next.lock - 1);
	atomic_thread_fence(memory_order_seq_cst);
	/* all but the lock, which stands between what never changes and the rest */
	memcpy(&page->boot, &next.boot, sizeof(next) - offsetof(struct lu_tick, boot));
	atomic_thread_fence(memory_order_seq_cst);
	atomic_store(lock, next.lock);
	atomic_store(&state.tick_seq, seq);
}

static void *tick_thread(void *arg)
{
	struct pace pace;
	uint64_t seq = 0;

	pace_start(&pace, config.tick_ms);
	do
		publish(++seq);
	while (pace_wait(&pace));
	return arg;
}

bool tick_start(void)
{
	struct sched_param param = { .sched_priority = 10 };
	void *area = mmap(NULL, LU_PAGE_SIZE, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	int err;

	if (area == MAP_FAILED || mlock(area, LU_PAGE_SIZE) < 0) {
		report("tick page: %s", strerror(errno));
		return false;
	}
	madvise(area, LU_PAGE_SIZE, MADV_NOHUGEPAGE);
	page = area;
	memcpy(page->magic, LU_TICK_MAGIC, sizeof(page->magic));
	page->version = LU_TICK_VERSION;
	page->size = sizeof(*page);
	page->boot = config.boot;
	page->seed = config.seed;
	pin();
	err = pthread_create(&thread, NULL, tick_thread, NULL);
	if (err) {
		report("tick thread: %s", strerror(err));
		page = NULL;
		return false;
	}
	/* Verifying the pattern keeps the one vCPU busy; the ticks go first. */
	pthread_setschedparam(thread, SCHED_FIFO, &param);
	return true;
}

void tick_join(void)
{
	if (page)
		pthread_join(thread, NULL);
}

uint64_t tick_gpa(void)
{
	return page ? gpa_of(page) : 0;
}
