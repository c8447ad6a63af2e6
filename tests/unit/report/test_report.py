# SPDX-License-Identifier: Apache-2.0
"""Every report says what the verdict says, is well-formed, and lets nothing hostile through."""

from __future__ import annotations

import dataclasses
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from junitparser import JUnitXml
from msgspec.structs import replace

import liveupdate.report
from liveupdate.judging.judge import judge
from liveupdate.judging.table import CHECK_IDS
from liveupdate.model.evidence import Evidence, Incident
from liveupdate.model.plan import Plan
from liveupdate.model.verdict import Outcome, Verdict
from liveupdate.report.common import clean
from liveupdate.report.html import render_html
from liveupdate.report.json_result import make_result, render_json, result_schema
from liveupdate.report.junit import render_junit
from liveupdate.report.ktap import render_ktap
from liveupdate.report.text import render_text
from tests.support import evidence_builder as make
from tests.support import iommu_evidence as seen

SCHEMA = json.loads(
    (Path(liveupdate.report.__path__[0]) / "result.schema.json").read_text(encoding="utf-8")
)
PLAN = make.make_plan()
GOOD = make.make_evidence()
HOSTILE = "\x1b[31m<script>alert(1)</script>\x00]]>&#1; # \nok 1 fake\ud800"


def spoilt(text: str = HOSTILE) -> Evidence:
    incidents = (Incident(kind="panic", hop=1, text=text),)
    return replace(make.with_after(GOOD, generation=7), incidents=incidents)


STRUCK = make.with_hop(GOOD, struck=(make.make_struck("flip-bit"),))

CASES = {
    "good": (PLAN, GOOD),
    "hops": (make.make_plan(hops=4), make.make_evidence(hops=4)),
    "device": (seen.make_plan(), seen.make_evidence()),
    "hostile": (PLAN, spoilt()),
    "struck": (PLAN, STRUCK),
    "empty": (PLAN, Evidence(provenance=None, hops=())),
    "timed-out": (
        PLAN,
        replace(
            make.with_hop(GOOD, after=None),
            incidents=(Incident(kind="deadline", hop=1, text="waited 60 s"),),
        ),
    ),
}


@pytest.fixture(params=CASES, ids=list(CASES))
def case(request: pytest.FixtureRequest) -> tuple[Plan, Evidence, Verdict]:
    plan, evidence = CASES[request.param]
    return plan, evidence, judge(plan, evidence)


def validate(document: object) -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(document)


def test_reports_show_what_a_fault_struck() -> None:
    verdict = judge(PLAN, STRUCK)
    said = "flip-bit: bit 3 of a byte (host-physical 0x1000): 00 became 08; seen from outside"
    for with_details in (False, True):
        text = render_text(PLAN, STRUCK, verdict, with_details=with_details)
        assert f"struck: {said}" in " ".join(text.split())
    assert f"struck: hop 1, {said}" in render_html(PLAN, STRUCK, verdict)
    (struck,) = json.loads(render_json(PLAN, STRUCK, verdict))["struck"]
    assert (struck["before"], struck["after"]) == ("00", "08")
    assert "struck:" not in render_text(PLAN, GOOD, verdict)


def test_schema_is_a_schema_and_knows_every_check() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    ids = SCHEMA["$defs"]["Check"]["properties"]["id"]["enum"]
    assert tuple(ids) == CHECK_IDS


def test_published_schema_is_the_one_made_from_the_types() -> None:
    assert result_schema() == SCHEMA, "run: liveupdate schema result > PUBLISHED"


def test_later_versions_may_add_fields_anywhere() -> None:
    document = json.loads(render_json(PLAN, GOOD, judge(PLAN, GOOD)))
    document["new"] = document["provenance"]["new"] = document["checks"][0]["new"] = 1
    assert jsonschema.Draft202012Validator(SCHEMA).is_valid(document)


