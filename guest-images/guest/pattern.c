// SPDX-License-Identifier: Apache-2.0
/* The RAM pattern: contents that the outside can compute for itself. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysinfo.h>

#include "payload.h"

/* What the kernel and we need besides the pattern. */
#define HEADROOM_BYTES	(8ULL << 20)

static uint64_t *pattern;

/* Return: false after a report; the guest then goes on without a pattern. */
bool pattern_fill(void)
{
	uint64_t pages = config.pattern_bytes / LU_PAGE_SIZE;
	struct sysinfo info;
	void *area;

	if (!pages)
		return true;
	/* Without the check the kernel would kill us, and the guest would panic. */
	if (sysinfo(&info) == 0) {
		uint64_t free_bytes = (uint64_t)info.freeram * info.mem_unit;

		if (config.pattern_bytes + HEADROOM_BYTES > free_bytes) {
			report("lu.pattern=%" PRIu64 " does not fit into %" PRIu64 " free bytes",
			       config.pattern_bytes, free_bytes);
			return false;
		}
	}
	area = mmap(NULL, pages * LU_PAGE_SIZE, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (area == MAP_FAILED) {
		report("mmap of %" PRIu64 " pages: %s", pages, strerror(errno));
		return false;
	}
	/* Few faults instead of one per page: each is dear where KVM is nested. */
	madvise(area, pages * LU_PAGE_SIZE, MADV_HUGEPAGE);
	pattern = area;
	for (uint64_t page = 0; page < pages; page++) {
		uint64_t *word = pattern + page * LU_WORDS_PER_PAGE;
		uint64_t value = lu_pattern_word(config.seed, page * LU_WORDS_PER_PAGE);

		for (unsigned int j = 0; j < LU_WORDS_PER_PAGE; j++, value += LU_PATTERN_STEP)
			word[j] = value;
	}
	atomic_store(&state.pattern_pages, pages);
	return true;
}

/* Return: number of pages that differ, also shown in the tick page. */
uint64_t pattern_verify(void)
{
	uint64_t pages = atomic_load(&state.pattern_pages);
	const volatile uint64_t *word = pattern;
	uint64_t bad = 0;

	for (uint64_t page = 0; page < pages; page++) {
		uint64_t value = lu_pattern_word(config.seed, page * LU_WORDS_PER_PAGE);
		uint64_t differ = 0;

		for (unsigned int j = 0; j < LU_WORDS_PER_PAGE; j++, value += LU_PATTERN_STEP)
			differ |= *word++ ^ value;
		bad += differ != 0;
	}
	atomic_store(&state.pattern_bad, bad);
	return bad;
}

uint64_t pattern_gpa(void)
{
	return pattern ? gpa_of(pattern) : 0;
}
