# SPDX-License-Identifier: Apache-2.0
"""From a scenario file and command line overrides to a frozen :class:`Scenario`.

Every complaint is a :class:`ScenarioError` that names ``file:line`` or the option. It knows no
machine: the planner decides whether a kernel, mechanism or fault exists.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from liveupdate.core.errors import ScenarioError
from liveupdate.core.suggest import suggest_or_list
from liveupdate.core.units import MIB, format_size
from liveupdate.model.guest_kinds import GUEST_KINDS
from liveupdate.model.scenario import (
    Budget,
    DeviceSpec,
    GuestSpec,
    HostSpec,
    IommuSpec,
    Observation,
    Scenario,
    Timeouts,
)
from liveupdate.scenario.keys import ARRAYS, DEVICE, GUEST, SECTIONS, Key
from liveupdate.scenario.toml_lines import KeyLines, KeyPath, scan
from liveupdate.scenario.values import NAME, Leaf, convert_value

MAX_FILE_BYTES = 1 << 20
MAX_GUESTS = 8
MAX_DEVICES = 4
_MOST = {"guest": MAX_GUESTS, "device": MAX_DEVICES}
#: virtio-blk's serial is cut at 20 bytes, and the guest's name is its disk's serial
MAX_NAME = 20
#: serials of the host's own disks
RESERVED_NAMES = ("root", "kit")
#: what a guest's kernel and payload need beside the pattern
GUEST_OVERHEAD_BYTES = 64 * MIB

_GUEST_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")


class Override(NamedTuple):
    """One value from the command line: ``key`` is a key path, ``option`` how the user wrote it."""

    key: str
    value: str
    option: str


#: what the tables of a scenario become
_PARTS = {
    "iommu": IommuSpec,
    "host": HostSpec,
    "timeouts": Timeouts,
    "observe": Observation,
    "budget": Budget,
}
_GUESTS = Key(name="guests", attribute="", kind="integer", doc="", low=1, high=MAX_GUESTS)

_Table = dict[str, Leaf]
_Arrays = dict[str, list[_Table]]
#: names of those that have none, with their number
_PREFIXES = {"guest": "vm", "device": "dev"}


def set_override(text: str) -> Override:
    """Make an override of ``--set KEY=VALUE``.

    :raises ScenarioError: there is no ``=`` in it.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ScenarioError(
            f"'{text}' is not KEY=VALUE", where="--set", hint="for example --set hops=3"
        )
    return Override(key=key.strip(), value=value.strip(), option=f"--set {key.strip()}")


def load_scenario(
    path: Path | None, overrides: Sequence[Override] = (), *, cwd: Path | None = None
) -> Scenario:
    """Read a scenario file (``None``: all defaults) and apply ``overrides``.

    :raises ScenarioError: the file cannot be read, or a value in it or in an override is wrong.
    """
    here = cwd if cwd is not None else Path.cwd()
    if path is None:
        return parse_scenario("", where="defaults", base=here, overrides=overrides, cwd=here)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
        text = raw.decode("utf-8")
    except OSError as error:
        raise ScenarioError(error.strerror or str(error), where=str(path)) from error
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ScenarioError("not UTF-8 text", where=f"{path}:{line}") from error
    if len(raw) > MAX_FILE_BYTES:
        raise ScenarioError(
            f"larger than {format_size(MAX_FILE_BYTES)}; not a scenario", where=str(path)
        )
    stem = path.stem if NAME.fullmatch(path.stem) else "default"
    return parse_scenario(
        text, where=str(path), base=path.absolute().parent, overrides=overrides, cwd=here, name=stem
    )


def parse_scenario(
    text: str,
    *,
    where: str,
    base: Path,
    overrides: Sequence[Override] = (),
    cwd: Path | None = None,
    name: str = "default",
) -> Scenario:
    """Make a scenario from TOML ``text``.

    :param where: name of the file, for messages.
    :param base: directory that relative paths in ``text`` are relative to.
    :param cwd: the same for paths in ``overrides``.
    :param name: the scenario's name if the file gives none.
    :raises ScenarioError: a value is wrong.
    """
    try:
        document = tomllib.loads(text)
        lines = scan(text)
    except RecursionError as error:
        raise ScenarioError("nested too deeply", where=f"{where}:1") from error
    except ValueError as error:
        raise _toml_error(error, where) from error
    tables, arrays = _split(document, lines, where, base)
    _apply(tables, arrays, overrides, cwd if cwd is not None else base)
    tables[""].setdefault("name", Leaf(name, where, base))
    return _build(tables, arrays, where)


def where(scenario: Scenario, key: str) -> str:
    """Return where the value of ``key`` (such as ``host.memory``) came from."""
    return scenario.origins.get(key, "default scenario")


def _toml_error(error: ValueError, where: str) -> ScenarioError:
    match = re.fullmatch(
        r"(.*) \(at (?:line (\d+), column \d+|end of document)\)", str(error), re.S
    )
    if match is None:
        return ScenarioError(f"not TOML: {error}", where=f"{where}:1")
    line = f"{where}:{match[2]}" if match[2] else where
    return ScenarioError(f"not TOML: {match[1]}", where=line)


