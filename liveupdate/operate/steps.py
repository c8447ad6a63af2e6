# SPDX-License-Identifier: Apache-2.0
"""The steps of an update, as data: what each does, its risk, and the way back from it.

Forward steps up to ``jump`` can be rolled back with the guests running on. ``jump`` is the point of
no return: from the moment in which it is asked for, only the host itself can still say no.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile

from liveupdate.run.moves import MOVES


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step. ``rollback`` is what ``abort`` does about it, for people."""

    name: str
    does: str
    risk: str = "none"
    rollback: str = "none"


_FORWARD: tuple[Step, ...] = (
    Step(
        name="lock",
        does="take the host: no other control host may change anything meanwhile",
        rollback="give the host back",
    ),
    Step(
        name="preflight",
        does="ask the host again, now that no other update can change it",
        risk="none: it only reads",
        rollback="nothing to undo",
    ),
    Step(
        name="copy-kernel",
        does="copy the incoming kernel to the host and compare its sha256 there",
        risk="uses as much of the host's /run as the image is large",
        rollback="remove the file",
    ),
    Step(
        name="observe-before",
        does="have the host's agent watch every guest, and check that each is alive",
        risk="a fiftieth of a second of one CPU at a time",
        rollback="stop watching",
    ),
    Step(
        name="prepare",
        does="preserve the memory of the running guests (LUO)",
        risk="pins the guests' memory: the host may have to move some of it, and run out of memory",
        rollback="close the sessions: nothing is preserved any more",
    ),
    Step(
        name="load-kernel",
        does="load the incoming kernel (kexec)",
        risk="uses memory for the image",
        rollback="unload it",
    ),
    Step(
        name="jump",
        does="pause the guests, save their VMMs' state, enter the incoming kernel",
        risk="guests stand still; if the incoming kernel does not come up, they are lost",
        rollback="none; a host that refuses to freeze or to jump resumes its guests by itself",
    ),
    Step(
        name="incoming",
        does="wait for the incoming kernel, and for its agent to bring the guests back",
        risk="a host that does not come back has lost its guests",
    ),
    Step(name="observe-after", does="watch the guests for a while on the incoming kernel"),
    Step(
        name="collect", does="fetch what the host recorded, and ask it and its guests how they are"
    ),
    Step(
        name="finish",
        does="give the sessions back to the kernel",
        risk="none: the guests run on the memory already",
    ),
    Step(name="judge", does="judge the evidence, write the reports"),
    Step(name="release", does="give the host back, and seal the bundle"),
)

FORWARD: tuple[Step, ...] = tuple(
    next(step for step in _FORWARD if step.name == name)
    for name in ("lock", "preflight", "copy-kernel", *MOVES, "judge", "release")
)
"""The way forward: the hop, and what an update does around it."""

NO_RETURN = "jump"

BEFORE_JUMP: tuple[Step, ...] = tuple(takewhile(lambda step: step.name != NO_RETURN, FORWARD))
"""The steps that ``abort`` can undo."""

BACK: tuple[Step, ...] = (
    Step(
        name="abandon", does="close the sessions: nothing is preserved any more, the guests run on"
    ),
    Step(name="unload", does="unload the incoming kernel"),
    Step(name="observe-back", does="watch the guests for a while on the outgoing kernel"),
    Step(
        name="collect-back",
        does="fetch what the host recorded, and ask it and its guests how they are",
    ),
    Step(name="judge-back", does="judge the evidence"),
    Step(
        name="release-back",
        does="remove the copied kernel, give the host back, and seal the bundle",
    ),
)
"""The way back, the same from every step: each of its steps may have nothing to do."""

#: the guests are known to be lost: nothing to undo, but to record and report
LOST: tuple[Step, ...] = (
    Step(name="collect-lost", does="ask the host what it is now, and what became of its guests"),
    Step(name="judge-lost", does="judge it"),
    Step(name="release-lost", does="give the host back, and seal the bundle"),
)

PATHS: dict[str, tuple[Step, ...]] = {"forward": FORWARD, "back": BACK, "lost": LOST}

BY_NAME = {step.name: step for path in PATHS.values() for step in path}
"""Every step by name; no two share one."""


def path_of(name: str) -> str:
    """Return the one of :data:`PATHS` that a step is on."""
    return next(path for path, steps in PATHS.items() if BY_NAME[name] in steps)


def first_open(path: str, done: frozenset[str]) -> str | None:
    """Return the first step of a path that is not done; None: all are."""
    return next((step.name for step in PATHS[path] if step.name not in done), None)
