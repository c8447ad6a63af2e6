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
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from liveupdate.cli.output import log, one_line
from liveupdate.core.errors import PlanError, ScenarioError

if TYPE_CHECKING:
    from liveupdate.cli.app import App
    from liveupdate.core.steps import Steps
    from liveupdate.evidence import RunDir
    from liveupdate.model.plan import KernelImage, Plan
    from liveupdate.operate.drive import Driver
    from liveupdate.operate.journal import HostView
    from liveupdate.operate.preflight import Local
    from liveupdate.operate.steps import Step
    from liveupdate.operate.survey import Survey
    from liveupdate.operate.wal import Wal
    from liveupdate.target.ssh.spec import LabMachine

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
    from liveupdate.core.paths import config_dir
    from liveupdate.target.ssh.spec import find_description, read_description

    path = find_description(name, config_dir())
    return Place(name=name, path=path, machine=read_description(path))


def check_allowed(place: Place) -> None:
    """Refuse a host that ``apply.toml`` does not allow.

    :raises ScenarioError: the host is not in the list, or the file cannot be read.
    """
    from liveupdate.core.paths import config_dir

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


def confirm(question: str, *, is_sure: bool) -> None:
    """Ask the operator for a confirmation at the terminal.

    :raises ScenarioError: stdin is no terminal.
    :raises PlanError: the operator did not confirm.
    """
    if is_sure:
        return
    if not sys.stdin.isatty():
        raise ScenarioError(
            "cannot ask for a confirmation: stdin is no terminal", where="--yes", hint="pass --yes"
        )
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise PlanError("not started: you did not confirm")


def ask_before(step: Step) -> bool:
    """For ``--step``: ask before each step."""
    sys.stderr.write(f"{step.name}: {step.does}\n  risk: {step.risk}\n  back: {step.rollback}\n")
    sys.stderr.write("do this step? [y/N] ")
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
    from liveupdate.core.deadline import Deadline
    from liveupdate.core.errors import LostMachine
    from liveupdate.model.codec import CodecError
    from liveupdate.operate.survey import read_survey
    from liveupdate.planning.mechanisms import MECHANISMS
    from liveupdate.target.ssh.held import ask
    from liveupdate.transport.ssh import Ssh

    machine = place.machine
    deadline = Deadline.after(limit_s, f"host '{place.name}' to be asked")
    options = sorted({name for each in MECHANISMS.values() for name in each.kconfig})
    with Ssh.connect(
        host=machine.address, port=machine.port, user=machine.user, key=machine.key,
        host_key=machine.host_key, deadline=deadline,
    ) as ssh:  # fmt: skip
        answer = ask(ssh, "survey", {"options": options}, deadline)
    try:
        survey = read_survey(answer)
    except CodecError as error:
        raise LostMachine(
            f"the agent of '{place.name}' speaks another protocol: {error}", how="garbled"
        ) from error
    return survey, console_trouble(machine)


def console_trouble(machine: LabMachine) -> str:
    """Return why a console cannot be read, "" if it can; a console command is not tried."""
    from liveupdate.target.ssh.held import NO_CONSOLE
    from liveupdate.target.ssh.spec import ConsoleSpec

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
    from liveupdate.formats.kernelimage import KernelImageError, read_kernel_image
    from liveupdate.operate.preflight import Local
    from liveupdate.planning.mechanisms import MECHANISMS

    try:
        data = Path(incoming.path).read_bytes()
        config = read_kernel_image(data).config
    except (OSError, KernelImageError) as error:
        raise PlanError(f"kernel '{incoming.path}': {error}") from error
    existing = next(path for path in (directory, *directory.parents) if path.is_dir())
    mechanism = MECHANISMS["luo-memfd"]
    options = None if config is None else {name: config.get(name) for name in mechanism.kconfig}
    return Local(
        incoming=incoming,
        incoming_bytes=len(data),
        incoming_options=options,
        outgoing=outgoing,
        run_free_bytes=shutil.disk_usage(existing).free,
        console=console,
        digests=digests,
        mechanism=mechanism,
    )


