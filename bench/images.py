"""The images that are pulled, made from Debian's packages: nine layers of a development machine, and two odd ones.

They are made once and kept in ``build/bench/images``: the archives as docker would push them (gzip, level 6) and the
manifest. Sizes in names are those of the unpacked layers.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import subprocess
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bench.common import BUILD, say
from tests.support.image import ARCHITECTURES, MEDIA_TYPES, Image

__all__ = ["Made", "image"]

FOLDER = BUILD / "images"
TYPES = MEDIA_TYPES["oci"]

LAYERS: tuple[tuple[str, ...], ...] = (
    (
        "libc6", "libc-bin", "bash", "dash", "coreutils", "dpkg", "apt", "perl-base", "util-linux", "tzdata", "tar",
        "gzip", "grep", "sed", "findutils", "mawk", "debconf", "systemd", "openssl", "ca-certificates", "git",
    ),
    (
        "libpython3.11-stdlib|libpython3.13-stdlib", "libpython3.11-minimal|libpython3.13-minimal", "python3-numpy",
        "python3-scipy",
    ),
    (
        "cpp-12", "gcc-12", "g++-12", "libgcc-12-dev", "libstdc++-12-dev", "libc6-dev", "linux-libc-dev",
        "libicu72|libicu76",
    ),
    ("openjdk-17-jre-headless|openjdk-21-jre-headless",),
    ("libnode108|libnode115", "node-typescript"),
    ("golang-1.19-src|golang-1.24-src",),
    ("libboost1.74-dev|libboost1.83-dev", "perl-modules-5.36|perl-modules-5.40", "libperl5.36|libperl5.40"),
    ("python3-botocore",),
    (
        "postgresql-15|postgresql-17", "libclang-cpp14|libclang-cpp19", "python3-matplotlib",
    ),
)  # fmt: skip
DOWNLOAD = ("apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download")
SINGLE = (2, 3, 4, 6)  # the layers whose files make the single one of some 700 MB
SMALL = 60  # layers of the image of small ones, from the files of layer 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """An image on disk. Sizes in bytes: ``packed`` of what is downloaded, ``unpacked`` of the archives inside."""

    image: Image
    layers: int
    packed: int
    unpacked: int
    files: int


class Blobs(Mapping[str, bytes]):
    """The blobs of a folder by digest, read when they are wanted."""

    def __init__(self, folder: Path, digests: Sequence[str]) -> None:
        self._folder = folder
        self._digests = digests

    def __getitem__(self, digest: str) -> bytes:
        return (self._folder / digest.removeprefix("sha256:")).read_bytes()

    def __iter__(self) -> Iterator[str]:
        return iter(self._digests)

    def __len__(self) -> int:
        return len(self._digests)


def image(name: str) -> Made:
    """``nine``, ``sixty`` or ``single``; made when it is not there yet."""
    folder = FOLDER / name
    if not (folder / "manifest.json").exists():
        make(name, folder)
    facts = json.loads((folder / "facts.json").read_text())
    manifest = (folder / "manifest.json").read_bytes()
    document = json.loads(manifest)
    digests = [document["config"]["digest"], *dict.fromkeys(layer["digest"] for layer in document["layers"])]
    made = Image(
        manifest=manifest,
        media_type=TYPES["manifest"],
        blobs=Blobs(folder, digests),
        architecture=ARCHITECTURES[platform.machine()],
    )
    packed = sum(layer["size"] for layer in document["layers"])
    return Made(image=made, layers=len(document["layers"]), packed=packed, **facts)


def make(name: str, folder: Path) -> None:
    """Write the blobs and, last, the manifest."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    parts = contents(name)
    say(f"packing image {name}: {len(parts)} layers")
    with ThreadPoolExecutor(2) as pool:  # zlib lets go of the interpreter's lock
        packed = list(pool.map(lambda part: pack(folder, *part), parts))
    config = {
        "architecture": ARCHITECTURES[platform.machine()],
        "os": "linux",
        "config": {"Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": [diff_id for _, diff_id, _ in packed]},
    }
    document = {
        "schemaVersion": 2,
        "mediaType": TYPES["manifest"],
        "config": {"mediaType": TYPES["config"], **keep(folder, json.dumps(config).encode())},
        "layers": [{"mediaType": TYPES["layer"] + "+gzip", **entry} for entry, _, _ in packed],
    }
    files = sum(len(listed) for _, listed in parts)
    (folder / "facts.json").write_text(json.dumps({"unpacked": sum(size for _, _, size in packed), "files": files}))
    (folder / "manifest.json").write_text(json.dumps(document))


