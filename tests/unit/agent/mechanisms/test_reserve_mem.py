# SPDX-License-Identifier: Apache-2.0
"""The agent's way into memory of reserve_mem=: which one it asks for, and a region of nobody's."""

from __future__ import annotations

from pathlib import Path

import pytest

from liveupdate.agent.base import host
from liveupdate.agent.mechanisms import modules, pool, reserve_mem
from liveupdate.agent.mechanisms.base import MechanismError


def test_reservation_is_the_one_of_the_command_line() -> None:
    line = "kho=on reserve_mem=0x18000000:2M:liveupdate lu.mechanism=reserve-mem"
    assert reserve_mem.wanted_name(line) == "liveupdate"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("quiet", "0 times"),
        ("reserve_mem=1G:2M:a reserve_mem=1G:2M:b", "2 times"),
        ("reserve_mem=1G:a", "'reserve_mem=1G:a' is not"),
        ("reserve_mem=1G:2M:", "is not"),
        ("reserve_mem=1G:2M:a:b", "is not"),
    ],
)
def test_command_line_that_makes_no_reservation_is_refused(line: str, text: str) -> None:
    with pytest.raises(MechanismError, match=text):
        reserve_mem.wanted_name(line)


@pytest.mark.parametrize("handed_over", ["", "debugfs", "log"])
@pytest.mark.parametrize("loaded", [False, True])
def test_what_no_kernel_handed_over_is_forgotten_at_first_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, handed_over: str, loaded: bool
) -> None:
    released: list[bool] = []
    said = "Revived memory reservation 'x' from KHO" if handed_over == "log" else "no word of it"
    monkeypatch.setattr(host, "read_kmsg", lambda: ["first", said])
    if handed_over == "debugfs":
        (tmp_path / "in/sub_fdts").mkdir(parents=True)
        (tmp_path / "in/sub_fdts/memblock").write_bytes(b"")
    monkeypatch.setattr(reserve_mem, "KHO_DEBUGFS", str(tmp_path))
    monkeypatch.setattr(reserve_mem, "read_text", lambda path: "reserve_mem=1G:2M:x")
    monkeypatch.setattr(modules, "load", lambda *_: loaded)
    monkeypatch.setattr(pool, "release", lambda: released.append(True))
    monkeypatch.setattr(pool, "Pool", NoObjects)
    reserve_mem.ReserveMemMechanism()
    assert bool(released) == (loaded and not handed_over)


class NoObjects:
    """A pool that is blank."""

    def names(self) -> list[str]:
        return []


def blank(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> reserve_mem.ReserveMemMechanism:
    monkeypatch.setattr(host, "read_kmsg", lambda: said)
    mechanism = reserve_mem.ReserveMemMechanism.__new__(reserve_mem.ReserveMemMechanism)
    mechanism.pool = NoObjects()  # type: ignore[assignment]
    return mechanism


def test_blank_pool_is_a_first_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError):
        blank(monkeypatch, ["KHO: found kexec handover data."]).retrieve("lu.agent")


@pytest.mark.parametrize(
    "said",
    [
        "KHO reserve-mem 'liveupdate' has wrong size (0x18000000 != 0x10000000)",
        "FDT 'memblock' has no child 'liveupdate': -1",
    ],
)
def test_blank_pool_that_should_not_be_is_an_error(
    monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    with pytest.raises(MechanismError, match="not the previous kernel's: ") as caught:
        blank(monkeypatch, ["first", said, "last"]).retrieve("lu.agent")
    assert said in str(caught.value)
