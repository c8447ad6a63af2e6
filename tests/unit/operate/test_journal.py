# SPDX-License-Identifier: Apache-2.0
"""The journal of an update: any beginning of one has a meaning, and a way on or back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liveupdate.core.errors import EvidenceError
from liveupdate.operate.journal import (
    PASSED,
    HostView,
    Move,
    Record,
    State,
    decide,
    decode,
    encode,
    replay,
)
from liveupdate.operate.steps import BACK, BEFORE_JUMP, BY_NAME, FORWARD, LOST, NO_RETURN, PATHS

OLD, NEW = "old-boot", "new-boot"
BEGIN: dict[str, object] = {"update": "u1", "host": "box", "place": "/box.toml"}


def record(n: int, kind: str, **data: object) -> Record:
    return Record(n=n, utc="2026-01-01T00:00:00Z", kind=kind, data=data)


def journal_of(*rows: tuple[str, dict[str, object]]) -> list[Record]:
    return [record(n, kind, **data) for n, (kind, data) in enumerate(rows)]


def facts_of(step: str) -> dict[str, object]:
    return {"boot_id": OLD} if step == "lock" else {}


def whole_run() -> list[Record]:
    """An update in which all went well."""
    rows: list[tuple[str, dict[str, object]]] = [("begin", BEGIN)]
    for step in FORWARD:
        rows.append(("intent", {"step": step.name}))
        rows.append(("done", {"step": step.name, "facts": facts_of(step.name)}))
    rows.append(("end", {"outcome": "updated", "exit_code": 0}))
    return journal_of(*rows)


WHOLE = whole_run()
AT_REST = HostView(boot_id=OLD)
HELD = HostView(boot_id=OLD, update="u1")


def view_after(records: list[Record]) -> HostView:
    """The host, as far as the last step that was done took it."""
    state = replay(records)
    done = state.done
    if "jump" in done:
        return HostView(
            boot_id=NEW,
            update="" if "release" in done else "u1",
            handover="idle" if "finish" in done else "restored",
            recovered=True,
            restored="incoming" in done,
        )
    if not state.host_boot_id:
        return AT_REST
    handover = "prepared" if "prepare" in done else "idle"
    return replace(HELD, handover=handover, loaded="load-kernel" in done)


def test_the_steps_are_what_they_say() -> None:
    names = [step.name for path in PATHS.values() for step in path]
    assert len(names) == len(set(names)) == len(BY_NAME)
    assert FORWARD[: len(BEFORE_JUMP)] == BEFORE_JUMP
    assert FORWARD[len(BEFORE_JUMP)].name == NO_RETURN
    assert all(step.does and step.risk and step.rollback for step in (*FORWARD, *BACK, *LOST))


def test_a_journal_survives_its_encoding() -> None:
    data = "".join(encode(each) + "\n" for each in WHOLE).encode()
    assert list(decode(data)) == WHOLE
    # the last line was being written when the power went
    assert list(decode(data[:-5])) == WHOLE[:-1]
    assert decode(b"") == ()
    assert decode(b'{"v":1,"n":0') == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"x\n", "garbled"),
        (b"[]\n", "garbled"),
        (b'{"v":2,"n":0,"utc":"","kind":"begin"}\n', "has version 2"),
        (b'{"v":1,"n":1,"utc":"","kind":"begin"}\n', "out of order"),
        (b'{"v":1,"n":0,"utc":"","kind":"dance"}\n', "no known kind"),
        (b'{"v":1,"n":0,"utc":"","kind":"intent","step":"dance"}\n', "no known step"),
    ],
)
def test_what_is_no_journal_is_refused(text: bytes, said: str) -> None:
    with pytest.raises(EvidenceError, match=said):
        decode(text)


@pytest.mark.parametrize("length", range(1, len(WHOLE) + 1))
def test_killed_after_any_record_the_update_goes_on_where_it_was(length: int) -> None:
    records = WHOLE[:length]
    state, view = replay(records), view_after(records)
    move = decide(state, "resume", view)
    if state.outcome is not None:
        assert move == Move(kind="ended", why="updated")
        return
    todo = [step.name for step in FORWARD if step.name not in state.done]
    if todo:
        assert move == Move(kind="go", step=todo[0])
    else:
        assert move.kind == "ended"


@pytest.mark.parametrize("length", range(1, len(WHOLE)))
def test_killed_after_any_record_abort_is_defined(length: int) -> None:
    records = WHOLE[:length]
    state, view = replay(records), view_after(records)
    move = decide(state, "abort", view)
    if "jump" in state.done:
        assert move == Move(kind="refused", why=PASSED)
    else:
        assert (move.kind, move.path) == ("turn", "back")


def test_a_jump_that_was_asked_for_and_did_not_happen_can_still_be_aborted() -> None:
    records = [each for each in WHOLE if each.step != "jump" or each.kind == "intent"]
    cut = records[: records.index(next(r for r in records if r.step == "jump")) + 1]
    state = replay(cut)
    assert state.is_past and state.pending == "jump"
    prepared = replace(HELD, handover="prepared", loaded=True)
    assert decide(state, "abort", prepared).path == "back"
    assert decide(state, "resume", prepared) == Move(kind="go", step="jump")
    # and one that did
    came = HostView(boot_id=NEW, update="u1", handover="restored", recovered=True)
    assert decide(state, "abort", came).kind == "refused"
    assert decide(state, "resume", came) == Move(kind="go", step="incoming")


def test_a_host_that_refused_to_freeze_is_rolled_back_whatever_is_asked() -> None:
    state = replay(WHOLE[: 2 * 7])
    view = replace(HELD, handover="failed", loaded=True, failure="reboot(KEXEC): EIO")
    for verb in ("resume", "abort"):
        assert decide(state, verb, view).path == "back"
    assert decide(state, "resume", view).why == "reboot(KEXEC): EIO"


def test_a_host_that_booted_anew_has_lost_its_guests() -> None:
    for length in range(3, len(WHOLE) - 8):
        state = replay(WHOLE[:length])
        for verb in ("resume", "abort"):
            move = decide(state, verb, HostView(boot_id=NEW))
            assert (move.kind, move.path) == ("turn", "lost"), length


def test_an_agent_that_was_started_anew_is_locked_again_and_everything_done_anew() -> None:
    prepared = replay(WHOLE[:11])
    assert "prepare" in prepared.done
    move = decide(prepared, "resume", AT_REST)
    assert move == Move(kind="go", step="lock")
    again = [*WHOLE[:11], *journal_of(("intent", {"step": "lock"}))]
    assert replay(again).done == frozenset()


@pytest.mark.parametrize("verb", ["resume", "abort"])
@pytest.mark.parametrize("length", range(1, len(WHOLE)))
def test_a_host_that_another_update_holds_is_left_alone(verb: str, length: int) -> None:
    view = HostView(boot_id=OLD, update="u2", owner="eve@elsewhere")
    move = decide(replay(WHOLE[:length]), verb, view)
    assert move.kind == "refused"
    assert "update 'u2' of eve@elsewhere" in move.why


def test_nothing_that_is_not_ours_is_begun() -> None:
    assert decide(State(), "resume", AT_REST).kind == "refused"


# --- any journal that this tool can have written, and any host

_steps = st.sampled_from(sorted(BY_NAME))
_rows = st.one_of(
    st.tuples(st.sampled_from(["intent", "done"]), _steps.map(lambda step: {"step": step})),
    _steps.map(lambda step: ("failed", {"step": step, "error": "no"})),
    st.just(("done", {"step": "lock", "facts": {"boot_id": OLD}})),
    st.sampled_from(["back", "lost"]).map(lambda path: ("turn", {"path": path, "why": "w"})),
    st.just(("note", {"text": "x"})),
)
_views = st.builds(
    HostView,
    boot_id=st.sampled_from([OLD, NEW]),
    update=st.sampled_from(["", "u1", "u2"]),
    handover=st.sampled_from(["idle", "prepared", "failed", "restored"]),
    loaded=st.booleans(),
    recovered=st.booleans(),
    restored=st.booleans(),
)


@given(rows=st.lists(_rows, max_size=40), view=_views, verb=st.sampled_from(["resume", "abort"]))
def test_every_beginning_of_every_journal_has_a_defined_next_move(
    rows: list[tuple[str, dict[str, object]]], view: HostView, verb: str
) -> None:
    records = journal_of(("begin", dict(BEGIN)), *rows)
    for length in range(1, len(records) + 1):
        state = replay(records[:length])
        move = decide(state, verb, view)
        assert move.kind in ("go", "turn", "ended", "refused")
        if view.update == "u2":
            assert move.kind == "refused"
        if move.kind == "go":
            assert move.step in BY_NAME
            # nothing is done to a host that is in another kernel but to look at it
            if state.host_boot_id == OLD and view.boot_id == NEW:
                assert BY_NAME[move.step] not in (*BEFORE_JUMP, *BACK)
        if move.kind == "turn":
            assert move.path in ("back", "lost") and move.why
            # it is written down, and then something is done: no turning round and round
            turned = record(length, "turn", path=move.path, why=move.why)
            following = decide(replay([*records[:length], turned]), verb, view)
            assert (following.kind, following.path) != ("turn", move.path)
        if verb == "abort" and move.kind == "go":
            assert move.step not in ("prepare", "load-kernel", "jump")
        if verb == "abort" and move.kind == "refused" and view.update != "u2":
            assert view.boot_id == NEW


@given(rows=st.lists(_rows, max_size=20), cut=st.integers(0, 4000))
def test_a_journal_cut_anywhere_is_one_of_its_beginnings(
    rows: list[tuple[str, dict[str, object]]], cut: int
) -> None:
    records = journal_of(("begin", dict(BEGIN)), *rows)
    data = "".join(encode(each) + "\n" for each in records).encode()
    found = decode(data[:cut])
    assert list(found) == records[: len(found)]
    assert len(found) == data[:cut].count(b"\n")
