"""Hundreds of runs in one process: nothing grows. ``make soak`` makes ten thousand."""

from __future__ import annotations

import pytest

from tests.soak import soak
from tests.support.api import engine
from tests.support.command import Crungo

pytestmark = pytest.mark.anyio


async def test_three_hundred_runs(crungo: Crungo, busybox_reference: str) -> None:
    async with engine(crungo) as api:
        assert await soak(api, busybox_reference, 300) == []
