// SPDX-License-Identifier: GPL-2.0-only
/*
 * pkram across a kexec. Stage 1 makes files, tries what must be refused, and
 * saves some file systems, one of which it changes afterwards. Stage 2 finds on
 * the next kernel what was saved, harms the description of one, and releases
 * what it does not want. The directory of saves is harmed during the jump, by
 * the faults "region-corrupt" and "region-version".
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <linux/falloc.h>
#include <linux/pkram.h>
#include <linux/types.h>

#include "ktap.h"

#define ROOT		"/run/pkram-selftest"
#define SYSFS		"/sys/fs/pkram/"
#define PAGE		4096UL
#define HUGE		(2UL << 20)
#define RAM_BYTES	(8 * HUGE)
#define FILE_BYTES	(HUGE + 3 * PAGE + 1234)
/* in pages, as it is smaller than one of 2 MiB; two pages of records */
#define HARMED_PAGES	300UL

/* what is needed here of include/linux/kho/abi/pkram.h */
#define DIR_KEPT_BY_KHO	"/sys/kernel/debug/kho/in/sub_fdts/pkram"
#define SAVES_AT	64
#define SAVE_BYTES	96
#define FIRST_AT	64
#define NEXT_AT		24
#define FOLIOS_IN_PAGE	252UL

static int write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);
	ssize_t done;
	int code;

	if (fd < 0)
		return -1;
	done = write(fd, text, strlen(text));
	code = errno;
	close(fd);
	errno = code;
	return done == (ssize_t)strlen(text) ? 0 : -1;
}

static const char *read_text(const char *path)
{
	static char text[PAGE + 1];
	int fd = open(path, O_RDONLY);
	ssize_t bytes = fd < 0 ? -1 : read(fd, text, PAGE);

	close(fd);
	text[bytes > 0 ? bytes : 0] = '\0';
	return text;
}

static int tells(const char *name, const char *words)
{
	char path[64];

	snprintf(path, sizeof(path), SYSFS "%s", name);
	if (strstr(read_text(path), words))
		return 1;
	printf("# %s is: %s\n", name, read_text(path));
	return 0;
}

/* What the page allocator has been given: memory that is reserved is not in it. */
static unsigned long total_bytes(void)
{
	return strtoul(strchr(read_text("/proc/meminfo"), ':') + 1, NULL, 10) << 10;
}

/* ROOT/NAME is where the file system of that name is mounted. */
static const char *place(const char *name, const char *file)
{
	static char paths[4][256];
	static int next;
	char *path = paths[next++ % 4];

	snprintf(path, sizeof(paths[0]), ROOT "/%s%s%s", name, *file ? "/" : "", file);
	return path;
}

static int mount_it(const char *name, const char *more)
{
	char options[128];

	snprintf(options, sizeof(options), "name=%s%s", name, more);
	mkdir(ROOT, 0700);
	mkdir(place(name, ""), 0700);
	return mount("none", place(name, ""), "pkram", 0, options);
}

static int call(const char *path, unsigned long request)
{
	int fd = open(path, O_RDONLY), status = ioctl(fd, request), code = errno;

	close(fd);
	errno = code;
	return status;
}

static int save(const char *name)
{
	return call(place(name, ""), PKRAM_SAVE);
}

static unsigned long used_pages(const char *name)
{
	struct statfs fs;

	return statfs(place(name, ""), &fs) ? -1UL : fs.f_blocks - fs.f_bfree;
}

static int make(const char *path, unsigned long bytes)
{
	int fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0640);

	if (fd >= 0 && bytes && fallocate(fd, 0, 0, bytes)) {
		close(fd);
		return -1;
	}
	return fd;
}

static void *map(int fd, unsigned long bytes)
{
	return mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
}

static __u64 word_at(__u64 seed, __u64 offset)
{
	__u64 word = seed + (offset + 1) * 0x9e3779b97f4a7c15ULL;

	return word ^ word >> 29;
}

static void fill(void *memory, unsigned long bytes, unsigned long seed)
{
	__u64 *words = memory;
	unsigned long at;

	for (at = 0; at < bytes / 8; at++)
		words[at] = word_at(seed, at * 8);
}

