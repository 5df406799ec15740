"""What tests without root share: a registry that is told what to do wrong, its client, a store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from crungo.image.store import Store
from crungo.registry.client import RegistryClient
from crungo.registry.hosts import Hosts
from tests.support.fakeregistry import FakeRegistry
from tests.support.smallpulls import QUICK, make_store


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as registry:
        yield registry


@pytest.fixture
async def client() -> AsyncIterator[RegistryClient]:
    async with RegistryClient(hosts=Hosts(), certificates=(), retry=QUICK) as client:
        yield client


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path)
