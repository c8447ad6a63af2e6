// SPDX-License-Identifier: Apache-2.0
/* Network echo straight on Ethernet: no address, no ARP, nothing to configure. */
#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "payload.h"

struct frame {
	struct ether_header	eth;
	struct lu_echo		echo;
} __attribute__((packed));

#define DRIVER_VIRTIO	"virtio_net"

static char mac[18];
static uint8_t mac_octets[ETH_ALEN];
static int sock = -1;
static int stop_fd = -1;
static pthread_t thread;

static bool parse_mac(void)
{
	uint8_t *o = mac_octets;

	return sscanf(mac, "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx",
		      &o[0], &o[1], &o[2], &o[3], &o[4], &o[5]) == ETH_ALEN;
}

static bool link_up(const char *name)
{
	struct ifreq ifr = { 0 };

	memcpy(ifr.ifr_name, name, strnlen(name, IFNAMSIZ - 1));
	if (ioctl(sock, SIOCGIFFLAGS, &ifr) < 0)
		return false;
	ifr.ifr_flags |= IFF_UP;
	return ioctl(sock, SIOCSIFFLAGS, &ifr) == 0;
}

static bool is_ethernet(const char *name)
{
	char path[320];
	char type[16];

	snprintf(path, sizeof(path), "/sys/class/net/%s/type", name);
	return name[0] != '.' && read_line(path, type, sizeof(type)) && !strcmp(type, "1");
}

static bool is_virtio(const char *name)
{
	char path[320];
	char target[256];
	ssize_t n;

	snprintf(path, sizeof(path), "/sys/class/net/%s/device/driver", name);
	n = readlink(path, target, sizeof(target) - 1);
	if (n < 0)
		return false;
	target[n] = '\0';
	return !strcmp(basename(target), DRIVER_VIRTIO);
}

/* Take every interface that is Ethernet; the address that is told is the virtio one's. */
static bool take_nics(void)
{
	DIR *dir = opendir("/sys/class/net");
	struct dirent *entry;
	bool found = false;

	if (!dir)
		return false;
	while ((entry = readdir(dir))) {
		char path[320];

		if (!is_ethernet(entry->d_name))
			continue;
		if (!link_up(entry->d_name)) {
			report("echo: %s does not go up: %s", entry->d_name, strerror(errno));
			continue;
		}
		if (found && !is_virtio(entry->d_name))
			continue;
		snprintf(path, sizeof(path), "/sys/class/net/%s/address", entry->d_name);
		found = (read_line(path, mac, sizeof(mac)) && parse_mac()) || found;
	}
	closedir(dir);
	return found;
}

static bool is_request(const struct frame *frame, size_t len)
{
	const struct lu_echo *echo = &frame->echo;

	return len >= sizeof(*frame) && echo->magic == LU_ECHO_MAGIC &&
	       echo->version == LU_ECHO_VERSION && echo->kind == LU_ECHO_REQUEST &&
	       echo->crc32 == crc32_of(echo, offsetof(struct lu_echo, crc32));
}

/* Answer through the interface that the request came in by, @from. */
static void answer(struct frame *frame, const struct sockaddr_ll *from)
{
	struct lu_echo *echo = &frame->echo;
	uint8_t own[ETH_ALEN];

	memcpy(own, from->sll_pkttype == PACKET_HOST ? frame->eth.ether_dhost : mac_octets,
	       ETH_ALEN);
	memcpy(frame->eth.ether_dhost, frame->eth.ether_shost, ETH_ALEN);
	memcpy(frame->eth.ether_shost, own, ETH_ALEN);
	echo->kind = LU_ECHO_REPLY;
	echo->boot = config.boot;
	echo->tick_seq = atomic_load(&state.tick_seq);
	echo->monotonic_ns = clock_ns(CLOCK_MONOTONIC);
	echo->boottime_ns = clock_ns(CLOCK_BOOTTIME);
	echo->realtime_ns = clock_ns(CLOCK_REALTIME);
	echo->tsc = read_tsc();
	echo->crc32 = crc32_of(echo, offsetof(struct lu_echo, crc32));
	/* A full transmit queue loses the reply, as a network may. */
	if (sendto(sock, frame, sizeof(*frame), MSG_DONTWAIT, (const struct sockaddr *)from,
		   sizeof(*from)) == sizeof(*frame))
		atomic_fetch_add(&state.echo_count, 1);
}

static void *echo_thread(void *arg)
{
	struct pollfd fds[] = {
		{ .fd = sock, .events = POLLIN },
		{ .fd = stop_fd, .events = POLLIN },
	};
	bool failing = false;

	while (!atomic_load(&state.stopped)) {
		struct sockaddr_ll from = { 0 };
		socklen_t from_len = sizeof(from);
		struct frame frame;
		ssize_t n;

		if (poll(fds, ARRAY_SIZE(fds), -1) < 0 || !fds[0].revents)
			continue;
		n = recvfrom(sock, &frame, sizeof(frame), MSG_DONTWAIT,
			     (struct sockaddr *)&from, &from_len);
		if (n < 0 && errno != EAGAIN && errno != EINTR) {
			if (!failing)
				report("echo: %s", strerror(errno));
			failing = true;
			/* a link that is down reports it again at once */
			poll(&fds[1], 1, 1000);
			continue;
		}
		failing = false;
		if (n > 0 && from.sll_pkttype != PACKET_OTHERHOST &&
		    is_request(&frame, (size_t)n))
			answer(&frame, &from);
	}
	return arg;
}

/* Return: false when there is no NIC, or after a report. */
bool echo_start(void)
{
	struct sched_param param = { .sched_priority = 5 };
	struct sockaddr_ll addr = {
		.sll_family = AF_PACKET,
		.sll_protocol = htons(LU_ECHO_ETHERTYPE),
	};
	int err;

	/* of no interface: requests are taken from all of them */
	sock = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
	stop_fd = eventfd(0, EFD_CLOEXEC);
	if (sock < 0 || stop_fd < 0) {
		report("echo: %s", strerror(errno));
		goto err_close;
	}
	if (!take_nics()) {
		mac[0] = '\0';
		goto err_close;
	}
	if (bind(sock, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
		report("echo: %s", strerror(errno));
		goto err_close;
	}
	err = pthread_create(&thread, NULL, echo_thread, NULL);
	if (err) {
		report("echo thread: %s", strerror(err));
		goto err_close;
	}
	pthread_setschedparam(thread, SCHED_FIFO, &param);
	return true;

err_close:
	if (stop_fd >= 0)
		close(stop_fd);
	if (sock >= 0)
		close(sock);
	stop_fd = -1;
	sock = -1;
	return false;
}

/* Called once, after state.stopped is set. */
void echo_stop(void)
{
	uint64_t one = 1;

	if (stop_fd < 0)
		return;
	if (write(stop_fd, &one, sizeof(one)) == sizeof(one))
		pthread_join(thread, NULL);
}

/* Return: address of the virtio NIC, or of the only other; "" without one. */
const char *echo_mac(void)
{
	return mac;
}