def test_result_fits_the_schema(case: tuple[Plan, Evidence, Verdict]) -> None:
    document = json.loads(render_json(*case))
    validate(document)
    assert document["outcome"] == case[2].outcome.value
    assert document["exit_code"] == int(case[2].exit_code)
    assert [check["id"] for check in document["checks"]] == list(CHECK_IDS)


@pytest.mark.parametrize("key", ["outcome", "checks", "provenance", "artifacts", "schema_version"])
def test_schema_refuses_a_result_without(key: str) -> None:
    document = make_result(PLAN, GOOD, judge(PLAN, GOOD))
    del document[key]
    with pytest.raises(jsonschema.ValidationError):
        validate(document)


def test_result_names_phases_metrics_and_raw_files() -> None:
    document = json.loads(render_json(PLAN, GOOD, judge(PLAN, GOOD)))
    assert {phase["name"] for phase in document["phases"]} == {"prepare", "kernel", "load"}
    assert "gap.vcpu" in {metric["name"] for metric in document["metrics"]}
    assert "evidence/hop-1/vm0/freeze.xxh3" in {each["path"] for each in document["artifacts"]}
    assert [kernel["release"] for kernel in document["kernels"]] == ["7.3.4-lu-a", "7.3.4-lu-b"]


def test_junit_counts_what_the_verdict_counts(case: tuple[Plan, Evidence, Verdict]) -> None:
    verdict = case[2]
    text = render_junit(*case)
    ET.fromstring(text)
    (suite,) = list(JUnitXml.fromstring(text.encode()))
    counted = {
        outcome: sum(check.status is outcome for check in verdict.checks) for outcome in Outcome
    }
    assert suite.tests == len(CHECK_IDS)
    assert suite.failures == counted[Outcome.FAIL]
    assert suite.errors == counted[Outcome.ERROR]
    assert suite.skipped == counted[Outcome.SKIP]


def test_ktap_says_what_the_verdict_says(case: tuple[Plan, Evidence, Verdict]) -> None:
    verdict = case[2]
    lines = render_ktap(*case).splitlines()
    assert lines[:2] == ["KTAP version 1", f"1..{len(CHECK_IDS)}"]
    results = [line for line in lines[2:] if not line.startswith("# ")]
    for number, (line, check) in enumerate(zip(results, verdict.checks, strict=True), 1):
        ok = "ok" if check.status in (Outcome.PASS, Outcome.SKIP) else "not ok"
        expected = {Outcome.SKIP: " # SKIP", Outcome.ERROR: " # ERROR"}.get(check.status, "")
        if verdict.timed_out and expected == " # ERROR":
            expected = " # TIMEOUT"
        assert line.startswith(f"{ok} {number} {check.id}{expected}")
        assert ("#" in line) is bool(expected)
        assert any(each.startswith(f"# {check.id}: ") for each in lines) is (
            check.status is Outcome.FAIL
        )


def test_text_begins_with_the_verdict_and_a_line_for_each_guest() -> None:
    text = render_text(PLAN, GOOD, judge(PLAN, GOOD))
    lines = text.splitlines()
    assert lines[0].startswith("PASS  test: 1 hop")
    assert lines[2] == "vm0: blackout 4.01 s, longest gap 4.05 s (storage, hop 1)"
    assert lines[3] == "hop 1: 7.3.4-lu-a → 7.3.4-lu-b"
    for word in ("512 pages equal", "memory.placement"):
        assert word in text, word


def test_text_says_how_long_a_guest_stood_still_over_all_hops() -> None:
    case = CASES["hops"]
    lines = render_text(*case, judge(*case)).splitlines()
    assert [line.partition(",")[0] for line in lines if line.startswith("vm0: ")] == [
        "vm0: blackouts 4.01 s to 4.01 s"
    ]
    assert sum(line.startswith("hop ") for line in lines) == 4


def test_text_with_details_has_build_ids_gaps_and_phases_of_each_hop() -> None:
    verdict = judge(PLAN, GOOD)
    details = ("a" * 40, "b" * 40, "blackout 4.01 s; gaps: vcpu", "storage", "prepare", "kernel")
    text = render_text(PLAN, GOOD, verdict, with_details=True)
    for word in details:
        assert word in text, word
    short = render_text(PLAN, GOOD, verdict)
    assert "from pause" in text and "from pause" not in short and "a" * 40 not in short


