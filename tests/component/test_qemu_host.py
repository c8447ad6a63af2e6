# SPDX-License-Identifier: Apache-2.0
"""The QEMU target with a real QEMU that never runs an instruction, and what is left of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
from pathlib import Path

import pytest
from msgspec import structs

from liveupdate.core import proc
from liveupdate.core.deadline import wait_until
from liveupdate.core.errors import LaunchError, LostMachine, OutcomeUnknown
from liveupdate.target.machines import MachineState, Registry
from liveupdate.target.qemu.host import QemuHost
from liveupdate.target.warm import WarmStateError, WarmStore, make_key
from tests.support.idle_qemu import SPEC, is_gone, make_host, soon

pytestmark = pytest.mark.skipif(
    shutil.which("qemu-system-x86_64") is None, reason="no QEMU; run 'make setup'"
)


def open_descriptors() -> set[str]:
    found = set()
    for item in Path("/proc/self/fd").iterdir():
        try:
            found.add(os.readlink(item))
        except OSError:
            continue
    return {name for name in found if "memfd:liveupdate" in name or "/lu-test" in name}


def test_start_and_shutdown_leave_nothing(files: Path, root: Path, tmp_path: Path) -> None:
    host = make_host(files, root, tmp_path)
    host.start(soon())
    try:
        pid = host.pid
        assert host.death() is None
        assert host.ssh_port > 0
        assert host.qemu_version.count(".") == 2
        assert host.kvm_enabled is False
        (listed,) = Registry(root).list()
        assert (listed.machine.run_id, listed.state) == ("t1", MachineState.RUNNING)
        assert (root / "t1").stat().st_mode & 0o777 == 0o700
    finally:
        assert host.shutdown() == ()
    assert host.shutdown() == ()
    assert is_gone(pid)
    assert list(root.iterdir()) == []
    assert open_descriptors() == set()


def test_ram_is_seen_from_outside(files: Path, root: Path, tmp_path: Path) -> None:
    host = make_host(files, root, tmp_path)
    try:
        host.start(soon())
        with host.ram.view(32 << 20, 8) as view:
            view[:] = b"\x11\x22\x33\x44\x55\x66\x77\x88"
        # the other oracle: QEMU's own view of the same physical address
        assert "0x8877665544332211" in host.qmp.hmp("xp /1gx 0x2000000", soon())
    finally:
        host.shutdown()


def test_the_guests_disk_is_sparse_and_of_the_run(files: Path, root: Path, tmp_path: Path) -> None:
    host = make_host(files, root, tmp_path)
    try:
        host.start(soon())
        disk = host.disks["vm0"]
        assert disk.is_relative_to(tmp_path / "t1")
        assert (disk.stat().st_size, disk.stat().st_blocks) == (1 << 20, 0)
    finally:
        host.shutdown()


def test_a_users_image_is_not_written_to(files: Path, root: Path, tmp_path: Path) -> None:
    image = tmp_path / "mine.raw"
    image.write_bytes(b"\x5a" * (1 << 20))
    host = make_host(files, root, tmp_path, image=image)
    try:
        host.start(soon())
        host.qmp.hmp('qemu-io disk-vm0 "write -P 7 0 512"')
        assert image.read_bytes() == b"\x5a" * (1 << 20)
        assert host.disks["vm0"].suffix == ".qcow2"
    finally:
        host.shutdown()


def test_what_qemu_says_is_in_the_error(files: Path, root: Path, tmp_path: Path) -> None:
    host = make_host(files, root, tmp_path, kernel="no-such-kernel")
    with pytest.raises(LaunchError, match="could not open kernel file.*no-such-kernel"):
        host.__enter__()
    assert list(root.iterdir()) == []


def test_an_unwritable_run_directory_is_one_error(files: Path, root: Path, tmp_path: Path) -> None:
    host = make_host(files, root, tmp_path)
    (tmp_path / "t1").rmdir()
    with pytest.raises(LaunchError, match="cannot prepare"):
        host.__enter__()
    assert list(root.iterdir()) == []


def test_a_run_id_is_used_once(files: Path, root: Path, tmp_path: Path) -> None:
    host = make_host(files, root, tmp_path)
    try:
        host.start(soon())
        twin = make_host(files, root, tmp_path)
        with pytest.raises(Exception, match="'t1'"):
            twin.__enter__()
        assert host.death() is None and (root / "t1").is_dir()
    finally:
        host.shutdown()


def test_qemu_killed_is_a_lost_machine(files: Path, root: Path, tmp_path: Path) -> None:
    host = make_host(files, root, tmp_path)
    try:
        host.start(soon())
        host.kill()
        with pytest.raises(LostMachine, match="signal 9") as caught:
            host.agent.wait_event("hello", soon())
        assert caught.value.how == "exited"
    finally:
        # its end is known: no complaint about it
        assert host.shutdown() == ()
    assert list(root.iterdir()) == []


def test_qemu_that_ignores_quit_is_killed_and_reported(
    files: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("liveupdate.target.qemu.host.QUIT_TIMEOUT_S", 0.3)
    host = make_host(files, root, tmp_path)
    host.start(soon())
    pid = host.pid
    os.kill(pid, signal.SIGSTOP)
    problems = host.shutdown()
    assert len(problems) == 1 and "had to be killed" in problems[0]
    assert is_gone(pid)
    assert list(root.iterdir()) == []


def test_lost_qmp_does_not_keep_the_machine_alive(files: Path, root: Path, tmp_path: Path) -> None:
    host = make_host(files, root, tmp_path)
    host.start(soon())
    pid = host.pid
    host.qmp.drop()
    with pytest.raises((LostMachine, OutcomeUnknown)):
        host.qmp.execute("query-status", {}, soon())
    host.shutdown()
    assert is_gone(pid)


OWNER = """
import sys, time
from pathlib import Path
from liveupdate.core.deadline import Deadline
from tests.support.idle_qemu import make_host
tmp = Path(sys.argv[2])
host = make_host(tmp, Path(sys.argv[1]), tmp, "owned")
host.start(Deadline.after(20, "start"))
print(host.pid, flush=True)
time.sleep(60)
"""


def test_kill_minus_9_of_the_owner_leaves_no_process_and_gc_the_rest(
    files: Path, root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "pid"
    argv = (sys.executable, "-c", OWNER, str(root), str(tmp_path))
    env = {"PYTHONPATH": str(Path(__file__).parents[2])}
    with out.open("wb") as output, proc.spawn(argv, stdout=output, stderr=2, env=env) as owner:
        pid = int(wait_until(lambda: out.read_text().strip() or None, soon(30)))
        (listed,) = Registry(root).list()
        assert listed.state is MachineState.RUNNING
        with socket.create_connection(("127.0.0.1", listed.machine.ssh_port or 0), 5):
            pass
        os.kill(owner.pid, signal.SIGKILL)
        wait_until(lambda: is_gone(pid), soon(10))
    (listed,) = Registry(root).list()
    assert listed.state is MachineState.DEAD
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", listed.machine.ssh_port or 0), 5)
    swept = Registry(root).sweep(soon())
    assert (swept.removed, swept.errors) == (("owned",), ())
    assert list(root.iterdir()) == []


def test_gc_kills_an_orphan_and_only_that(files: Path, root: Path, tmp_path: Path) -> None:
    orphan, mine = make_host(files, root, tmp_path, "o1"), make_host(files, root, tmp_path, "m1")
    registry = Registry(root)
    try:
        orphan.start(soon())
        mine.start(soon())
        listed = next(item for item in registry.list() if item.machine.run_id == "o1")
        assert listed is not None
        # as if the run that owned it had ended
        registry.add(structs.replace(listed.machine, owner_start_time=1))
        swept = registry.sweep(soon())
        assert (swept.killed, swept.removed) == (("o1",), ("o1",))
        assert orphan.death() is not None and mine.death() is None
        assert [item.machine.run_id for item in registry.list()] == ["m1"]
    finally:
        mine.shutdown()
        orphan.shutdown()


def test_gc_removes_what_a_run_left_before_its_machine_started(root: Path) -> None:
    (root / "dead").mkdir()
    (root / "dead" / "owner").write_text(f"{os.getpid()} 1\n")
    (root / "alive").mkdir()
    (root / "alive" / "owner").write_text(f"{os.getpid()} {proc.read_start_time(os.getpid())}\n")
    assert Registry(root).sweep(soon()).removed == ("dead",)
    assert [path.name for path in root.iterdir()] == ["alive"]


# --- warm start, of a machine whose processor never runs


@pytest.fixture
def store(tmp_path: Path) -> WarmStore:
    return WarmStore(tmp_path / "warm")


def save_one(files: Path, root: Path, tmp_path: Path, store: WarmStore, key: str) -> None:
    host = make_host(files, root, tmp_path, "s1")
    try:
        host.start(soon())
        with host.ram.view(32 << 20, 4) as view:
            view[:] = b"warm"
        with host.disks["vm0"].open("r+b") as disk:
            disk.seek(4096)
            disk.write(b"disk")
        store.save(host, key, {"tick_gpa": 4096}, soon())
    finally:
        host.shutdown()


def load_one(host: QemuHost, store: WarmStore, key: str) -> None:
    state = store.find(key)
    assert state is not None
    store.load(host, state, soon())


def test_a_saved_machine_loads_twice(
    files: Path, root: Path, tmp_path: Path, store: WarmStore
) -> None:
    save_one(files, root, tmp_path, store, "k1")
    for run_id in ("l1", "l2"):
        host = make_host(files, root, tmp_path, run_id)
        try:
            load_one(host, store, "k1")
            assert host.ram.read(32 << 20, 4) == b"warm"
            assert host.disks["vm0"].read_bytes()[4096:4100] == b"disk"
            assert host.disks["vm0"].stat().st_size == 1 << 20
            assert host.death() is None
            # each run has memory and disks of its own
            host.ram.flip_bit(32 << 20, 0)
            host.disks["vm0"].write_bytes(b"other")
        finally:
            host.shutdown()
    state = store.find("k1")
    assert state is not None and state.facts == {"tick_gpa": 4096}
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("name", ["ram", "state", "disk-vm0.raw"])
def test_one_changed_byte_does_not_load_and_is_thrown_away(
    files: Path, root: Path, tmp_path: Path, store: WarmStore, name: str
) -> None:
    save_one(files, root, tmp_path, store, "k1")
    state = store.find("k1")
    assert state is not None
    (meta,) = (item for item in state.files if item.name == name)
    with (store.root / "k1" / name).open("r+b") as file:
        file.seek(meta.segments[0][0] + 3)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    host = make_host(files, root, tmp_path, "l1")
    try:
        with pytest.raises(WarmStateError, match="not as it was saved"):
            store.load(host, state, soon())
    finally:
        host.shutdown()
    assert store.find("k1") is None
    assert list(root.iterdir()) == []


def test_a_state_of_another_machine_is_refused_by_qemu_and_thrown_away(
    files: Path, root: Path, tmp_path: Path, store: WarmStore
) -> None:
    save_one(files, root, tmp_path, store, "k1")
    state = store.find("k1")
    assert state is not None
    host = make_host(files, root, tmp_path, "l1")
    host.spec = structs.replace(SPEC, iommu="none")
    try:
        with pytest.raises(WarmStateError, match="did not load"):
            store.load(host, state, soon())
    finally:
        host.shutdown()
    assert store.find("k1") is None


def write_meta(store: WarmStore, text: str) -> None:
    (store.root / "k1").mkdir(parents=True)
    (store.root / "k1" / "meta.json").write_text(text)


def meta_of(**changed: object) -> str:
    """The text of a state's meta data with one file in it."""
    file = {"name": "ram", "size_bytes": 1, "segments": [[0, 1]], "xxh3": "x"}
    meta = {
        "format": 1, "key": "k1", "qemu_version": "1", "memory_bytes": 1, "saved_realtime_ns": 1,
        "files": [{**file, **changed}], "facts": {"agent_pid": 7},
    }  # fmt: skip
    return json.dumps({**meta, **{key: changed[key] for key in changed if key in meta}})


