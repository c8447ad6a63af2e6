# SPDX-License-Identifier: Apache-2.0
"""What a developer names becomes a bzImage: used as it is, made where it is, or made in a copy.

make(1) is a script that writes down how it was called.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from liveupdate.core import proc
from liveupdate.core.deadline import Deadline
from liveupdate.core.errors import BuildError
from liveupdate.core.steps import Steps
from liveupdate.formats import kconfig
from liveupdate.images import usertree
from liveupdate.images.cache import Cache
from liveupdate.images.usertree import IMAGE, TreeBuilder
from liveupdate.model.kernel_needs import fragment

KERNEL_DIR = Path(__file__).parents[3] / "guest-images/kernel"
NONE = kconfig.parse_config("")
#: -C is the second word; the last one is the target. A configuration keeps what Kconfig knows.
MAKE = r"""#!/bin/sh
echo "$@" >> "$(dirname "$0")/calls"
dir=$2
for word; do
	case $word in O=*) dir=${word#O=};; KCONFIG_ALLCONFIG=*) all=${word#*=};; esac
done
case $word in
*config) grep -v -E "${UNKNOWN:-CONFIG_NO_SUCH}" "$all" > "$dir/.config" ;;
bzImage) [ -e "$dir/broken" ] && { echo "a.c:1:2: error: no"; exit 2; }
	mkdir -p "$dir/arch/x86/boot"; echo made > "$dir/arch/x86/boot/bzImage" ;;
esac
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which make's calls are written down."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "make").write_text(MAKE)
    (tools / "make").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    (tools / "calls").touch()
    return tools / "calls"


@pytest.fixture
def builder(tmp_path: Path) -> TreeBuilder:
    return TreeBuilder(Cache(tmp_path / "cache"), KERNEL_DIR, Steps())


def make_source(path: Path) -> Path:
    (path / "arch/x86").mkdir(parents=True)
    for name in ("Kbuild", "arch/x86/Kconfig", "a.c"):
        (path / name).touch()
        os.utime(path / name, (1000, 1000))
    return path


def make_build(path: Path, config: str) -> Path:
    (path / "arch/x86/boot").mkdir(parents=True)
    (path / ".config").write_text(config)
    os.utime(path / ".config", (2000, 2000))
    (path / IMAGE).write_text("built")
    os.utime(path / IMAGE, (3000, 3000))
    return path


def make_objects(path: Path, src: Path, config: str = fragment()) -> Path:
    make_build(path, config)
    (path / "Makefile").write_text(f"export KBUILD_OUTPUT = {path}\ninclude {src}/Makefile\n")
    return path


def test_a_build_is_used_where_it_is_and_make_decides_whether_it_is_current(
    tmp_path: Path, calls: Path, builder: TreeBuilder
) -> None:
    src = make_source(tmp_path / "src")
    objects = make_objects(tmp_path / "o", src)
    assert builder.find(objects, NONE, may_build=False) == objects / IMAGE
    place = make_build(make_source(tmp_path / "place"), fragment())
    assert builder.find(place, NONE, may_build=False) == place / IMAGE
    assert calls.read_text() == ""
    assert builder.find(objects, NONE) == objects / IMAGE
    assert calls.read_text().startswith(f"-C {objects} ")


def test_a_fragment_for_what_is_built_already_is_refused(
    tmp_path: Path, builder: TreeBuilder
) -> None:
    image = tmp_path / "bzImage"
    image.write_bytes(b"MZ")
    with pytest.raises(BuildError, match="configuration cannot be changed"):
        builder.find(image, kconfig.parse_config("CONFIG_KASAN=y"))


def test_a_newer_source_is_made_where_the_build_is(
    tmp_path: Path, calls: Path, builder: TreeBuilder
) -> None:
    src = make_source(tmp_path / "src")
    objects = make_objects(tmp_path / "o", src)
    (src / "a.c").write_text("newer")
    with pytest.raises(BuildError, match="no kernel yet"):
        builder.find(objects, NONE, may_build=False)
    assert builder.find(objects, NONE).read_text() == "made\n"
    assert calls.read_text().startswith(f"-C {objects} ")


