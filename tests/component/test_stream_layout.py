# SPDX-License-Identifier: Apache-2.0
"""The C header of the breadcrumb's stream and the agent's codec must mean the same bytes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from liveupdate.agent.mechanisms import stream
from liveupdate.core.deadline import Deadline
from liveupdate.core.proc import run

HEADERS = Path(__file__).parents[2] / "guest-images/modules/include/uapi"
RECORD = stream.RECORD.size
FACTS = {
    "LU_STREAM_VERSION": stream.VERSION,
    "LU_VERSION": stream.LU_VERSION,
    "LU_BUNDLE": stream.LU_BUNDLE,
    "LU_RAM": stream.LU_RAM,
    "LU_DATA": stream.LU_DATA,
    "LU_END": stream.LU_END,
    "LU_OPTIONAL": stream.LU_OPTIONAL,
    "LU_BUNDLE_NAME_MAX": stream.NAME_MAX,
    "LU_STREAM_RECORDS_MAX": stream.RECORDS_MAX,
    "sizeof(struct lu_record)": RECORD,
    "offsetof(struct lu_record, length)": 4,
    "sizeof(struct lu_version)": stream.HEAD.size - RECORD,
    "offsetof(struct lu_version, reserved)": 4,
    "offsetof(struct lu_version, bytes)": 8,
    "sizeof(struct lu_ram)": stream.RAM.size,
    "offsetof(struct lu_ram, bytes)": 8,
    "sizeof(struct lu_data)": stream.DATA.size,
    "sizeof(struct lu_end)": stream.END.size - RECORD,
    "offsetof(struct lu_end, crc)": 4,
}


def test_header_and_codec_agree(tmp_path: Path) -> None:
    if not shutil.which("gcc"):
        pytest.skip("no gcc; install gcc and libc6-dev")
    says = "\n".join(f'printf("%llu\\n", (unsigned long long)({fact}));' for fact in FACTS)
    head = "#include <stddef.h>\n#include <stdio.h>\n#include <linux/lu_stream.h>\n"
    (tmp_path / "layout.c").write_text(f"{head}int main(void)\n{{\n{says}\nreturn 0;\n}}\n")
    deadline = Deadline.after(60, "the layout program")
    argv = ("gcc", "-Wall", "-Wextra", "-Werror", "-I", HEADERS, "-o", tmp_path / "layout")
    run((*argv, tmp_path / "layout.c"), deadline=deadline)
    said = run((tmp_path / "layout",), deadline=deadline).stdout.split()
    assert dict(zip(FACTS, map(int, said), strict=True)) == FACTS
