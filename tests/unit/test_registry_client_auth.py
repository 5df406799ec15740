"""The client and credentials: tokens, basic, logins, and whom nothing of them is sent to."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import anyio.abc
import pytest

from crungo.errors import AuthenticationError
from crungo.registry.authfiles import Credentials
from crungo.registry.credentials import Credential
from tests.support.scripted import (
    BLOB,
    USER,
    Asked,
    Handler,
    Known,
    Reply,
    client,
    good,
    ranged,
    received,
    ref,
    serving,
    sha256,
)

pytestmark = pytest.mark.anyio


def token_registry(tokens: list[str], *, realm: str = "") -> Handler:
    """A registry that takes the last of ``tokens``; its token server, on the same port, hands out new ones."""

    def handler(asked: Asked) -> Reply | None:
        if asked.target.startswith("/token"):
            if asked.headers.get("authorization") not in (None, "Basic bWU6cHc="):
                return Reply(
                    401, {"Content-Type": "application/json"}, b'{"details": "incorrect username or password"}'
                )
            tokens.append(f"token{len(tokens)}")
            return Reply(body=json.dumps({"token": tokens[-1], "expires_in": 300, "refresh_token": "keep"}).encode())
        if tokens and asked.headers.get("authorization") == f"Bearer {tokens[-1]}":
            return Reply(200) if asked.target == "/v2/" else good(asked)
        where = realm or f"http://{asked.headers['host']}/token"
        return Reply(401, {"WWW-Authenticate": f'Bearer realm="{where}",service="s",scope="repository:a/b:pull"'})

    return handler


async def test_tokens_are_fetched_once_and_again_when_refused() -> None:
    tokens: list[str] = []
    async with serving(token_registry(tokens)) as server, client(credentials=USER) as registry:
        await registry.get_manifest(ref(server))
        await registry.get_manifest(ref(server))
        assert [asked.target.partition("?")[0] for asked in server.asked] == [
            "/v2/a/b/manifests/1",
            "/token",
            "/v2/a/b/manifests/1",
            "/v2/a/b/manifests/1",
        ]
        assert server.asked[1].target == "/token?service=s&scope=repository%3Aa%2Fb%3Apull&account=me"
        tokens.append("revoked")

        async def fetch() -> None:
            async with registry.open_blob(ref(server), sha256(BLOB)) as stream:
                assert await received(stream) == BLOB

        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(fetch)
        assert len(tokens) == 3, "eight requests that were refused at once fetch one token"


async def test_a_token_is_renewed_before_it_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens: list[str] = []
    now = 1000.0
    monkeypatch.setattr("crungo.registry.tokens.time.monotonic", lambda: now)
    async with serving(token_registry(tokens)) as server, client() as registry:
        await registry.get_manifest(ref(server))
        now += 289
        await registry.get_manifest(ref(server))
        assert len(tokens) == 1
        now += 2
        await registry.get_manifest(ref(server))
        assert len(tokens) == 2
        assert server.paths[-2].startswith("/token"), "renewed without being refused first"


async def test_a_registry_that_takes_no_token_is_asked_three_times_at_most() -> None:
    tokens: list[str] = []
    handing_out = token_registry(tokens)

    def handler(asked: Asked) -> Reply | None:
        reply = handing_out(asked)
        if asked.target.startswith("/token"):
            tokens.append("another")
        return reply

    refused = 0

    async def fetch() -> None:
        nonlocal refused
        with pytest.raises(AuthenticationError, match="answered 401"):
            await registry.get_manifest(ref(server))
        refused += 1

    async with serving(handler) as server, client() as registry:
        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(fetch)
        assert refused == 8
        asked = [path.partition("?")[0] for path in server.paths]
        assert asked.count("/v2/a/b/manifests/1") <= 3 * 8
        assert asked.count("/token") <= 2 * 8


async def test_wrong_credentials_are_told() -> None:
    wrong = Known(**{"127_0_0_1": Credential(username="me", password="no")})
    async with serving(token_registry([])) as server, client(credentials=wrong) as registry:
        with pytest.raises(AuthenticationError) as caught:
            await registry.get_manifest(ref(server))
        assert str(caught.value) == (
            f"manifest {server.host}/a/b:1: token server of {server.host} answered 401 Unauthorized"
            " (incorrect username or password)"
        )


async def test_a_broken_helper_matters_only_where_credentials_are_needed(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"credsStore": "missing"}')
    broken = Credentials((str(config),))
    async with serving(token_registry([])) as server, client(credentials=broken) as registry:
        await registry.get_manifest(ref(server))
        server.handler = lambda _: Reply(401, {"WWW-Authenticate": "Basic realm=x"})
        with pytest.raises(AuthenticationError) as caught:
            await registry.get_manifest(ref(server, "other:1"))
        assert caught.value.hint == "docker-credential-missing: not installed"


async def test_basic() -> None:
    def handler(asked: Asked) -> Reply | None:
        if asked.headers.get("authorization") == "Basic bWU6cHc=":
            return good(asked)
        return Reply(401, {"WWW-Authenticate": 'Negotiate, Basic realm="a, b"'})

    async with serving(handler) as server:
        async with client(credentials=USER) as registry:
            await registry.get_manifest(ref(server))
            await registry.get_manifest(ref(server))
            assert len(server.asked) == 3
        async with client() as registry:
            with pytest.raises(AuthenticationError, match="wants a user name and a password"):
                await registry.get_manifest(ref(server))


async def test_login() -> None:
    async with serving(token_registry([])) as server, client() as registry:
        assert await registry.check_login(server.host, "me", "pw") == "keep"
        assert "offline_token=true" in server.asked[1].target
        with pytest.raises(AuthenticationError) as caught:
            await registry.check_login(server.host, "me", "wrong")
        assert caught.value.hint == "check the user name and the password"
        server.handler = lambda asked: Reply(
            200 if asked.headers.get("authorization") == "Basic bWU6cHc=" else 401,
            {"WWW-Authenticate": "Basic realm=x"},
        )
        assert await registry.check_login(f"http://{server.host}/v1/", "me", "pw") is None
        with pytest.raises(AuthenticationError, match=f"^login to {server.host}: "):
            await registry.check_login(server.host, "me", "wrong")


async def test_authorization_follows_no_redirect_to_another_host() -> None:
    async with AsyncExitStack() as stack:
        cdn = await stack.enter_async_context(serving(ranged))
        tokens: list[str] = []
        registry_handler = token_registry(tokens)

        def handler(asked: Asked) -> Reply | None:
            reply = registry_handler(asked)
            if reply and reply.status in (200, 206) and "/blobs/" in asked.target and "second" not in asked.target:
                return Reply(307, {"Location": asked.target + "?second"}, b"moved")
            if "second" in asked.target:
                return Reply(302, {"Location": f"http://user:secret@{cdn.host}/blob?signed=1"}, b"moved")
            return reply

        server = await stack.enter_async_context(serving(handler))
        registry = await stack.enter_async_context(client(credentials=USER))
        async with registry.open_blob(ref(server), sha256(BLOB), start=5, end=9) as stream:
            assert await received(stream) == BLOB[5:9]
        (foreign,) = cdn.asked
        assert "authorization" not in foreign.headers
        assert foreign.headers["range"] == "bytes=5-8"
        own = [asked for asked in server.asked if "second" in asked.target]
        assert own[0].headers["authorization"] == "Bearer token0", "a redirect within the registry keeps it"
        assert {asked.connection for asked in server.asked} == {1}, "short bodies of redirects are read to their end"
        # What another host wants is none of the registry's business: no credentials go to the realm it names.
        cdn.handler = lambda _: Reply(401, {"WWW-Authenticate": f'Bearer realm="{server.url}/token"'})
        count = len(tokens)
        with pytest.raises(AuthenticationError, match=f"{cdn.host} answered 401") as caught:
            async with registry.open_blob(ref(server), sha256(BLOB)):
                pass
        assert caught.value.hint == f"{server.host} has redirected there", "nobody can log in to it"
        assert len(tokens) == count


async def test_cookies_are_not_kept() -> None:
    def handler(asked: Asked) -> Reply | None:
        reply = good(asked)
        assert reply is not None
        reply.headers["Set-Cookie"] = "track=me"
        return reply

    async with serving(handler) as server, client() as registry:
        await registry.get_manifest(ref(server))
        await registry.get_manifest(ref(server))
        assert "cookie" not in server.asked[1].headers
