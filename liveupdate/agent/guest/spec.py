# SPDX-License-Identifier: Apache-2.0
"""The description of a guest. It comes from the control host, and again, untrusted, from the
manifest.
"""

from __future__ import annotations

from ..base.fast_stdlib import TYPE_CHECKING
from ..base.names import NAME_CHARS, SpecError, check_name

if TYPE_CHECKING:
    from .kvm_clock import SavedClock
    from .passthrough import Assigned
    from .state import StateSum

MIB = 1 << 20
U64_MAX = (1 << 64) - 1
_DISK_CHARS = NAME_CHARS | {"/"}
#: the kernel's COMMAND_LINE_SIZE
APPEND_MAX = 2048


def _integer(raw: dict[str, object], key: str, low: int, high: int, default: int | None) -> int:
    value = raw.get(key, default)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 20:
        value = int(value)  # u64 may travel as decimal strings
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise SpecError(f"guest: '{key}' is {value!r}, must be an integer in {low}..{high}")
    return value


def _text(raw: dict[str, object], key: str, limit: int, default: str) -> str:
    value = raw.get(key)
    if value is None:
        return default
    if not isinstance(value, str) or len(value) > limit or not value.isprintable():
        raise SpecError(f"guest: '{key}' must be a printable string of at most {limit}")
    return value


def _devices(raw: object) -> list[Assigned]:
    if not raw:
        return []
    from .passthrough import read_devices  # costs start-up time, and most guests have none

    return read_devices(raw)


class GuestSpec:
    """Validated description of one guest."""

    def __init__(self, raw: object) -> None:
        """:raises SpecError: a field is missing, of the wrong type or out of range."""
        if not isinstance(raw, dict):
            raise SpecError("guest: must be an object")
        self.name = check_name(raw.get("name"))
        self.index = _integer(raw, "index", 0, 255, None)
        self.memory_bytes = _integer(raw, "memory_bytes", 16 * MIB, 1 << 44, None)
        if self.memory_bytes % (2 * MIB):
            raise SpecError("guest: 'memory_bytes' must be a multiple of 2 MiB")
        self.vcpus = _integer(raw, "vcpus", 1, 255, 1)
        self.pattern_bytes = _integer(raw, "pattern_bytes", 0, self.memory_bytes, 0)
        self.seed = _integer(raw, "seed", 0, U64_MAX, 0)
        self.append = _text(raw, "append", APPEND_MAX, "")
        #: serial of the virtio-blk disk that is the guest's, or a /dev path
        self.disk = _text(raw, "disk", 64, self.name)
        if not _DISK_CHARS.issuperset(self.disk):  # becomes part of a VMM option
            raise SpecError(f"guest: 'disk' is {self.disk!r}, must be a serial or a /dev path")
        #: not empty: the disk is a bootable image of the user, no kernel is given
        self.image = _text(raw, "image", 4096, "")
        self.qga = raw.get("qga") is True
        #: digest its RAM at the freeze and after the kexec, where it cannot be read from
        #: outside
        self.digest = raw.get("digest") is True
        #: read what KVM knows of its vCPUs when they have stopped and before they run again
        self.vcpu_state = raw.get("vcpu_state") is True
        #: its clocks go on while it does not run
        self.has_continuous_clock = raw.get("has_continuous_clock") is True
        #: the only CPU its VMM may use; -1: any
        self.cpu = _integer(raw, "cpu", -1, 4095, -1)
        #: what is passed through to it
        self.devices = _devices(raw.get("devices") or [])

    def to_json(self) -> dict[str, object]:
        """Return the fields as JSON, for the manifest."""
        return {**vars(self), "devices": [each.to_json() for each in self.devices]}

    @property
    def session(self) -> str:
        """Name of the LUO session that carries this guest."""
        return f"lu.guest.{self.name}"

    @property
    def mac(self) -> str:
        """MAC address of its network card."""
        return f"52:54:00:20:00:{self.index:02x}"

    @property
    def tap(self) -> str:
        """Name of its tap."""
        return f"lu{self.index}"

    @property
    def pages(self) -> int:
        """Number of pages of 4 KiB in its RAM."""
        return self.memory_bytes // 4096

    def kernel_append(self) -> str:
        """Return the guest kernel's command line: the agent's words first, then the caller's."""
        return (
            "console=ttyS0 panic=-1 no_timer_check quiet "
            f"lu.pattern={self.pattern_bytes} lu.seed={self.seed} lu.name={self.name} "
            f"{'lu.nvme ' if any(each.kind == 'nvme' for each in self.devices) else ''}"
            f"{self.append}"
        ).strip()


class GuestEntry:
    """One guest in the manifest: what the outgoing agent tells the incoming one about it."""

    def __init__(
        self,
        spec: GuestSpec,
        state: StateSum,
        faults: list[dict[str, object]] | None = None,
        clock: SavedClock | None = None,
    ) -> None:
        self.spec = spec
        #: its VM state, as it was saved
        self.state = state
        #: faults of tests for the incoming side, as given to ``inject``
        self.faults = faults or []
        #: its clock, if it is to go on
        self.clock = clock
