# SPDX-License-Identifier: Apache-2.0
"""``LIVEUPDATE_REQUIRE``: checks that must not be skipped. Pure; the environment is the caller's.

A comma-separated list of check ids (``guest.clock``), their families (``guest``), or ``all``. A
check that is named and was skipped becomes an ERROR, so that CI cannot pass by skipping.
"""

from __future__ import annotations

from dataclasses import replace

from liveupdate.core.errors import ScenarioError
from liveupdate.core.suggest import suggest
from liveupdate.judging.table import CHECK_IDS
from liveupdate.model.verdict import Check, Outcome, Verdict, reduce

VARIABLE = "LIVEUPDATE_REQUIRE"
#: words that mean tests, not checks: the test suite reads the same variable
TEST_WORDS = frozenset({"component", "vm", "lab", "qemu", "kvm", "sshd", "images"})
_FAMILIES = frozenset(check.partition(".")[0] for check in CHECK_IDS)


def parse_required(text: str) -> frozenset[str]:
    """Resolve the variable's value to check ids.

    :raises ScenarioError: a word that names no check and no kind of test.
    """
    required: set[str] = set()
    for word in filter(None, (part.strip() for part in text.split(","))):
        if word == "all":
            required.update(CHECK_IDS)
        elif word in _FAMILIES:
            required.update(check for check in CHECK_IDS if check.startswith(f"{word}."))
        elif word in CHECK_IDS:
            required.add(word)
        elif word not in TEST_WORDS:
            raise ScenarioError(
                f"'{word}' is no check",
                where=VARIABLE,
                hint=suggest(
                    word, [*CHECK_IDS, *_FAMILIES, "all"], f"known: {', '.join(CHECK_IDS)}"
                ),
            )
    return frozenset(required)


def apply_required(verdict: Verdict, required: frozenset[str]) -> Verdict:
    """Turn skips of ``required`` checks into errors; idempotent."""
    checks = tuple(_require(check) if check.id in required else check for check in verdict.checks)
    if checks == verdict.checks:
        return verdict
    first = next(check for check in checks if check not in verdict.checks)
    return replace(
        verdict,
        outcome=reduce([verdict.outcome, *(check.status for check in checks)]),
        checks=checks,
        reason=verdict.reason or f"{first.id}: {first.reason}",
    )


def _require(check: Check) -> Check:
    if check.status is not Outcome.SKIP:
        return check
    return replace(check, status=Outcome.ERROR, reason=f"required, but skipped: {check.reason}")
