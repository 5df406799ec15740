"""Every piece of Python in the README and in the documentation does what it shows: it is run as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import PushImage
from tests.support.command import Crungo
from tests.support.image import Layer
from tests.support.registry import ROOT

PAGES = ("README.md", "docs/index.md", "docs/getting-started.md")
FRAME = """
import pathlib
import anyio, crungo

async def main():
    async with crungo.Engine() as engine, engine.container("alpine", ["sleep", "infinity"]) as container:
{code}

anyio.run(main, backend={backend!r})
"""
"""What a piece that is no whole program has around it: an engine, and a container."""


def pieces() -> Iterator[tuple[str, str]]:
    """Where each begins, and its text."""
    for page in PAGES:
        text = (ROOT / page).read_text()
        for match in re.finditer(r"```python\n(.*?)```", text, re.DOTALL):
            yield f"{page}:{text.count(chr(10), 0, match.start()) + 2}", match[1]


PIECES = dict(pieces())


def program(code: str, backend: str) -> str:
    if "anyio.run(" in code:
        return code.replace("anyio.run(main)", f"anyio.run(main, backend={backend!r})")
    # What goes on for as long as the container does is left after its first round.
    shown = "    print(stats.cpu, stats.memory, stats.pids)\n"
    return FRAME.format(code=textwrap.indent(code.replace(shown, f"{shown}    break\n"), " " * 8), backend=backend)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory, warm_crungo: Crungo, push_image: PushImage) -> dict[str, str]:
    """Docker's registry is the tests', and its alpine is busybox with what the pieces need of alpine."""
    users = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n"
    layer = Layer().file("etc/passwd", users).file("etc/os-release", "ID=alpine\n").directory("srv")
    for tag in ("latest", "3"):
        reference = push_image("library/alpine", layer, tag=tag)
    conf = tmp_path_factory.mktemp("registries") / "registries.conf"
    address = reference.partition("/")[0]
    conf.write_text(f'[[registry]]\nprefix = "docker.io"\nlocation = "{address}"\ninsecure = true\n')
    return warm_crungo.environ(
        {
            "CONTAINERS_REGISTRIES_CONF": str(conf),
            "CRUNGO_ROOT": str(warm_crungo.root),
            "CRUNGO_RUN": str(warm_crungo.run),
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "error",
        }
    )


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("place", PIECES)
@pytest.mark.usefixtures("crungo")  # whose store is watched for what is left
def test_a_piece_of_python(environment: dict[str, str], tmp_path: Path, place: str, backend: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "in").write_text("three\n")
    (tmp_path / "public" / "sub").mkdir(parents=True)
    (tmp_path / "public" / "index.html").write_text("page")
    done = subprocess.run(
        [sys.executable, "-c", program(PIECES[place], backend)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), place