static int is_filled(const void *memory, unsigned long bytes, unsigned long seed)
{
	const __u64 *words = memory;
	unsigned long at;

	for (at = 0; at < bytes / 8; at++)
		if (words[at] != word_at(seed, at * 8))
			return 0;
	return 1;
}

static int write_file(const char *path, unsigned long bytes, unsigned long seed)
{
	char *data = malloc(bytes);
	int fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0640), good;

	fill(data, bytes, seed);
	good = fd >= 0 && write(fd, data, bytes) == (ssize_t)bytes;
	close(fd);
	free(data);
	return good;
}

static int has_file(const char *path, unsigned long bytes, unsigned long seed)
{
	char *data = malloc(bytes + 1);
	int fd = open(path, O_RDONLY), good;

	good = fd >= 0 && read(fd, data, bytes + 1) == (ssize_t)bytes &&
	       is_filled(data, bytes, seed);
	close(fd);
	free(data);
	return good;
}

/* --- stage 1 */

static int needs_a_name(void)
{
	mkdir(ROOT, 0700);
	EXPECT(mount("none", ROOT, "pkram", 0, "") == -1 && errno == EINVAL);
	EXPECT(mount("none", ROOT, "pkram", 0, "name=") == -1 && errno == EINVAL);
	EXPECT(mount("none", ROOT, "pkram", 0, "name=a,size=0") == -1 && errno == EINVAL);
	EXPECT(mount("none", ROOT, "pkram", MS_RDONLY, "name=a") == -1 && errno == EINVAL);
	EXPECT(!mount_it("main", ""));
	EXPECT(mount_it("main", "") == -1 && errno == EINVAL);
	return 0;
}

static int names_are_made_moved_and_removed(void)
{
	EXPECT(!mkdir(place("main", "a"), 0750) && !mkdir(place("main", "b"), 0700));
	EXPECT(write_file(place("main", "a/one"), PAGE, 1));
	EXPECT(write_file(place("main", "two"), PAGE, 2));
	EXPECT(rmdir(place("main", "a")) == -1 && errno == ENOTEMPTY);
	/* a directory that is older than the one that it is in */
	EXPECT(!rename(place("main", "a"), place("main", "b/a")));
	EXPECT(!rename(place("main", "two"), place("main", "b/a/one")));
	EXPECT(has_file(place("main", "b/a/one"), PAGE, 2));
	EXPECT(!chown(place("main", "b/a/one"), 7, 8));
	EXPECT(write_file(place("main", "gone"), PAGE, 3) && !unlink(place("main", "gone")));
	EXPECT(used_pages("main") == 1);
	return 0;
}

static int content_is_read_as_it_was_written(void)
{
	EXPECT(write_file(place("main", "file"), FILE_BYTES, 4));
	EXPECT(has_file(place("main", "file"), FILE_BYTES, 4));
	/* what a huge folio can hold, and pages */
	EXPECT(used_pages("main") == 1 + HUGE / PAGE + 4);
	return 0;
}

static int size_is_changed(void)
{
	const char *path = place("main", "size");
	int fd = make(path, 3 * HUGE), i;
	char *memory = map(fd, 3 * HUGE);
	struct stat st;

	EXPECT(fd >= 0 && memory != MAP_FAILED);
	fill(memory, 3 * HUGE, 5);
	/* within a huge folio: it stays, and what is behind the end is gone */
	EXPECT(!ftruncate(fd, HUGE + PAGE + 8) && !ftruncate(fd, 3 * HUGE));
	EXPECT(is_filled(memory, HUGE + PAGE + 8, 5));
	for (i = HUGE + PAGE + 8; i < (int)(3 * HUGE); i++)
		EXPECT(!memory[i]);
	/* a hole from within a huge folio to within another */
	fill(memory, 3 * HUGE, 6);
	EXPECT(!fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, PAGE + 16,
			  2 * HUGE + PAGE));
	EXPECT(is_filled(memory, PAGE + 16, 6));
	for (i = PAGE + 16; i < (int)(2 * HUGE + 2 * PAGE + 16); i++)
		EXPECT(!memory[i]);
	EXPECT(((__u64 *)memory)[(2 * HUGE + 2 * PAGE + 16) / 8] ==
	       word_at(6, 2 * HUGE + 2 * PAGE + 16));
	EXPECT(!munmap(memory, 3 * HUGE));
	EXPECT(!ftruncate(fd, 0) && !fstat(fd, &st) && !st.st_blocks);
	EXPECT(!close(fd) && !unlink(path));
	return 0;
}

