"""``make bench-run``: starting containers, processes in them, and their streams, side by side with peers.

Peers get the same image, and crun its files as a ready directory. All stores are on one tmpfs. ``--quick`` measures
little, to see that all works; ``--only`` takes part of the groups.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from bench.common import Crungo, compiled, drive, environment, install, isolate, say, take_turns, workspace
from bench.peers import Crun, Docker, Podman
from bench.peers import run as run_command
from bench.report import Row, publish
from bench.streams import pipe_rate, terminal_rate
from tests.support.image import busybox_image, push
from tests.support.registry import TOOLS, Registry

P = TypeVar("P", Podman, Docker)

TITLE = "Running containers"
LEVELS = (1, 4, 8, 16)
KINDS: dict[str, dict[str, Any]] = {"plain": {"seccomp": "unconfined", "pids_limit": -1}, "default": {}}
"""Containers without a filter of system calls and without limits, as ``crun spec`` has them, and crungo's default."""
LINE = b"The quick brown fox jumps over the lazy dog, again and again and again.\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Who takes part, and how much is measured (``scale``: 1 is all)."""

    crungo: Crungo
    image: str
    rootfs: Path
    crun: Crun | None
    podman: Podman | None
    docker: Docker | None
    rounds: int
    scale: float
    levels: tuple[int, ...] = LEVELS

    def many(self, count: int) -> int:
        return max(3, round(count * self.scale))


def rates(bench: Bench) -> list[Row]:
    """Containers per second, of each kind."""
    rows = []
    for kind, fields in KINDS.items():
        for at_once in bench.levels:
            turns: dict[str, Callable[[], float]] = {"crungo": partial(own_rate, bench, at_once, fields)}
            if bench.crun is not None:
                turns["crun"] = partial(crun_rate, bench, at_once, kind)
            if bench.podman is not None and kind == "default":
                turns["podman"] = partial(podman_rate, bench, at_once)
            turns["limit"] = partial(kernel_rate, bench, at_once)
            found = take_turns(turns, rounds=bench.rounds, label=f"{kind} containers/s, {at_once} at once")
            limit = found.pop("limit")
            rows.append(
                Row(
                    work=f"{kind} containers of /bin/true, {at_once} at once",
                    unit="1/s",
                    crungo=found.pop("crungo"),
                    peers=found,
                    limit=limit,
                    reference=found.get("crun"),
                    against="crun",
                    goal=1.3 if at_once == 1 else 1.15,
                    more_is_better=True,
                )
            )
    return rows


def own_rate(bench: Bench, at_once: int, fields: Mapping[str, Any]) -> float:
    count = bench.many(160)
    found: float = bench.crungo.inside("rate", image=bench.image, count=count, at_once=at_once, fields=fields)
    return found


def crun_rate(bench: Bench, at_once: int, kind: str) -> float:
    crun = bench.crun
    assert crun is not None
    bundle = crun.bundle_of(kind, kind, "/bin/true")
    count = bench.many(120)
    command = crun.command("run", "--bundle", str(bundle), "bench-@")
    return count / drive(command, count=count, at_once=at_once, prefix=crun.prefix)[0]


def podman_rate(bench: Bench, at_once: int) -> float:
    podman = bench.podman
    assert podman is not None
    count = bench.many(20)
    command = podman.run_command(bench.image, "true")
    return count / drive(command, count=count, at_once=at_once, prefix=podman.prefix, env=podman.env)[0]


