# SPDX-License-Identifier: Apache-2.0
#
# `make help` lists what is supported. VENV=DIR takes another virtual environment than .venv.

VENV	?= .venv
# arguments of `make run`, such as RUN='--guests 2 --guest-memory 512M'
RUN	?=
PYTEST	?=
# a commit for `make bench` to measure against
BASE	?=
# one part of `make nightly`, such as PART=fleet; empty: all of them
PART	?=
# how many tests with the mark side_by_side run at a time (docs/testing.md)
VM_JOBS	?= 2
PY	:= $(VENV)/bin/python
SHELLS	:= liveupdate/setup.sh .ci/run ci/lab-job.sh ci/examples/nightly.sh

.DEFAULT_GOAL := help
.PHONY: help setup run test check nightly lint unit component vm vm-shared vm-alone bench man images tools kernel-check modules-check clean

help: ## list all targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 15

setup: ## install packages, make .venv, build images; under 2 s when nothing is missing
	@liveupdate/setup.sh

run: setup ## set up, then take a guest through a kexec; RUN='...' gives arguments
	$(VENV)/bin/liveupdate run $(RUN)

test: ## set up for tests, then lint and all tests but the nightly ones; 23 minutes on 2 CPUs
	liveupdate/setup.sh --tests
	$(MAKE) --no-print-directory check
	$(MAKE) --no-print-directory -j1 -k vm-shared vm-alone

# Component tests mostly wait, and what they wait for has deadlines: what only computes lets them go first.
check: tools ## lint, unit and component tests, in 2 minutes; needs no root, network or images
	@echo "lint, unit and component tests run side by side; each is shown when it has ended"
	@$(MAKE) --no-print-directory --output-sync=target -j3 COMPUTE='nice -n 5' lint unit component

nightly: tools images ## tests too long for `make test` (docs/testing.md); PART=fleet runs one part
	$(PY) -m pytest -m 'nightly$(if $(PART),(part="$(PART)"))' $(PYTEST)

# A run needs neither linters nor pytest, so `make run` does not install them.
tools:
	@$(PY) -c 'import sys; from importlib.util import find_spec; \
		sys.exit(not (find_spec("pytest") and find_spec("mypy")))' 2>/dev/null || \
	{ echo "make: no pytest or mypy in $(VENV); run 'liveupdate/setup.sh --tests --no-images'" >&2; \
	exit 3; }

lint: tools ## ruff, mypy, import-linter, shellcheck, ansible-lint
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(COMPUTE) $(PY) -m mypy
	$(VENV)/bin/lint-imports --no-cache --no-logo
	@if [ -x $(VENV)/bin/shellcheck ]; then $(VENV)/bin/shellcheck $(SHELLS); \
	else shellcheck $(SHELLS); fi
	cd ansible && PATH="$(abspath $(VENV))/bin:$$PATH" $(COMPUTE) ansible-lint --offline -q

# one process for each CPU
unit: tools ## pure tests
	$(COMPUTE) $(PY) -m pytest -m unit -n auto $(PYTEST)

# Most of the time these wait. What shares a lab goes to one process.
component: tools ## a local sshd, fake peers, a QEMU without a guest
	$(PY) -m pytest -m component -n 4 --dist loadgroup $(PYTEST)

vm: tools images ## tests that boot hosts with guests
	$(MAKE) --no-print-directory -j1 -k vm-shared vm-alone

# 5: no test was selected, such as by PYTEST='-k NAME'
NONE_IS_FINE = $(if $(PYTEST),|| [ $$? -eq 5 ])

# What these say does not depend on how busy the machine is.
vm-shared:
	$(PY) -m pytest -m 'vm and not nightly and side_by_side' -n $(VM_JOBS) --dist loadgroup $(PYTEST) $(NONE_IS_FINE)

# Runs that must pass: clocks and silences of guests are measured in them.
vm-alone:
	$(PY) -m pytest -m 'vm and not nightly and not side_by_side' $(PYTEST) $(NONE_IS_FINE)

bench: tools images ## measure the budgets and print their table; BASE=COMMIT: against that commit
	$(PY) -m tests.bench $(if $(BASE),--base $(BASE))

man: tools ## manual pages into build/man, from the help of every verb
	$(PY) -m liveupdate.cli.man build/man

images: ## build all missing images, also those for tests
	$(VENV)/bin/liveupdate images build --tests

kernel-check: ## every prefix of the kernel series: checkpatch, builds with its option on and off
	$(PY) -m liveupdate.images.check

modules-check: ## kernel modules: checkpatch --strict, W=1 and sparse, with no message
	$(PY) -m liveupdate.images.modules_check

clean: ## remove what was built in the checkout; images stay (`liveupdate images gc`)
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage
	find liveupdate tests -name __pycache__ -type d -prune -exec rm -rf {} +
	$(MAKE) -C guest-images/guest clean
