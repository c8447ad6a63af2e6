# SPDX-License-Identifier: Apache-2.0
"""The payload in a guest of its own: every way it has of proving life, and of failing to."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from liveupdate.core.deadline import Deadline
from liveupdate.core.proc import run
from liveupdate.core.units import MIB, PAGE_BYTES
from liveupdate.formats import payload
from liveupdate.formats.echo import build_request
from liveupdate.formats.journal import newest_record, scan_journal
from liveupdate.formats.pattern import expected_page
from liveupdate.formats.payload import Done, Failure, Ready, Verified
from liveupdate.images import catalogue
from tests.support.vm.level1 import DISK_BYTES, GUEST_MAC, HOST_MAC, Machine, Setup, pass_time

SEED = 0x1122334455667788
PATTERN = 32 * MIB
APPEND = f"lu.pattern={PATTERN} lu.seed={SEED} lu.name=g1"
Boot = Callable[..., Machine]


@pytest.fixture(scope="session")
def initrd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("gcc"):
        pytest.skip("no gcc; install gcc and libc6-dev")
    out = tmp_path_factory.mktemp("payload")
    source = Path(__file__).parents[2] / "guest-images" / "guest"
    run(("make", "-C", source, f"O={out}"), deadline=Deadline.after(120, "build of the payload"))
    return out / "initramfs.cpio.gz"


@pytest.fixture(scope="session")
def kernel() -> Path:
    if not shutil.which("qemu-system-x86_64"):
        pytest.skip("no qemu-system-x86_64; install qemu-system-x86")
    return Path(catalogue.find_kernel("kernel-a").path)


@pytest.fixture
def setup(tmp_path: Path, kernel: Path, initrd: Path) -> Setup:
    return Setup(directory=tmp_path, kernel=kernel, initrd=initrd, append=APPEND)


@pytest.fixture
def boot() -> Iterator[Boot]:
    with ExitStack() as stack:

        def start(setup: Setup) -> Machine:
            return stack.enter_context(Machine(setup))

        yield start


@pytest.fixture
def machine(setup: Setup, boot: Boot) -> Machine:
    machine = boot(setup)
    machine.open_port()
    return machine


@pytest.fixture(scope="module")
def booted(
    tmp_path_factory: pytest.TempPathFactory, kernel: Path, initrd: Path
) -> Iterator[Machine]:
    """One guest for all tests that leave it as they found it."""
    directory = tmp_path_factory.mktemp("shared")
    setup = Setup(directory=directory, kernel=kernel, initrd=initrd, append=APPEND)
    with Machine(setup) as machine:
        machine.open_port()
        machine.wait_event(Ready)
        yield machine


@pytest.fixture
def shared(booted: Machine) -> Machine:
    """The same guest, with a port that was opened anew and no frame under way."""
    while booted.receive_echo(0.1) is not None:
        pass
    booted.open_port()
    return booted


@pytest.fixture
def ready(shared: Machine) -> Ready:
    """What that guest says of itself when it is asked."""
    shared.send(payload.HELLO)
    ready = shared.wait_event(Ready)
    assert shared.wait_event(Done) == Done(cmd="hello")
    return ready


def test_ready_guest_shows_all_signs_of_life(shared: Machine, ready: Ready) -> None:
    assert (ready.name, ready.seed, ready.pattern_pages) == ("g1", SEED, PATTERN // PAGE_BYTES)
    assert (ready.mac, ready.disk_sectors) == (GUEST_MAC, DISK_BYTES // 512)
    shared.wait_console("liveupdate-guest: ready")

    tick = shared.read_tick(ready)
    assert (tick.boot, tick.seed, tick.pattern_pages) == (ready.boot, SEED, ready.pattern_pages)
    assert shared.count_ticks(ready, 1.0) >= 20
    # ready means that it is durable, a page that it says so is one tick later
    assert shared.read_tick(ready).journal_seq >= 1
    assert shared.read_ram(ready.pattern_gpa_first) == expected_page(SEED, 0)

    sent_ns = shared.send_echo(7)
    reply = shared.receive_echo()
    assert reply is not None
    assert (reply.seq, reply.sender_ns, reply.boot) == (7, sent_ns, ready.boot)
    assert (reply.source, reply.destination) == (GUEST_MAC, HOST_MAC)
    assert reply.tick_seq >= tick.seq and reply.monotonic_ns > tick.monotonic_ns

    record = newest_record(shared.read_disk())
    assert record is not None and record.boot == ready.boot
    pass_time(1.0)
    later = newest_record(shared.read_disk(), record.seq)
    assert later is not None and later.seq > record.seq


def test_damaged_page_is_counted_by_verify(shared: Machine, ready: Ready) -> None:
    shared.send(payload.VERIFY)
    assert shared.wait_event(Verified) == Verified(pages=ready.pattern_pages, bad=0)
    whole = shared.read_ram(ready.pattern_gpa_first)
    shared.write_ram(ready.pattern_gpa_first + 8, b"\xff")
    shared.send(payload.VERIFY)
    assert shared.wait_event(Verified) == Verified(pages=ready.pattern_pages, bad=1)
    pass_time(0.1)
    assert shared.read_tick(ready).pattern_bad == 1
    shared.write_ram(ready.pattern_gpa_first, whole)
    shared.send(payload.VERIFY)
    assert shared.wait_event(Verified) == Verified(pages=ready.pattern_pages, bad=0)


def test_dead_timer_stops_everything_while_the_vcpu_runs(machine: Machine) -> None:
    ready = machine.wait_event(Ready)
    machine.command({"cmd": "dead-timer"})
    pass_time(0.3)
    record = newest_record(machine.read_disk())
    assert machine.count_ticks(ready, 1.0) == 0
    machine.send_echo(1)
    assert machine.receive_echo(0.5) is None
    assert newest_record(machine.read_disk()) == record
    assert machine.qmp("query-status") == {"status": "running", "running": True}
    machine.command({"cmd": "dead-timer"})
    machine.send(payload.HELLO)
    assert machine.wait_event(Ready) == ready


def test_clock_commands_step_realtime_only(shared: Machine, ready: Ready) -> None:
    hour_ns = 3600 * 10**9
    before = shared.read_tick(ready)
    shared.command(payload.clock_jump(-hour_ns))
    pass_time(0.1)
    after = shared.read_tick(ready)
    step_ns = (after.realtime_ns - before.realtime_ns) - (after.monotonic_ns - before.monotonic_ns)
    assert abs(step_ns + hour_ns) < 10**9
    assert 0 < after.boottime_ns - before.boottime_ns < 30 * 10**9
    shared.command(payload.set_time(time.time_ns()))
    pass_time(0.1)
    assert abs(shared.read_tick(ready).realtime_ns - time.time_ns()) < 10**9


@pytest.mark.usefixtures("ready")
def test_bad_commands_are_reported_and_survived(shared: Machine) -> None:
    for line, answer in (
        (b"nonsense\n", "flat JSON"),
        (b'{"cmd":"verify"\n', "flat JSON"),
        (b'{"cmd":"fly"}\n', "unknown command 'fly'"),
        (b'{"cmd":"settime","realtime_ns":"soon"}\n', "is not a number"),
        (b"x" * 5000 + b"\n", "longer than"),
        (b'{"cmd":"\x00\x01"}\n', ""),
    ):
        shared.send_raw(line)
        assert answer in shared.wait_event(Failure).message
    shared.send_raw(b' { "cmd" : "clock-jump" , "ns" : 5 } \n')
    assert shared.wait_event(Done).cmd == "clock-jump"


@pytest.mark.usefixtures("ready")
def test_unknown_frames_are_not_answered(shared: Machine) -> None:
    shared.send_echo(1)
    good = shared.receive_echo()
    assert good is not None
    frame = build_request(destination=GUEST_MAC, source=HOST_MAC, seq=2, sender_ns=0)
    shared.send_frame(frame[:40])
    shared.send_frame(frame[:-1] + bytes([frame[-1] ^ 1]))
    assert shared.receive_echo(0.5) is None
    shared.send_echo(3)
    reply = shared.receive_echo()
    assert reply is not None and reply.seq == 3


def test_port_may_close_and_open_without_busy_loop(shared: Machine, ready: Ready) -> None:
    for _ in range(3):
        shared.send_raw(b'{"cmd":"hel')
        shared.close_port()
        pass_time(0.3)
        assert shared.count_ticks(ready, 0.5) >= 10
        shared.open_port()
        shared.send(payload.HELLO)
        assert shared.wait_event(Ready) == ready
    # nobody listens: the vCPU has to be idle
    shared.close_port()
    pass_time(1.0)
    began = read_cpu_s(shared.child.pid)
    pass_time(3.0)
    assert read_cpu_s(shared.child.pid) - began < 1.5


def test_killed_vmm_leaves_a_whole_journal(setup: Setup, boot: Boot) -> None:
    last = 0
    boots = set()
    for round_number in range(3):
        machine = boot(replace(setup, append=APPEND + " lu.journal_ms=5"))
        machine.open_port()
        ready = machine.wait_event(Ready)
        boots.add(ready.boot)
        pass_time(0.7)
        seen = machine.read_tick(ready).journal_seq
        machine.child.kill()
        facts = scan_journal(machine.read_disk())
        assert facts.boot == ready.boot
        assert facts.first_seq == last + 1 and facts.last_seq >= seen > last
        assert (facts.missing, facts.corrupt) == ((), 0)
        assert facts.foreign == (last if round_number else 0)
        last = facts.last_seq
    assert len(boots) == 3


def test_journal_ring_wraps(setup: Setup, boot: Boot) -> None:
    setup.disk_image.write_bytes(bytes(64 * 512))
    machine = boot(replace(setup, append=APPEND + " lu.journal_ms=1"))
    machine.open_port()
    ready = machine.wait_event(Ready)
    assert ready.disk_sectors == 64
    while machine.read_tick(ready).journal_seq < 200:
        pass_time(0.1)
    machine.qmp("stop")
    facts = scan_journal(machine.read_disk())
    assert facts.last_seq - facts.first_seq == 63
    assert (facts.records, facts.missing, facts.corrupt) == (64, (), 0)


def test_replaced_vmm_goes_on_where_it_was(setup: Setup, boot: Boot, tmp_path: Path) -> None:
    first = boot(setup)
    first.open_port()
    ready = first.wait_event(Ready)
    pass_time(0.5)
    first.save(tmp_path / "state")
    frozen = first.read_tick(ready)
    first.__exit__(None, None, None)
    journal_before = scan_journal(first.read_disk())

    second = boot(replace(setup, incoming=True))
    second.open_port()
    second.load(tmp_path / "state")
    second.send(payload.HELLO)
    assert second.wait_event(Ready) == ready
    after = second.read_tick(ready)
    assert after.boot == frozen.boot and after.seq > frozen.seq
    assert 0 < after.monotonic_ns - frozen.monotonic_ns < 10 * 10**9
    second.send_echo(1)
    reply = second.receive_echo()
    assert reply is not None and reply.boot == ready.boot
    second.send(payload.VERIFY)
    assert second.wait_event(Verified) == Verified(pages=ready.pattern_pages, bad=0)
    pass_time(0.5)
    second.qmp("stop")
    facts = scan_journal(second.read_disk())
    assert facts.boot == journal_before.boot and facts.last_seq > journal_before.last_seq
    assert (facts.first_seq, facts.missing, facts.corrupt, facts.foreign) == (1, (), 0, 0)


def test_replaced_vmm_with_port_opened_late(setup: Setup, boot: Boot, tmp_path: Path) -> None:
    first = boot(setup)
    first.open_port()
    ready = first.wait_event(Ready)
    first.save(tmp_path / "state")
    first.__exit__(None, None, None)
    second = boot(replace(setup, incoming=True))
    second.load(tmp_path / "state")
    assert second.count_ticks(ready, 0.5) >= 10
    second.open_port()
    second.send(payload.HELLO)
    assert second.wait_event(Ready) == ready


def test_blocked_disk_stops_neither_ticks_nor_echo(setup: Setup, boot: Boot) -> None:
    # the disk's bandwidth is less than what the journal asks for
    machine = boot(setup)
    machine.open_port()
    ready = machine.wait_event(Ready)
    machine.qmp(
        "block_set_io_throttle", device="disk", bps=0, bps_rd=0, bps_wr=0,
        iops=1, iops_rd=0, iops_wr=0,
    )  # fmt: skip
    pass_time(1.0)
    before = machine.read_tick(ready)
    pass_time(2.0)
    after = machine.read_tick(ready)
    assert after.journal_seq - before.journal_seq <= 4
    assert after.seq - before.seq >= 40
    machine.send_echo(1)
    assert machine.receive_echo() is not None


@pytest.mark.parametrize("absent", ["disk", "nic", "port", "all"])
def test_absent_device_is_said_and_the_rest_works(absent: str, setup: Setup, boot: Boot) -> None:
    disk, nic, port = (absent not in (name, "all") for name in ("disk", "nic", "port"))
    machine = boot(replace(setup, disk=disk, nic=nic, port=port))
    machine.wait_console("liveupdate-guest: ready")
    if port:
        machine.open_port()
        ready = machine.wait_event(Ready)
        assert (ready.disk_sectors > 0, ready.mac != "") == (disk, nic)
        assert machine.count_ticks(ready, 0.5) >= 10
    elif nic:
        machine.send_echo(1)
        assert machine.receive_echo() is not None


def test_pattern_larger_than_memory_is_reported(setup: Setup, boot: Boot) -> None:
    machine = boot(replace(setup, append=f"lu.pattern={1 << 40}"))
    machine.open_port()
    assert "does not fit" in machine.wait_event(Failure).message
    assert machine.wait_event(Ready).pattern_pages == 0


def test_reboot_ends_the_machine(machine: Machine) -> None:
    machine.wait_event(Ready)
    machine.command({"cmd": "reboot"})
    assert machine.child.wait(Deadline.after(10, "end of QEMU")) == 0


def test_probe_guest_says_so_and_powers_off(setup: Setup, boot: Boot) -> None:
    machine = boot(replace(setup, append="lu.probe", disk=False, nic=False, port=False))
    assert machine.child.wait(Deadline.after(60, "power off")) == 0
    assert "liveupdate-guest: probe ok" in machine.read_console()


def read_cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