static int no_more_than_its_size(void)
{
	int fd;

	EXPECT(!mount_it("small", ",size=4M"));
	fd = make(place("small", "file"), 0);
	EXPECT(fd >= 0 && fallocate(fd, 0, 0, 3 * HUGE) == -1 && errno == ENOSPC);
	EXPECT(!fallocate(fd, 0, 0, HUGE) && used_pages("small") == HUGE / PAGE);
	EXPECT(mount(NULL, place("small", ""), NULL, MS_REMOUNT, "size=4k") == -1 &&
	       errno == EINVAL);
	EXPECT(mount(NULL, place("small", ""), NULL, MS_REMOUNT, "name=other") == -1);
	EXPECT(!mount(NULL, place("small", ""), NULL, MS_REMOUNT, "size=2M"));
	EXPECT(pwrite(fd, "x", 1, HUGE) == -1 && errno == ENOSPC);
	EXPECT(!mount(NULL, place("small", ""), NULL, MS_REMOUNT, "size=6M"));
	EXPECT(pwrite(fd, "x", 1, HUGE) == 1 && used_pages("small") == HUGE / PAGE + 1);
	EXPECT(!close(fd) && !unlink(place("small", "file")) && !used_pages("small"));
	EXPECT(!umount(place("small", "")));
	return 0;
}

static int memory_in_use_outlives_its_name(void)
{
	const char *path = place("main", "used");
	int fd = make(path, HUGE);
	char *memory = map(fd, HUGE);

	EXPECT(fd >= 0 && memory != MAP_FAILED);
	fill(memory, HUGE, 7);
	EXPECT(!close(fd) && !unlink(path));
	EXPECT(is_filled(memory, HUGE, 7));
	EXPECT(!munmap(memory, HUGE) && used_pages("main") == 1 + HUGE / PAGE + 4);
	return 0;
}

static int a_save_holds_until_something_changes(void)
{
	int fd = make(place("main", "ram"), RAM_BYTES);
	char *memory = map(fd, RAM_BYTES);

	EXPECT(fd >= 0 && memory != MAP_FAILED);
	EXPECT(call(place("main", "b"), PKRAM_SAVE) == -1 && errno == EINVAL);
	EXPECT(call(place("main", ""), _IO('p', 0xcf)) == -1 && errno == ENOTTY);
	EXPECT(!save("main") && tells("outgoing", "main pages="));
	/* content may change */
	fill(memory, RAM_BYTES, 8);
	EXPECT(pwrite(fd, "x", 1, RAM_BYTES - 1) == 1 && tells("outgoing", "main pages="));
	EXPECT(pwrite(fd, "x", 1, RAM_BYTES) == 1 && !tells("outgoing", "main pages="));
	EXPECT(!ftruncate(fd, RAM_BYTES) && !save("main"));
	EXPECT(!mkdir(place("main", "new"), 0700) && !tells("outgoing", "main pages="));
	EXPECT(!rmdir(place("main", "new")) && !save("main"));
	EXPECT(!chmod(place("main", "ram"), 0600) && !tells("outgoing", "main pages="));
	EXPECT(!save("main") && !call(place("main", ""), PKRAM_FORGET));
	EXPECT(!tells("outgoing", "main pages="));
	/* what has no name any more is in no save, so it may go */
	fill(memory, RAM_BYTES, 8);
	EXPECT(!munmap(memory, RAM_BYTES) && !close(fd));
	fd = make(place("main", "nameless"), HUGE);
	EXPECT(fd >= 0 && !unlink(place("main", "nameless")) && !save("main"));
	EXPECT(!ftruncate(fd, PAGE) && !close(fd) && tells("outgoing", "main pages="));
	return 0;
}

