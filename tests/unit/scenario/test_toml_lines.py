# SPDX-License-Identifier: Apache-2.0
"""Line numbers of TOML keys."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from liveupdate.scenario.toml_lines import KeyPath, scan

DOCUMENT = '''\
# comment with [a] = 1
name = "x # [not] a = comment"

"quoted key" = 1
dotted . "inner" = 2
list = [
  "]", # ] = "
  '[',
]
text = """
[host]
memory = 1 \\""" still
""""
after = 0
[host] # trailing
memory = "1G"
[[guest]]
name = "a"
[guest.sub]
deep = 1
[[guest]]
name = "b"
  [guest.sub]
  deep = 1
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("name",), 2),
        (("quoted key",), 4),
        (("dotted", "inner"), 5),
        (("dotted",), 5),
        (("list",), 6),
        (("text",), 10),
        (("after",), 14),
        (("host",), 15),
        (("host", "memory"), 16),
        (("guest", 0), 17),
        (("guest", 0, "name"), 18),
        (("guest", 0, "sub", "deep"), 20),
        (("guest", 1), 21),
        (("guest", 1, "name"), 22),
        (("guest", 1, "sub", "deep"), 24),
    ],
)
def test_key_is_found_on_its_line(path: KeyPath, line: int) -> None:
    tomllib.loads(DOCUMENT)
    assert scan(DOCUMENT).line(path) == line


def test_carriage_returns_do_not_count_twice() -> None:
    assert scan("a = 1\r\n\r\nb = 2\r\n").line(("b",)) == 3


def test_key_in_inline_table_is_on_the_line_of_its_table() -> None:
    assert scan('\nhost = { memory = "1G" }\n').line(("host", "memory")) == 2


def test_unknown_path_is_on_the_line_of_the_nearest_table() -> None:
    assert scan("\n\n[host]\na = 1").line(("host", "zzz", 0)) == 3
    assert scan("").line(("x",)) == 1


def _paths(node: object, at: KeyPath = ()) -> Iterator[KeyPath]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield (*at, key)
            yield from _paths(value, (*at, key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _paths(value, (*at, index))


_scraps = st.lists(
    st.sampled_from(
        ["[a]", "[[g]]", "[g.t]", "[ b . 'c' ]", "\n", "\n", "k=1", "'q q' = 2", "d.e = ''",
         "s = \"\"\"\n#\n\"\"\"", "t = '''\n'\n'''", "l = [\n1, # ]\n2]", "# x = [", 'u = "\\""',
         "i = { x = 1, y = [2] }", "z=''", "w = 1979-05-27 07:32:00", "k2=1 # k3=1"]
    )
).map("\n".join)  # fmt: skip


@given(st.one_of(_scraps, st.text(alphabet="ab=[]\"'\\\n#.{}, 1", max_size=60)))
@example('a = """"x"""""\nb = 1')
def test_every_accepted_document_has_every_key_in_range(text: str) -> None:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    lines = scan(text)
    count = text.count("\n") + 1
    for path in _paths(document):
        assert 1 <= lines.line(path) <= count
    # every top-level key has a line of its own entry, and it is written there
    for key in document:
        assert (key,) in lines.lines
        assert key in text.split("\n")[lines.line((key,)) - 1] or "\\" in text
