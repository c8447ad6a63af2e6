# SPDX-License-Identifier: Apache-2.0
"""``liveupdate doctor``: what it says of machines that are not this one."""

from __future__ import annotations

import json

import pytest

from liveupdate.cli import checks, main, prepare_run
from liveupdate.cli.checks import BAD, OK, WARN, Finding
from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import CommandFailed
from liveupdate.images import catalogue, kernel
from liveupdate.model.scenario import Scenario

GOOD = ("10.0.2", frozenset(checks.DEVICES), True)


def qemu_says(
    monkeypatch: pytest.MonkeyPatch, answer: tuple[str, frozenset[str], bool] | Exception
) -> Finding:
    def ask(deadline: Deadline) -> tuple[str, frozenset[str], bool]:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(checks, "ask_qemu", ask)
    return checks.check_qemu()


def test_qemu_with_everything_is_good(monkeypatch: pytest.MonkeyPatch) -> None:
    found = qemu_says(monkeypatch, GOOD)
    assert found.state == OK
    assert "10.0.2" in found.what


def test_qemu_without_igb_still_runs_but_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    found = qemu_says(monkeypatch, ("7.2.0", GOOD[1] - {"igb"}, True))
    assert (found.state, found.what) == (WARN, "7.2.0 lacks igb")
    assert "backports" in found.hint


def test_qemu_without_nested_svm_or_that_does_not_start_is_bad(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert qemu_says(monkeypatch, ("x", GOOD[1], False)).state == BAD
    error = CommandFailed(("qemu-system-x86_64",), 127, "no such program")
    assert qemu_says(monkeypatch, error).state == BAD


def test_version_is_found_in_the_greeting() -> None:
    qemu = {"major": 10, "minor": 0, "micro": 2}
    assert checks._version({"qemu": qemu, "package": ""}) == "10.0.2"
    assert checks._version({}) == "unknown version"


def test_broken_kvm_is_said_with_what_is_done_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(requested: str, images: None, *, use_cache: bool) -> tuple[str, str]:
        assert (requested, use_cache) == ("auto", False)
        return "tcg", "/dev/kvm opens, probe guest hung"

    monkeypatch.setattr(catalogue, "resolve", lambda outgoing, incoming: None)
    monkeypatch.setattr(prepare_run, "choose_accel", choose)
    assert checks.check_accel().what == "tcg: /dev/kvm opens, probe guest hung"


def test_images_that_are_missing_are_bad_where_a_run_cannot_build_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(catalogue, "find_missing", lambda names: ("rootfs",))
    monkeypatch.setattr(kernel, "compiler_version", lambda: "gcc 12")
    found = checks.check_images()
    assert (found.state, found.hint) == (WARN, "liveupdate images build")
    assert found.what == "not built yet: rootfs; a run builds them first"
    monkeypatch.setattr(kernel, "compiler_version", lambda: "none")
    found = checks.check_images()
    assert (found.state, found.hint) == (BAD, "run 'make setup'")
    assert "gcc and ld are needed" in found.what


def test_missing_tool_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    from liveupdate.core import proc

    monkeypatch.setattr(proc, "find_program", lambda name: None if name == "mke2fs" else "/x")
    found = checks.check_tools()
    assert found.state == BAD
    assert "e2fsprogs" in found.hint
    monkeypatch.setattr(proc, "find_program", lambda name: None if name == "bison" else "/x")
    assert checks.check_tools().state == WARN


def test_little_memory_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_run, "available_memory", lambda: 1 << 30)
    assert checks.check_memory().state == BAD


@pytest.mark.parametrize(("state", "code"), [(OK, 0), (WARN, 0), (BAD, 3)])
def test_doctor_exits_by_what_is_bad(
    state: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finding = Finding(state, "is so", "do this")
    monkeypatch.setattr(checks, "CHECKS", {"thing": lambda: finding})
    assert main(["doctor"]) == code
    assert "-> do this" in capsys.readouterr().out
    assert main(["doctor", "--json"]) == code
    assert json.loads(capsys.readouterr().out)["ok"] is (code == 0)


def test_local_checks_answer_on_this_machine() -> None:
    for check in (checks.check_python, checks.check_shared_memory, checks.check_runtime):
        assert check().what
    assert Scenario().accel == "auto"
