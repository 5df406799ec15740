"""registries.conf, certs.d and the order of places to ask."""

from __future__ import annotations

import string
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crungo.errors import RegistryError, UsageError
from crungo.image.reference import Reference
from crungo.registry.hostfiles import Certificates, find_certificates, load_hosts
from crungo.registry.hosts import Hosts, Registry, _read_aliases, host_of, is_loopback, parse_registries_conf

DIGEST = "sha256:" + "a" * 64


def conf(text: str) -> Hosts:
    return parse_registries_conf(text, source="test.conf")


def urls(hosts: Hosts, text: str) -> list[str]:
    return [f"{place.base_url}/{place.repository}" for place in hosts.endpoints(Reference.parse(text))]


def test_docker_hub_is_served_by_its_registry_host() -> None:
    (place,) = Hosts().endpoints(Reference.parse("alpine"))
    assert (place.base_url, place.repository) == ("https://registry-1.docker.io", "library/alpine")
    assert place.registry == "docker.io"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("localhost:5000", True),
        ("127.0.0.1:5000", True),
        ("127.9.8.7", True),
        ("[::1]:5000", True),
        ("128.0.0.1", False),
        ("localhost.example.com", False),
        ("127.0.0.1.example.com", False),
    ],
)
def test_only_this_machine_may_be_asked_by_plain_http(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
    places = Hosts().endpoints(Reference(registry=host, repository="x", tag="1"))
    schemes = [place.base_url.partition(":")[0] for place in places]
    assert schemes == (["http", "https"] if loopback else ["https"])


def test_an_insecure_registry_is_asked_with_tls_first() -> None:
    hosts = conf('[[registry]]\nlocation = "reg.example:5000"\ninsecure = true')
    assert urls(hosts, "reg.example:5000/a/b") == ["https://reg.example:5000/a/b", "http://reg.example:5000/a/b"]
    assert hosts.is_insecure("reg.example:5000")
    assert not hosts.is_insecure("reg.example")
    assert all(place.insecure for place in hosts.login_endpoints("reg.example:5000"))


MIRRORS = """
[[registry]]
prefix = "example.com/team"
location = "internal.example/bar"
[[registry.mirror]]
location = "all.example/m"
[[registry.mirror]]
location = "digests.example/m"
pull-from-mirror = "digest-only"
[[registry.mirror]]
location = "tags.example/m"
pull-from-mirror = "tag-only"
"""


def test_mirrors_come_first_and_only_for_their_kind_of_reference() -> None:
    hosts = conf(MIRRORS)
    assert urls(hosts, "example.com/team/app:1") == [
        "https://all.example/m/app",
        "https://tags.example/m/app",
        "https://internal.example/bar/app",
    ]
    assert urls(hosts, f"example.com/team/app@{DIGEST}") == [
        "https://all.example/m/app",
        "https://digests.example/m/app",
        "https://internal.example/bar/app",
    ]
    assert urls(hosts, "example.com/other/app:1") == ["https://example.com/other/app"]


def test_mirror_by_digest_only_holds_for_every_mirror_that_does_not_say_otherwise() -> None:
    hosts = conf(
        '[[registry]]\nlocation = "example.com"\nmirror-by-digest-only = true\n'
        '[[registry.mirror]]\nlocation = "a.example"\n'
    )
    assert urls(hosts, "example.com/x:1") == ["https://example.com/x"]
    assert urls(hosts, f"example.com/x@{DIGEST}") == ["https://a.example/x", "https://example.com/x"]


def test_the_longest_prefix_wins_and_ends_at_a_slash() -> None:
    hosts = conf(
        '[[registry]]\nprefix = "example.com"\nlocation = "short.example"\n'
        '[[registry]]\nprefix = "example.com/a/b"\nlocation = "long.example"\n'
    )
    assert urls(hosts, "example.com/a/b/c") == ["https://long.example/c"]
    assert urls(hosts, "example.com/a/bc") == ["https://short.example/a/bc"]
    assert urls(hosts, "example.com:5000/a") == ["https://example.com:5000/a"]
    assert urls(hosts, "example.community/a") == ["https://example.community/a"]


def test_a_wildcard_takes_subdomains_alone() -> None:
    hosts = conf('[[registry]]\nprefix = "*.example.com"\ninsecure = true\n')
    assert len(urls(hosts, "a.b.example.com/x")) == 2
    assert urls(hosts, "example.com/x") == ["https://example.com/x"]
    assert urls(hosts, "badexample.com/x") == ["https://badexample.com/x"]
    moved = conf('[[registry]]\nprefix = "*.example.com/a"\nlocation = "new.example/b"\n')
    assert urls(moved, "x.example.com/a/c") == ["https://new.example/b/c"]


def test_a_location_at_docker_hub_gets_the_official_folder() -> None:
    hosts = conf('[[registry]]\nprefix = "example.com"\nlocation = "docker.io"\n')
    assert urls(hosts, "example.com/alpine") == ["https://registry-1.docker.io/library/alpine"]


def test_a_slash_at_the_end_means_nothing() -> None:
    hosts = conf(
        '[[registry]]\nprefix = "example.com/"\nlocation = "a.example/b/"\n'
        '[[registry.mirror]]\nlocation = "mirror.example/"\n'
    )
    places = hosts.endpoints(Reference.parse("example.com/x"))
    assert [(place.base_url, place.repository) for place in places] == [
        ("https://mirror.example", "x"),
        ("https://a.example", "b/x"),
    ]


def test_short_names_are_of_the_registry_that_is_searched() -> None:
    house = conf('unqualified-search-registries = ["reg.house:5000"]\n[aliases]\n"fedora" = "r.example/fedora"\n')
    assert house.expand("tool:1") == "reg.house:5000/tool:1"
    assert house.expand(f"team/tool@{DIGEST}") == f"reg.house:5000/team/tool@{DIGEST}"
    assert house.expand("fedora:39") == "r.example/fedora:39"
    for whole in ("docker.io/tool", "localhost/tool", "reg.house:5000/x", "a.b/c:1"):
        assert house.expand(whole) == whole
    several = conf('unqualified-search-registries = ["a.example", "b.example/team"]')
    assert several.candidates("tool:1") == ["a.example/tool:1", "b.example/team/tool:1"]
    with pytest.raises(UsageError, match=r"several registries for it: a\.example, b\.example/team$") as caught:
        several.expand("tool:1")
    assert caught.value.hint == "write the one that is meant, as in a.example/tool:1"
    assert several.expand("a.example/tool") == "a.example/tool"
    for hub in ("docker.io", "registry-1.docker.io"):
        with_hub = several.merged(conf(f'unqualified-search-registries = ["a.example", "{hub}"]'))
        assert with_hub.expand("tool:1") == "tool:1"
    assert several.merged(conf("")).candidates("tool") == ["a.example/tool", "b.example/team/tool"]
    for wrong in ('["https://a.example"]', "[1]", '"a.example"'):
        with pytest.raises(UsageError, match="unqualified-search-registries"):
            conf(f"unqualified-search-registries = {wrong}")


def test_a_blocked_registry_yields_nothing() -> None:
    hosts = conf('[[registry]]\nlocation = "example.com/evil"\nblocked = true\n')
    with pytest.raises(RegistryError, match=r"example\.com/evil/x: registry is blocked"):
        hosts.endpoints(Reference.parse("example.com/evil/x"))
    assert hosts.endpoints(Reference.parse("example.com/good/x"))


def test_a_rewriting_that_leaves_no_repository_is_an_error() -> None:
    hosts = conf('[[registry]]\nprefix = "example.com/app"\nlocation = "other.example"\n')
    with pytest.raises(RegistryError, match="a registry alone"):
        hosts.endpoints(Reference.parse("example.com/app"))


def test_short_names() -> None:
    hosts = conf('[aliases]\n"fedora" = "registry.fedoraproject.org/fedora"\n"a/b" = "quay.io/a/b"\n')
    assert hosts.expand("fedora") == "registry.fedoraproject.org/fedora"
    assert hosts.expand("fedora:39") == "registry.fedoraproject.org/fedora:39"
    assert hosts.expand(f"fedora:39@{DIGEST}") == f"registry.fedoraproject.org/fedora:39@{DIGEST}"
    assert hosts.expand("a/b:1") == "quay.io/a/b:1"
    assert hosts.expand("localhost:5000/fedora") == "localhost:5000/fedora"
    assert hosts.merged(conf('[aliases]\n"fedora" = ""\n')).expand("fedora") == "fedora"


def test_a_later_file_replaces_whole_tables() -> None:
    first = conf('[[registry]]\nlocation = "a.example"\ninsecure = true\n[[registry]]\nlocation = "b.example"\n')
    merged = first.merged(conf('[[registry]]\nlocation = "a.example"\nblocked = true\n'))
    assert merged.find("a.example/x") == Registry(prefix="a.example", location="a.example", blocked=True)
    assert merged.find("b.example/x") is not None


@pytest.mark.parametrize(
    "text",
    [
        "[[registry]\n",
        "registry = 3",
        "registry = [3]",
        "[[registry]]\ninsecure = true",
        '[[registry]]\nlocation = "https://example.com"',
        '[[registry]]\nlocation = "example.com"\ninsecure = "yes"',
        '[[registry]]\nprefix = "example.com/x:1"\nlocation = "a.example"',
        '[[registry]]\nprefix = "example.com"\nlocation = "a.example/../b"',
        '[[registry]]\nlocation = "a.example"\n[[registry.mirror]]\nlocation = ""',
        '[[registry]]\nlocation = "a.example"\nmirror = [1]',
        '[[registry]]\nlocation = "a.example"\n[[registry.mirror]]\nlocation = "b.example"\npull-from-mirror = "x"',
        '[registries.search]\nregistries = ["docker.io"]',
        "[aliases]\nx = 3",
    ],
)
def test_a_broken_file_is_named(text: str) -> None:
    with pytest.raises(UsageError, match=r"^test\.conf: "):
        conf(text)


_names = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=8)


