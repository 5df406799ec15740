"""Bad input: one clear line and 125, before anything is asked of a registry or made; and images that are wrong."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import Crungo
from tests.support.fakeregistry import FakeRegistry, Fault, Request
from tests.support.image import Image, Layer, busybox_image, make_image

USAGE = ["", "Run 'crungo run --help' for more information"]


@pytest.fixture(scope="module")
def fake(busybox: Path) -> Iterator[FakeRegistry]:
    """A registry with one good image; what it is asked for is counted."""
    with FakeRegistry() as running:
        running.add(busybox_image(busybox))
        yield running


def complaint(crungo: Crungo, *arguments: str, usage: bool | None = None) -> str:
    """Run what must fail with 125; checks the form of what is said and returns its first line without the prefix."""
    done = crungo("run", *arguments)
    assert (done.returncode, done.stdout) == (125, "")
    progress, prefix, said = f"\n{done.stderr}".rpartition("\ncrungo: ")
    assert prefix
    assert "error" not in progress.lower()
    line, *rest = said.splitlines()
    if rest and rest[0].startswith("hint: "):
        del rest[0]
    assert rest in ([], USAGE)
    if usage is not None:
        assert (rest == USAGE) is usage
    return line


def made(crungo: Crungo) -> list[str]:
    """Everything in the store that a pull or a container has made."""
    found = []
    for folder in ("blobs", "layers", "containers", "names", "ingest", "refs"):
        found += [str(path) for path in (crungo.root / folder).glob("**/*") if not path.is_dir()]
        if folder in ("containers", "layers"):
            found += [str(path) for path in (crungo.root / folder).glob("*")]
    return found


IMAGE = "IMAGE"  # stands for the reference of an image that exists, but only in the registry
MALFORMED: list[tuple[list[str], str]] = [
    # references
    (["Upper"], "invalid reference 'Upper': the repository name must be in lower case"),
    ([""], "the image's name is empty"),
    (["a//b"], "invalid reference 'a//b': the repository name has an empty part"),
    (["x:"], "invalid reference 'x:': the tag is empty"),
    (["x:a:b"], "invalid reference 'x:a:b'"),
    (["x@sha256:12"], "invalid reference 'x@sha256:12': sha256 digest has 2 digits, not 64"),
    (["x@md5:12"], "invalid reference 'x@md5:12'"),
    (["https://x/y"], "invalid reference 'https://x/y': it is an address, not a reference"),
    (["localhost:99999/x"], "the registry's port is not between 1 and 65535"),
    (["x y"], "invalid reference 'x y'"),
    (["\x1b[31mred"], "invalid reference"),
    (["ü"], "invalid reference"),
    # flags
    (["--nope", IMAGE], "unknown flag: --nope"),
    (["-z", IMAGE], "unknown shorthand flag: -z"),
    (["-tz", IMAGE], "unknown shorthand flag: -z in -tz"),
    (["--memory"], "flag needs an argument: --memory"),
    (["--init=maybe", IMAGE], 'invalid value "maybe" for --init: not a boolean'),
    ([], "missing argument IMAGE"),
    # sizes and numbers
    (["-m", "5m", IMAGE], 'invalid value "5m" for --memory: too small; the least is 6m'),
    (["-m", "lots", IMAGE], 'invalid value "lots" for --memory: not a size'),
    (["-m", "-1", IMAGE], 'invalid value "-1" for --memory: not a size'),
    (["-m", "9" * 5000, IMAGE], "for --memory: not a size"),
    (["-m", "64m", "--memory-swap", "32m", IMAGE], "--memory-swap 33554432: below --memory 67108864"),
    (["--memory-swap", "1g", IMAGE], "--memory-swap: it needs --memory"),
    (["--cpus", "many", IMAGE], 'invalid value "many" for --cpus: not a number of CPUs'),
    (["--cpus", "nan", IMAGE], 'invalid value "nan" for --cpus: not a number of CPUs'),
    (["--cpus", "-1", IMAGE], 'invalid value "-1" for --cpus: not a number of CPUs'),
    (["--pids-limit", "x", IMAGE], 'invalid value "x" for --pids-limit: not a whole number'),
    (["--shm-size", "0", IMAGE], 'invalid value "0" for --shm-size: too small'),
    (["--ulimit", "nofile", IMAGE], 'invalid value "nofile" for --ulimit: not a limit'),
    (["--ulimit", "cpu=0", IMAGE], "--ulimit cpu=0:0: too low to start a container with; the least is 1"),
    (["--ulimit", "nofile=9:5", IMAGE], "the soft limit is above the hard limit"),
    (["--ulimit", "files=9", IMAGE], "unknown limit files"),
    (["--stop-timeout", "soon", IMAGE], 'invalid value "soon" for --stop-timeout: not a time'),
    # users, directories, programs, signals
    (["-u", "a b", IMAGE], 'invalid value "a b" for --user'),
    (["-u", ":staff", IMAGE], 'invalid value ":staff" for --user: a part is empty'),
    (["-u", "1:2:3", IMAGE], 'invalid value "1:2:3" for --user'),
    (["-u", "4294967295", IMAGE], "id out of range"),
    (["--group-add", "", IMAGE], 'invalid value "" for --group-add'),
    (["-w", "relative", IMAGE], 'invalid value "relative" for --workdir: not an absolute path'),
    (["--stop-signal", "NOPE", IMAGE], 'invalid value "NOPE" for --stop-signal: unknown signal'),
    # files
    (["-v", "/x", IMAGE], 'invalid value "/x" for --volume: no container path'),
    (["-v", "name:/x", IMAGE], '"name" would be a named volume, which is not supported'),
    (["-v", "/no/such/source:/x", IMAGE], 'bind mount source "/no/such/source": no such file or directory'),
    (["-v", "./missing:/x", IMAGE], '/missing": no such file or directory'),
    (["-v", "/tmp:relative", IMAGE], "the container path is not absolute"),
    (["-v", "/tmp:/", IMAGE], "the container path is /"),
    (["-v", "/tmp:/x:fast", IMAGE], 'unknown option "fast"'),
    (["-v", "/tmp:/x:ro,rw", IMAGE], "ro and rw contradict each other"),
    (["-v", "/tmp:/x", "--tmpfs", "/x", IMAGE], 'duplicate mount point: "/x"'),
    (["--mount", "type=cloud,target=/x", IMAGE], 'type "cloud" is not supported'),
    (["--mount", "type=bind,source=/no/such,target=/x", IMAGE], 'bind mount source "/no/such"'),
    (["--mount", "type=bind,target=/x", IMAGE], "no source; expected source=/path"),
    (["--tmpfs", "x", IMAGE], "the container path is not absolute"),
    (["--tmpfs", "/x:size=big", IMAGE], 'invalid value "big" for size in --tmpfs'),
    (["--device", "/no/such", IMAGE], 'device "/no/such": No such file or directory'),
    (["--device", "/etc/passwd", IMAGE], 'device "/etc/passwd": not a device node'),
    (["--device", "/dev/null:/x:rq", IMAGE], 'malformed permissions "rq"'),
    (["--cidfile", "/no/such/folder/id", IMAGE], "--cidfile /no/such/folder/id: No such file or directory"),
    (["--rootfs", "/no/such/root"], 'rootfs "/no/such/root": not a directory'),
    (["--env-file", "/no/such/env", IMAGE], '--env-file "/no/such/env": No such file or directory'),
    (["--env-file", "/dev", IMAGE], '--env-file "/dev": Is a directory'),
    (["--label-file", "/no/such", IMAGE], '--label-file "/no/such": No such file or directory'),
    (["-e", "=x", IMAGE], 'invalid value "=x" for --env: no variable name'),
    (["-l", "=x", IMAGE], 'invalid value "=x" for --label: no label name'),
    # network, security, identity
    (["--net", "bridge", IMAGE], "this kind of network is not supported; expected none or host"),
    (["--net", "moon", IMAGE], "unknown network; expected none or host"),
    (["--hostname", "a b", IMAGE], 'invalid value "a b" for --hostname: not a host name'),
    (["--add-host", "x", IMAGE], 'invalid value "x" for --add-host: no address'),
    (["--add-host", "x:999.1.1.1", IMAGE], '"999.1.1.1" is not an IP address'),
    (["--add-host", "x:host-gateway", IMAGE], "there is no way to the host with --network none"),
    (["--dns", "one", IMAGE], '"one" is not an IP address'),
    (["--sysctl", "kernel.panic=1", IMAGE], "it would change the host"),
    (["--net=host", "--sysctl", "net.ipv4.ip_forward=1", IMAGE], "it would change the host's network"),
    (["--sysctl", "nothing", IMAGE], "not a kernel parameter"),
    (["--cap-add", "FLY", IMAGE], 'unknown capability "FLY"'),
    (["--cap-drop", "FLY", IMAGE], 'invalid value "FLY" for --cap-drop'),
    (["--security-opt", "magic", IMAGE], 'invalid value "magic" for --security-opt: unknown option'),
    (["--security-opt", "seccomp=/no/such", IMAGE], '--security-opt seccomp "/no/such": No such file or directory'),
    (["--name", "-x", IMAGE], 'invalid value "-x" for --name: not a container name'),
    (["--name", "../x", IMAGE], 'invalid value "../x" for --name: not a container name'),
    (["--pull", "sometimes", IMAGE], 'invalid value "sometimes" for --pull: unknown policy'),
    (["--platform", "linux", IMAGE], 'invalid value "linux" for --platform: not a platform'),
    (["-it", IMAGE, "sh"], "the input device is not a TTY"),
]


@pytest.mark.parametrize(("arguments", "why"), MALFORMED, ids=[" ".join(row[0])[:40] for row in MALFORMED])
def test_malformed(fresh_crungo: Crungo, fake: FakeRegistry, arguments: list[str], why: str) -> None:
    fake.sent.clear()
    words = [f"{fake.address}/image" if word == IMAGE else word for word in arguments]
    assert why in complaint(fresh_crungo, *words, usage=True)
    assert fake.sent == []
    assert made(fresh_crungo) == []


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"A=1\nB C=2\n", 'line 2: variable "B C" contains whitespace'),
        (b"# fine\n=x\n", "line 2: no variable name"),
        (b"\xff=1\n", "line 1: not valid UTF-8"),
        (b"A=\0\n", "line 1: holds a NUL character"),
    ],
)
def test_malformed_env_files(
    fresh_crungo: Crungo, fake: FakeRegistry, tmp_path: Path, content: bytes, why: str
) -> None:
    (tmp_path / "env").write_bytes(content)
    flags = ["--env-file", str(tmp_path / "env"), f"{fake.address}/image"]
    line = complaint(fresh_crungo, *flags, usage=True)
    assert line.startswith(f'--env-file "{tmp_path}/env": {why}')
    assert made(fresh_crungo) == []


def test_what_is_quoted_cannot_move_the_cursor(fresh_crungo: Crungo) -> None:
    line = complaint(fresh_crungo, "--name", "\x1b[2J\r\nevil", "x")
    assert line.isprintable()


def closed_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def test_a_registry_that_nobody_answers_for(fresh_crungo: Crungo) -> None:
    address = f"127.0.0.1:{closed_port()}"
    assert complaint(fresh_crungo, f"{address}/x", usage=False) == (
        f"manifest {address}/x:latest: {address}: connection refused"
    )
    line = complaint(fresh_crungo, "registry.invalid/x", usage=False)
    assert line.startswith("manifest registry.invalid/x:latest: registry.invalid: ")
    assert made(fresh_crungo) == []


@pytest.mark.parametrize(
    ("status", "words"),
    [(400, "Bad Request"), (401, "Unauthorized"), (403, "Forbidden"), (418, "I'm a Teapot"), (501, "Not Implemented")],
)
def test_a_registry_that_refuses(fresh_crungo: Crungo, busybox: Path, status: int, words: str) -> None:
    with FakeRegistry() as fake:
        reference = fake.add(busybox_image(busybox))
        fake.faults = lambda request: Fault(status=status)
        line = complaint(fresh_crungo, reference, usage=False)
    assert f"{fake.address} answered {status} {words}" in line
    assert line.count(reference) == 1
    assert made(fresh_crungo) == []


def test_images_that_do_not_exist(fresh_crungo: Crungo, fake: FakeRegistry, busybox_reference: str) -> None:
    for name in ("nothing", "image:nothing", f"image@sha256:{'0' * 64}"):
        line = complaint(fresh_crungo, f"{fake.address}/{name}", usage=False)
        assert f"{fake.address} answered 404 Not Found" in line
    registry = busybox_reference.partition("/")[0]
    assert "MANIFEST_UNKNOWN: manifest unknown" in complaint(fresh_crungo, f"{registry}/library/busybox:nothing")
    assert made(fresh_crungo) == []


def test_another_platform(fresh_crungo: Crungo, fake: FakeRegistry, busybox: Path) -> None:
    reference = fake.add(busybox_image(busybox, architecture="s390x"), "other")
    own = complaint(fresh_crungo, "--platform", "linux/mips", f"{fake.address}/image", usage=False)
    assert re.search(r"it is for linux/\w+, not for linux/mips", own)
    assert "it is for linux/s390x, not for linux/" in complaint(fresh_crungo, reference, usage=False)
    assert made(fresh_crungo) == []


Change = Callable[[dict[str, Any]], None]


def image(busybox: Path, change_manifest: Change | None = None, change_config: Change | None = None) -> Image:
    return busybox_image(busybox, change_manifest=change_manifest, change_config=change_config)


def set_in(document: dict[str, Any], path: str, value: object) -> None:
    *parents, last = path.split(".")
    for parent in parents:
        document = document[int(parent)] if isinstance(document, list) else document[parent]
    if isinstance(document, list):
        document[int(last)] = value
    else:
        document[last] = value


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        ("schemaVersion", 1, "manifests of schema version 1 are not supported"),
        ("schemaVersion", 3, "its schemaVersion is not 2"),
        ("mediaType", "application/vnd.example", "is of the unknown type"),
        ("layers", "none", "layers"),
        ("layers", [], "its manifest has 0 layers, its configuration 3"),
        ("layers.0.digest", "sha256:zz", "layers[0]"),
        ("layers.0.digest", "../../../etc/passwd", "layers[0]"),
        ("layers.0.size", -1, "layers[0]"),
        ("layers.0.size", 1, "bytes, the manifest says 1"),
        ("layers.0.size", "many", "layers[0]"),
        ("layers.0.mediaType", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "foreign"),
        ("layers.0.mediaType", "text/plain", "text/plain"),
        ("config.digest", "sha256:" + "0" * 64, "404 Not Found"),
        ("config.size", 5, "its configuration is larger than the manifest says"),
        ("config.mediaType", "application/vnd.wasm.config.v0+json", "wasm"),
    ],
)
def test_manifests_that_are_wrong(  # noqa: PLR0917
    fresh_crungo: Crungo, fake: FakeRegistry, busybox: Path, path: str, value: object, why: str
) -> None:
    reference = fake.add(image(busybox, lambda document: set_in(document, path, value)), "wrong")
    assert why in complaint(fresh_crungo, reference, usage=False)
    # Layers that were right by themselves, or whose download the next pull goes on with, may be there.
    kept = ("/blobs/", "/layers/", "/ingest/sha256-")
    assert [name for name in made(fresh_crungo) if not any(part in name for part in kept)] == []
    assert "No such image" in complaint(fresh_crungo, "--pull", "never", reference)


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        ("rootfs.diff_ids.0", "sha256:" + "0" * 64, "the configuration says sha256:0000"),
        ("rootfs.type", "sprites", "its rootfs is not made of layers"),
        ("config", [1], "config"),
        ("config.Env", "A=1", "Env"),
        ("config.Cmd", {"a": 1}, "Cmd"),
        ("config.User", 5, "User"),
        ("os", "plan9", "it is for plan9/"),
    ],
)
def test_configurations_that_are_wrong(  # noqa: PLR0917
    fresh_crungo: Crungo, fake: FakeRegistry, busybox: Path, path: str, value: object, why: str
) -> None:
    reference = fake.add(image(busybox, change_config=lambda document: set_in(document, path, value)), "wrong")
    assert why in complaint(fresh_crungo, reference, usage=False)
    assert "No such image" in complaint(fresh_crungo, "--pull", "never", reference)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"a": ' * 5000, b"\xff\xfe", b"<html>no</html>"])
def test_manifests_that_are_none(fresh_crungo: Crungo, fake: FakeRegistry, body: bytes) -> None:
    fake.put("none", "latest", "application/vnd.oci.image.manifest.v1+json", body)
    line = complaint(fresh_crungo, f"{fake.address}/none", usage=False)
    assert f"{fake.address}/none:latest" in line
    assert made(fresh_crungo) == []


@pytest.mark.parametrize("part", ["manifest", "config", "layer"])
def test_content_that_is_not_what_its_digest_says(fresh_crungo: Crungo, busybox: Path, part: str) -> None:
    with FakeRegistry() as fake:
        made_image = busybox_image(busybox)
        reference = fake.add(made_image)
        digests = {
            "config": made_image.document["config"]["digest"],
            "layer": made_image.document["layers"][1]["digest"],
        }

        def corrupt(request: Request) -> Fault | None:
            wanted = digests.get(part) or made_image.digest
            return Fault(corrupt=100) if request.path.endswith(wanted) else None

        fake.faults = corrupt
        name = reference if part != "manifest" else f"{reference.removesuffix(':latest')}@{made_image.digest}"
        line = complaint(fresh_crungo, name, usage=False)
    assert "digest" in line or "is not what" in line
    assert "No such image" in complaint(fresh_crungo, "--pull", "never", name)


@pytest.mark.parametrize(
    ("archive", "why"),
    [(b"this is no archive" * 100, "layer"), (Layer().file("../out", "x").data(), "..")],
    ids=["noise", "escape"],
)
def test_layers_that_are_wrong(fresh_crungo: Crungo, fake: FakeRegistry, archive: bytes, why: str) -> None:
    reference = fake.add(make_image([archive]), "layer")
    assert why in complaint(fresh_crungo, reference, "true", usage=False)
    assert not (fresh_crungo.root.parent / "out").exists()


def test_a_reader_that_is_gone_already(fresh_crungo: Crungo) -> None:
    """An error that nobody can be told is still an exit code."""
    argv = fresh_crungo.argv("run", "--nope", "x")
    command = f"{' '.join(argv)} 2>&-; echo $?"
    done = subprocess.run(["sh", "-c", command], env=fresh_crungo.environ(), capture_output=True, text=True, check=True)
    assert done.stdout == "125\n"


def test_debug_tells_where(fresh_crungo: Crungo) -> None:
    argv = fresh_crungo.argv("--debug", "run", "--nope", "x")
    done = subprocess.run(argv, env=fresh_crungo.environ(), capture_output=True, text=True, check=False)
    assert done.returncode == 125
    assert "Traceback" in done.stderr
    assert json.dumps("crungo: unknown flag: --nope")[1:-1] in done.stderr