static int a_saved_file_system_is_parked(void)
{
	EXPECT(!mount_it("parked", "") && write_file(place("parked", "file"), FILE_BYTES, 9));
	EXPECT(!save("parked") && !umount(place("parked", "")));
	EXPECT(tells("outgoing", "parked pages="));
	EXPECT(!mount_it("parked", "") && has_file(place("parked", "file"), FILE_BYTES, 9));
	/* it is saved as it was; and parked again for the next kernel */
	EXPECT(tells("outgoing", "parked pages=") && !umount(place("parked", "")));
	return 0;
}

static int one_that_is_not_saved_is_gone(void)
{
	EXPECT(!mount_it("lost", "") && write_file(place("lost", "file"), PAGE, 10));
	EXPECT(!umount(place("lost", "")));
	EXPECT(!mount_it("lost", "") && access(place("lost", "file"), F_OK) == -1);
	EXPECT(write_file(place("lost", "file"), FILE_BYTES, 10) && !save("lost"));
	/* changed after it was saved: the next kernel must not find a part of it */
	EXPECT(write_file(place("lost", "more"), PAGE, 11));
	return 0;
}

static int nobody_wants_this_one(void)
{
	EXPECT(!mount_it("unwanted", "") && make(place("unwanted", "file"), 4 * HUGE) >= 0);
	EXPECT(!save("unwanted"));
	return 0;
}

static int one_is_to_be_harmed(void)
{
	EXPECT(!mount_it("harmed", ""));
	EXPECT(write_file(place("harmed", "file"), HARMED_PAGES * PAGE, 13));
	EXPECT(!save("harmed") && tells("outgoing", "harmed pages=3 inodes=2 folios=300"));
	return 0;
}

/* What a late writer tries, by the place of its errno in the file "result". */
enum {
	LATE_CREATE,
	LATE_UNLINK,
	LATE_TRUNCATE,
	LATE_GROW,
	LATE_PUNCH,
	LATE_CHMOD,
	LATE_FORGET,
	LATE_COUNT,
	LATE_DONE
};

#define LATE_MAGIC	0x6c617465

static int error_of(int result)
{
	return result < 0 ? errno : 0;
}

/* Runs until the kernel does not: begins when the reboot notifier says that "lost" has changed. */
static void write_late(int kmsg, int fd, __u32 *result)
{
	struct sched_param urgent = { .sched_priority = 1 };
	static char line[8192];
	ssize_t bytes;

	sched_setscheduler(0, SCHED_FIFO, &urgent);
	do {
		bytes = read(kmsg, line, sizeof(line) - 1);
		line[bytes > 0 ? bytes : 0] = '\0';
	} while (!strstr(line, "'lost' was saved, but has changed since"));
	result[LATE_CREATE] = error_of(open(place("late", "new"), O_RDWR | O_CREAT, 0600));
	result[LATE_UNLINK] = error_of(unlink(place("late", "file")));
	result[LATE_TRUNCATE] = error_of(ftruncate(fd, PAGE));
	result[LATE_GROW] = error_of(fallocate(fd, 0, 0, 2 * FILE_BYTES));
	result[LATE_PUNCH] = error_of(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
						HUGE));
	result[LATE_CHMOD] = error_of(fchmod(fd, 0600));
	result[LATE_FORGET] = error_of(call(place("late", ""), PKRAM_FORGET));
	result[LATE_DONE] = LATE_MAGIC;
	for (;;)
		pause();
}

static int one_is_changed_late(void)
{
	int kmsg = open("/dev/kmsg", O_RDONLY), fd, results;
	__u32 *result;

	EXPECT(!mount_it("late", "") && write_file(place("late", "file"), FILE_BYTES, 14));
	fd = open(place("late", "file"), O_RDWR);
	results = make(place("late", "result"), PAGE);
	result = map(results, PAGE);
	EXPECT(fd >= 0 && result != MAP_FAILED && kmsg >= 0);
	memset(result, 0, PAGE);
	EXPECT(!save("late") && lseek(kmsg, 0, SEEK_END) >= 0);
	fflush(NULL);
	if (!fork()) {
		setsid();
		/* the caller that reads the output of stage 1 must not wait for this process */
		if (freopen("/dev/null", "r+", stdin)) {
			dup2(0, 1);
			dup2(0, 2);
		}
		write_late(kmsg, fd, result);
	}
	return 0;
}

/* --- stage 2 */

