/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * KTAP version 1 for tests in two stages: stage 1 runs on the outgoing kernel,
 * stage 2 on the incoming one; see Documentation/dev-tools/ktap.rst.
 */
#ifndef KTAP_H
#define KTAP_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct ktap_case {
	const char *name;
	/* 0, or a line that failed; what is wrong has been said with EXPECT */
	int (*run)(void);
};

#define EXPECT(condition) do {							\
	if (!(condition)) {							\
		printf("# %s:%d: %s (errno: %s)\n", __func__, __LINE__,		\
		       #condition, strerror(errno));				\
		return __LINE__;						\
	}									\
} while (0)

/* Run all cases of a stage, in order; later ones may build on earlier ones. */
static inline int ktap_run(const struct ktap_case *cases, int count)
{
	int i, failed = 0;

	setbuf(stdout, NULL);
	printf("KTAP version 1\n1..%d\n", count);
	for (i = 0; i < count; i++) {
		int line = cases[i].run();

		failed += !!line;
		printf("%s %d %s\n", line ? "not ok" : "ok", i + 1, cases[i].name);
	}
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

#define KTAP_COUNT(cases) ((int)(sizeof(cases) / sizeof((cases)[0])))

/* main() of a test: NAME 1 or NAME 2 */
static inline int ktap_main(int argc, char **argv, const struct ktap_case *first, int nr_first,
			    const struct ktap_case *second, int nr_second)
{
	int stage = argc == 2 ? atoi(argv[1]) : 0;

	if (stage == 1)
		return ktap_run(first, nr_first);
	if (stage == 2)
		return ktap_run(second, nr_second);
	fprintf(stderr, "usage: %s 1|2\n", argv[0]);
	return 2;
}

#define KTAP_MAIN(first, second)						\
int main(int argc, char **argv)							\
{										\
	return ktap_main(argc, argv, first, KTAP_COUNT(first), second,		\
			 KTAP_COUNT(second));					\
}

#endif /* KTAP_H */
