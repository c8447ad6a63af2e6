# SPDX-License-Identifier: Apache-2.0
"""Two-stage programs: stage 1 on the outgoing kernel, a kexec, stage 2 on the incoming one.

What the kernel's own live update tests are: the program leaves something in stage 1 and looks for
it in stage 2. It passes when both exit with 0, and is skipped when one exits with 4 (KSFT_SKIP). A
stage that hangs, a kexec that did not happen, or a host that does not come back, is an ERROR: it
says nothing of what was preserved. So is a panic before stage 1 has ended.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from liveupdate.core.deadline import Deadline, whole
from liveupdate.core.errors import DeadlineExceeded, LiveUpdateError, OutcomeUnknown
from liveupdate.core.steps import Steps
from liveupdate.model.plan import Plan
from liveupdate.model.verdict import Outcome
from liveupdate.run.runner import explain_no_disk
from liveupdate.target.base import Host
from liveupdate.transport.ssh import Ssh

#: tools/testing/selftests/kselftest.h
KSFT_SKIP = 4
CALL_S = 30.0
PLACE = "/tmp/stage"
#: The agent holds /dev/liveupdate, which one process may have open; init does not start it again.
_END_AGENT = (
    # a pattern that does not match this script's own command line
    "for p in /proc/[0-9]*; do grep -qs 'kit/[a]gent' $p/cmdline && kill ${p#/proc/}; done; "
    "sleep 0.2"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What one stage came to; ``boot_id`` and ``release`` tell the two kernels apart."""

    number: int
    boot_id: str
    release: str
    status: int
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """What a program came to. ``reason`` is "" for PASS; ``console`` has last lines otherwise."""

    name: str
    outcome: Outcome
    reason: str
    stages: tuple[Stage, ...]
    timed_out: bool = False
    console: tuple[str, ...] = ()


def run_stages(
    host: Host,
    plan: Plan,
    program: Path,
    steps: Steps,
    *,
    files: Sequence[Path] = (),
    flag: str = "--stage",
    timeout_s: float = 60.0,
    is_untried: bool = False,
) -> Staged:
    """Take a program through both stages on a host that has just been switched on.

    :param files: put beside the program before each stage.
    :param flag: the program's option for the number of its stage.
    :param timeout_s: how long a stage may take.
    :param is_untried: the incoming kernel is a user's own and has never booted on this machine.
    """
    stages: list[Stage] = []
    total = Deadline.after(plan.timeouts.total_s, f"the whole of {program.name} (timeouts.total)")

    def end(outcome: Outcome, reason: str, *, timed_out: bool = False) -> Staged:
        panic = host.console.panic
        if panic is not None:
            outcome, reason = _judge_panic(panic.text, stages, is_untried=is_untried)
            timed_out = False
        console = () if outcome is Outcome.PASS else host.console.tail()
        return Staged(
            name=program.name, outcome=outcome, reason=reason, stages=tuple(stages),
            timed_out=timed_out, console=console,
        )  # fmt: skip

    try:
        with whole(total):
            up = Deadline.after(plan.timeouts.boot_s, "sshd on the outgoing kernel (timeouts.boot)")
            for number in (1, 2):
                with steps.step(f"{program.name}: stage {number}"), host.ssh(up) as ssh:
                    stage = _run_stage(ssh, number, program, files, flag, timeout_s)
                    stages.append(stage)
                    # before its status: on the same boot it says nothing of a kexec
                    if number == 2 and stage.boot_id == stages[0].boot_id:
                        reason = "both stages ran on one boot: there was no kexec"
                        return end(Outcome.ERROR, reason)
                    if stage.status:
                        skipped = stage.status == KSFT_SKIP
                        reason = f"stage {number} ended with {stage.status}"
                        return end(Outcome.SKIP if skipped else Outcome.FAIL, reason)
                    if number == 1:
                        up = _jump(ssh, plan)
    except DeadlineExceeded as error:
        return end(Outcome.ERROR, str(error), timed_out=True)
    except LiveUpdateError as error:
        return end(Outcome.ERROR, str(error))
    return end(Outcome.PASS, "")


def give_time(plan: Plan, timeout_s: float) -> Plan:
    """Return the plan with a ``timeouts.total`` in which two stages of ``timeout_s`` s can end."""
    times = plan.timeouts
    needed_s = times.boot_s + times.jump_s + times.incoming_s + 2 * timeout_s
    return replace(plan, timeouts=replace(times, total_s=max(times.total_s, needed_s)))


