# SPDX-License-Identifier: Apache-2.0
"""Every mechanism there is."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from liveupdate.preserve import luo_memfd, reserved_dax
from liveupdate.preserve.base import Requirements

MECHANISMS: Mapping[str, Requirements] = MappingProxyType(
    {module.REQUIREMENTS.name: module.REQUIREMENTS for module in (luo_memfd, reserved_dax)}
)
