# SPDX-License-Identifier: Apache-2.0
"""stdout carries the result, stderr the log; decides on colour and on the moving display."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from liveupdate.core.atomic_write import atomic_write
from liveupdate.core.errors import LiveUpdateError, ScenarioError

PROGRAM = "liveupdate"


def wants_color(choice: str, env: Mapping[str, str], *, is_tty: bool) -> bool:
    """Decide on colour: the option, FORCE_COLOR and CLICOLOR_FORCE, NO_COLOR, then the terminal."""
    if choice != "auto":
        return choice == "always"
    if env.get("FORCE_COLOR") or env.get("CLICOLOR_FORCE", "0") not in ("", "0"):
        return True
    if env.get("NO_COLOR"):
        return False
    return is_tty and env.get("TERM", "dumb") != "dumb"


def wants_live(env: Mapping[str, str], *, is_tty: bool) -> bool:
    """Decide on a moving display: on a terminal only, never in CI or with NO_COLOR."""
    if env.get("NO_COLOR") or env.get("CI", "").lower() not in ("", "0", "false"):
        return False
    return is_tty and env.get("TERM", "dumb") != "dumb"


def say(text: str) -> None:
    """Print a line of the result to stdout."""
    sys.stdout.write(text.rstrip("\n") + "\n")
    sys.stdout.flush()


def say_json(document: object) -> None:
    """Print one JSON document as the whole result."""
    import json

    say(json.dumps(document, indent=2, ensure_ascii=False, sort_keys=False))


def log(text: str) -> None:
    """Print a line of the log."""
    sys.stderr.write(text.rstrip("\n") + "\n")
    sys.stderr.flush()


def log_error(error: LiveUpdateError) -> None:
    """Print an error in one line, and its hint in another."""
    complain(error.args[0] if error.args else str(error), error.hint)


def complain(message: object, hint: str | None = None) -> None:
    """Print ``liveupdate: error: …``, always one line, and the hint."""
    log(f"{PROGRAM}: error: {one_line(str(message))}")
    if hint:
        log(f"{PROGRAM}: hint: {one_line(hint)}")


def one_line(text: str) -> str:
    """Fold to one line and make control characters visible: part of it may come from a guest."""
    return printable(" | ".join(filter(None, (line.strip() for line in text.splitlines()))))


def printable(text: str) -> str:
    """Make control characters visible that a terminal would act upon."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def check_report(path: Path) -> None:
    """Check that a report can be written at the end of the run."""
    parent = path.absolute().parent
    if path.is_dir() or not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ScenarioError("cannot be written there", where=str(path))


def last_lines(file: BinaryIO, limit: int) -> list[str]:
    """Return the lines in the last ``limit`` bytes of an open file.

    :raises OSError: it cannot be read.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - limit))
    return file.read().decode(errors="replace").splitlines()


def write_file(path: Path, text: str) -> None:
    """Write ``text`` whole or not at all; a device or a FIFO is written in place.

    :raises ScenarioError: the file cannot be written.
    """
    try:
        atomic_write(path, text.encode())
    except OSError as error:
        raise ScenarioError(
            f"cannot be written: {error.strerror or error}", where=str(path)
        ) from error


class StderrHandler(logging.Handler):
    """Logs to the current stderr, which the live view replaces."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one log record as a line."""
        try:
            sys.stderr.write(f"{self.format(record)}\n")
        except Exception:
            self.handleError(record)


def setup_logging(verbosity: int) -> None:
    """Set the level: -1 errors, 0 warnings, 1 info, 2 and more debug."""
    level = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO}.get(verbosity, logging.DEBUG)
    handler = StderrHandler()
    handler.setFormatter(logging.Formatter("%(levelname).1s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    if verbosity < 3:
        # What goes wrong in them reaches us as an exception, which we report; their chatter is of
        # use only to those who debug them.
        for name in ("paramiko", "qemu.qmp"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        logging.getLogger("asyncio").setLevel(max(level, logging.WARNING))
