# SPDX-License-Identifier: Apache-2.0
"""Run the tool as its users do, in a process of its own, and read what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TOOL = (sys.executable, "-m", "liveupdate")
#: far more than any run takes; the tool's own deadlines end it earlier
TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What one call of the tool came to."""

    returncode: int
    # not in the repr: pytest prints that below each failed assertion
    stdout: str = field(repr=False)
    stderr: str = field(repr=False)

    @property
    def document(self) -> Mapping[str, Any]:
        """The one JSON document on stdout."""
        value = json.loads(self.stdout)
        assert isinstance(value, dict)
        return value

    def check(self, check_id: str) -> Mapping[str, Any]:
        found = [check for check in self.document["checks"] if check["id"] == check_id]
        assert len(found) == 1, f"{check_id}: {self.stdout}"
        check: Mapping[str, Any] = found[0]
        return check

    def explain(self) -> str:
        """Say what went wrong, the reason first: what comes last may be cut off."""
        try:
            document = self.document
        except (ValueError, AssertionError):
            return f"exit {self.returncode}\n{_tail(self.stderr, 15)}\n{_tail(self.stdout, 15)}"
        said = [f"exit {self.returncode}, {document.get('outcome')}: {document.get('reason', '')}"]
        result = document if "checks" in document else document.get("result") or {}
        said += [
            f"  {check['status']} {check['id']}: {check['reason'][:300]}"
            for check in result.get("checks", ())
            if check["status"] in ("FAIL", "ERROR")
        ]
        steps = document.get("steps", ())
        said += [f"  step {step['name']} {step['status']}: {step['error']}" for step in steps[-1:]]
        said.append(_tail(self.stderr, 8))
        if document.get("run_dir"):
            said += _records(Path(document["run_dir"]))
        return "\n".join(said)


def _tail(text: str, lines: int) -> str:
    return "\n".join(f"  {line[:300]}" for line in text.splitlines()[-lines:])


def _records(run_dir: Path) -> list[str]:
    """The end of a run's journal, and of what the machine last said."""
    said = []
    journal = run_dir / "journal.jsonl"
    if journal.is_file():
        said.append(f"{journal}:\n{_tail(journal.read_text(), 8)}")
    consoles = sorted(run_dir.rglob("console.log"), key=lambda path: path.stat().st_mtime)
    for console in consoles[-1:]:
        said.append(f"{console}:\n{_tail(console.read_text(errors='replace'), 12)}")
    return said


def call(*args: str, env: Mapping[str, str] | None = None) -> Said:
    """Call the tool with these arguments and wait for it."""
    done = subprocess.run(
        [*TOOL, *args],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **(env or {})},
        check=False,
    )
    return Said(returncode=done.returncode, stdout=done.stdout, stderr=done.stderr)


def run(results: Path, *args: str) -> Said:
    """``liveupdate run --json`` with its run directory below ``results``."""
    return call("run", "--json", "--results", str(results), *args)


def machines_left(results: Path) -> list[str]:
    """Command lines of the machines that still run of the runs below ``results``.

    Machines of other people's runs on the same computer are left out.
    """
    names = [
        f"lu-{path.name.partition('-')[2]}".encode()
        for path in results.iterdir()
        if path.is_dir() and not path.is_symlink()
    ]
    assert names, f"there is no run below {results}"
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            argv = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"qemu-system" in argv[0] and b"-name" in argv:
            line = b" ".join(argv)
            found += [line[:200].decode(errors="replace") for name in names if name in line]
    return found
