// SPDX-License-Identifier: GPL-2.0-only
/*
 * pkernfs across a kexec. Stage 1 makes files, by userspace and by a driver,
 * tries what must be refused, and leaves the kernel with a file in use that
 * has no name. Stage 2 finds on the next kernel what was there, and then
 * harms the metadata.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <linux/memfd.h>
#include <linux/types.h>

#include "ktap.h"

#define MOUNT		"/run/pkernfs-selftest"
#define SYSFS		"/sys/fs/pkernfs/"
#define DRIVER		"/sys/kernel/debug/pkernfs_test/"
#define BLOCK		(2UL << 20)
#define RAM_BYTES	(32 * BLOCK)
#define DRIVER_BYTES	(BLOCK + 123456)
#define DRIVER_SEED	42UL
#define FILE_BYTES	(3 * BLOCK + 1234)
/* the superblock as in include/linux/kho/abi/pkernfs.h */
#define VERSION_AT	8
#define CHECKSUM_AT	12
#define PAGE		4096

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
	static char text[1 << 16];
	int fd = open(path, O_RDONLY);
	ssize_t bytes, found = 0;

	while (fd >= 0 && (bytes = read(fd, text + found, sizeof(text) - 1 - found)) > 0)
		found += bytes;
	close(fd);
	text[found] = '\0';
	return text;
}

static int state_is(const char *words)
{
	const char *state = read_text(SYSFS "state");

	if (strstr(state, words))
		return 1;
	printf("# state is: %s", state);
	return 0;
}

static int mount_it(void)
{
	mkdir(MOUNT, 0700);
	return mount("pkernfs", MOUNT, "pkernfs", 0, NULL);
}

static unsigned long free_blocks(void)
{
	struct statfs fs;

	return statfs(MOUNT, &fs) ? 0 : fs.f_bfree;
}

static unsigned long blocks_of(const char *path)
{
	struct stat st;

	return stat(path, &st) ? 0 : st.st_blocks * 512 / BLOCK;
}

static __u64 word_at(__u64 seed, __u64 offset)
{
	/* as pkernfs_test.c makes it */
	__u64 word = seed + (offset + 1) * 0x9e3779b97f4a7c15ULL;

	word ^= word >> 29;
	word *= 0xbf58476d1ce4e5b9ULL;
	return word ^ word >> 32;
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

	for (at = 0; at < bytes / 8; at++) {
		if (words[at] != word_at(seed, at * 8)) {
			printf("# at %lu\n", at * 8);
			return 0;
		}
	}
	return 1;
}

static void *map(int fd, unsigned long bytes)
{
	return mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
}

static int make(const char *path, unsigned long bytes)
{
	int fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0600);

	if (fd < 0 || !bytes)
		return fd;
	errno = posix_fallocate(fd, 0, bytes);
	if (!errno)
		return fd;
	close(fd);
	return -1;
}

static double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

/* --- stage 1 */

static int blank_region_is_formatted(void)
{
	struct statfs fs;
	unsigned long metadata;

	EXPECT(state_is("blank"));
	EXPECT(!mount_it());
	EXPECT(state_is("mounted"));
	EXPECT(!statfs(MOUNT, &fs));
	EXPECT(fs.f_bsize == BLOCK && fs.f_namelen == 255);
	EXPECT(fs.f_bfree == fs.f_blocks && fs.f_files > fs.f_ffree);
	metadata = strtoul(read_text(SYSFS "metadata_bytes"), NULL, 0);
	EXPECT(metadata && metadata + fs.f_blocks * BLOCK ==
	       strtoul(read_text(SYSFS "region"), NULL, 0));
	return 0;
}

