"""References: docker's normalisation, the grammar's limits, and that nothing malformed exists as a value."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crungo.errors import InvalidReference
from crungo.image.reference import Reference, check_registry

DIGEST = "sha256:" + "0123456789abcdef" * 4

GOOD = {
    "alpine": ("docker.io/library/alpine:latest", "alpine:latest"),
    "alpine:3.20": ("docker.io/library/alpine:3.20", "alpine:3.20"),
    "library/alpine": ("docker.io/library/alpine:latest", "alpine:latest"),
    "user/x": ("docker.io/user/x:latest", "user/x:latest"),
    "docker.io/alpine": ("docker.io/library/alpine:latest", "alpine:latest"),
    "index.docker.io/user/x": ("docker.io/user/x:latest", "user/x:latest"),
    "docker.io/library/a/b": ("docker.io/library/a/b:latest", "library/a/b:latest"),
    "localhost/x": ("localhost/x:latest", "localhost/x:latest"),
    "localhost:5000": ("docker.io/library/localhost:5000", "localhost:5000"),
    "localhost:5000/a/b:t": ("localhost:5000/a/b:t", "localhost:5000/a/b:t"),
    "host:5000/x": ("host:5000/x:latest", "host:5000/x:latest"),
    "[::1]:5000/x": ("[::1]:5000/x:latest", "[::1]:5000/x:latest"),
    "Quay.IO/x": ("Quay.IO/x:latest", "Quay.IO/x:latest"),
    f"alpine@{DIGEST}": (f"docker.io/library/alpine@{DIGEST}", f"alpine@{DIGEST}"),
    f"alpine:3@{DIGEST}": (f"docker.io/library/alpine:3@{DIGEST}", f"alpine:3@{DIGEST}"),
    "a__b/c-d/e.f/g--h": ("docker.io/a__b/c-d/e.f/g--h:latest", "a__b/c-d/e.f/g--h:latest"),
    "a:" + "t" * 128: ("docker.io/library/a:" + "t" * 128, "a:" + "t" * 128),
    "a:_x.Y-z": ("docker.io/library/a:_x.Y-z", "a:_x.Y-z"),
}

BAD = {
    "": "it is empty",
    "Alpine": "must be in lower case",
    "user/Alpine": "must be in lower case",
    "https://x.io/y": "leave out the scheme",
    ":latest": "name is missing",
    f"@{DIGEST}": "name is missing",
    "a:": "the tag is empty",
    "a:-x": "begin with neither",
    "a:" + "t" * 129: "longer than 128",
    "a:b:c": "must be made of",
    "a//b": "empty part",
    "/a": "empty part",
    "a/": "empty part",
    "a.b/": "empty part",
    "a___b": "must be made of",
    "a..b": "must be made of",
    "-a": "must be made of",
    "a\n": "must be made of",
    "ä": "must be made of",
    "x.y/" + "a" * 256: "longer than 255",
    "a" * 64: "image id",
    "a.b:99999/x": "between 1 and 65535",
    "a.b:0/x": "between 1 and 65535",
    "a_b.c/x": "not a host name",
    ".a/x": "not a host name",
    "a@sha256:12": "has 2 digits, not 64",
    "a@md5:12": "neither sha256 nor sha512",
    "a@12": "lacks its algorithm",
    "a@" + DIGEST.upper().replace("SHA", "sha"): "other than 0-9",
    f"a@{DIGEST}@{DIGEST}": "digits",
    "../../etc/passwd": "not a host name",
    "a/../b": "must be made of",
}


@pytest.mark.parametrize("text", GOOD)
def test_canonical_and_familiar(text: str) -> None:
    reference = Reference.parse(text)
    assert (str(reference), reference.familiar) == GOOD[text]


@pytest.mark.parametrize("text", BAD)
def test_refused(text: str) -> None:
    with pytest.raises(InvalidReference, match=BAD[text]) as caught:
        Reference.parse(text)
    assert caught.value.message.startswith("invalid reference '")
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 300


def test_digest_decides() -> None:
    reference = Reference.parse(f"alpine:3@{DIGEST}")
    assert (reference.tag, reference.digest, reference.target) == ("3", DIGEST, DIGEST)
    assert reference.with_tag("4").target == "4"
    assert str(reference.with_digest(DIGEST)) == f"docker.io/library/alpine@{DIGEST}"


@pytest.mark.parametrize(
    "fields",
    [
        {"registry": "docker.io", "repository": "library/alpine"},
        {"registry": "docker.io", "repository": "alpine", "tag": "1"},
        {"registry": "host", "repository": "alpine", "tag": "1"},
        {"registry": "docker.io", "repository": "library/../x", "tag": "1"},
        {"registry": "docker.io", "repository": "library/x", "tag": "a/b"},
        {"registry": "a.b", "repository": "x", "digest": "sha256:../"},
    ],
)
def test_parts_are_checked_as_well(fields: dict[str, str]) -> None:
    with pytest.raises(InvalidReference):
        Reference(**fields)


component = st.from_regex(r"[a-z0-9]{1,8}((\.|_|__|-{1,3})[a-z0-9]{1,8}){0,2}", fullmatch=True)
registries = st.sampled_from(["docker.io", "localhost", "a.b", "host:1", "127.0.0.1:5000", "[::1]:80"])


@given(registries, st.lists(component, min_size=2, max_size=4), st.from_regex(r"\w[\w.-]{0,127}", fullmatch=True))
def test_round_trip(registry: str, parts: list[str], tag: str) -> None:
    if not tag.isascii():
        return
    reference = Reference(registry=registry, repository="/".join(parts), tag=tag)
    assert Reference.parse(str(reference)) == reference
    assert Reference.parse(reference.familiar) == reference


@given(st.text(alphabet=string.ascii_letters + string.digits + "./:@_-[]\n \0é", max_size=40))
def test_anything_is_a_reference_or_refused(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except InvalidReference as error:
        message = error.message
    else:
        message = str(reference)
        assert Reference.parse(str(reference)) == reference
        assert Reference.parse(reference.familiar) == reference
        assert ".." not in message
    assert message.isprintable()


@pytest.mark.parametrize("host", ["docker.io", "localhost", "a:5000", "ghcr.io", "[::1]:5000", "10.0.0.1"])
def test_registries(host: str) -> None:
    check_registry(host)
    assert Reference.parse(f"{host}/x/y").registry == host


@pytest.mark.parametrize("host", ["", "a", "A_B.c", "a.b:0", "index.docker.io", "a/b.c", "a.b:99999"])
def test_what_is_no_registry(host: str) -> None:
    with pytest.raises(InvalidReference, match="invalid registry"):
        check_registry(host)
