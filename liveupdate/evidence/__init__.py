# SPDX-License-Identifier: Apache-2.0
"""The run directory: written during a run, read back to judge it."""

from liveupdate.evidence.files import StoreError, write_atomic
from liveupdate.evidence.store import RunDir

__all__ = ["RunDir", "StoreError", "write_atomic"]
