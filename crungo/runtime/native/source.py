"""Get and build static archives that no distribution has, once, into a cache folder of the build.

They are compiled from release tarballs: libcrun from crun's, and ISA-L, Intel's decompressor of gzip, from its own.
Those are part of Debian 13's source archive: apt finds them there through its signed index, with lists and cache in a
private folder, so that the host's apt configuration is used and never changed. The tarballs' digests are pinned.

A folder of the cache holds either a whole build or nothing that a later build would trust: trees are unpacked
and compiled under one lock, and a tree counts as built when its stamp, written last, exists.

``CRUNGO_CRUN_SOURCE`` names an unpacked crun release (1.21 or newer) to build from instead, ``CRUNGO_ISAL_SOURCE`` one
of ISA-L (2.31 or newer);
``CRUNGO_BUILD_CACHE`` names another cache folder than ``build/native`` beside the package.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SUITE = "trixie"
FALLBACK_ARCHIVE = "http://deb.debian.org/debian"  # of hosts that are not Debian
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
CFLAGS = "-O2 -fPIC -g0"
STAMP = "crungo-built"


class Release(NamedTuple):
    """A tarball, the variable that names an unpacked one to take instead, and how archives come of it."""

    name: str
    version: str
    debian: str  # the source package, and its version there
    sha256: str
    folder: str  # what the tarball unpacks to
    variable: str
    commands: list[list[str]]
    archives: list[str]
    omitted: str = ""  # a member of the first archive


CRUN = Release(
    name="crun",
    version="1.21",
    debian="crun=1.21-1",
    sha256="4bfb700e764a4804a4de3ecf07753f4c391005356d60356df65d80ae0914c486",
    folder="crun-1.21",
    variable="CRUNGO_CRUN_SOURCE",
    commands=[
        [
            "./configure",
            f"CFLAGS={CFLAGS}",
            "--enable-static",
            "--disable-shared",
            "--enable-embedded-yajl",
            "--disable-criu",
            "--disable-systemd",
        ],
        ["make"],
    ],
    archives=[".libs/libcrun.a", "libocispec/.libs/libocispec.a", "libocispec/yajl/.libs/libyajl.a"],
    # The function that re-executes whatever program loads libcrun; native/crun.c defines it to do nothing: see there.
    omitted="libcrun_la-cloned_binary.o",
)
ISAL = Release(
    name="libisal",
    version="2.31.1",
    debian="libisal=2.31.1-1.1",
    sha256="e1d5573a4019738243b568ab1e1422e6ab7557c5cae33cc8686944d327ad6bb4",
    folder="isa-l-2.31.1",
    variable="CRUNGO_ISAL_SOURCE",
    commands=[["make", "-f", "Makefile.unx", "units=crc igzip", "lib"]],
    archives=["bin/isa-l.a"],
)


class BuildError(SystemExit):
    """The build cannot go on; the message says what is missing and what to do."""


def libcrun() -> Path:
    """The folder of a built crun release: headers in ``src``, archives as in ``CRUN.archives``."""
    return _built(CRUN)


def isal() -> Path:
    """The folder of a built release of ISA-L: headers in ``include``, the archive as in ``ISAL.archives``."""
    return _built(ISAL)


def _built(release: Release) -> Path:
    cache = cache_folder()
    given = os.environ.get(release.variable)
    origin = Path(given).resolve() if given else None
    if origin is not None and not (origin / "configure.ac").is_file():
        raise BuildError(f"{release.variable}: no configure.ac in {origin}: name an unpacked release of {release.name}")
    version = release.version if origin is None else hashlib.sha256(os.fsencode(origin)).hexdigest()[:12]
    tree = cache / f"{release.name}-{version}"
    with _lock(cache):
        if not _is_built(release, tree):
            shutil.rmtree(tree, ignore_errors=True)
            if origin is not None:
                shutil.copytree(origin, tree, symlinks=True)
            else:
                _unpack(release, _download(release, cache), tree)
            _build(release, tree)
    return tree


def include_folders(tree: Path) -> list[str]:
    """Where libcrun's headers are."""
    return [str(tree / folder) for folder in (".", "src", "libocispec/src", "libocispec/yajl/src/headers")]


def archives(tree: Path) -> list[str]:
    """Arguments for the linker, to have libcrun."""
    return ["-Wl,--start-group", *(str(tree / archive) for archive in CRUN.archives), "-Wl,--end-group"]


