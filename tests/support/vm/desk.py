# SPDX-License-Identifier: Apache-2.0
"""Where an operator sits: the calls, and the calls that die on the way, and the host behind."""

from __future__ import annotations

import os
import pty
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liveupdate.core.deadline import Deadline, wait_until
from liveupdate.core.errors import EvidenceError
from liveupdate.images import catalogue
from liveupdate.operate.steps import FORWARD
from liveupdate.operate.wal import read_journal
from liveupdate.transport.qmp import Qmp
from liveupdate.transport.ssh import Ssh
from tests.support.vm import cli, labmachine

GUESTS = {"vm0": "128M", "vm1": "128M", "vm2": "96M"}
#: from inside, and with nobody listening during the blackout
INSIDE = (
    "handover.kho",
    "handover.generation",
    "handover.session",
    "handover.state",
    "memory.content",
    "memory.placement",
    "guest.liveness",
)
#: more than any update has
_ALL = 50
_RECORD_S = 200.0
_AGENT = ("/usr/bin/python3", "-I", "-S", "/kit/agent/__main__.py")
#: prints the pid of the agent
_FIND_AGENT = """
import os
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        argv = open(f"/proc/{pid}/cmdline", "rb").read().split(b"\\0")
    except OSError:
        continue
    if b"/kit/agent/__main__.py" in argv:
        print(pid)
"""
#: a zombie has closed its files
_KILL_AND_WAIT = """
set -e
kill -9 "$0"
while grep -q '^State:.[^Z]' "/proc/$0/status" 2>/dev/null; do sleep 0.05; done
"""


class Stepped:
    """One ``apply --step``, which goes as far as it is let: there it can be killed at leisure."""

    def __init__(self, desk: Desk, kernel: str, host: str, options: tuple[str, ...]) -> None:
        self._known = desk.run_dirs()
        self._desk = desk
        self._terminal, theirs = pty.openpty()
        self._out, self._err = desk.config / "stdout", desk.config / "stderr"
        try:
            with self._out.open("wb") as out, self._err.open("wb") as err:
                self.child = subprocess.Popen(
                    [*cli.TOOL, *desk.argv(kernel, host), "--step", *options],
                    stdin=theirs,
                    stdout=out,
                    stderr=err,
                    env={**os.environ, **desk.env},
                )
        finally:
            os.close(theirs)

    def let(self, steps: int) -> None:
        """Say yes to so many more steps."""
        os.write(self._terminal, b"y\n" * steps)

    def wait_asked(self, step: str) -> None:
        """Wait until it asks whether it may do this step: nothing is on its way to the host."""

        def look() -> bool:
            assert self.child.poll() is None, self._said().explain()
            _, found, question = self._err.read_text().rpartition(f"{step}: ")
            return bool(found) and question.endswith("[y/N] ")

        wait_until(look, Deadline.after(_RECORD_S, f"to be asked about '{step}'"), interval_s=0.01)

    def let_through(self, step: str) -> None:
        """Let it go from its beginning to the end of this step."""
        self.let([each.name for each in FORWARD].index(step) + 1)
        self.wait_record(f"done:{step}")

    @property
    def run_dir(self) -> Path:
        return next(iter(self._desk.run_dirs() - self._known))

    def _journal(self) -> list[str]:
        try:
            return [f"{each.kind}:{each.step}" for each in read_journal(self.run_dir)]
        except (StopIteration, EvidenceError):
            return []

    def wait_record(self, record: str) -> None:
        """Wait until its journal has this, as ``done:prepare``."""

        def look() -> bool:
            assert self.child.poll() is None, self._said().explain()
            return record in self._journal()

        wait_until(look, Deadline.after(_RECORD_S, f"'{record}'"), interval_s=0.01)

    def kill(self) -> Path:
        """SIGKILL it and return its run directory."""
        self.child.kill()
        self.child.wait()
        self.close()
        return self.run_dir

    def end(self, steps: int = _ALL) -> cli.Said:
        """Let it go to its end, with so many steps more."""
        self.let(steps)
        self.child.wait(timeout=cli.TIMEOUT_S)
        self.close()
        return self._said()

    def _said(self) -> cli.Said:
        return cli.Said(
            returncode=self.child.wait(),
            stdout=self._out.read_text(),
            stderr=self._err.read_text(),
        )

    def close(self) -> None:
        if self.child.poll() is None:
            self.child.kill()
            self.child.wait()
        if self._terminal >= 0:
            os.close(self._terminal)
            self._terminal = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """The operator's own files, and the machine of the lab that is updated from here."""

    lab: labmachine.Lab
    config: Path
    results: Path

    @property
    def host(self) -> str:
        return str(self.lab.description)

    @property
    def env(self) -> Mapping[str, str]:
        return {"XDG_CONFIG_HOME": str(self.config)}

    def run_dirs(self) -> set[Path]:
        return {each for each in self.results.iterdir() if each.is_dir() and not each.is_symlink()}

    # --- the tool

    def call(self, *args: str) -> cli.Said:
        if args[0] in ("resume", "abort", "status") and "--host" not in args:
            args = (*args, "--host", self.host)
        return cli.call(*args, env=self.env)

    def argv(self, kernel: str, host: str = "") -> tuple[str, ...]:
        return (
            "apply", host or self.host, "--next-kernel", kernel, "--yes", "--json",
            "--observe", "1", "--results", str(self.results),
        )  # fmt: skip

    def apply(self, kernel: str, host: str = "") -> cli.Said:
        return self.call(*self.argv(kernel, host))

    @contextmanager
    def stepped(self, kernel: str, host: str = "", *options: str) -> Iterator[Stepped]:
        made = Stepped(self, kernel, host, options)
        try:
            yield made
        finally:
            made.close()

    def guests(self) -> Mapping[str, Any]:
        """The guests, as the host's agent has them from their VMMs."""
        said = self.call("guests", "list", self.host, "--json")
        assert said.returncode == 0, said.explain()
        return said.document

    def running(self) -> dict[str, int]:
        """VMM of each guest that runs."""
        return {
            name: each["pid"] for name, each in self.guests().items() if each["status"] == "running"
        }

    def start_guests(self, *names: str) -> None:
        """Start guests of :data:`GUESTS`."""
        rows = "".join(
            f'[[guest]]\nname = "{name}"\nindex = {index}\nmemory = "{memory}"\n'
            # on one CPU: two nested guests at a time reset under multi-threaded TCG (docs/adr/0006)
            f'disk = "d{index}"\npattern = "4M"\ncpu = 1\n'
            for index, (name, memory) in enumerate(GUESTS.items())
            if name in names
        )
        wanted = self.config / "guests.toml"
        wanted.write_text(rows)
        started = self.call("guests", "start", self.host, str(wanted))
        assert started.returncode == 0, started.explain()

    def describe(self, name: str, **lines: str) -> str:
        """Write another description of the machine, which has these values (TOML) instead."""
        text = self.lab.description.read_text()
        for key, value in lines.items():
            old = next(each for each in text.splitlines() if each.startswith(key + " "))
            text = text.replace(old, f"{key} = {value}")
        path = self.lab.directory / f"{name}.toml"
        path.write_text(text)
        return str(path)

    # --- the machine, behind the tool's back

    @contextmanager
    def network_cut(self) -> Iterator[None]:
        """The cable is out for the length of a block: nothing that is sent arrives."""
        self._set_link(up=False)
        try:
            yield
        finally:
            self._set_link(up=True)

    def _set_link(self, *, up: bool) -> None:
        deadline = Deadline.after(30.0, "the cable to be plugged in or out")
        with Qmp(self.lab.directory / "qmp") as qmp:
            qmp.connect(deadline)
            qmp.execute("set_link", {"name": "ssh", "up": up}, deadline)

    def on_host(self, *argv: str) -> str:
        """Run a command on the host."""
        with self._ssh() as ssh:
            done = ssh.run(argv, Deadline.after(60.0, f"'{argv[0]}'"), check=True)
        return done.stdout.decode().strip()

    def crash_agent(self) -> None:
        """SIGKILL the agent and start another when it is gone, as systemd would.

        Until the kernel has closed its files, /dev/liveupdate refuses another agent, which then
        cannot take the guests back: seen on a busy machine.
        """
        pid = self.on_host("python3", "-I", "-S", "-c", _FIND_AGENT)
        self.on_host("sh", "-c", _KILL_AND_WAIT, pid)
        with self._ssh() as ssh:
            detached = f"setsid {shlex.join(_AGENT)} </dev/null >/dev/null 2>&1 &"
            deadline = Deadline.after(30.0, "another agent to be started")
            ssh.run(("sh", "-c", detached), deadline, check=True)

    def _ssh(self) -> Ssh:
        images = catalogue.resolve(None, None)
        port = self.lab.description.read_text().partition("port = ")[2].split()[0]
        return Ssh.connect(
            host="127.0.0.1",
            port=int(port),
            user="root",
            key=Path(images.ssh_client_key),
            host_key=Path(images.ssh_host_key_pub),
            deadline=Deadline.after(60.0, "SSH to the host"),
        )


