"""``--filter``: which images are meant."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crungo.cli.image_filters import parse_until, select
from crungo.cli.image_view import image_view
from crungo.cli.images import rows
from crungo.cli.templates import Template, plain
from crungo.errors import ImageNotKnown, UsageError
from crungo.image.imageconfig import ImageConfig
from crungo.image.manifest import Descriptor, Manifest
from crungo.image.reference import Reference
from crungo.image.store import Image

NOW = datetime(2024, 5, 1, tzinfo=UTC)


def image(*names: str, days: int | None = 1, **labels: str) -> Image:
    """An image that is so many days old."""
    digest = "sha256:" + f"{len(names)}{days}".encode().hex().rjust(64, "0")
    config = Descriptor(media_type="", digest=digest, size=1)
    created = None if days is None else NOW - timedelta(days=days)
    return Image(
        id=digest,
        digest=digest,
        target="sha256:" + "f" * 64,
        references=tuple(Reference.parse(name) for name in names),
        config=ImageConfig(labels=labels, created=created, cmd=("sh",), exposed_ports=("80/tcp",)),
        manifest=Manifest(media_type="", config=config, layers=()),
        layers=("/a", "/b"),
        size=12_345_678,
        created=created,
    )


ALPINE = image("alpine", "alpine:3.20", days=2, env="prod", owner="me")
OWN = image("localhost:5000/team/app:v1", days=1, env="test")
OLD = image("user/old", days=30)
NAMELESS = image(days=3)
UNDATED = image("undated", days=None)
ALL = (OWN, ALPINE, NAMELESS, OLD, UNDATED)


def find(name: str) -> Image:
    for known in ALL:
        if any(reference.familiar == name for reference in known.references):
            return known
    raise ImageNotKnown(f"No such image: {name}")


def chosen(*filters: str, patterns: Sequence[str] = ()) -> list[str]:
    selection = select(filters, find=find, patterns=patterns, now=NOW)
    found = [(each, names) for each in ALL if (names := selection.names(each)) is not None]
    assert all(selection.has(each) for each, _ in found)
    return [name for _, names in found for name in ([n.familiar for n in names] or ["-"])]


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        (["dangling=true"], ["-"]),
        (["dangling=0", "until=48h"], ["user/old:latest", "undated:latest"]),
        (["label=env"], ["localhost:5000/team/app:v1", "alpine:latest", "alpine:3.20"]),
        (["label=env=prod", "label=owner"], ["alpine:latest", "alpine:3.20"]),
        (["label=env", "label!=env=prod"], ["localhost:5000/team/app:v1"]),
        (["label=env=prod", "label=env=test"], []),
        (["before=localhost:5000/team/app:v1", "since=user/old:latest"], ["alpine:latest", "alpine:3.20", "-"]),
        (["reference=alpine"], ["alpine:latest", "alpine:3.20"]),
        (["reference=alpine:3*"], ["alpine:3.20"]),
        (["reference=a*", "reference=user/*"], ["alpine:latest", "alpine:3.20", "user/old:latest"]),
        (["reference=*"], ["alpine:latest", "alpine:3.20", "undated:latest"]),
        (["reference=*/*/*"], ["localhost:5000/team/app:v1"]),
        (["reference=docker.io/library/alpine:latest"], ["alpine:latest"]),
        (["reference=[a-b]lpine:[^l]*"], ["alpine:3.20"]),
        (["reference=user/?ld"], ["user/old:latest"]),
        (["reference=nothing"], []),
    ],
)
def test_filters(filters: list[str], names: list[str]) -> None:
    assert chosen(*filters) == names


def test_patterns_are_references() -> None:
    assert chosen(patterns=["user/old"]) == chosen("reference=user/old") == ["user/old:latest"]
    assert len(chosen()) == 6


@pytest.mark.parametrize(
    "text", ["dangling", "nope=1", "dangling=maybe", "until=soon", "reference=[a", "=", "reference=[z-a]"]
)
def test_malformed(text: str) -> None:
    with pytest.raises(UsageError):
        chosen(text)


def test_only_what_is_allowed() -> None:
    with pytest.raises(UsageError, match="key of label, until"):
        select(["dangling=true"], find=find, allowed=("label", "until"))
    with pytest.raises(ImageNotKnown):
        chosen("before=nothing")


def test_until() -> None:
    assert parse_until("1700000000", NOW).timestamp() == 1_700_000_000
    assert parse_until("2024-04-30T12:00:00Z", NOW) == NOW - timedelta(hours=12)
    assert parse_until("2024-04-30", NOW).tzinfo is not None
    assert parse_until("1h30m", NOW) == NOW - timedelta(minutes=90)


@given(st.text(max_size=12) | st.text(alphabet="[]^-\\*?ab/&~|", max_size=12))
def test_any_pattern_is_one_or_is_refused(pattern: str) -> None:
    try:
        chosen(f"reference={pattern}")
    except UsageError as error:
        assert str(error).isprintable()  # noqa: PT017


def test_rows() -> None:
    one, two = rows(ALPINE, ALPINE.references, NOW.timestamp())
    assert (one["Repository"], one["Tag"], two["Tag"]) == ("alpine", "latest", "3.20")
    assert (one["Size"], one["CreatedSince"], one["Digest"]) == ("12.3MB", "2 days ago", "sha256:" + "f" * 64)
    assert one["ID"] == ALPINE.id[7:19]
    [nameless] = rows(NAMELESS, (), NOW.timestamp(), whole=True)
    assert (nameless["Repository"], nameless["Tag"], nameless["ID"]) == ("<none>", "<none>", NAMELESS.id)
    by_digest = image(f"alpine@sha256:{'a' * 64}")
    [cells] = rows(by_digest, by_digest.references, NOW.timestamp())
    assert (cells["Repository"], cells["Tag"], cells["Digest"]) == ("alpine", "<none>", "sha256:" + "a" * 64)


def test_view_has_dockers_fields() -> None:
    view = plain(image_view(ALPINE))
    assert view["Id"] == ALPINE.id
    assert view["RepoTags"] == ["alpine:latest", "alpine:3.20"]
    assert view["RepoDigests"] == ["alpine@sha256:" + "f" * 64]
    assert view["Digest"] == ALPINE.target
    assert view["Created"] == "2024-04-29T00:00:00Z"
    assert view["Config"]["Cmd"] == ["sh"]
    assert view["Config"]["Entrypoint"] is view["Config"]["Env"] is None
    assert view["Config"]["ExposedPorts"] == {"80/tcp": {}}
    assert view["Config"]["Labels"] == {"env": "prod", "owner": "me"}
    assert view["GraphDriver"]["Data"] == {"UpperDir": "/b", "LowerDir": "/a"}
    assert Template("{{.ID}} {{.Id}}").render(image_view(ALPINE)) == f"{ALPINE.id} {ALPINE.id}"
    assert "ID" not in view
    assert plain(image_view(UNDATED))["Created"] == "0001-01-01T00:00:00Z"
