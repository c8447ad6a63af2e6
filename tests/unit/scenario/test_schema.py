# SPDX-License-Identifier: Apache-2.0
"""The schema of scenarios: published as made, and of one mind with the loader."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import jsonschema
import pytest

import liveupdate.scenario
from liveupdate.core.errors import ScenarioError
from liveupdate.model.scenario import DeviceSpec, Scenario
from liveupdate.scenario.dump import dump_scenario
from liveupdate.scenario.keys import ARRAYS, SECTIONS
from liveupdate.scenario.load import parse_scenario
from liveupdate.scenario.schema import scenario_schema

SHIPPED = sorted((Path(__file__).parents[3] / "scenarios").glob("*.toml"))
PUBLISHED = Path(liveupdate.scenario.__path__[0]) / "scenario.schema.json"
SCHEMA = jsonschema.Draft202012Validator(scenario_schema())


def test_published_schema_is_the_one_made_from_the_keys() -> None:
    published = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    assert published == scenario_schema(), "run: liveupdate schema scenario > PUBLISHED"
    jsonschema.Draft202012Validator.check_schema(published)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_scenarios_fit(path: Path) -> None:
    problems = SCHEMA.iter_errors(tomllib.loads(path.read_text(encoding="utf-8")))
    assert [problem.message for problem in problems] == []


def test_a_resolved_scenario_fits() -> None:
    scenario = Scenario(devices=(DeviceSpec(name="nic0"),))
    problems = SCHEMA.iter_errors(tomllib.loads(dump_scenario(scenario)))
    assert [problem.message for problem in problems] == []


def test_every_key_is_there_with_its_meaning() -> None:
    made = scenario_schema()["properties"]
    tables = {name: made[name] for name in SECTIONS if name}
    tables |= {name: made[name]["items"] for name in ARRAYS}
    for name, table in tables.items():
        keys = {**SECTIONS, **ARRAYS}[name]
        assert {key: value["description"] for key, value in table["properties"].items()} == {
            key.name: key.doc for key in keys
        }
    assert {key.name for key in SECTIONS[""]} <= set(made)


@pytest.mark.parametrize(
    "text",
    [
        "colour = 1",
        "hops = 0",
        "hops = 101",
        'accel = "hax"',
        'cold = "yes"',
        '[[guest]]\nmemory = "much"',
        "[[guest]]\nmemory = 256",
        '[timeouts]\nboot = "30"',
        "[timeouts]\nboot = 30",
        '[host]\nname = "x"',
    ],
)
def test_what_the_loader_refuses_at_a_key_does_not_fit(text: str) -> None:
    with pytest.raises(ScenarioError):
        parse_scenario(text, where="s.toml", base=Path("/"), overrides=())
    assert not SCHEMA.is_valid(tomllib.loads(text))


def test_a_fault_that_does_not_exist_does_not_fit() -> None:
    assert SCHEMA.is_valid({"fault": "flip-bit"}) and SCHEMA.is_valid({"fault": "none"})
    assert not SCHEMA.is_valid({"fault": "no-such-fault"})
