# SPDX-License-Identifier: Apache-2.0
"""Build and decode echo frames: Ethernet, EtherType 0x88B5, answered by the guest payload.

Knows nothing of sockets. Layout after the Ethernet header: ``struct lu_echo`` in
guest-images/guest/payload_abi.h; all little-endian. 0x88B5 is IEEE 802's number for local
experiments, so no switch and no stack on the way has an opinion about it.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass

from liveupdate.formats.malformed import MalformedError

ETHERTYPE = 0x88B5
#: "LUEC" in memory
MAGIC = 0x4345554C
VERSION = 1
REQUEST = 1
REPLY = 2

#: struct format and the names of its fields, in order; compared with the C header by a test
LAYOUT = struct.Struct("<IHH8QI")
FIELDS = (
    "magic", "version", "kind", "seq", "sender_ns", "boot", "tick_seq", "tsc", "monotonic_ns",
    "boottime_ns", "realtime_ns", "crc32",
)  # fmt: skip

_ETHERNET = struct.Struct(">6s6sH")
_CRC = struct.Struct("<I")
_FRAME_BYTES = _ETHERNET.size + LAYOUT.size
_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")


class EchoError(MalformedError):
    """The frame claims to be an echo and is damaged or of an unknown kind."""


class NotEchoError(EchoError):
    """Some other frame on the same wire: to be ignored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EchoFrame:
    """A request or a reply; ``boot`` and what follows it is 0 in a request."""

    destination: str
    source: str
    kind: int
    seq: int
    sender_ns: int
    boot: int = 0
    tick_seq: int = 0
    tsc: int = 0
    monotonic_ns: int = 0
    boottime_ns: int = 0
    realtime_ns: int = 0


def decode_echo(frame: bytes) -> EchoFrame:
    """Decode an Ethernet frame; padding at its end is ignored.

    :raises NotEchoError: another EtherType.
    :raises EchoError: cut short, damaged, or of an unknown version or kind.
    """
    if len(frame) < _ETHERNET.size:
        raise NotEchoError(f"{len(frame)} bytes, no Ethernet header", where="length")
    destination, source, ethertype = _ETHERNET.unpack_from(frame)
    if ethertype != ETHERTYPE:
        raise NotEchoError(f"EtherType is 0x{ethertype:04x}", where="offset 12")
    if len(frame) < _FRAME_BYTES:
        raise EchoError(f"{len(frame)} bytes, expected {_FRAME_BYTES}", where="length")
    body = bytes(frame[_ETHERNET.size : _FRAME_BYTES])
    magic, version, kind, *values, crc = LAYOUT.unpack(body)
    if magic != MAGIC:
        raise EchoError(f"magic is 0x{magic:08x}, expected 0x{MAGIC:08x}", where="offset 14")
    computed = zlib.crc32(body[: -_CRC.size])
    if crc != computed:
        raise EchoError(
            f"crc32 is 0x{crc:08x}, the bytes give 0x{computed:08x}",
            where=f"offset {_FRAME_BYTES - _CRC.size}",
        )
    if version != VERSION:
        raise EchoError(f"version is {version}, known is {VERSION}", where="offset 18")
    if kind not in (REQUEST, REPLY):
        raise EchoError(f"kind is {kind}, neither request nor reply", where="offset 20")
    return EchoFrame(
        destination=destination.hex(":"),
        source=source.hex(":"),
        kind=kind,
        **dict(zip(FIELDS[3:11], values, strict=True)),
    )


def encode_echo(frame: EchoFrame) -> bytes:
    """Ethernet frame of an echo, 90 bytes.

    :raises ValueError: an address is not six hexadecimal octets.
    """
    body = LAYOUT.pack(
        MAGIC, VERSION, frame.kind, *(getattr(frame, name) for name in FIELDS[3:11]), 0
    )[: -_CRC.size]
    header = _ETHERNET.pack(_octets(frame.destination), _octets(frame.source), ETHERTYPE)
    return header + body + _CRC.pack(zlib.crc32(body))


def build_request(*, destination: str, source: str, seq: int, sender_ns: int) -> bytes:
    """Frame to send to a guest; addresses as ``52:54:00:20:00:01``.

    :raises ValueError: an address is not six hexadecimal octets.
    """
    return encode_echo(
        EchoFrame(
            destination=destination, source=source, kind=REQUEST, seq=seq, sender_ns=sender_ns
        )
    )


def _octets(mac: str) -> bytes:
    if not _MAC.fullmatch(mac):
        raise ValueError(f"'{mac}' is not an Ethernet address; write 52:54:00:20:00:01")
    return bytes.fromhex(mac.replace(":", ""))
