# SPDX-License-Identifier: Apache-2.0
"""A Kconfig fragment (or a whole ``.config``) as a value: parse, compare, merge.

Grammar of Documentation/kbuild/kconfig.rst: ``CONFIG_NAME=value`` or ``# CONFIG_NAME is not set``.
A symbol that is not named counts as ``n``, as for Kconfig itself. Must not know make or paths.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

_SET = re.compile(r'CONFIG_(\w+)=("(?:[^"\\]|\\.)*"|[^\s"]+)')
_UNSET = re.compile(r"# CONFIG_(\w+) is not set")


class KconfigError(ValueError):
    """A line is neither an option nor a comment; ``where`` is ``name:line``."""

    def __init__(self, where: str, line: str) -> None:
        super().__init__(f"{where}: '{line}' is not CONFIG_NAME=value")
        self.where = where


@dataclass(frozen=True, slots=True)
class Difference:
    """One symbol with two values; "n" stands for absent, too."""

    symbol: str
    wanted: str
    found: str

    def __str__(self) -> str:
        return f"CONFIG_{self.symbol}={self.wanted} (found {self.found})"


@dataclass(frozen=True, slots=True)
class Fragment:
    """Symbols (without ``CONFIG_``) and their values as written, strings with their quotes."""

    values: Mapping[str, str]

    def get(self, symbol: str) -> str:
        """Return the value of a symbol, "n" when it is not named."""
        return self.values.get(symbol, "n")

    def missing_from(self, config: Fragment) -> tuple[Difference, ...]:
        """Return what this fragment asks for and ``config`` does not have, by symbol."""
        return tuple(
            Difference(symbol, value, config.get(symbol))
            for symbol, value in sorted(self.values.items())
            if config.get(symbol) != value
        )

    def merge(self, later: Fragment) -> Fragment:
        """Return both together; where they conflict ``later`` wins."""
        return Fragment(MappingProxyType({**self.values, **later.values}))

    def render(self) -> str:
        """Return the fragment as text, one sorted line per symbol."""
        return "".join(
            f"# CONFIG_{symbol} is not set\n" if value == "n" else f"CONFIG_{symbol}={value}\n"
            for symbol, value in sorted(self.values.items())
        )


def parse_config(text: str, name: str = ".config") -> Fragment:
    """Parse a fragment; a symbol named twice takes its last value, as in Kconfig.

    :param name: what the text is called in errors.
    :raises KconfigError: on a line that is no option, blank or comment.
    """
    values: dict[str, str] = {}
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        if match := _UNSET.fullmatch(line):
            values[match[1]] = "n"
        elif match := _SET.fullmatch(line):
            values[match[1]] = match[2]
        elif line and not line.startswith("#"):
            raise KconfigError(f"{name}:{number}", line)
    return Fragment(MappingProxyType(values))
