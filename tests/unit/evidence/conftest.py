# SPDX-License-Identifier: Apache-2.0
"""Run directories of these tests are in RAM."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ram


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """As pytest's own, but a sync costs nothing."""
    with ram.directory() as path:
        yield path
