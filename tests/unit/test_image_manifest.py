"""Manifests, indexes and configurations: what is read, and that nothing hostile gets through or breaks the reader."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crungo.errors import ImageError, UsageError
from crungo.image import jsondoc
from crungo.image.imageconfig import ImageConfig, parse_time
from crungo.image.manifest import Index, Manifest, parse_document
from crungo.image.mediatype import OCI_INDEX, OCI_MANIFEST
from crungo.image.ociform import oci_form
from crungo.image.platform import Platform, amd64_level
from tests.support.image import Layer, make_image

DIGEST = "sha256:" + "ab" * 32
GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER = "application/vnd.docker.distribution.manifest.v2+json"


def descriptor(**changes: Any) -> dict[str, Any]:
    return {"mediaType": GZIP, "digest": DIGEST, "size": 10, **changes}


def manifest(**changes: Any) -> dict[str, Any]:
    value = {"schemaVersion": 2, "config": descriptor(mediaType=CONFIG), "layers": [descriptor()], **changes}
    return {key: item for key, item in value.items() if item is not None}


def read(value: object, media_type: str = OCI_MANIFEST) -> Manifest | Index:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return parse_document(body, media_type, "image x")


@pytest.mark.parametrize("flavour", ["oci", "docker"])
@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
@pytest.mark.parametrize("said", ["", "application/json", None])
def test_real_manifests(flavour: Any, compression: Any, said: str | None) -> None:
    source = make_image([Layer().file("a"), Layer().file("b")], flavour=flavour, compression=compression)
    parsed = parse_document(source.manifest, source.media_type if said is None else said, "image x")
    assert isinstance(parsed, Manifest)
    assert parsed.media_type == source.media_type
    assert [layer.digest for layer in parsed.layers] == [entry["digest"] for entry in source.document["layers"]]
    config = ImageConfig.parse(source.blobs[parsed.config.digest], "image x")
    config.check_against(parsed, "image x")
    assert len(config.diff_ids) == 2
    form = oci_form(parsed)
    assert (form is None) == (flavour == "oci")
    if form is not None:
        again = parse_document(form[1], OCI_MANIFEST, "image x")
        assert isinstance(again, Manifest)
        assert [layer.digest for layer in again.layers] == [layer.digest for layer in parsed.layers]
        suffix = {"gzip": "tar+gzip", "zstd": "tar+zstd", "none": "tar"}[compression]
        assert {layer.media_type for layer in again.layers} == {f"application/vnd.oci.image.layer.v1.{suffix}"}


BAD: dict[str, tuple[object, str]] = {
    "no JSON": (b"\xff{", "not valid JSON"),
    "no object": ([], "not a JSON object"),
    "deep": (b"[" * 100_000, "nested too deeply"),
    "deep objects": (b'{"a":' * 50_000, "nested too deeply"),
    "many parts": (b"[" + b"{}," * 300_000 + b"{}]", "more than 400000 parts"),
    "large": (b" " * (5 << 20), "larger than"),
    "huge number": (b'{"schemaVersion": ' + b"9" * 10_000 + b"}", "not valid JSON"),
    "not a number": (b'{"schemaVersion": NaN}', "NaN is not JSON"),
    "key twice": (b'{"schemaVersion": 2, "schemaVersion": 1}', "appears twice"),
    "schema 1": ({"schemaVersion": 1, "fsLayers": []}, "schema version 1 are not supported"),
    "no schema": ({}, "neither an image manifest nor an index"),
    "foreign": (
        manifest(layers=[descriptor(mediaType="application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")]),
        "is foreign",
    ),
    "nondistributable": (
        manifest(layers=[descriptor(mediaType="application/vnd.oci.image.layer.nondistributable.v1.tar+gzip")]),
        "is foreign",
    ),
    "encrypted": (manifest(layers=[descriptor(mediaType=GZIP + "+encrypted")]), "is encrypted"),
    "unknown layer": (manifest(layers=[descriptor(mediaType="text/plain\n")]), "unknown type 'text/plain"),
    "artifact": (manifest(config=descriptor(mediaType="application/vnd.oci.empty.v1+json")), "is an artifact"),
    "both": (manifest(manifests=[]), "manifest and an index at once"),
    "other type": (manifest(mediaType=DOCKER), "says of itself"),
    "unknown type": (manifest(mediaType="application/x"), "unknown type"),
    "index as manifest": ({"schemaVersion": 2, "manifests": []}, "its content is not"),
    "negative size": (manifest(layers=[descriptor(size=-1)]), "'size' is not a whole number"),
    "huge size": (manifest(layers=[descriptor(size=1 << 63)]), "'size' is not a whole number"),
    "large config": (manifest(config=descriptor(mediaType=CONFIG, size=1 << 30)), "'size' is not a whole number"),
    "true size": (manifest(layers=[descriptor(size=True)]), "'size' is not a whole number"),
    "float size": (manifest(layers=[descriptor(size=1.0)]), "'size' is not a whole number"),
    "no size": (manifest(layers=[{"mediaType": GZIP, "digest": DIGEST}]), "'size' is not a whole number"),
    "two sizes": (manifest(layers=[descriptor(), descriptor(size=11)]), "gives two sizes"),
    "digest": (manifest(layers=[descriptor(digest="sha256:../../x")]), "digest has"),
    "digest type": (manifest(layers=[descriptor(digest=1)]), "'digest' is not a string"),
    "layers type": (manifest(layers={"0": 1}), "'layers' is not an array"),
    "layer type": (manifest(layers=[1]), "is not a descriptor"),
    "no config": (manifest(config=None), "is not a descriptor"),
    "many layers": (manifest(layers=[descriptor()] * 501), "more than the 500"),
    "surrogate": (manifest(annotations={"a": "\ud800"}), "no file or argument can hold"),
    "annotations": (manifest(annotations={"a": []}), "'annotations' is not a string"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_manifests(name: str) -> None:
    value, message = BAD[name]
    with pytest.raises(ImageError, match=message) as caught:
        read(value)
    assert caught.value.message.startswith("image x: ")
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 400


CONFIG_BODY: dict[str, Any] = {
    "created": "2024-05-01T10:20:30.123456789Z",
    "author": "a\0b",
    "architecture": "arm64",
    "os": "linux",
    "variant": "v8",
    "config": {
        "Entrypoint": ["/init"],
        "Cmd": "sh",
        "Env": ["A=1", "B", "=x", "A=2"],
        "WorkingDir": "/w",
        "User": "1:2",
        "StopSignal": "SIGQUIT",
        "Labels": {"k": "v", "n": None},
        "ExposedPorts": {"80/tcp": {}},
        "Volumes": {"/data": {}},
        "Healthcheck": {"Test": ["CMD", "x"]},
    },
    "rootfs": {"type": "layers", "diff_ids": [DIGEST]},
    "history": [{"created_by": "x\ud800", "empty_layer": True}, {"created": "never"}],
}


def configured(**changes: Any) -> ImageConfig:
    return ImageConfig.parse(json.dumps({**CONFIG_BODY, **changes}).encode(), "image x")


def test_config() -> None:
    config = configured()
    assert config.platform == Platform(os="linux", architecture="arm64")
    assert (config.entrypoint, config.cmd) == (("/init",), ("sh",))
    assert config.environment == {"A": "2", "B": ""}
    assert (config.working_dir, config.user, config.stop_signal) == ("/w", "1:2", "SIGQUIT")
    assert config.labels == {"k": "v", "n": ""}
    assert (config.exposed_ports, config.volumes) == (("80/tcp",), ("/data",))
    assert config.healthcheck == {"Test": ["CMD", "x"]}
    assert config.diff_ids == (DIGEST,)
    assert config.author == "a?b"
    assert config.created is not None
    assert config.created.microsecond == 123456
    assert [entry.empty_layer for entry in config.history] == [True, False]
    assert config.history[0].created_by == "x?"


def test_empty_config() -> None:
    config = ImageConfig.parse(b'{"config": null, "rootfs": null}', "image x")
    assert config == ImageConfig()
    assert config.environment == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": []}, "'config' is not an object"),
        ({"config": {"Env": ["a\0b"]}}, "no file or argument"),
        ({"config": {"Env": [1]}}, "'Env' is not a string"),
        ({"config": {"Cmd": [["a"]]}}, "'Cmd' is not a string"),
        ({"config": {"User": 0}}, "'User' is not a string"),
        ({"config": {"Labels": {"a\udc00": "b"}}}, "no file or argument"),
        ({"rootfs": {"type": "other"}}, "not made of layers"),
        ({"rootfs": {"diff_ids": ["x"]}}, "lacks its algorithm"),
        ({"rootfs": {"diff_ids": ["sha512:" + "0" * 128]}}, "only sha256"),
        ({"history": [1]}, "'history' holds"),
    ],
)
def test_bad_configs(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        configured(**changes)


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "2024-13", "2024-13-01T00:00:00Z", "\0", "1" * 5000, "today" * 99),
        *("0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-00:01"),  # years 0 and 10000, in UTC
    ],
)
def test_no_time(text: str) -> None:
    assert parse_time(text) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries(
        {"schemaVersion": st.just(2)},
        optional={
            name: json_values
            | st.lists(
                st.fixed_dictionaries(
                    {}, optional=dict.fromkeys(("digest", "size", "mediaType", "platform"), json_values)
                )
            )
            for name in ("config", "layers", "manifests", "mediaType", "annotations")
        },
    )
)
def test_any_document_is_read_or_refused(value: dict[str, Any]) -> None:
    try:
        parsed = read(value, "")
    except ImageError:
        return
    assert isinstance(parsed, Manifest | Index)


@given(st.dictionaries(st.sampled_from([*CONFIG_BODY]), json_values))
def test_any_config_is_read_or_refused(value: dict[str, Any]) -> None:
    try:
        configured(**value)
    except ImageError:
        return


@given(st.binary(max_size=30))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    try:
        jsondoc.load(body, "x", limit=100)
    except ImageError:
        return


# ---- platforms


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/x86_64", "linux/amd64"),
        ("Linux/aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm64/8", "linux/arm64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/arm/6", "linux/arm/v6"),
        ("windows/amd64", "windows/amd64"),
    ],
)
def test_platform_spellings(text: str, expected: str) -> None:
    assert str(Platform.parse(text)) == expected


@pytest.mark.parametrize("text", ["", "/", "linux/", "a/b/c/d", "linux amd64", "linux/../x", "linux/amd64\n/v1"])
def test_bad_platforms(text: str) -> None:
    with pytest.raises(UsageError, match="invalid platform"):
        Platform.parse(text)


def test_half_a_platform() -> None:
    host = Platform.host()
    assert Platform.parse("linux") == Platform(os="linux", architecture=host.architecture, variant=host.variant)
    assert Platform.parse("arm64") == Platform(os=host.os, architecture="arm64")
    assert host.accepts(host) == 0


@pytest.mark.parametrize(
    ("wanted", "offered", "chosen"),
    [
        ("linux/amd64/v3", ["linux/amd64", "linux/amd64/v4", "linux/amd64/v2"], "linux/amd64/v2"),
        ("linux/amd64", ["linux/amd64/v2", "linux/amd64"], "linux/amd64"),
        ("linux/amd64", ["linux/amd64/v2"], None),
        ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6", "linux/arm64"], "linux/arm/v6"),
        ("linux/arm/v5", ["linux/arm/v6"], None),
        ("linux/arm64", ["linux/arm64/v8", "linux/arm64"], "linux/arm64"),
        ("linux/s390x", ["linux/amd64"], None),
        ("linux/amd64", ["windows/amd64"], None),
        ("linux/riscv64", ["linux/riscv64/rva23", "linux/riscv64"], "linux/riscv64"),
    ],
)
def test_best_platform(wanted: str, offered: list[str], chosen: str | None) -> None:
    platforms = [Platform.parse(text) for text in offered]
    position = Platform.parse(wanted).best(platforms)
    assert (None if position is None else str(platforms[position])) == chosen


def test_offer_without_platform_comes_last() -> None:
    wanted = Platform.parse("linux/amd64")
    assert wanted.best([None, wanted]) == 1
    assert wanted.best([None, Platform.parse("linux/arm64")]) == 0
    assert wanted.best([]) is None


def test_amd64_levels() -> None:
    v2 = ["cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"]
    v3 = [*v2, *["avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"]]
    assert [amd64_level(flags) for flags in ([], v2, v3, v3[1:])] == ["v1", "v2", "v3", "v1"]


def test_index_without_the_platform() -> None:
    entries = [
        {"mediaType": OCI_MANIFEST, "digest": DIGEST, "size": 1, "platform": {"os": name, "architecture": "x"}}
        for name in ("linux", "unknown")
    ]
    index = read({"schemaVersion": 2, "manifests": entries}, OCI_INDEX)
    assert isinstance(index, Index)
    with pytest.raises(ImageError, match="there is no image for linux/amd64") as caught:
        index.best(Platform.parse("linux/amd64"), "image x")
    assert caught.value.hint == "it exists for linux/x"
