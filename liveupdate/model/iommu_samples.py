# SPDX-License-Identifier: Apache-2.0
"""Samples of devices and their IOMMU, taken from outside: a part of the evidence."""

from __future__ import annotations

from collections.abc import Mapping

from liveupdate.model.base import Row, Value


class UnitSample(Row, frozen=True):
    """Registers of the DMA remapping unit, read from outside.

    An AMD unit's are control, device table and status, in this order.
    ``fault_records`` is the hex of all fault recording registers, "" when ``fsts`` was clear.
    """

    host_ns: int
    gsts: int
    rtaddr: int
    fsts: int
    fault_records: str


class BindingSample(Row, frozen=True):
    """What a watched requester was attached to, stored whenever it differs from the sample before.

    ``translation`` is a :class:`liveupdate.formats.iommu.Translation`; ``fault``: why its entry
    could not be followed, "" if it could.
    """

    host_ns: int
    requester: str
    translation: str
    domain_id: int | None
    top: int
    levels: int
    fault: str


class TableSample(Row, frozen=True):
    """Page tables of a watched requester that differ from the walk before the update.

    Kept whenever the set of changed words moved; ``pages`` 0: they are as they were again.
    ``top``: of the tables the requester used in that moment.
    """

    host_ns: int
    requester: str
    top: int
    pages: int
    first: str


class DeviceEvent(Row, frozen=True):
    """Something that QEMU's device models did; ``host_ns`` is when the trace file was read.

    ``what`` is a constant of :mod:`liveupdate.formats.qemu_trace`; ``where`` a PCI address or "";
    ``note`` the name or type of the device, or the access of a fault.
    """

    host_ns: int
    what: str
    where: str
    offset: int
    value: int
    note: str


class IommuWatch(Value, frozen=True, kw_only=True):
    """How the sampling went.

    :ivar interval_ns: what was asked for. ``cpu_ns``: processor time of the sampling thread.
    :ivar trace_lines: lines of QEMU's trace that were read, of any device.
    :ivar beats_ns: when lines were read in which QEMU's trace tells of our own look at it: the
        first, the last, and the longest time between two. None: it was not asked to.
    :ivar compared: how often page tables were compared, by requester. None: not counted.
    """

    samples: int
    began_ns: int
    ended_ns: int
    longest_hole_ns: int
    interval_ns: int
    cpu_ns: int
    trace_lines: int
    unit: str = "intel"
    beats_ns: tuple[int, int, int] | None = None
    compared: Mapping[str, int] | None = None


class ConfigFacts(Value, frozen=True, kw_only=True):
    """Configuration space of a watched device or of a bridge above it, read from outside.

    ``data`` is hex, :data:`liveupdate.formats.pci_config.CONFIG_BYTES` bytes of it.
    """

    function: str
    moment: str
    taken_ns: int
    data: str


class WatchedDevice(Value, frozen=True, kw_only=True):
    """A device of the plan as it was found: ``function`` is its PCI address.

    :ivar kind: QEMU's device model.
    :ivar bridges: addresses of the ports above it, the root port first.
    """

    name: str
    kind: str
    function: str
    bridges: tuple[str, ...]
