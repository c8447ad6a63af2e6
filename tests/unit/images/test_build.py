# SPDX-License-Identifier: Apache-2.0
"""Build steps as values: command lines, digests, series, versions, what errors say."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from liveupdate.core.errors import BuildError, PlanError
from liveupdate.core.steps import Steps
from liveupdate.formats import kconfig
from liveupdate.images import (
    catalogue,
    check,
    debianhost,
    ext4,
    kernel,
    kit,
    rootfs,
    source,
    tool,
)
from liveupdate.images.tree import BuildTree

ROOT = Path(__file__).parents[3]
KERNEL_DIR = ROOT / "guest-images/kernel"
PIN = source.Base(
    package="linux-source-7.3", version="7.3.4-1~bpo13+1", sha256="0", suite="s", abi=("kho-v4",)
)
MADISON = """\
linux-source-7.2 | 7.2.9-1~bpo13+1 | http://deb.debian.org/debian trixie-backports/main amd64
linux-source-7.3 | 7.3.10-1~bpo13+1 | http://deb.debian.org/debian trixie-backports/main amd64
linux-source-7.3 | 7.3.4-1~bpo13+1 | http://deb.debian.org/debian trixie-backports/main amd64
"""


def test_pin_comes_first_then_the_newest() -> None:
    found = source.parse_candidates(MADISON, PIN)
    assert [version for _, version in found] == [
        "7.3.4-1~bpo13+1",
        "7.3.10-1~bpo13+1",
        "7.2.9-1~bpo13+1",
    ]


def test_without_the_pin_the_newest_comes_first() -> None:
    listed = "\n".join(line for line in MADISON.splitlines() if "7.3.4-" not in line)
    assert source.parse_candidates(listed, PIN)[0] == ("linux-source-7.3", "7.3.10-1~bpo13+1")


def test_apt_is_kept_inside_its_directory(tmp_path: Path) -> None:
    settings = [item for item in source.apt_options(tmp_path) if item != "-o"]
    directories = [item for item in settings if item.startswith("Dir::")]
    assert len(directories) == 6
    assert all(str(tmp_path) in item or "/dev/null" in item for item in directories)


def test_series_skips_comments_and_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "series").write_text("# a\n\npatches/core/0001-x.patch # why\n  b.patch\n")
    assert source.read_series(tmp_path / "series") == ("patches/core/0001-x.patch", "b.patch")


def test_pin_of_the_checkout_is_complete() -> None:
    base = source.read_base(KERNEL_DIR / "BASE")
    assert len(base.sha256) == 64
    assert {"kho-v4", "luo-v5"} <= set(base.abi)


def test_pin_without_a_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "BASE").write_text('package = "x"\n')
    with pytest.raises(BuildError, match="version"):
        source.read_base(tmp_path / "BASE")


def test_abi_is_read_from_headers(tmp_path: Path) -> None:
    headers = tmp_path / "include/linux/kho/abi"
    headers.mkdir(parents=True)
    (headers / "luo.h").write_text('#define LUO_ABI_COMPATIBLE\t"luo-v5"\n// "kho-v3"\n')
    (headers / "kho.h").write_text(
        '#define KHO_FDT_COMPATIBLE "kho-v4"\n#define X_COMPATIBLE(i) 1\n'
    )
    assert source.read_abi(tmp_path) == ("kho-v4", "luo-v5")


def test_variants_differ_in_digest_and_release() -> None:
    inputs = [kernel.inputs_of(KERNEL_DIR, variant, "gcc 1") for variant in kernel.VARIANTS]
    assert len({str(item) for item in inputs}) == len(kernel.VARIANTS)
    assert len({variant.localversion for variant in kernel.VARIANTS}) == len(kernel.VARIANTS)


def test_kernel_digest_follows_all_that_goes_in(tmp_path: Path) -> None:
    shutil.copytree(KERNEL_DIR, tmp_path / "kernel")
    variant = kernel.find_variant("a")
    seen = [kernel.inputs_of(tmp_path / "kernel", variant, "gcc 1")]

    def changed(compiler: str = "gcc 1") -> bool:
        seen.append(kernel.inputs_of(tmp_path / "kernel", variant, compiler))
        return seen[-1] != seen[-2]

    assert not changed()
    with (tmp_path / "kernel/config/host.config").open("a") as stream:
        stream.write("# a comment changes nothing\n")
    assert not changed()
    with (tmp_path / "kernel/config/host.config").open("a") as stream:
        stream.write("CONFIG_FOO=y\n")
    assert changed()
    (tmp_path / "kernel/x.patch").write_text("x")
    with (tmp_path / "kernel/series").open("a") as stream:
        stream.write("x.patch\n")
    assert changed()
    (tmp_path / "kernel/x.patch").write_text("y")
    assert changed()
    assert changed("gcc 2")


def test_only_the_kernel_without_kho_turns_it_off() -> None:
    for variant in kernel.VARIANTS:
        config = kernel.load_fragments(KERNEL_DIR, variant.fragments)
        wanted = "n" if variant.name == "nokho" else "y"
        assert config.get("KEXEC_HANDOVER") == config.get("LIVEUPDATE") == wanted


def test_only_the_kernels_that_stand_for_others_cannot_keep_dma() -> None:
    without = {
        variant.name
        for variant in kernel.VARIANTS
        if kernel.load_fragments(KERNEL_DIR, variant.fragments).get("LIVEUPDATE_KEEP_DMA") != "y"
    }
    assert without == {"stock", "nokho"}


def test_fragments_of_one_kernel_do_not_contradict_each_other() -> None:
    one, other = (
        kconfig.parse_config((KERNEL_DIR / f"config/{name}.config").read_text())
        for name in ("base", "host")
    )
    both = one.values.keys() & other.values.keys()
    assert {name: one.get(name) for name in both} == {name: other.get(name) for name in both}


def test_missing_fragment_is_named(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="'gone'"):
        kernel.load_fragments(tmp_path, ("gone",))


def test_make_builds_out_of_tree_with_the_variants_name() -> None:
    argv = kernel.make_argv(Path("/src"), Path("/o"), "-lu-b", "bzImage")
    assert argv == ("make", "-C", "/src", "O=/o", tool.JOBS, "LOCALVERSION=-lu-b", "bzImage")
    assert kernel.config_argv(Path("/src"), Path("/o"), Path("/c"))[-1] == "allnoconfig"
    assert "KCONFIG_ALLCONFIG=/c" in kernel.config_argv(Path("/src"), Path("/o"), Path("/c"))


def test_first_errors_of_a_log_are_quoted() -> None:
    log = "  CC a.o\na.c:1:2: error: no\n" + "  CC b.o\n" * 50 + "make: *** [x] Error 1\n"
    assert kernel.first_errors(log) == "a.c:1:2: error: no\nmake: *** [x] Error 1"
    assert kernel.first_errors("only\nthis") == "only\nthis"


PATCH = """\
--- a/file
+++ b/file
@@ -1 +1 @@
-{before}
+{after}
"""


def make_tree(root: Path) -> tuple[BuildTree, Path]:
    tree = BuildTree(root / "build")
    tree.src.mkdir(parents=True)
    (tree.root / "applied").mkdir()
    (tree.src / "file").write_text("0\n")
    patches = root / "patches"
    patches.mkdir()
    for name, before, after in (("a", 0, 1), ("b", 1, 2), ("c", 1, 3)):
        (patches / name).write_text(PATCH.format(before=before, after=after))
    return tree, patches


def test_tree_goes_from_one_series_to_another(tmp_path: Path) -> None:
    tree, patches = make_tree(tmp_path)
    for series, content in (((), 0), (("a", "b"), 2), (("a", "c"), 3), (("a",), 1), ((), 0)):
        tree.apply(patches, series)
        assert (tree.src / "file").read_text() == f"{content}\n"
        assert tree.is_ready()


def test_unchanged_series_touches_no_file(tmp_path: Path) -> None:
    tree, patches = make_tree(tmp_path)
    tree.apply(patches, ("a",))
    before = (tree.src / "file").stat().st_mtime_ns
    tree.apply(patches, ("a",))
    assert (tree.src / "file").stat().st_mtime_ns == before


def test_patch_that_does_not_apply_is_named_and_the_tree_not_trusted(tmp_path: Path) -> None:
    tree, patches = make_tree(tmp_path)
    with pytest.raises(BuildError, match="'b' does not apply"):
        tree.apply(patches, ("b",))
    assert not tree.is_ready()


def test_changed_patch_of_the_same_name_is_applied_anew(tmp_path: Path) -> None:
    tree, patches = make_tree(tmp_path)
    tree.apply(patches, ("a",))
    (patches / "a").write_text(PATCH.format(before=0, after=7))
    tree.apply(patches, ("a",))
    assert (tree.src / "file").read_text() == "7\n"


def test_patches_of_the_checkout_have_their_headers() -> None:
    names = {name for variant in kernel.VARIANTS for name in variant.patches}
    series = source.read_series(KERNEL_DIR / "series")
    assert names and series
    wrong = []
    for name in (*series, *sorted(names)):
        text = (KERNEL_DIR / name).read_text()
        try:
            check.check_headers(name, text)
            check.check_fix(name, text)
        except BuildError as error:
            wrong.append(str(error))
    assert wrong == []


FIX = 'Fixes: 0123456789ab ("mm: add a defect")\n---\n+++ b/mm/memfd.c\n'


def test_fix_names_what_it_corrects_and_has_no_option() -> None:
    check.check_fix("fixes/0001-x.patch", FIX)
    for text, wrong in (
        ("Fixes: a defect\n---\n+++ b/mm/memfd.c\n", "has no 'Fixes:' line"),
        (f"{FIX}+++ b/mm/Kconfig\n", "touches a Kconfig file"),
    ):
        with pytest.raises(BuildError, match=f"fix 'fixes/0001-x.patch' {wrong}"):
            check.check_fix("fixes/0001-x.patch", text)
        check.check_fix("patches/0001-x.patch", text)


def test_every_variant_has_every_fix() -> None:
    fixes = [name for name in source.read_series(KERNEL_DIR / "series") if "fixes/" in name]
    assert fixes == [str(p.relative_to(KERNEL_DIR)) for p in sorted(KERNEL_DIR.glob("fixes/*"))]
    for variant in kernel.VARIANTS:
        with_fixes = kernel.inputs_of(KERNEL_DIR, variant, "gcc")["patches"]
        series = source.read_series(KERNEL_DIR / "series")
        assert with_fixes == source.series_digest(KERNEL_DIR, (*series, *variant.patches))


def test_patch_without_origin_is_refused() -> None:
    with pytest.raises(BuildError, match="Patch-mainline"):
        check.check_headers("x", "From: a\nSubject: b\nForwarded: no\n---\nPatch-mainline: no\n")


def _fake_source(root: Path, *, checkpatch: str, recipe: str) -> Path:
    (root / "scripts").mkdir()
    (root / "scripts/checkpatch.pl").write_text(checkpatch)
    (root / "Makefile").write_text(f"mm/ mm/memfd.o: FORCE\n\t{recipe}\nFORCE:\n")
    (root / "mm").mkdir()
    (root / "mm/memfd.c").touch()
    return root


def test_style_fault_names_the_patch(tmp_path: Path) -> None:
    src = _fake_source(tmp_path, checkpatch='print "CHECK: bad\\n"; exit 1;', recipe="true")
    with pytest.raises(BuildError, match="'0001-x.patch' has style faults"):
        check.check_style("0001-x.patch", tmp_path / "0001-x.patch", src)


def test_object_that_does_not_build_names_the_patch(tmp_path: Path) -> None:
    src = _fake_source(tmp_path, checkpatch="exit 0;", recipe="false")
    check.check_style("0001-x.patch", tmp_path / "0001-x.patch", src)
    with pytest.raises(BuildError, match="'0001-x.patch' does not build"):
        check.compile_touched("0001-x.patch", (Path("mm/memfd.c"),), src, tmp_path)


def test_warning_in_an_object_of_the_patch_is_an_error(tmp_path: Path) -> None:
    recipe = "@test -z '$(W)' && mkdir -p $(O)/mm && touch $(O)/mm/memfd.o"
    src = _fake_source(tmp_path, checkpatch="exit 0;", recipe=recipe)
    out = tmp_path / "o"
    with pytest.raises(BuildError, match="does not build in o"):
        check.compile_touched("0001-x.patch", (Path("mm/memfd.c"),), src, out)
    assert (out / "mm/memfd.o").exists(), "it failed before W=1"


def test_objects_of_a_patch_are_its_c_files(tmp_path: Path) -> None:
    (tmp_path / "mm").mkdir()
    (tmp_path / "mm/memfd.c").touch()
    text = "+++ b/mm/memfd.c\n+++ b/include/x.h\n+++ b/mm/gone.c\n"
    assert check.touched_files(text, tmp_path) == (Path("mm/memfd.c"),)


def test_directory_without_makefile_is_built_by_its_parent(tmp_path: Path) -> None:
    (tmp_path / "arch/x86/kvm/svm").mkdir(parents=True)
    (tmp_path / "arch/x86/kvm/Makefile").touch()
    (tmp_path / "arch/x86/Kbuild").touch()
    for name, directory in (
        ("arch/x86/kvm/svm/svm.c", "arch/x86/kvm"),
        ("arch/x86/kvm/x86.c", "arch/x86/kvm"),
        ("arch/x86/new.c", "arch/x86"),
        ("mm/memfd.c", "mm"),
    ):
        assert check.build_directory(Path(name), tmp_path) == Path(directory)


def test_a_debian_host_has_nothing_of_ours_and_each_hook_on_one_line() -> None:
    argv = debianhost.mmdebstrap_argv(Path("/out.tar"))
    include = next(word for word in argv if word.startswith("--include="))
    assert "systemd-sysv" in include and debianhost.IN_REPOSITORY not in include
    assert all("\n" not in word for word in argv)


def test_rootfs_takes_qemu_from_backports_and_no_keys() -> None:
    argv = rootfs.mmdebstrap_argv(Path("/out.tar"))
    text = "\n".join(argv)
    assert argv[argv.index("trixie") + 1] == "/out.tar"
    assert "--mode=auto" in argv
    assert "release n=trixie-backports" in text
    assert 'rm -f "$1"/etc/ssh/ssh_host_*' in text


def test_changed_init_leaves_the_debian_stage_alone(tmp_path: Path) -> None:
    (tmp_path / "init.c").write_text("1")
    first = rootfs.rootfs_inputs(tmp_path, "gcc")
    (tmp_path / "init.c").write_text("2")
    second = rootfs.rootfs_inputs(tmp_path, "gcc")
    assert first != second
    assert first["base"] == second["base"]


def test_packages_are_read_from_dpkgs_status() -> None:
    status = "Package: b\nStatus: x\nVersion: 1:2\n\nPackage: a\nArchitecture: z\nVersion: 3\n"
    assert rootfs.parse_packages(status) == "a 3\nb 1:2\n"


def test_init_is_static_and_warnings_are_errors() -> None:
    argv = rootfs.init_argv(Path("/src/init.c"), Path("/out"))
    assert {"-static", "-Wall", "-Werror"} <= set(argv)


def test_agent_is_compiled_by_the_rootfs_interpreter_for_its_place() -> None:
    argv = kit.compile_argv(Path("/t/agent"), Path("/p"))
    assert argv[0] == "/p/bin/ld-linux-x86-64.so.2"
    assert argv[argv.index("-s") + 1] != "/t" or "/kit" in argv
    assert argv[-1] == "/t/agent"
    assert "unchecked-hash" in argv


def test_file_system_is_deterministic_and_read_only_by_nature() -> None:
    argv = ext4.mke2fs_argv(Path("/t"), Path("/i"), "liveupdate-kit", 8 << 20)
    assert argv == ext4.mke2fs_argv(Path("/t"), Path("/i"), "liveupdate-kit", 8 << 20)
    assert "^has_journal" in argv[argv.index("-O") + 1]
    assert argv[-2:] == ("/i", "8192k")


def test_debugfs_makes_parents_once_and_replaces() -> None:
    files = ((Path("/x"), "/a/b/one"), (Path("/y"), "/a/b/two"))
    lines = ext4.debugfs_script(files).splitlines()
    assert lines.count("mkdir /a") == lines.count("mkdir /a/b") == 1
    assert lines.index("rm /a/b/two") < lines.index("write /y /a/b/two")


@pytest.mark.skipif(
    shutil.which("mke2fs", path="/usr/sbin:/sbin:/usr/bin") is None, reason="no mke2fs (e2fsprogs)"
)
def test_files_put_into_an_image_belong_to_root_with_their_mode(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/old").write_text("old")
    ext4.make_image(tree, tmp_path / "base", "test", spare_bytes=1 << 20)
    secret = tmp_path / "secret"
    secret.write_text("new")
    secret.chmod(0o600)
    ext4.add_files(tmp_path / "base", tmp_path / "image", ((secret, "/etc/ssh/key"),))
    said = subprocess.run(
        ["/sbin/debugfs", "-R", "stat /etc/ssh/key", tmp_path / "image"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "Mode:  0600" in said
    assert "User:     0   Group:     0" in said
    subprocess.run(["/sbin/e2fsck", "-fn", tmp_path / "image"], check=True, capture_output=True)


def test_nothing_built_is_a_plan_error_that_says_what_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(
        PlanError, match=r"guest, kernel-a, kernel-b, modules-a, modules-b, rootfs.*images build"
    ):
        catalogue.resolve(None, None)
    with pytest.raises(PlanError, match="images build kernel-nokho"):
        catalogue.find_kernel("kernel-nokho")
    assert catalogue.listing() == ()
    assert catalogue.find_missing(catalogue.DEFAULT) == catalogue.DEFAULT


def test_a_run_with_kernels_of_the_users_needs_none_of_ours() -> None:
    own = Path("/own/bzImage")
    assert set(catalogue.needed(None, None)) == set(catalogue.DEFAULT)
    assert catalogue.needed(own, None) == ("rootfs", "guest", "kernel-b", "modules-b")
    assert catalogue.needed(own, own) == ("rootfs", "guest")


def test_users_file_that_is_no_kernel_is_a_plan_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "bzImage").write_bytes(bytes(4096))
    with pytest.raises(PlanError, match="not a kernel that can be used: no bzImage"):
        catalogue.read_kernel(tmp_path / "bzImage")
    with pytest.raises(PlanError, match="cannot read kernel"):
        catalogue.read_kernel(tmp_path / "gone")


def test_unknown_image_is_refused_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(BuildError, match="no image 'kernel-z'"):
        catalogue.build(("kernel-z",), steps=Steps())
