// SPDX-License-Identifier: Apache-2.0
/*
 * PID 1 of the host under update.
 *
 * Guests are standing still while this runs on the incoming kernel, so the
 * order is: mount what the agent needs, start the agent, and leave all else
 * (network, sshd) until the agent has said over a pipe that the guests run
 * again, or READY_TIMEOUT_MS have passed.
 *
 * Static, so that nothing has to be linked at run time. Restarts nothing: a
 * dead agent or sshd is a fact about the run, and is printed.
 *
 * Build: cc -static -O2 -Wall -Wextra -Werror -o liveupdate-init init.c
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <net/route.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#define READY_FD 3		/* the agent's end of the pipe; told by the environment */
#define READY_TIMEOUT_MS 8000	/* sshd must come up even if the agent hangs */
#define SSH_MAC "52:54:00:10:00:01"
#define SSH_ADDRESS "10.0.2.15"
#define SSH_NETMASK "255.255.255.0"
#define SSH_GATEWAY "10.0.2.2"

static char *const child_env[] = {
	"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
	"HOME=/root", "LANG=C.UTF-8", "LIVEUPDATE_READY_FD=3", NULL
};

static void say(const char *format, ...)
{
	char line[256] = "liveupdate-init: ";
	size_t used = strlen(line);
	va_list args;
	int n;

	va_start(args, format);
	n = vsnprintf(line + used, sizeof(line) - used - 1, format, args);
	va_end(args);
	if (n > 0)
		used += (size_t)n < sizeof(line) - used - 1 ? (size_t)n : sizeof(line) - used - 2;
	line[used++] = '\n';
	if (write(STDERR_FILENO, line, used) < 0)
		return;		/* nobody left to tell */
}

static void mount_at(const char *type, const char *where, unsigned long flags, const char *data)
{
	/* EBUSY: the kernel was there first (CONFIG_DEVTMPFS_MOUNT) */
	if (mount(type, where, type, flags, data) && errno != EBUSY)
		say("cannot mount %s on %s: %s", type, where, strerror(errno));
}

/* Read a small file into buf as a string without its last newline; -1: not there. */
static int read_small(const char *path, char *buf, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return -1;
	n = read(fd, buf, size - 1);
	close(fd);
	if (n < 0)
		return -1;
	while (n > 0 && buf[n - 1] == '\n')
		n--;
	buf[n] = '\0';
	return 0;
}

/* The kit disk is told by its virtio-blk serial: letters depend on probe order. */
static int mount_kit(void)
{
	char path[300], serial[64], dev[300];
	struct dirent *entry;
	DIR *dir = opendir("/sys/block");
	int found = -1;

	while (dir && (entry = readdir(dir))) {
		if (strncmp(entry->d_name, "vd", 2))
			continue;
		snprintf(path, sizeof(path), "/sys/block/%s/serial", entry->d_name);
		if (read_small(path, serial, sizeof(serial)) || strcmp(serial, "kit"))
			continue;
		snprintf(dev, sizeof(dev), "/dev/%s", entry->d_name);
		found = mount(dev, "/kit", "ext4", MS_RDONLY | MS_NODEV | MS_NOSUID, "noload");
		if (found)
			say("cannot mount %s on /kit: %s", dev, strerror(errno));
		break;
	}
	if (dir)
		closedir(dir);
	if (found)
		say("no kit: there is no usable virtio-blk disk with serial 'kit'");
	return found;
}

static pid_t start(char *const argv[], int ready_fd)
{
	pid_t pid = fork();
	int null;

	if (pid)
		return pid;
	setsid();
	null = open("/dev/null", O_RDONLY);
	dup2(null, STDIN_FILENO);
	if (ready_fd >= 0 && ready_fd != READY_FD)
		dup2(ready_fd, READY_FD);	/* without close-on-exec */
	else if (ready_fd >= 0)
		fcntl(ready_fd, F_SETFD, 0);
	execve(argv[0], argv, child_env);
	say("cannot run %s: %s", argv[0], strerror(errno));
	_exit(127);
}

static int set_address(int sock, unsigned long request, struct ifreq *ifr, const char *address)
{
	struct sockaddr_in *in = (struct sockaddr_in *)&ifr->ifr_addr;

	memset(in, 0, sizeof(*in));
	in->sin_family = AF_INET;
	inet_pton(AF_INET, address, &in->sin_addr);
	return ioctl(sock, request, ifr);
}

static int set_up(int sock, struct ifreq *ifr)
{
	if (ioctl(sock, SIOCGIFFLAGS, ifr))
		return -1;
	ifr->ifr_flags |= IFF_UP | IFF_RUNNING;
	return ioctl(sock, SIOCSIFFLAGS, ifr);
}

static void set_route(struct sockaddr *to, const char *address)
{
	struct sockaddr_in *in = (struct sockaddr_in *)to;

	memset(in, 0, sizeof(*in));
	in->sin_family = AF_INET;
	inet_pton(AF_INET, address, &in->sin_addr);
}

