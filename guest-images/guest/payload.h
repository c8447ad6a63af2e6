/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the payload share. Every thread may call anything in here. */
#ifndef LIVEUPDATE_PAYLOAD_H
#define LIVEUPDATE_PAYLOAD_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include "payload_abi.h"

#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))
#define NSEC_PER_SEC	1000000000ULL
#define NSEC_PER_MSEC	1000000ULL

/**
 * struct config - the kernel command line, constant once threads run
 * @pattern_bytes:	lu.pattern=
 * @seed:		lu.seed=
 * @tick_ms:		lu.tick_ms=
 * @journal_ms:		lu.journal_ms=
 * @name:		lu.name=, reduced to letters, digits, '.', '_', '-'
 * @boot:		random number of this boot
 * @probe:		lu.probe
 * @nvme:		lu.nvme: a disk of that kind is passed through
 */
struct config {
	uint64_t	pattern_bytes;
	uint64_t	seed;
	uint64_t	tick_ms;
	uint64_t	journal_ms;
	char		name[64];
	uint64_t	boot;
	bool		probe;
	bool		nvme;
};

/**
 * struct state - counters that one thread writes and others read
 * @stopped:		dead-timer was asked for; never taken back
 * @tick_seq:		newest tick
 * @echo_count:		requests answered
 * @journal_seq:	newest durable record
 * @journal_settled:	the first record is durable on every disk that there is
 * @pattern_pages:	0 until the pattern is filled
 * @pattern_bad:	of the last verification
 */
struct state {
	atomic_bool			stopped;
	_Atomic uint64_t		tick_seq;
	_Atomic uint64_t		echo_count;
	_Atomic uint64_t		journal_seq;
	atomic_bool			journal_settled;
	_Atomic uint64_t		pattern_pages;
	_Atomic uint64_t		pattern_bad;
};

extern struct config config;
extern struct state state;

/* util.c */
uint32_t crc32_of(const void *data, size_t len);
uint64_t clock_ns(clockid_t clock);
uint64_t read_tsc(void);
uint64_t gpa_of(const void *addr);
bool parse_u64(const char *text, uint64_t *value);
bool read_line(const char *path, char *buf, size_t size);
bool write_text(const char *path, const char *text);

/**
 * struct pace - a period that does not catch up after a pause
 * @period_ns:	length
 * @next_ns:	CLOCK_MONOTONIC of the next wake-up
 */
struct pace {
	uint64_t	period_ns;
	uint64_t	next_ns;
};

void pace_start(struct pace *pace, uint64_t period_ms);
bool pace_wait(struct pace *pace);

/* console.c */
void console_init(void);
void console_line(const char *text);
void console_drain(void);
void report(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* pattern.c */
bool pattern_fill(void);
uint64_t pattern_verify(void);
uint64_t pattern_gpa(void);

/* tick.c, echo.c, journal.c: each starts one thread */
bool tick_start(void);
void tick_join(void);
uint64_t tick_gpa(void);
bool echo_start(void);
void echo_stop(void);
const char *echo_mac(void);
void journal_start(void);
uint64_t journal_sectors(void);

/* port.c: the loop of the first thread */
void port_init(void);
void port_loop(void) __attribute__((noreturn));
void port_wake(void);
void port_send(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void port_flush(uint64_t timeout_ms);

/* command.c */
void command_run(char *line);
void command_ready(void);

#endif /* LIVEUPDATE_PAYLOAD_H */