# --- at work


@dataclass(slots=True)
class Work:
    """An update that this process works on."""

    plan: Plan
    record: RunDir
    journal: Wal
    driver: Driver
    steps: Steps
    notes: list[str] = field(default_factory=list)


@contextmanager
def at_work(
    app: App,
    place: Place,
    plan: Plan,
    record: RunDir,
    journal: Wal,
    local: Local,
    *,
    steps: Steps,
    by_step: bool,
    patience_s: float,
) -> Iterator[Work]:
    """Yield what is needed to work on an update; on leaving, the host stays locked."""
    from dataclasses import replace

    from liveupdate.cli.results import Outcome, store_reports
    from liveupdate.core.paths import runtime_dir
    from liveupdate.model.verdict import Verdict
    from liveupdate.operate.drive import Driver
    from liveupdate.operate.hostside import HostSide
    from liveupdate.target.machines import Registry
    from liveupdate.target.ssh.held import HeldHost

    update = str((journal.state.begin or {}).get("update"))
    # each process has console logs of its own
    parts = sum(record.kind == "note" for record in journal.records)
    console_dir = record.path if not parts else record.path / f"resumed-{parts}"

    console_dir.mkdir(exist_ok=True)

    def conclude(verdict: Verdict) -> Verdict:
        evidence = record.load_evidence()
        outcome = Outcome(plan=plan, evidence=evidence, verdict=verdict, run_dir=record.path)
        return store_reports(outcome).verdict

    host = HostSide(
        name=place.name,
        plan=plan,
        record=record,
        local=replace(local, own=update),
        steps=steps,
        host=HeldHost(
            place.machine,
            run_id=f"{record.run_id}-{secrets.token_hex(2)}",
            run_dir=record.path,
            registry=Registry(runtime_dir()),
            update=update,
            owner=owner(),
            console_dir=console_dir,
        ),
        argv=app.command_line,
    )
    notes: list[str] = []

    def tell(text: str) -> None:
        notes.append(text)
        log(f"liveupdate: {one_line(text)}")

    driver = Driver(
        journal=journal,
        host=host,
        steps=steps,
        say=tell,
        may=ask_before if by_step else lambda _step: True,
        conclude=conclude,
        patience_s=patience_s,
    )
    try:
        yield Work(
            plan=plan, record=record, journal=journal, driver=driver, steps=steps, notes=notes
        )
    finally:
        host.close()


def need_terminal(option: str) -> None:
    """Refuse an option that asks questions when stdin is no terminal.

    :raises ScenarioError: stdin is no terminal.
    """
    if not sys.stdin.isatty():
        hint = "say --yes" if option == "--yes" else "leave it out"
        raise ScenarioError("cannot ask questions: stdin is no terminal", where=option, hint=hint)


@contextmanager
def shown(view: AbstractContextManager[object], *, by_step: bool) -> Iterator[None]:
    """Show steps as they run, unless questions are asked on the same terminal."""
    if by_step:
        yield
        return
    with view:
        yield


def view_host(place: Place) -> HostView:
    """Ask the host for its state without disturbing a process that works on it.

    :raises LiveUpdateError: the host does not answer.
    """
    from liveupdate.core.deadline import Deadline
    from liveupdate.operate.journal import status_view
    from liveupdate.target.ssh.held import ask
    from liveupdate.transport.ssh import Ssh

    machine = place.machine
    deadline = Deadline.after(STATUS_S, f"host '{place.name}' to be asked")
    with Ssh.connect(
        host=machine.address, port=machine.port, user=machine.user, key=machine.key,
        host_key=machine.host_key, deadline=deadline,
    ) as ssh:  # fmt: skip
        return status_view(ask(ssh, "update_status", {}, deadline))
