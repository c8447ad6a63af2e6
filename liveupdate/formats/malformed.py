# SPDX-License-Identifier: Apache-2.0
"""The ancestor of every decoder's error: bytes that are not what they should be."""

from __future__ import annotations


class MalformedError(ValueError):
    """Input cannot be decoded.

    :param what: what was expected and what was found.
    :param where: byte offset, field, sector or key that is wrong.
    """

    def __init__(self, what: str, *, where: str) -> None:
        super().__init__(f"{where}: {what}")
        self.what = what
        self.where = where
