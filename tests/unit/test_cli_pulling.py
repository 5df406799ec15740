"""What ``crungo pull`` does with its names, without a registry."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from crungo.cli.pull import IMAGES_AT_ONCE, Prepared, PullOptions
from crungo.cli.pulling import _Work
from crungo.errors import RegistryError
from crungo.image.reference import Reference
from crungo.registry.ahead import Ahead
from crungo.registry.client import RegistryClient
from crungo.registry.hosts import Hosts
from tests.support.pyunpacker import PyUnpacker
from tests.support.smallpulls import make_store

pytestmark = pytest.mark.anyio


async def test_a_repository_of_very_many_tags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """There are as many tasks as images are pulled at once, whatever a registry lists."""
    tags = [f"{n}" for n in range(2000)]
    tasks: list[int] = []

    async def list_tags(*_: object) -> list[str]:
        return tags

    async def pull(_: _Work, reference: Reference, *_others: object) -> str:
        tasks.append(len(anyio.get_running_tasks()))
        await anyio.lowlevel.checkpoint()
        if reference.tag == "7":
            raise RegistryError("seven failed")
        return f"{reference.tag}"

    monkeypatch.setattr(RegistryClient, "tags", list_tags)
    monkeypatch.setattr(_Work, "_pull", pull)
    options = PullOptions(images=("x.example/a",), all_tags=True)
    prepared = Prepared(here={}, hosts=Hosts(), ahead=Ahead(), spawner=None)
    work = _Work(options, make_store(tmp_path), PyUnpacker(), None, prepared, debug=False)
    before = len(anyio.get_running_tasks())
    await work.run()
    assert max(tasks) <= before + IMAGES_AT_ONCE + 1
    assert work.tell() == 125
    assert capsys.readouterr().out.split() == [tag for tag in tags if tag != "7"]
