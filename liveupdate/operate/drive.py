# SPDX-License-Identifier: Apache-2.0
"""Drives an update: asks journal and host for the next step, carries it out, and repeats.

Every process that works on an update does only this, from its first step or from any other.
:func:`liveupdate.operate.journal.decide` alone decides on the next step, from the journal and the
state that the host reports. A step is written down before it is carried out. A connection that is
lost during a step is no error of the step: the host is asked again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from liveupdate.core.deadline import Deadline, wait_until
from liveupdate.core.errors import (
    DeadlineExceeded,
    EvidenceError,
    LaunchError,
    LiveUpdateError,
    LostMachine,
    OutcomeUnknown,
    RemoteError,
)
from liveupdate.evidence.files import StoreError
from liveupdate.model.codec import CodecError
from liveupdate.model.verdict import ExitCode, Outcome, Verdict
from liveupdate.operate.held import HeldHop, control_boot_id
from liveupdate.operate.hostside import HostSide
from liveupdate.operate.journal import HostView, decide, status_view
from liveupdate.operate.steps import BEFORE_JUMP, BY_NAME, NO_RETURN, Step
from liveupdate.operate.wal import Wal
from liveupdate.target.ssh.host import HostLocked
from liveupdate.transport.ssh import WrongHostKey

#: how often a step may lose the host before the operator has to act
MAX_LOSSES = 5
_POLL_S = 0.5
#: one attempt to connect by SSH, and another one
_LINE_S = 45.0

NO_RETURN_TEXT = (
    "point of no return: the host jumps now; from here on the update can only be resumed"
)


class Refused(LiveUpdateError):
    """The request is not possible for this update any more, or not for this caller."""


class Stopped(LiveUpdateError):
    """The operator declined a step; the update stays where it is."""


class StepFailed(LiveUpdateError):
    """A step after the point of no return failed; it can be tried again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The outcome of an update: updated, rolled-back, lost or unknown."""

    outcome: str
    exit_code: int
    why: str = ""


def outcome_of(path: str, verdict: Verdict) -> str:
    """Name what a verdict means for the update."""
    if verdict.outcome is Outcome.PASS:
        return "updated"
    if verdict.rolled_back:
        return "rolled-back"
    if verdict.outcome is Outcome.FAIL:
        # a guest that was dead before is found on the way back, too
        return "lost" if path != "back" else "rolled-back-with-losses"
    return "unknown"


@dataclass(slots=True)
class Driver:
    """Works on one update. ``host`` carries out the steps on the host."""

    journal: Wal
    host: HostSide
    #: tells the operator something that matters
    say: Callable[[str], None]
    #: asked before each step
    may: Callable[[Step], bool]
    #: called by the judge step: judges, stores reports, gives what the update came to
    conclude: Callable[[], Verdict]
    #: how long a host may be unreachable
    patience_s: float = 120.0
    _losses: int = 0

    def run(self, verb: str) -> Ended:
        """Work until the update has ended.

        :raises Refused, Stopped, StepFailed: it has not; all but the first can be resumed.
        :raises DeadlineExceeded: the host cannot be reached.
        :raises StoreError: the journal cannot be written; nothing more was done.
        """
        while True:
            if self.journal.state.outcome is not None:
                return self._ended()
            view = self._view()
            move = decide(self.journal.state, verb, view)
            if move.kind == "refused":
                raise Refused(move.why)
            if move.kind == "turn":
                self.journal.append("turn", path=move.path, why=move.why)
                self.say(
                    f"rolling back: {move.why}" if move.path == "back" else f"lost: {move.why}"
                )
            elif move.kind == "ended":
                self._end(view)
            else:
                self._walk(BY_NAME[move.step], view)

    def reset_host(self) -> None:
        """Reset the host by its power command, at the operator's request: its memory is lost.

        :raises LaunchError: the power command failed; nothing was changed.
        """
        self.journal.append("note", text="the operator resets the host")
        self.say("resetting the host: guests that are still frozen in its memory are lost")
        try:
            self.host.power_reset()
        except DeadlineExceeded as error:
            raise LaunchError(f"the power command does not end: {error}") from error

    def close(self) -> None:
        """Disconnect; the host stays locked."""
        self.host.close()

    # --- one step

    def _walk(self, step: Step, view: HostView) -> None:
        if not self.may(step):
            raise Stopped(f"stopped before '{step.name}', as you answered")
        if step.name != "lock" or self.journal.state.pending != "lock":
            self.journal.append("intent", step=step.name)
        if step.name == NO_RETURN:
            self.say(NO_RETURN_TEXT)
        try:
            with self.host.steps.step(step.name):
                facts = self._do(step.name, view)
                # a step whose evidence is not on disk is not done
                self.host.record.check_stored()
        except (WrongHostKey, HostLocked, StoreError):
            raise
        except (OutcomeUnknown, LostMachine, DeadlineExceeded) as error:
            self._note_loss(step, error)
        except LiveUpdateError as error:
            self.journal.append("failed", step=step.name, error=str(error))
            if step not in BEFORE_JUMP:
                raise StepFailed(
                    f"'{step.name}' failed: {error.message}", hint="see what is wrong, then resume"
                ) from error
        else:
            self.journal.append("done", step=step.name, facts=facts)

    def _note_loss(self, step: Step, error: LiveUpdateError) -> None:
        """Note that the host was lost during a step; its state is asked for next."""
        self.journal.append("note", text=f"'{step.name}': {error}")
        self._losses += 1
        if self._losses > MAX_LOSSES:
            raise error
        self.host.reconnect()

    def _do(self, name: str, view: HostView) -> Mapping[str, object]:
        if name.startswith("judge"):
            try:
                return self._judge()
            except LiveUpdateError:
                raise
            except Exception as error:
                raise EvidenceError(f"the evidence cannot be judged: {error!r}") from error
        hop = HeldHop(self.host, state=self.journal.state, view=view, wait=self._wait_incoming)
        try:
            return hop.make(name)
        except LiveUpdateError:
            raise
        except Exception as error:
            what = "is none of our protocol" if isinstance(error, CodecError) else "cannot be used"
            raise EvidenceError(f"the host's answer {what}: {error!r}") from error

    def _wait_incoming(self) -> Mapping[str, object]:
        """Wait until the guests are back, or until it is known that they will not be.

        :raises OutcomeUnknown: the host reports something that :func:`decide` has to handle.
        :raises StepFailed: it does not come back.
        """
        state, plan = self.journal.state, self.host.plan
        limit = plan.timeouts.jump_s + plan.timeouts.incoming_s + plan.timeouts.restore_s
        deadline = Deadline.after(limit + self.patience_s, "the host to come back with its guests")
        last = "no answer"

        def look() -> HostView | None:
            nonlocal last
            try:
                self.host.wait_line(_LINE_S)
                found = status_view(self.host.status(_POLL_S * 10))
            except (OutcomeUnknown, LostMachine, DeadlineExceeded, RemoteError) as error:
                if isinstance(error, WrongHostKey):
                    raise
                last = str(error)
                self.host.reconnect()
                return None
            last = f"boot {found.boot_id[:8]}, {found.handover}"
            if found.boot_id != state.host_boot_id:
                return found if found.restored or not found.recovered else None
            return found if found.handover != "prepared" else None

        try:
            view = wait_until(look, deadline, interval_s=_POLL_S, describe=lambda: last)
        except DeadlineExceeded as error:
            raise StepFailed(
                f"the host did not come back: {error}",
                hint="see docs/apply.md",
            ) from error
        if view.boot_id == state.host_boot_id or not view.restored:
            raise OutcomeUnknown(f"the host is in boot {view.boot_id[:8]}, {view.handover}")
        return {"boot_id": view.boot_id}

    def _judge(self) -> Mapping[str, object]:
        self.host.record.close()
        verdict = self.conclude()
        return {
            "outcome": outcome_of(self.journal.state.path, verdict),
            "exit_code": int(verdict.exit_code),
            "reason": verdict.reason,
        }

    # --- the host, and the end

    def _view(self) -> HostView:
        """Ask the host for its state; wait for it as long as an operator would.

        :raises DeadlineExceeded: it does not answer.
        """
        deadline = Deadline.after(self.patience_s, f"host '{self.host.name}' to answer")
        last = "nothing tried"

        def attempt() -> HostView | None:
            nonlocal last
            if not self.host.is_entered:
                if not self.journal.state.host_boot_id and self.journal.state.pending != "lock":
                    # connecting takes the host
                    self.journal.append("intent", step="lock")
                self.host.enter()
            try:
                self.host.wait_line(min(_LINE_S, max(1.0, deadline.remaining_s)))
                asked = time.monotonic_ns()
                answer = self.host.status(min(10.0, max(1.0, deadline.remaining_s)))
                self._note_clock(answer, asked, time.monotonic_ns())
                return status_view(answer)
            except (WrongHostKey, HostLocked):
                raise
            except (OutcomeUnknown, LostMachine, DeadlineExceeded) as error:
                last = f"{error}; {self.host.host.trouble}".rstrip("; ")
                self.host.reconnect()
                return None

        return wait_until(attempt, deadline, interval_s=_POLL_S, describe=lambda: last)

    def _note_clock(self, answer: Mapping[str, object], asked: int, answered: int) -> None:
        """Store how the host's clock relates to this machine's, whenever it is known better."""
        boot_id, there = answer.get("boot_id"), answer.get("boottime_ns")
        if not isinstance(boot_id, str) or not isinstance(there, int):
            return
        rtt = answered - asked
        known = self.journal.state.clocks.get(boot_id)
        here = control_boot_id()
        if known is not None and known.control_boot_id == here and known.rtt_ns <= rtt:
            return
        self.journal.append(
            "clock",
            boot_id=boot_id,
            offset_ns=(asked + answered) // 2 - there,
            rtt_ns=rtt,
            control_boot_id=here,
            real_ns=time.time_ns() - time.monotonic_ns(),
        )

    def _end(self, view: HostView) -> None:
        state = self.journal.state
        judged = [name for name in ("judge-lost", "judge-back", "judge") if name in state.done]
        facts = state.facts[judged[0]] if judged else {}
        if view.update and view.update == (state.begin or {}).get("update"):
            # connecting has taken it once more
            self._do("release", view)
        code, reason = facts.get("exit_code"), str(facts.get("reason", ""))
        self.journal.append(
            "end",
            outcome=str(facts.get("outcome", "unknown")),
            exit_code=code if isinstance(code, int) else int(ExitCode.ERROR),
            # what it was given up for comes first: the verdict knows only that it was
            why=f"{state.why}; {reason}" if state.path == "back" else reason,
        )

    def _ended(self) -> Ended:
        state = self.journal.state
        last = self.journal.records[-1]
        return Ended(
            outcome=state.outcome or "unknown",
            exit_code=state.exit_code if state.exit_code is not None else int(ExitCode.ERROR),
            why=str(last.data.get("why", "")) or state.why,
        )