def kernel_rate(bench: Bench, at_once: int) -> float:
    count = bench.many(300)
    command = [str(compiled("limit")), str(count), str(at_once), str(bench.rootfs), "/bin/true"]
    return count / float(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def starts(bench: Bench) -> list[Row]:
    """Start latency in a small and in a large process, and from a warm pool."""

    def start(ballast: int) -> Callable[[], float]:
        return lambda: bench.crungo.inside("start", image=bench.image, count=bench.many(40), ballast=ballast)

    def beside(usual: str, other: Callable[[], float], label: str, *, work: str, against: str, goal: float) -> Row:
        """A start of another kind, and the usual one for comparison."""
        found = take_turns({usual: start(0), "crungo": other}, rounds=bench.rounds, label=label)
        own = found.pop("crungo")
        return Row(work=work, unit="ms", crungo=own, peers=found, reference=found[usual], against=against, goal=goal)

    return [
        beside(
            "crungo, 50 MB",
            start(4096 if bench.scale >= 1 else 512),
            "start, ms",
            work="start a container from a process of 4 GB",
            against="the start from 50 MB",
            goal=1.1,
        ),
        beside(
            "crungo, cold",
            lambda: bench.crungo.inside("pool", image=bench.image, count=bench.many(40)),
            "pool, ms",
            work="start a container from a warm pool",
            against="a cold start",
            goal=0.5,
        ),
    ]


def executions(bench: Bench) -> list[Row]:
    """A further process in a running container of each kind, to its end."""
    rows = []
    for kind, fields in KINDS.items():
        own = partial(bench.crungo.inside, "execute", image=bench.image, count=bench.many(60), fields=fields)
        turns: dict[str, Callable[[], float]] = {"crungo": own}
        with ExitStack() as stack:
            if bench.crun is not None:
                turns["crun"] = crun_exec(bench, bench.crun, kind, stack)
            found = take_turns(turns, rounds=bench.rounds, label=f"exec in a {kind} container, ms")
        rows.append(
            Row(
                work=f"exec true in a {kind} container",
                unit="ms",
                crungo=found.pop("crungo"),
                peers=found,
                reference=found.get("crun"),
                against="crun",
                goal=0.7,
            )
        )
    return rows


def crun_exec(bench: Bench, crun: Crun, kind: str, stack: ExitStack) -> Callable[[], float]:
    """Start a container of crun's for the time being; what measures an exec in it."""
    bundle = crun.bundle_of(kind, f"sleep-{kind}", "/bin/sleep", "100000")
    name = f"bench-exec-{kind}"
    run_command([*crun.prefix, *crun.command("run", "--detach", "--bundle", str(bundle), name)])
    stack.callback(run_command, [*crun.prefix, *crun.command("delete", "--force", name)])
    command = crun.command("exec", name, "/bin/true")
    return lambda: median_ms(drive(command, count=bench.many(60), prefix=crun.prefix)[1])


def median_ms(seconds: Sequence[float]) -> float:
    return 1000 * statistics.median(seconds)


def commands(bench: Bench) -> list[Row]:
    """``run … true`` as a command, from its start to its end."""
    command = bench.crungo.command("run", "--network", "none", bench.image, "true")
    turns: dict[str, Callable[[], float]] = {"crungo": lambda: median_ms(drive(command, count=bench.many(20))[1])}
    for peer in (bench.podman, bench.docker):
        if peer is not None:
            turns[peer.name] = partial(command_ms, bench, peer)
    turns["limit"] = lambda: 1000 / kernel_rate(bench, 1)
    found = take_turns(turns, rounds=bench.rounds, label="run true, ms")
    limit, own = found.pop("limit"), found.pop("crungo")
    return [
        Row(
            work=f"`crungo run --network none … true` beside {name}",
            unit="ms",
            crungo=own,
            peers={name: found[name]} if name in found else {},
            limit=limit,
            reference=found.get(name),
            against=name,
            goal=goal,
        )
        for name, goal in (("podman", 0.5), ("docker", 0.35))
    ]


def command_ms(bench: Bench, peer: Podman | Docker) -> float:
    command = peer.run_command(bench.image, "true")
    return median_ms(drive(command, count=bench.many(12), prefix=peer.prefix, env=peer.env)[1])


def streams(bench: Bench) -> list[Row]:
    """Bytes through a container's pipes, and through its terminal."""
    size = 1 << 30 if bench.scale >= 1 else 1 << 27
    turns: dict[str, Callable[[], float]] = {
        "crungo": lambda: pipe_rate(bench.crungo.command("run", "-i", bench.image, "cat"), size)
    }
    for peer in (bench.podman, bench.docker):
        if peer is not None:
            through = [*peer.prefix, *peer.run_command(bench.image, "cat", options=["-i"])]
            # docker takes its time: a fraction shows as much.
            turns[peer.name] = partial(pipe_rate, through, size if peer is bench.podman else size // 8, peer.env)
    turns["limit"] = lambda: pipe_rate([str(bench.rootfs / "bin" / "busybox"), "cat"], size)
    pipes = beside_the_kernel(
        turns,
        bench.rounds,
        "-i cat",
        work="standard input to standard output through `-i … cat`, 1 GB",
        unit="GB/s",
        against="a bare pipe",
        goal=0.8,
        enough=1.0,
    )
    return [pipes, terminal(bench)]


def beside_the_kernel(turns: Mapping[str, Callable[[], float]], rounds: int, label: str, **row: Any) -> Row:
    """What passes in a second, beside what passes where no container is."""
    found = take_turns(turns, rounds=rounds, label=f"{label}, {row['unit']}")
    limit, own = found.pop("limit"), found.pop("crungo")
    return Row(crungo=own, peers=found, limit=limit, reference=limit, more_is_better=True, **row)


def terminal(bench: Bench) -> Row:
    """Text that a program writes to its terminal.

    The limit is one bare terminal, with nothing in between. How fast that is depends on which cores the scheduler has
    put the program, the reader and the kernel's worker between them on, and it likes to leave them there: the same
    command makes between 65 and 105 MB/s on one machine of two cores, each time from the first byte to the last. A
    long run is therefore one draw. Everybody gets many short ones instead, in turns, none of them tied to a core;
    medians are compared. ``relay`` is what a program in between costs that does nothing else.
    """
    size = 50_000_000 if bench.scale >= 1 else 20_000_000
    text = bench.crungo.folder / "text"
    text.mkdir(exist_ok=True)
    (text / "lines").write_bytes(LINE * (size // len(LINE) + 1))
    volume = ["--volume", f"{text}:/text:ro"]
    command = bench.crungo.command("run", "-it", *volume, bench.image, "cat", "/text/lines")
    turns: dict[str, Callable[[], float]] = {"crungo": lambda: terminal_rate(command, size)}
    for peer in (bench.podman, bench.docker):
        if peer is not None:
            shown = [*peer.prefix, *peer.run_command(bench.image, "cat", "/text/lines", options=["-it", *volume])]
            turns[peer.name] = partial(terminal_rate, shown, size, peer.env)
    bare = [str(bench.rootfs / "bin" / "busybox"), "cat", str(text / "lines")]
    turns["relay"] = lambda: terminal_rate([str(compiled("relay")), *bare], size)
    turns["limit"] = lambda: terminal_rate(bare, size)
    return beside_the_kernel(
        turns,
        5 * bench.rounds,
        "-it cat",
        work="output through a terminal, 50 MB at a time",
        unit="MB/s",
        against="a bare terminal",
        goal=0.75,
    )


GROUPS: dict[str, Callable[[Bench], list[Row]]] = {
    "rates": rates,
    "starts": starts,
    "executions": executions,
    "commands": commands,
    "streams": streams,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench-run")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS))
    options = parser.parse_args()
    isolate()
    with workspace() as folder, Registry(folder / "registry") as registry, ExitStack() as stack:
        image = push(busybox_image((TOOLS / "busybox").resolve()), registry.address, "bench/busybox")
        crungo = Crungo(python=install(folder), folder=folder / "crungo")
        run_command(crungo.command("run", image, "true"), environment())
        rootfs = root_file_system(folder / "rootfs")
        podman = ready(Podman(folder), image, stack) if Podman.available() else None
        docker = ready(Docker(folder), image, stack) if Docker.available() else None
        bench = Bench(
            crungo=crungo,
            image=image,
            rootfs=rootfs,
            crun=Crun(folder, rootfs) if Crun.available() else None,
            podman=podman,
            docker=docker,
            rounds=1 if options.quick else options.rounds,
            scale=0.1 if options.quick else 1.0,
            levels=(1, 4) if options.quick else LEVELS,
        )
        rows = [row for name in options.only for row in GROUPS[name](bench)]
    publish("run", TITLE, rows)


def ready(peer: P, image: str, stack: ExitStack) -> P:
    """Start the peer for the time of the stack, and give it the image."""
    say(f"preparing {peer.name}")
    stack.enter_context(peer.ready())
    peer.pull(image)
    return peer


def root_file_system(folder: Path) -> Path:
    """The files of the image that matter, as a directory."""
    for name in ("bin", "dev", "proc", "sys", "etc", "tmp"):
        (folder / name).mkdir(parents=True)
    busybox = (TOOLS / "busybox").resolve()
    (folder / "bin" / "busybox").write_bytes(busybox.read_bytes())
    (folder / "bin" / "busybox").chmod(0o755)
    for name in ("true", "sleep", "cat", "sh"):
        (folder / "bin" / name).symlink_to("busybox")
    return folder


if __name__ == "__main__":
    main()
