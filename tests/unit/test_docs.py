# SPDX-License-Identifier: Apache-2.0
"""Documents: their links lead somewhere, the indexes are whole, hooks download nothing."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\(([^)\s]+)\)|!\[[^\]\n]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def documents() -> list[Path]:
    """All Markdown files of the checkout that git tracks, or would if asked."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout: the list of documents is git's")
    names = listed.stdout.decode().split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", _CODE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in headings}


def broken_links(document: Path) -> list[str]:
    """Return the relative links of a document that lead to no file or to no heading."""
    text = document.read_text(encoding="utf-8")
    broken = []
    for match in _LINK.finditer(_CODE.sub("", text)):
        link = match.group(1) or match.group(2)
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        found = target.exists()
        if found and anchor and target.suffix == ".md":
            found = anchor in anchors(target.read_text(encoding="utf-8"))
        if not found:
            broken.append(link)
    return broken


def unlisted(directory: Path) -> list[str]:
    """Return the ADRs of a directory that its index does not list by number, file and title."""
    index = (directory / "README.md").read_text(encoding="utf-8")
    missing = []
    for path in sorted(directory.glob("[0-9]*.md")):
        title = re.search(r"^# (\d{4}): (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        if title is None or f"| [{title[1]}]({path.name}) | {title[2]} |" not in index:
            missing.append(path.name)
    return missing


def test_every_relative_link_leads_somewhere() -> None:
    found = {
        path.relative_to(ROOT).as_posix(): broken
        for path in documents()
        if (broken := broken_links(path))
    }
    assert found == {}


def test_broken_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# A guest's own, twice\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# Top\n[a](other.md) [b](other.md#a-guests-own-twice) [c](#top) [d](https://x.example/)\n"
        "[e](gone.md) [f](other.md#gone) ![g](gone.svg)\n```\n[h](gone-too.md)\n```\n"
    )
    assert broken_links(page) == ["gone.md", "other.md#gone", "gone.svg"]


def test_every_adr_is_in_the_index() -> None:
    assert unlisted(ROOT / "docs" / "adr") == []


def test_no_two_adrs_have_one_number() -> None:
    numbers = [path.name[:4] for path in (ROOT / "docs" / "adr").glob("0*.md")]
    assert len(numbers) == len(set(numbers)), sorted(numbers)


def test_an_adr_that_the_index_lacks_is_found(tmp_path: Path) -> None:
    (tmp_path / "0001-one.md").write_text("# 0001: One\n")
    (tmp_path / "0002-two.md").write_text("# 0002: Two\n")
    (tmp_path / "README.md").write_text("| [0001](0001-one.md) | One | accepted |\n")
    assert unlisted(tmp_path) == ["0002-two.md"]


def test_every_page_is_in_the_index_of_documents() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs").glob("[!a]*/*.md")]
    names = {path.relative_to(ROOT / "docs").as_posix() for path in pages} - {"README.md"}
    assert {name for name in names if f"]({name})" not in index} == set()


def test_hooks_download_nothing() -> None:
    config = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    hooks = len(re.findall(r"^ +- id: ", config, re.MULTILINE))
    assert set(re.findall(r"^ *- repo: (.*)$", config, re.MULTILINE)) == {"local"}
    assert re.findall(r"^ +language: (.*)$", config, re.MULTILINE) == ["system"] * hooks
