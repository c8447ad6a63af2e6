# SPDX-License-Identifier: Apache-2.0
"""stdout and stderr that may be closed, full, narrow, or without a reader, and end no run.

``head`` that leaves must not cut off a live update inside the blackout, and a verdict that lies in
a run directory must not be lost because a terminal is. So a write that fails is noted, and what
comes after it is dropped.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO


class GuardedStream(io.TextIOBase):
    """A text stream whose writes never raise; ``lost`` says why the first one failed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost: str | None = None

    def write(self, text: str) -> int:
        """Write, or drop the text once the stream is lost. Returns the length of ``text``."""
        if self.lost is None:
            try:
                self._stream.write(text)
            except (OSError, ValueError) as error:
                self._lose(error)
        return len(text)

    def flush(self) -> None:
        """Flush the stream; a failure is noted in ``lost``."""
        if self.lost is None:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._lose(error)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the stream below."""
        return self._stream.encoding

    @property
    def buffer(self) -> object:
        """The bytes below, for what does not write text; not guarded."""
        return self._stream.buffer

    def fileno(self) -> int:
        """The file descriptor of the stream below."""
        return self._stream.fileno()

    def isatty(self) -> bool:
        """Whether the stream below is a terminal that still works."""
        return self.lost is None and self._stream.isatty()

    def writable(self) -> bool:
        """Always true: writes never fail, they are dropped once the stream is lost."""
        return True

    def _lose(self, error: Exception) -> None:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        self.lost = reason or type(error).__name__
        # What is still in the buffer would raise again when the interpreter ends.
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.dup2(nowhere, self._stream.fileno())
            finally:
                os.close(nowhere)


def hold_standard_descriptors() -> None:
    """Open ``/dev/null`` in place of standard descriptors that are closed.

    A file that the program opens would get the free number, and output would end up in it.
    """
    while True:
        descriptor = os.open(os.devnull, os.O_RDWR)
        if descriptor > 2:
            os.close(descriptor)
            return
        os.set_inheritable(descriptor, True)


@contextlib.contextmanager
def guard_streams() -> Iterator[tuple[GuardedStream, GuardedStream]]:
    """Guard stdout and stderr while the block runs; yields both.

    What an encoding cannot express is written as an escape. A stream that was closed from the start
    counts as lost.
    """
    hold_standard_descriptors()
    before = sys.stdout, sys.stderr
    guarded = _guard(sys.stdout), _guard(sys.stderr)
    sys.stdout, sys.stderr = guarded
    try:
        yield guarded
    finally:
        for stream in guarded:
            stream.flush()
        # One that was None stays guarded: the interpreter flushes what is there when it ends.
        sys.stdout = before[0] if before[0] is not None else guarded[0]
        sys.stderr = before[1] if before[1] is not None else guarded[1]


def _guard(stream: TextIO | None) -> GuardedStream:
    if stream is None:
        guarded = GuardedStream(io.StringIO())
        guarded.lost = "closed"
        return guarded
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return GuardedStream(stream)
