"""``make bench-pull``: pulling images from a registry on loopback, cold, side by side with peers; and over a slow link.

All stores are on one tmpfs and empty before each pull. The limit is igzip and tar on the same archives, from the page
cache, without a registry, a network, or a digest. ``--quick`` measures once; ``--only`` takes part of the works.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench import images
from bench.common import BUILD, Crungo, drive, environment, install, isolate, take_turns, workspace
from bench.peers import Containerd, Docker, Podman, clear
from bench.peers import run as run_command
from bench.report import Row, publish
from bench.slowlink import slow_registry
from tests.support.image import push
from tests.support.registry import Registry

TITLE = "Pulling images"
STORAGE = BUILD / "registry"
MEGABITS, MILLISECONDS = 200, 40
WORKS = {
    "nine": "an image of nine layers",
    "sixty": "an image of sixty small layers",
    "single": "an image of one large layer",
}
AGAIN = 100.0  # milliseconds that a second pull may take beyond the interpreter's start


class Own:
    """crungo, seen as the peers are."""

    name = "crungo"

    def __init__(self, crungo: Crungo) -> None:
        self.crungo = crungo

    @contextmanager
    def ready(self) -> Iterator[None]:
        clear(self.crungo.folder)
        try:
            yield
        finally:
            clear(self.crungo.folder)

    def pull(self, reference: str) -> None:
        run_command(self.crungo.command("pull", "--quiet", reference), environment())


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Who takes part, and where."""

    folder: Path
    crungo: Crungo
    registry: Registry
    contenders: list[Own | Podman | Docker | Containerd]
    rounds: int


def cold(contender: Own | Podman | Docker | Containerd, reference: str) -> float:
    """Seconds of a pull into an empty store."""
    with contender.ready():
        before = time.perf_counter()
        contender.pull(reference)
        return time.perf_counter() - before


def loopback(bench: Bench, name: str) -> Row:
    """A cold pull over loopback."""
    made = images.image(name)
    reference = push(made.image, bench.registry.address, f"bench/{name}")
    turns: dict[str, Callable[[], float]] = {
        contender.name: partial(cold, contender, reference) for contender in bench.contenders
    }
    turns["limit"] = partial(unpack_alone, made, images.FOLDER / name, bench.folder / "limit")
    found = take_turns(turns, rounds=bench.rounds, label=f"pull {name}, s")
    limit, own = found.pop("limit"), found.pop("crungo")
    size = f"{made.layers} layers, {made.packed / 1e6:.0f} MB packed, {made.unpacked / 1e6:.0f} MB, {made.files} files"
    return Row(
        work=f"pull {WORKS[name]} ({size})",
        unit="s",
        crungo=own,
        peers=found,
        limit=limit,
        reference=min(found.values(), default=None),
        against="the best peer",
        goal=0.33,
    )


def unpack_alone(made: images.Made, archives: Path, folder: Path) -> float:
    """Seconds to decompress and unpack all layers, two at a time and more, by igzip's library and tar."""
    from isal import igzip_lib

    digests = [digest.removeprefix("sha256:") for digest in list(made.image.blobs)[1:]]

    def unpack(digest: str) -> None:
        target = folder / digest
        target.mkdir(parents=True)
        command = ["tar", "--extract", "--preserve-permissions", "--directory", str(target)]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as tar, (archives / digest).open("rb") as blob:
            assert tar.stdin is not None
            member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
            while not member.eof:
                tar.stdin.write(member.decompress(blob.read(1 << 19) if member.needs_input else b"", 1 << 19))

    before = time.perf_counter()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(unpack, digests))
    took = time.perf_counter() - before
    shutil.rmtree(folder)
    return took


