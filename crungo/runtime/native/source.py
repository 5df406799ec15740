"""Get and build libcrun's static archives, once, into a cache folder of the build.

No distribution ships libcrun as a library, so it is compiled from crun's release tarball. That tarball is
part of Debian 13's source archive: apt finds it there through its signed index, with lists and cache in a
private folder, so that the host's apt configuration is neither read for sources nor changed.

``CRUNGO_CRUN_SOURCE`` names an unpacked crun release (1.21 or newer) to build from instead.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

VERSION = "1.21"
SHA256 = "4bfb700e764a4804a4de3ecf07753f4c391005356d60356df65d80ae0914c486"
SUITE = "trixie"
FALLBACK_ARCHIVE = "http://deb.debian.org/debian"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

CONFIGURE = [
    "--enable-static",
    "--disable-shared",
    "--enable-embedded-yajl",
    "--disable-criu",
    "--disable-systemd",
]
ARCHIVES = [".libs/libcrun.a", "libocispec/.libs/libocispec.a", "libocispec/yajl/.libs/libyajl.a"]


class BuildError(SystemExit):
    """The build cannot go on; the message says what is missing and what to do."""


def cache_folder() -> Path:
    """Where sources and objects are kept between builds: inside the checkout, ignored by git."""
    override = os.environ.get("CRUNGO_BUILD_CACHE")
    base = Path(override) if override else Path(__file__).resolve().parents[3] / "build" / "native"
    base.mkdir(parents=True, exist_ok=True)
    return base


def libcrun() -> Path:
    """The folder of a built crun release: headers in ``src``, archives as in ``ARCHIVES``."""
    given = os.environ.get("CRUNGO_CRUN_SOURCE")
    cache = cache_folder()
    if given:
        origin = Path(given)
        if not (origin / "configure").is_file():
            raise BuildError(f"CRUNGO_CRUN_SOURCE: no configure script in {origin}: name an unpacked crun release")
        tree = cache / ("crun-" + hashlib.sha256(str(origin.resolve()).encode()).hexdigest()[:12])
        if not tree.exists():
            shutil.copytree(origin, tree, symlinks=True)
    else:
        tree = cache / f"crun-{VERSION}"
        if not (tree / "configure").is_file():
            _unpack(_download(cache), cache)
    if not all((tree / archive).is_file() for archive in ARCHIVES):
        _build(tree)
    return tree


def _unpack(tarball: Path, folder: Path) -> None:
    with tarfile.open(tarball) as archive:
        archive.extractall(folder, filter="tar")


def _build(tree: Path) -> None:
    log = tree / "crungo-build.log"
    jobs = str(os.cpu_count() or 1)
    flags = "-O2 -fPIC -g0"
    with log.open("wb") as output:
        for command in (["./configure", f"CFLAGS={flags}", *CONFIGURE], ["make", "-j", jobs]):
            if subprocess.run(command, cwd=tree, stdout=output, stderr=subprocess.STDOUT, check=False).returncode:
                tail = log.read_text(errors="replace").splitlines()[-15:]
                raise BuildError("\n".join([f"building libcrun failed: {' '.join(command)}", *tail, f"(all of it: {log})"]))


def _download(cache: Path) -> Path:
    """The release tarball, by apt from Debian's source archive, its digest checked."""
    tarball = cache / f"crun_{VERSION}.orig.tar.gz"
    if tarball.is_file() and _sha256(tarball) == SHA256:
        return tarball
    if shutil.which("apt-get") is None:
        raise BuildError(
            "libcrun's source: apt-get is missing: unpack a crun release and name its folder in CRUNGO_CRUN_SOURCE"
        )
    private = cache / "apt"
    for folder in ("lists/partial", "cache/archives/partial"):
        (private / folder).mkdir(parents=True, exist_ok=True)
    sources = private / "sources.list"
    signed = f"[signed-by={KEYRING}] " if Path(KEYRING).is_file() else ""
    sources.write_text(f"deb-src {signed}{_archive_address()} {SUITE} main\n")
    options = [
        "-o", f"Dir::Etc::SourceList={sources}",
        "-o", "Dir::Etc::SourceParts=/dev/null",
        "-o", f"Dir::State::Lists={private / 'lists'}",
        "-o", f"Dir::Cache={private / 'cache'}",
        "-o", "APT::Sandbox::User=root",
    ]  # fmt: skip
    _run(["apt-get", "-qq", *options, "update"])
    listing = _run(["apt-get", *options, "source", "--print-uris", "-qq", f"crun={VERSION}-1"])
    found = re.search(r"'([^']+\.orig\.tar\.gz)'", listing)
    if found is None:
        raise BuildError(f"libcrun's source: Debian's index of {SUITE} does not list crun {VERSION}")
    part = tarball.with_suffix(".part")
    _run(["/usr/lib/apt/apt-helper", *options, "download-file", found.group(1), str(part), f"SHA256:{SHA256}"])
    if _sha256(part) != SHA256:
        raise BuildError(f"libcrun's source: {found.group(1)} is not the pinned release (sha256 {SHA256})")
    part.rename(tarball)
    return tarball


def _archive_address() -> str:
    """The host's own Debian archive, so that a mirror or proxy that it uses is used here too."""
    texts = []
    for path in [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]:
        if path.suffix in (".list", ".sources") and path.is_file():
            texts.append(path.read_text(errors="replace"))
    for address in re.findall(r"https?://[^\s\]]+", "\n".join(texts)):
        cleaned: str = address.rstrip("/")
        if cleaned.endswith("/debian"):
            return cleaned
    return FALLBACK_ARCHIVE


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        raise BuildError(f"{' '.join(command)}: exit code {done.returncode}")
    return done.stdout
