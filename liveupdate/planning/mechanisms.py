# SPDX-License-Identifier: Apache-2.0
"""Every mechanism's requirements by name, from the files of the agent that carry them out."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType

from liveupdate.agent.mechanisms import NAMES
from liveupdate.model.mechanism import Offer, Requirements, Trait, Traits

_PACKAGE = "liveupdate.agent.mechanisms"


def read_requirements(name: str) -> Requirements:
    """Read what a mechanism's file says of it.

    :raises TypeError: it lacks something, or has a key that nothing reads.
    """
    data = dict(import_module(f"{_PACKAGE}.{name.replace('-', '_')}").REQUIREMENTS)
    traits = dict(data.pop("traits"))
    kernel_code = traits.pop("kernel_code", ())
    return Requirements(
        name=name,
        traits=Traits(
            kernel_code=kernel_code, **{key: Trait(*said) for key, said in traits.items()}
        ),
        has=tuple(map(Offer, data.pop("has", ()))),
        lacks_too={Offer(key): why for key, why in data.pop("lacks_too", {}).items()},
        **data,
    )


MECHANISMS: Mapping[str, Requirements] = MappingProxyType(
    {name: read_requirements(name) for name in NAMES}
)
"""Every mechanism by name, the default first."""