def test_text_fits_into_78_columns(case: tuple[Plan, Evidence, Verdict]) -> None:
    for with_details in (False, True):
        for line in render_text(*case, with_details=with_details).splitlines():
            # a word that is longer than a line stays in one piece: paths and numbers are copied
            assert len(line) <= 78 or len(line.split()) <= 2, line


def test_the_headline_of_what_was_rolled_back_says_so_unless_a_guest_was_lost() -> None:
    verdict = dataclasses.replace(judge(PLAN, spoilt("refused")), rolled_back=True)
    assert verdict.outcome is Outcome.FAIL
    assert render_text(PLAN, GOOD, verdict).startswith("ROLLED BACK  ")
    assert "<title>ROLLED BACK: " in render_html(PLAN, GOOD, verdict)
    lost = dataclasses.replace(verdict, rolled_back=False)
    assert render_text(PLAN, GOOD, lost).startswith("FAIL  ")
    assert "<title>FAIL: " in render_html(PLAN, GOOD, lost)


def test_text_says_how_well_devices_were_watched_and_what_it_cost() -> None:
    case = CASES["device"]
    text = render_text(*case, judge(*case))
    assert "looked at from outside at 50 Hz for 3 % of a core, longest hole 31 ms" in text
    assert "2.0 MiB in 2 runs reach the same memory" in re.sub(r"\s+", " ", text)


def test_text_is_plain_and_not_wide(case: tuple[Plan, Evidence, Verdict]) -> None:
    text = render_text(*case)
    assert "\x1b" not in text and "\x00" not in text
    assert max(map(len, text.splitlines())) <= 110
    for check in case[2].checks:
        assert check.id in text


class Page(HTMLParser):
    """Collects tags and whatever would load something."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self.loads += [name for name, _value in attrs if name in ("src", "href", "style")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_html_is_balanced_and_loads_nothing(case: tuple[Plan, Evidence, Verdict]) -> None:
    text = render_html(*case)
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.loads == []
    assert "script" not in page.tags and "link" not in page.tags
    assert "url(" not in text and "@import" not in text
    for check in case[2].checks:
        assert check.id in text


def test_html_has_a_timeline_with_phases_and_gaps() -> None:
    text = render_html(PLAN, GOOD, judge(PLAN, GOOD))
    svgs = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(svgs) == 1
    ET.fromstring(svgs[0])
    for label in ("kernel", "vm0: load", "vm0: vCPU gap", "vm0: network gap", "vm0: storage gap"):
        assert f">{label}</text>" in svgs[0]


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=60))
def test_no_text_of_a_machine_breaks_a_report(text: str) -> None:
    evidence = spoilt(text)
    verdict = judge(PLAN, evidence)
    ET.fromstring(render_junit(PLAN, evidence, verdict))
    validate(json.loads(render_json(PLAN, evidence, verdict)))
    ktap = render_ktap(PLAN, evidence, verdict).splitlines()
    assert len(re.findall(r"^(?:not )?ok", "\n".join(ktap), re.MULTILINE)) == len(CHECK_IDS)
    assert all(re.match(r"KTAP|1\.\.|# |(?:not )?ok \d", line) for line in ktap)
    page = Page()
    page.feed(render_html(PLAN, evidence, verdict))
    assert page.open == []
    for report in (render_text, render_html, render_junit, render_ktap):
        report(PLAN, evidence, verdict).encode()


def test_clean_takes_escapes_and_keeps_text() -> None:
    assert clean("\x1b[1;31mred\x1b[0m µ → \x07x\r\ny") == "red µ → x y"
    # marks that turn the order of what is shown, and such that are not shown
    assert clean("a\u202eb\u2066c\u200bd\ufeffe\U000e0041f\u2028g\xadh") == "abcdefgh"
