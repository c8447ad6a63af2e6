# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from liveupdate.core.errors import ScenarioError
from liveupdate.target.ssh.spec import ConsoleSpec, LabgridSpec, find_description, read_description

GOOD = """
address = "10.0.0.7"
host_key = "host.pub"
key = "id"
append = "console=ttyS1"
disks = ["scratch", "/dev/nvme0n1"]

[console]
command = ["console", "-M", "conserver", "box"]

[power]
command = ["ipmi-power", "box"]
"""


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    for name in ("host.pub", "id"):
        (tmp_path / name).write_text("x")
    (tmp_path / "box.toml").write_text(GOOD)
    return tmp_path


def test_a_whole_description(lab: Path) -> None:
    box = read_description(lab / "box.toml")
    assert (box.address, box.port, box.user) == ("10.0.0.7", 22, "root")
    # relative to the description, wherever the tool was started
    assert (box.host_key, box.key) == (lab / "host.pub", lab / "id")
    assert box.console.command == ("console", "-M", "conserver", "box")
    assert box.power == ("ipmi-power", "box")
    assert box.disks == ("scratch", "/dev/nvme0n1")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('address = "10.0.0.7"\n', "", "'address' is missing"),
        ("address", "adress", "unknown key 'adress'"),
        ('"host.pub"', '"nowhere.pub"', "'host_key': there is no file"),
        ("disks", "port = 0\ndisks", "'port' is 0, not 1 to 65535"),
        ("disks", "port = true\ndisks", "'port' is True"),
        ('["scratch", "/dev/nvme0n1"]', '"scratch"', "'disks' is not a list of words"),
        ('command = ["ipmi-power", "box"]', "", "could not be reset"),
        ('command = ["ipmi-power", "box"]', "command = []", "could not be reset"),
        ("[console]", '[console]\nsocket = "/x"', "one of 'socket', 'device' and 'command'"),
        ("[console]", "[console", "there is no machine description"),
        ("[console]", "[labgrid]\n[console]", "'place' is missing"),
        ("[console]", '[labgrid]\nplaces = "p"\n[console]', "[labgrid] needs 'place'"),
        ("[console]", '[labgrid]\nplace = "-k"\n[console]', "[labgrid] needs 'place'"),
    ],
)
def test_what_is_wrong_is_said_with_the_file(lab: Path, old: str, new: str, said: str) -> None:
    path = lab / "box.toml"
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(ScenarioError) as caught:
        read_description(path)
    assert said in str(caught.value)
    assert caught.value.where == str(path)


def test_a_labgrid_place_has_power_and_console_of_its_own(lab: Path) -> None:
    path = lab / "box.toml"
    path.write_text(GOOD.partition("[console]")[0] + '[labgrid]\nplace = "p1"\n')
    box = read_description(path)
    assert box.labgrid == LabgridSpec(place="p1", coordinator="")
    assert (box.power, box.console) == ((), ConsoleSpec())


def test_a_machine_that_nobody_described(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="No such file"):
        read_description(tmp_path / "none.toml")


def test_a_name_is_looked_up_among_the_users_machines(tmp_path: Path) -> None:
    assert find_description("box", tmp_path) == tmp_path / "machines" / "box.toml"
    assert find_description("/lab/box.toml", tmp_path) == Path("/lab/box.toml")
    assert find_description("lab/box.toml", tmp_path) == Path.cwd() / "lab/box.toml"