def _split(
    document: Mapping[str, object], lines: KeyLines, where: str, base: Path
) -> tuple[dict[str, _Table], _Arrays]:
    """Sort the document into known tables; unknown keys and tables of the wrong kind are errors."""
    tables: dict[str, _Table] = {section: {} for section in SECTIONS}
    arrays: _Arrays = {name: [] for name in ARRAYS}

    def at(*path: str | int) -> str:
        return f"{where}:{lines.line(path)}"

    def fill(keys: tuple[Key, ...], values: object, path: KeyPath) -> _Table:
        shown = str(path[0])
        if not isinstance(values, dict):
            raise ScenarioError(
                f"'{shown}' is a table, not a value", where=at(*path), hint=f"write [{shown}]"
            )
        table: _Table = {}
        for key, value in values.items():
            if key not in {known.name for known in keys}:
                raise ScenarioError(
                    f"unknown key '{key}' in [{shown}]",
                    where=at(*path, key),
                    hint=suggest_or_list(key, (known.name for known in keys)),
                )
            table[key] = Leaf(value, at(*path, key), base)
        return table

    top = {key.name for key in SECTIONS[""]}
    for name, value in document.items():
        if name in ARRAYS:
            if not isinstance(value, list):
                raise ScenarioError(
                    f"'{name}' is an array of tables", where=at(name), hint=f"write [[{name}]]"
                )
            arrays[name] = [
                fill(ARRAYS[name], entry, (name, index)) for index, entry in enumerate(value)
            ]
        elif name in SECTIONS and name:
            tables[name] = fill(SECTIONS[name], value, (name,))
        elif name in top:
            tables[""][name] = Leaf(value, at(name), base)
        else:
            known = {*top, *SECTIONS, *ARRAYS} - {""}
            raise ScenarioError(
                f"unknown key '{name}'", where=at(name), hint=suggest_or_list(name, known)
            )
    for name, most in _MOST.items():
        if len(arrays[name]) > most:
            raise ScenarioError(
                f"{len(arrays[name])} {name}s; at most {most}", where=at(name, most)
            )
    return tables, arrays


def _apply(
    tables: dict[str, _Table], arrays: _Arrays, overrides: Sequence[Override], cwd: Path
) -> None:
    """Apply overrides. ``guests=N`` goes first, so that keys of new guests can be set."""
    guests = arrays["guest"]
    seen: dict[str, str] = {}
    for override in overrides:
        if override.key in seen:
            also = seen[override.key]
            raise ScenarioError(
                f"'{override.key}' is set twice"
                + (f" (also by {also})" if also != override.option else ""),
                where=override.option,
            )
        seen[override.key] = override.option
    if not guests:
        guests.append({})
    for override in sorted(overrides, key=lambda override: override.key != "guests"):
        leaf = Leaf(override.value, override.option, cwd, text=True)
        section, _, key = override.key.rpartition(".")
        array, _, name = section.partition(".")
        if override.key == "guests":
            _resize(guests, leaf)
        elif array in ARRAYS:
            _check_known(key, ARRAYS[array], override.option)
            for entry in _select(array, arrays[array], name or "*", override.option):
                entry[key] = leaf
        elif section in SECTIONS:
            _check_known(key, SECTIONS[section], override.option)
            tables[section][key] = leaf
        else:
            raise ScenarioError(
                f"unknown table '{section}'",
                where=override.option,
                hint=suggest_or_list(section, [*filter(None, SECTIONS), *ARRAYS]),
            )


def _check_known(key: str, keys: tuple[Key, ...], option: str) -> None:
    names = {known.name for known in keys}
    if key not in names:
        raise ScenarioError(f"unknown key '{key}'", where=option, hint=suggest_or_list(key, names))


def _name_of(array: str, entry: _Table, index: int) -> str:
    leaf = entry.get("name")
    return str(leaf.value) if leaf is not None else f"{_PREFIXES[array]}{index}"


def _select(array: str, entries: list[_Table], name: str, option: str) -> list[_Table]:
    names = [_name_of(array, entry, index) for index, entry in enumerate(entries)]
    if name == "*" and entries:
        return entries
    if name not in names:
        raise ScenarioError(
            f"no {array} '{name}'",
            where=option,
            hint=suggest_or_list(name, names) if names else f"the scenario has no [[{array}]]",
        )
    return [entries[names.index(name)]]


