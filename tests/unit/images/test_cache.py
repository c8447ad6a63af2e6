# SPDX-License-Identifier: Apache-2.0
"""The image cache: whole entries or none, and two builders at once are one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from liveupdate.core.errors import BuildError
from liveupdate.images import catalogue
from liveupdate.images.cache import Cache, SourcesChanged, digest_of, tree_sha256

INPUTS = {"name": "thing", "source": "x"}


def fill(scratch: Path) -> None:
    (scratch / "file").write_text("built")


def never(scratch: Path) -> None:
    raise AssertionError("built twice")


def test_digest_depends_on_names_and_values_not_on_order() -> None:
    assert digest_of({"a": "1", "b": "2"}) == digest_of({"b": "2", "a": "1"})
    assert digest_of({"a": "1"}) != digest_of({"b": "1"})
    assert digest_of({"a": "12", "b": ""}) != digest_of({"a": "1", "b": "2"})


def test_second_build_takes_the_first_ones_result(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    path = cache.build("kind", INPUTS, fill)
    assert cache.build("kind", INPUTS, never) == path
    assert (path / "file").read_text() == "built"
    (entry,) = cache.entries()
    assert (entry.kind, entry.path, dict(entry.inputs)) == ("kind", path, INPUTS)


def test_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fail(scratch: Path) -> None:
        fill(scratch)
        raise BuildError("no")

    cache = Cache(tmp_path)
    with pytest.raises(BuildError):
        cache.build("kind", INPUTS, fail)
    assert list((tmp_path / "kind").iterdir()) == []
    cache.build("kind", INPUTS, fill)


def test_sources_edited_during_the_build_make_no_entry(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    with pytest.raises(SourcesChanged, match="'thing' changed"):
        cache.build("kind", INPUTS, fill, again=lambda: {**INPUTS, "source": "y"})
    assert cache.entries() == ()
    cache.build("kind", INPUTS, fill, again=lambda: dict(INPUTS))


BUILDER = """
import sys, time
from pathlib import Path
from liveupdate.images.cache import Cache
root = Path(sys.argv[1])
def builder(scratch):
    with (root / "builds").open("a") as log:
        log.write("one\\n")
    (scratch / "half").write_text("half")
    time.sleep(float(sys.argv[2]))
    (scratch / "file").write_text("built")
waited = []
path = Cache(root / "cache").build(
    "kind", {"name": "x"}, builder, waiting=lambda: waited.append(1)
)
print((path / "file").read_text(), len(waited))
"""


def start_builder(root: Path, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER, os.fspath(root), str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)


def test_two_processes_build_once(tmp_path: Path) -> None:
    children = [start_builder(tmp_path, 0.5) for _ in range(2)]
    outputs = sorted(child.communicate(timeout=30)[0] for child in children)
    assert outputs == ["built 0\n", "built 1\n"]
    assert (tmp_path / "builds").read_text() == "one\n"


def test_killed_builder_neither_blocks_nor_leaves_its_half(tmp_path: Path) -> None:
    with start_builder(tmp_path, 60) as child:
        wait_for(tmp_path / "builds")
        child.send_signal(signal.SIGKILL)
        child.wait()
    cache = Cache(tmp_path / "cache")
    assert cache.entries() == ()
    path = cache.build("kind", {"name": "x"}, fill)
    assert [item.name for item in (tmp_path / "cache/kind").iterdir()] == [path.name]


def test_old_entries_and_dead_builders_leftovers_are_removed(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    old, kept, fresh = (cache.build("kind", {"name": name}, fill) for name in ("o", "k", "f"))
    for path in (old, kept):
        os.utime(path / "entry.json", (1, 1))
    leftover = tmp_path / "kind" / f".{old.name}-abc"
    leftover.mkdir()
    assert cache.remove_older(1000, keep=frozenset({kept})) > 0
    assert {path.name for path in (tmp_path / "kind").iterdir()} == {kept.name, fresh.name}


def test_what_people_call_an_entry_is_no_entry_of_its_own(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    kept = cache.build("kind", INPUTS, fill)
    os.utime(kept / "entry.json", (1, 1))
    catalogue._link(cache, "thing", kept)
    assert [entry.path for entry in cache.entries()] == [kept]
    assert cache.remove_older(1000, keep=frozenset({kept})) == 0
    assert cache.find("kind", kept.name) == kept


def test_entry_that_is_being_built_survives_collection(tmp_path: Path) -> None:
    with start_builder(tmp_path, 1.0) as child:
        wait_for(tmp_path / "builds")
        Cache(tmp_path / "cache").remove_older(time.time() + 1000)
        assert child.communicate(timeout=30)[0] == "built 0\n"


def test_use_is_noted(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    path = cache.build("kind", INPUTS, fill)
    os.utime(path / "entry.json", (1, 1))
    cache.find("kind", path.name)
    assert cache.entries()[0].used_at > 1000


def test_unwritable_cache_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the directory should be")
    with pytest.raises(BuildError, match="XDG_CACHE_HOME"):
        Cache(tmp_path / "cache").build("kind", INPUTS, fill)


def test_tree_digest_sees_names_bytes_and_modes(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("1")
    digests = {tree_sha256(tmp_path)}
    (tmp_path / "a.py").write_text("2")
    digests.add(tree_sha256(tmp_path))
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    digests.add(tree_sha256(tmp_path))
    (tmp_path / "b.py").chmod(0o755)
    digests.add(tree_sha256(tmp_path))
    assert len(digests) == 4
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__/b.pyc").write_text("x")
    assert tree_sha256(tmp_path) in digests


def test_two_builders_may_name_the_same_image_at_once(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    image = tmp_path / "kind" / "digest" / "image"
    image.parent.mkdir(parents=True)
    image.touch()
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(catalogue._link, cache, "name", image) for _ in range(200)]:
            done.result()
    assert (tmp_path / "by-name" / "name").resolve() == image
    assert [path.name for path in (tmp_path / "by-name").iterdir()] == ["name"]
