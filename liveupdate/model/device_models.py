# SPDX-License-Identifier: Apache-2.0
"""The kinds of devices that can be passed through, as data; a kind is the name of QEMU's model."""

from __future__ import annotations

FED_KINDS = ("igb", "e1000e")
"""Network cards: the control host sends them frames, and keeps its own list of those."""

OWN_KINDS = ("nvme", "edu")
"""What does DMA because its driver wants it: an NVMe controller reads, an edu copies."""

DEVICE_KINDS = (*FED_KINDS, *OWN_KINDS)

UNSAVED_KINDS = OWN_KINDS
"""What QEMU cannot save and load: a machine with one of them is booted anew in each run."""

GUEST_KINDS = (*FED_KINDS, "nvme")
"""What our payload in a guest uses through its kernel's own drivers, when it is passed through."""

NAMESPACE_BYTES = 16 << 20
"""Size of the disk behind an emulated NVMe controller, in bytes."""
