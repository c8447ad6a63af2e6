// SPDX-License-Identifier: Apache-2.0
/* Checksums, clocks, addresses and small parsing. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "payload.h"

#define CRC32_POLYNOMIAL	0xedb88320U

#define PAGEMAP_PRESENT		(1ULL << 63)
#define PAGEMAP_PFN_MASK	((1ULL << 55) - 1)

static uint32_t crc_table[256];

__attribute__((constructor))
static void crc32_init(void)
{
	for (uint32_t i = 0; i < ARRAY_SIZE(crc_table); i++) {
		uint32_t crc = i;

		for (int bit = 0; bit < 8; bit++)
			crc = (crc >> 1) ^ (crc & 1 ? CRC32_POLYNOMIAL : 0);
		crc_table[i] = crc;
	}
}

uint32_t crc32_of(const void *data, size_t len)
{
	const uint8_t *p = data;
	uint32_t crc = ~0U;

	while (len--)
		crc = (crc >> 8) ^ crc_table[(crc ^ *p++) & 0xff];
	return ~crc;
}

uint64_t clock_ns(clockid_t clock)
{
	struct timespec ts = { 0 };

	clock_gettime(clock, &ts);
	return (uint64_t)ts.tv_sec * NSEC_PER_SEC + (uint64_t)ts.tv_nsec;
}

uint64_t read_tsc(void)
{
#if defined(__x86_64__)
	return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
	uint64_t value;

	__asm__ volatile("isb; mrs %0, cntvct_el0" : "=r"(value));
	return value;
#else
#error "no time stamp counter known for this architecture"
#endif
}

/**
 * gpa_of() - guest-physical address of a mapped page
 * Return: the address, 0 when it cannot be told.
 */
uint64_t gpa_of(const void *addr)
{
	uint64_t entry = 0;
	off_t offset = (off_t)((uintptr_t)addr / LU_PAGE_SIZE * sizeof(entry));
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return 0;
	n = pread(fd, &entry, sizeof(entry), offset);
	close(fd);
	if (n != sizeof(entry) || !(entry & PAGEMAP_PRESENT))
		return 0;
	return (entry & PAGEMAP_PFN_MASK) * LU_PAGE_SIZE;
}

/* Decimal digits only: strtoull() alone would take signs, blanks and the empty string. */
bool parse_u64(const char *text, uint64_t *value)
{
	size_t len = strlen(text);

	if (len == 0 || strspn(text, "0123456789") != len)
		return false;
	errno = 0;
	*value = strtoull(text, NULL, 10);
	return errno == 0;
}

bool read_line(const char *path, char *buf, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return false;
	n = read(fd, buf, size - 1);
	close(fd);
	if (n < 0)
		return false;
	buf[n] = '\0';
	buf[strcspn(buf, "\n")] = '\0';
	return true;
}

bool write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return false;
	n = write(fd, text, strlen(text));
	close(fd);
	return n == (ssize_t)strlen(text);
}

void pace_start(struct pace *pace, uint64_t period_ms)
{
	pace->period_ns = period_ms * NSEC_PER_MSEC;
	pace->next_ns = clock_ns(CLOCK_MONOTONIC);
}

/**
 * pace_wait() - sleep until the next period
 * Return: false when the timers are to be dead from now on.
 */
bool pace_wait(struct pace *pace)
{
	uint64_t now = clock_ns(CLOCK_MONOTONIC);
	struct timespec ts;

	pace->next_ns += pace->period_ns;
	/* After a pause one wake-up is due, not all those that were missed. */
	if (pace->next_ns < now)
		pace->next_ns = now + pace->period_ns;
	ts.tv_sec = (time_t)(pace->next_ns / NSEC_PER_SEC);
	ts.tv_nsec = (long)(pace->next_ns % NSEC_PER_SEC);
	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL) == EINTR)
		;
	return !atomic_load(&state.stopped);
}
