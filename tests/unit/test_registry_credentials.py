"""Credentials: files of docker and podman, helpers, login and logout."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import stat
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crungo.errors import AuthenticationError, UsageError
from crungo.registry.authfiles import Credentials, auth_files
from crungo.registry.credentials import Credential, lookup_keys, parse_auth_file, server_key, storage_key

HUB = "https://index.docker.io/v1/"

# A real program that keeps secrets in a folder, by the protocol of docker/docker-credential-helpers.
HELPER = """#!/bin/sh
store="$(dirname "$0")/secrets"; mkdir -p "$store"
echo "$1" >> "$(dirname "$0")/calls"
case "$1" in
get) read -r key; file="$store/$(printf %s "$key" | tr / _)"
     [ -f "$file" ] || { printf 'credentials not found in native keychain\\n'; exit 1; }
     cat "$file";;
store) input="$(cat)"; key="$(printf %s "$input" | sed 's/.*"ServerURL": "\\([^"]*\\)".*/\\1/')"
     printf %s "$input" > "$store/$(printf %s "$key" | tr / _)";;
erase) read -r key; rm "$store/$(printf %s "$key" | tr / _)";;
esac
"""


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def install(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    program = folder / f"docker-credential-{name}"
    program.write_text(script)
    program.chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    install(folder, "box", HELPER)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def find(document: object, registry: str, repository: str = "") -> Credential | None:
    return parse_auth_file(json.dumps(document), source="f").find(lookup_keys(registry, repository))


def test_the_order_of_files() -> None:
    assert auth_files({"REGISTRY_AUTH_FILE": "/x/auth", "HOME": "/h"}) == ("/x/auth",)
    assert auth_files({"HOME": "/h"}, uid=7) == (
        "/run/containers/7/auth.json",
        "/h/.config/containers/auth.json",
        "/h/.docker/config.json",
    )
    assert auth_files({"HOME": "/h", "XDG_RUNTIME_DIR": "/r", "XDG_CONFIG_HOME": "/c", "DOCKER_CONFIG": "/d"}) == (
        "/r/containers/auth.json",
        "/c/containers/auth.json",
        "/d/config.json",
    )


def test_the_most_specific_key_wins() -> None:
    keys = ["r.example:5000", "r.example:5000/team", "r.example:5000/team/app"]
    document = {"auths": {key: {"auth": encoded(f"{key}:pw")} for key in keys}}
    found = [find(document, "r.example:5000", repository) for repository in ("x/y", "team/x", "team/app", "team/app/z")]
    assert [credential.username if credential else None for credential in found] == [
        "r.example", "r.example", "r.example", "r.example"
    ]  # fmt: skip
    assert [credential.password if credential else None for credential in found] == [
        "5000:pw", "5000/team:pw", "5000/team/app:pw", "5000/team/app:pw"
    ]  # fmt: skip
    assert find(document, "r.example") is None


@pytest.mark.parametrize("key", [HUB, "docker.io", "index.docker.io", "https://registry-1.docker.io/v2/"])
def test_docker_hub_has_many_names(key: str) -> None:
    document = {"auths": {key: {"auth": encoded("me:pw")}}}
    assert find(document, "docker.io", "library/alpine") == Credential(username="me", password="pw")
    assert storage_key(server_key(key)) == HUB


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"auth": encoded("me:p:w\0\0")}, Credential(username="me", password="p:w")),
        ({"username": "me", "password": "pw"}, Credential(username="me", password="pw")),
        ({"auth": encoded("me:"), "identitytoken": "t"}, Credential(username="me", identity_token="t")),
        ({"registrytoken": "t"}, Credential(registry_token="t")),
        ({}, None),
        ({"auth": ""}, None),
    ],
)
def test_shapes_of_entries(entry: dict[str, str], expected: Credential | None) -> None:
    assert find({"auths": {"https://r.example/v1/": entry}}, "r.example") == expected


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "[" * 100_000,
        '{"auths": []}',
        '{"auths": {"r": "secret"}}',
        '{"auths": {"r": {"auth": "secret!"}}}',
        '{"auths": {"r": {"auth": "c2VjcmV0"}}}',
        '{"auths": {"r": {"auth": 3}}}',
    ],
)
def test_malformed_files_are_named_and_not_quoted(text: str) -> None:
    with pytest.raises(UsageError, match=r"^f: ") as caught:
        parse_auth_file(text, source="f").find(("r",))
    assert "secret" not in caught.value.message


@given(st.text(max_size=100))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(UsageError):
        parse_auth_file(text, source="f").find(("r.example",))


@given(
    st.text(st.characters(blacklist_characters=":", blacklist_categories=["Cs"])),
    st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1),
)
def test_a_login_is_read_back(username: str, password: str) -> None:
    before = parse_auth_file(
        '{"auths": {"r.example": {}, "x": {"auth": "eDp5"}}, "HttpHeaders": {"a": "b"}}', source="f"
    )
    credential = Credential(username=username, password=password)
    document = before.with_credential("r.example", credential)
    assert find(document, "r.example") == credential
    assert document["auths"]["x"] == {"auth": "eDp5"}
    assert document["HttpHeaders"] == {"a": "b"}


@pytest.mark.anyio
async def test_files_are_asked_in_order(tmp_path: Path) -> None:
    paths = (str(tmp_path / "a"), str(tmp_path / "missing/b"), str(tmp_path / "c"))
    Path(paths[2]).write_text(json.dumps({"auths": {"r.example": {"auth": encoded("third:x")}}}))  # noqa: ASYNC240 - a test
    credentials = Credentials(paths)
    found = await credentials.find("r.example", "a/b")
    assert found is not None
    assert found.username == "third"
    Path(paths[0]).write_text(json.dumps({"auths": {"r.example": {"auth": encoded("first:x")}}}))  # noqa: ASYNC240 - a test
    found = await credentials.find("r.example", "a/b")
    assert found is not None
    assert found.username == "first"
    assert await credentials.find("other.example") is None


@pytest.mark.anyio
async def test_login_and_logout_keep_the_rest_of_the_file(tmp_path: Path) -> None:
    real = tmp_path / "dotfiles" / "config.json"
    real.parent.mkdir()
    real.write_text(json.dumps({"detachKeys": "ctrl-q", "auths": {"x": {"auth": encoded("a:b"), "email": "e"}}}))
    real.chmod(0o644)
    link = tmp_path / "config.json"
    link.symlink_to(real)
    credentials = Credentials((str(link),))
    assert await credentials.store("docker.io", Credential(username="me", password="pw")) == str(link)
    assert link.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o600
    document = json.loads(real.read_text())
    assert document == {
        "detachKeys": "ctrl-q",
        "auths": {"x": {"auth": encoded("a:b"), "email": "e"}, HUB: {"auth": encoded("me:pw")}},
    }
    assert await credentials.erase("docker.io") is True
    assert await credentials.erase("docker.io") is False
    assert list(json.loads(real.read_text())["auths"]) == ["x"]
    assert os.listdir(real.parent) == ["config.json"]


@pytest.mark.anyio
@pytest.mark.parametrize("allowed", [True, False])
async def test_a_file_keeps_its_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: bool) -> None:
    """As root, a login into somebody's file would make it root's."""
    given: list[tuple[int, int]] = []

    def fchown(_fd: int, uid: int, gid: int) -> None:
        given.append((uid, gid))
        if not allowed:
            raise PermissionError

    monkeypatch.setattr(os, "fchown", fchown)
    path = tmp_path / "auth.json"
    credentials = Credentials((str(path),))
    await credentials.store("r.example", Credential(username="me", password="pw"))
    assert given == []
    await credentials.store("s.example", Credential(username="me", password="pw"))
    assert given == [(os.geteuid(), path.stat().st_gid)]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert await credentials.find("r.example") is not None


@pytest.mark.anyio
async def test_a_login_makes_the_file_and_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "run/containers/auth.json"
    await Credentials((str(path),)).store("r.example", Credential(username="me", identity_token="t"))
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert await Credentials((str(path),)).find("r.example") == Credential(username="me", identity_token="t")


@pytest.mark.anyio
async def test_logins_at_the_same_time_all_last(tmp_path: Path) -> None:
    path = str(tmp_path / "auth.json")
    async with anyio.create_task_group() as group:
        for number in range(12):
            credential = Credential(username=f"u{number}", password="x")
            group.start_soon(Credentials((path,)).store, f"r{number}.example", credential)
    assert len(json.loads(Path(path).read_text())["auths"]) == 12  # noqa: ASYNC240 - a test


@pytest.mark.anyio
async def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"auth\.json: "):
        await Credentials((str(tmp_path / "file/auth.json"),)).store(
            "r.example", Credential(username="a", password="b")
        )


@pytest.mark.anyio
@pytest.mark.parametrize("config", [{"credsStore": "box"}, {"credHelpers": {"r.example": "box"}}])
async def test_a_helper_keeps_the_secret(tmp_path: Path, programs: Path, config: dict[str, object]) -> None:
    early, docker = tmp_path / "auth.json", tmp_path / "config.json"
    early.write_text(json.dumps({"auths": {"r.example": {"auth": encoded("stale:x")}}}))
    docker.write_text(json.dumps(config))
    credentials = Credentials((str(early), str(docker)))
    credential = Credential(username="me", password='a"b\\c')
    assert await credentials.store("r.example", credential) == "docker-credential-box"
    assert await credentials.find("r.example", "a/b") == credential
    assert "stale" not in early.read_text()
    assert json.loads(docker.read_text()) == config
    assert await credentials.erase("r.example") is True
    assert await credentials.erase("r.example") is False
    assert await credentials.find("r.example") is None


@pytest.mark.anyio
async def test_a_helper_is_asked_for_docker_hub_by_its_old_key(tmp_path: Path, programs: Path) -> None:
    docker = tmp_path / "config.json"
    docker.write_text(json.dumps({"credHelpers": {"docker.io": "box"}}))
    credentials = Credentials((str(docker),))
    await credentials.store("docker.io", Credential(username="me", identity_token="t"))
    stored = json.loads((programs / "secrets" / HUB.replace("/", "_")).read_text())
    assert stored == {"ServerURL": HUB, "Username": "<token>", "Secret": "t"}
    assert await credentials.find("docker.io", "library/x") == Credential(identity_token="t")


@pytest.mark.anyio
async def test_the_files_own_entry_serves_where_the_helper_has_none(tmp_path: Path, programs: Path) -> None:
    docker = tmp_path / "config.json"
    docker.write_text(json.dumps({"credsStore": "box", "auths": {"r.example": {"auth": encoded("me:pw")}}}))
    assert await Credentials((str(docker),)).find("r.example") == Credential(username="me", password="pw")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("script", "message"),
    [
        (None, "docker-credential-bad: not installed"),
        ("#!/bin/sh\necho 'keychain is\x1b[0m locked'; exit 1\n", "docker-credential-bad get: keychain is [0m locked"),
        ("#!/bin/sh\nexit 3\n", "docker-credential-bad get: ended with exit code 3"),
        ("#!/bin/sh\necho hello\n", "docker-credential-bad get: its answer is malformed"),
        ('#!/bin/sh\necho \'{"Username": 1, "Secret": "s"}\'\n', "docker-credential-bad get: its answer is malformed"),
        ("#!/nowhere/sh\n", "docker-credential-bad: not installed"),
    ],
)
async def test_helpers_that_fail(tmp_path: Path, programs: Path, script: str | None, message: str) -> None:
    if script is not None:
        install(programs, "bad", script)
    docker = tmp_path / "config.json"
    docker.write_text(json.dumps({"credsStore": "bad"}))
    with pytest.raises(AuthenticationError) as caught:
        await Credentials((str(docker),)).find("r.example")
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["../x", "a/b", "", 3, "a b", "-x"])
def test_a_helpers_name_cannot_be_a_path(name: object) -> None:
    file = parse_auth_file(json.dumps({"credHelpers": {"r": name}, "credsStore": name}), source="f")
    if not name:
        assert file.helper(("r",)) is None
        return
    with pytest.raises(UsageError, match="malformed name of a credential helper"):
        file.helper(("r",))


def test_a_registry_may_have_no_helper_where_the_others_have_one() -> None:
    """As docker reads an empty name."""
    document = {"credsStore": "box", "credHelpers": {"r.example": "", "s.example": "other"}}
    file = parse_auth_file(json.dumps(document), source="f")
    assert file.helper(("r.example/app", "r.example")) is None
    assert file.helper(("s.example",)) == "other"
    assert file.helper(("t.example",)) == "box"
