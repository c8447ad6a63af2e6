# SPDX-License-Identifier: Apache-2.0
"""The order of a hop stands in one place, and both that drive one go by it."""

from __future__ import annotations

import inspect

import pytest

from liveupdate.operate import drive, journal
from liveupdate.operate.held import HeldHop
from liveupdate.operate.steps import FORWARD
from liveupdate.run.hop import HopEngine
from liveupdate.run.live import LiveHop
from liveupdate.run.moves import MOVES, STEPS


@pytest.mark.parametrize("driver", [HopEngine, LiveHop, HeldHop])
def test_every_move_is_a_method_of_the_engine(driver: type) -> None:
    methods = [getattr(driver, move.replace("-", "_")) for move in MOVES]
    assert all(inspect.isfunction(method) for method in methods)


def test_steps_of_a_run_are_the_moves_in_order() -> None:
    assert [move for moves in STEPS.values() for move in moves] == list(MOVES)
    assert len(set(MOVES)) == len(MOVES)


def test_an_update_makes_the_same_moves_in_the_same_order() -> None:
    names = tuple(step.name for step in FORWARD)
    first = names.index(MOVES[0])
    assert names[first : first + len(MOVES)] == MOVES
    assert names[:first] == ("lock", "preflight", "copy-kernel")
    assert names[first + len(MOVES) :] == ("judge", "release")


def test_the_driver_of_an_update_names_no_move_but_asks_the_journal() -> None:
    source = inspect.getsource(drive)
    assert [move for move in MOVES if f'"{move}"' in source] == []
    assert "decide(" in source and hasattr(journal, "decide")
