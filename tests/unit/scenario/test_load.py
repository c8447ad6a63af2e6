# SPDX-License-Identifier: Apache-2.0
"""Scenario files and overrides."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from liveupdate.core.errors import ScenarioError
from liveupdate.core.units import GIB, MIB
from liveupdate.model.scenario import DeviceSpec, GuestSpec, Scenario
from liveupdate.scenario.dump import dump_scenario
from liveupdate.scenario.keys import GUEST, SECTIONS, Key
from liveupdate.scenario.load import Override, load_scenario, parse_scenario, set_override

BASE = Path("/base")
SHIPPED = sorted((Path(__file__).parents[3] / "scenarios").glob("*.toml"))


def parse(text: str, *sets: str) -> Scenario:
    overrides = tuple(set_override(item) for item in sets)
    return parse_scenario(text, where="s.toml", base=BASE, overrides=overrides)


def without_origins(scenario: Scenario) -> Scenario:
    return replace(scenario, origins={})


def test_empty_text_is_the_default_scenario() -> None:
    assert without_origins(parse("")) == Scenario()


def test_no_file_is_the_default_scenario() -> None:
    assert without_origins(load_scenario(None)) == Scenario()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_scenario_loads_and_is_named_after_its_file(path: Path) -> None:
    assert load_scenario(path).name == path.stem


def test_values_and_their_origins() -> None:
    text = 'hops = 2\n[[guest]]\nname = "a"\nmemory = "1G"\n[host]\nvcpus = 4\n'
    scenario = parse(text, "guest.a.memory=512M", "timeouts.boot=90s")
    assert scenario.hops == 2
    assert scenario.guests == (GuestSpec(name="a", memory_bytes=512 * MIB),)
    assert scenario.host.vcpus == 4
    assert scenario.timeouts.boot_s == 90.0
    assert scenario.origins["hops"] == "s.toml:1"
    assert scenario.origins["guest.a.memory"] == "--set guest.a.memory"
    assert scenario.origins["host.vcpus"] == "s.toml:6"


def test_number_of_guests_goes_on_with_copies_of_the_last() -> None:
    scenario = parse('[[guest]]\nname="vm1"\nmemory="512M"\n', "guests=3", "guest.*.vcpus=2")
    assert [guest.name for guest in scenario.guests] == ["vm1", "vm2", "vm3"]
    assert {guest.memory_bytes for guest in scenario.guests} == {512 * MIB}
    assert {guest.vcpus for guest in scenario.guests} == {2}
    assert len(parse('[[guest]]\nname="a"\n[[guest]]\nname="b"\n', "guests=1").guests) == 1


def test_relative_paths_are_relative_to_the_file_or_to_the_working_directory() -> None:
    override = Override(key="next_kernel", value="b", option="--next-kernel")
    scenario = parse_scenario(
        'kernel = "a"\n', where="s.toml", base=BASE, overrides=[override], cwd=Path("/cwd")
    )
    assert (scenario.kernel, scenario.next_kernel) == ("/base/a", "/cwd/b")


def test_none_takes_a_bound_away() -> None:
    assert parse('[budget]\nblackout = "2s"\n', "budget.blackout=none").budget.blackout_s is None


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        ("hops = ", "s.toml", "not TOML"),
        ("\nhops = 1\nhops = 2\n", "s.toml:3", "not TOML"),
        ("hop = 1\n", "s.toml:1", "did you mean 'hops'?"),
        ("[hots]\n", "s.toml:1", "did you mean 'host'?"),
        ("[host]\nmemroy = '1G'\n", "s.toml:2", "did you mean 'memory'?"),
        ("[[guest]]\n[[guest]]\nram = '1G'\n", "s.toml:3", "unknown key 'ram'"),
        ("guest = 1\n", "s.toml:1", "write [[guest]]"),
        ("[guest]\n", "s.toml:1", "write [[guest]]"),
        ("guest = [1]\n", "s.toml:1", "is a table"),
        ("host = 1\n", "s.toml:1", "write [host]"),
        ("hops = '1'\n", "s.toml:1", "a whole number"),
        ("hops = true\n", "s.toml:1", "a whole number"),
        ("hops = 0\n", "s.toml:1", "in 1 to 100"),
        ("cold = 1\n", "s.toml:1", "true or false"),
        ("accel = 'kmv'\n", "s.toml:1", "did you mean 'kvm'?"),
        ("[host]\nmemory = 2048\n", "s.toml:2", "write the unit"),
        ("[host]\nmemory = '2 gigs'\n", "s.toml:2", "write 256M or 2G"),
        ("[[guest]]\nmemory = '64M'\n", "s.toml:2", "in 96 MiB to 64 GiB"),
        ("[[guest]]\nmemory = '99999K'\n", "s.toml:2", "a multiple of 2 MiB"),
        ("[timeouts]\nboot = 30\n", "s.toml:2", "write the unit"),
        ("[timeouts]\nboot = '30 sec'\n", "s.toml:2", "write 500ms, 30s or 5m"),
        ("[timeouts]\nboot = '0s'\n", "s.toml:2", "in 1s to 86400s"),
        ("[budget]\nclock_ppm = nan\n", "s.toml:2", "in 1 to"),
        ("[budget]\nblackout = 'soon'\n", "s.toml:2", "not a duration"),
        ("[[guest]]\nname='a'\n[[guest]]\nname='a'\n", "s.toml:4", "two guests are named 'a'"),
        ("[[guest]]\nname='Kit!'\n", "s.toml:2", "a-z"),
        ("[[guest]]\nname='kit'\n", "s.toml:2", "taken by the host"),
        ("[[guest]]\nname='aaaaaaaaaaaaaaaaaaaaa'\n", "s.toml:2", "1 to 20"),
        ("[[guest]]\nimage='x'\n", "s.toml:2", "no payload"),
        ("[[guest]]\nliveness='agent'\n", "s.toml:2", "needs an image"),
        ("[[guest]]\naddress='10.0.0.1'\n", "s.toml:2", "needs an image"),
        ("[[guest]]\nimage='x'\nliveness='network'\n", "s.toml:3", "needs an address"),
        ("[[guest]]\nimage='x'\nliveness='network'\naddress='1.2.3'\n", "s.toml:4", "IPv4"),
        ("[[guest]]\nimage='x'\nliveness='agent'\npattern='1M'\n", "s.toml:4", "payload only"),
        ("[[guest]]\nmemory='128M'\npattern='100M'\n", "s.toml:3", "leaves less than 64 MiB"),
        ('[host]\nappend = "a\\nb"\n', "s.toml:2", "printable"),
        ("[host]\nappend = 'ä'\n", "s.toml:2", "ASCII"),
        ("kernel = ''\n", "s.toml:1", "not a name"),
        ("name = 'a/b'\n", "s.toml:1", "letters"),
        ("x = " + "[" * 5000 + "]" * 5000, "s.toml:1", "too deeply"),
        ("[[guest]]\n" * 9, "s.toml:9", "at most 8"),
    ],
)
def test_bad_text_is_one_line_with_its_place(text: str, where: str, message: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        parse(text)
    assert caught.value.where == where
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("sets", "where", "message"),
    [
        (["hops=x"], "--set hops", "a whole number"),
        (["hops=2", "hops=3"], "--set hops", "set twice"),
        (["hosp.memory=2G"], "--set hosp.memory", "did you mean 'host'?"),
        (["host.memry=2G"], "--set host.memry", "did you mean 'memory'?"),
        (["guest.vm1.memory=1G"], "--set guest.vm1.memory", "no guest 'vm1'"),
        (["guests=0"], "--set guests", "in 1 to 8"),
        (["cold=yes"], "--set cold", "true or false"),
        (["budget.clock_ppm=fast"], "--set budget.clock_ppm", "a number"),
    ],
)
def test_bad_override_names_its_option(sets: list[str], where: str, message: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        parse("", *sets)
    assert caught.value.where == where
    assert message in str(caught.value)


def test_override_without_equals_is_refused() -> None:
    with pytest.raises(ScenarioError, match="KEY=VALUE"):
        set_override("hops")


def test_image_of_ones_own_is_not_multiplied() -> None:
    with pytest.raises(ScenarioError, match="cannot be multiplied"):
        parse('[[guest]]\nimage="x"\nliveness="agent"\n', "guests=2")


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00", b"#" * (1 << 20) + b"#"])
def test_unreadable_file_names_itself(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "s.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ScenarioError) as caught:
        load_scenario(path)
    assert str(path) in caught.value.where


_every_key = [key for keys in (*SECTIONS.values(), GUEST) for key in keys]


@pytest.mark.parametrize("key", _every_key, ids=lambda key: key.name)
def test_every_key_fills_a_field_and_is_documented(key: Key) -> None:
    owners = [Scenario(), Scenario().guests[0], Scenario().host, Scenario().timeouts]
    owners += [Scenario().observe, Scenario().budget, Scenario().iommu, DeviceSpec(name="d")]
    assert any(hasattr(owner, key.attribute) for owner in owners)
    docs = (Path(__file__).parents[3] / "docs" / "scenario.md").read_text()
    assert f"`{key.name}`" in docs
    assert key.doc in docs


_values = st.one_of(
    st.text(max_size=12).map(repr), st.integers().map(str), st.floats().map(str),
    st.sampled_from(["true", "'256M'", "'1G'", "'30s'", "'agent'", "[]", "{}", "1979-05-27"]),
)  # fmt: skip
_names = st.sampled_from([*(key.name for key in _every_key), "guest", "host", "nonsense"])
_statements = st.one_of(
    st.builds("{} = {}".format, _names, _values),
    st.sampled_from(["[[guest]]", "[host]", "[timeouts]", "[observe]", "[budget]", "[x]"]),
)


@given(st.one_of(st.text(), st.lists(_statements).map("\n".join)))
def test_any_text_is_a_scenario_or_a_scenario_error(text: str) -> None:
    try:
        scenario = parse(text)
    except ScenarioError as error:
        assert error.where.startswith("s.toml")
        assert "\n" not in str(error)
    else:
        again = parse(dump_scenario(scenario))
        assert without_origins(again) == without_origins(scenario)


@given(st.text(), st.sampled_from([*(key.name for key in _every_key), "guests"]))
def test_any_override_is_a_scenario_or_a_scenario_error(value: str, key: str) -> None:
    for name in (key, f"guest.*.{key}", f"host.{key}", f"timeouts.{key}", f"budget.{key}"):
        try:
            parse("", f"{name}={value}")
        except ScenarioError as error:
            assert error.where.startswith("--set ")


_durations = st.floats(min_value=1, max_value=86400)
_scenarios = st.builds(
    Scenario,
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,20}", fullmatch=True),
    hops=st.integers(1, 100),
    kernel=st.none() | st.text("abc\"'\\ /ä", min_size=1).map(lambda text: "/" + text.strip("/")),
    cold=st.booleans(),
    fault=st.none() | st.sampled_from(["flip-bit"]),
    guests=st.lists(
        st.builds(
            GuestSpec,
            name=st.from_regex(r"[a-z0-9][a-z0-9-]{0,19}", fullmatch=True).filter(
                lambda name: name not in ("root", "kit")
            ),
            memory_bytes=st.integers(64, 1024).map(lambda pages: pages * 2 * MIB),
        ),
        min_size=1,
        max_size=8,
        unique_by=lambda guest: guest.name,
    ).map(tuple),
    host=st.builds(type(Scenario().host), memory_bytes=st.none() | st.just(2 * GIB)),
    timeouts=st.builds(type(Scenario().timeouts), boot_s=_durations, total_s=_durations),
)


@given(_scenarios)
def test_dumped_scenario_reads_back_equal(scenario: Scenario) -> None:
    again = parse(dump_scenario(scenario))
    if scenario.kernel is not None:
        again = replace(again, kernel=scenario.kernel)
    assert without_origins(again) == scenario


# --- devices


def test_devices_and_iommu_are_read_dumped_and_set() -> None:
    text = "[[device]]\nname = 'nic0'\nrate = 100\n[[device]]\n[iommu]\nscalable = true\n"
    overrides = (
        set_override("device.nic0.ring=1024"),
        set_override("device.*.access=cdev"),
        set_override("iommu.scalable=false"),
    )
    scenario = parse_scenario(text, where="x.toml", base=Path(), overrides=overrides)
    assert [device.name for device in scenario.devices] == ["nic0", "dev1"]
    assert (scenario.devices[0].ring, scenario.devices[0].rate) == (1024, 100)
    assert {device.access for device in scenario.devices} == {"cdev"}
    assert not scenario.iommu.scalable
    again = parse_scenario(dump_scenario(scenario), where="y.toml", base=Path())
    assert replace(again, origins={}) == replace(scenario, origins={})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[device]\n", "array of tables"),
        ("[[device]]\nring = 100\n", "multiple of 8"),
        ("[[device]]\nkind = 'floppy'\n", "'igb' or 'e1000e' or 'nvme' or 'edu'"),
        ("[[device]]\nbdf = 'x'\n", "PCI address"),
        ("[[device]]\nname = 'vm0'\n", "something else is named"),
        ("[[device]]\nbdf = '01:00.0'\n[[device]]\nbdf = '0000:01:00.0'\n", "both"),
        ("[[device]]\nbdf = '01:00.0'\n[[device]]\n", "to all of a kind"),
        ("[[device]]\n" * 5, "at most 4"),
    ],
)
def test_wrong_devices_are_refused(text: str, said: str) -> None:
    with pytest.raises(ScenarioError, match=said):
        parse_scenario(text, where="x.toml", base=Path())


def test_setting_a_device_that_is_not_there_says_so() -> None:
    with pytest.raises(ScenarioError, match="no device") as caught:
        parse_scenario("", where="x", base=Path(), overrides=[set_override("device.*.rate=5")])
    assert "no [[device]]" in str(caught.value.hint)
