// SPDX-License-Identifier: GPL-2.0-only
/*
 * /dev/prmem across a kexec. Stage 1 creates instances, as user space and as a
 * driver (prmem_test), tries what must be refused and harms the record of one;
 * stage 2 finds on the next kernel what was there, all but that one, and gives
 * it back.
 */
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <linux/prmem.h>

#include "ktap.h"

#define KEPT_BYTES	(5UL << 20)
#define GROWN_BYTES	(3UL << 20)
#define NEW_BYTES	(64UL << 20)
#define STATE_BYTES	12345UL
#define COMMAND		"/sys/kernel/debug/prmem_test/command"
#define MAX_BYTES	"/sys/module/prmem/parameters/max_bytes"

static int open_device(void)
{
	static int fd = -1;

	if (fd < 0)
		fd = open("/dev/prmem", O_RDWR);
	return fd;
}

static int call(unsigned long request, const char *name, struct prmem_info *info)
{
	struct prmem_info own;

	if (!info) {
		memset(&own, 0, sizeof(own));
		info = &own;
	}
	snprintf(info->name, sizeof(info->name), "%s", name);
	return ioctl(open_device(), request, info);
}

static int stat_all(struct prmem_stat *stat)
{
	return ioctl(open_device(), PRMEM_STAT, stat);
}

static int write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);
	int done;

	if (fd < 0)
		return -1;
	done = write(fd, text, strlen(text)) == (long)strlen(text) ? 0 : -1;
	close(fd);
	return done;
}

/* What byte i of an instance has to be. */
static unsigned char pattern(unsigned long i, unsigned int seed)
{
	return (unsigned char)(i * 2654435761UL >> 13) + seed;
}

static unsigned char *map(const struct prmem_info *info)
{
	return mmap(NULL, (info->bytes + 4095) & ~4095UL, PROT_READ | PROT_WRITE, MAP_SHARED,
		    open_device(), info->offset);
}

static int nothing_is_there_at_first(void)
{
	struct prmem_stat stat = {};

	EXPECT(open_device() >= 0);
	EXPECT(!stat_all(&stat));
	EXPECT(stat.state == PRMEM_STATE_BLANK);
	EXPECT(stat.nr_instances == 0 && stat.bytes == 0 && stat.root != 0);
	return 0;
}

static int instance_is_created_zeroed_and_written(void)
{
	struct prmem_info info = { .bytes = KEPT_BYTES, .value = 42 };
	unsigned char *memory;
	unsigned long i;

	EXPECT(!call(PRMEM_CREATE, "kept", &info));
	EXPECT(info.offset && info.record);
	memory = map(&info);
	EXPECT(memory != MAP_FAILED);
	for (i = 0; i < KEPT_BYTES; i++) {
		EXPECT(memory[i] == 0);
		memory[i] = pattern(i, 1);
	}
	EXPECT(!munmap(memory, KEPT_BYTES));
	return 0;
}

static int instance_in_use_is_not_freed(void)
{
	struct prmem_info info = {};
	unsigned char *memory;

	EXPECT(!call(PRMEM_INFO, "kept", &info));
	EXPECT(info.users == 0);
	memory = map(&info);
	EXPECT(memory != MAP_FAILED);
	EXPECT(call(PRMEM_FREE, "kept", NULL) == -1 && errno == EBUSY);
	/* a hole in the middle makes two mappings of one */
	EXPECT(memory[7] == pattern(7, 1));
	EXPECT(!munmap(memory + (2UL << 20), 1UL << 20));
	EXPECT(!call(PRMEM_INFO, "kept", &info));
	EXPECT(info.users == 2);
	EXPECT(memory[(2UL << 20) - 1] == pattern((2UL << 20) - 1, 1));
	EXPECT(!munmap(memory, 2UL << 20));
	EXPECT(call(PRMEM_FREE, "kept", NULL) == -1 && errno == EBUSY);
	EXPECT(!munmap(memory + (3UL << 20), 2UL << 20));
	EXPECT(!call(PRMEM_INFO, "kept", &info));
	EXPECT(info.users == 0);
	return 0;
}

