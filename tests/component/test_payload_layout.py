# SPDX-License-Identifier: Apache-2.0
"""The C header of the payload and the Python decoders must mean the same bytes."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest

from liveupdate.core.deadline import Deadline
from liveupdate.core.proc import run
from liveupdate.formats import echo, journal, tickpage
from liveupdate.formats.pattern import WORDS_PER_PAGE, expected_page

GUEST = Path(__file__).parents[2] / "guest-images" / "guest"
STRUCTS = {
    "lu_tick": (tickpage.LAYOUT, tickpage.FIELDS),
    "lu_echo": (echo.LAYOUT, echo.FIELDS),
    "lu_journal": (journal.LAYOUT, journal.FIELDS),
}
CONSTANTS = {
    "LU_TICK_VERSION": tickpage.VERSION,
    "LU_ECHO_ETHERTYPE": echo.ETHERTYPE,
    "LU_ECHO_MAGIC": echo.MAGIC,
    "LU_ECHO_VERSION": echo.VERSION,
    "LU_ECHO_REQUEST": echo.REQUEST,
    "LU_ECHO_REPLY": echo.REPLY,
    "LU_JOURNAL_SECTOR": journal.SECTOR_BYTES,
}
MAGICS = {"LU_TICK_MAGIC": tickpage.MAGIC, "LU_JOURNAL_MAGIC": journal.MAGIC}
SEEDS = ((0, 0), (1234567, 0), ((1 << 64) - 1, 513), (0x1122334455667788, 1 << 30))


def make_program() -> str:
    lines = ["#include <stdio.h>", '#include "payload_abi.h"', "int main(void)", "{"]

    def say(key: str, value: str) -> None:
        lines.append(f'\tprintf("{key} %llu\\n", (unsigned long long)({value}));')

    for name, (_, fields) in STRUCTS.items():
        say(name, f"sizeof(struct {name})")
        for field in fields:
            say(f"{name}.{field}", f"offsetof(struct {name}, {field})")
    for name in CONSTANTS:
        say(name, name)
    lines += [f'\tprintf("{name} %s\\n", {name});' for name in MAGICS]
    for seed, index in SEEDS:
        say(f"pattern.{seed}.{index}", f"lu_pattern_word({seed}ULL, {index}ULL)")
    return "\n".join([*lines, "\treturn 0;", "}", ""])


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    if not shutil.which("gcc"):
        pytest.skip("no gcc; install gcc and libc6-dev")
    out = tmp_path_factory.mktemp("layout")
    (out / "layout.c").write_text(make_program())
    deadline = Deadline.after(60, "the layout program")
    run(
        ("gcc", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-I", GUEST,
         "-o", out / "layout", out / "layout.c"),
        deadline=deadline,
    )  # fmt: skip
    lines = run((out / "layout",), deadline=deadline).stdout.splitlines()
    return dict(line.split(" ", 1) for line in lines)


def offsets(layout: struct.Struct) -> list[int]:
    """Offset of each field: the size of the format up to it. Without padding, by '<'."""
    codes: list[str] = []
    count = ""
    for char in layout.format.lstrip("<"):
        if char.isdigit():
            count += char
            continue
        codes += [count + char] if char == "s" else [char] * int(count or 1)
        count = ""
    return [struct.calcsize("<" + "".join(codes[:i])) for i in range(len(codes))]


@pytest.mark.parametrize("name", sorted(STRUCTS))
def test_offsets_and_sizes_agree(name: str, facts: dict[str, str]) -> None:
    layout, fields = STRUCTS[name]
    assert int(facts[name]) == layout.size
    assert {field: int(facts[f"{name}.{field}"]) for field in fields} == dict(
        zip(fields, offsets(layout), strict=True)
    )


def test_constants_agree(facts: dict[str, str]) -> None:
    assert {name: int(facts[name]) for name in CONSTANTS} == CONSTANTS
    assert {name: facts[name].encode() for name in MAGICS} == MAGICS


def test_pattern_agrees(facts: dict[str, str]) -> None:
    for seed, index in SEEDS:
        page = expected_page(seed, index // WORDS_PER_PAGE)
        word = index % WORDS_PER_PAGE * 8
        assert int(facts[f"pattern.{seed}.{index}"]) == int.from_bytes(
            page[word : word + 8], "little"
        )


def test_two_builds_give_the_same_bytes(tmp_path: Path) -> None:
    if not shutil.which("gcc"):
        pytest.skip("no gcc; install gcc and libc6-dev")
    images = []
    for name in ("one", "another-directory"):
        out = tmp_path / name
        run(("make", "-C", GUEST, f"O={out}"), deadline=Deadline.after(120, "build of the payload"))
        images.append((out / "initramfs.cpio.gz").read_bytes())
    assert images[0] == images[1]
