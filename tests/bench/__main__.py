# SPDX-License-Identifier: Apache-2.0
"""Measure the budgets of the main job and print them as a table (``make bench``).

Every figure is a ratio within this call, or stands beside the machine it was taken on: under TCG,
times of two machines cannot be compared. Nothing here is a test; nothing fails for being slow.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liveupdate.run.provenance import control_host
from tests.bench.bench_iommu import measure_comparison
from tests.bench.digests import measure_digests

TOOL = (sys.executable, "-m", "liveupdate")
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One budget: what was measured, the bound, and whether it holds."""

    what: str
    value: float
    bound: float
    unit: str

    def line(self) -> str:
        held = "holds" if self.value <= self.bound else "EXCEEDED"
        value, bound = f"{self.value:.2f} {self.unit}", f"{self.bound:g} {self.unit}"
        return f"| {self.what} | {value} | {bound} | {held} |"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One run of the tool: wall time, its phases by name in seconds, and its blackout."""

    wall_s: float
    phases_s: Mapping[str, float]
    steps_s: Mapping[str, float]
    blackout_s: float


class RunFailed(Exception):
    """A run that was to be measured did not pass."""


def measure_run(results: Path, *args: str) -> Measured:
    """Run the tool once and read what it measured; RunFailed: it did not pass."""
    began = time.monotonic()
    done = subprocess.run(
        [*TOOL, "run", "--json", "--results", str(results), *args],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    wall_s = time.monotonic() - began
    if done.returncode != 0:
        said = done.stderr[-2000:]
        raise RunFailed(f"'run {' '.join(args)}' exit {done.returncode}\n{said}")
    document: Mapping[str, Any] = json.loads(done.stdout)
    phases = {
        each["name"]: (each["ended_ns"] - each["began_ns"]) / 1e9 for each in document["phases"]
    }
    blackout = max(m["value"] for m in document["metrics"] if m["name"] == "blackout") / 1e9
    steps: dict[str, float] = {}
    for line in (results / "latest" / "events.jsonl").read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        if event["kind"] == "stop":
            steps[event["name"]] = event["elapsed_s"]
    return Measured(wall_s=wall_s, phases_s=phases, steps_s=steps, blackout_s=blackout)


def unavoidable(run: Measured) -> float:
    """Host boot, guest boot, kexec to the agent, and the observation window."""
    names = ("boot-host", "boot-guests", "observe-before", "observe-after")
    return sum(run.steps_s[name] for name in names) + run.phases_s["blackout-host"]


def bare_blackout(run: Measured) -> float:
    """Kexec to the agent's hello, and start of the VMM to resume."""
    names = ("outgoing", "kernel", "vmm-start", "load-state", "resume")
    return sum(run.phases_s[name] for name in names)


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def timed(argv: Sequence[str], repeat: int) -> float:
    """Median wall time of a command in seconds."""
    walls = []
    for _ in range(repeat):
        began = time.monotonic()
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        walls.append(time.monotonic() - began)
    return median(walls)


def measure_devices(results: Path) -> Iterator[Row]:
    """Budgets of the IOMMU watch, from one run with 65,536 scattered pages mapped."""
    measure_run(results, "vfio-kinds")
    document = json.loads((results / "latest" / "result.json").read_text(encoding="utf-8"))
    metrics = document["metrics"]

    def largest(name: str, **labels: str) -> float:
        return max(
            float(each["value"])
            for each in metrics
            if each["name"] == name and labels.items() <= each["labels"].items()
        )

    walk_s = largest("iommu.walk", view="outside") / 1e9
    preserve_ms = largest("iommu.preserve") / 1e6
    yield Row(what="walk of 65,536 mappings from outside", value=walk_s, bound=0.5, unit="s")
    yield Row(what="comparison of 65,000 mappings", value=measure_comparison(), bound=0.5, unit="s")
    yield Row(
        what="sampling of the IOMMU, of one core",
        value=largest("iommu.sampling.cpu"),
        bound=5,
        unit="%",
    )
    yield Row(
        what="tables of 65,536 mappings preserved, kernel's clock",
        value=preserve_ms,
        bound=10,
        unit="ms",
    )


def measure(repeat: int, results: Path) -> Iterator[Row]:
    """Yield rows as they are measured; the runs behind them are left in ``results``."""
    yield from measure_runs(repeat, results)
    yield from measure_devices(results)
    digests = measure_digests()
    yield Row(
        what="xxh3 over whole megabytes / page digests",
        unit="×",
        bound=2,
        value=digests.plain_bytes_per_s / digests.paged_bytes_per_s,
    )
    yield Row(
        what="digests of 3 GiB", value=(3 << 30) / digests.paged_bytes_per_s, bound=4, unit="s"
    )
    yield Row(what="liveupdate --help", value=timed([*TOOL, "--help"], 5), bound=0.2, unit="s")
    yield Row(
        what="make setup, up to date",
        value=timed(["make", "-C", str(ROOT), "setup"], 3),
        bound=2,
        unit="s",
    )


def measure_runs(repeat: int, results: Path) -> Iterator[Row]:
    """Yield what whole runs with one guest show."""
    cold = measure_run(results, "--cold")
    yield Row(what="cold run / what cannot be avoided", unit="×", bound=1.25,
            value=cold.wall_s / unavoidable(cold)
    )  # fmt: skip
    yield Row(what="cold run", value=cold.wall_s, bound=60, unit="s")
    measure_run(results)  # saves the warm state if there is none
    warm, bare = [], []
    for _ in range(repeat):  # in turn, so that a machine that changes its pace counts for both
        warm.append(measure_run(results))
        bare.append(measure_run(results, "--set", "observe.memory=false"))
    yield Row(what="warm run", value=median([run.wall_s for run in warm]), bound=25, unit="s")
    yield Row(what="blackout / kexec and VMM start without verification", unit="×", bound=1.10,
            value=median([run.blackout_s for run in warm])
            / median([bare_blackout(run) for run in bare])
    )  # fmt: skip
    large = measure_run(results, "--guest-memory", "1G")
    yield Row(what="blackout of 1 GiB / of 256 MiB", unit="×", bound=1.2,
            value=large.blackout_s / median([run.blackout_s for run in warm])
    )  # fmt: skip
    yield Row(
        what="PRESERVE_FD of 1 GiB inside the blackout",
        unit="s",
        bound=0.1,
        value=large.phases_s["preserve-state"],
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.partition("\n")[0])
    parser.add_argument("--repeat", type=int, default=5, help="runs behind each median")
    repeat = parser.parse_args().repeat
    facts = control_host()
    print(f"{facts['cpu']}, {facts['cpus']} CPUs, Linux {facts['kernel']}; accelerator auto\n")
    print("| budget | measured | bound | |\n|---|---|---|---|")
    results = Path(tempfile.mkdtemp(prefix="lu-bench-"))
    try:
        for row in measure(repeat, results):
            print(row.line(), flush=True)
    except RunFailed as err:
        sys.exit(f"bench: {err}\nthe run is in {results}/latest")
    shutil.rmtree(results)


if __name__ == "__main__":
    main()
