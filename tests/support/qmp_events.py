# SPDX-License-Identifier: Apache-2.0
"""Waiting for an event of a monitor."""

from __future__ import annotations

from liveupdate.core.deadline import Deadline, wait_until
from liveupdate.transport.monitor import Monitor, QmpEvent


def find_event(monitor: Monitor, name: str, deadline: Deadline) -> QmpEvent:
    """Return the first event of that name, waiting for it."""

    def look() -> QmpEvent | None:
        return next((event for event in monitor.events() if event.name == name), None)

    return wait_until(look, deadline)
