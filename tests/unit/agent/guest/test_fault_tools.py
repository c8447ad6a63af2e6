# SPDX-License-Identifier: Apache-2.0
"""What the agent does to a guest for a fault, and what it tells of it."""

from __future__ import annotations

import errno
import subprocess
from types import SimpleNamespace
from typing import Any, cast

import pytest

from liveupdate.agent.guest import fault_tools
from liveupdate.agent.guest.guests import Guest

Told = dict[str, Any]


class Set:
    """A preserved set that gives each token once."""

    name = "lu.guest.vm0"

    def __init__(self, *, is_lax: bool = False) -> None:
        self.is_open = True
        self.given: list[int] = []
        self._is_lax = is_lax

    def preserve(self, fd: int, token: int) -> None:
        if token in self.given and not self._is_lax:
            raise OSError(errno.EEXIST, "File exists")
        self.given.append(token)

    def close(self) -> None:
        self.is_open = False


def make_guest(**parts: object) -> tuple[Guest, list[Told]]:
    told: list[Told] = []

    def tell(event: str, **data: object) -> None:
        assert event == "struck"
        told.append(data)

    spec = SimpleNamespace(name="vm0", session="lu.guest.vm0", pages=8)
    guest = SimpleNamespace(spec=spec, tell=tell, faults=[], **parts)
    return cast(Guest, guest), told


@pytest.mark.parametrize(
    ("is_lax", "after"), [(False, "taken: [Errno 17] File exists"), (True, "free")]
)
def test_token_that_was_taken_is_asked_for_again(is_lax: bool, after: str) -> None:
    guest, told = make_guest(session=Set(is_lax=is_lax))
    fault_tools.apply_at_freeze(guest, "paused", [{"fault": "refuse-state", "guest": "vm0"}])
    ((report),) = told
    assert (report["fault"], report["before"], report["after"]) == ("refuse-state", "free", after)


def test_session_is_told_to_be_closed_when_it_is() -> None:
    guest, told = make_guest(session=Set())
    fault_tools.close_session(guest)
    assert [(each["before"], each["after"]) for each in told] == [("open", "closed")]
    nothing, silence = make_guest(session=None)
    fault_tools.close_session(nothing)
    assert silence == []


def test_page_that_was_moved_is_told_with_both_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    guest, told = make_guest(ram=SimpleNamespace(fd=3))
    guest.faults = [{"fault": "move-page", "page": 5}]
    monkeypatch.setattr(fault_tools, "move_page", lambda fd, page: (0x10, 0x20))
    fault_tools.apply_after_retrieve(guest)
    ((report),) = told
    assert (report["before"], report["after"]) == ("0x10", "0x20")
    assert report["where"] == "page 5 of the guest's RAM"


def test_vmm_that_was_killed_is_told_as_the_kernel_sees_it() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        guest, told = make_guest(vmm=SimpleNamespace(pid=process.pid, kill=process.kill))
        guest.faults = [{"fault": "kill-vmm", "when": "resumed"}]
        fault_tools.apply_after_resume(guest)
    ((report),) = told
    assert report["where"] == f"process {process.pid}"
    assert report["before"] in ("S", "R", "D") and report["after"] == "Z"