static int nothing_outside_of_an_instance_is_mapped(void)
{
	struct prmem_info info = {};
	int fd = open_device();

	EXPECT(!call(PRMEM_INFO, "kept", &info));
	EXPECT(mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED && errno == EINVAL);
	EXPECT(mmap(NULL, KEPT_BYTES + 4096, PROT_READ, MAP_SHARED, fd, info.offset) ==
	       MAP_FAILED && errno == EINVAL);
	EXPECT(mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, info.offset + KEPT_BYTES) ==
	       MAP_FAILED && errno == EINVAL);
	EXPECT(mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 1L << 60) == MAP_FAILED &&
	       errno == EINVAL);
	EXPECT(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, fd, info.offset) == MAP_FAILED &&
	       errno == EINVAL);
	EXPECT(pread(fd, &info, sizeof(info), 0) == -1 && errno == EINVAL);
	EXPECT(pwrite(fd, &info, sizeof(info), 64) == -1 && errno == EINVAL);
	return 0;
}

static int instance_grows_where_it_is(void)
{
	struct prmem_info info = { .bytes = 100 };
	unsigned char *memory;
	char byte = 'g';

	EXPECT(!call(PRMEM_CREATE, "grown", &info));
	memory = map(&info);
	EXPECT(memory != MAP_FAILED);
	memory[99] = 'b';
	info.bytes = GROWN_BYTES;
	EXPECT(!call(PRMEM_GROW, "grown", &info));
	EXPECT(info.bytes == GROWN_BYTES);
	EXPECT(pread(open_device(), &byte, 1, info.offset + 99) == 1 && byte == 'b');
	EXPECT(pread(open_device(), &byte, 1, info.offset + GROWN_BYTES - 1) == 1 && byte == 0);
	byte = 'e';
	EXPECT(pwrite(open_device(), &byte, 1, info.offset + GROWN_BYTES - 1) == 1);
	EXPECT(!munmap(memory, 4096));
	info.bytes = 100;
	EXPECT(call(PRMEM_GROW, "grown", &info) == -1 && errno == EINVAL);
	return 0;
}

static int state_is_written_and_sealed(void)
{
	struct prmem_info info = { .bytes = STATE_BYTES };
	unsigned char state[STATE_BYTES];
	unsigned long i;

	EXPECT(!call(PRMEM_CREATE, "state", &info));
	for (i = 0; i < STATE_BYTES; i++)
		state[i] = pattern(i, 2);
	EXPECT(pwrite(open_device(), state, STATE_BYTES, info.offset) == (long)STATE_BYTES);
	EXPECT(call(PRMEM_VERIFY, "state", NULL) == -1 && errno == ENODATA);
	EXPECT(!call(PRMEM_SEAL, "state", NULL));
	EXPECT(!call(PRMEM_VERIFY, "state", NULL));
	state[0] ^= 1;
	EXPECT(pwrite(open_device(), state, 1, info.offset) == 1);
	EXPECT(call(PRMEM_VERIFY, "state", NULL) == -1 && errno == EBADMSG);
	state[0] ^= 1;
	EXPECT(pwrite(open_device(), state, 1, info.offset) == 1);
	EXPECT(!call(PRMEM_VERIFY, "state", NULL));
	info.bytes = STATE_BYTES + 1;
	EXPECT(call(PRMEM_GROW, "state", &info) == -1 && errno == EPERM);
	return 0;
}

static int freed_memory_is_gone(void)
{
	struct prmem_info info = { .bytes = 1 }, again = { .bytes = 1 };
	struct prmem_stat before = {}, after = {};
	char byte = 'x';

	EXPECT(!stat_all(&before));
	EXPECT(!call(PRMEM_CREATE, "passing", &info));
	EXPECT(pwrite(open_device(), &byte, 1, info.offset) == 1);
	EXPECT(!call(PRMEM_FREE, "passing", NULL));
	EXPECT(call(PRMEM_INFO, "passing", NULL) == -1 && errno == ENOENT);
	EXPECT(pread(open_device(), &byte, 1, info.offset) == -1 && errno == EINVAL);
	EXPECT(!call(PRMEM_CREATE, "passing", &again));
	EXPECT(again.offset != info.offset);
	EXPECT(pread(open_device(), &byte, 1, again.offset) == 1 && byte == 0);
	EXPECT(!call(PRMEM_FREE, "passing", NULL));
	EXPECT(!stat_all(&after));
	EXPECT(after.bytes == before.bytes && after.meta == before.meta);
	return 0;
}

