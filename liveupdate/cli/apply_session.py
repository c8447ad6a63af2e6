# SPDX-License-Identifier: Apache-2.0
"""What ``apply``, ``status``, ``resume`` and ``abort`` share: find a host and work on it."""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import socket
import sys
import tomllib
from collections.abc import Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from liveupdate.cli import results
from liveupdate.cli.app import App
from liveupdate.cli.apply_text import document
from liveupdate.cli.output import log, log_error, one_line, say, say_json
from liveupdate.cli.prepare_run import find_existing
from liveupdate.cli.view import show_steps
from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import (
    BuildError,
    DeadlineExceeded,
    LiveUpdateError,
    LostMachine,
    PlanError,
    ScenarioError,
)
from liveupdate.core.paths import config_dir, runtime_dir
from liveupdate.core.steps import Steps
from liveupdate.evidence import RunDir
from liveupdate.images.kernel_facts import read_facts
from liveupdate.model.codec import CodecError
from liveupdate.model.plan import KernelImage, Plan
from liveupdate.model.verdict import ExitCode, Verdict
from liveupdate.operate.bundle import Bundle, make_bundle
from liveupdate.operate.drive import Driver, Ended, Refused, Stopped
from liveupdate.operate.hostside import HostSide
from liveupdate.operate.journal import HostView, status_view
from liveupdate.operate.preflight import Finding, Local
from liveupdate.operate.steps import Step
from liveupdate.operate.survey import Survey, read_survey
from liveupdate.operate.wal import Wal
from liveupdate.planning.mechanisms import MECHANISMS
from liveupdate.target.machines import Registry
from liveupdate.target.ssh.held import NO_CONSOLE, HeldHost, ask
from liveupdate.target.ssh.spec import ConsoleSpec, LabMachine, find_description, read_description

SURVEY_S = 60.0
STATUS_S = 15.0
_MAX_CONFIG_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A host: its name as typed, its description, and the path of that description."""

    name: str
    path: Path
    machine: LabMachine

    @property
    def address(self) -> str:
        """The host as ``ADDRESS:PORT``, the form that the allow-list uses."""
        return f"{self.machine.address}:{self.machine.port}"


def find_place(name: str) -> Place:
    """Find the description of a host.

    :raises ScenarioError: there is none, or it is wrong.
    """
    path = find_description(name, config_dir())
    return Place(name=name, path=path, machine=read_description(path))


def find_place_of(run_dir: Path, begin: Mapping[str, object], name: str | None) -> Place:
    """Find the host of an update that a run directory is of.

    The directory may come from another user, so it does not choose whose console and power commands
    are run: the description is among the user's own machines, or named by the user.

    :param name: the host as the user typed it; None: not typed.
    :raises ScenarioError: there is none such, or it is of another machine.
    """
    path = Path(str(begin.get("place", "")))
    machines = config_dir() / "machines"
    if name is None and path.parent.resolve() != machines.resolve():
        raise ScenarioError(
            f"its host is described in '{path}', which is not in '{machines}'",
            where=str(run_dir),
            hint="name the host with --host",
        )
    place = find_place(name if name is not None else str(machines / path.name))
    if place.address != begin.get("address"):
        raise ScenarioError(
            f"it is an update of {begin.get('address')}, '{place.name}' is {place.address}",
            where=str(run_dir),
        )
    return replace(place, name=str(begin.get("host", place.name)))


def check_allowed(place: Place) -> None:
    """Refuse a host that ``apply.toml`` does not allow.

    :raises ScenarioError: the host is not in the list, or the file cannot be read.
    """
    path = config_dir() / "apply.toml"
    hint = f'add it: allow = ["{place.address}"]'
    try:
        with path.open("rb") as file:
            value = tomllib.loads(file.read(_MAX_CONFIG_BYTES).decode())
    except FileNotFoundError as error:
        raise ScenarioError("there is no allow-list", where=str(path), hint=hint) from error
    except (OSError, ValueError) as error:
        raise ScenarioError(f"cannot be read: {error}", where=str(path)) from error
    allowed = value.get("allow")
    if not isinstance(allowed, list) or not all(isinstance(each, str) for each in allowed):
        raise ScenarioError("'allow' is not a list of 'ADDRESS:PORT'", where=str(path), hint=hint)
    names = {place.address}
    if place.machine.port == 22:
        names.add(place.machine.address)
    if not names & set(allowed):
        raise ScenarioError(f"{place.address} is not in 'allow'", where=str(path), hint=hint)


def need_terminal(option: str) -> None:
    """Refuse an option that asks questions when stdin is no terminal.

    :raises ScenarioError: stdin is no terminal.
    """
    if not sys.stdin.isatty():
        hint = "say --yes" if option == "--yes" else "leave it out"
        raise ScenarioError("cannot ask questions: stdin is no terminal", where=option, hint=hint)


def confirm(question: str) -> None:
    """Ask the operator for a confirmation at the terminal.

    :raises PlanError: the operator did not confirm.
    """
    if not _ask(question):
        raise PlanError("not started: you did not confirm")


def ask_before(step: Step) -> bool:
    """For ``--step``: ask before each step."""
    return _ask(
        f"{step.name}: {step.does}\n  risk: {step.risk}\n  back: {step.rollback}\ndo this step?"
    )


def _ask(question: str) -> bool:
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def owner() -> str:
    """Return ``user@machine``, which the host shows to other operators while it is locked."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"[:200]