@pytest.mark.parametrize("extra", ["", "CONFIG_KASAN=y"])
def test_a_build_that_lacks_something_is_left_alone_and_copied(
    extra: str, tmp_path: Path, calls: Path, builder: TreeBuilder
) -> None:
    config = "CONFIG_MINE=y\n" if not extra else fragment()
    place = make_build(make_source(tmp_path / "place"), config)
    image = builder.find(place, kconfig.parse_config(extra))
    assert (place / IMAGE).read_text() == "built"
    assert image.read_text() == "made\n"
    assert image.is_relative_to(tmp_path / "cache")
    merged = (image.parents[3] / ".config").read_text()
    assert "CONFIG_VIRTIO_BLK=y" in merged and (extra or "CONFIG_MINE=y") in merged
    assert "O=" not in calls.read_text()
    objects = make_objects(tmp_path / "o", make_source(tmp_path / "src"), config)
    builder.find(objects, kconfig.parse_config(extra))
    assert f"-C {tmp_path / 'src'} O={tmp_path / 'cache'}" in calls.read_text()


def test_sources_are_built_in_the_cache_with_the_users_fragment(
    tmp_path: Path, calls: Path, builder: TreeBuilder
) -> None:
    src = make_source(tmp_path / "src")
    image = builder.find(src, kconfig.parse_config("CONFIG_KASAN=y"))
    config = (image.parents[3] / ".config").read_text()
    assert "CONFIG_KASAN=y" in config and "CONFIG_PROC_SYSCTL=y" in config
    assert not (src / ".config").exists()


def test_only_what_the_testbed_needs_must_survive(
    tmp_path: Path, calls: Path, builder: TreeBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    src = make_source(tmp_path / "src")
    script = (calls.parent / "make").read_text()
    (calls.parent / "make").write_text(script.replace("CONFIG_NO_SUCH", "CONFIG_PROC_SYSCTL"))
    assert builder.find(src, NONE).is_file()
    (calls.parent / "make").write_text(script.replace("CONFIG_NO_SUCH", "CONFIG_LIVEUPDATE="))
    with pytest.raises(BuildError, match="LIVEUPDATE=n"):
        builder.find(src, NONE)


def test_a_failed_build_ends_with_its_own_error(
    tmp_path: Path, calls: Path, builder: TreeBuilder
) -> None:
    objects = make_objects(tmp_path / "o", make_source(tmp_path / "src"))
    (objects / IMAGE).unlink()
    (objects / "broken").touch()
    with pytest.raises(BuildError, match=r"a.c:1:2: error: no"):
        builder.find(objects, NONE)


def test_images_are_what_they_are_and_a_vmlinux_has_its_bzimage(
    tmp_path: Path, builder: TreeBuilder
) -> None:
    image = tmp_path / "bzImage"
    image.write_bytes(b"MZ")
    assert builder.find(image, NONE) == image
    (tmp_path / "vmlinux").write_bytes(b"\x7fELF")
    with pytest.raises(BuildError, match="kexec -s loads bzImages only"):
        builder.find(tmp_path / "vmlinux", NONE)
    make_build(tmp_path / "o", "")
    (tmp_path / "o/vmlinux").write_bytes(b"\x7fELF")
    assert builder.find(tmp_path / "o/vmlinux", NONE) == tmp_path / "o" / IMAGE


def test_what_is_no_tree_is_refused(tmp_path: Path, builder: TreeBuilder) -> None:
    with pytest.raises(BuildError, match="neither the top of a kernel source tree nor a build"):
        builder.find(tmp_path, NONE)
    package = tmp_path / "a.deb"
    package.write_bytes(b"!<arch>\n")
    with pytest.raises(BuildError, match="cannot unpack"):
        builder.find(package, NONE)


def test_a_package_has_image_and_configuration(tmp_path: Path, builder: TreeBuilder) -> None:
    root = tmp_path / "root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN/control").write_text(
        "Package: linux-image-7.4\nVersion: 1\nArchitecture: amd64\nMaintainer: a <a@b>\n"
        "Description: a\n"
    )
    (root / "boot").mkdir()
    (root / "boot/vmlinuz-7.4").write_bytes(b"MZ")
    (root / "boot/config-7.4").write_text("CONFIG_KVM=y\n")
    deadline = Deadline.after(30.0, "dpkg-deb")
    proc.run(["dpkg-deb", "--build", root, tmp_path / "a.deb"], deadline=deadline)
    image = builder.find(tmp_path / "a.deb", NONE)
    assert image.read_bytes() == b"MZ"
    assert (image.parent / "config-7.4").is_file()


def test_an_in_place_build_is_found_by_what_it_wrote(tmp_path: Path) -> None:
    src = make_source(tmp_path / "src")
    assert usertree.find_layout(src).objects is None
    (src / "include/config").mkdir(parents=True)
    assert usertree.find_layout(src).objects == src