def static_or_shared(library: str) -> str:
    """The link argument for a library: its static archive, where the compiler knows one.

    A wheel then needs no library of the host. Where a distribution has no archive the shared library is taken,
    and auditwheel puts a copy of it into the wheel.
    """
    compiler = os.environ.get("CC", "cc").split()
    command = [*compiler, f"-print-file-name=lib{library}.a"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return found if Path(found).is_absolute() else f"-l{library}"


def _is_built(release: Release, tree: Path) -> bool:
    """Whether the tree was built, and in the way that is described here."""
    stamp = tree / STAMP
    return stamp.is_file() and stamp.read_text() == _recipe(release)


def _recipe(release: Release) -> str:
    return "\n".join([*(shlex.join(command) for command in release.commands), release.omitted])


def cache_folder() -> Path:
    """Where sources and objects are kept between builds: inside the checkout, ignored by git."""
    override = os.environ.get("CRUNGO_BUILD_CACHE")
    base = Path(override).resolve() if override else Path(__file__).resolve().parents[3] / "build" / "native"
    base.mkdir(parents=True, exist_ok=True)
    return base


@contextlib.contextmanager
def _lock(cache: Path) -> Iterator[None]:
    """Keep a second build out of the cache; the kernel lets go of the lock when the builder ends in any way."""
    with (cache / "lock").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _unpack(release: Release, tarball: Path, tree: Path) -> None:
    with tempfile.TemporaryDirectory(dir=tree.parent) as folder:
        # Not tarfile: Debian 12's Python is older than its filters, and newer ones ask for one.
        _run(["tar", "--extract", f"--file={tarball}", f"--directory={folder}", "--no-same-owner"])
        (Path(folder) / release.folder).rename(tree)


def _build(release: Release, tree: Path) -> None:
    log = tree / "crungo-build.log"
    if any((tree / name).exists() for name in ("Makefile", "config.status")):
        # A release that its owner has configured otherwise: objects of his must not be taken for ours.
        subprocess.run(["make", "distclean"], cwd=tree, capture_output=True, check=False)
    with log.open("wb") as output:
        for command in release.commands:
            # A make above us would hand down its job server, whose descriptors are not inherited here.
            environ = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS")}
            parallel = [f"-j{os.cpu_count() or 1}"] if command[0] == "make" else []
            done = subprocess.run(
                [*command, *parallel], cwd=tree, env=environ, stdout=output, stderr=output, check=False
            )
            if done.returncode:
                tail = log.read_text(errors="replace").splitlines()[-15:]
                raise BuildError(
                    "\n".join([*tail, f"building {release.name}: {shlex.join(command)} failed (see {log})"])
                )
    missing = [archive for archive in release.archives if not (tree / archive).is_file()]
    if missing:
        raise BuildError(f"building {release.name}: {', '.join(missing)} not made (see {log})")
    if release.omitted:
        _run(["ar", "d", str(tree / release.archives[0]), release.omitted])
    (tree / STAMP).write_text(_recipe(release))


def _download(release: Release, cache: Path) -> Path:
    """The release tarball, by apt from Debian's source archive, its digest checked."""
    what = f"the source of {release.name}"
    tarball = cache / f"{release.name}_{release.version}.orig.tar.gz"
    if tarball.is_file() and _sha256(tarball) == release.sha256:
        return tarball
    for needed in ("/usr/bin/apt-get", "/usr/lib/apt/apt-helper", KEYRING):
        if not Path(needed).exists():
            raise BuildError(
                f"{what}: {needed} is missing: install it (apt, debian-archive-keyring),"
                f" or unpack a release and name its folder in {release.variable}"
            )
    options = _apt_options(cache / "apt")
    _run(["apt-get", "-qq", *options, "update"])
    listing = _run(["apt-get", *options, "source", "--print-uris", "-qq", release.debian])
    found = re.search(r"'([^']+\.orig\.tar\.gz)'", listing)
    if found is None:
        raise BuildError(f"{what}: Debian's index of {SUITE} does not list {release.debian}")
    part = tarball.with_suffix(".part")
    _run(["/usr/lib/apt/apt-helper", *options, "download-file", found.group(1), str(part), f"SHA256:{release.sha256}"])
    if _sha256(part) != release.sha256:
        raise BuildError(f"{what}: {found.group(1)} is not the pinned release (sha256 {release.sha256})")
    part.rename(tarball)
    return tarball


def _apt_options(private: Path) -> list[str]:
    """Options that give apt one source of its own and folders of its own, and leave the host's alone."""
    for folder in ("lists/partial", "cache/archives/partial"):
        (private / folder).mkdir(parents=True, exist_ok=True)
    sources = private / "sources.list"
    sources.write_text(f"deb-src [signed-by={KEYRING}] {_archive_address()} {SUITE} main\n")
    settings = {
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": private / "lists",
        "Dir::Cache": private / "cache",
        # apt's own user could not write into a checkout in somebody's home.
        "APT::Sandbox::User": "root",
        # Scripts that the host runs after an update concern its own lists.
        "APT::Update::Post-Invoke-Success::": "",
    }
    return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]


def _archive_address() -> str:
    """The host's own Debian archive, so that a mirror or proxy that it uses is used here too."""
    places = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    for path in places:
        if path.suffix not in (".list", ".sources") or not path.is_file():
            continue
        lines = [line for line in path.read_text(errors="replace").splitlines() if not line.lstrip().startswith("#")]
        for address in re.findall(r"https?://[^\s\]]+", "\n".join(lines)):
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


if __name__ == "__main__":
    print(libcrun())
    print(isal())
