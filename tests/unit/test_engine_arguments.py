"""What an engine refuses before it does anything: it is neither entered here, nor is there a root."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from crungo import Engine, UsageError
from crungo.images import credentials_of

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("limit", [0, -1])
def test_no_container_at_a_time_would_be_none_ever(limit: int) -> None:
    with pytest.raises(UsageError, match=f"^engine: a start_limit of at least 1 is expected, not {limit}$"):
        Engine(start_limit=limit)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"policy": "sometimes"}, '^invalid value "sometimes" for policy: unknown policy; expected always, missing,'),
        ({"platform": "amd64"}, '^invalid value "amd64" for platform: not a platform; expected os/architecture'),
    ],
    ids=str,
)
async def test_words_of_a_pull(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        await Engine(root=tmp_path, run=tmp_path).pull("alpine", **wrong)


def test_a_file_of_credentials_that_is_not_there(tmp_path: Path) -> None:
    """Pulling without them would end in a refusal that says nothing of it, or in what is public of the same name."""
    with pytest.raises(UsageError, match=f"^authfile {tmp_path}/none: no such file$"):
        credentials_of({}, tmp_path / "none")
