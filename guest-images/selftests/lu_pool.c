// SPDX-License-Identifier: GPL-2.0-only
/*
 * /dev/lu_pool across a kexec. Stage 1 fills a blank pool and tries what must
 * be refused; stage 2 finds on the next kernel what was there, and gives it
 * back.
 */
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <linux/lu_pool.h>

#include "ktap.h"

#define KEPT_BYTES	(5UL << 20)
#define STATE_BYTES	12345UL

static int open_pool(void)
{
	static int fd = -1;

	if (fd < 0)
		fd = open("/dev/lu_pool", O_RDWR);
	return fd;
}

static int call(unsigned long request, const char *name, struct lu_pool_object *object)
{
	struct lu_pool_object own;

	if (!object) {
		memset(&own, 0, sizeof(own));
		object = &own;
	}
	snprintf(object->name, sizeof(object->name), "%s", name);
	return ioctl(open_pool(), request, object);
}

static int stat_pool(struct lu_pool_stat *stat)
{
	return ioctl(open_pool(), LU_POOL_STAT, stat);
}

/* What byte i of an object has to be. */
static unsigned char pattern(unsigned long i, unsigned int seed)
{
	return (unsigned char)(i * 2654435761UL >> 13) + seed;
}

static unsigned char *map(const struct lu_pool_object *object)
{
	return mmap(NULL, (object->bytes + 4095) & ~4095UL, PROT_READ | PROT_WRITE, MAP_SHARED,
		    open_pool(), object->offset);
}

static int blank_pool_is_ready_for_use(void)
{
	struct lu_pool_stat stat = {};

	EXPECT(open_pool() >= 0);
	EXPECT(!stat_pool(&stat));
	EXPECT(stat.state == LU_POOL_STATE_BLANK);
	EXPECT(stat.free == stat.size - (2UL << 20));
	EXPECT(stat.nr_objects == 0);
	return 0;
}

static int object_is_allocated_zeroed_and_written(void)
{
	struct lu_pool_object object = { .bytes = KEPT_BYTES };
	unsigned char *memory;
	unsigned long i;

	EXPECT(!call(LU_POOL_ALLOC, "kept", &object));
	EXPECT(object.offset && object.offset % (2UL << 20) == 0);
	memory = map(&object);
	EXPECT(memory != MAP_FAILED);
	for (i = 0; i < KEPT_BYTES; i++) {
		EXPECT(memory[i] == 0);
		memory[i] = pattern(i, 1);
	}
	EXPECT(!munmap(memory, KEPT_BYTES));
	return 0;
}

static int object_in_use_is_not_freed(void)
{
	struct lu_pool_object object = {};
	unsigned char *memory;

	EXPECT(!call(LU_POOL_INFO, "kept", &object));
	EXPECT(object.users == 0);
	memory = map(&object);
	EXPECT(memory != MAP_FAILED);
	EXPECT(call(LU_POOL_FREE, "kept", NULL) == -1 && errno == EBUSY);
	EXPECT(!call(LU_POOL_INFO, "kept", &object));
	EXPECT(object.users == 1);
	EXPECT(memory[7] == pattern(7, 1));
	EXPECT(!munmap(memory, KEPT_BYTES));
	EXPECT(!call(LU_POOL_INFO, "kept", &object));
	EXPECT(object.users == 0);
	return 0;
}

static int part_of_a_mapping_is_a_use_too(void)
{
	struct lu_pool_object object = {};
	unsigned char *memory;

	EXPECT(!call(LU_POOL_INFO, "kept", &object));
	memory = map(&object);
	EXPECT(memory != MAP_FAILED);
	/* a hole in the middle makes two mappings of one */
	EXPECT(!munmap(memory + (2UL << 20), 1UL << 20));
	EXPECT(!call(LU_POOL_INFO, "kept", &object));
	EXPECT(object.users == 2);
	EXPECT(!munmap(memory, 2UL << 20));
	EXPECT(call(LU_POOL_FREE, "kept", NULL) == -1 && errno == EBUSY);
	EXPECT(!munmap(memory + (3UL << 20), 2UL << 20));
	EXPECT(!call(LU_POOL_INFO, "kept", &object));
	EXPECT(object.users == 0);
	return 0;
}

