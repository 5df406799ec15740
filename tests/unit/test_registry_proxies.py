"""Which proxy is asked: what Go makes of the same environment (golang.org/x/net/http/httpproxy)."""

from __future__ import annotations

import base64
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crungo.errors import RegistryError, UsageError
from crungo.image.reference import Reference
from crungo.registry.hosts import Hosts, Registry
from crungo.registry.proxies import Proxy, proxy_of
from crungo.registry.urls import Url, parse_url
from tests.support.scripted import BLOB, MANIFEST, Asked, Reply, client, good, received, serving, sha256

PROXY = "http://proxy.test:3128"


def asked_through(url: str, **environ: str) -> str | None:
    proxy = proxy_of(parse_url(url), environ)
    return None if proxy is None else f"{proxy.scheme}://{proxy.netloc}"


@pytest.mark.parametrize(
    ("entries", "url", "excepted"),
    [
        ("", "https://reg.test", False),
        ("*", "https://reg.test", True),
        ("a.test, reg.test ,", "https://reg.test", True),
        ("REG.test", "https://reg.test", True),
        ("reg.test", "https://sub.reg.test:5000", True),
        ("reg.test", "https://otherreg.test", False),
        (".reg.test", "https://reg.test", False),
        (".reg.test", "https://sub.reg.test", True),
        ("*.reg.test", "https://reg.test", False),
        ("*.reg.test", "https://a.sub.reg.test", True),
        ("test", "https://reg.test", True),
        ("reg.test:5000", "https://reg.test:5000", True),
        ("reg.test:5000", "https://reg.test", False),
        ("reg.test:443", "https://reg.test", True),
        ("*.test:5000", "https://reg.test:5000", True),
        ("10.0.0.0/8", "https://10.1.2.3:5000", True),
        ("10.0.0.1/8", "https://10.1.2.3", True),
        ("10.0.0.0/8", "https://11.1.2.3", False),
        ("10.0.0.0/8", "https://reg.test", False),
        ("10.1.2.3", "https://10.1.2.3:5000", True),
        ("10.1.2.3:5000", "https://10.1.2.3:5000", True),
        ("10.1.2.3:5001", "https://10.1.2.3:5000", False),
        ("fd00::/8", "https://[fd00::1]:5000", True),
        ("fd00::/8", "https://10.1.2.3", False),
        ("fd00::1", "https://[fd00:0::1]:5000", True),
        ("[fd00::1]:5000", "https://[fd00::1]:5000", True),
        ("[fd00::1]:5001", "https://[fd00::1]:5000", False),
        ("::1/128,fe80::/10,reg.test", "https://reg.test", True),
        ("foo:bar, a:b:c, /, [, :, ., http://reg.test, 10.0.0.0/x", "https://reg.test", False),
    ],
)
def test_no_proxy(entries: str, url: str, excepted: bool) -> None:
    assert asked_through(url, HTTPS_PROXY=PROXY, NO_PROXY=entries) == (None if excepted else PROXY)


def test_each_scheme_has_a_variable() -> None:
    assert asked_through("https://reg.test", HTTP_PROXY=PROXY, ALL_PROXY=PROXY) is None
    assert asked_through("http://reg.test", HTTP_PROXY=PROXY) == PROXY
    assert asked_through("https://reg.test", https_proxy=PROXY) == PROXY
    assert asked_through("https://reg.test", HTTPS_PROXY=PROXY, https_proxy="http://other.test") == PROXY
    assert asked_through("https://reg.test", HTTPS_PROXY="", https_proxy=PROXY) == PROXY
    assert asked_through("https://reg.test", HTTPS_PROXY=PROXY, no_proxy="reg.test") is None
    assert asked_through("http://reg.test", HTTP_PROXY=PROXY, REQUEST_METHOD="GET") is None


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:5000", "127.8.8.8", "[::1]:5000"])
def test_this_machine_is_asked_itself(host: str) -> None:
    assert asked_through(f"https://{host}", HTTPS_PROXY=PROXY) is None


def test_what_a_proxy_may_look_like() -> None:
    def proxy(text: str) -> Proxy:
        found = proxy_of(parse_url("https://reg.test"), {"HTTPS_PROXY": text})
        assert found is not None
        return found

    assert proxy("proxy.test:3128") == Proxy(scheme="http", host="proxy.test", port=3128)
    assert proxy("http://proxy.test/") == Proxy(scheme="http", host="proxy.test", port=80)
    assert proxy("https://[fd00::1]").netloc == "[fd00::1]:443"
    assert proxy("socks5h://proxy.test") == Proxy(scheme="socks5", host="proxy.test", port=1080)
    assert proxy("http://proxy.test").authorization is None
    given = proxy("http://me:p%40ss@proxy.test")
    assert given.authorization == "Basic " + base64.b64encode(b"me:p@ss").decode()
    assert "p@ss" not in repr(given)


@pytest.mark.parametrize(
    "text", ["::::", "http://", "http://proxy.test:99999", "http://proxy.test:x", "socks://proxy.test", "ftp://a.test"]
)
def test_a_malformed_proxy_is_named_by_its_variable(text: str) -> None:
    with pytest.raises(UsageError, match=r"^https_proxy: "):
        asked_through("https://reg.test", https_proxy=text)


@given(st.text(), st.text(), st.sampled_from(["reg.test", "10.1.2.3", "fd00::1"]))
def test_any_environment_is_read_or_refused(proxy: str, exceptions: str, host: str) -> None:
    with suppress(UsageError):
        proxy_of(Url(scheme="https", host=host, port=443, target="/"), {"HTTPS_PROXY": proxy, "NO_PROXY": exceptions})


@pytest.mark.anyio
async def test_a_proxy_with_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    def handler(asked: Asked) -> Reply | None:
        if asked.headers.get("proxy-authorization") != "Basic " + base64.b64encode(b"me:p@ss").decode():
            return Reply(407)
        target = asked.target.removeprefix("http://reg.invalid")
        return good(Asked(asked.method, target, asked.headers, b"", asked.connection))

    hosts = Hosts(registries=(Registry(prefix="reg.invalid", location="reg.invalid", insecure=True),))
    image = Reference.parse("reg.invalid/a/b:1")
    async with serving(handler) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        async with client(hosts=hosts, retries=0) as registry:
            with pytest.raises(RegistryError, match="answered 407"):
                await registry.get_manifest(image)
        monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("://", "://me:p%40ss@"))
        async with client(hosts=hosts, retries=0) as registry:
            assert (await registry.get_manifest(image)).body == MANIFEST
            async with registry.open_blob(image, sha256(BLOB)) as stream:
                assert await received(stream) == BLOB


@pytest.mark.anyio
async def test_a_proxy_that_refuses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(lambda _: Reply(403)) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        async with client(retries=0) as registry:
            with pytest.raises(RegistryError, match=f"reg.invalid: proxy {proxy.host}: 403"):
                await registry.get_manifest(Reference.parse("reg.invalid/a/b:1"))
        assert [(asked.method, asked.target) for asked in proxy.asked] == [("CONNECT", "reg.invalid:443")]