def keep(folder: Path, data: bytes) -> dict[str, str | int]:
    digest = hashlib.sha256(data).hexdigest()
    (folder / digest).write_bytes(data)
    return {"digest": f"sha256:{digest}", "size": len(data)}


def contents(name: str) -> list[tuple[Path, list[str]]]:
    """For each layer, a tree and the names below it."""
    if name == "nine":
        return [(unpacked(number), names(unpacked(number))) for number in range(len(LAYERS))]
    if name == "sixty":
        tree = unpacked(5)
        listed = names(tree)
        return [
            (tree, listed[number * len(listed) // SMALL : (number + 1) * len(listed) // SMALL])
            for number in range(SMALL)
        ]
    joined = BUILD / "trees" / "single"
    if not joined.exists():
        for number in SINGLE:
            joined.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-a", f"{unpacked(number)}/.", joined], check=True)
    return [(joined, names(joined))]


def names(tree: Path) -> list[str]:
    """Everything below a tree, parents before children."""
    return sorted(f"./{path.relative_to(tree)}" for path in tree.rglob("*"))


def unpacked(number: int) -> Path:
    """The files of one layer's packages; downloaded by apt, as anybody may, and unpacked without being installed."""
    tree = BUILD / "trees" / str(number)
    done = tree.with_suffix(".done")
    if not done.exists():
        shutil.rmtree(tree, ignore_errors=True)
        tree.mkdir(parents=True)
        archives = BUILD / "packages" / str(number)
        archives.mkdir(parents=True, exist_ok=True)
        packages = [obtainable(choice) for choice in LAYERS[number]]
        say(f"downloading packages of layer {number}: {' '.join(packages)}")
        subprocess.run([*DOWNLOAD, *packages], cwd=archives, check=True)
        for archive in sorted(archives.glob("*.deb")):
            subprocess.run(["dpkg-deb", "--extract", str(archive), str(tree)], check=True)
        shutil.rmtree(archives)
        done.touch()
    return tree


def obtainable(choice: str) -> str:
    """The first of several names, of one release of Debian each, that apt can download."""
    for name in choice.split("|"):
        if not subprocess.run([*DOWNLOAD, "--print-uris", name], capture_output=True, check=False).returncode:
            return name
    raise RuntimeError(f"apt has no package {choice}: apt-get update?")


def feed(stdin: IO[bytes], listed: list[str]) -> None:
    with stdin:
        stdin.write(b"\0".join(name.encode() for name in listed))


def pack(folder: Path, tree: Path, listed: list[str]) -> tuple[dict[str, str | int], str, int]:
    """Write one layer's blob: its descriptor, the digest of the archive inside, and that one's size."""
    part = folder / f"part-{hashlib.sha256(''.join([str(tree), *listed]).encode()).hexdigest()[:16]}"
    options = ["--no-recursion", "--numeric-owner", "--directory", str(tree), "--null", "--files-from=-"]
    inner, outer = hashlib.sha256(), hashlib.sha256()
    size = packed = 0
    squeeze = zlib.compressobj(6, wbits=31)
    with (
        subprocess.Popen(["tar", "--create", *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as tar,
        part.open("wb") as file,
    ):
        assert tar.stdin is not None
        assert tar.stdout is not None
        with ThreadPoolExecutor(1) as feeder:  # tar writes before it has read all names
            feeder.submit(feed, tar.stdin, listed)
            while True:
                piece = tar.stdout.read(1 << 20)
                size += len(piece)
                inner.update(piece)
                out = squeeze.compress(piece) if piece else squeeze.flush()
                packed += len(out)
                outer.update(out)
                file.write(out)
                if not piece:
                    break
    if tar.returncode:
        raise RuntimeError(f"tar: exit code {tar.returncode}")
    part.rename(folder / outer.hexdigest())
    return {"digest": f"sha256:{outer.hexdigest()}", "size": packed}, f"sha256:{inner.hexdigest()}", size