static int names_are_made_moved_and_removed(void)
{
	EXPECT(!mkdir(MOUNT "/a", 0750) && !mkdir(MOUNT "/a/b", 0700));
	EXPECT(rmdir(MOUNT "/a") == -1 && errno == ENOTEMPTY);
	EXPECT(make(MOUNT "/a/b/one", 0) >= 0 && make(MOUNT "/two", BLOCK) >= 0);
	EXPECT(make(MOUNT "/two", 0) == -1 && errno == EEXIST);
	EXPECT(!rename(MOUNT "/two", MOUNT "/a/b/one"));
	EXPECT(access(MOUNT "/two", F_OK) == -1 && errno == ENOENT);
	EXPECT(blocks_of(MOUNT "/a/b/one") == 1);
	EXPECT(!chmod(MOUNT "/a/b/one", 0640) && !chown(MOUNT "/a/b/one", 7, 8));
	EXPECT(rename(MOUNT "/a", MOUNT "/a/b/c") == -1 && errno == EINVAL);
	EXPECT(link(MOUNT "/a/b/one", MOUNT "/x") == -1 && errno == EPERM);
	EXPECT(symlink("a", MOUNT "/x") == -1 && errno == EPERM);
	EXPECT(!mkdir(MOUNT "/gone", 0700) && !rmdir(MOUNT "/gone"));
	return 0;
}

static int content_is_read_as_it_was_written(void)
{
	int fd = make(MOUNT "/file", 0);
	char *data = malloc(FILE_BYTES), *back = malloc(FILE_BYTES);

	EXPECT(fd >= 0 && data && back);
	fill(data, FILE_BYTES, 1);
	EXPECT(pwrite(fd, data + BLOCK, FILE_BYTES - BLOCK, BLOCK) == FILE_BYTES - BLOCK);
	/* what is before it is a hole */
	EXPECT(blocks_of(MOUNT "/file") == 3);
	EXPECT(pread(fd, back, BLOCK, 0) == BLOCK);
	EXPECT(!back[0] && !memcmp(back, back + 1, BLOCK - 1));
	EXPECT(pwrite(fd, data, BLOCK, 0) == BLOCK);
	memset(back, 0, FILE_BYTES);
	EXPECT(pread(fd, back, FILE_BYTES, 0) == FILE_BYTES);
	EXPECT(!memcmp(data, back, FILE_BYTES));
	EXPECT(pread(fd, back, 1, FILE_BYTES) == 0);
	free(data);
	free(back);
	close(fd);
	return 0;
}

static int size_is_changed(void)
{
	unsigned long before = free_blocks();
	int fd = make(MOUNT "/size", 4 * BLOCK);
	char *memory = map(fd, 4 * BLOCK);
	char byte = 'x';

	EXPECT(fd >= 0 && memory != MAP_FAILED);
	memset(memory, 'x', 4 * BLOCK);
	EXPECT(!ftruncate(fd, 100) && blocks_of(MOUNT "/size") == 1);
	EXPECT(memory[50] == 'x' && memory[200] == 0);
	/* what was cut off is not there again */
	EXPECT(!ftruncate(fd, 4 * BLOCK));
	EXPECT(memory[BLOCK - 1] == 0 && memory[3 * BLOCK] == 0);
	memset(memory, 'y', 4 * BLOCK);
	EXPECT(!fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 10, 3 * BLOCK));
	EXPECT(blocks_of(MOUNT "/size") == 2);
	EXPECT(memory[9] == 'y' && memory[10] == 0 && memory[BLOCK] == 0);
	EXPECT(memory[3 * BLOCK + 9] == 0 && memory[3 * BLOCK + 10] == 'y');
	EXPECT(!fallocate(fd, FALLOC_FL_KEEP_SIZE, 4 * BLOCK, BLOCK));
	EXPECT(pread(fd, &byte, 1, 4 * BLOCK) == 0);
	EXPECT(fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, 0, BLOCK) == -1 && errno == EOPNOTSUPP);
	EXPECT(!munmap(memory, 4 * BLOCK) && !close(fd) && !unlink(MOUNT "/size"));
	EXPECT(free_blocks() == before);
	return 0;
}

/* include/uapi/linux/fs.h of Linux 6.7 */
struct scan {
	__u64 size, flags, start, end, walk_end, vec, vec_len, max_pages;
	__u64 category_inverted, category_mask, category_anyof_mask, return_mask;
};

struct range {
	__u64 start, end, categories;
};

#define SCAN		_IOWR('f', 16, struct scan)
#define IS_PRESENT	0x08
#define IS_HUGE		0x40