static int nothing_outside_of_an_object_is_mapped(void)
{
	struct lu_pool_object object = {};
	int fd = open_pool();

	EXPECT(!call(LU_POOL_INFO, "kept", &object));
	EXPECT(mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED && errno == EINVAL);
	EXPECT(mmap(NULL, KEPT_BYTES + 4096, PROT_READ, MAP_SHARED, fd, object.offset) ==
	       MAP_FAILED && errno == EINVAL);
	EXPECT(mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, object.offset + KEPT_BYTES) ==
	       MAP_FAILED && errno == EINVAL);
	EXPECT(mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 1L << 50) == MAP_FAILED &&
	       errno == EINVAL);
	EXPECT(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, fd, object.offset) == MAP_FAILED &&
	       errno == EINVAL);
	EXPECT(pread(fd, &object, sizeof(object), 0) == -1 && errno == EINVAL);
	EXPECT(pwrite(fd, &object, sizeof(object), 64) == -1 && errno == EINVAL);
	return 0;
}

static int state_is_written_and_sealed(void)
{
	struct lu_pool_object object = { .bytes = STATE_BYTES };
	unsigned char state[STATE_BYTES];
	unsigned long i;

	EXPECT(!call(LU_POOL_ALLOC, "state", &object));
	for (i = 0; i < STATE_BYTES; i++)
		state[i] = pattern(i, 2);
	EXPECT(pwrite(open_pool(), state, STATE_BYTES, object.offset) == (long)STATE_BYTES);
	EXPECT(call(LU_POOL_VERIFY, "state", NULL) == -1 && errno == ENODATA);
	EXPECT(!call(LU_POOL_SEAL, "state", NULL));
	EXPECT(!call(LU_POOL_VERIFY, "state", NULL));
	state[0] ^= 1;
	EXPECT(pwrite(open_pool(), state, 1, object.offset) == 1);
	EXPECT(call(LU_POOL_VERIFY, "state", NULL) == -1 && errno == EBADMSG);
	state[0] ^= 1;
	EXPECT(pwrite(open_pool(), state, 1, object.offset) == 1);
	EXPECT(!call(LU_POOL_VERIFY, "state", NULL));
	return 0;
}

static int freed_memory_is_given_out_again_zeroed(void)
{
	struct lu_pool_object object = { .bytes = 1 }, again = { .bytes = 1 };
	char byte = 'x';

	EXPECT(!call(LU_POOL_ALLOC, "passing", &object));
	EXPECT(pwrite(open_pool(), &byte, 1, object.offset) == 1);
	EXPECT(!call(LU_POOL_FREE, "passing", NULL));
	EXPECT(call(LU_POOL_INFO, "passing", NULL) == -1 && errno == ENOENT);
	EXPECT(!call(LU_POOL_ALLOC, "passing", &again));
	EXPECT(again.offset == object.offset);
	EXPECT(pread(open_pool(), &byte, 1, again.offset) == 1 && byte == 0);
	EXPECT(!call(LU_POOL_FREE, "passing", NULL));
	return 0;
}

static int nonsense_is_refused(void)
{
	struct lu_pool_object object = { .bytes = 1 };
	struct lu_pool_stat stat = {};
	unsigned long confirm = 1;

	EXPECT(call(LU_POOL_ALLOC, "kept", &object) == -1 && errno == EEXIST);
	EXPECT(call(LU_POOL_ALLOC, "", &object) == -1);
	memset(object.name, 'x', sizeof(object.name));
	EXPECT(ioctl(open_pool(), LU_POOL_ALLOC, &object) == -1 && errno == EINVAL);
	memset(&object, 0, sizeof(object));
	EXPECT(call(LU_POOL_ALLOC, "nothing", &object) == -1 && errno == EINVAL);
	EXPECT(!stat_pool(&stat));
	object.bytes = stat.largest + 1;
	EXPECT(call(LU_POOL_ALLOC, "large", &object) == -1 && errno == ENOSPC);
	object.bytes = ~0UL;
	EXPECT(call(LU_POOL_ALLOC, "large", &object) == -1 && errno == ENOSPC);
	EXPECT(ioctl(open_pool(), LU_POOL_RELEASE, &confirm) == -1 && errno == EINVAL);
	EXPECT(ioctl(open_pool(), 0x1234, &confirm) == -1 && errno == ENOTTY);
	return 0;
}