@given(st.lists(_names, min_size=1, max_size=4), st.lists(_names, min_size=1, max_size=4), st.integers(0, 3))
def test_rewriting_keeps_what_follows_the_prefix(path: list[str], location: list[str], cut: int) -> None:
    prefix = "/".join(["example.com", *path[:cut]])
    hosts = Hosts(registries=(Registry(prefix=prefix, location="/".join(["new.example", *location])),))
    reference = Reference(registry="example.com", repository="/".join([*path, "end"]), tag="1")
    (place,) = hosts.endpoints(reference)
    assert place.repository == "/".join([*location, *path[cut:], "end"])


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    message = ""
    try:
        conf(text)
    except UsageError as error:
        message = error.message
    assert "\n" not in message


def test_host_of() -> None:
    assert host_of("[2001:DB8::1]:5000") == "2001:db8::1"
    assert host_of("Example.com:5000") == "example.com"


def test_files_are_found_and_laid_over_each_other(tmp_path: Path) -> None:
    main, drop_ins = tmp_path / "registries.conf", tmp_path / "conf.d"
    drop_ins.mkdir()
    main.write_text('[[registry]]\nlocation = "a.example"\ninsecure = true\n')
    (drop_ins / "10.conf").write_text('[aliases]\nx = "a.example/first"\n')
    (drop_ins / "20.conf").write_text('[aliases]\nx = "a.example/second"\n')
    (drop_ins / "ignored.txt").write_text("not TOML at all")
    environ = {"CONTAINERS_REGISTRIES_CONF": str(main), "CONTAINERS_REGISTRIES_CONF_DIR": str(drop_ins)}
    hosts = load_hosts(environ)
    assert hosts.is_insecure("a.example")
    assert hosts.expand("x") == "a.example/second"
    (drop_ins / "30.conf").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"30\.conf: not UTF-8"):
        load_hosts(environ)
    with pytest.raises(UsageError, match="no such file"):
        load_hosts({"CONTAINERS_REGISTRIES_CONF": str(tmp_path / "missing")})


