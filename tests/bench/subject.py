# SPDX-License-Identifier: Apache-2.0
"""A checkout that is measured: its tool is called as users call it, in processes of its own.

Must not import what is measured: a checkout may be of any commit, with another layout.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
_INIT_LINE = b" as init process"


class Failed(Exception):
    """Something that was to be measured did not work; the message is for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One run of the tool. Times in seconds, by the names of phases and steps."""

    wall_s: float
    phases_s: Mapping[str, float]
    steps_s: Mapping[str, float]
    blackout_s: float
    #: of result.json
    metrics: Sequence[Mapping[str, Any]]
    #: from the incoming kernel's line about its init to the agent's hello; None: no such line
    agent_start_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A checkout, the interpreter that runs its tool, and where its run directories go."""

    name: str
    root: Path
    python: Path
    results: Path
    env: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    def call(self, *args: str) -> str:
        """Run the interpreter in the checkout and return stdout. :raises Failed: not status 0."""
        done = subprocess.run(
            [str(self.python), *args],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            cwd=self.root,
            env=self.env,
        )
        if done.returncode != 0:
            raise Failed(
                f"{self.name}: '{' '.join(args)}' exit {done.returncode}\n{done.stderr[-2000:]}"
            )
        return done.stdout

    def time_call(self, *args: str) -> float:
        """Return the wall time of a call in seconds. :raises Failed: not status 0."""
        began = time.monotonic()
        self.call(*args)
        return time.monotonic() - began

    def run(self, *args: str) -> Measured:
        """Run the tool once and read what it measured.

        :raises Failed: the run did not pass, or does not say what is measured here.
        """
        began = time.monotonic()
        said = self.call("-m", "liveupdate", "run", "--json", "--results", str(self.results), *args)
        wall_s = time.monotonic() - began
        try:
            return read_run(json.loads(said), self.results / "latest", wall_s)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Failed(f"{self.name}: a run's files cannot be read: {error!r}") from error


def read_run(document: Mapping[str, Any], run_dir: Path, wall_s: float) -> Measured:
    """Reduce result.json and the run directory beside it to what is measured."""
    phases = {each["name"]: each for each in document["phases"]}
    events = (run_dir / "events.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [event for event in map(json.loads, events) if event["kind"] == "stop"]
    metrics = document["metrics"]
    hello_ns = phases["kernel"]["ended_ns"]
    init_ns = find_line(run_dir / "boot-1", _INIT_LINE)
    return Measured(
        wall_s=wall_s,
        phases_s={
            name: (each["ended_ns"] - each["began_ns"]) / 1e9 for name, each in phases.items()
        },
        steps_s={event["name"]: event["elapsed_s"] for event in steps},
        blackout_s=max(each["value"] for each in metrics if each["name"] == "blackout") / 1e9,
        metrics=metrics,
        agent_start_s=None if init_ns is None else (hello_ns - init_ns) / 1e9,
    )


def find_line(boot: Path, text: bytes) -> int | None:
    """Return when the first console line with ``text`` in it arrived, in ns, or None.

    console.times has for each line its offset in console.log and its time.
    """
    log = (boot / "console.log").read_bytes()
    at = log.find(text)
    if at < 0:
        return None
    rows = [line.split() for line in (boot / "console.times").read_text().splitlines()]
    times = [int(row[1]) for row in rows if int(row[0]) <= at]
    return times[-1] if times else None


def alternate(
    subjects: Sequence[Subject],
    repeat: int,
    works: Sequence[Callable[[Subject], T]],
    say: Callable[[str], None],
) -> list[list[list[T]]]:
    """Do each work for every subject in turn, again and again.

    What changes the machine's pace for a while then counts for all that is compared. The first
    subject has to work; another one that fails is left out from then on.

    :return: per subject, per work, what came of it; an empty list for a subject that failed.
    :raises Failed: the first subject failed.
    """
    found: list[list[list[T]]] = [[[] for _ in works] for _ in subjects]
    failed: set[int] = set()
    for _ in range(repeat):
        for number, work in enumerate(works):
            for index, subject in enumerate(subjects):
                if index in failed:
                    continue
                try:
                    found[index][number].append(work(subject))
                except Failed as error:
                    if index == 0:
                        raise
                    say(f"bench: {error}")
                    failed.add(index)
                    found[index] = [[] for _ in works]
    return found