/* How many bytes are mapped by entries of 2 MiB: what the page tables say. */
static unsigned long huge_bytes(const void *memory, unsigned long bytes)
{
	struct range ranges[16];
	struct scan scan = {
		.size = sizeof(scan), .start = (__u64)memory, .end = (__u64)memory + bytes,
		.vec = (__u64)ranges, .vec_len = 16,
		.category_mask = IS_PRESENT | IS_HUGE, .return_mask = IS_PRESENT | IS_HUGE,
	};
	int fd = open("/proc/self/pagemap", O_RDONLY), count, i;
	unsigned long found = 0;

	count = ioctl(fd, SCAN, &scan);
	close(fd);
	for (i = 0; i < count; i++)
		found += ranges[i].end - ranges[i].start;
	return found;
}

static int memory_is_mapped_with_huge_pages(void)
{
	int fd = make(MOUNT "/ram", RAM_BYTES);
	char *memory = map(fd, RAM_BYTES);

	EXPECT(fd >= 0 && memory != MAP_FAILED && (unsigned long)memory % BLOCK == 0);
	EXPECT(!memory[0] && !memory[RAM_BYTES - 1]);
	fill(memory, RAM_BYTES, 2);
	EXPECT(huge_bytes(memory, RAM_BYTES) == RAM_BYTES);
	EXPECT(!munmap(memory, RAM_BYTES) && !close(fd));
	/* one that ends within a block is mapped to the end and no further */
	fd = open(MOUNT "/file", O_RDWR);
	memory = map(fd, FILE_BYTES);
	EXPECT(memory != MAP_FAILED && is_filled(memory, FILE_BYTES, 1));
	EXPECT(huge_bytes(memory, FILE_BYTES) == 3 * BLOCK);
	EXPECT(!munmap(memory, FILE_BYTES) && !close(fd));
	return 0;
}

