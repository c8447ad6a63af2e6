# SPDX-License-Identifier: Apache-2.0
"""Framing of the agent channel: JSON lines both ways, bounded. Pure; knows no file descriptor.

call   {"seq": N, "call": NAME, "args": {}}
reply  {"re": N, "ok": {}} or {"re": N, "error": {"kind": K, "message": M}}
event  {"n": M, "event": NAME, "t_ns": CLOCK_BOOTTIME, "data": {}}
"""

from __future__ import annotations

from .fast_stdlib import TYPE_CHECKING, decode_json, encode_json, now_ns

if TYPE_CHECKING:
    from collections.abc import Callable

    #: sends an event with its data at once, from any thread
    Emit = Callable[[str, dict[str, object]], None]

PROTOCOL = 1
MAX_LINE_BYTES = 8 << 20
#: events of guests stop here; the protocol's own lines have much more room
SOFT_LIMIT_BYTES = 2 << 20
HARD_LIMIT_BYTES = 64 << 20


class WireError(ValueError):
    """A line that is no call; ``seq`` if at least that could be read."""

    def __init__(self, message: str, seq: int | None = None) -> None:
        super().__init__(message)
        self.seq = seq


class LineSplitter:
    """Cuts a byte stream into lines of at most ``limit`` bytes."""

    def __init__(self, limit: int = MAX_LINE_BYTES) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._skipping = False

    def feed(self, data: bytes) -> list[bytes | None]:
        """Return the lines that ``data`` completes; None stands for one that was too long."""
        lines: list[bytes | None] = []
        pieces = data.split(b"\n")
        for piece in pieces[:-1]:
            if self._skipping:
                self._skipping = False  # its None was reported when it became too long
            elif len(self._buffer) + len(piece) > self._limit:
                lines.append(None)
            else:
                lines.append(bytes(self._buffer) + piece)
            self._buffer.clear()
        if not self._skipping:
            self._buffer += pieces[-1]
            if len(self._buffer) > self._limit:
                self._buffer.clear()
                self._skipping = True
                lines.append(None)
        return lines


def parse_call(line: bytes) -> tuple[int, str, dict[str, object]]:
    """Return ``(seq, name, args)`` of a call.

    :raises WireError: when it is not one.
    """
    try:
        message = decode_json(line)
    except ValueError as err:
        raise WireError(f"not a JSON line: {err}") from err
    if not isinstance(message, dict):
        raise WireError("a call is a JSON object")
    seq, name, args = message.get("seq"), message.get("call"), message.get("args", {})
    if not isinstance(seq, int) or isinstance(seq, bool) or not 0 <= seq < 1 << 63:
        raise WireError("a call has a 'seq' that is a non-negative integer")
    if not isinstance(name, str) or not isinstance(args, dict):
        raise WireError("a call has a string 'call' and an object 'args'", seq)
    return seq, name, args


def encode_reply(seq: int, ok: dict[str, object]) -> bytes:
    """Encode the answer to call ``seq``."""
    return encode_json({"re": seq, "ok": ok}) + b"\n"


def encode_error(seq: int | None, kind: str, message: str) -> bytes:
    """Encode a refusal; ``seq`` None answers a line that could not be understood."""
    return encode_json({"re": seq, "error": {"kind": kind, "message": message}}) + b"\n"


def encode_event(number: int, name: str, data: dict[str, object]) -> bytes:
    """Encode an event with its number in this boot and CLOCK_BOOTTIME."""
    return encode_json({"n": number, "event": name, "t_ns": now_ns(), "data": data}) + b"\n"


class Outbox:
    """Bytes waiting for a reader that may be slow or absent; it never blocks and is bounded."""

    def __init__(self) -> None:
        #: a bare newline ends the line in which the previous kernel's agent was cut off
        self._chunks: list[bytes] = [b"\n"]
        self._offset = 0
        self.pending_bytes = 1

    def put(self, data: bytes, *, droppable: bool = False) -> bool:
        """Queue a whole line; False: there was no room and it is dropped."""
        limit = SOFT_LIMIT_BYTES if droppable else HARD_LIMIT_BYTES
        if self.pending_bytes + len(data) > limit:
            return False
        self._chunks.append(data)
        self.pending_bytes += len(data)
        return True

    def rewind(self) -> None:
        """Start the interrupted line again, because there is another reader."""
        self.pending_bytes += self._offset
        self._offset = 0

    def flush(self, write: Callable[[bytes], int]) -> bool:
        """Write until done (True) or ``write`` would block (False).

        :param write: takes bytes, returns how many it took; ``BlockingIOError`` when none.
        """
        done = 0
        try:
            while done < len(self._chunks):
                chunk = self._chunks[done]
                rest = chunk[self._offset :] if self._offset else chunk
                taken = write(rest)
                self.pending_bytes -= taken
                if taken == len(rest):
                    done += 1
                    self._offset = 0
                else:
                    self._offset += taken
        except BlockingIOError:
            return False
        finally:
            del self._chunks[:done]
        return True
