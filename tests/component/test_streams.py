# SPDX-License-Identifier: Apache-2.0
"""A verdict survives streams that are closed, full, narrow, or that nothing reads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: the verb run with a run that has been made already, of evidence as the unit tests build it
RUN = """
import sys
from pathlib import Path
from types import SimpleNamespace
from liveupdate.cli import main, results
from liveupdate.cli import run as verb
from liveupdate.judging.judge import judge
from tests.support import evidence_builder as make

plan, evidence = make.make_plan(), make.make_evidence()
if sys.argv[1] == "FAIL":
    ticks = make.make_ticks(running=lambda at: at < make.PAUSED_NS)
    evidence = make.with_trace(evidence, ticks=ticks)
verdict = judge(plan, evidence)
outcome = results.Outcome(
    plan=plan, evidence=evidence, verdict=verdict, run_dir=Path("anywhere")
)
# what makes a plan is not needed, and takes longer to load than the rest
prepare_run = SimpleNamespace(prepare=lambda *args, **kwargs: None)
sys.modules["liveupdate.cli.prepare_run"] = prepare_run
verb.carry_out = lambda *args: (outcome, ())
sys.exit(main(["run"]))
"""
PASSES, FAILS = 0, 1


def run_in_shell(outcome: str, redirect: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run in a shell line ``python … {redirect}``; its exit status is Python's."""
    script = f'"$PY" -c "$CODE" {outcome} {redirect}'
    return subprocess.run(
        ["bash", "-c", script],
        env={**os.environ, "PY": sys.executable, "CODE": RUN, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("redirect", "env"),
    [
        ("", {}),
        ("", {"PYTHONIOENCODING": "ascii"}),
        ("", {"PYTHONIOENCODING": "latin-1"}),
        (">/dev/full", {}),
        ("2>/dev/full", {}),
        (">/dev/full 2>&1", {}),
        (">&-", {}),
        ("2>&-", {}),
        (">&- 2>&- <&-", {}),
        ("| head -c 1 >/dev/null; exit ${PIPESTATUS[0]}", {}),
        ("2>&1 | true; exit ${PIPESTATUS[0]}", {}),
    ],
    ids=lambda value: str(value) or "plain",
)
@pytest.mark.parametrize(("outcome", "code"), [("PASS", PASSES), ("FAIL", FAILS)])
def test_the_exit_status_is_the_verdict(
    outcome: str, code: int, redirect: str, env: dict[str, str]
) -> None:
    done = run_in_shell(outcome, redirect, **env)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_what_an_encoding_lacks_is_written_as_an_escape() -> None:
    done = run_in_shell("PASS", "", PYTHONIOENCODING="ascii")
    assert done.stdout.isascii() and done.stdout.startswith("PASS")
    assert "\\u2192" in done.stdout


@pytest.mark.parametrize("verb", ["faults", "plan"])
def test_a_product_that_cannot_be_written_is_an_error_where_it_is_all_there_is(verb: str) -> None:
    for redirect in (">/dev/full", ">&-"):
        script = f'"$PY" -m liveupdate {verb} {redirect}'
        done = subprocess.run(
            ["bash", "-c", script],
            env={**os.environ, "PY": sys.executable, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 3
        assert "stdout cannot be written" in done.stderr