static int memory_behind_the_end_is_not_to_be_had(void)
{
	int fd = open(MOUNT "/file", O_RDWR), status;
	char *memory = map(fd, FILE_BYTES + BLOCK);
	pid_t child;

	EXPECT(memory != MAP_FAILED);
	child = fork();
	if (!child) {
		memory[(FILE_BYTES | (PAGE - 1)) + 1] = 1;
		_exit(0);
	}
	EXPECT(waitpid(child, &status, 0) == child);
	EXPECT(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
	EXPECT(mmap(NULL, BLOCK, PROT_READ, MAP_PRIVATE, fd, 0) == MAP_FAILED && errno == EINVAL);
	EXPECT(!munmap(memory, FILE_BYTES + BLOCK) && !close(fd));
	return 0;
}

static int file_in_use_is_not_freed(void)
{
	unsigned long before = free_blocks();
	int fd = make(MOUNT "/used", 2 * BLOCK), other;
	char *memory = map(fd, 2 * BLOCK);

	EXPECT(fd >= 0 && memory != MAP_FAILED);
	fill(memory, 2 * BLOCK, 3);
	EXPECT(!close(fd) && !unlink(MOUNT "/used"));
	EXPECT(free_blocks() == before - 2);
	/* all others are somebody else's now */
	other = make(MOUNT "/others", free_blocks() * BLOCK);
	EXPECT(other >= 0 && free_blocks() == 0);
	EXPECT(is_filled(memory, 2 * BLOCK, 3));
	EXPECT(make(MOUNT "/more", 1) == -1 && errno == ENOSPC);
	EXPECT(!unlink(MOUNT "/more"));
	EXPECT(!munmap(memory, 2 * BLOCK));
	EXPECT(free_blocks() == 2);
	EXPECT(!close(other) && !unlink(MOUNT "/others"));
	EXPECT(free_blocks() == before);
	return 0;
}

static int pinned_memory_is_not_freed(void)
{
	unsigned long before = free_blocks();
	int fd = make(MOUNT "/pinned", 2 * BLOCK), ends[2];
	char *memory = map(fd, 2 * BLOCK);
	struct iovec page = { .iov_base = memory + BLOCK, .iov_len = PAGE };
	char back[PAGE];

	EXPECT(fd >= 0 && memory != MAP_FAILED && !pipe(ends));
	fill(memory, 2 * BLOCK, 4);
	/* a pipe takes the page itself, as direct I/O and VFIO do */
	EXPECT(vmsplice(ends[1], &page, 1, SPLICE_F_GIFT) == PAGE);
	EXPECT(!munmap(memory, 2 * BLOCK));
	EXPECT(strtoul(read_text(SYSFS "pinned_blocks"), NULL, 0) == 1);
	EXPECT(ftruncate(fd, BLOCK) == -1 && errno == EBUSY);
	EXPECT(!close(fd) && !unlink(MOUNT "/pinned"));
	EXPECT(free_blocks() == before - 1);
	EXPECT(write_text(SYSFS "control", "wipe") == -1 && errno == EBUSY);
	EXPECT(read(ends[0], back, PAGE) == PAGE);
	EXPECT(((__u64 *)back)[0] == word_at(4, BLOCK));
	close(ends[0]);
	close(ends[1]);
	EXPECT(free_blocks() == before);
	return 0;
}

static int driver_writes_a_file(void)
{
	char command[64];

	EXPECT(!mkdir(MOUNT "/driver", 0700));
	EXPECT(write_text(DRIVER "command", "check driver/state 8 1") == -1 && errno == ENOENT);
	snprintf(command, sizeof(command), "write driver/state %lu %lu", DRIVER_BYTES, DRIVER_SEED);
	EXPECT(!write_text(DRIVER "command", command));
	EXPECT(strstr(read_text(DRIVER "open"), "0x200000 0x"));
	return 0;
}

static int file_of_a_driver_stays(void)
{
	EXPECT(unlink(MOUNT "/driver/state") == -1 && errno == EBUSY);
	EXPECT(truncate(MOUNT "/driver/state", 0) == -1 && errno == EBUSY);
	EXPECT(rename(MOUNT "/file", MOUNT "/driver/state") == -1 && errno == EBUSY);
	EXPECT(!truncate(MOUNT "/driver/state", 2 * BLOCK));
	EXPECT(!write_text(DRIVER "command", "close"));
	EXPECT(!truncate(MOUNT "/driver/state", DRIVER_BYTES));
	return 0;
}

static double time_allocation(int fd, unsigned long bytes)
{
	double began = seconds();

	return posix_fallocate(fd, 0, bytes) ? 0 : seconds() - began;
}

/* Both have to zero all of it. A figure to read: how long it takes is up to the machine. */
static int allocation_is_timed_beside_hugetlbfs(void)
{
	unsigned long bytes = free_blocks() / 2 * BLOCK;
	double ours = 1e9, theirs = 1e9, took;
	char pages[16];
	int fd, i;

	snprintf(pages, sizeof(pages), "%lu", bytes / BLOCK);
	EXPECT(!write_text("/proc/sys/vm/nr_hugepages", pages));
	for (i = 0; i < 5; i++) {
		fd = make(MOUNT "/speed", 0);
		took = time_allocation(fd, bytes);
		EXPECT(took > 0 && !close(fd) && !unlink(MOUNT "/speed"));
		ours = took < ours ? took : ours;
		fd = memfd_create("speed", MFD_HUGETLB);
		took = time_allocation(fd, bytes);
		EXPECT(took > 0 && !close(fd));
		theirs = took < theirs ? took : theirs;
	}
	EXPECT(!write_text("/proc/sys/vm/nr_hugepages", "0"));
	printf("# allocation of %lu MiB, the best of 5: pkernfs %.1f ms, hugetlbfs %.1f ms\n",
	       bytes >> 20, ours * 1e3, theirs * 1e3);
	return 0;
}

static int file_without_a_name_is_left_behind(void)
{
	int fd = make(MOUNT "/orphan", 3 * BLOCK);

	EXPECT(fd >= 0 && map(fd, 3 * BLOCK) != MAP_FAILED);
	EXPECT(!unlink(MOUNT "/orphan"));
	/* open and mapped until the kernel goes, or the test does: stage 2 counts blocks */
	EXPECT(umount(MOUNT) == -1 && errno == EBUSY);
	if (!fork()) {
		setsid();
		close(0);
		close(1);
		close(2);
		for (;;)
			pause();
	}
	return 0;
}

/* --- stage 2 */

static int region_is_found_again(void)
{
	struct statfs fs;

	EXPECT(state_is("unmounted"));
	EXPECT(!mount_it());
	EXPECT(!statfs(MOUNT, &fs));
	/* one, file, ram, state: what had no name is free again */
	EXPECT(fs.f_bfree == fs.f_blocks - 1 - 4 - RAM_BYTES / BLOCK - 2);
	return 0;
}

static int names_are_what_they_were(void)
{
	struct stat st;

	EXPECT(!stat(MOUNT "/a", &st) && S_ISDIR(st.st_mode) && (st.st_mode & 07777) == 0750);
	EXPECT(!stat(MOUNT "/a/b/one", &st) && (st.st_mode & 07777) == 0640);
	EXPECT(st.st_size == BLOCK && st.st_uid == 7 && st.st_gid == 8 && st.st_mtime > 0);
	EXPECT(access(MOUNT "/two", F_OK) == -1 && access(MOUNT "/gone", F_OK) == -1);
	EXPECT(access(MOUNT "/orphan", F_OK) == -1 && access(MOUNT "/used", F_OK) == -1);
	return 0;
}

static int content_is_what_was_written(void)
{
	int fd = open(MOUNT "/file", O_RDWR);
	char *data = malloc(FILE_BYTES), *memory;

	EXPECT(fd >= 0 && data && read(fd, data, FILE_BYTES) == FILE_BYTES);
	EXPECT(is_filled(data, FILE_BYTES, 1));
	free(data);
	close(fd);
	fd = open(MOUNT "/ram", O_RDWR);
	memory = map(fd, RAM_BYTES);
	EXPECT(memory != MAP_FAILED && is_filled(memory, RAM_BYTES, 2));
	EXPECT(huge_bytes(memory, RAM_BYTES) == RAM_BYTES);
	EXPECT(!munmap(memory, RAM_BYTES) && !close(fd));
	return 0;
}

static int driver_finds_its_file(void)
{
	char command[64], *data = malloc(DRIVER_BYTES);
	int fd;

	snprintf(command, sizeof(command), "check driver/state %lu %lu", DRIVER_BYTES,
		 DRIVER_SEED + 1);
	EXPECT(write_text(DRIVER "command", command) == -1 && errno == EILSEQ);
	snprintf(command, sizeof(command), "check driver/state %lu %lu", DRIVER_BYTES, DRIVER_SEED);
	EXPECT(!write_text(DRIVER "command", command));
	EXPECT(unlink(MOUNT "/driver/state") == -1 && errno == EBUSY);
	/* and so does userspace, byte for byte */
	fd = open(MOUNT "/driver/state", O_RDONLY);
	EXPECT(fd >= 0 && data && read(fd, data, DRIVER_BYTES) == DRIVER_BYTES);
	EXPECT(is_filled(data, DRIVER_BYTES, DRIVER_SEED));
	EXPECT(!close(fd));
	free(data);
	return 0;
}

static int driver_needs_no_mount(void)
{
	char command[64];

	EXPECT(umount(MOUNT) == 0);
	EXPECT(state_is("mounted"));
	EXPECT(!write_text(DRIVER "command", "close"));
	EXPECT(state_is("unmounted"));
	snprintf(command, sizeof(command), "check driver/state %lu %lu", DRIVER_BYTES, DRIVER_SEED);
	EXPECT(!write_text(DRIVER "command", command));
	EXPECT(!write_text(DRIVER "command", "close"));
	return 0;
}

static __u32 crc32c(const unsigned char *data, unsigned long bytes)
{
	__u32 crc = ~0U;
	int bit;

	while (bytes--) {
		crc ^= *data++;
		for (bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78 : 0);
	}
	return crc;
}

/* The first pages of the region, as a previous kernel might have left them. */
static unsigned char *region_pages(void)
{
	const char *text = read_text(SYSFS "region");
	unsigned long start = strtoul(strchr(text, '!') + 1, NULL, 0);
	int fd = open("/dev/mem", O_RDWR);
	void *pages = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, start);

	close(fd);
	return pages;
}

