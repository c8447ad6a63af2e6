# SPDX-License-Identifier: Apache-2.0
"""Whatever reads what others wrote refuses what it cannot read, and ends.

``make nightly PART=hostile`` does the same a million times.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.support import hostile

#: of each reader; judging a whole run takes longer
ROUNDS, ROUNDS_OF_RUNS = 100, 4


@pytest.fixture(scope="module", autouse=True)
def _clean() -> Iterator[None]:
    yield
    hostile.clean_up()


def test_every_reader_refuses_spoilt_input_or_reads_it() -> None:
    readers = hostile.readers()
    assert len(readers) > 60
    for name, (good, read) in readers.items():
        rounds = ROUNDS_OF_RUNS if name.startswith("run: ") else ROUNDS
        hostile.attack(good, read, rounds, name)


def test_a_reader_that_raises_something_else_is_found() -> None:
    with pytest.raises(AssertionError, match="IndexError"):
        hostile.attack(b"good", lambda data: data[9], 10, "reader")


def test_inputs_are_spoilt() -> None:
    rng = random.Random(1)
    assert len({hostile.spoil(b"0123456789" * 9, rng) for _ in range(100)}) > 80
