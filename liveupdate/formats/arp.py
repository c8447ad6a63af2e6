# SPDX-License-Identifier: Apache-2.0
"""ARP probes (RFC 5227, 2.1.1): a question that any IPv4 guest answers, with no address of our own.

A probe asks who has an address and gives 0.0.0.0 as the sender's, so it leaves no entry in the
guest's cache. Knows nothing of wires.
"""

from __future__ import annotations

import ipaddress
import struct

from liveupdate.formats.malformed import MalformedError

#: Ethernet header, then RFC 826: types, sizes, operation, sender's and target's addresses
_FRAME = struct.Struct("!6s6sHHHBBH6s4s6s4s")
_ETHERTYPE = 0x0806
_REQUEST, _REPLY = 1, 2
_BROADCAST = b"\xff" * 6
#: Ethernet's least payload is 46 bytes
_PADDING = bytes(18)


class ArpError(MalformedError):
    """The frame is not an ARP reply over Ethernet for IPv4."""


def build_probe(address: str, source: str) -> bytes:
    """Return the frame that asks who has ``address``; ``source`` is our MAC address.

    :raises ValueError: one of them is not an address.
    """
    mac = bytes.fromhex(source.replace(":", ""))
    if len(mac) != len(_BROADCAST):
        raise ValueError(f"'{source}' is not an Ethernet address")
    target = ipaddress.IPv4Address(address).packed
    frame = _FRAME.pack(
        _BROADCAST, mac, _ETHERTYPE, 1, 0x0800, 6, 4, _REQUEST, mac, bytes(4), bytes(6), target
    )
    return frame + _PADDING


def decode_reply(frame: bytes, asker: str) -> str:
    """Return the IPv4 address whose owner sent this reply.

    :param asker: our MAC address; a reply to another address or to all is not for us.
    :raises ArpError: another kind of frame, or one cut short.
    """
    if len(frame) < _FRAME.size:
        raise ArpError(f"{len(frame)} bytes, expected {_FRAME.size}", where="length")
    fields = _FRAME.unpack_from(frame)
    ethertype, hardware, protocol, hardware_bytes, protocol_bytes, operation = fields[2:8]
    if ethertype != _ETHERTYPE:
        raise ArpError(f"EtherType is 0x{ethertype:04x}", where="offset 12")
    if (hardware, protocol, hardware_bytes, protocol_bytes) != (1, 0x0800, 6, 4):
        raise ArpError("not Ethernet and IPv4", where="offset 14")
    if operation != _REPLY:
        raise ArpError(f"operation is {operation}, expected {_REPLY}", where="offset 20")
    if fields[0] != bytes.fromhex(asker.replace(":", "")):
        raise ArpError(f"to {fields[0].hex(':')}, not to {asker}", where="offset 0")
    if fields[1] != fields[8]:
        raise ArpError(f"from {fields[1].hex(':')} for {fields[8].hex(':')}", where="offset 22")
    return str(ipaddress.IPv4Address(fields[9]))
