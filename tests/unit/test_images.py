"""Credentials that a program gives, before those that files hold."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from crungo.images import credentials_of

pytestmark = pytest.mark.anyio


async def test_given_credentials_come_first_and_the_file_after_them(tmp_path: Path) -> None:
    file = tmp_path / "auth.json"
    secret = base64.b64encode(b"filed:secret").decode()
    file.write_text(json.dumps({"auths": {"one.example": {"auth": secret}, "two.example": {"auth": secret}}}))
    given = {"one.example": ("user", "pass"), "one.example/team": ("team", "pass"), "docker.io": ("hub", "pass")}
    credentials = credentials_of(given, file)

    async def name(registry: str, repository: str = "") -> str | None:
        found = await credentials.find(registry, repository)
        return None if found is None else found.username

    assert await name("one.example", "other/app") == "user"
    assert await name("one.example", "team/app") == "team"
    assert await name("two.example", "app") == "filed"
    assert await name("three.example", "app") is None
    assert await name("docker.io", "library/alpine") == "hub"
