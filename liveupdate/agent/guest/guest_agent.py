# SPDX-License-Identifier: Apache-2.0
"""Calls to a guest's QEMU guest agent. Loaded when it is first used."""

from __future__ import annotations

import time

from ..base.fast_stdlib import TYPE_CHECKING, decode_json, encode_json
from ..base.names import CallError

if TYPE_CHECKING:
    from .guests import Guest


def ask_time(guest: Guest, timeout_s: float) -> int:
    """Return a guest's clock, as its QEMU guest agent reports it, ns.

    :raises CallError: it does not answer, or has no port.
    """
    sock = guest.vmm.qga
    if sock is None:
        raise CallError("args", f"guest '{guest.spec.name}' has no guest agent port")
    sync = time.monotonic_ns() & 0x7FFFFFFF
    deadline = time.monotonic() + timeout_s
    # guest-sync first: it skips answers to a call that timed out earlier
    text = encode_json({"execute": "guest-sync", "arguments": {"id": sync}}) + b"\n"
    text += encode_json({"execute": "guest-get-time"}) + b"\n"
    buffer, synced = b"", False
    try:
        sock.settimeout(timeout_s)
        sock.sendall(text)
        while time.monotonic() < deadline and len(buffer) < 1 << 16:
            sock.settimeout(max(0.001, deadline - time.monotonic()))
            data = sock.recv(4096)
            if not data:
                break
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                reply = decode_json(line.lstrip(b"\xff")) if line.strip() else None
                value = reply.get("return") if isinstance(reply, dict) else None
                if synced and isinstance(value, int):
                    return value
                synced = synced or value == sync
    except (OSError, ValueError) as err:
        raise CallError("qga", f"guest agent: {err}") from err
    raise CallError("qga", "the guest agent does not answer")
