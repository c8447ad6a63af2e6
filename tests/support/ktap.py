# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a KTAP text, whatever its subtests are."""

from __future__ import annotations

import re

_RESULT = re.compile(r"^ *((?:not )?ok) \d+\b(.*)$", re.MULTILINE)
_PLAN = re.compile(r"^ *1\.\.(\d+)", re.MULTILINE)
#: KUnit gives a test that runs once for each parameter no plan, but a summary after its results
_WITHOUT_PLAN = re.compile(r"^ *KTAP version 1\n *# Subtest: (\S+)\n(?! *1\.\.\d)", re.MULTILINE)
_DIRECTIVE = re.compile(r"# *(SKIP|TODO|XFAIL|TIMEOUT|ERROR)\b", re.IGNORECASE)


def find_wrong(text: str) -> list[str]:
    """Name each result that is not plainly ok, and plans that do not fit the results."""
    results = _RESULT.findall(text)
    planned = sum(map(int, _PLAN.findall(text)))
    for name in _WITHOUT_PLAN.findall(text):
        total = re.search(rf"^ *# {re.escape(name)}: pass:.* total:(\d+)$", text, re.MULTILINE)
        planned += int(total[1]) if total else 0
    wrong = [f"{ok}{rest}" for ok, rest in results if ok != "ok" or _DIRECTIVE.search(rest)]
    if planned != len(results) or not results:
        wrong.append(f"{planned} tests were planned, {len(results)} were reported")
    return wrong