def over_link(bench: Bench) -> Row:
    """A cold pull of the nine layers over a slow link; the limit is one plain download of the same bytes."""
    made = images.image("nine")
    push(made.image, bench.registry.address, "bench/nine")
    with slow_registry(
        bench.folder / "slow", STORAGE / "storage", megabits=MEGABITS, milliseconds=MILLISECONDS
    ) as slow:
        reference = f"{slow.address}/bench/nine:latest"
        command = [*slow.prefix, *bench.crungo.command("pull", "--quiet", reference)]

        def pull() -> float:
            clear(bench.crungo.folder)
            before = time.perf_counter()
            run_command(command, {**environment(), **slow.env})
            return time.perf_counter() - before

        urls = [f"http://{slow.address}/v2/bench/nine/blobs/{digest}" for digest in made.image.blobs]
        fetch = ["curl", "--silent", "--fail", *(word for url in urls for word in ("--output", "/dev/null", url))]

        def download() -> float:
            before = time.perf_counter()
            run_command([*slow.prefix, *fetch])
            return time.perf_counter() - before

        turns: dict[str, Callable[[], float]] = {"crungo": pull}
        if shutil.which("curl"):
            turns["limit"] = download
        found = take_turns(turns, rounds=max(1, bench.rounds - 1), label="pull over the link, s")
    clear(bench.crungo.folder)
    wire = made.packed * 8 / (MEGABITS * 1e6)
    return Row(
        work=f"pull {WORKS['nine']} over {MEGABITS} Mbit/s and {MILLISECONDS} ms",
        unit="s",
        crungo=found["crungo"],
        peers={"size/bandwidth": wire},
        limit=found.get("limit"),
        reference=wire,
        against="size/bandwidth",
        goal=1.05,
    )


def again(bench: Bench) -> list[Row]:
    """A second pull of an unchanged image: what it asks the registry, and what it takes."""
    made = images.image("sixty")
    reference = push(made.image, bench.registry.address, "bench/sixty")
    own = Own(bench.crungo)
    with own.ready():
        own.pull(reference)
        before = requests(bench.registry)
        own.pull(reference)
        asked = requests(bench.registry)[len(before) :]
        command = bench.crungo.command("pull", "--quiet", reference)
        bare = [str(bench.crungo.python), "-c", "pass"]
        found = take_turns(
            {
                "pull": lambda: 1000 * statistics.median(drive(command, count=15)[1]),
                "interpreter": lambda: 1000 * statistics.median(drive(bare, count=15)[1]),
            },
            rounds=bench.rounds,
            label="second pull, ms",
        )
    print(f"  a second pull asks: {', '.join(asked)}")
    return [
        Row(
            work="second pull of an unchanged image: requests",
            unit="requests",
            crungo=len(asked),
            reference=1.0,
            against="one",
            goal=1.0,
        ),
        Row(
            work="second pull of an unchanged image, beyond the interpreter's start",
            unit="ms",
            crungo=found["pull"] - found["interpreter"],
            limit=None,
            reference=AGAIN,
            against=f"{AGAIN:.0f} ms",
            goal=1.0,
        ),
    ]


def requests(registry: Registry) -> list[str]:
    """The methods of all requests that the registry has answered."""
    lines = registry.log.read_text(errors="replace").splitlines()
    return [
        word.removeprefix("http.request.method=")
        for line in lines
        if "response completed" in line
        for word in line.split()
        if word.startswith("http.request.method=")
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench-pull")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=[*WORKS, "link", "again"], default=[*WORKS, "link", "again"])
    parser.add_argument("--alone", action="store_true", help="without peers")
    options = parser.parse_args()
    for name in WORKS:
        images.image(name)  # made outside of the namespace and its memory
    isolate()
    with workspace() as folder, Registry(STORAGE) as registry:
        crungo = Crungo(python=install(folder), folder=folder / "crungo")
        peers = [] if options.alone else [kind(folder) for kind in (Podman, Docker, Containerd) if kind.available()]
        rounds = 1 if options.quick else options.rounds
        bench = Bench(folder=folder, crungo=crungo, registry=registry, contenders=[Own(crungo), *peers], rounds=rounds)
        rows = [loopback(bench, name) for name in WORKS if name in options.only]
        if "link" in options.only:
            rows.append(over_link(bench))
        if "again" in options.only:
            rows += again(bench)
    publish("pull", TITLE, rows)


if __name__ == "__main__":
    main()