@contextmanager
def serve(base: Path) -> Iterator[Desk]:
    """A desk, and a machine with three guests that run.

    :param base: an empty directory.
    """
    disks = tuple(f"d{index}" for index in range(len(GUESTS)))
    with labmachine.serve(disks, memory="3G") as lab:
        port = lab.description.read_text().partition("port = ")[2].split()[0]
        config = base / "config"
        (config / "liveupdate").mkdir(parents=True)
        (config / "liveupdate" / "apply.toml").write_text(f'allow = ["127.0.0.1:{port}"]\n')
        (base / "runs").mkdir()
        desk = Desk(lab=lab, config=config, results=base / "runs")
        desk.start_guests(*GUESTS)
        yield desk


def check_of(result: Mapping[str, Any], check_id: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(each for each in result["checks"] if each["id"] == check_id)
    return found


def assert_updated(desk: Desk, said: cli.Said) -> None:
    assert said.returncode == 0, said.explain()
    document = said.document
    assert document["outcome"] == "updated", said.explain()
    for check in INSIDE:
        assert check_of(document["result"], check)["status"] == "PASS", said.explain()
    assert set(desk.running()) == set(GUESTS)


def assert_rolled_back(desk: Desk, said: cli.Said, vmms: Mapping[str, int]) -> None:
    """All guests live, in the very processes in which they were."""
    assert said.returncode == 5, said.explain()
    document = said.document
    assert document["outcome"] == "rolled-back", said.explain()
    for check in ("memory.content", "guest.liveness"):
        assert check_of(document["result"], check)["status"] == "PASS", said.explain()
    assert desk.running() == vmms
