# SPDX-License-Identifier: Apache-2.0
"""Checks that a run of the shipped default must pass."""

from __future__ import annotations

MUST_PASS = (
    "handover.kho",
    "handover.generation",
    "handover.session",
    "handover.state",
    "memory.content",
    "memory.placement",
    "guest.liveness",
    "guest.clock",
    "guest.network",
    "guest.storage",
)
