# SPDX-License-Identifier: Apache-2.0
"""Run the collection's playbooks as an operator does, and read what they say of each host."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from liveupdate.core import paths

BIN = Path(sys.executable).parent
ANSIBLE = paths.checkout_root() / "ansible"
#: far more than any playbook takes; what it calls has deadlines of its own
TIMEOUT_S = 900.0
_RECAP = re.compile(r"^(\S+) +: (ok=.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """What one call of ansible-playbook came to."""

    returncode: int
    output: str

    def recap(self, host: str) -> Mapping[str, int]:
        """Counts of a host: ok, changed, unreachable, failed, skipped, rescued, ignored."""
        for name, counts in _RECAP.findall(self.output):
            if name == host:
                return {key: int(n) for key, n in re.findall(r"(\w+)=(\d+)", counts)}
        raise AssertionError(f"no recap of '{host}': {self.explain()}")

    def explain(self) -> str:
        return f"exit {self.returncode}\n{self.output[-6000:]}"


class Playing:
    """A playbook that runs."""

    def __init__(self, child: subprocess.Popen[bytes], log: Path) -> None:
        self._child = child
        self._log = log

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def has_ended(self) -> bool:
        return self._child.poll() is not None

    def wait(self) -> Played:
        try:
            self._child.wait(TIMEOUT_S)
        finally:
            self.end()
        return Played(returncode=self._child.returncode, output=self.output)

    def end(self) -> None:
        if self._child.poll() is None:
            self._child.kill()
            self._child.wait()


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """Where an operator of a fleet sits: a directory with an inventory and a configuration."""

    directory: Path

    @property
    def env(self) -> Mapping[str, str]:
        return {
            "XDG_CONFIG_HOME": str(self.directory / "config"),
            "ANSIBLE_CONFIG": str(ANSIBLE / "ansible.cfg"),
            "ANSIBLE_HOME": str(self.directory / "ansible"),
            "ANSIBLE_FORCE_COLOR": "0",
            "ANSIBLE_NOCOLOR": "1",
        }

    def write_inventory(self, hosts: Mapping[str, Mapping[str, object]]) -> None:
        """Write the inventory: these hosts, and this machine as their control host."""
        inventory = {
            "liveupdate_hosts": {"hosts": hosts, "vars": {"ansible_user": "root"}},
            "liveupdate_control": {
                "hosts": {
                    "localhost": {
                        "ansible_connection": "local",
                        "ansible_python_interpreter": sys.executable,
                        # what the tests run in stands for an installed tool
                        "control_packages": [],
                        "control_venv": sys.prefix,
                    }
                }
            },
        }
        (self.directory / "inventory.json").write_text(json.dumps(inventory))

    def start(self, name: str, *args: str) -> Playing:
        """Start a playbook."""
        log = self.directory / f"{name}-{len(list(self.directory.glob('*.log')))}.log"
        with log.open("wb") as output:
            child = subprocess.Popen(
                [
                    BIN / "ansible-playbook", "-i", self.directory / "inventory.json",
                    ANSIBLE / "playbooks" / f"{name}.yml", *args,
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.directory,
                env={**os.environ, **self.env},
            )  # fmt: skip
        return Playing(child, log)

    def play(self, name: str, *args: str) -> Played:
        """Run a playbook to its end."""
        return self.start(name, *args).wait()
