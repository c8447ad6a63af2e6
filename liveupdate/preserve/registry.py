# SPDX-License-Identifier: Apache-2.0
"""Every mechanism there is, the default first."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from liveupdate.model.mechanism import Requirements
from liveupdate.preserve import (
    breadcrumb,
    luo_memfd,
    pkernfs,
    pkram,
    pool,
    prmem,
    reserve_mem,
    reserved_dax,
)

MECHANISMS: Mapping[str, Requirements] = MappingProxyType(
    {
        module.REQUIREMENTS.name: module.REQUIREMENTS
        for module in (
            luo_memfd,
            breadcrumb,
            pkernfs,
            pkram,
            pool,
            prmem,
            reserve_mem,
            reserved_dax,
        )
    }
)
