# SPDX-License-Identifier: Apache-2.0
"""Run one scenario again and again and print a line for each: does it hold, ten times in a row?

``python -m tests.bench.in_a_row 10 vfio-continuous --set iommu.scalable=true``. All that stands
behind the number goes to ``liveupdate run``. Exit 1 when a run did not pass; none is left out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

TOOL = (sys.executable, "-m", "liveupdate")
_CHECKS = ("device.dma-continuity", "iommu.translation", "iommu.faults")


def run_once(args: Sequence[str]) -> tuple[int, Mapping[str, Any] | None]:
    """Run the tool; None: it said nothing that can be read."""
    done = subprocess.run(
        [*TOOL, "run", "--json", *args], stdout=subprocess.PIPE, text=True, check=False
    )
    try:
        document: Mapping[str, Any] = json.loads(done.stdout)
    except ValueError:
        return done.returncode, None
    return done.returncode, document


def values(document: Mapping[str, Any], name: str) -> list[float]:
    """Values of one metric, over hops and devices in their order."""
    return [each["value"] for each in document["metrics"] if each["name"] == name]


def describe(code: int, document: Mapping[str, Any] | None) -> str:
    """Say in one row what a run came to."""
    if document is None:
        return f"exit {code} | no result |||||"
    status = {each["id"]: each["status"] for each in document["checks"]}
    frames = [f"{sum(values(document, f'frames.{name}')):.0f}" for name in ("sent", "received")]
    landed = ", ".join(f"{value:.0f}" for value in values(document, "frames.landed"))
    gaps = ", ".join(f"{value / 1e9:.2f}" for value in values(document, "gap.device"))
    blackouts = ", ".join(f"{value / 1e9:.2f}" for value in values(document, "blackout"))
    said = " ".join(status.get(check, "none") for check in _CHECKS)
    return (
        f"{document['outcome']} (exit {code}) | {frames[0]} | {frames[1]} | {landed} | {gaps}"
        f" | {blackouts} | {said}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("count", type=int)
    parser.add_argument("run", nargs=argparse.REMAINDER, help="arguments of 'liveupdate run'")
    given = parser.parse_args()
    print("| run | outcome | sent | received | landed | nobody looked, s | blackout, s | "
          f"{', '.join(_CHECKS)} |\n|---|---|---|---|---|---|---|---|", flush=True)  # fmt: skip
    failed = 0
    with tempfile.TemporaryDirectory(prefix="lu-row-") as scratch:
        place = () if "--results" in given.run else ("--results", scratch)
        for number in range(1, given.count + 1):
            code, document = run_once([*place, *given.run])
            failed += code != 0
            print(f"| {number} | {describe(code, document)} |", flush=True)
    print(f"\n{given.count - failed} of {given.count} passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
