# SPDX-License-Identifier: Apache-2.0
"""Target ``ssh``: a machine that is already running, with the agent on it."""

from __future__ import annotations

from pathlib import Path

from liveupdate.core.paths import config_dir
from liveupdate.target.base import Located, Order
from liveupdate.target.ssh.host import SshHost
from liveupdate.target.ssh.spec import find_description, read_description


def locate(place: str) -> Located:
    """Return the path of the machine's description, and its content.

    :raises ScenarioError: there is no description, or it is wrong.
    """
    path = find_description(place, config_dir())
    machine = read_description(path)
    return Located(place=str(path), append=machine.append, guest_disks=machine.disks)


def make(order: Order) -> SshHost:
    """Return the machine, not entered; entering resets it."""
    return SshHost(
        read_description(Path(order.plan.place)),
        run_id=order.run_id,
        run_dir=order.run_dir,
        registry=order.registry,
    )
