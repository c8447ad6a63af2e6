# SPDX-License-Identifier: Apache-2.0
"""The journal of an update: its format, and what any part of it means. Pure.

One JSON object per line, each on disk before what it says is done (:mod:`liveupdate.operate.wal`):

    {"v": 1, "n": 0, "utc": T, "kind": "begin", "update": ID, "host": NAME, "place": PATH, ...}
    {"v": 1, "n": 1, "utc": T, "kind": "intent", "step": "lock"}
    {"v": 1, "n": 2, "utc": T, "kind": "done", "step": "lock", "facts": {...}}

Kinds: begin; intent, done and failed (with ``error``) of a step; turn (``path`` back or lost, with
``why``): from here on the update is being given up; clock (how the host's clock relates to this
machine's); note; end (``outcome``, ``exit_code``). A line that the last writer did not finish is as
if it had never been begun; anything else that does not fit is an error, because another program
wrote it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce

from liveupdate.core.errors import EvidenceError
from liveupdate.model import codec
from liveupdate.model.base import Value
from liveupdate.operate.steps import BEFORE_JUMP, BY_NAME, NO_RETURN, PATHS, first_open, path_of

VERSION = 1
KINDS = ("begin", "intent", "done", "failed", "turn", "clock", "note", "end")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One line. ``data`` is all but ``v``, ``n``, ``utc`` and ``kind``."""

    n: int
    utc: str
    kind: str
    data: Mapping[str, object] = field(default_factory=dict)

    @property
    def step(self) -> str:
        """The step that the record is about; "" for a kind without one."""
        return str(self.data.get("step", ""))


