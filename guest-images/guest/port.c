// SPDX-License-Identifier: Apache-2.0
/*
 * JSON lines over a virtio-serial port, and the loop of the first thread.
 *
 * The host end comes and goes: the VMM is replaced during the update. While it
 * is away poll() reports POLLHUP without end, so the port is watched
 * edge-triggered; virtio_console wakes its waiters when the host end opens.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include "payload.h"

#define PORT_NAME	"org.liveupdate.guest"
#define PORT_CLASS	"/sys/class/virtio-ports"
#define OUT_BYTES	16384
#define LINE_BYTES	1024
#define SEARCH_MS	20
#define SEARCH_MAX_MS	1000

static int port = -1;
static int wake_fd = -1;
static int epoll_fd = -1;
static bool host_open;

/* Lines not yet taken by the host; @out_sent bytes of the first one are on their way. */
static pthread_mutex_t out_mutex = PTHREAD_MUTEX_INITIALIZER;
static char out[OUT_BYTES];
static size_t out_len;
static size_t out_sent;
static unsigned int out_lost;

static char in[LINE_BYTES];
static size_t in_len;
static bool in_skip;

void port_wake(void)
{
	uint64_t one = 1;

	/* Cannot fail but for a full counter, and then the loop is awake already. */
	if (write(wake_fd, &one, sizeof(one)) < 0)
		return;
}

/* port_send() - queue one line; what does not fit is counted, not waited for */
void port_send(const char *fmt, ...)
{
	va_list args;
	int n;

	pthread_mutex_lock(&out_mutex);
	va_start(args, fmt);
	n = vsnprintf(out + out_len, sizeof(out) - out_len, fmt, args);
	va_end(args);
	if (n > 0 && (size_t)n < sizeof(out) - out_len) {
		out_len += (size_t)n;
		out[out_len++] = '\n';
	} else {
		out_lost++;
	}
	pthread_mutex_unlock(&out_mutex);
	if (wake_fd >= 0)
		port_wake();
}

/* Forget the lines that have been written whole. Called with out_mutex held. */
static void drop_sent_lines(void)
{
	char *end = out_sent ? memrchr(out, '\n', out_sent) : NULL;
	size_t done = end ? (size_t)(end - out) + 1 : 0;

	memmove(out, out + done, out_len - done);
	out_len -= done;
	out_sent -= done;
}

static void flush_out(void)
{
	pthread_mutex_lock(&out_mutex);
	while (host_open && out_sent < out_len) {
		ssize_t n = write(port, out + out_sent, out_len - out_sent);

		if (n <= 0)
			break;
		out_sent += (size_t)n;
	}
	drop_sent_lines();
	if (out_lost && !out_len) {
		out_len = (size_t)snprintf(out, sizeof(out),
			"{\"ev\":\"error\",\"message\":\"%u lines lost\"}\n", out_lost);
		out_lost = 0;
		port_wake();
	}
	pthread_mutex_unlock(&out_mutex);
}

/* The host end has opened, perhaps in the middle of a line of ours or of its own. */
static void resync(void)
{
	pthread_mutex_lock(&out_mutex);
	out_sent = 0;
	pthread_mutex_unlock(&out_mutex);
	in_len = 0;
	in_skip = false;
	if (write(port, "\n", 1) < 0 && errno != EAGAIN)
		report("port: %s", strerror(errno));
}

static void take_input(const char *data, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		if (data[i] == '\n') {
			in[in_len] = '\0';
			if (in_skip)
				report("command longer than %d bytes", LINE_BYTES);
			else if (in_len)
				command_run(in);
			in_len = 0;
			in_skip = false;
		} else if (in_len < sizeof(in) - 1) {
			in[in_len++] = data[i];
		} else {
			in_skip = true;
		}
	}
}

static void port_event(uint32_t events)
{
	bool was_open = host_open;
	char data[512];
	ssize_t n;

	host_open = !(events & EPOLLHUP);
	if (host_open && !was_open)
		resync();
	/* Edge-triggered: read until there is no more. 0 means that the host end is closed. */
	while ((n = read(port, data, sizeof(data))) > 0)
		take_input(data, (size_t)n);
}

/* The port appears some time after the driver; it has no name in /dev without udev. */
static bool find_port(void)
{
	struct epoll_event event = { .events = EPOLLIN | EPOLLOUT | EPOLLET, .data.u32 = 1 };
	DIR *dir = opendir(PORT_CLASS);
	struct dirent *entry;

	if (!dir)
		return false;
	while (port < 0 && (entry = readdir(dir))) {
		char path[320];
		char name[64];

		snprintf(path, sizeof(path), PORT_CLASS "/%s/name", entry->d_name);
		if (entry->d_name[0] == '.' || !read_line(path, name, sizeof(name)) ||
		    strcmp(name, PORT_NAME))
			continue;
		snprintf(path, sizeof(path), "/dev/%s", entry->d_name);
		/*
		 * Non-blocking, also for the kernel's sake: a blocking write to a
		 * port spins until the host has taken it.
		 */
		port = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
	}
	closedir(dir);
	if (port >= 0 && epoll_ctl(epoll_fd, EPOLL_CTL_ADD, port, &event) < 0) {
		close(port);
		port = -1;
	}
	return port >= 0;
}

void port_init(void)
{
	struct epoll_event event = { .events = EPOLLIN, .data.u32 = 0 };

	wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (wake_fd < 0 || epoll_fd < 0 ||
	    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, wake_fd, &event) < 0)
		report("port: %s", strerror(errno));
	find_port();
}

static void port_wait(int timeout_ms)
{
	struct epoll_event events[2];
	int n = epoll_wait(epoll_fd, events, ARRAY_SIZE(events), timeout_ms);

	for (int i = 0; i < n; i++) {
		uint64_t count;

		if (events[i].data.u32 == 1)
			port_event(events[i].events);
		else if (read(wake_fd, &count, sizeof(count)) < 0)
			continue;
	}
	if (port >= 0)
		flush_out();
}

/* port_flush() - give the host time to take what is queued, before a reboot */
void port_flush(uint64_t timeout_ms)
{
	uint64_t end_ns = clock_ns(CLOCK_MONOTONIC) + timeout_ms * NSEC_PER_MSEC;

	flush_out();
	while (port >= 0 && out_len && clock_ns(CLOCK_MONOTONIC) < end_ns)
		port_wait(10);
}

void port_loop(void)
{
	int search_ms = SEARCH_MS;

	for (;;) {
		command_ready();
		if (port >= 0) {
			port_wait(-1);
			continue;
		}
		port_wait(search_ms);
		if (!find_port() && search_ms < SEARCH_MAX_MS)
			search_ms *= 2;
	}
}
