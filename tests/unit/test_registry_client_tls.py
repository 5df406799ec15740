"""The client, TLS and proxies."""

from __future__ import annotations

import os
import socket
import ssl
import struct
import subprocess
from pathlib import Path

import anyio
import httpcore
import pytest

from crungo.errors import RegistryError
from crungo.image.reference import Reference
from crungo.registry.ahead import Ahead
from crungo.registry.hosts import Hosts, Registry
from crungo.registry.sockets import SocketStream
from crungo.registry.urls import parse_url
from crungo.registry.wire import Timeouts, Wire
from tests.support.scripted import (
    BLOB,
    MANIFEST,
    Asked,
    Reply,
    Sleeps,
    client,
    good,
    ranged,
    received,
    ref,
    serving,
    sha256,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that nobody trusts yet, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=127.0.0.1 -addext"
    subprocess.run(
        ["openssl", *words.split(), "subjectAltName=IP:127.0.0.1", "-keyout", "server.key", "-out", "ca.crt"],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return folder


def server_context(authority: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority / "ca.crt", authority / "server.key")
    return context


def trusting(tmp_path: Path, authority: Path, host: str) -> Path:
    (tmp_path / host).mkdir()
    (tmp_path / host / "ca.crt").write_bytes((authority / "ca.crt").read_bytes())
    return tmp_path


async def test_tls_with_an_authority_of_certs_d(tmp_path: Path, authority: Path) -> None:
    async with serving(good, context=server_context(authority)) as server:
        sleeps = Sleeps()
        async with client(sleeps=sleeps) as registry:
            with pytest.raises(RegistryError, match="certificate is not trusted") as caught:
                await registry.get_manifest(ref(server))
            assert sleeps == [], "that plain http got no answer from a server of TLS will not pass"
            assert caught.value.hint is not None
            assert f"certs.d/{server.host}/ca.crt" in caught.value.hint
        async with client(certificates=trusting(tmp_path, authority, server.host)) as registry:
            for _ in range(2):
                async with registry.open_blob(ref(server), sha256(BLOB)) as stream:
                    assert await received(stream) == BLOB
            assert len({asked.connection for asked in server.asked}) == 1


@pytest.mark.parametrize(
    ("url", "folder"),
    [
        ("https://reg.example:5000", "reg.example:5000"),
        ("https://reg.example", "reg.example"),
        ("https://reg.example:443", "reg.example"),
        ("https://reg.example:443", "reg.example:443"),
        ("https://registry-1.docker.io", "docker.io"),
    ],
)
def test_where_certificates_are_filed(tmp_path: Path, url: str, folder: str) -> None:
    """A port that need not be written may have been written, in the reference and in certs.d."""
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "ca.crt").touch()
    wire = Wire(hosts=Hosts(), certificate_folders=(str(tmp_path),), timeouts=Timeouts(), ahead=Ahead())
    found = wire._trust(parse_url(url), False, None).certificates
    assert found.authorities == (str(tmp_path / folder / "ca.crt"),)


async def test_an_insecure_registry_is_not_verified(authority: Path) -> None:
    async with serving(good, context=server_context(authority)) as server:
        hosts = Hosts(registries=(Registry(prefix=server.host, location=server.host, insecure=True),))
        async with client(hosts=hosts) as registry:
            assert (await registry.get_manifest(ref(server))).body == MANIFEST


async def test_a_client_certificate(tmp_path: Path, authority: Path) -> None:
    context = server_context(authority)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(authority / "ca.crt")
    async with serving(good, context=context) as server:
        folder = trusting(tmp_path, authority, server.host)
        async with client(certificates=folder, retries=0) as registry:
            with pytest.raises(RegistryError):
                await registry.get_manifest(ref(server))
        (folder / server.host / "client.cert").write_bytes((authority / "ca.crt").read_bytes())
        (folder / server.host / "client.key").write_bytes((authority / "server.key").read_bytes())
        async with client(certificates=folder) as registry:
            assert (await registry.get_manifest(ref(server))).body == MANIFEST


async def test_https_does_not_become_http(tmp_path: Path, authority: Path) -> None:
    async with serving(ranged) as plain, serving(good, context=server_context(authority)) as server:
        server.handler = lambda _: Reply(302, {"Location": f"{plain.url}/x"})
        async with client(certificates=trusting(tmp_path, authority, server.host)) as registry:
            with pytest.raises(RegistryError, match="redirect from https to http is not followed"):
                async with registry.open_blob(ref(server), sha256(BLOB)):
                    pass
        assert plain.asked == []
        hosts = Hosts(registries=(Registry(prefix=server.host, location=server.host, insecure=True),))
        async with client(hosts=hosts) as registry, registry.open_blob(ref(server), sha256(BLOB)) as stream:
            assert await received(stream) == BLOB


async def test_a_proxy_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the registry, which has not been asked: the hint says so."""
    async with serving(good) as gone, serving(good) as server:
        pass
    monkeypatch.setenv("https_proxy", gone.url)
    async with client(retries=0) as registry:
        with pytest.raises(RegistryError, match=r"reg\.invalid: ") as caught:
            await registry.get_manifest(Reference.parse("reg.invalid/a/b:1"))
        assert caught.value.hint == "HTTP_PROXY, HTTPS_PROXY and NO_PROXY are in effect"
        with pytest.raises(RegistryError) as caught:
            await registry.get_manifest(ref(server))
        assert caught.value.hint is None


async def test_a_proxy_is_used_but_not_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(good) as proxy, serving(good) as server:
        monkeypatch.setenv("http_proxy", proxy.url)
        hosts = Hosts(registries=(Registry(prefix="reg.invalid", location="reg.invalid", insecure=True),))
        async with client(hosts=hosts, retries=0) as registry:
            await registry.get_manifest(ref(server))
            assert proxy.asked == []
            proxy.handler = lambda asked: good(
                Asked("GET", asked.target.removeprefix("http://reg.invalid"), asked.headers, b"", 0)
            )
            assert (await registry.get_manifest(Reference.parse("reg.invalid/a/b:1"))).body == MANIFEST
            assert proxy.paths == ["http://reg.invalid/v2/a/b/manifests/1"]
            async with registry.open_blob(Reference.parse("reg.invalid/a/b:1"), sha256(BLOB)) as stream:
                async for chunk in stream.chunks():
                    assert chunk
                    break


async def test_a_connection_that_was_reset_before_its_handshake_is_closed() -> None:
    """ssl leaves the descriptor of such a socket to the garbage collector."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sock = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()
    sock.setblocking(False)
    await anyio.wait_readable(sock)
    number = sock.fileno()
    with pytest.raises(httpcore.ConnectError) as caught:
        await SocketStream(sock).start_tls(ssl.create_default_context(), "registry.test", 5)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
    assert "reset" in str(caught.value)