static int a_late_change_was_refused(void)
{
	int fd, at;
	__u32 *result;

	EXPECT(!mount_it("late", "") && has_file(place("late", "file"), FILE_BYTES, 14));
	EXPECT(access(place("late", "new"), F_OK) == -1);
	fd = open(place("late", "result"), O_RDWR);
	result = map(fd, PAGE);
	EXPECT(result != MAP_FAILED && result[LATE_DONE] == LATE_MAGIC);
	for (at = 0; at < LATE_COUNT; at++)
		EXPECT(result[at] == ESHUTDOWN);
	EXPECT(!munmap(result, PAGE) && !close(fd) && !umount(place("late", "")));
	return 0;
}

static int saves_have_come(void)
{
	EXPECT(tells("incoming", "main ready") && tells("incoming", "parked ready"));
	EXPECT(tells("incoming", "unwanted ready") && !tells("incoming", "lost"));
	EXPECT(!mount_it("lost", "") && !used_pages("lost") && !umount(place("lost", "")));
	return 0;
}

/* A page of what describes a save, as the previous kernel might have left it. */
static unsigned char *page_of(const char *name, int number)
{
	int fd = open(DIR_KEPT_BY_KHO, O_RDONLY), i;
	static unsigned char dir[PAGE];
	unsigned char *page = NULL;
	__u64 at = 0;

	if (read(fd, dir, PAGE) != PAGE)
		return MAP_FAILED;
	close(fd);
	for (i = SAVES_AT; i + SAVE_BYTES <= (int)PAGE; i += SAVE_BYTES)
		if (!strcmp((char *)dir + i, name))
			memcpy(&at, dir + i + FIRST_AT, sizeof(at));
	fd = open("/dev/mem", O_RDWR);
	for (i = 0; at && i <= number; i++) {
		if (page)
			munmap(page, PAGE);
		page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, at);
		if (page == MAP_FAILED)
			break;
		memcpy(&at, page + NEXT_AT, sizeof(at));
	}
	close(fd);
	return page ? page : MAP_FAILED;
}

static int a_harmed_save_is_refused(void)
{
	unsigned long before = total_bytes();
	unsigned char *page = page_of("harmed", 0);

	EXPECT(page != MAP_FAILED && tells("incoming", "harmed ready"));
	page[100] ^= 4;
	EXPECT(mount_it("harmed", "") == -1 && errno == EUCLEAN);
	EXPECT(tells("incoming", "harmed refused: page 0: checksum does not match"));
	page[100] ^= 4;
	page[0] ^= 1;
	EXPECT(mount_it("harmed", "") == -1 && errno == EUCLEAN);
	EXPECT(tells("incoming", "harmed refused: page 0: magic does not match"));
	page[0] ^= 1;
	EXPECT(!munmap(page, PAGE));
	page = page_of("harmed", 2);
	EXPECT(page != MAP_FAILED);
	page[PAGE - 1] ^= 0x80;
	EXPECT(mount_it("harmed", "") == -1 && errno == EUCLEAN);
	EXPECT(tells("incoming", "harmed refused: page 2: checksum does not match"));
	EXPECT(!munmap(page, PAGE));
	/* others are not touched by it, and nobody has got anything of it */
	EXPECT(tells("incoming", "main ready") && total_bytes() == before);
	return 0;
}

static int what_describes_itself_is_released(void)
{
	unsigned long before = total_bytes();

	EXPECT(!write_text(SYSFS "control", "release harmed") && !tells("incoming", "harmed"));
	/* and two pages of records; the rest stays reserved */
	EXPECT(total_bytes() == before + (FOLIOS_IN_PAGE + 2) * PAGE);
	EXPECT(!mount_it("harmed", "") && !used_pages("harmed"));
	EXPECT(!umount(place("harmed", "")));
	return 0;
}

