"""Logging in and out of a registry that asks for it, by every way there is to give a password."""

from __future__ import annotations

import base64
import json
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.command import Crungo
from tests.support.registry import Registry

USER, PASSWORD = "tester", "s3cret-é"
HTPASSWD = f"{USER}:$2b$04$jXUCOsojioDFAHbnE7r34uYt5c4AaKLp9KzP.hngT2hdCqWopkNUW\n"

HELPER = """#!/bin/sh
# Keeps one secret, in a file beside itself.
file="$(dirname "$0")/secret"
case "$1" in
store) cat > "$file" ;;
get) cat > /dev/null; [ -f "$file" ] && cat "$file" || { echo 'credentials not found in native keychain'; exit 1; } ;;
erase) cat > /dev/null; rm -f "$file" ;;
esac
"""


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a registry that wants a password."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "htpasswd").write_text(HTPASSWD)
    auth = {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}}
    with Registry(folder, settings={"auth": auth}) as registry:
        yield registry.address


@pytest.fixture
def user(fresh_crungo: Crungo, guarded: str, tmp_path: Path) -> Crungo:
    """The command line of a user with a home of their own."""
    home = tmp_path / "home"
    home.mkdir()
    env = {"HOME": str(home), "XDG_RUNTIME_DIR": str(home / "run"), "PATH": f"{home}/bin:/usr/bin:/bin"}
    return replace(fresh_crungo, env=env)


def stored(user: Crungo) -> dict[str, str]:
    """The entries of the file that a login writes, decoded."""
    file = Path(user.env["XDG_RUNTIME_DIR"], "containers", "auth.json")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    auths = json.loads(file.read_text())["auths"]
    return {host: base64.b64decode(entry["auth"]).decode() for host, entry in auths.items()}


def test_in_and_out(user: Crungo, guarded: str) -> None:
    refused = user("pull", f"{guarded}/x", check=125)
    assert f"hint: log in first: crungo login {guarded}\n" in refused.stderr
    done = user("login", "-u", USER, "--password-stdin", guarded, input=f"{PASSWORD}\n", check=0)
    assert (done.stdout, done.stderr) == ("Login Succeeded\n", "")
    assert stored(user) == {guarded: f"{USER}:{PASSWORD}"}
    kept = Path(user.env["HOME"], "kept.json")
    kept.write_bytes(Path(user.env["XDG_RUNTIME_DIR"], "containers", "auth.json").read_bytes())
    found = user("pull", f"{guarded}/x", check=125)
    assert "404" in found.stderr  # it may look, and there is none
    assert user("logout", guarded, check=0).stdout == f"Removing login credentials for {guarded}\n"
    assert stored(user) == {}
    assert user("logout", guarded, check=0).stdout == f"Not logged in to {guarded}\n"
    assert "crungo login" in user("run", f"{guarded}/x", "true", check=125).stderr
    assert "404" in user("run", "--authfile", kept, f"{guarded}/x", "true", check=125).stderr


def test_a_wrong_password_is_not_stored(user: Crungo, guarded: str) -> None:
    done = user("login", "-u", USER, "-p", "wrong", f"http://{guarded}/v2/", check=125)
    assert done.stdout == ""
    assert done.stderr.startswith(f"crungo: login to {guarded}: ")
    assert "wrong" not in done.stderr.partition("hint:")[0]
    assert not Path(user.env["XDG_RUNTIME_DIR"]).exists()


def test_nothing_to_ask(user: Crungo, guarded: str) -> None:
    assert "stdin is not a terminal" in user("login", guarded, check=125).stderr
    assert "stdin is not a terminal" in user("login", "-u", USER, guarded, check=125).stderr
    empty = user("login", "-u", USER, "--password-stdin", guarded, input="", check=125)
    assert "needs a user name and a password" in empty.stderr


def test_prompts(user: Crungo, guarded: str) -> None:
    with user.terminal("login", guarded) as terminal:
        terminal.expect("Username: ")
        terminal.line(USER)
        terminal.expect("Password: ")
        terminal.line(PASSWORD)
        terminal.expect("Login Succeeded")
        assert terminal.wait() == 0
        assert PASSWORD not in terminal.text
        terminal.assert_restored()
    assert stored(user) == {guarded: f"{USER}:{PASSWORD}"}
    with user.terminal("login", guarded) as terminal:
        terminal.expect(rf"Username \({USER}\): ")
        terminal.line("")
        terminal.expect("Password: ")
        terminal.control("C")
        assert terminal.wait() == 130
        terminal.assert_restored()
        assert terminal.cursor[0] == 0


@pytest.mark.parametrize("words", [(), ("-u", USER)])
def test_the_end_of_input_at_a_prompt(words: tuple[str, ...], user: Crungo, guarded: str) -> None:
    with user.terminal("login", *words, guarded) as terminal:
        terminal.expect("Password: " if words else "Username: ")
        terminal.control("D")
        terminal.expect("\ncrungo: login needs a user name and a password")
        assert terminal.wait() == 125
        terminal.assert_restored()


def test_a_helper_keeps_it(user: Crungo, guarded: str) -> None:
    home = Path(user.env["HOME"])
    (home / "bin").mkdir()
    helper = home / "bin" / "docker-credential-box"
    helper.write_text(HELPER)
    helper.chmod(0o755)
    (home / ".docker").mkdir()
    (home / ".docker" / "config.json").write_text(json.dumps({"credHelpers": {guarded: "box"}}))
    user("login", "-u", USER, "-p", PASSWORD, guarded, check=0)
    assert json.loads((home / "bin" / "secret").read_text())["Secret"] == PASSWORD
    assert not Path(user.env["XDG_RUNTIME_DIR"]).exists()
    found = user("pull", f"{guarded}/x", check=125)
    assert "404" in found.stderr  # it may look, and there is none
    assert user("logout", guarded, check=0).stdout == f"Removing login credentials for {guarded}\n"
    assert not (home / "bin" / "secret").exists()


def test_a_file_of_choice(user: Crungo, guarded: str, tmp_path: Path) -> None:
    file = tmp_path / "auth.json"
    user("login", "--authfile", file, "-u", USER, "-p", PASSWORD, guarded, check=0)
    assert guarded in json.loads(file.read_text())["auths"]
    assert "404" in user("pull", "--authfile", file, f"{guarded}/x", check=125).stderr
    user("logout", "--authfile", file, guarded, check=0)
    for verb in ("pull", "run"):
        done = user(verb, "--authfile", f"{file}.none", f"{guarded}/x", check=125)
        assert done.stderr.startswith(f"crungo: authfile {file}.none: no such file\n")
    assert json.loads(file.read_text())["auths"] == {}