# --- before anything is begun


def survey_host(place: Place, limit_s: float = SURVEY_S) -> tuple[Survey, str]:
    """Ask the host for its state; the host is not locked.

    Return the state, and why the console cannot be read ("": it can be read).

    :param limit_s: for how long the host may be unreachable, in seconds.
    :raises LiveUpdateError: the host cannot be reached, or does not run the agent of liveupdate.
    """
    options = sorted({name for each in MECHANISMS.values() for name in each.kconfig})
    deadline = Deadline.after(limit_s, f"host '{place.name}' to be asked")
    answer = ask(place.machine, "survey", {"options": options}, deadline)
    try:
        survey = read_survey(answer)
    except CodecError as error:
        raise LostMachine(
            f"the agent of '{place.name}' speaks another protocol: {error}", how="garbled"
        ) from error
    return survey, console_trouble(place.machine)


def console_trouble(machine: LabMachine) -> str:
    """Return why a console cannot be read, "" if it can; a console command is not tried."""
    spec = machine.console
    if spec == ConsoleSpec():
        return NO_CONSOLE
    if spec.socket:
        try:
            with socket.socket(socket.AF_UNIX) as link:
                link.settimeout(5.0)
                link.connect(spec.socket)
        except OSError as error:
            return f"'{spec.socket}': {error.strerror or error}"
    elif spec.device and not os.access(spec.device, os.R_OK | os.W_OK):
        return f"'{spec.device}' cannot be opened"
    return ""


def local_facts(
    incoming: KernelImage,
    outgoing: KernelImage | None,
    directory: Path,
    console: str,
    digests: bool,
) -> Local:
    """Collect the facts of this machine that the preflight needs.

    :raises PlanError: the image cannot be read.
    """
    try:
        config = read_facts(Path(incoming.path)).config
    except BuildError as error:
        raise PlanError(error.message) from error
    mechanism = MECHANISMS["luo-memfd"]
    options = None if config is None else {name: config.get(name) for name in mechanism.kconfig}
    return Local(
        incoming=incoming,
        incoming_bytes=Path(incoming.path).stat().st_size,
        incoming_options=options,
        outgoing=outgoing,
        run_free_bytes=shutil.disk_usage(find_existing(directory)).free,
        console=console,
        digests=digests,
        mechanism=mechanism,
    )


def view_host(place: Place) -> HostView:
    """Ask the host for its state without disturbing a process that works on it.

    :raises LiveUpdateError: the host does not answer.
    """
    deadline = Deadline.after(STATUS_S, f"host '{place.name}' to be asked")
    return status_view(ask(place.machine, "update_status", {}, deadline))


# --- at work