static int names_are_what_they_were(void)
{
	struct stat st;

	EXPECT(!mount_it("main", "") && !tells("incoming", "main"));
	EXPECT(!stat(place("main", "b/a"), &st) && (st.st_mode & 07777) == 0750);
	EXPECT(st.st_nlink == 2 && !stat(place("main", "b"), &st) && st.st_nlink == 3);
	EXPECT(!stat(place("main", "b/a/one"), &st) && (st.st_mode & 07777) == 0640);
	EXPECT(st.st_size == PAGE && st.st_uid == 7 && st.st_gid == 8 && st.st_mtime > 0);
	EXPECT(access(place("main", "two"), F_OK) == -1);
	EXPECT(access(place("main", "used"), F_OK) == -1);
	EXPECT(used_pages("main") == 1 + HUGE / PAGE + 4 + RAM_BYTES / PAGE);
	return 0;
}

static int content_is_what_was_written(void)
{
	int fd = open(place("main", "ram"), O_RDWR);
	char *memory = map(fd, RAM_BYTES);

	EXPECT(memory != MAP_FAILED && is_filled(memory, RAM_BYTES, 8));
	EXPECT(has_file(place("main", "b/a/one"), PAGE, 2));
	EXPECT(has_file(place("main", "file"), FILE_BYTES, 4));
	EXPECT(!mount_it("parked", "") && has_file(place("parked", "file"), FILE_BYTES, 9));
	/* and it is all as usual again */
	fill(memory, RAM_BYTES, 12);
	EXPECT(is_filled(memory, RAM_BYTES, 12) && !munmap(memory, RAM_BYTES));
	EXPECT(!ftruncate(fd, 0) && !close(fd) && !unlink(place("main", "ram")));
	EXPECT(used_pages("main") == 1 + HUGE / PAGE + 4);
	return 0;
}

static int a_save_is_made_of_what_has_come(void)
{
	EXPECT(!save("main") && tells("outgoing", "main pages="));
	EXPECT(!call(place("main", ""), PKRAM_FORGET) && !tells("outgoing", "main"));
	EXPECT(!umount(place("main", "")) && !umount(place("parked", "")));
	EXPECT(!mount_it("main", "") && !used_pages("main") && !umount(place("main", "")));
	return 0;
}

static int memory_is_given_back_only_when_told_so(void)
{
	unsigned long before = total_bytes();

	EXPECT(write_text(SYSFS "control", "nonsense") == -1 && errno == EINVAL);
	EXPECT(write_text(SYSFS "control", "release nobody") == -1 && errno == ENOENT);
	EXPECT(write_text(SYSFS "control", "release") == -1 && errno == ENOENT);
	EXPECT(!write_text(SYSFS "control", "release unwanted"));
	EXPECT(!tells("incoming", "unwanted") && total_bytes() >= before + 4 * HUGE);
	EXPECT(!mount_it("unwanted", "") && !used_pages("unwanted"));
	EXPECT(!umount(place("unwanted", "")));
	return 0;
}

static const struct ktap_case first[] = {
	{ "needs_a_name", needs_a_name },
	{ "names_are_made_moved_and_removed", names_are_made_moved_and_removed },
	{ "content_is_read_as_it_was_written", content_is_read_as_it_was_written },
	{ "size_is_changed", size_is_changed },
	{ "no_more_than_its_size", no_more_than_its_size },
	{ "memory_in_use_outlives_its_name", memory_in_use_outlives_its_name },
	{ "a_save_holds_until_something_changes", a_save_holds_until_something_changes },
	{ "a_saved_file_system_is_parked", a_saved_file_system_is_parked },
	{ "one_that_is_not_saved_is_gone", one_that_is_not_saved_is_gone },
	{ "nobody_wants_this_one", nobody_wants_this_one },
	{ "one_is_to_be_harmed", one_is_to_be_harmed },
	{ "one_is_changed_late", one_is_changed_late },
};

static const struct ktap_case second[] = {
	{ "saves_have_come", saves_have_come },
	{ "a_harmed_save_is_refused", a_harmed_save_is_refused },
	{ "what_describes_itself_is_released", what_describes_itself_is_released },
	{ "names_are_what_they_were", names_are_what_they_were },
	{ "content_is_what_was_written", content_is_what_was_written },
	{ "a_save_is_made_of_what_has_come", a_save_is_made_of_what_has_come },
	{ "memory_is_given_back_only_when_told_so", memory_is_given_back_only_when_told_so },
	{ "a_late_change_was_refused", a_late_change_was_refused },
};

KTAP_MAIN(first, second)
