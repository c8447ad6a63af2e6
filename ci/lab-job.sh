#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# One job on a machine of a lab, for GitLab CI, cron and systemd timers alike.
#
#   ci/lab-job.sh run HOST RESULTS [SCENARIO...]
#   ci/lab-job.sh give-back HOST RESULTS...
#
# run        take HOST's place, provision it, run the scenarios, publish into RESULTS: a JUnit, a
#            KTAP and a JSON file for each, and bundle.tar.gz with all run directories; give the
#            place back. Exits 0, or as the worst scenario did; 3: the job itself failed.
# give-back  release a place that a job which was killed has left taken; does nothing otherwise,
#            also when the place is free by now. Exits 3 when it is still taken.
#
# INVENTORY  the inventory that HOST is in (ansible/inventory/example.yml)
# PROVISION  0: the machine is provisioned already
# JOB_VARS   a file of more variables for ansible/playbooks/lab_job.yml
# shellcheck disable=SC2329 # traps call functions
set -eu

KILL_S=30

top=$(cd "$(dirname "$0")/.." && pwd)
venv=${VENV:-$top/.venv}
[ ! -d "$venv/bin" ] || PATH=$venv/bin:$PATH
ANSIBLE_CONFIG=${ANSIBLE_CONFIG:-$top/ansible/ansible.cfg}
export PATH ANSIBLE_CONFIG
inventory=${INVENTORY:-$top/ansible/inventory/example.yml}
# Made when the place was taken, gone when it was given back: what give-back goes by.
MARKER=.place-taken

say() { echo "lab-job: $*" >&2; }

usage() {
	sed -n '6,7s/^#   //p' "$0" >&2
	exit 2
}

# What the inventory says of $host, a line for each name; empty when it says nothing.
variables() {
	ansible-inventory -i "$inventory" --host "$host" | python3 -c '
import json, sys
known = json.load(sys.stdin)
print(*(known.get(name, "") for name in sys.argv[1:]), sep="\n")' "$@"
}

# $1: directory of results
give_back() {
	[ -e "$1/$MARKER" ] || return 0
	known=$(variables liveupdate_place liveupdate_coordinator)
	place=$(echo "$known" | sed -n 1p)
	coordinator=$(echo "$known" | sed -n 2p)
	coordinator=${coordinator:-127.0.0.1:20408}
	# Another user took the place, or the coordinator restarted and forgot its locks: nothing is left to do.
	if labgrid-client -x "$coordinator" -p "$place" show | grep -q '^ *acquired: None$'; then
		say "place '$place' is free already"
		rm -f "$1/$MARKER"
		return 0
	fi
	say "giving place '$place' back"
	if labgrid-client -x "$coordinator" -p "$place" release; then
		rm -f "$1/$MARKER"
	else
		say "place '$place' is still taken; try again: $0 give-back $host $1"
		return 3
	fi
}

publish() {
	[ ! -d "$results/runs" ] || tar -C "$results" -czf "$results/bundle.tar.gz" runs
}

# $1: a process; itself and all below it, whatever sessions they have made for themselves
tree() {
	echo "$1"
	for child in $(ps -o pid= --ppid "$1"); do tree "$child"; done
}

# Processes that work on the machine have to end before its place is given back.
end_job() {
	trap '' INT TERM HUP
	[ -n "$job" ] || return 0
	pids=$(tree "$job")
	# shellcheck disable=SC2086 # a list of numbers
	kill -TERM $pids 2>/dev/null || :
	left=$KILL_S
	# shellcheck disable=SC2086
	while [ "$left" -gt 0 ] && ps -o stat= -p "$(echo $pids | tr ' ' ,)" | grep -qv '^Z'; do
		sleep 1
		left=$((left - 1))
	done
	# shellcheck disable=SC2086
	kill -KILL $pids 2>/dev/null || :
	job=''
}

leave() {
	status=$?
	trap - EXIT
	end_job
	publish || status=3
	give_back "$results" || status=3
	exit "$status"
}

run() {
	scenarios=$(python3 -c 'import json, sys; print(json.dumps(sys.argv[1:] or ["default"]))' "$@")
	rm -f "$results/status"
	if [ -e "$results/$MARKER" ]; then
		say "$results is of a job that was killed or still runs: '$0 give-back $host $results' first"
		exit 3
	fi
	job=''
	trap leave EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM HUP
	# In the background, since a shell that waits for a foreground process hears no signal.
	ansible-playbook -i "$inventory" ${JOB_VARS:+-e "@$JOB_VARS"} \
		-e "job_host=$host" -e "job_results=$results" -e "job_marker=$results/$MARKER" \
		-e "job_provision=${PROVISION:-1}" -e "{\"job_scenarios\": $scenarios}" \
		"$top/ansible/playbooks/lab_job.yml" </dev/null &
	job=$!
	wait "$job" || :
	job=''
	# Ansible has one status for every failure; the tool's say more. Without one it was not run.
	status=3
	[ ! -s "$results/status" ] || status=$(cat "$results/status")
	exit "$status"
}

[ $# -ge 3 ] || usage
verb=$1 host=$2
shift 2
case $verb in
run)
	mkdir -p "$1"
	results=$(cd "$1" && pwd)
	shift
	run "$@"
	;;
give-back)
	status=0
	for directory in "$@"; do give_back "$directory" || status=3; done
	exit "$status"
	;;
*) usage ;;
esac