def test_the_users_file_comes_before_the_systems(tmp_path: Path) -> None:
    folder = tmp_path / ".config/containers"
    folder.mkdir(parents=True)
    (folder / "registries.conf").write_text('[[registry]]\nlocation = "mine.example"\ninsecure = true\n')
    environ = {"HOME": str(tmp_path), "CONTAINERS_REGISTRIES_CONF_DIR": str(tmp_path / "none")}
    assert load_hosts(environ).is_insecure("mine.example")


def test_certificates(tmp_path: Path) -> None:
    place = tmp_path / "second/reg.example:5000"
    place.mkdir(parents=True)
    for name in ("ca.crt", "client.cert", "client.key", "readme"):
        (place / name).touch()
    folders = (str(tmp_path / "first"), str(tmp_path / "second"))
    found = find_certificates("reg.example:5000", folders)
    assert found == Certificates(
        authorities=(str(place / "ca.crt"),), clients=((str(place / "client.cert"), str(place / "client.key")),)
    )
    assert find_certificates("reg.example", folders) == Certificates()
    assert find_certificates("../second/reg.example:5000", folders) == Certificates()
    (place / "client.key").unlink()
    with pytest.raises(UsageError, match=r"client\.key is missing"):
        find_certificates("reg.example:5000", folders)
    (place / "client.cert").rename(place / "client.key")
    with pytest.raises(UsageError, match="its certificate is missing"):
        find_certificates("reg.example:5000", folders)


PIECES = [
    *'[]"=#\\ab',
    "\t",
    " ",
    "\r",
    "\n",
    "\r\n",
    "\x7f",
    "\x0b",
    "\u2028",
    "é",
    "[aliases]\n",
    '"a" = "b"\n',
    "# c\n",
]


@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
def test_a_document_of_aliases_is_read_as_any_toml(text: str) -> None:
    """What is read without tomllib, which takes a while to import, is what it would have read."""
    found = _read_aliases(text)
    if found is not None:
        assert found == tomllib.loads(text)


def test_what_distributions_ship_is_read_without_tomllib() -> None:
    text = '# short names\n\n[aliases]\n  # a\n  "a" = "docker.io/library/a" # b\n\t"b-c"="quay.io/b/c"\n'
    assert _read_aliases(text) == {"aliases": {"a": "docker.io/library/a", "b-c": "quay.io/b/c"}}
    assert _read_aliases("# [[registry]]\r\n# insecure = true\r\n") == {}
    for other in ('[aliases]\na = "b"', '"a" = "b"', "[aliases]\n[aliases]", '[aliases]\n"a"="b"\n"a"="b"', "x = 1"):
        assert _read_aliases(other) is None
