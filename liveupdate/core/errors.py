# SPDX-License-Identifier: Apache-2.0
"""Errors, split by what the caller can do about them.

::

    LiveUpdateError
    ├── ScenarioError        the user's input is wrong          exit 2
    ├── PlanError            input is fine, this machine cannot exit 3
    ├── BuildError           an image could not be built        exit 3
    ├── CommandFailed        an external command failed         exit 3
    ├── LaunchError          a machine did not start            exit 3
    ├── StateError           called at the wrong time           exit 3 (a bug here)
    ├── RemoteError          the agent understood and refused   by the caller
    ├── OutcomeUnknown       asked, and the answer was cut off  exit 3
    ├── LostMachine          the machine is gone                exit 3
    ├── DeadlineExceeded     a named wait ran out               exit 124
    └── EvidenceError        stored evidence cannot be used     exit 3
"""

from __future__ import annotations


class LiveUpdateError(Exception):
    """Ancestor of every error this package raises on purpose.

    :param message: what was wanted, what was found, where.
    :param hint: what to do next, one sentence.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ScenarioError(LiveUpdateError):
    """The user's input is wrong; ``where`` is ``file:line`` or the option."""

    def __init__(self, message: str, *, where: str, hint: str | None = None) -> None:
        super().__init__(f"{where}: {message}", hint=hint)
        self.where = where


class PlanError(LiveUpdateError):
    """The scenario is well-formed but cannot be carried out here."""


class BuildError(LiveUpdateError):
    """An image could not be built; the message ends with the tool's own last lines."""


class CommandFailed(LiveUpdateError):
    """An external command ended with an unexpected status."""

    def __init__(self, argv: tuple[str, ...], returncode: int, tail: str) -> None:
        self.argv = argv
        self.returncode = returncode
        self.tail = tail
        how = f"killed by signal {-returncode}" if returncode < 0 else f"exit {returncode}"
        super().__init__(f"'{argv[0]}' failed ({how}): {tail.strip() or 'no output'}")


class LaunchError(LiveUpdateError):
    """A machine did not start; the message has its process's output."""


class StateError(LiveUpdateError):
    """A method was called in a state that does not allow it."""

    def __init__(self, message: str, *, state: str, required: str) -> None:
        super().__init__(f"{message}: state is '{state}', required '{required}'")
        self.state = state
        self.required = required


class RemoteError(LiveUpdateError):
    """The agent on the host under update understood a call and refused it."""

    def __init__(self, call: str, kind: str, message: str) -> None:
        super().__init__(f"agent refused '{call}' ({kind}): {message}")
        self.call = call
        self.kind = kind


class OutcomeUnknown(LiveUpdateError):
    """A request was sent, and the connection ended before the answer."""


class LostMachine(LiveUpdateError):
    """The machine under test is gone; ``how`` is never-booted, no-answer, garbled or exited."""

    def __init__(self, message: str, *, how: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.how = how


class DeadlineExceeded(LiveUpdateError):
    """A named wait ran out."""

    def __init__(self, what: str, timeout_s: float, last: str | None = None) -> None:
        seen = f"; last seen: {last}" if last else ""
        super().__init__(f"waited {timeout_s:.1f} s for {what}{seen}")
        self.what = what
        self.timeout_s = timeout_s
        self.last = last


class EvidenceError(LiveUpdateError):
    """Stored evidence is missing, cut short or not what it claims to be."""
