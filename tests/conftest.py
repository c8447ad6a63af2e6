# SPDX-License-Identifier: Apache-2.0
"""Marks every test with the name of its top directory: unit, component, vm or lab.

At the end says which files took how long (the table of docs/testing.md), those over a second.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import settings

# A busy machine is no failure; what takes how long is what `make bench` is for.
settings.register_profile("liveupdate", deadline=None)
settings.load_profile("liveupdate")

# Tests start the tool a few hundred times, and each process would compile it again; `make clean`
# removes what is written. Set here, before the test modules are imported.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A shell's `&` and nohup start us with these ignored, the tool respects that, and so would every
# child: what the tests say about signals would not be about the tool.
for _number, _default in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _default)

_ROOT = Path(__file__).parent
_MARKERS = ("unit", "component", "vm", "lab")


# first of all: `-m` deselects in the same hook and must see the marks
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not item.path.is_relative_to(_ROOT):
            continue
        top = item.path.relative_to(_ROOT).parts[0]
        if top in _MARKERS:
            item.add_marker(top)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With ``-m unit``, read no other directory: every worker would import all of it."""
    if not collection_path.is_relative_to(_ROOT) or config.option.markexpr not in _MARKERS:
        return None
    top = collection_path.relative_to(_ROOT).parts[:1]
    if top and top[0] in _MARKERS and top[0] != config.option.markexpr:
        return True
    return None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    took: defaultdict[str, float] = defaultdict(float)
    tests: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                file = report.nodeid.partition("::")[0]
                took[file] += report.duration
                tests[file] += report.when == "call"
    slow = sorted(((spent_s, file) for file, spent_s in took.items() if spent_s >= 1), reverse=True)
    if slow:
        terminalreporter.section("time by file")
    for spent_s, file in slow:
        terminalreporter.line(f"{spent_s:7.1f} s  {tests[file]:4} tests  {file}")