static void seal(unsigned char *super)
{
	__u32 crc;

	memset(super + CHECKSUM_AT, 0, 4);
	crc = crc32c(super, PAGE);
	memcpy(super + CHECKSUM_AT, &crc, 4);
}

static int is_refused(const char *words)
{
	if (mount_it() != -1 || errno != EUCLEAN)
		return 0;
	/* a driver does not get it either */
	if (write_text(DRIVER "command", "check driver/state 8 1") != -1 || errno != EUCLEAN)
		return 0;
	return state_is("refused: ") && state_is(words);
}

static int harmed_metadata_are_refused(void)
{
	unsigned char *pages = region_pages();

	EXPECT(pages != MAP_FAILED);
	pages[1024 + 0x2c] ^= 1;
	EXPECT(is_refused("checksum of the superblock"));
	pages[1024 + 0x2c] ^= 1;
	/* the table of blocks begins with the third page */
	pages[2 * PAGE + 3] ^= 4;
	EXPECT(is_refused("checksum of blocks and inodes"));
	pages[2 * PAGE + 3] ^= 4;
	pages[0] ^= 0x20;
	EXPECT(is_refused("magic"));
	pages[0] ^= 0x20;
	EXPECT(!munmap(pages, 64 * PAGE));
	return 0;
}