class ClockPair(Value, frozen=True, kw_only=True):
    """How a boot of the host relates to a boot of the control host.

    ``offset_ns``: CLOCK_MONOTONIC here minus CLOCK_BOOTTIME there, known to ``rtt_ns``.
    ``real_ns``: CLOCK_REALTIME here minus CLOCK_MONOTONIC here, for use after a reboot of the
    control host.
    """

    boot_id: str
    offset_ns: int
    rtt_ns: int
    control_boot_id: str
    real_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The state that a journal, or any beginning of one, describes."""

    begin: Mapping[str, object] | None = None
    path: str = "forward"
    why: str = ""
    done: frozenset[str] = frozenset()
    #: a step that was begun, and neither done nor failed
    pending: str | None = None
    failed: str | None = None
    error: str = ""
    facts: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    clocks: Mapping[str, ClockPair] = field(default_factory=dict)
    #: the jump was requested, or may have been
    is_past: bool = False
    outcome: str | None = None
    exit_code: int | None = None

    @property
    def host_boot_id(self) -> str:
        """The boot of the host in which the update began; "": it has not taken the host yet."""
        return str(self.facts.get("lock", {}).get("boot_id", ""))


@dataclass(frozen=True, slots=True, kw_only=True)
class HostView:
    """What the host reports of itself now.

    ``update``: id of the update that holds it, "" none; ``owner``: its owner.
    """

    boot_id: str
    update: str = ""
    owner: str = ""
    #: when it was taken, by the host's clock; a restarted agent reports another time
    since: int = 0
    handover: str = "idle"
    loaded: bool = False
    recovered: bool = False
    restored: bool = False
    failure: str = ""


def status_view(answer: Mapping[str, object]) -> HostView:
    """Decode the agent's ``update_status``; a missing field counts as absent."""
    update = answer.get("update")
    held = update if isinstance(update, dict) else {}
    since = held.get("since")
    failure = answer.get("failure")
    return HostView(
        boot_id=str(answer.get("boot_id", "")),
        update=str(held.get("id", "")),
        owner=str(held.get("owner", "")),
        since=since if isinstance(since, int) else 0,
        handover=str(answer.get("handover", "")),
        loaded=answer.get("loaded") is True,
        recovered=answer.get("recovered") is True,
        restored=answer.get("restored") is True,
        failure=failure if isinstance(failure, str) else "",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """What to do next: ``kind`` is go (``step``), turn (``path``), ended or refused (``why``)."""

    kind: str
    step: str = ""
    path: str = ""
    why: str = ""


def encode(record: Record) -> str:
    """Encode one line, without its newline."""
    row = {"v": VERSION, "n": record.n, "utc": record.utc, "kind": record.kind, **record.data}
    return json.dumps(row, separators=(",", ":"), ensure_ascii=True)


def decode(data: bytes) -> tuple[Record, ...]:
    """Decode a journal.

    :raises EvidenceError: it is no journal, or of another version.
    """
    whole, _, _cut = data.rpartition(b"\n")
    records: list[Record] = []
    for number, line in enumerate(whole.split(b"\n") if whole else []):
        try:
            row = json.loads(line)
            version = row.pop("v")
            if version != VERSION:
                raise EvidenceError(
                    f"journal line {number + 1} has version {version}, this tool reads {VERSION}",
                    hint="use the version of liveupdate that began the update",
                )
            record = Record(n=row.pop("n"), utc=row.pop("utc"), kind=row.pop("kind"), data=row)
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise EvidenceError(f"journal line {number + 1} is garbled: {error!r}") from error
        if record.n != number or record.kind not in KINDS:
            raise EvidenceError(f"journal line {number + 1} is out of order or of no known kind")
        if record.kind in ("intent", "done", "failed") and record.step not in BY_NAME:
            raise EvidenceError(f"journal line {number + 1} has no known step: '{record.step}'")
        records.append(record)
    return tuple(records)


def replay(records: Iterable[Record]) -> State:
    """Return the state that a journal describes; any beginning of one has a meaning."""
    return reduce(_add, records, State())


def _add(state: State, record: Record) -> State:
    data, step = record.data, record.step
    match record.kind:
        case "begin":
            return replace(state, begin=data)
        case "intent":
            # done again, after the host forgot what was done: what follows is open again, too
            path = path_of(step)
            names = [each.name for each in PATHS[path]]
            return replace(
                state,
                path=path,
                done=state.done.difference(names[names.index(step) :]),
                pending=step,
                failed=None,
                is_past=state.is_past or step == NO_RETURN,
            )
        case "done":
            found = data.get("facts")
            facts = {**state.facts, step: found if isinstance(found, dict) else {}}
            return replace(state, done=state.done | {step}, pending=None, facts=facts)
        case "failed":
            return replace(state, pending=None, failed=step, error=str(data.get("error", "")))
        case "turn":
            path, why = str(data.get("path")), str(data.get("why", ""))
            known = path if path in PATHS else "forward"
            return replace(state, path=known, why=why, pending=None)
        case "clock":
            try:
                pair = codec.decode(ClockPair, data)
            except codec.CodecError:
                return state
            return replace(state, clocks={**state.clocks, pair.boot_id: pair})
        case "end":
            code = data.get("exit_code")
            exit_code = code if isinstance(code, int) else None
            return replace(state, outcome=str(data.get("outcome")), exit_code=exit_code)
    return state


def decide(state: State, verb: str, view: HostView) -> Move:
    """Decide on the next step, from the journal and the host's report.

    :param verb: ``resume`` (``apply`` is one that has just begun) or ``abort``.
    """
    if state.outcome is not None:
        return Move(kind="ended", why=state.outcome)
    if state.begin is None:
        return Move(kind="refused", why="the journal does not say which update this is")
    update = str(state.begin.get("update"))
    if view.update and view.update != update:
        return Move(kind="refused", why=f"update '{view.update}' of {view.owner} holds the host")
    if state.path == "lost":
        return _go("lost", state.done)
    known = state.host_boot_id
    if not known:
        # nothing but the lock may have been tried
        if state.path == "back":
            return _go("back", state.done)
        return _turn("back", "aborted") if verb == "abort" else Move(kind="go", step="lock")
    if view.boot_id != known:
        return _decide_incoming(state, verb, view, update)
    if state.path == "back":
        return _go("back", state.done)
    if verb == "abort":
        return _turn("back", "aborted")
    if view.handover == "failed":
        return _turn("back", view.failure or "the host refused to freeze or to jump")
    if state.failed is not None:
        return _turn("back", f"{state.failed}: {state.error}")
    if view.update != update or view.since != state.facts["lock"].get("since", view.since):
        # the agent restarted and forgot
        return Move(kind="go", step="lock")
    if view.handover == "prepared" and "observe-before" in state.done:
        # not before a restarted agent watches the guests again
        if "prepare" not in state.done:
            return Move(kind="go", step="prepare")
        return Move(kind="go", step="jump" if view.loaded else "load-kernel")
    before = frozenset(state.done - {"prepare", "load-kernel", "jump"})
    return Move(kind="go", step=first_open("forward", before) or "prepare")


def _decide_incoming(state: State, verb: str, view: HostView, update: str) -> Move:
    """Decide for a host that runs another boot than the one in which the update began."""
    if "collect" in state.done:
        # all that the host could say has been fetched
        if verb == "abort":
            return Move(kind="refused", why=PASSED)
        return _after_jump(state)
    if not state.is_past:
        return _turn("lost", "the host was rebooted before the jump, not by this update")
    if not view.recovered:
        return _turn("lost", "the host rebooted and its guests are gone")
    if verb == "abort":
        return Move(kind="refused", why=PASSED)
    if view.update != update:
        return _turn("lost", "the host came back and knows nothing of this update")
    return _after_jump(state)


def _after_jump(state: State) -> Move:
    """Continue after the jump; the host shows that it was done, whether it answered or not."""
    passed = {NO_RETURN, *(step.name for step in BEFORE_JUMP)}
    return _go("forward", state.done | passed)


PASSED = "the point of no return is passed: the host runs the incoming kernel; use 'resume'"


def _go(path: str, done: frozenset[str]) -> Move:
    step = first_open(path, done)
    if step is None:
        return Move(kind="ended", why="all steps are done")
    return Move(kind="go", step=step)


def _turn(path: str, why: str) -> Move:
    return Move(kind="turn", path=path, why=why)
