# SPDX-License-Identifier: Apache-2.0
"""The accelerator's probe against QEMUs that are broken in the ways that were seen."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import PlanError
from liveupdate.target import accel

# The first lines of each fake: find the serial file and the QMP socket, then misbehave.
FAKE = """#!{python}
import json, socket, sys, time
argv = sys.argv[1:]
serial = argv[argv.index("-serial") + 1].removeprefix("file:")
path = argv[argv.index("-qmp") + 1].split(":")[1].split(",")[0]
def say(text):
    open(serial, "a").write(text + "\\n")
def monitor(status):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(1)
    link = listener.accept()[0]
    link.sendall(b'{{"QMP": {{"version": {{}}, "capabilities": []}}}}\\n')
    link.recv(4096)
    link.sendall(b'{{"return": {{}}}}\\n')
    while True:
        request = json.loads(link.recv(4096))
        answer = {{"return": {{"status": status}}, "id": request["id"]}}
        link.sendall(json.dumps(answer).encode() + b"\\n")
{body}
"""


@pytest.fixture(autouse=True)
def _own_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def probe(tmp_path: Path, body: str, timeout_s: float = 5.0) -> str:
    fake = tmp_path / "qemu"
    fake.write_text(FAKE.format(python=sys.executable, body=body))
    fake.chmod(0o755)
    none = tmp_path / "none"
    deadline = Deadline.after(timeout_s, "the probe guest")
    error = accel.run_probe(none, none, str(fake), deadline)
    assert list((tmp_path / "liveupdate").iterdir()) == []
    return error


def test_a_guest_that_came_up(tmp_path: Path) -> None:
    assert probe(tmp_path, f'say("{accel.PROBE_OK}"); monitor("running")') == ""


def test_a_guest_that_powered_off_before_we_looked(tmp_path: Path) -> None:
    assert probe(tmp_path, f'say("{accel.PROBE_OK}")') == ""


def test_kvm_internal_error_with_qemu_still_alive(tmp_path: Path) -> None:
    body = 'print("KVM internal error. Suberror: 1", file=sys.stderr, flush=True)\n'
    error = probe(tmp_path, body + 'monitor("internal-error")')
    assert error == (
        "a probe guest ended in state 'internal-error'; QEMU says: KVM internal error. Suberror: 1"
    )


def test_qemu_that_aborts(tmp_path: Path) -> None:
    error = probe(tmp_path, 'sys.exit("Assertion `ret == cpu->kvm_msr_buf->nmsrs\' failed.")')
    assert "QEMU ended (exit 1)" in error and "kvm_msr_buf" in error


def test_a_guest_that_never_says_anything(tmp_path: Path) -> None:
    began = time.monotonic()
    assert "said nothing for 1 s" in probe(tmp_path, 'monitor("running")', timeout_s=1.0)
    assert time.monotonic() - began < 4


def test_qemu_whose_monitor_is_stuck(tmp_path: Path) -> None:
    error = probe(tmp_path, "time.sleep(60)", timeout_s=1.0)
    assert error == "a probe guest said nothing for 1 s, and QEMU does not answer either"


def test_another_guest_text_is_not_enough(tmp_path: Path) -> None:
    error = probe(tmp_path, 'say("Linux version 7"); say("probe ok?")')
    assert "QEMU ended (exit 0)" in error


@pytest.mark.parametrize("requested", ["auto", "kvm"])
def test_kvm_that_works_is_taken(requested: str) -> None:
    assert accel.decide(requested, "")[0] == "kvm"


def test_auto_falls_back_and_says_why() -> None:
    chosen, reason = accel.decide("auto", "/dev/kvm: No such file or directory")
    assert chosen == "tcg"
    assert "+svm,+npt" in reason and "No such file" in reason


def test_kvm_refuses_to_fall_back() -> None:
    with pytest.raises(PlanError, match="broken"):
        accel.decide("kvm", "broken")


def test_tcg_asks_nobody(tmp_path: Path) -> None:
    none = tmp_path / "none"
    assert accel.choose("tcg", kernel=none, initrd=none)[0] == "tcg"


def test_unknown_accelerator_is_refused() -> None:
    with pytest.raises(PlanError, match="'hax'"):
        accel.decide("hax", "")
