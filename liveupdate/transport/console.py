# SPDX-License-Identifier: Apache-2.0
"""The serial console of the host under update: kept byte for byte, split at each kernel boot.

A thread reads a unix socket and writes ``boot-N/console.log``; the logs of all boots, joined, are
the bytes of the line. Beside each log is ``console.times``, one line ``OFFSET HOST_NS`` per console
line. Console text is evidence of crashes and of timing only: results come through the agent or SSH.
Must not know why a kernel was started.
"""

from __future__ import annotations

import errno
import re
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

from liveupdate.core.deadline import Deadline, wait_until
from liveupdate.core.errors import LostMachine
from liveupdate.transport.unix import SocketReader, Watch, check_watch

T = TypeVar("T")

#: a line is never held back longer than this; what follows counts as a new line
MAX_LINE_BYTES = 64 * 1024
_LINES_KEPT = 20_000
#: what a host may make of this: logs in bytes, lines in memory in bytes, kernels
LOG_BYTES_MAX = 256 << 20
KEPT_BYTES_MAX = 64 << 20
BOOTS_MAX = 1000
_READ_BYTES = 64 * 1024

# With CONFIG_PRINTK_TIME the banner carries time zero, which `cat /proc/version` does not. It may
# stand in the middle of a line, for kexec cuts the last line of the outgoing kernel anywhere.
_BANNER = re.compile(rb"(?:\[ +0\.0{6}\](?:\[ *[TC]\d+\])? |^)Linux version \d")

#: what kernel/panic.c prints
_PANIC = b"Kernel panic - not syncing"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleLine:
    """One line with its line end; ``at_ns`` is CLOCK_MONOTONIC when its first byte came."""

    boot: int
    offset: int
    at_ns: int
    data: bytes

    @property
    def text(self) -> str:
        """The line as text, without its end; bytes that are not UTF-8 are replaced."""
        return _text(self.data)


class LineSplitter:
    """Cuts a byte stream into lines and boots; keeps only the unfinished line. No I/O.

    The first banner belongs to boot 0, together with the firmware's output before it, unless the
    kernel of boot 0 had booted before the connection was made.
    """

    def __init__(self, *, booted: bool = False) -> None:
        """:param booted: boot 0 has printed its banner already (a machine loaded from a state)."""
        self.boot = 0
        self._has_banner = booted
        self._offset = 0
        self._partial = bytearray()
        self._partial_ns = 0

    @property
    def partial(self) -> bytes:
        """The line that has not ended yet."""
        return bytes(self._partial)

    def feed(self, data: bytes, at_ns: int) -> Iterator[tuple[ConsoleLine, bool]]:
        """Yield each line that ``data`` completes, and whether it starts with a boot's banner."""
        start = 0
        while start < len(data):
            newline = data.find(b"\n", start, start + MAX_LINE_BYTES)
            end = newline + 1 if newline >= 0 else min(len(data), start + MAX_LINE_BYTES)
            if not self._partial:
                self._partial_ns = at_ns
            self._partial += data[start:end]
            if newline >= 0 or len(self._partial) >= MAX_LINE_BYTES:
                yield from self.flush()
            start = end

    def flush(self) -> Iterator[tuple[ConsoleLine, bool]]:
        """Yield the unfinished line as if it had ended."""
        line = bytes(self._partial)
        self._partial.clear()
        if not line:
            return
        match = _BANNER.search(line)
        if match and self._has_banner and self.boot < BOOTS_MAX:
            if match.start():
                yield self._take(line[: match.start()]), False
                line = line[match.start() :]
            self.boot += 1
            self._offset = 0
        self._has_banner = self._has_banner or match is not None
        yield self._take(line), match is not None

    def _take(self, data: bytes) -> ConsoleLine:
        line = ConsoleLine(boot=self.boot, offset=self._offset, at_ns=self._partial_ns, data=data)
        self._offset += len(data)
        return line


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="replace").strip("\r\n\0")


