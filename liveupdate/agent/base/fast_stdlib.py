# SPDX-License-Identifier: Apache-2.0
"""The few things of the standard library that the agent cannot afford to import whole.

``json`` pulls in ``re`` and ``enum``, ``socket`` and ``threading`` their own share. Measured on a
busy 2-CPU machine under TCG with a warm page cache: the bare interpreter starts in 0.19 s, with
those three imported in 0.52 s, with the whole agent instead in 0.33 s. Their C cores are built
into the interpreter and cost nothing. These are private modules, so each has the public one as a
fallback.
"""

from __future__ import annotations

import _thread
import os
import time

#: for all modules of the agent: typing costs an import
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from socket import AF_UNIX, SOCK_CLOEXEC, SOCK_STREAM
    from socket import socket as Socket
else:
    try:
        from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_STREAM
        from _socket import socket as Socket
    except ImportError:  # another interpreter: slower, same names
        from socket import AF_UNIX, SOCK_CLOEXEC, SOCK_STREAM
        from socket import socket as Socket
try:
    from _blake2 import blake2b
except ImportError:
    from hashlib import blake2b

#: names from elsewhere that others take from here
__all__ = ["AF_UNIX", "SOCK_STREAM", "Socket", "blake2b"]


def now_ns() -> int:
    """Return CLOCK_BOOTTIME in nanoseconds."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def read_text(path: str, limit: int = 1 << 16) -> str:
    """Return at most ``limit`` bytes of a small file (sysfs, procfs) without outer blanks.

    :raises OSError: when it cannot be read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, limit).decode("utf-8", "replace").strip()
    finally:
        os.close(fd)


def try_read_text(path: str) -> str | None:
    """Return the same, or None when the file cannot be read."""
    try:
        return read_text(path)
    except OSError:
        return None


def close_fd(fd: int) -> int:
    """Close a descriptor unless it is -1, for "none"; return -1."""
    if fd >= 0:
        os.close(fd)
    return -1


def write_text(path: str, text: str) -> None:
    """Write into a file that exists (sysfs, procfs).

    :raises OSError: there is none, or the kernel refuses.
    """
    fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode("ascii"))
    finally:
        os.close(fd)


# --- JSON


class _Context:
    """What the C scanner wants to know; the names are its protocol."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int

    @staticmethod
    def parse_constant(name: str) -> object:
        raise ValueError(f"'{name}' is not JSON")


def _refuse(value: object) -> object:
    raise TypeError(f"{type(value).__name__} is not JSON")


def _slow_loads(text: str) -> object:
    import json

    return json.loads(text, parse_constant=_Context.parse_constant)


def _load_codec() -> tuple[Callable[[str], object], Callable[[object], str]]:
    try:
        from _json import encode_basestring_ascii, make_encoder, make_scanner

        scan = make_scanner(_Context)  # type: ignore[arg-type]  # duck-typed in C
        chunks = make_encoder(
            None, _refuse, encode_basestring_ascii, None, ":", ",", False, False, False
        )
    except (ImportError, TypeError):
        import json

        def dumps(value: object) -> str:
            return json.dumps(value, separators=(",", ":"), allow_nan=False)

        return _slow_loads, dumps

    def loads(text: str) -> object:
        text = text.strip(" \t\r\n")
        try:
            value, end = scan(text, 0)
            if end == len(text):
                return value
        # SystemError: up to 3.12 the scanner expects json.decoder to be imported
        except (StopIteration, SystemError):
            pass
        return _slow_loads(text)  # which can say what is wrong

    def encode(value: object) -> str:
        return "".join(chunks(value, 0))

    return loads, encode


_decode, _encode = _load_codec()


def decode_json(data: bytes | str) -> object:
    """Decode one JSON document.

    :raises ValueError: when it is not one, or is nested too deeply.
    """
    try:
        return _decode(data.decode("utf-8") if isinstance(data, bytes) else data)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None


def encode_json(value: object) -> bytes:
    """Encode as one line of ASCII JSON without the newline."""
    return _encode(value).encode("ascii")


# --- sockets


def connect_unix(path: str) -> Socket:
    """Connect to a unix stream socket.

    :raises OSError: no process listens.
    """
    sock = Socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    sock.connect(path)
    return sock


def listen_unix(path: str) -> Socket:
    """Listen at ``path``, replacing what was there.

    A listening socket handed to a VMM can be connected to before the VMM runs: no polling for
    the socket to appear.
    """
    try:  # noqa: SIM105 - contextlib costs an import
        os.unlink(path)
    except FileNotFoundError:
        pass
    sock = Socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    sock.bind(path)
    sock.listen(1)
    return sock


# --- programs


def run_program(argv: list[str]) -> tuple[int, str]:
    """Run a program to its end; return its status and the end of its output."""
    reader, writer = os.pipe()
    try:
        pid = os.posix_spawn(
            argv[0],
            argv,
            {"PATH": "/usr/sbin:/usr/bin"},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, writer, 1),
                (os.POSIX_SPAWN_DUP2, writer, 2),
            ],
        )
        os.close(writer)
        writer = -1
        said = b""
        while data := os.read(reader, 4096):
            said = (said + data)[-2000:]
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
    return status, said.decode("utf-8", "replace").strip() or "no output"


# --- threads


class Task:
    """A function running in a thread; ``join`` re-raises what it raised."""

    def __init__(self, func: Callable[[], None]) -> None:
        self._func = func
        self._error: BaseException | None = None
        self._done = _thread.allocate_lock()
        self._done.acquire()
        _thread.start_new_thread(self._run, ())

    def _run(self) -> None:
        try:
            self._func()
        except BaseException as err:
            self._error = err
        finally:
            self._done.release()

    def join(self) -> None:
        """Wait for the end of the function; re-raise its exception."""
        with self._done:
            pass
        if self._error is not None:
            raise self._error


def run_parallel(funcs: Iterable[Callable[[], None]]) -> list[Exception | None]:
    """Run all functions at once, wait for all; return the exception of each, in order."""
    tasks = [Task(func) for func in funcs]
    errors: list[Exception | None] = []
    for task in tasks:
        try:
            task.join()
            errors.append(None)
        except Exception as err:
            errors.append(err)
    return errors


_MS_REMOUNT = 32
_MNT_DETACH = 2


def mount(source: str, where: str, kind: str, options: str, *, remount: bool = False) -> None:
    """Mount a file system, or change how it is mounted (mount(2)).

    :raises OSError: the kernel refuses.
    """
    flags = _MS_REMOUNT if remount else 0
    call_libc("mount", where, source, where, kind, flags, options)


def unmount(where: str) -> None:
    """Unmount lazily: files that are open stay usable.

    :raises OSError: the kernel refuses.
    """
    call_libc("umount2", where, where, _MNT_DETACH)


def call_libc(function: str, about: str | None, *args: str | int) -> None:
    """Call a function of the C library that returns 0 or sets errno.

    :param about: what an error names as the file.
    :param args: an integer is passed as long, which an int of the callee's is the lower half of.
    :raises OSError: it failed.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    raw = [arg.encode() if isinstance(arg, str) else ctypes.c_long(arg) for arg in args]
    if getattr(libc, function)(*raw):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), about)
