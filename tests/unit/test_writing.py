# SPDX-License-Identifier: Apache-2.0
"""The code that docs/writing quotes stands in the package as quoted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "writing").glob("*.md"))
#: blocks after these words are examples of what one would add
_NOT_THERE = "would be:"


def squeeze(code: str) -> str:
    """Return code without white space and trailing commas, which a formatter may move."""
    return re.sub(r",(?=[)\]}])", "", re.sub(r"\s+", "", code))


SOURCE = "\n".join(
    squeeze(path.read_text(encoding="utf-8")) for path in (ROOT / "liveupdate").rglob("*.py")
)


def quotes(text: str) -> list[str]:
    """Return what a page quotes, in the pieces between dots."""
    found = []
    for before, block in re.findall(r"(.*?)```python\n(.*?)```", text, re.DOTALL):
        if not before.rstrip().endswith(_NOT_THERE):
            found += re.split(r"^ *\.\.\.\n", block, flags=re.MULTILINE)
    return [piece for piece in found if piece.strip()]


def missing(text: str) -> list[str]:
    return [piece for piece in quotes(text) if squeeze(piece) not in SOURCE]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_quoted_code_is_in_the_package(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert quotes(text)
    assert missing(text) == []


def test_a_quote_that_is_out_of_date_is_found() -> None:
    assert len(PAGES) == 5
    assert missing("As in:\n\n```python\nno_such_fault = 1\n```\n") == ["no_such_fault = 1\n"]
    assert missing("It would be:\n\n```python\nno_such_fault = 1\n```\n") == []
