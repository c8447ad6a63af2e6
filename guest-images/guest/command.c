// SPDX-License-Identifier: Apache-2.0
/* Commands: one flat JSON object of strings and numbers per line. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <sys/reboot.h>

#include "payload.h"

#define MAX_FIELDS	8
#define FLUSH_MS	500

/* PMBASE and ACPI_CNTL of the ICH9 (datasheet, 13.1.13 and 13.1.14), which follow each other */
#define ISA_BRIDGE	"/sys/bus/pci/devices/0000:00:1f.0/config"
#define PM_BASE		0x40
#define PM_BYTES	5

struct field {
	const char	*key;
	const char	*value;
};

struct command {
	struct field	fields[MAX_FIELDS];
	size_t		count;
};

static char *skip_blanks(char *p)
{
	return p + strspn(p, " \t\r");
}

/* Cut a string or a number out of @p, in place. Return: what follows, NULL on bad syntax. */
static char *take_scalar(char *p, const char **text)
{
	char *end;

	if (*p == '"') {
		*text = ++p;
		/* No value that we know of needs an escape. */
		p += strcspn(p, "\"\\");
		if (*p != '"')
			return NULL;
		*p = '\0';
		return skip_blanks(p + 1);
	}
	end = p + strspn(p, "-0123456789");
	if (end == p)
		return NULL;
	*text = p;
	p = skip_blanks(end);
	/* Without a blank after it the number ends where the caller overwrites the mark. */
	if (p != end)
		*end = '\0';
	return p;
}

static bool parse(char *p, struct command *command)
{
	command->count = 0;
	p = skip_blanks(p);
	if (*p != '{')
		return false;
	do {
		struct field *field = &command->fields[command->count];
		char mark;

		if (command->count == MAX_FIELDS)
			return false;
		p = skip_blanks(p + 1);
		if (*p != '"')
			return false;
		p = take_scalar(p, &field->key);
		if (!p || *p != ':')
			return false;
		p = take_scalar(skip_blanks(p + 1), &field->value);
		if (!p)
			return false;
		command->count++;
		mark = *p;
		/* ends a number; for a string it is past the end already */
		*p = '\0';
		if (mark == '}')
			return *skip_blanks(p + 1) == '\0';
		if (mark != ',')
			return false;
	} while (true);
}

static const char *get(const struct command *command, const char *key)
{
	for (size_t i = 0; i < command->count; i++)
		if (!strcmp(command->fields[i].key, key))
			return command->fields[i].value;
	return "";
}

static void send_ready(void)
{
	port_send("{\"ev\":\"ready\",\"name\":\"%s\",\"boot\":\"%" PRIu64 "\","
		  "\"tick_gpa\":\"%" PRIu64 "\",\"pattern_gpa_first\":\"%" PRIu64 "\","
		  "\"pattern_pages\":\"%" PRIu64 "\",\"seed\":\"%" PRIu64 "\","
		  "\"disk_sectors\":\"%" PRIu64 "\",\"mac\":\"%s\"}",
		  config.name, config.boot, tick_gpa(), pattern_gpa(),
		  atomic_load(&state.pattern_pages), config.seed,
		  journal_sectors(), echo_mac());
}

/* Tell once that the pattern is filled and the first record is durable. */
void command_ready(void)
{
	static bool told;

	if (told || !atomic_load(&state.journal_settled))
		return;
	told = true;
	send_ready();
	console_line("ready");
}

static bool run_hello(const struct command *command)
{
	(void)command;
	/* Asked too early it is answered by the one that comes by itself. */
	if (atomic_load(&state.journal_settled))
		send_ready();
	return true;
}

static bool run_verify(const struct command *command)
{
	uint64_t bad = pattern_verify();

	(void)command;
	port_send("{\"ev\":\"verified\",\"pages\":%" PRIu64 ",\"bad\":%" PRIu64 "}",
		  atomic_load(&state.pattern_pages), bad);
	return true;
}

static bool run_dead_timer(const struct command *command)
{
	(void)command;
	if (atomic_exchange(&state.stopped, true))
		return true;
	/* The journal may sit in a write for long: it is not waited for. */
	echo_stop();
	tick_join();
	return true;
}

static bool set_realtime(uint64_t ns)
{
	struct timespec ts = {
		.tv_sec = (time_t)(ns / NSEC_PER_SEC),
		.tv_nsec = (long)(ns % NSEC_PER_SEC),
	};

	if (clock_settime(CLOCK_REALTIME, &ts) == 0)
		return true;
	report("clock_settime: %s", strerror(errno));
	return false;
}

static bool run_clock_jump(const struct command *command)
{
	const char *text = get(command, "ns");
	bool back = text[0] == '-';
	uint64_t ns;

	if (!parse_u64(text + back, &ns)) {
		report("clock-jump: ns '%.40s' is not a number", text);
		return false;
	}
	return set_realtime(clock_ns(CLOCK_REALTIME) + (back ? -ns : ns));
}

static bool run_settime(const struct command *command)
{
	const char *text = get(command, "realtime_ns");
	uint64_t ns;

	if (!parse_u64(text, &ns)) {
		report("settime: realtime_ns '%.40s' is not a number", text);
		return false;
	}
	return set_realtime(ns);
}

/*
 * Suspend to RAM: the drivers of all devices stop DMA and save what they need.
 * Returns when somebody has woken the machine, perhaps under another VMM.
 *
 * QEMU resets the ICH9 when a q35 wakes up, which takes the ACPI registers out of
 * its I/O space, and SeaBIOS puts them there at boot only: without them the next
 * sleep would end as it begins. A machine without that bridge has no such trouble.
 */
static bool run_sleep(const struct command *command)
{
	uint8_t pm[PM_BYTES];
	int bridge = open(ISA_BRIDGE, O_RDWR | O_CLOEXEC);
	bool saved = pread(bridge, pm, sizeof(pm), PM_BASE) == sizeof(pm);
	bool slept = write_text("/sys/power/mem_sleep", "deep") &&
		     write_text("/sys/power/state", "mem");

	(void)command;
	if (!slept)
		report("sleep: %s", strerror(errno));
	if (saved && pwrite(bridge, pm, sizeof(pm), PM_BASE) != sizeof(pm))
		report("sleep: %s: %s", ISA_BRIDGE, strerror(errno));
	if (bridge >= 0)
		close(bridge);
	return slept;
}

static bool run_reboot(const struct command *command)
{
	(void)command;
	port_send("{\"ev\":\"done\",\"cmd\":\"reboot\"}");
	port_flush(FLUSH_MS);
	reboot(RB_AUTOBOOT);
	report("reboot: %s", strerror(errno));
	return false;
}

static const struct {
	const char	*name;
	bool		(*run)(const struct command *command);
} commands[] = {
	{ "hello",	run_hello },
	{ "verify",	run_verify },
	{ "dead-timer",	run_dead_timer },
	{ "clock-jump",	run_clock_jump },
	{ "settime",	run_settime },
	{ "sleep",	run_sleep },
	{ "reboot",	run_reboot },
};

void command_run(char *line)
{
	struct command command;
	const char *name;

	if (!parse(line, &command)) {
		report("not a command: a flat JSON object is expected");
		return;
	}
	name = get(&command, "cmd");
	for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
		if (strcmp(commands[i].name, name))
			continue;
		if (commands[i].run(&command))
			port_send("{\"ev\":\"done\",\"cmd\":\"%s\"}", name);
		return;
	}
	report("unknown command '%.40s'", name);
}
