"""The examples, each run as its page in the documentation says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn

from examples.sandbox import Settings, create_app
from tests.integration.conftest import PushImage
from tests.support.command import Crungo
from tests.support.debian import packages_layer
from tests.support.image import make_image
from tests.support.registry import ROOT


@pytest.fixture
def environment(crungo: Crungo, monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples use the store of the tests, as users' programs use the user's."""
    monkeypatch.setenv("CRUNGO_ROOT", str(crungo.root))
    monkeypatch.setenv("CRUNGO_RUN", str(crungo.run))


@contextmanager
def served(settings: Settings) -> Iterator[str]:
    """The sandbox service on a port of loopback."""
    server = uvicorn.Server(uvicorn.Config(create_app(settings), port=0, log_level="warning", ws="none"))
    started = threading.Event()
    startup = server.startup

    async def told(sockets: list[object] | None = None) -> None:
        await startup(sockets)  # type: ignore[arg-type]
        started.set()

    server.startup = told  # type: ignore[method-assign,assignment]
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert started.wait(30)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/run"
    finally:
        server.should_exit = True
        thread.join(30)


def lines(client: httpx.Client, address: str, code: str) -> list[dict[str, object]]:
    answer = client.post(address, content=code)
    assert answer.status_code == 200
    return [json.loads(line) for line in answer.text.splitlines()]


def test_the_sandbox_service(busybox_reference: str, environment: None) -> None:
    settings = Settings(image=busybox_reference, command=("sh", "-c"), deadline=1.5, output=100_000)
    with served(settings) as address, httpx.Client(timeout=30) as client:
        found = lines(client, address, "echo out; exec >&2; echo err; exit 3")
        assert found == [{"stream": "stdout", "data": "out\n"}, {"stream": "stderr", "data": "err\n"}, {"exit": 3}]
        assert lines(client, address, "id -u; touch /x")[-1] == {"exit": 1}
        assert lines(client, address, "echo $((6*7)) >/tmp/x; cat /tmp/x")[0]["data"] == "42\n"
        assert lines(client, address, "sleep 1000") == [{"error": "stopped after 1.5 seconds"}]
        assert lines(client, address, "yes")[-1] == {"error": "stopped after 100000 bytes of output"}
        assert lines(client, address, "while :; do sh -c 'sleep 9' & done")[-1].keys() & {"exit", "error"}
        assert client.post(address, content=b"").status_code == 422
        assert client.post(address, content=b"x" * 100_000).status_code == 422


def test_the_sandbox_streams_and_ends_with_its_client(
    crungo: Crungo, busybox_reference: str, environment: None
) -> None:
    settings = Settings(image=busybox_reference, command=("sh", "-c"), deadline=60, ready=1)
    with served(settings) as address, httpx.Client(timeout=30) as client:
        with client.stream("POST", address, content="echo first; cat /dev/zero >/dev/null") as answer:
            assert json.loads(next(answer.iter_lines())) == {"stream": "stdout", "data": "first\n"}  # it still runs
            running = set(os.listdir(crungo.root / "containers"))
        deadline = time.monotonic() + 10
        while running & set(os.listdir(crungo.root / "containers")):  # all but the pool's are gone: so is this one
            assert time.monotonic() < deadline
            lines(client, address, "true")  # which also turns the pool over


def test_the_database_fixture(push_image: PushImage, crungo: Crungo, environment: None) -> None:
    layer = packages_layer("redis-server", "redis-tools")
    layer.directory("etc").file("etc/passwd", "redis:x:999:999::/data:/bin/false\n")
    reference = push_image("library/redis", image=make_image([layer], config={"Cmd": ["redis-server"]}), tag="7")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "examples/database"],
        cwd=ROOT, env={**os.environ, "DATABASE_IMAGE": reference}, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "6 passed" in done.stdout


def jobs_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "examples.jobs", *arguments]


def test_the_job_runner(busybox_reference: str, environment: None, tmp_path: Path) -> None:
    barrier = tmp_path / "barrier"
    barrier.mkdir()
    # Each waits until eight have come: they end only because eight are busy at once.
    wait = "echo start; : >/barrier/$NAME; while [ $(ls /barrier | wc -l) -lt 8 ]; do sleep 0.02; done; echo end"
    jobs = [
        {"name": f"job{n}", "image": busybox_reference, "command": ["sh", "-c", wait], "env": {"NAME": str(n)},
         "volumes": [f"{barrier}:/barrier"]}
        for n in range(8)
    ]  # fmt: skip
    jobs += [{"name": f"more{n}", "image": busybox_reference, "command": ["echo", str(n)]} for n in range(12)]
    jobs.append({"name": "bad", "image": busybox_reference, "command": ["sh", "-c", "printf oops >&2; exit 4"]})
    jobs.append({"name": "none", "image": busybox_reference, "command": ["nothing-like-it"]})
    jobs.append({"name": "own", "image": busybox_reference, "entrypoint": ["echo", "no command"]})
    text = "".join(json.dumps(job) + "\n" for job in jobs)
    done = subprocess.run(
        jobs_command("-"), input=text, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1, done.stderr
    printed = done.stdout.splitlines()
    assert sorted(line for line in printed if line.startswith("job")) == sorted(
        f"job{n} | {word}" for n in range(8) for word in ("start", "end")
    )
    assert {f"more{n} | {n}" for n in range(12)} <= set(printed)
    assert {"bad ! oops", "own | no command"} <= set(printed)
    assert printed[-1].startswith("23 jobs, 2 failed, ")
    assert sorted(done.stderr.splitlines()) == [
        "bad: exit code 4",
        'none: exec "nothing-like-it": executable file not found in $PATH',
    ]


def test_the_job_runner_is_interrupted(crungo: Crungo, busybox_reference: str, environment: None) -> None:
    job = {"name": "long", "image": busybox_reference, "command": ["sh", "-c", "echo here; exec sleep 1000"]}
    with subprocess.Popen(
        jobs_command("-"), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(job).encode() + b"\n")
        process.stdin.flush()  # and more may come: its reader waits for it
        assert process.stdout.readline() == b"long | here\n"
        process.send_signal(signal.SIGINT)
        process.wait(30)
    assert os.listdir(crungo.root / "containers") == []