/* The management network; the other NIC is the agent's (guests' bridge). */
static void network(void)
{
	char path[300], mac[32];
	struct rtentry route = { .rt_flags = RTF_UP | RTF_GATEWAY };
	struct ifreq ifr = { .ifr_name = "lo" };
	struct dirent *entry;
	DIR *dir;
	int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	set_up(sock, &ifr);
	dir = opendir("/sys/class/net");
	while (dir && (entry = readdir(dir))) {
		snprintf(path, sizeof(path), "/sys/class/net/%s/address", entry->d_name);
		if (read_small(path, mac, sizeof(mac)) || strcmp(mac, SSH_MAC))
			continue;
		memset(&ifr, 0, sizeof(ifr));
		snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "%.15s", entry->d_name);
		set_route(&route.rt_dst, "0.0.0.0");
		set_route(&route.rt_genmask, "0.0.0.0");
		set_route(&route.rt_gateway, SSH_GATEWAY);
		if (set_address(sock, SIOCSIFADDR, &ifr, SSH_ADDRESS) ||
		    set_address(sock, SIOCSIFNETMASK, &ifr, SSH_NETMASK) ||
		    set_up(sock, &ifr) || ioctl(sock, SIOCADDRT, &route))
			say("cannot configure %s: %s", entry->d_name, strerror(errno));
		break;
	}
	if (dir)
		closedir(dir);
	close(sock);
}

/*
 * Have the VMM's binary and libraries in the page cache, linked once, while the
 * agent starts on another CPU. Measured under TCG with nothing cached: start of
 * the VMM 1.8 to 3.3 s without, 1.0 to 1.8 s with.
 */
static void warm_vmm(void)
{
	static char *const argv[] = { "/usr/bin/qemu-system-x86_64", "--version", NULL };
	int null;

	if (access("/sys/kernel/debug/kho/in", F_OK))
		return;		/* a cold boot: no guest is waiting */
	if (fork())
		return;
	null = open("/dev/null", O_RDWR);
	dup2(null, STDIN_FILENO);
	dup2(null, STDOUT_FILENO);
	dup2(null, STDERR_FILENO);
	execve(argv[0], argv, child_env);
	_exit(127);
}

/* What sshd and login shells want and the agent does not. */
static void late_mounts(void)
{
	mount_at("tmpfs", "/tmp", MS_NOSUID | MS_NODEV, "mode=1777");
	mount_at("tmpfs", "/var", MS_NOSUID | MS_NODEV, "mode=0755");
	mkdir("/dev/pts", 0755);
	mount_at("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "gid=5,mode=620,ptmxmode=666");
	mkdir("/dev/shm", 01777);
	mount_at("tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV, "mode=1777");
	mkdir("/run/sshd", 0755);
	mkdir("/run/lock", 01777);
	mkdir("/var/log", 0755);
	mkdir("/var/tmp", 01777);
	mkdir("/var/lib", 0755);
	if (symlink("/run", "/var/run"))
		say("cannot link /var/run: %s", strerror(errno));
}

int main(void)
{
	/* not the directory: Python would import runpy and half of importlib to run that */
	static char *const agent_argv[] = { "/usr/bin/python3", "-I", "-S",
					    "/kit/agent/__main__.py", NULL };
	static char *const sshd_argv[] = { "/usr/sbin/sshd", "-D", "-e", NULL };
	pid_t agent = -1, sshd, pid;
	struct pollfd ready;
	int pipefd[2], status, console;

	mount_at("proc", "/proc", MS_NOSUID | MS_NOEXEC | MS_NODEV, NULL);
	mount_at("devtmpfs", "/dev", MS_NOSUID, "mode=0755");
	console = open("/dev/console", O_RDWR);
	if (console >= 0) {
		dup2(console, STDIN_FILENO);
		dup2(console, STDOUT_FILENO);
		dup2(console, STDERR_FILENO);
		if (console > STDERR_FILENO)
			close(console);
	}
	mount_at("sysfs", "/sys", MS_NOSUID | MS_NOEXEC | MS_NODEV, NULL);
	mount_at("tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=0755");
	mount_at("debugfs", "/sys/kernel/debug", MS_NOSUID | MS_NOEXEC | MS_NODEV, NULL);

	if (pipe2(pipefd, O_CLOEXEC)) {
		say("no pipe: %s", strerror(errno));
		pipefd[0] = pipefd[1] = -1;
	}
	if (!mount_kit())
		agent = start(agent_argv, pipefd[1]);
	close(pipefd[1]);
	warm_vmm();

	late_mounts();
	network();
	/* Readable or hung up (agent dead): either way there is nothing to wait for. */
	ready = (struct pollfd){ .fd = pipefd[0], .events = POLLIN };
	if (agent > 0 && poll(&ready, 1, READY_TIMEOUT_MS) == 0)
		say("agent not ready after %d ms, starting sshd all the same", READY_TIMEOUT_MS);
	close(pipefd[0]);
	sshd = start(sshd_argv, -1);

	for (;;) {
		pid = wait(&status);
		if (pid < 0 && errno == ECHILD)
			pause();
		if (pid < 0)
			continue;
		if (WIFSIGNALED(status))
			status = 128 + WTERMSIG(status);
		else
			status = WEXITSTATUS(status);
		if (pid == agent)
			say("agent ended with status %d", status);
		else if (pid == sshd)
			say("sshd ended with status %d", status);
	}
}
