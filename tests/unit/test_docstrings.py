# SPDX-License-Identifier: Apache-2.0
"""Every module and every public definition of the package has a docstring."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _is_exempt(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
    """Whether another definition of the same name has the docstring: overloads and setters."""
    for decorator in node.decorator_list:
        name = decorator.attr if isinstance(decorator, ast.Attribute) else decorator
        if isinstance(name, ast.Name):
            name = name.id
        if name in ("overload", "setter"):
            return True
    return False


def _walk(body: list[ast.stmt], prefix: str) -> Iterator[str]:
    for node in body:
        if isinstance(node, (ast.If, ast.Try)):
            blocks = [node.body, node.orelse]
            if isinstance(node, ast.Try):
                blocks += [node.finalbody, *(handler.body for handler in node.handlers)]
            for block in blocks:
                yield from _walk(block, prefix)
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if node.name.startswith("_") or _is_exempt(node):
            continue
        if ast.get_docstring(node) is None:
            yield f"{prefix}{node.name}"
        if isinstance(node, ast.ClassDef):
            yield from _walk(node.body, f"{prefix}{node.name}.")


def undocumented(source: str) -> list[str]:
    """Name the public definitions of a module that have no docstring; "" is the module itself.

    Public is what has no leading underscore, with the methods and properties of public classes;
    what is defined within a function is not.
    """
    tree = ast.parse(source)
    return [*([] if ast.get_docstring(tree) else [""]), *_walk(tree.body, "")]


def test_every_public_definition_has_a_docstring() -> None:
    found = {
        path.relative_to(ROOT).as_posix(): names
        for path in sorted((ROOT / "liveupdate").rglob("*.py"))
        if (names := undocumented(path.read_text(encoding="utf-8")))
    }
    assert found == {}


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("x = 1", [""]),
        ('"""M."""\ndef f(): ...', ["f"]),
        ('"""M."""\nasync def f(): ...', ["f"]),
        ('"""M."""\nif x:\n    def f(): ...\nelse:\n    def g(): ...', ["f", "g"]),
        ('"""M."""\nclass C:\n    """C."""\n    @property\n    def p(self): ...', ["C.p"]),
        ('"""M."""\nclass C:\n    x = 1', ["C"]),
        ('"""M."""\ndef _f(): ...\nclass _C:\n    def f(self): ...', []),
        ('"""M."""\ndef f():\n    """F."""\n    def g(): ...', []),
        ('"""M."""\n@overload\ndef f(): ...\n@typing.overload\ndef g(): ...', []),
        ('"""M."""\nclass C:\n    """C."""\n    @p.setter\n    def p(self, v): ...', []),
        ('"""M."""\nclass C:\n    """C."""\n    def __init__(self): ...', []),
    ],
)
def test_what_counts_as_public(source: str, names: list[str]) -> None:
    assert undocumented(source) == names