static int objects_are_listed(void)
{
	struct lu_pool_list list = {};

	EXPECT(!ioctl(open_pool(), LU_POOL_LIST, &list));
	EXPECT(!strcmp(list.object.name, "kept") && list.object.bytes == KEPT_BYTES);
	list.index = 1;
	EXPECT(!ioctl(open_pool(), LU_POOL_LIST, &list));
	EXPECT(!strcmp(list.object.name, "state") && list.object.bytes == STATE_BYTES);
	EXPECT(list.object.flags == LU_POOL_OBJECT_SEALED);
	list.index = 2;
	EXPECT(ioctl(open_pool(), LU_POOL_LIST, &list) == -1 && errno == ENOENT);
	return 0;
}

static int content_is_what_was_written(void)
{
	struct lu_pool_object object = {};
	unsigned char *memory, state[STATE_BYTES];
	unsigned long i;

	EXPECT(!call(LU_POOL_INFO, "kept", &object));
	EXPECT(object.bytes == KEPT_BYTES && object.users == 0);
	memory = map(&object);
	EXPECT(memory != MAP_FAILED);
	for (i = 0; i < KEPT_BYTES; i++)
		EXPECT(memory[i] == pattern(i, 1));
	EXPECT(!munmap(memory, KEPT_BYTES));
	EXPECT(!call(LU_POOL_VERIFY, "state", NULL));
	EXPECT(!call(LU_POOL_INFO, "state", &object));
	EXPECT(pread(open_pool(), state, STATE_BYTES, object.offset) == (long)STATE_BYTES);
	for (i = 0; i < STATE_BYTES; i++)
		EXPECT(state[i] == pattern(i, 2));
	return 0;
}

static int memory_of_the_previous_kernel_is_not_given_out(void)
{
	struct lu_pool_object object = { .bytes = 1 }, kept = {}, state = {};

	EXPECT(!call(LU_POOL_INFO, "kept", &kept));
	EXPECT(!call(LU_POOL_INFO, "state", &state));
	EXPECT(!call(LU_POOL_ALLOC, "new", &object));
	EXPECT(object.offset >= kept.offset + KEPT_BYTES || object.offset < kept.offset);
	EXPECT(object.offset != state.offset);
	return 0;
}

static int pool_is_released(void)
{
	unsigned long confirm = LU_POOL_RELEASE_CONFIRM;
	struct lu_pool_object object = {};
	struct lu_pool_stat stat = {};
	unsigned char *memory;

	EXPECT(!call(LU_POOL_INFO, "kept", &object));
	memory = map(&object);
	EXPECT(memory != MAP_FAILED);
	EXPECT(ioctl(open_pool(), LU_POOL_RELEASE, &confirm) == -1 && errno == EBUSY);
	EXPECT(!munmap(memory, KEPT_BYTES));
	EXPECT(!ioctl(open_pool(), LU_POOL_RELEASE, &confirm));
	EXPECT(!stat_pool(&stat));
	EXPECT(stat.state == LU_POOL_STATE_BLANK && stat.free == stat.size - (2UL << 20));
	return 0;
}

static const struct ktap_case first[] = {
	{ "blank_pool_is_ready_for_use", blank_pool_is_ready_for_use },
	{ "object_is_allocated_zeroed_and_written", object_is_allocated_zeroed_and_written },
	{ "object_in_use_is_not_freed", object_in_use_is_not_freed },
	{ "part_of_a_mapping_is_a_use_too", part_of_a_mapping_is_a_use_too },
	{ "nothing_outside_of_an_object_is_mapped", nothing_outside_of_an_object_is_mapped },
	{ "state_is_written_and_sealed", state_is_written_and_sealed },
	{ "freed_memory_is_given_out_again_zeroed", freed_memory_is_given_out_again_zeroed },
	{ "nonsense_is_refused", nonsense_is_refused },
	{ "objects_are_listed", objects_are_listed },
};

static const struct ktap_case second[] = {
	{ "objects_are_listed", objects_are_listed },
	{ "content_is_what_was_written", content_is_what_was_written },
	{ "memory_of_the_previous_kernel_is_not_given_out",
	  memory_of_the_previous_kernel_is_not_given_out },
	{ "pool_is_released", pool_is_released },
};

KTAP_MAIN(first, second)