class _BootLogs:
    """The open ``boot-N/console.log`` and ``console.times``."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._boot = -1
        self._left = LOG_BYTES_MAX
        self._stack = ExitStack()
        self._files: tuple[IO[bytes], ...] = ()

    def write(self, lines: Iterable[ConsoleLine]) -> None:
        for line in lines:
            self._left -= len(line.data)
            if self._left < 0:
                raise OSError(errno.EFBIG, f"more than {LOG_BYTES_MAX} bytes of console")
            if line.boot != self._boot:
                self.close()
                directory = self._run_dir / f"boot-{line.boot}"
                directory.mkdir(parents=True, exist_ok=True)
                self._files = tuple(
                    self._stack.enter_context((directory / name).open("ab"))
                    for name in ("console.log", "console.times")
                )
                self._boot = line.boot
            log, times = self._files
            log.write(line.data)
            times.write(b"%d %d\n" % (line.offset, line.at_ns))
        # read by others while the machine runs, and to be there if we are killed
        for file in self._files:
            file.flush()

    def close(self) -> None:
        self._files = ()
        self._stack.close()


class Console(SocketReader):
    """The reader thread and what it has read. Logs are complete once it is closed."""

    def __init__(
        self, path: Path, run_dir: Path, *, booted: bool = False, watch: Watch | None = None
    ) -> None:
        """:param path: unix socket of the serial chardev.
        :param run_dir: the directory for ``boot-N/``.
        :param booted: as of :class:`LineSplitter`.
        :param watch: called while waiting; what it returns is raised.
        """
        super().__init__(path, watch)
        self.run_dir = run_dir
        self._splitter = LineSplitter(booted=booted)
        self._lines: deque[ConsoleLine] = deque()
        self._kept_bytes = 0
        self._count = 0
        self._boots: list[ConsoleLine] = []
        self._panic: ConsoleLine | None = None
        self._error: OSError | None = None
        self._ended = False

    def drain(self, deadline: Deadline) -> None:
        """Read to the end of a console whose machine has ended.

        :raises DeadlineExceeded: it has not ended.
        """
        wait_until(lambda: self._ended or self._thread is None, deadline, sleep=self._sleep)

    # --- what was seen

    @property
    def write_error(self) -> OSError | None:
        """Why the logs are not complete (disk full), or None; reading went on regardless."""
        return self._error

    @property
    def boots(self) -> tuple[ConsoleLine, ...]:
        """The banner of each boot, in order; its ``at_ns`` is the first sign of that kernel."""
        with self._changed:
            return tuple(self._boots)

    @property
    def panic(self) -> ConsoleLine | None:
        """The first line that reports a kernel's panic, or None."""
        return self._panic

    def death(self) -> LostMachine | None:
        """Return why waiting for the machine is useless as far as its console tells, or None."""
        if (panic := self._panic) is None:
            return None
        return LostMachine(f"kernel panic in boot {panic.boot}: {panic.text}", how="exited")

    def mark(self) -> int:
        """Return the position after the newest line, for ``since``."""
        with self._changed:
            return self._count

    def lines(self, since: int = 0) -> tuple[ConsoleLine, ...]:
        """Return the lines from position ``since``; very old ones are in the log only."""
        with self._changed:
            skipped = max(0, since - (self._count - len(self._lines)))
            return tuple(self._lines)[skipped:]

    def tail(self, count: int = 20) -> tuple[str, ...]:
        """Return the last lines as text, including the unfinished one."""
        with self._changed:
            texts = [line.text for line in self._lines]
            partial = _text(self._splitter.partial)
        return tuple([*texts, *([partial] if partial.strip() else [])][-count:])

    # --- waiting

    def wait_boot(self, number: int, deadline: Deadline) -> ConsoleLine:
        """Wait for banner ``number``, counted from 0 in :attr:`boots`, and return it.

        :raises LostMachine: the console ended first, or what ``watch`` said.
        :raises DeadlineExceeded: with the last line seen.
        """
        return self._wait(
            lambda: self.boots[number] if len(self.boots) > number else None,
            deadline,
            f"the first line of boot {number}",
        )

    def wait_line(self, pattern: str, deadline: Deadline, *, since: int = 0) -> ConsoleLine:
        """Wait for a line that matches ``pattern``; lines from position ``since`` count.

        :raises LostMachine: the console ended first, or what ``watch`` said.
        :raises DeadlineExceeded: with the last line seen.
        """
        regex = re.compile(pattern)
        position = since

        def look() -> ConsoleLine | None:
            nonlocal position
            with self._changed:
                fresh, position = self.lines(position), self._count
            return next((line for line in fresh if regex.search(line.text)), None)

        return self._wait(look, deadline, f"a line like '{pattern}'")

    def _wait(self, look: Callable[[], T | None], deadline: Deadline, what: str) -> T:
        def probe() -> T | None:
            ended = self._ended
            found = look()
            if found is not None:
                return found
            check_watch(self._watch)
            if ended:
                raise LostMachine(f"the console ended before {what}", how="no-answer")
            return None

        return wait_until(
            probe, deadline, describe=lambda: (self.tail(1) or ("silence",))[0], sleep=self._sleep
        )

    # --- the thread

    def _read(self, link: socket.socket) -> None:
        logs = _BootLogs(self.run_dir)
        data = b"."
        while data:
            try:
                data = link.recv(_READ_BYTES)
            except OSError:
                data = b""
            now = time.monotonic_ns()
            with self._changed:
                marked = list(self._splitter.feed(data, now) if data else self._splitter.flush())
                for line, is_banner in marked:
                    self._note(line, is_banner)
                self._changed.notify_all()
            self._save(logs, [line for line, _ in marked])
        self._save(logs, [], last=True)
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _note(self, line: ConsoleLine, is_banner: bool) -> None:
        if len(self._lines) == _LINES_KEPT:
            self._kept_bytes -= len(self._lines.popleft().data)
        self._lines.append(line)
        self._kept_bytes += len(line.data)
        while self._kept_bytes > KEPT_BYTES_MAX:
            self._kept_bytes -= len(self._lines.popleft().data)
        self._count += 1
        if is_banner and len(self._boots) <= BOOTS_MAX:
            self._boots.append(line)
        if self._panic is None and _PANIC in line.data:
            self._panic = line

    def _save(self, logs: _BootLogs, lines: list[ConsoleLine], *, last: bool = False) -> None:
        """Write to the log; a full disk must not stop the console from being watched."""
        try:
            if self._error is None:
                logs.write(lines)
            if last:
                logs.close()
        except OSError as error:
            self._error = self._error or error
