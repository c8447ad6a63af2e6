#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Make this checkout ready to run: packages, virtual environment, images.
#
#   liveupdate/setup.sh [--dry-run] [--tests] [--no-images]
#
# --dry-run    list what would be installed, and stop
# --tests      also what tests and linters need, and the images that only tests need
# --no-images  packages and virtual environment only
#
# Debian 12 and 13, as root or with sudo; elsewhere it lists what is missing. Needs no root when
# nothing is missing. Leaves the configuration of apt as it was: packages that bookworm lacks
# come from bookworm-backports through a sources list and package lists of this script's own.
set -eu

here=$(cd "$(dirname "$0")/.." && pwd)
venv=$here/.venv
stamp=$venv/setup.stamp
mirror=http://deb.debian.org/debian
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
dry_run='' tests='' images=yes

for option in "$@"; do
	case $option in
	--dry-run) dry_run=yes ;;
	--tests) tests=yes ;;
	--no-images) images='' ;;
	-h | --help) sed -n '4,14s/^# \{0,1\}//p' "$0"; exit 0 ;;
	*) echo "setup: unknown option '$option'; see --help" >&2; exit 2 ;;
	esac
done

say() { echo "setup: $*" >&2; }
fail() { say "$*"; exit 3; }

# Administration tools are not on every user's PATH.
PATH=$PATH:/usr/sbin:/sbin
export PATH

# What has to be there -> the Debian package that brings it.
missing=''
need() {
	case " $missing " in *" $2 "*) return ;; esac
	case $1 in
	/*) for path in $1; do [ -e "$path" ] && return; done ;;
	*) command -v "$1" >/dev/null 2>&1 && return ;;
	esac
	missing="$missing $2"
}

# QEMU has igb since 8.0; without it there is no passthrough testbed.
qemu_is_good() {
	command -v qemu-system-x86_64 >/dev/null 2>&1 &&
		qemu-system-x86_64 -machine none -device help 2>/dev/null | grep -q '"igb"' &&
		qemu-system-x86_64 -cpu help 2>/dev/null | grep -qw svm
}

python_is_good() {
	python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# A session daemon for `--target libvirt`, and what its Python binding is built with.
find_missing_for_libvirt() {
	need libvirtd libvirt-daemon
	need "/usr/lib/*/libvirt/connection-driver/libvirt_driver_qemu.so" libvirt-daemon-driver-qemu
	need /usr/include/libvirt/libvirt.h libvirt-dev
	need "/usr/include/python3*/Python.h" python3-dev
	need pkg-config pkg-config
}

find_missing_for_tests() {
	need sshd openssh-server
	need sparse sparse
}

