"""Build the fuzzer of the unpacker, seed it with the archives of the tests, run it for a while.

``python fuzz/run.py [--seconds 60] [--seed N]``, as root. The corpus grows in build/fuzz/corpus; an input that ends the
fuzzer (a sanitizer's finding, an escape, twenty seconds without an end) is kept as build/fuzz/crash-…, and the
exit code is 1. The seed is printed; the corpus being the same, it repeats the run.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "fuzz"
NATIVE = ROOT / "crungo" / "runtime" / "native"
LARGEST = 65536
sys.path.insert(0, str(ROOT))

from tests.support import tarballs  # noqa: E402
from tests.support.tarballs import Entry, archive, directory, hard_link, symlink  # noqa: E402


def seeds() -> list[bytes]:
    """One archive for each thing that there is."""
    file = Entry(name=b"a", content=b"text")
    blocks = [(0, b"x" * 512), (4096, b"y" * 512), (9000, b"")]
    lists = [
        [directory(b"./"), directory(b"a"), replace(file, name=b"a/b")],
        [file, hard_link(b"b", b"a"), symlink(b"c", b"a"), hard_link(b"d", b"c"), replace(file, name=b"b")],
        [symlink(b"a", b"/b/c"), replace(file, name=b"a/b"), symlink(b"a", b"../b"), replace(file, name=b"a/../a/c")],
        [symlink(b"a", b"/"), replace(file, name=b"a/b"), symlink(b"c", b".."), replace(file, name=b"c/b/.wh.d")],
        [symlink(b"a", b"../canary"), directory(b"a"), symlink(b"b", b".."), hard_link(b"c", b"b/canary")],
        [
            Entry(name=b".wh.a"),
            directory(b"a"),
            Entry(name=b"a/.wh..wh..opq"),
            Entry(name=b"a/.wh.b"),
            directory(b"a/b"),
        ],
        [directory(b"a"), replace(file, name=b"a/b/c"), replace(file, name=b"a")],
        [Entry(name=b"a", type=t, device=(0, 0)) for t in (b"3", b"4", b"6")],
        [replace(file, pax={b"SCHILY.xattr.user.x": b"1", b"SCHILY.xattr.trusted.x": b"1", b"mtime": b"1.5"})],
        [replace(symlink(b"s", b"t"), pax={b"SCHILY.xattr.trusted.x": b"1"})],
        [replace(file, name=b"n" * 150), replace(file, name=b"m" * 150, magic=b"ustar  \0"), symlink(b"l", b"t" * 150)],
        [replace(file, pax={b"path": b"caf\xc3\xa9", b"linkpath": b"\xff", b"hdrcharset": b"BINARY"})],
        [tarballs.gnu_sparse(b"s", 9000, blocks)],
        *([tarballs.pax_sparse(b"s", 9000, blocks, version)] for version in ("0.0", "0.1", "1.0")),
        [replace(file, mode=0o6755, uid=5, gid=2**31), directory(b"d", 0o2775, gid=5), replace(file, name=b"d/e/f")],
    ]
    return [archive(*entries) for entries in lists]


def build() -> Path:
    """Compile with the sanitizers of gcc; coverage in our own code alone."""
    BUILD.mkdir(parents=True, exist_ok=True)
    sanitize = ["-g", "-O1", "-std=gnu17", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    include = f"-I{NATIVE}"
    trace = "-fsanitize-coverage=trace-pc,trace-cmp"
    cc = os.environ.get("CC", "cc")
    compile_: list[str | Path] = [cc, *sanitize, trace, include, "-c", NATIVE / "unpack.c", "-o", BUILD / "unpack.o"]
    subprocess.run(compile_, check=True)
    program = BUILD / "unpack"
    libraries = ["-larchive"]
    unused = "-Wno-unused-function"
    command: list[str | Path] = [
        cc,
        *sanitize,
        unused,
        include,
        ROOT / "fuzz" / "unpack.c",
        BUILD / "unpack.o",
        NATIVE / "unpack_confine.c",
        *libraries,
        "-o",
        program,
    ]
    subprocess.run(command, check=True)
    return program


def main() -> int:
    parser = argparse.ArgumentParser(description="fuzz the layer unpacker")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("it makes devices and changes roots, and needs root")
    program = build()
    corpus = BUILD / "corpus"
    corpus.mkdir(exist_ok=True)
    for seed in seeds():
        (corpus / f"seed-{hashlib.sha256(seed).hexdigest()[:16]}").write_bytes(seed)
    print(f"fuzzing the unpacker for {options.seconds} seconds, seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as scratch, tempfile.TemporaryFile() as current:
        (Path(scratch) / "canary").touch()
        for folder in ("a/b", "b/a"):
            (Path(scratch) / folder).mkdir(parents=True)
        current.truncate(LARGEST)
        ended = subprocess.run(
            ["sh", "-c", 'exec "$@" 3<&0', "sh", program, corpus, scratch, str(options.seconds), str(options.seed)],
            stdin=current,
            env={
                **os.environ,
                "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",
                "UBSAN_OPTIONS": "print_stacktrace=1",
            },
            check=False,
        ).returncode
        subprocess.run(["rm", "-rf", Path(scratch) / "layer"], check=True)
        if ended == 0:
            return 0
        current.seek(0)
        crash = BUILD / f"crash-{options.seed}"
        crash.write_bytes(current.read().rstrip(b"\0"))
        print(f"the fuzzer ended with {ended}; its last input is in {crash}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
