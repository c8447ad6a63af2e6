# SPDX-License-Identifier: Apache-2.0
"""What adoption and survey need of the agent that holds the guests; for type checkers only."""

from __future__ import annotations

from typing import Protocol

from ..guest.guests import Guest
from ..guest.net import Network
from .handover import Handover
from .lock_record import Update


class Holder(Protocol):
    """The agent, as far as this room knows it."""

    guests: dict[str, Guest]
    network: Network
    handover: Handover
    update: Update

    def emit(self, name: str, data: dict[str, object]) -> None:
        """Send an event now, from any thread."""

    def watch(self, guest: Guest) -> None:
        """Follow a guest's payload and the end of its VMM."""