def _judge_panic(text: str, stages: Sequence[Stage], *, is_untried: bool) -> tuple[Outcome, str]:
    """Return what a panic comes to, and why: an update that had not begun cannot have failed."""
    if not stages:
        no_disk = explain_no_disk(text, "outgoing")
        return Outcome.ERROR, no_disk or f"panic before stage 1 had ended: {text}"
    no_disk = explain_no_disk(text, "incoming") if is_untried else None
    return (Outcome.ERROR, no_disk) if no_disk else (Outcome.FAIL, f"panic: {text}")


def _run_stage(
    ssh: Ssh, number: int, program: Path, files: Sequence[Path], flag: str, timeout_s: float
) -> Stage:
    def call(*argv: str) -> str:
        done = ssh.run(argv, Deadline.after(CALL_S, f"'{argv[0]}' on the host"), check=True)
        return done.stdout.decode(errors="replace").strip()

    call("sh", "-c", _END_AGENT)
    call("mkdir", "-p", PLACE)
    for path in (program, *files):
        deadline = Deadline.after(CALL_S, f"the copy of {path.name}")
        ssh.put(path.read_bytes(), f"{PLACE}/{path.name}", deadline, mode=0o755)
    boot_id = call("cat", "/proc/sys/kernel/random/boot_id")
    release = call("uname", "-r")
    # with stderr in its place between the lines of stdout
    script = f'cd {PLACE} && exec "./$0" "$@" 2>&1'
    what = f"stage {number} of {program.name}"
    done = ssh.run(
        ("sh", "-c", script, program.name, flag, str(number)), Deadline.after(timeout_s, what)
    )
    return Stage(
        number=number,
        boot_id=boot_id,
        release=release,
        status=done.status,
        output=done.stdout.decode(errors="replace"),
    )


def _jump(ssh: Ssh, plan: Plan) -> Deadline:
    """Start the kexec; return the deadline for sshd on the incoming kernel.

    :raises LiveUpdateError: ``kexec -e`` returned.
    """
    deadline = Deadline.after(CALL_S, "the load of the incoming kernel")
    append = f"--command-line={plan.hops[0].append}"
    ssh.run(("kexec", "-s", "-l", "/kit/kernel-b", append), deadline, check=True)
    # One for both: the outgoing kernel ends without a word to the network, and the line is only
    # cut when the incoming kernel answers for it.
    up = Deadline.after(
        plan.timeouts.jump_s + plan.timeouts.incoming_s,
        "the outgoing kernel to jump and sshd on the incoming kernel"
        " (timeouts.jump + timeouts.incoming)",
    )
    with contextlib.suppress(OutcomeUnknown):  # the line is cut by what was asked for
        done = ssh.run(("kexec", "-e", "-x"), up)
        # A negative status is also seen while a cut line is taken down; boot_id tells then.
        if done.status >= 0:
            said = (done.stderr or done.stdout).decode(errors="replace").strip()
            raise LiveUpdateError(
                f"the kexec did not happen: 'kexec -e' returned with {done.status}:"
                f" {said[-2000:] or 'no output'}"
            )
    return up


def as_ktap(results: Sequence[Staged]) -> str:
    """Return one KTAP document: a test for each program, its stages as subtests.

    What a stage printed is below it, as KTAP where it is KTAP, or else as diagnostics.
    """
    lines = ["KTAP version 1", f"1..{len(results)}"]
    for number, staged in enumerate(results, 1):
        if staged.stages:
            lines += ["  KTAP version 1", f"  1..{len(staged.stages)}"]
        for stage in staged.stages:
            is_ktap = "TAP version" in stage.output
            printed = filter(None, map(_plain, stage.output.splitlines()))
            lines += [f"    {line}" if is_ktap else f"  # {line}" for line in printed]
            lines.append(f"  # boot_id {stage.boot_id}, {stage.release}")
            ok = "ok" if stage.status in (0, KSFT_SKIP) else "not ok"
            skip = " # SKIP" if stage.status == KSFT_SKIP else ""
            lines.append(f"  {ok} {stage.number} stage {stage.number}{skip}")
        lines += [f"# {_plain(line)}" for line in (staged.reason, *staged.console) if line]
        ok = "ok" if staged.outcome in (Outcome.PASS, Outcome.SKIP) else "not ok"
        directive = {Outcome.SKIP: " # SKIP", Outcome.ERROR: " # ERROR"}.get(staged.outcome, "")
        name = _plain(staged.name).replace("#", "")
        lines.append(f"{ok} {number} {name}{' # TIMEOUT' if staged.timed_out else directive}")
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Keep what a program printed from being taken for something else."""
    return re.sub(r"[\x00-\x1f\x7f]+", " ", text).rstrip()
