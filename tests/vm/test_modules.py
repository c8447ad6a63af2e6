# SPDX-License-Identifier: Apache-2.0
"""Our kernel code on a host under update: KUnit, and selftests across a real kexec.

One machine for all of it: it boots with KUnit switched on, which runs the suites of the kernel
series, then every module of :data:`tests.support.vm.moduletests.ROWS` is loaded with its tests,
stage 1 of the selftests runs, the other kernel is kexec'ed, and stage 2 runs there. Every result is
a test of its own.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from liveupdate.cli.app import App
from liveupdate.cli.options import ScenarioArgs
from liveupdate.cli.prepare_run import prepare
from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import BuildError, OutcomeUnknown
from liveupdate.core.paths import guest_images_dir
from liveupdate.core.steps import Steps
from liveupdate.images import catalogue, modules_check
from liveupdate.run.bringup import make_host
from liveupdate.scenario.load import Override
from liveupdate.transport.ssh import Ssh
from tests.support.ktap import find_wrong
from tests.support.vm import nightly
from tests.support.vm.moduletests import KERNEL_SUITES, MEMORY, ROWS, Row

#: in one process: they share the machine
pytestmark = [pytest.mark.side_by_side, pytest.mark.xdist_group("modules")]

CALL_S = 60.0
BOOT_S = 90.0


@dataclass(slots=True)
class Outcome:
    """What the machine said; a part that it did not get to is missing."""

    #: KTAP by suite
    kunit: dict[str, str] = field(default_factory=dict)
    #: output by (program, stage)
    selftests: dict[tuple[str, int], str] = field(default_factory=dict)
    #: how the loading of a module went wrong, by its name and kernel
    refused: dict[tuple[str, str], str] = field(default_factory=dict)
    #: kernel messages that must not be, by kernel
    splats: dict[str, str] = field(default_factory=dict)


def _call(ssh: Ssh, *argv: str, stdin: bytes = b"") -> tuple[int, str]:
    done = ssh.run(argv, Deadline.after(CALL_S, f"'{argv[0]}' on the host"), stdin=stdin)
    return done.status, (done.stdout + done.stderr).decode(errors="replace")


def _load(ssh: Ssh, outcome: Outcome, kernel: str, module: str, parameters: str) -> None:
    script = f'exec insmod "/kit/modules/$(uname -r)/{module}.ko" {parameters}'
    status, said = _call(ssh, "sh", "-c", script)
    if status:
        outcome.refused[module, kernel] = said


def _read_suites(ssh: Ssh, outcome: Outcome, suites: tuple[str, ...]) -> None:
    for suite in suites:
        _, outcome.kunit[suite] = _call(ssh, "cat", f"/sys/kernel/debug/kunit/{suite}/results")


def _run_stage(ssh: Ssh, outcome: Outcome, stage: int, programs: Path) -> None:
    kernel = "outgoing" if stage == 1 else "incoming"
    for row in ROWS:
        _load(ssh, outcome, kernel, row.module, row.parameters)
        if row.kunit and stage == 1:
            _load(ssh, outcome, kernel, row.kunit, "")
            _read_suites(ssh, outcome, row.suites)
    for row in ROWS:
        for name in row.selftests:
            path = f"/tmp/{name}"
            _call(ssh, "sh", "-c", f"cat >{path} && chmod 755 {path}",
                  stdin=(programs / name).read_bytes())  # fmt: skip
            _, outcome.selftests[name, stage] = _call(ssh, path, str(stage))
    script = "dmesg | grep -E 'WARNING:|BUG:|Oops|UBSAN' || true"
    _, said = _call(ssh, "sh", "-c", script)
    outcome.splats[kernel] = said.strip()


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    directory = tmp_path_factory.mktemp("modules")
    programs = catalogue.find_image("selftests")
    append = " ".join(
        ["kunit.enable=1 kunit.autorun=1", *filter(None, (row.append for row in ROWS))]
    )
    prepared = prepare(
        App(),
        ScenarioArgs(
            scenario=None,
            overrides=(
                Override("host.append", append, "--set"),
                Override("host.memory", str(MEMORY), "--set"),
            ),
        ),
        directory,
    )
    plan, found = prepared.plan, Outcome()
    with make_host(plan, secrets.token_hex(3), directory, catalogue.make_kit(plan.images)) as host:
        with host.ssh(Deadline.after(BOOT_S, "sshd on the outgoing kernel")) as ssh:
            before = _call(ssh, "cat", "/proc/sys/kernel/random/boot_id")
            _read_suites(ssh, found, KERNEL_SUITES)
            _run_stage(ssh, found, 1, programs)
            words = f"--command-line={plan.hops[0].append}"
            assert _call(ssh, "kexec", "-s", "-l", "/kit/kernel-b", words) == (0, "")
            with contextlib.suppress(OutcomeUnknown):  # the line is cut by what was asked for
                _call(ssh, "kexec", "-e", "-x")
        with host.ssh(Deadline.after(BOOT_S, "sshd on the incoming kernel")) as ssh:
            assert _call(ssh, "cat", "/proc/sys/kernel/random/boot_id") != before
            _run_stage(ssh, found, 2, programs)
        yield found


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.module)
def test_module_is_loaded_by_both_kernels(outcome: Outcome, row: Row) -> None:
    refused = {key: why for key, why in outcome.refused.items() if key[0] == row.module}
    assert refused == {}


@pytest.mark.parametrize("suite", [*KERNEL_SUITES, *(name for row in ROWS for name in row.suites)])
def test_kunit_suite_passes(outcome: Outcome, suite: str) -> None:
    assert find_wrong(outcome.kunit[suite]) == [], outcome.kunit[suite]


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("program", [name for row in ROWS for name in row.selftests])
def test_selftest_passes_across_a_kexec(outcome: Outcome, program: str, stage: int) -> None:
    said = outcome.selftests[program, stage]
    assert find_wrong(said) == [], said


def test_neither_kernel_complained(outcome: Outcome) -> None:
    assert outcome.splats == {"outgoing": "", "incoming": ""}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Killed\n",
        "KTAP version 1\n1..0\n",
        "KTAP version 1\n1..2\nok 1 a\n",
        "KTAP version 1\n1..1\nnot ok 1 a\n",
        "KTAP version 1\n1..1\nok 1 a # SKIP no device\n",
        "KTAP version 1\n1..1\n    KTAP version 1\n    1..1\n    not ok 1 b\nok 1 a\n",
    ],
)
def test_what_is_no_success_is_found(text: str) -> None:
    assert find_wrong(text)


@nightly.part("modules")
def test_modules_are_as_linux_wants_its_code() -> None:
    """``make modules-check``: checkpatch --strict, W=1 and sparse have nothing to say."""
    wrong = ""
    try:
        modules_check.check_modules(guest_images_dir(), Steps())
    except BuildError as error:
        wrong = str(error)
    assert wrong == ""