static int another_version_is_refused(void)
{
	unsigned char *pages = region_pages();

	EXPECT(pages != MAP_FAILED);
	pages[VERSION_AT]++;
	seal(pages);
	EXPECT(is_refused("version is 2, this kernel reads 1"));
	pages[VERSION_AT]--;
	seal(pages);
	EXPECT(!munmap(pages, 64 * PAGE));
	/* nothing of all that was changed by refusing it */
	EXPECT(!mount_it() && access(MOUNT "/a/b/one", F_OK) == 0 && !umount(MOUNT));
	return 0;
}

static unsigned long total_bytes(void)
{
	return strtoul(strchr(read_text("/proc/meminfo"), ':') + 1, NULL, 10) << 10;
}

static int region_is_given_back_only_when_told_so(void)
{
	unsigned long before = total_bytes();
	unsigned char *pages = region_pages();

	EXPECT(pages != MAP_FAILED);
	pages[0] ^= 1;
	EXPECT(is_refused("magic"));
	EXPECT(!munmap(pages, 64 * PAGE));
	EXPECT(total_bytes() == before);
	EXPECT(write_text(SYSFS "control", "nonsense") == -1 && errno == EINVAL);
	EXPECT(!write_text(SYSFS "control", "wipe"));
	EXPECT(state_is("blank"));
	EXPECT(!mount_it() && free_blocks() > 0 && !umount(MOUNT));
	EXPECT(!write_text(SYSFS "control", "release"));
	EXPECT(state_is("released"));
	EXPECT(mount_it() == -1 && errno == ENODEV);
	/* when it is used is up to the kernel's policy: some bring it online at once */
	EXPECT(strstr(read_text("/proc/iomem"), "System RAM (pkernfs)"));
	return 0;
}

static const struct ktap_case first[] = {
	{ "blank_region_is_formatted", blank_region_is_formatted },
	{ "names_are_made_moved_and_removed", names_are_made_moved_and_removed },
	{ "content_is_read_as_it_was_written", content_is_read_as_it_was_written },
	{ "size_is_changed", size_is_changed },
	{ "memory_is_mapped_with_huge_pages", memory_is_mapped_with_huge_pages },
	{ "memory_behind_the_end_is_not_to_be_had", memory_behind_the_end_is_not_to_be_had },
	{ "file_in_use_is_not_freed", file_in_use_is_not_freed },
	{ "pinned_memory_is_not_freed", pinned_memory_is_not_freed },
	{ "driver_writes_a_file", driver_writes_a_file },
	{ "file_of_a_driver_stays", file_of_a_driver_stays },
	{ "allocation_is_timed_beside_hugetlbfs", allocation_is_timed_beside_hugetlbfs },
	{ "file_without_a_name_is_left_behind", file_without_a_name_is_left_behind },
};

static const struct ktap_case second[] = {
	{ "region_is_found_again", region_is_found_again },
	{ "names_are_what_they_were", names_are_what_they_were },
	{ "content_is_what_was_written", content_is_what_was_written },
	{ "driver_finds_its_file", driver_finds_its_file },
	{ "driver_needs_no_mount", driver_needs_no_mount },
	{ "harmed_metadata_are_refused", harmed_metadata_are_refused },
	{ "another_version_is_refused", another_version_is_refused },
	{ "region_is_given_back_only_when_told_so", region_is_given_back_only_when_told_so },
};

KTAP_MAIN(first, second)