@dataclass(slots=True, kw_only=True)
class Session:
    """The work of this process on an update, and what it prints of it."""

    app: App
    verb: str
    place: Place
    plan: Plan
    record: RunDir
    journal: Wal
    local: Local
    by_step: bool
    patience_s: float
    as_json: bool
    findings: tuple[Finding, ...] = ()

    def work(self, *, reset: bool = False) -> int:
        """Drive the update, print its outcome and return the exit status; the host stays locked.

        :param reset: reset the host first.
        """
        # questions are asked on the terminal that would show the steps
        view = nullcontext(Steps()) if self.by_step else show_steps(self.app)
        try:
            with view as steps, closing(self._driver(steps)) as driver:
                if reset:
                    driver.reset_host()
                ended = driver.run("abort" if self.verb == "abort" else "resume")
        except LiveUpdateError as error:
            is_late = isinstance(error, DeadlineExceeded)
            code = ExitCode.TIMEOUT if is_late else ExitCode.ERROR
            outcome = {Refused: "refused", Stopped: "stopped"}.get(
                type(error), "unreachable" if is_late else "interrupted"
            )
            self._say_document(outcome, code, str(error))
            log_error(error)
            self._say_what_next()
            return code
        except BaseException:
            log("liveupdate: interrupted; the host stays as it is")
            self._say_what_next()
            raise
        return self._finish(ended)

    def _driver(self, steps: Steps) -> Driver:
        steps.subscribe(self.record.log_step)
        record = self.record
        update = str((self.journal.state.begin or {}).get("update"))
        # each process has console logs of its own
        parts = sum(each.kind == "note" for each in self.journal.records)
        console_dir = record.path / f"resumed-{parts}" if parts else record.path
        console_dir.mkdir(exist_ok=True)
        host = HeldHost(
            self.place.machine,
            run_id=f"{record.run_id}-{secrets.token_hex(2)}",
            run_dir=record.path,
            registry=Registry(runtime_dir()),
            update=update,
            owner=owner(),
            console_dir=console_dir,
        )
        return Driver(
            journal=self.journal,
            host=HostSide(
                name=self.place.name,
                plan=self.plan,
                record=record,
                local=replace(self.local, own=update),
                steps=steps,
                host=host,
                argv=self.app.command_line,
            ),
            say=lambda text: log(f"liveupdate: {one_line(text)}"),
            may=ask_before if self.by_step else lambda _step: True,
            conclude=self._conclude,
            patience_s=self.patience_s,
        )

    def _conclude(self) -> Verdict:
        """Judge, and store the reports."""
        judged = results.judge_record(self.record, self.plan, results.required_checks())
        return results.store_reports(judged).verdict

    def _finish(self, ended: Ended) -> int:
        """Seal the bundle, print the outcome of the update, and return the exit status."""
        self.app.has_verdict = True
        run_dir = self.record.path
        bundle = make_bundle(run_dir)
        if self.as_json:
            self._say_document(ended.outcome, ended.exit_code, ended.why, bundle)
            return ended.exit_code
        try:
            judged = results.judge_directory(run_dir, results.required_checks())
            results.show(judged, self.app, as_json=False)
        except LiveUpdateError as error:
            say(f"no verdict: {one_line(str(error))}")
        why = f" ({one_line(ended.why)})" if ended.why else ""
        say(f"\n{ended.outcome}: '{self.place.name}'{why}")
        say(f"run directory: {run_dir}")
        say(f"bundle: {bundle.path}\n  sha256 {bundle.sha256}, {bundle.files} files")
        return ended.exit_code

    def _say_document(
        self, outcome: str, exit_code: int, why: str, bundle: Bundle | None = None
    ) -> None:
        if self.as_json:
            say_json(
                document(
                    self.verb, self.place.name, outcome, exit_code, why, self.findings,
                    self.record.path, self.journal.records, bundle,
                )
            )  # fmt: skip

    def _say_what_next(self) -> None:
        """Print the commands that continue or roll back an update that has not ended."""
        run_dir, state = self.record.path, self.journal.state
        log(f"run directory: {run_dir}")
        if state.outcome is None:
            log(f"to continue:  liveupdate resume {run_dir}")
            if not state.is_past:
                log(f"to roll back: liveupdate abort {run_dir}")
