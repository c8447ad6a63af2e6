# SPDX-License-Identifier: Apache-2.0
"""The description of a machine that is reached by SSH: a TOML file of the lab.

Every key and its meaning: docs/targets.md.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path

from liveupdate.core.errors import ScenarioError

_MAX_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleSpec:
    """How to reach the serial console: one of a unix socket, a device, a command; else the
    place's.
    """

    socket: str = ""
    device: str = ""
    command: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LabgridSpec:
    """The place of a labgrid coordinator that the machine is at; it is locked for each run."""

    place: str
    #: HOST:PORT; "": from labgrid's own environment variables
    coordinator: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabMachine:
    """One machine. Paths are absolute."""

    address: str
    host_key: Path
    key: Path
    console: ConsoleSpec
    #: called with "reset" as its last word; (): the place's
    power: tuple[str, ...]
    #: command line of both kernels, without the mechanism's words
    append: str
    #: serials or /dev paths of disks that may be given to guests, first guest first
    disks: tuple[str, ...]
    port: int = 22
    user: str = "root"
    labgrid: LabgridSpec | None = None


def find_description(name: str, config_dir: Path) -> Path:
    """Find the file of ``ssh:NAME``: a path, or a name in ``config_dir/machines``."""
    path = Path(name)
    if path.suffix == ".toml" or len(path.parts) > 1:
        return path.absolute()
    return config_dir / "machines" / f"{name}.toml"


def read_description(path: Path) -> LabMachine:
    """Read and check a description.

    :raises ScenarioError: naming the file and the key.
    """

    def fail(message: str, hint: str | None = None) -> ScenarioError:
        return ScenarioError(message, where=str(path), hint=hint)

    try:
        with path.open("rb") as file:
            value = tomllib.loads(file.read(_MAX_BYTES).decode())
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else str(error)
        raise fail(f"there is no machine description: {said}", "see docs/targets.md") from error
    known = {field.name for field in fields(LabMachine)}
    if unknown := sorted(set(value) - known):
        raise fail(f"unknown key '{unknown[0]}'", f"known: {', '.join(sorted(known))}")

    def text(table: dict[str, object], key: str, default: str | None = None) -> str:
        found = table.get(key, default)
        if not isinstance(found, str) or not found.isprintable():
            raise fail(f"'{key}' is missing, or no text on one line")
        return found

    def words(table: dict[str, object], key: str) -> tuple[str, ...]:
        found = table.get(key, [])
        if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
            raise fail(f"'{key}' is not a list of words")
        return tuple(found)

    def file_of(key: str) -> Path:
        found = path.parent / Path(text(value, key)).expanduser()
        if not found.is_file():
            raise fail(f"'{key}': there is no file '{found}'")
        return found

    port = value.get("port", 22)
    if not isinstance(port, int) or isinstance(port, bool) or not 0 < port < 65536:
        raise fail(f"'port' is {port!r}, not 1 to 65535")
    place = value.get("labgrid")
    if place is not None and (
        not isinstance(place, dict)
        or not set(place) <= {"place", "coordinator"}
        or not text(place, "place")
        or text(place, "place").startswith("-")
    ):
        raise fail("[labgrid] needs 'place' and may have 'coordinator'")
    # What the description does not name is the place's.
    power, console = value.get("power"), value.get("console")
    if power is None and place is not None:
        power = {}
    elif not isinstance(power, dict) or set(power) != {"command"} or not words(power, "command"):
        raise fail("[power] with 'command' is missing: the machine could not be reset")
    if console is None and place is not None:
        console = {}
    elif not isinstance(console, dict) or len(console) != 1 or not set(console) <= {
        "socket", "device", "command",
    }:  # fmt: skip
        raise fail("[console] needs one of 'socket', 'device' and 'command'")
    return LabMachine(
        address=text(value, "address"),
        port=port,
        user=text(value, "user", "root"),
        host_key=file_of("host_key"),
        key=file_of("key"),
        console=ConsoleSpec(
            socket=text(console, "socket", ""),
            device=text(console, "device", ""),
            command=words(console, "command"),
        ),
        power=words(power, "command"),
        append=text(value, "append"),
        disks=words(value, "disks"),
        labgrid=LabgridSpec(place=text(place, "place"), coordinator=text(place, "coordinator", ""))
        if place is not None
        else None,
    )
