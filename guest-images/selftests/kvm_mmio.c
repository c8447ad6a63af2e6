// SPDX-License-Identifier: GPL-2.0-only
/*
 * PID 1 of a guest under KVM: stores to pages of MMIO that KVM has not seen yet
 * or has forgotten, each right after exceptions that the guest took without an
 * exit. A KVM that mistakes such an exception for one under delivery ends the
 * guest at the store (guest-images/kernel/fixes/0001).
 *
 * The exceptions are read faults on fresh anonymous pages, for which the guest's
 * kernel maps the zero page. The MMIO belongs to two of QEMU's pci-testdev:
 *
 *   -device pci-testdev,addr=0x5,membar=4M
 *   -device pci-testdev,addr=0x6,membar=1M,membar-backed=on
 *
 * There is nothing behind BAR 2 of the first, so each page of it is MMIO. Behind
 * BAR 2 of the second there is RAM: disabling it deletes a memslot, and KVM then
 * drops its page tables of the guest, pages of MMIO included.
 */
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <unistd.h>

#include "ktap.h"

#define PAGE		4096L
#define NR_PAGES	1000
#define NR_CHANGES	100
#define NR_FAULTS	3
#define MMIO_DEVICE	"/sys/bus/pci/devices/0000:00:05.0"
#define RAM_DEVICE	"/sys/bus/pci/devices/0000:00:06.0"
/* the command register and its bit for memory space: PCI Local Bus 3.0, 6.2.2 */
#define COMMAND		4
#define COMMAND_MEMORY	2

static unsigned char *mmio;
static unsigned char *fresh;

static void load(const unsigned char *from)
{
	unsigned char value;

	asm volatile("movb %1, %0" : "=q"(value) : "m"(*from));
}

static void store(unsigned char *to)
{
	asm volatile("movb $1, %0" : "=m"(*to));
}

/* Read pages that nobody has touched before. */
static void take_faults(void)
{
	int i;

	for (i = 0; i < NR_FAULTS; i++, fresh += PAGE)
		load(fresh);
}

static long count_faults(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return usage.ru_minflt;
}

/* Let a device decode memory, or not. */
static int set_memory(int config, int on)
{
	unsigned short command;

	if (pread(config, &command, sizeof(command), COMMAND) != sizeof(command))
		return -1;
	command = on ? command | COMMAND_MEMORY : command & ~COMMAND_MEMORY;
	return pwrite(config, &command, sizeof(command), COMMAND) == sizeof(command) ? 0 : -1;
}

static int test_setup(void)
{
	int config = open(MMIO_DEVICE "/config", O_RDWR);
	int bar = open(MMIO_DEVICE "/resource2", O_RDWR);

	EXPECT(config >= 0);
	EXPECT(bar >= 0);
	EXPECT(set_memory(config, 1) == 0);
	close(config);
	mmio = mmap(NULL, NR_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, bar, 0);
	EXPECT(mmio != MAP_FAILED);
	fresh = mmap(NULL, (NR_PAGES + NR_CHANGES) * NR_FAULTS * PAGE, PROT_READ,
		     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	EXPECT(fresh != MAP_FAILED);
	return 0;
}

static int test_first_access_to_a_page(void)
{
	long before = count_faults();
	int i;

	for (i = 0; i < NR_PAGES; i++) {
		take_faults();
		store(mmio + i * PAGE);
		if (i == 0 || i == NR_PAGES - 1)
			printf("# %d of %d pages\n", i + 1, NR_PAGES);
	}
	EXPECT(count_faults() - before >= NR_PAGES * NR_FAULTS);
	return 0;
}

static int test_first_access_after_a_memslot_is_gone(void)
{
	int config = open(RAM_DEVICE "/config", O_RDWR);
	long before = count_faults();
	int i;

	EXPECT(config >= 0);
	for (i = 0; i < NR_CHANGES; i++) {
		EXPECT(set_memory(config, 1) == 0);
		EXPECT(set_memory(config, 0) == 0);
		/* KVM has to learn again where the page tables of the mapping are. */
		load(mmio + PAGE);
		take_faults();
		store(mmio);
		if (i == 0 || i == NR_CHANGES - 1)
			printf("# %d of %d changes\n", i + 1, NR_CHANGES);
	}
	EXPECT(count_faults() - before >= NR_CHANGES * NR_FAULTS);
	return 0;
}

static const struct ktap_case cases[] = {
	{ "setup", test_setup },
	{ "first_access_to_a_page", test_first_access_to_a_page },
	{ "first_access_after_a_memslot_is_gone", test_first_access_after_a_memslot_is_gone },
};

int main(void)
{
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	ktap_run(cases, KTAP_COUNT(cases));
	/* The kernel panics when PID 1 returns. */
	reboot(RB_POWER_OFF);
	return 0;
}