def _resize(guests: list[_Table], leaf: Leaf) -> None:
    """Shorten the list of guests, or extend it with copies of its last one."""
    wanted = convert_value(_GUESTS, leaf)
    assert isinstance(wanted, int)
    last = guests[-1]
    if wanted > len(guests) and "image" in last:
        raise ScenarioError(
            "a guest with an image of its own cannot be multiplied",
            where=leaf.where,
            hint="write one [[guest]] for each",
        )
    del guests[wanted:]
    taken = {_name_of("guest", guest, index) for index, guest in enumerate(guests)}
    while len(guests) < wanted:
        number = len(guests)
        while f"vm{number}" in taken:
            number += 1
        taken.add(f"vm{number}")
        guests.append({**last, "name": Leaf(f"vm{number}", leaf.where, leaf.base)})


def _build(tables: Mapping[str, _Table], arrays: _Arrays, where: str) -> Scenario:
    origins: dict[str, str] = {}

    def convert(section: str, keys: tuple[Key, ...], table: _Table) -> dict[str, Any]:
        prefix = f"{section}." if section else ""
        values = {}
        for key in keys:
            if key.name in table:
                values[key.attribute] = convert_value(key, table[key.name])
                origins[prefix + key.name] = table[key.name].where
        return values

    specs: list[GuestSpec] = []
    for index, table in enumerate(arrays["guest"]):
        table.setdefault("name", Leaf(f"vm{index}", where, Path()))
        name = _check_name("guest", table["name"], {spec.name for spec in specs})
        spec = GuestSpec(**convert(f"guest.{name}", GUEST, table))
        _check_guest(spec, table)
        specs.append(spec)
    devices: list[DeviceSpec] = []
    for index, table in enumerate(arrays["device"]):
        table.setdefault("name", Leaf(f"dev{index}", where, Path()))
        taken = {spec.name for spec in specs} | {other.name for other in devices}
        name = _check_name("device", table["name"], taken)
        device = DeviceSpec(**convert(f"device.{name}", DEVICE, table))
        _check_device(device, table, devices)
        devices.append(device)
    return Scenario(
        **convert("", SECTIONS[""], tables[""]),
        guests=tuple(specs),
        devices=tuple(devices),
        **{
            name: part(**convert(name, SECTIONS[name], tables[name]))
            for name, part in _PARTS.items()
        },
        origins=origins,
    )


def _check_name(what: str, leaf: Leaf, taken: set[str]) -> str:
    name = leaf.value
    if not isinstance(name, str) or not _GUEST_NAME.fullmatch(name) or len(name) > MAX_NAME:
        raise ScenarioError(
            f"{what} name {name!r} is not 1 to {MAX_NAME} of a-z, 0-9 and '-'", where=leaf.where
        )
    if name in RESERVED_NAMES:
        raise ScenarioError(f"{what} name '{name}' is taken by the host", where=leaf.where)
    if name in taken:
        also = "two guests are" if what == "guest" else "something else is"
        raise ScenarioError(f"{also} named '{name}'", where=leaf.where)
    return name


def _check_device(spec: DeviceSpec, table: _Table, others: Sequence[DeviceSpec]) -> None:
    """Check what several keys, or several devices, decide together."""
    if spec.ring % 8:
        # RDLEN counts in 128 bytes, which are 8 descriptors (82576 datasheet, 8.10.4)
        raise ScenarioError(
            f"device '{spec.name}': a ring of {spec.ring} is no multiple of 8",
            where=table["ring"].where,
        )
    for other in others:
        if spec.bdf is not None and spec.bdf == other.bdf:
            raise ScenarioError(
                f"devices '{other.name}' and '{spec.name}' are both {spec.bdf}",
                where=table["bdf"].where,
            )
        if (spec.bdf is None) != (other.bdf is None) and spec.kind == other.kind:
            raise ScenarioError(
                f"device '{spec.name}': give a bdf to all of a kind, or to none",
                where=table["name"].where,
            )


def _check_guest(spec: GuestSpec, table: _Table) -> None:
    """Check what several keys decide together."""

    def fail(key: str, message: str, hint: str | None = None) -> None:
        leaf = table.get(key, table["name"])
        raise ScenarioError(f"guest '{spec.name}': {message}", where=leaf.where, hint=hint)

    room = spec.memory_bytes - GUEST_OVERHEAD_BYTES
    if spec.pattern_bytes is not None and spec.pattern_bytes > room:
        fail(
            "pattern",
            f"pattern of {format_size(spec.pattern_bytes)} leaves less than "
            f"{format_size(GUEST_OVERHEAD_BYTES)} of {format_size(spec.memory_bytes)} RAM",
        )
    if spec.image is None:
        if not spec.kind.payload:
            fail("liveness", f"liveness '{spec.liveness}' needs an image of your own")
        if spec.address is not None:
            fail("address", "an address needs an image of your own")
        return
    if spec.kind.payload:
        others = [f'"{kind.name}"' for kind in GUEST_KINDS.values() if not kind.payload]
        fail(
            "image",
            "an image of your own has no payload to ask",
            f"set liveness = {' or '.join(others)}",
        )
    if spec.kind.needs_address and spec.address is None:
        fail("liveness", f"liveness '{spec.liveness}' needs an address")
    if spec.pattern_bytes is not None:
        fail("pattern", "a pattern is filled by the payload only")