find_missing() {
	missing=''
	need make make
	need gcc gcc
	need "/usr/lib/*/libc.a /usr/lib64/libc.a /usr/lib/libc.a" libc6-dev
	need /usr/include/gelf.h libelf-dev
	need flex flex
	need bison bison
	need bc bc
	need perl perl
	need lz4 lz4
	need xz xz-utils
	need patch patch
	need ps procps
	need setpriv util-linux
	need mke2fs e2fsprogs
	need debugfs e2fsprogs
	need mmdebstrap mmdebstrap
	need fakeroot fakeroot
	need newuidmap uidmap
	need ssh-keygen openssh-client
	need "$keyring" debian-archive-keyring
	need /etc/ssl/certs/ca-certificates.crt ca-certificates
	need apt-get apt
	find_missing_for_libvirt
	[ -z "$tests" ] || find_missing_for_tests
	python_is_good || missing="$missing python3 python3-venv"
	need qemu-img qemu-utils
	qemu_is_good || missing="$missing qemu-system-x86"
	missing=${missing# }
}

as_root() {
	if [ "$(id -u)" = 0 ]; then
		"$@"
	elif command -v sudo >/dev/null 2>&1; then
		sudo "$@"
	else
		fail "root is needed for: $* (no sudo here; run it as root, then 'make setup' again)"
	fi
}

# $1: directory for the private state; $2: target release; the rest: packages
install_privately() {
	state=$1 release=$2
	shift 2
	mkdir -p "$state/lists/partial"
	cat >"$state/sources.list" <<-EOT
		deb [signed-by=$keyring] $mirror bookworm main
		deb [signed-by=$keyring] $mirror bookworm-updates main
		deb [signed-by=$keyring] http://deb.debian.org/debian-security bookworm-security main
		deb [signed-by=$keyring] $mirror bookworm-backports main
	EOT
	set -- -o "Dir::Etc::sourcelist=$state/sources.list" -o Dir::Etc::sourceparts=/dev/null \
		-o "Dir::State::lists=$state/lists" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= \
		-o APT::Sandbox::User=root -o Acquire::Languages=none -- "$@"
	options='' # everything up to -- goes to both calls
	while [ "$1" != -- ]; do
		options="$options $1"
		shift
	done
	shift
	# shellcheck disable=SC2086 # none of the options has a space in it: see mktemp below
	as_root apt-get $options -qq update
	# shellcheck disable=SC2086
	as_root env DEBIAN_FRONTEND=noninteractive apt-get $options -qq -o Dpkg::Use-Pty=0 -y \
		--no-install-recommends install -t "$release" "$@"
}

install_missing() {
	# shellcheck source=/dev/null
	. /etc/os-release
	plain='' backports=''
	for package in $missing; do
		case ${VERSION_ID:-}:$package in
		12:qemu-*) backports="$backports $package" ;;
		*) plain="$plain $package" ;;
		esac
	done
	# Both come from one source package and must be of one version.
	[ -z "$backports" ] || backports=' qemu-system-x86 qemu-utils'
	[ -z "$plain" ] || say "will install:$plain"
	[ -z "$backports" ] || say "will install from bookworm-backports:$backports"
	[ -z "$dry_run" ] || exit 0
	if [ -n "$plain" ]; then
		as_root apt-get -qq update
		# shellcheck disable=SC2086 # a list of package names
		as_root env DEBIAN_FRONTEND=noninteractive \
			apt-get -qq -o Dpkg::Use-Pty=0 -y --no-install-recommends install $plain
	fi
	if [ -n "$backports" ]; then
		state=$(TMPDIR=/tmp mktemp -d)
		trap 'as_root rm -rf "$state"' EXIT
		# shellcheck disable=SC2086
		install_privately "$state" bookworm-backports $backports
		as_root rm -rf "$state"
		trap - EXIT
	fi
	find_missing
	[ -z "$missing" ] || fail "still missing after installation: $missing"
}

packages() {
	find_missing
	if [ -z "$missing" ]; then
		say 'nothing to install'
		[ -z "$dry_run" ] || exit 0
		return
	fi
	id='' version=''
	if [ -r /etc/os-release ]; then
		id=$(sed -n 's/^ID=//p' /etc/os-release)
		version=$(sed -n 's/^VERSION_ID="\{0,1\}\([0-9]*\).*/\1/p' /etc/os-release)
	fi
	case $id:$version in
	debian:12 | debian:13) install_missing ;;
	*)
		say "this machine is '${id:-unknown} $version'; packages are installed on Debian 12 and 13 only"
		fail "missing here, by Debian's names: $missing (QEMU must be 8.0 or later, Python 3.11)"
		;;
	esac
}

# What decides packages and virtual environment; images have digests of their own.
# $1: "yes" with what the tests need
digest() {
	{
		cat "$here/liveupdate/setup.sh" "$here/pyproject.toml"
		echo "$here $1"
		cat /etc/os-release 2>/dev/null || :
	} | sha256sum | cut -d' ' -f1
}

want=$(digest "$tests")
if [ -n "$dry_run" ] || [ ! -x "$venv/bin/liveupdate" ] ||
	! grep -qx "$want" "$stamp" 2>/dev/null; then
	packages
	say "virtual environment in $venv"
	[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
	extras=libvirt${tests:+,dev,labgrid}
	"$venv/bin/pip" install --quiet --disable-pip-version-check --editable "${here}[$extras]"
	echo "$want" >>"$stamp"
	# What the tests need includes what a run needs.
	[ -z "$tests" ] || digest '' >>"$stamp"
fi

if [ -n "$images" ]; then
	if [ -n "$tests" ]; then
		"$venv/bin/liveupdate" images build --tests
	else
		"$venv/bin/liveupdate" images build
	fi
fi
