# SPDX-License-Identifier: Apache-2.0
"""Carries out a plan: brings a host up, hops, stores what was observed, judges it.

The only place where errors of machines become incidents, and any other exception, too: what a host
that is not trusted answers must not cost the verdict. A run always ends in a verdict, also when
its machine is lost, its disk is full or it was interrupted.
"""

from __future__ import annotations

import logging
import sys
import time
import traceback
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from liveupdate.core.deadline import Deadline, whole
from liveupdate.core.errors import DeadlineExceeded, LiveUpdateError, LostMachine
from liveupdate.core.steps import StepEvent, Steps
from liveupdate.evidence import RunDir
from liveupdate.formats.malformed import MalformedError
from liveupdate.judging.judge import judge
from liveupdate.model import slots
from liveupdate.model.codec import CodecError
from liveupdate.model.evidence import Evidence, Incident
from liveupdate.model.plan import Hop, Plan
from liveupdate.model.scenario import Scenario
from liveupdate.model.verdict import Verdict
from liveupdate.run.bringup import TakeHost, bring_up
from liveupdate.run.live import FreezeRefused, LiveHop
from liveupdate.run.observers.guests import GuestObservers
from liveupdate.run.provenance import describe
from liveupdate.run.testbed import Testbed
from liveupdate.scenario.dump import dump_scenario
from liveupdate.transport.physmem import NotRam

log = logging.getLogger(__name__)

_TAIL_LINES = 20
_SWITCH_S = 0.0005
#: a kernel says this in its panic when it has no driver for the disk that it was told to mount
_NO_DISK = "unknown-block(0,0)"
_NEEDED = "CONFIG_VIRTIO_PCI=y, CONFIG_VIRTIO_BLK=y and CONFIG_EXT4_FS=y"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """The result of a run, where it is stored, and what it was made from."""

    verdict: Verdict
    evidence: Evidence
    run_dir: Path
    #: last lines of the host's console, for when it went wrong
    console_tail: tuple[str, ...] = ()


def run(
    plan: Plan,
    scenario: Scenario,
    *,
    results: Path,
    steps: Steps,
    argv: tuple[str, ...],
    accel_reason: str,
    take: TakeHost | None = None,
) -> RunResult:
    """Carry a plan out in a new run directory under ``results``.

    :param argv: the command line, the program's name first, for provenance.json.
    :param accel_reason: why this accelerator was chosen, for provenance.json.
    :param take: as of :func:`~liveupdate.run.bringup.bring_up`.
    :raises PlanError: nothing was started (unwritable directory, missing images).
    :raises KeyboardInterrupt: passed on after everything was taken down and stored.
    """
    # Events are stamped on arrival; a thread that computes must not keep the stamp waiting.
    sys.setswitchinterval(_SWITCH_S)
    record = RunDir.create(results, plan=plan, scenario=dump_scenario(scenario))
    steps.subscribe(record.log_step)
    tail: tuple[str, ...] = ()
    #: step and error of each that failed, the innermost first
    failed: list[tuple[str, str]] = []

    def note_failure(event: StepEvent) -> None:
        if event.kind == "failed":
            failed.append((event.name, str(event.fields.get("error"))))

    steps.subscribe(note_failure)
    total = Deadline.after(plan.timeouts.total_s, "the whole run (timeouts.total)")
    limit = ExitStack()
    try:
        limit.enter_context(whole(total))
        with bring_up(plan, record, steps, take) as bed:
            record.put(slots.PROVENANCE, describe(bed, argv=argv, accel_reason=accel_reason))
            try:
                with GuestObservers(bed) as watchers:
                    for hop in plan.hops:
                        is_untried = scenario.has_own_incoming and hop.number == 1
                        if not _hop(bed, hop, watchers, steps, is_untried=is_untried):
                            break
            finally:
                # a machine is always given the time to be taken down
                limit.close()
                tail = bed.host.console.tail(_TAIL_LINES)
    except Exception as error:
        # Before the first hop there is no machine that could have violated a guarantee.
        record.add_incident(Incident(kind=_kind(error), hop=0, text=_say(error)))
    finally:
        limit.close()
        step = next((name for name, error in failed if total.what in error), None)
        if step is not None:
            text = f"{total.exceeded()}; it ended in step '{step}'"
            record.add_incident(Incident(kind="deadline", hop=0, text=text))
        record.close()
    evidence = record.load_evidence()
    return RunResult(
        verdict=judge(plan, evidence), evidence=evidence, run_dir=record.path, console_tail=tail
    )


def _hop(
    bed: Testbed, hop: Hop, watchers: GuestObservers, steps: Steps, *, is_untried: bool
) -> bool:
    """Make one hop and store it; tell whether there is anything left to hop with.

    :param is_untried: the incoming kernel is a user's own and has never booted on this machine.
    """
    walk = LiveHop(bed, hop, watchers, steps)
    try:
        walk.run()
    except FreezeRefused as error:
        bed.record.add_incident(Incident(kind="freeze-refused", hop=hop.number, text=error.message))
        _roll_back(bed, hop, steps)
        return False
    except Exception as error:
        bed.record.add_incident(_incident(bed, hop, error, is_untried=is_untried))
        return False
    finally:
        walk.store()
    return True


def _roll_back(bed: Testbed, hop: Hop, steps: Steps) -> None:
    """Give the update up; what the guests do then is observed like after a hop."""
    with steps.step("roll-back", hop=hop.number):
        bed.call("abandon")
        time.sleep(bed.plan.observe.after_s)
        bed.record.set_rolled_back()


def _incident(bed: Testbed, hop: Hop, error: Exception, *, is_untried: bool) -> Incident:
    """Say what happened by what was seen: a panic on the console explains whatever came after."""
    panic = bed.host.console.panic
    if panic is not None:
        no_disk = explain_no_disk(panic.text, "incoming") if is_untried else None
        if no_disk is not None:
            return Incident(kind="harness", hop=hop.number, text=no_disk)
        return Incident(kind="panic", hop=hop.number, text=panic.text)
    events = bed.machine.qmp.events() if bed.machine is not None else ()
    for event in events:
        # A kexec never touches the platform's reset; -no-reboot turns any reset into the end.
        reason = str(event.data.get("reason", ""))
        if event.name == "SHUTDOWN" and reason.endswith("reset"):
            return Incident(kind="reset", hop=hop.number, text=reason)
    return Incident(kind=_kind(error), hop=hop.number, text=_say(error))


def _say(error: Exception) -> str:
    """Say what went wrong; what was raised on purpose speaks for itself."""
    if isinstance(error, (LiveUpdateError, CodecError, MalformedError, NotRam)):
        return str(error)
    log.error("an exception that was not expected", exc_info=error)
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"


def explain_no_disk(panic: str, kernel: str) -> str | None:
    """Say that a kernel has no driver for the disk, and what it needs; None: it panicked otherwise.

    :param panic: the console's line.
    :param kernel: ``outgoing`` or ``incoming``.
    """
    if _NO_DISK not in panic:
        return None
    return f"the {kernel} kernel sees no disk ({panic}): build it with {_NEEDED}"


def _kind(error: Exception) -> str:
    if isinstance(error, DeadlineExceeded):
        return "deadline"
    if isinstance(error, LostMachine):
        return "exited" if error.how == "exited" else "lost-agent"
    return "harness"