def test_meta_as_it_was_written_by_hand_is_a_state(store: WarmStore) -> None:
    write_meta(store, meta_of())
    state = store.find("k1")
    assert state is not None and state.facts == {"agent_pid": 7}


@pytest.mark.parametrize(
    "damage",
    [
        "{}", "nonsense", '{"format": 99}', "", meta_of(format=2), meta_of(key="k2"),
        *(meta_of(name=name) for name in ("", ".", "..", "a/b", "/a")),
        meta_of(segments=[[0]]), meta_of(files=7),
    ],
)  # fmt: skip
def test_meta_that_makes_no_sense_is_no_state(store: WarmStore, damage: str) -> None:
    write_meta(store, damage)
    assert store.find("k1") is None
    assert not (store.root / "k1").exists()


def test_a_save_that_fails_leaves_nothing_and_the_machine_running(
    files: Path, root: Path, tmp_path: Path, store: WarmStore
) -> None:
    host = make_host(files, root, tmp_path)
    try:
        host.start(soon())
        shutil.rmtree(tmp_path / "t1" / "disks")
        with pytest.raises(WarmStateError, match="could not be saved"):
            store.save(host, "k1", {}, soon())
        assert "running" in host.qmp.hmp("info status", soon())
        assert store.find("k1") is None
        assert [path.name for path in store.root.iterdir()] == [".lock"]
    finally:
        host.shutdown()


def test_prune_keeps_the_newest(store: WarmStore) -> None:
    for age, key in ((300, "old"), (200, "middle"), (100, "new")):
        directory = store.root / key
        directory.mkdir(parents=True)
        (directory / "ram").write_bytes(b"x" * 100_000)
        os.utime(directory, (10_000 - age, 10_000 - age))
    (store.root / ".k.half-saved").mkdir()
    assert store.prune(250_000) == ("old",)
    assert sorted(path.name for path in store.root.iterdir()) == [".lock", "middle", "new"]
    assert store.prune(0) == ("middle", "new")


def test_key_depends_on_every_part() -> None:
    base = {"kernel": "a", "spec": {"vcpus": 2}}
    keys = {make_key(base), make_key({**base, "kernel": "b"}), make_key({**base, "spec": {}})}
    assert len(keys) == 3
    assert make_key(base) == make_key(dict(reversed(base.items())))
