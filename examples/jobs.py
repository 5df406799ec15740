"""A job runner: commands from a file, one container each, eight at a time, their output as it comes.

    python -m examples.jobs --at-once 8 jobs.jsonl

A line of the file is a job: ``{"name": "build", "image": "alpine", "command": ["make"], "memory": "512m"}``; every
other key is a keyword of ``Engine.container``. The exit code is 1 when a job has failed. Ctrl-C ends what runs.
"""

from __future__ import annotations

import argparse
import json
import os
import stat
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, TextIO

import anyio
from anyio.abc import ObjectReceiveStream

import crungo


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to run, without a ``command`` the image's own; ``fields`` are keywords of ``Engine.container``."""

    name: str
    image: str
    command: list[str] | None
    fields: dict[str, Any]

    @classmethod
    def parse(cls, line: str) -> Job:
        fields = json.loads(line)
        name, image, command = fields.pop("name"), fields.pop("image"), fields.pop("command", None)
        return cls(name=name, image=image, command=command, fields=fields)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job has ended: its exit code, or why it has none; and the seconds it took."""

    job: Job
    returncode: int | None
    problem: str
    seconds: float


class Runner:
    """Keeps a number of containers busy from a queue."""

    def __init__(self, engine: crungo.Engine, *, at_once: int, out: TextIO = sys.stdout) -> None:
        self._engine = engine
        self._at_once = at_once
        self._out = out
        self.outcomes: list[Outcome] = []

    async def run(self, jobs: AsyncIterator[Job]) -> list[Outcome]:
        """Run all jobs; a queue without room makes the reader of the jobs wait, so that they may be endless."""
        sender, receiver = anyio.create_memory_object_stream[Job](0)
        async with anyio.create_task_group() as group:
            for _ in range(self._at_once):
                group.start_soon(self._work, receiver.clone())
            receiver.close()
            async with sender:
                async for job in jobs:
                    await sender.send(job)
        return self.outcomes

    async def _work(self, jobs: ObjectReceiveStream[Job]) -> None:
        async with jobs:
            async for job in jobs:
                self.outcomes.append(await self._one(job))

    async def _one(self, job: Job) -> Outcome:
        started = time.monotonic()
        code, problem = None, ""
        try:
            async with self._engine.container(job.image, job.command, **job.fields) as container:
                lines = _Lines(job.name, self._out)
                async for piece in container.output():
                    lines.take(piece.stream, piece.data)
                lines.finish()
                code = await container.wait()
        except crungo.CrungoError as error:
            problem = str(error)
        return Outcome(job=job, returncode=code, problem=problem, seconds=time.monotonic() - started)


class _Lines:
    """Whole lines of several streams, each with the name of its job before it."""

    def __init__(self, name: str, out: TextIO) -> None:
        self._name = name
        self._out = out
        self._rest: dict[str, bytes] = {}

    def take(self, stream: str, data: bytes) -> None:
        *lines, self._rest[stream] = (self._rest.get(stream, b"") + data).split(b"\n")
        for line in lines:
            self._print(stream, line)

    def finish(self) -> None:
        for stream, rest in self._rest.items():
            if rest:
                self._print(stream, rest)

    def _print(self, stream: str, line: bytes) -> None:
        mark = "!" if stream == "stderr" else "|"
        print(f"{self._name} {mark} {line.decode(errors='replace')}", file=self._out, flush=True)


async def read_jobs(fd: int) -> AsyncIterator[Job]:
    """The jobs of a file, which may be a pipe that somebody still writes to."""
    pipe = not stat.S_ISREG(os.fstat(fd).st_mode)
    rest = b""
    while True:
        if pipe:
            await anyio.wait_readable(fd)
        data = os.read(fd, 65536)
        *lines, rest = (rest + (data or b"\n")).split(b"\n")
        for line in lines:
            if line.strip():
                yield Job.parse(line.decode())
        if not data:
            return


async def main(arguments: argparse.Namespace) -> int:
    async with crungo.Engine() as engine:
        outcomes = await Runner(engine, at_once=arguments.at_once).run(read_jobs(arguments.jobs.fileno()))
    failed = [outcome for outcome in outcomes if outcome.returncode != 0]
    for outcome in failed:
        print(f"{outcome.job.name}: {outcome.problem or f'exit code {outcome.returncode}'}", file=sys.stderr)
    print(f"{len(outcomes)} jobs, {len(failed)} failed, {sum(o.seconds for o in outcomes):.1f} s in containers")
    return 1 if failed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("jobs", type=argparse.FileType("r"), help="a file of JSON lines, - for stdin")
    parser.add_argument("--at-once", type=int, default=8)
    raise SystemExit(anyio.run(main, parser.parse_args()))