static int nonsense_is_refused(void)
{
	struct prmem_info info = { .bytes = 1 };
	unsigned long confirm = 1;

	EXPECT(call(PRMEM_CREATE, "kept", &info) == -1 && errno == EEXIST);
	EXPECT(call(PRMEM_CREATE, "", &info) == -1 && errno == EINVAL);
	memset(info.name, 'x', sizeof(info.name));
	EXPECT(ioctl(open_device(), PRMEM_CREATE, &info) == -1 && errno == EINVAL);
	memset(&info, 0, sizeof(info));
	EXPECT(call(PRMEM_CREATE, "nothing", &info) == -1 && errno == EINVAL);
	info.bytes = ~0UL;
	EXPECT(call(PRMEM_CREATE, "large", &info) == -1 && errno == ENOSPC);
	EXPECT(ioctl(open_device(), PRMEM_RELEASE, &confirm) == -1 && errno == EINVAL);
	EXPECT(ioctl(open_device(), 0x1234, &confirm) == -1 && errno == ENOTTY);
	return 0;
}

static int limit_is_kept(void)
{
	struct prmem_info info = { .bytes = 8192 };
	struct prmem_stat stat = {};
	char text[32];

	EXPECT(!stat_all(&stat));
	snprintf(text, sizeof(text), "%llu", stat.bytes + 4096);
	EXPECT(!write_text(MAX_BYTES, text));
	EXPECT(call(PRMEM_CREATE, "large", &info) == -1 && errno == ENOSPC);
	EXPECT(!write_text(MAX_BYTES, "18446744073709551615"));
	EXPECT(!call(PRMEM_CREATE, "large", &info));
	EXPECT(!call(PRMEM_FREE, "large", NULL));
	return 0;
}

static int driver_keeps_an_instance(void)
{
	struct prmem_info info = {};

	EXPECT(!write_text(COMMAND, "keep driver 6000000 77"));
	EXPECT(!call(PRMEM_INFO, "driver", &info));
	EXPECT(info.value == 77 && info.bytes == 6000000 && info.users == 0);
	return 0;
}

static int instances_are_listed(void)
{
	static const char * const names[] = { "kept", "grown", "state", "driver" };
	struct prmem_list list = {};

	for (; list.index < 4; list.index++) {
		EXPECT(!ioctl(open_device(), PRMEM_LIST, &list));
		EXPECT(!strcmp(list.info.name, names[list.index]));
		EXPECT(!(list.info.flags & PRMEM_INSTANCE_REFUSED));
	}
	return 0;
}

static int record_of_one_is_harmed(void)
{
	struct prmem_info info = { .bytes = 1UL << 20 };
	char text[40];

	EXPECT(!call(PRMEM_CREATE, "harmed", &info));
	snprintf(text, sizeof(text), "flip %#llx", info.record + 8);
	EXPECT(!write_text(COMMAND, text));
	return 0;
}

static int content_is_what_was_written(void)
{
	unsigned char *memory, state[STATE_BYTES], byte;
	struct prmem_info info = {};
	unsigned long i;

	EXPECT(!call(PRMEM_INFO, "kept", &info));
	EXPECT(info.bytes == KEPT_BYTES && info.users == 0 && info.value == 42);
	memory = map(&info);
	EXPECT(memory != MAP_FAILED);
	for (i = 0; i < KEPT_BYTES; i++)
		EXPECT(memory[i] == pattern(i, 1));
	EXPECT(!munmap(memory, KEPT_BYTES));
	EXPECT(!call(PRMEM_INFO, "grown", &info));
	EXPECT(info.bytes == GROWN_BYTES);
	EXPECT(pread(open_device(), &byte, 1, info.offset + 99) == 1 && byte == 'b');
	EXPECT(pread(open_device(), &byte, 1, info.offset + GROWN_BYTES - 1) == 1 && byte == 'e');
	EXPECT(!call(PRMEM_VERIFY, "state", NULL));
	EXPECT(!call(PRMEM_INFO, "state", &info));
	EXPECT(pread(open_device(), state, STATE_BYTES, info.offset) == (long)STATE_BYTES);
	for (i = 0; i < STATE_BYTES; i++)
		EXPECT(state[i] == pattern(i, 2));
	return 0;
}

