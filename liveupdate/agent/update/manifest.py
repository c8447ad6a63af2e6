# SPDX-License-Identifier: Apache-2.0
"""The manifest: what the outgoing agent tells the incoming one, in a preserved memfd.

Fixed size, because PRESERVE_FD freezes the size, and written at freeze. Untrusted when read:
another version of the agent, or a kernel that kept it badly, may have left anything there.

Layout, little-endian: char magic[8]; u32 version; u32 body bytes; u32 crc32 of the body;
u32 reserved 0; body: JSON ``{"boot_id", "guests": [{"spec", "state_bytes", "state_digest",
"faults", "clock"}], "devices": [spec]}``. A version of the agent that took no digest has left none.
"""

from __future__ import annotations

import os
from binascii import crc32
from struct import Struct

from ..base.fast_stdlib import TYPE_CHECKING, decode_json, encode_json
from ..guest.spec import GuestEntry, GuestSpec
from ..guest.state import StateSum

if TYPE_CHECKING:
    from ..guest.kvm_clock import SavedClock

MAGIC = b"LUMANIF1"
VERSION = 1
_HEADER = Struct("<8sIIII")
#: room for a guest with the longest allowed strings, twice over
_BYTES_BASE = 64 << 10
_BYTES_PER_GUEST = 16 << 10
_BYTES_MAX = 16 << 20
_STATE_BYTES_MAX = 1 << 30


class ManifestError(ValueError):
    """A manifest that is not valid, with the reason."""


def size_for(guests: int) -> int:
    """Return the size in bytes of the memfd for that many guests."""
    return _BYTES_BASE + guests * _BYTES_PER_GUEST


def encode(
    boot_id: str,
    guests: list[GuestEntry],
    size: int,
    devices: list[dict[str, object]] | None = None,
) -> bytes:
    """Return the manifest.

    :param devices: specs of passed-through devices, checked by who takes them.
    :raises ManifestError: when it does not fit into ``size``.
    """
    body = encode_json(
        {
            "boot_id": boot_id,
            "guests": [
                {
                    "spec": g.spec.to_json(),
                    **g.state.to_json(),
                    "faults": g.faults,
                    "clock": g.clock.to_json() if g.clock is not None else None,
                }
                for g in guests
            ],
            "devices": devices or [],
        }
    )
    if _HEADER.size + len(body) > size:
        raise ManifestError(f"{len(body)} bytes do not fit into {size}")
    return _HEADER.pack(MAGIC, VERSION, len(body), crc32(body), 0) + body


def decode(data: bytes) -> tuple[str, list[GuestEntry], list[object]]:
    """Return ``(boot_id of the outgoing kernel, guests, specs of devices)``.

    :raises ManifestError: ``encode`` did not write it.
    """
    if len(data) < _HEADER.size:
        raise ManifestError(f"{len(data)} bytes are too short for a header")
    magic, version, length, crc, _reserved = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise ManifestError(f"magic is {magic!r}, expected {MAGIC!r}")
    if version != VERSION:
        raise ManifestError(f"version {version}, this agent reads {VERSION}")
    if length > len(data) - _HEADER.size:
        raise ManifestError(f"says {length} bytes, there are {len(data) - _HEADER.size}")
    body = data[_HEADER.size : _HEADER.size + length]
    if crc32(body) != crc:
        raise ManifestError("checksum does not match")
    try:
        return _decode_body(decode_json(body))
    except ValueError as err:
        raise ManifestError(f"body: {err}") from err


def _decode_body(body: object) -> tuple[str, list[GuestEntry], list[object]]:
    if not isinstance(body, dict):
        raise ManifestError("not an object")
    boot_id, raw, devices = body.get("boot_id"), body.get("guests"), body.get("devices", [])
    if not isinstance(boot_id, str) or not isinstance(raw, list) or not isinstance(devices, list):
        raise ManifestError("'boot_id' or 'guests' is missing")
    guests: list[GuestEntry] = []
    for item in raw:
        if not isinstance(item, dict):
            raise ManifestError("a guest must be an object")
        size, digest = item.get("state_bytes"), item.get("state_digest", "")
        faults = item.get("faults", [])
        if not isinstance(size, int) or not 0 < size <= _STATE_BYTES_MAX:
            raise ManifestError(f"'state_bytes' is {size!r}")
        if not isinstance(digest, str):
            raise ManifestError(f"'state_digest' is {digest!r}")
        if not isinstance(faults, list) or not all(isinstance(f, dict) for f in faults):
            raise ManifestError("'faults' must be a list of objects")
        clock = item.get("clock")
        saved = None if clock is None else _read_clock(clock)
        spec = GuestSpec(item.get("spec"))
        guests.append(GuestEntry(spec, StateSum(size, digest), faults, saved))
    names = {g.spec.name for g in guests}
    if len(names) != len(guests) or len({g.spec.index for g in guests}) != len(guests):
        raise ManifestError("two guests share a name or an index")
    return boot_id, guests, devices


def _read_clock(raw: object) -> SavedClock:
    from ..guest.kvm_clock import SavedClock  # few guests have one, and it takes time to load

    return SavedClock(raw)


def create(guests: int) -> int:
    """Return a new memfd for a manifest of that many guests; all its pages exist."""
    fd = os.memfd_create("lu-manifest", os.MFD_CLOEXEC)
    size = size_for(guests)
    os.ftruncate(fd, size)
    os.pwrite(fd, bytes(size), 0)
    return fd


def read(fd: int) -> tuple[str, list[GuestEntry], list[object]]:
    """Read and check a manifest; see ``decode``."""
    size = os.fstat(fd).st_size
    if size > _BYTES_MAX:
        raise ManifestError(f"{size} bytes are more than any manifest has")
    return decode(os.pread(fd, size, 0))
