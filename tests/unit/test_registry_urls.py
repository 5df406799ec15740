"""URLs as requests need them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crungo.registry.urls import Url, join_url, parse_url


@pytest.mark.parametrize(
    ("text", "host", "port", "target", "netloc"),
    [
        ("https://Example.COM", "example.com", 443, "/", "example.com"),
        ("https://example.com:443/v2/?n=1#top", "example.com", 443, "/v2/?n=1", "example.com"),
        ("http://example.com:443/a", "example.com", 443, "/a", "example.com:443"),
        ("http://[::1]:5000/a/b:1", "::1", 5000, "/a/b:1", "[::1]:5000"),
        ("http://user:secret@my_host.:80/x", "my_host.", 80, "/x", "my_host."),
        ("https://cdn.example?sig=a%2Fb|c", "cdn.example", 443, "/?sig=a%2Fb|c", "cdn.example"),
        ("https://cdn.example/a b\xe4", "cdn.example", 443, "/a%20b%E4", "cdn.example"),
        ("ftp://example.com/x", "example.com", 0, "/x", "example.com:0"),
    ],
)
def test_parts(text: str, host: str, port: int, target: str, netloc: str) -> None:
    url = parse_url(text)
    assert (url.host, url.port, url.target, url.netloc) == (host, port, target, netloc)
    assert parse_url(str(url)) == url or not port


@pytest.mark.parametrize(
    "text",
    [
        *("http://[::1/", "http://ex\xe4mple/", "http://a b/", "http://a%2eb/", "http://a:b/", "http://a:1:2/"),
        *("http://\u0142/", f"http://{'a' * 254}/"),
    ],
)
def test_malformed_ones(text: str) -> None:
    with pytest.raises(ValueError, match=r"malformed|Invalid|does not appear"):
        parse_url(text)


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("", "http://reg:5000/v2/a/blobs/x?y"),
        ("/z", "http://reg:5000/z"),
        ("?second", "http://reg:5000/v2/a/blobs/x?second"),
        ("../../c", "http://reg:5000/v2/c"),
        ("//cdn/x", "http://cdn/x"),
        ("https://cdn/x", "https://cdn/x"),
    ],
)
def test_redirects(reference: str, expected: str) -> None:
    assert str(join_url(parse_url("http://reg:5000/v2/a/blobs/x?y"), reference)) == expected


@given(st.text(st.characters(max_codepoint=0xFF)))
def test_whatever_a_registry_says_fits_a_request(reference: str) -> None:
    try:
        url = join_url(Url(scheme="https", host="reg", port=443, target="/v2/"), reference)
    except ValueError:
        return
    assert re.fullmatch("[!-~]+", url.target)
    assert re.fullmatch("[!-~]*", url.netloc)
    assert not set(url.host) & set("@/?#[]")
