// SPDX-License-Identifier: Apache-2.0
/* The console: for people and for the probe guest; results travel over the port. */
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#include "payload.h"

static int console_fd = -1;

void console_init(void)
{
	console_fd = open("/dev/console", O_WRONLY | O_NOCTTY | O_CLOEXEC);
	/* No console= that works: the kernel log is the next best place. */
	if (console_fd < 0)
		console_fd = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
}

void console_line(const char *text)
{
	char line[512];
	int len = snprintf(line, sizeof(line), "liveupdate-guest: %s\n", text);

	if (len < 0 || console_fd < 0)
		return;
	if ((size_t)len >= sizeof(line)) {
		len = sizeof(line) - 1;
		line[len - 1] = '\n';
	}
	/* One write, so that lines of two threads do not mix. Nobody to tell if it fails. */
	if (write(console_fd, line, (size_t)len) < 0)
		console_fd = -1;
}

/* Power off only after the last character has left. */
void console_drain(void)
{
	if (console_fd >= 0)
		tcdrain(console_fd);
}

/* report() - tell of an error on the console and on the port */
void report(const char *fmt, ...)
{
	char text[256];
	va_list args;

	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	console_line(text);
	/* The text becomes a JSON string. */
	for (char *p = text; *p; p++)
		if (*p == '"' || *p == '\\' || (unsigned char)*p < ' ' || (unsigned char)*p > '~')
			*p = '?';
	port_send("{\"ev\":\"error\",\"message\":\"%s\"}", text);
}
