// SPDX-License-Identifier: Apache-2.0
/*
 * DOC: the payload, PID 1 of a test guest
 *
 * It does what the update must not disturb, in ways that the outside can check:
 * it fills RAM with a pattern (pattern.c), counts in a page of RAM (tick.c),
 * answers on the network (echo.c) and writes a journal to its disk (journal.c).
 * One thread each, so that one that is stuck does not stop the others. Network
 * cards and an NVMe disk that are passed through to it are used in the same way. The first
 * thread serves the virtio-serial port (port.c, command.c).
 *
 * What is absent (disk, NIC, port) is left out and named in `ready`.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <linux/reboot.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <sys/reboot.h>
#include <sys/stat.h>

#include "payload.h"

#define PERIOD_MAX_MS	60000

struct config config = {
	.tick_ms = 10,
	.journal_ms = 50,
	.name = "guest",
};

struct state state;

static void mount_all(void)
{
	static const struct {
		const char *type;
		const char *where;
	} mounts[] = {
		{ "proc", "/proc" },
		{ "sysfs", "/sys" },
		{ "devtmpfs", "/dev" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(mounts); i++) {
		mkdir(mounts[i].where, 0755);
		/* EBUSY: the kernel has mounted it (devtmpfs.mount=1) */
		if (mount(mounts[i].type, mounts[i].where, mounts[i].type, 0, NULL) < 0 &&
		    errno != EBUSY)
			report("mount %s: %s", mounts[i].where, strerror(errno));
	}
}

static void set_number(const char *key, const char *text, uint64_t *value, uint64_t max)
{
	uint64_t number;

	if (!parse_u64(text, &number) || (max && (number == 0 || number > max)))
		report("%s=%.40s is not a number in range; %s=%llu is used", key, text, key,
		       (unsigned long long)*value);
	else
		*value = number;
}

static void set_name(const char *text)
{
	static const char allowed[] = "abcdefghijklmnopqrstuvwxyz"
				      "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";

	snprintf(config.name, sizeof(config.name), "%.*s", (int)strspn(text, allowed), text);
}

static void read_config(void)
{
	char line[4096];
	char *rest = line;
	char *word;

	if (!read_line("/proc/cmdline", line, sizeof(line))) {
		report("/proc/cmdline: %s", strerror(errno));
		return;
	}
	while ((word = strsep(&rest, " "))) {
		char *value = strchr(word, '=');

		if (!strcmp(word, "lu.probe"))
			config.probe = true;
		if (!strcmp(word, "lu.nvme"))
			config.nvme = true;
		if (!value)
			continue;
		*value++ = '\0';
		if (!strcmp(word, "lu.pattern"))
			set_number(word, value, &config.pattern_bytes, 0);
		else if (!strcmp(word, "lu.seed"))
			set_number(word, value, &config.seed, 0);
		else if (!strcmp(word, "lu.tick_ms"))
			set_number(word, value, &config.tick_ms, PERIOD_MAX_MS);
		else if (!strcmp(word, "lu.journal_ms"))
			set_number(word, value, &config.journal_ms, PERIOD_MAX_MS);
		else if (!strcmp(word, "lu.name"))
			set_name(value);
	}
}

/* Never waits for entropy: two boots must differ, no more than that. */
static void choose_boot(void)
{
	if (getrandom(&config.boot, sizeof(config.boot), GRND_INSECURE) < 0)
		config.boot = 0;
	config.boot ^= lu_pattern_word(clock_ns(CLOCK_REALTIME), read_tsc());
	if (!config.boot)
		config.boot = 1;
}

int main(void)
{
	mount_all();
	console_init();
	read_config();
	if (config.probe) {
		console_line("probe ok");
		console_drain();
		reboot(RB_POWER_OFF);
		/* no way to power off: a reset ends a VMM with -no-reboot too */
		reboot(RB_AUTOBOOT);
	}
	choose_boot();
	port_init();
	tick_start();
	echo_start();
	/* Before the journal, whose first record says that the guest is complete. */
	pattern_fill();
	journal_start();
	port_loop();
}
