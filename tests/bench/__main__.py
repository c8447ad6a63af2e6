# SPDX-License-Identifier: Apache-2.0
"""Measure the budgets of the main job and print them as a table (``make bench``).

With ``--base COMMIT`` that commit is measured as well, its runs in turn with this checkout's, and
each row gets its figure and the ratio of the two. Every figure is a ratio within this call, or
stands beside the machine it was taken on: under TCG, times of two machines cannot be compared.
Nothing here is a test; nothing fails for being slow.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from liveupdate.core.paths import cache_dir
from liveupdate.run.provenance import control_host
from tests.bench import base, rows
from tests.bench.subject import Failed, Subject

ROOT = Path(__file__).parents[2]


def say(text: str) -> None:
    """Print a line of the log."""
    print(text, file=sys.stderr, flush=True)


def measure(subjects: Sequence[Subject], repeat: int) -> Iterator[rows.Row]:
    """Yield rows as they are measured; the first subject is the one whose budgets are checked."""
    yield from rows.measure_runs(subjects, repeat, say)
    yield from rows.measure_devices(subjects, say)
    yield from rows.measure_inside(subjects, say)
    yield from rows.measure_setup(subjects)


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.partition("\n")[0])
    parser.add_argument("--repeat", type=int, default=5, help="runs behind each median")
    parser.add_argument("--base", metavar="COMMIT", help="measure this commit as well")
    given = parser.parse_args()
    # so that what was begun is taken down
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    results = Path(tempfile.mkdtemp(prefix="lu-bench-"))
    try:
        with ExitStack() as stack:
            subjects = [
                Subject(name="new", root=ROOT, python=Path(sys.executable), results=results / "new")
            ]
            if given.base:
                say(f"bench: checks out and installs {given.base}")
                other = stack.enter_context(
                    base.check_out(ROOT, given.base, cache_dir(), results / "base")
                )
                say(f"bench: builds the images of {given.base}")
                base.build_images(other, cache_dir())
                subjects.append(other)
            facts = control_host()
            print(
                f"{facts['cpu']}, {facts['cpus']} CPUs, Linux {facts['kernel']}; accelerator auto\n"
            )
            head = rows.header([subject.name for subject in subjects])
            print(rows.line(head), rows.line(["---"] * len(head)), sep="\n", flush=True)
            for row in measure(subjects, given.repeat):
                print(rows.line(tuple(row.cells())), flush=True)
    except Failed as error:
        sys.exit(f"bench: {error}\nruns are in {results}")
    shutil.rmtree(results)


if __name__ == "__main__":
    main()
