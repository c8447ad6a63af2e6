#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Every night, one machine: for cron or a systemd timer, see docs/lab-jobs.md.
#
#   nightly.sh HOST DIRECTORY [SCENARIO...]
#
# First gives back what an earlier night, killed or without power, has left taken. Results go into
# DIRECTORY/HOST/DATE. Exits as ci/lab-job.sh does; cron mails what is printed.
#
# LAB_JOB  ci/lab-job.sh, when this is not where the checkout has it; its variables are passed on
set -eu

[ $# -ge 2 ] || {
	echo "usage: $0 HOST DIRECTORY [SCENARIO...]" >&2
	exit 2
}
job=${LAB_JOB:-$(dirname "$0")/../lab-job.sh}
host=$1 nights=$2/$1
shift 2

mkdir -p "$nights"
# Two at once would take a running job for a killed one, and give its place back under it.
exec 9>"$nights/lock"
flock -n 9 || {
	echo "nightly: the job before on '$host' still runs" >&2
	exit 3
}
for marker in "$nights"/*/.place-taken; do
	[ ! -e "$marker" ] || "$job" give-back "$host" "$(dirname "$marker")" 9>&-
done
# exec, not a child: a signal that ends the service has to reach the job itself.
exec "$job" run "$host" "$nights/$(date -u +%Y%m%dT%H%M%SZ)" "$@"
