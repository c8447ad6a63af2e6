# SPDX-License-Identifier: Apache-2.0
"""Inputs that are spoilt at random, for everything that reads what others wrote.

Each of :func:`readers` is a good input and what reads it. A reader may refuse an input with an
error of its own; anything else that it raises is a defect.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import json
import random
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from liveupdate.core.errors import LiveUpdateError
from liveupdate.evidence import RunDir
from liveupdate.evidence.chain import read_index
from liveupdate.formats import (
    amdvi,
    arp,
    echo,
    hmp_xp,
    iommu,
    journal,
    kconfig,
    keep_dma,
    kho_map,
    payload,
    pci_config,
    qemu_pci,
    qemu_trace,
    tickpage,
)  # fmt: skip
from liveupdate.formats.kernelimage import KernelImageError, read_kernel_image
from liveupdate.formats.malformed import MalformedError
from liveupdate.formats.vtd import debugfs, regs
from liveupdate.judging.judge import judge
from liveupdate.model import codec, slots
from liveupdate.model.plan import Plan
from liveupdate.operate import bundle, host_record, survey
from liveupdate.operate import journal as update_journal
from liveupdate.report.html import render_html
from liveupdate.report.json_result import render_json
from liveupdate.report.junit import render_junit
from liveupdate.report.text import render_text
from liveupdate.scenario.load import parse_scenario
from liveupdate.transport import agent_link, console
from tests.support import evidence_builder as make
from tests.support import iommu_evidence
from tests.support.query_pci import PCI
from tests.support.stored_evidence import put

DEBUGFS = (
    b"IOMMU dmar0: Root Table Address: 0x100000\nB.D.F\tRoot_entry\t\t\t\tContext_entry\n"
    b"01:00.0\t0x0000000000000000:0x0000000000102001\t0x0000000000000102:0x0000000000103001\n"
)

#: errors that say that an input is refused
REFUSED = (
    LiveUpdateError, MalformedError, codec.CodecError, KernelImageError, kconfig.KconfigError,
    kho_map.KhoMapError,
)  # fmt: skip
#: numbers and texts that often hurt
_PIECES = (
    b"\0", b"\xff" * 8, b"-1", b"9" * 400, b"1e999", b"null", b"[]", b"{}", b'"', b"../../x", b"\n",
    b"\\ud800", b"\xed\xa0\x80", b"true", b"NaN", b"[" * 2000, b"18446744073709551616",
)  # fmt: skip


def spoil(good: bytes, rng: random.Random) -> bytes:
    """Change an input in one to four places."""
    data = bytearray(good)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        length = rng.choice((1, 2, 4, 8, 64))
        match rng.randrange(6):
            case 0 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = rng.choice(_PIECES)
            case 3:
                data[at : at + length] = rng.choice(_PIECES)
            case 4:
                data[at:at] = data[max(0, at - length) : at] * rng.choice((1, 2, 100))
            case _:
                data[at:] = b"" if rng.random() < 0.2 else data[at:]
    return bytes(data)


def _text(read: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda data: read(data.decode(errors="replace"))


def _json(read: Callable[[object], object]) -> Callable[[bytes], object]:
    def parse(data: bytes) -> object:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise codec.CodecError("input", str(error)) from error
        return read(value)

    return parse


@functools.cache
def _work() -> Path:
    """A good run directory. Its index is that of an earlier version, which had no digests of files
    that still grew: so what is read is what a hostile host could have had stored.
    """
    root = Path(tempfile.mkdtemp(prefix="hostile-"))
    record = RunDir.create(root, plan=iommu_evidence.make_plan(), scenario="", run_id="abc")
    put(record, iommu_evidence.make_evidence())
    record.close()
    index = record.path / slots.INDEX
    rows = [json.loads(line) for line in index.read_text(encoding="utf-8").splitlines()]
    kept = [
        {"path": row["path"], "sha256": row["sha256"], "size_bytes": row["size_bytes"]}
        if row["path"] == slots.PLAN
        else {"path": row["path"], "sha256": None}
        for row in rows
        if "path" in row
    ]
    index.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    return record.path


def clean_up() -> None:
    """Remove what was made."""
    shutil.rmtree(_work().parent, ignore_errors=True)
    _work.cache_clear()


def _files_of_run() -> list[str]:
    run = _work()
    return sorted(each.relative_to(run).as_posix() for each in run.rglob("*") if each.is_file())


def _judge_run(relative: str, data: bytes) -> None:
    """Judge a run directory in which one file is this, and report on it."""
    path = _work() / relative
    good = path.read_bytes()
    path.write_bytes(data)
    try:
        record = RunDir.open(path.parents[len(Path(relative).parts) - 1])
        plan = record.load_plan()
        evidence = record.load_evidence()
        verdict = judge(plan, evidence)
        for render in (render_json, render_junit, render_html, render_text):
            render(plan, evidence, verdict).encode()
    finally:
        path.write_bytes(good)


def _bundle() -> bytes:
    out = io.BytesIO()
    manifest = {
        "bundle": 1,
        "run": "x",
        "files": {"a/b": {"bytes": 3, "sha256": hashlib.sha256(b"abc").hexdigest()}},
    }
    with tarfile.open(fileobj=out, mode="w:", format=tarfile.USTAR_FORMAT) as tar:
        for name, raw in (("manifest.json", json.dumps(manifest).encode()), ("a/b", b"abc")):
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    return out.getvalue()


def _unpack(tar: bytes) -> None:
    with tempfile.TemporaryDirectory(prefix="hostile-") as scratch:
        path = Path(scratch, "x.bundle.tar.gz")
        path.write_bytes(gzip.compress(tar, 1))
        bundle.unpack(path, Path(scratch))


def _walk_kho(page: bytes) -> None:
    kho_map.walk(4096, lambda _at: page.ljust(4096, b"\0")[:4096])


def _amdvi(data: bytes) -> None:
    amdvi.bind_device(iommu.parse_bdf("01:00.0"), data.ljust(32, b"\0")[:32])


def _scenario(data: bytes) -> None:
    parse_scenario(data.decode(errors="replace"), where="scenario.toml", base=Path())


def _console(data: bytes) -> None:
    for line, _is_banner in console.LineSplitter().feed(data, 1):
        assert isinstance(line.text, str)


def _agent(data: bytes) -> None:
    for line in agent_link.LineBuffer(4096).feed(data):
        if isinstance(line, bytes):
            agent_link.parse_line(line)


def _record(data: bytes) -> None:
    host_record.read_record(data.decode(errors="replace").split("\n"), {0: 5, 1: 7})


def _journal(data: bytes) -> None:
    update_journal.replay(update_journal.decode(data))


_TICK = tickpage.encode_tick(
    tickpage.TickPage(
        lock=0, boot=1, seq=2, tsc=3, monotonic_ns=4, boottime_ns=5, realtime_ns=6, seed=7,
        pattern_pages=8, pattern_bad=0, journal_seq=9, echo_count=10,
    )
)  # fmt: skip
_SECTORS = b"".join(journal.encode_record(boot=1, seq=number) for number in range(8))
_READY = (
    b'{"ev":"ready","boot":1,"tick_gpa":4096,"pattern_gpa_first":8192,"pattern_pages":2,"seed":3,'
    b'"name":"vm0","disk_sectors":8,"mac":"02:00:00:00:00:01"}'
)
_EVENT = {"n": 1, "event": "digests", "t_ns": 5, "data": {"guest": "vm0", "moment": "freeze"}}
_ROWS = (
    {"boot": 0, "t_ns": 1, "event": "paused", "data": {"guest": "vm0"}},
    {"boot": 1, "t_ns": 2, "tick": "vm0", "page": _TICK.hex()},
    {"boot": 1, "t_ns": 3, "pong": "vm0", "realtime_ns": 4},
    {"boot": 0, "watched": {"began_ns": 1, "ended_ns": 2, "longest_hole_ns": 3}},
    {"boot": 1, "dropped": 2},
)
_FACTS = {"boot_id": "b"}
_UPDATE = "".join(
    f"{update_journal.encode(each)}\n"
    for each in (
        update_journal.Record(n=0, utc="x", kind="begin", data={"update": "u", "host": "box"}),
        update_journal.Record(n=1, utc="x", kind="intent", data={"step": "lock"}),
        update_journal.Record(n=2, utc="x", kind="done", data={"step": "lock", "facts": _FACTS}),
    )
).encode()


def _lines(rows: Iterable[object]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def readers() -> dict[str, tuple[bytes, Callable[[bytes], object]]]:
    """A good input of each reader, and the reader."""
    plan = codec.dumps("plan", make.make_plan()).encode()
    trace = b"vtd_dmar_enable enable 0"
    config = b'CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C="x"\n'
    result: dict[str, tuple[bytes, Callable[[bytes], object]]] = {
        "tick page": (_TICK, tickpage.decode_tick),
        "echo": (
            echo.build_request(destination="02:00:00:00:00:01", source="02:00:00:00:00:02", seq=1,
                               sender_ns=5),
            echo.decode_echo,
        ),
        "arp": (
            arp.build_probe("10.0.0.1", "02:00:00:00:00:02"),
            lambda frame: arp.decode_reply(frame, "52:54:00:30:00:01"),
        ),
        "journal": (_SECTORS, journal.scan_journal),
        "payload": (_READY, payload.decode_line),
        "kconfig": (config, _text(kconfig.parse_config)),
        "trace": (trace, _text(lambda line: qemu_trace.decode_line(line, 1))),
        "pci config": (bytes(range(256)) * 16, pci_config.decode_config),
        "query-pci": (json.dumps(PCI).encode(), _json(qemu_pci.list_functions)),
        "xp": (b"0000000000001000: 0x0000000000000001\n", _text(hmp_xp.parse_xp)),
        "vtd registers": (b"\x10" + bytes(15), regs.decode_capabilities),
        "vtd faults": (bytes(64), regs.decode_fault_records),
        "vtd debugfs": (DEBUGFS, _text(debugfs.parse_dmar_translation)),
        "amdvi entry": (bytes(32), _amdvi),
        "runs": (bytes(64), iommu.unpack_runs),
        "preserved": (b"preserved 3 table pages", _text(keep_dma.parse_preserved)),
        "kho map": (bytes(64), kho_map.find_map),
        "kho tree": (bytes(4096), _walk_kho),
        "bzImage": (bytes(1024), read_kernel_image),
        "agent": (json.dumps(_EVENT).encode() + b"\n", _agent),
        "console": (b"[    0.000000] Linux version 7\nKernel panic - not syncing: x\n", _console),
        "host record": (_lines(_ROWS), _record),
        "survey": (b'{"guests": [], "boot_id": "x", "generation": 1}', _json(_survey)),
        "update status": (b'{"boot_id": "x", "handover": "idle", "sessions": []}', _json(_status)),
        "update journal": (_UPDATE, _journal),
        "index": (b'{"run":"x","prev":""}\n', read_index),
        "plan": (plan, lambda data: codec.loads(Plan, "plan", data)),
        "scenario": (b'[host]\nmemory = "1G"\n[[guest]]\nname = "vm0"\n', _scenario),
        "bundle": (_bundle(), _unpack),
    }  # fmt: skip
    for relative in _files_of_run():
        if not relative.endswith((".toml", "plan.json")):
            good = (_work() / relative).read_bytes()
            result[f"run: {relative}"] = (good, functools.partial(_judge_run, relative))
    return result


def _survey(value: object) -> object:
    return survey.read_survey(value if isinstance(value, dict) else {})


def _status(value: object) -> object:
    return update_journal.status_view(value if isinstance(value, dict) else {})


def attack(good: bytes, read: Callable[[bytes], object], rounds: int, seed: str) -> None:
    """Give a reader so many spoilt inputs.

    :raises AssertionError: it raised something else than a refusal; with the input.
    """
    rng = random.Random(seed)
    for number in range(rounds):
        data = spoil(good, rng)
        try:
            read(data)
        except REFUSED:
            continue
        except Exception as error:
            raise AssertionError(f"{seed}, round {number}: {error!r}: {data[:400]!r}") from error