static int driver_finds_its_instance(void)
{
	EXPECT(!write_text(COMMAND, "check driver 6000000"));
	EXPECT(write_text(COMMAND, "check driver 6000008") == -1 && errno == EFBIG);
	EXPECT(write_text(COMMAND, "check stranger 8") == -1 && errno == ENOENT);
	return 0;
}

static int harmed_instance_is_refused_alone(void)
{
	struct prmem_info info = {}, again = { .bytes = 1 };
	struct prmem_stat stat = {};

	EXPECT(!stat_all(&stat));
	EXPECT(stat.state == PRMEM_STATE_READY && stat.nr_instances == 5 && stat.nr_refused == 1);
	EXPECT(!call(PRMEM_INFO, "harmed", &info));
	EXPECT(info.flags == PRMEM_INSTANCE_REFUSED);
	EXPECT(!strcmp(info.reason, "the checksum of its record is wrong"));
	EXPECT(info.bytes == 0 && info.offset == 0);
	EXPECT(call(PRMEM_VERIFY, "harmed", NULL) == -1 && errno == EUCLEAN);
	EXPECT(call(PRMEM_GROW, "harmed", &again) == -1 && errno == EUCLEAN);
	EXPECT(write_text(COMMAND, "check harmed 8") == -1 && errno == EUCLEAN);
	/* its name and its memory stay taken until somebody says otherwise */
	EXPECT(call(PRMEM_CREATE, "harmed", &again) == -1 && errno == EEXIST);
	EXPECT(!call(PRMEM_FREE, "harmed", NULL));
	EXPECT(!call(PRMEM_CREATE, "harmed", &again));
	return 0;
}

static int memory_of_the_previous_kernel_is_not_given_out(void)
{
	struct prmem_info info = { .bytes = NEW_BYTES };
	unsigned char *memory;

	EXPECT(!call(PRMEM_CREATE, "new", &info));
	memory = map(&info);
	EXPECT(memory != MAP_FAILED);
	memset(memory, 0xff, NEW_BYTES);
	EXPECT(!munmap(memory, NEW_BYTES));
	EXPECT(!content_is_what_was_written());
	EXPECT(!driver_finds_its_instance());
	return 0;
}

static int everything_is_released(void)
{
	unsigned long confirm = PRMEM_RELEASE_CONFIRM;
	struct prmem_info info = {};
	struct prmem_stat stat = {};
	unsigned char *memory;

	EXPECT(!call(PRMEM_INFO, "kept", &info));
	memory = map(&info);
	EXPECT(memory != MAP_FAILED);
	EXPECT(ioctl(open_device(), PRMEM_RELEASE, &confirm) == -1 && errno == EBUSY);
	EXPECT(!munmap(memory, KEPT_BYTES));
	EXPECT(!ioctl(open_device(), PRMEM_RELEASE, &confirm));
	EXPECT(!stat_all(&stat));
	EXPECT(stat.state == PRMEM_STATE_BLANK && stat.nr_instances == 0 && stat.bytes == 0);
	return 0;
}

static const struct ktap_case first[] = {
	{ "nothing_is_there_at_first", nothing_is_there_at_first },
	{ "instance_is_created_zeroed_and_written", instance_is_created_zeroed_and_written },
	{ "instance_in_use_is_not_freed", instance_in_use_is_not_freed },
	{ "nothing_outside_of_an_instance_is_mapped", nothing_outside_of_an_instance_is_mapped },
	{ "instance_grows_where_it_is", instance_grows_where_it_is },
	{ "state_is_written_and_sealed", state_is_written_and_sealed },
	{ "freed_memory_is_gone", freed_memory_is_gone },
	{ "nonsense_is_refused", nonsense_is_refused },
	{ "limit_is_kept", limit_is_kept },
	{ "driver_keeps_an_instance", driver_keeps_an_instance },
	{ "instances_are_listed", instances_are_listed },
	{ "record_of_one_is_harmed", record_of_one_is_harmed },
};

static const struct ktap_case second[] = {
	{ "instances_are_listed", instances_are_listed },
	{ "content_is_what_was_written", content_is_what_was_written },
	{ "driver_finds_its_instance", driver_finds_its_instance },
	{ "harmed_instance_is_refused_alone", harmed_instance_is_refused_alone },
	{ "memory_of_the_previous_kernel_is_not_given_out",
	  memory_of_the_previous_kernel_is_not_given_out },
	{ "everything_is_released", everything_is_released },
};

KTAP_MAIN(first, second)
