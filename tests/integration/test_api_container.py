"""Containers as values: output, ends, limits, figures, freezing; on asyncio and trio."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from itertools import pairwise
from typing import Any

import anyio
import pytest

from crungo import creation, stdio
from crungo.config import ContainerConfig
from crungo.creation import begin
from crungo.errors import (
    CommandFailed,
    CommandNotExecutable,
    CommandNotFound,
    ImageInUse,
    LibcrunError,
    NameInUse,
    NotRunning,
    UsageError,
)
from crungo.image.leases import Lease
from crungo.image.store import Image, Store
from tests.integration.conftest import PushImage
from tests.support.api import engine, line, remains
from tests.support.command import Crungo
from tests.support.image import Layer

pytestmark = pytest.mark.anyio


async def test_a_run_and_its_keywords(crungo: Crungo, busybox_reference: str) -> None:
    script = "cat; echo $A-$B-$IMAGE; id -u; pwd; cat /proc/self/mountinfo | grep -c ' /host '; exit 7"
    async with engine(crungo) as api:
        result = await api.run(
            busybox_reference, ["sh", "-c", script], input=b"in\0put\n", env=["A=1", "IMAGE="], user=1000,
            workdir="/srv", volumes=[f"{crungo.root}:/host:ro"], memory="64m", cpus=".5", timeout="30s",
        )  # fmt: skip
    assert result == type(result)(returncode=7, stdout=b"in\0put\n1--\n1000\n/srv\n1\n", stderr=b"")


async def test_errors_of_a_run(crungo: Crungo, busybox_reference: str) -> None:
    async with engine(crungo) as api:
        with pytest.raises(CommandFailed) as failed:
            await api.run(busybox_reference, ["sh", "-c", "echo out; echo err >&2; exit 3"], check=True)
        assert (failed.value.returncode, failed.value.stdout, failed.value.stderr) == (3, b"out\n", b"err\n")
        with pytest.raises(CommandNotFound):
            await api.run(busybox_reference, ["nothing-like-it"])
        with pytest.raises(CommandNotExecutable):
            await api.run(busybox_reference, ["/etc/passwd"])
        with pytest.raises(UsageError, match="memory"):
            await api.run(busybox_reference, ["true"], memory="lots")
        with pytest.raises(UsageError, match=r"^input: a program with a terminal has none"):
            await api.run(busybox_reference, ["head", "-n", "1"], tty=True, input=b"x\n", timeout=30)
        start = time.monotonic()
        with pytest.raises(TimeoutError, match=r"^not done within 0.3 seconds$"):
            await api.run(busybox_reference, ["sleep", "1000"], timeout=0.3)
        assert time.monotonic() - start < 10
        async with api.container(busybox_reference, ["sleep", "1000"]) as box:
            with pytest.raises(UsageError, match=r"^input: a program with a terminal has none"):
                await box.run(["head", "-n", "1"], tty=True, input=b"x\n", timeout=30)
            async with box.exec(["head", "-n", "1"], tty=True) as head:
                with pytest.raises(UsageError, match=r"^input: a program with a terminal has none"):
                    await head.communicate(b"x\n")
        async with api.container(busybox_reference, ["sleep", "1000"], name="taken"):
            with pytest.raises(NameInUse):
                await api.run(busybox_reference, ["true"], name="taken")


async def test_output_comes_in_order_and_waits_for_its_reader(crungo: Crungo, busybox_reference: str) -> None:
    script = "read go; for i in 1 2 3; do echo $i; read go; echo $i >&2; read go; done; head -c 10000000 /dev/zero"
    async with engine(crungo) as api, api.container(busybox_reference, ["sh", "-c", script], stdin=True) as container:
        assert container.stdin is not None
        output = container.output()
        seen = []
        for _ in range(6):
            await container.stdin.send(b"go\n")
            piece = await anext(output)
            seen.append((piece.stream, piece.data))
            assert abs(piece.time - time.time()) < 5
        expected = [[("stdout", b"%d\n" % i), ("stderr", b"%d\n" % i)] for i in (1, 2, 3)]
        assert seen == [pair for pairs in expected for pair in pairs]
        await container.stdin.send(b"go\n")
        with anyio.move_on_after(0.3):
            await container.wait()
        assert container.returncode is None  # ten megabytes that nobody reads
        size = 0
        async for piece in output:
            size += len(piece.data)
        assert size == 10_000_000
        assert await container.wait() == 0


async def test_output_of_a_terminal(crungo: Crungo, busybox_reference: str) -> None:
    command = ["sh", "-c", "stty size; echo err >&2"]
    async with engine(crungo) as api, api.container(busybox_reference, command, tty=True, size=(91, 17)) as container:
        pieces = [piece async for piece in container.output()]
    assert {piece.stream for piece in pieces} == {"terminal"}
    assert b"".join(piece.data for piece in pieces) == b"17 91\r\nerr\r\n"


async def test_output_may_be_left_early(crungo: Crungo, busybox_reference: str) -> None:
    async with engine(crungo) as api, api.container(busybox_reference, ["yes"]) as container:
        async for piece in container.output(max_bytes=10):
            assert piece.data == b"y\n" * 5
            break


STUBBORN = "trap '' TERM; echo ready; while :; do sleep 0.05; done"
POLITE = "trap 'exit 5' {signal}; echo ready; while :; do sleep 0.05; done"


async def test_name_and_labels(crungo: Crungo, push_image: PushImage) -> None:
    labels = {"team": "image", "tier": "1"}
    reference = push_image("labelled", change_config=lambda config: config["config"].update(Labels=labels))
    async with engine(crungo) as api:
        async with api.container(reference, ["true"], name="known", labels={"team": "own", "job": ""}) as box:
            assert (box.name, dict(box.labels)) == ("known", {"team": "own", "tier": "1", "job": ""})
        async with api.container(reference, ["sleep", "1000"]) as box:
            assert os.readlink(crungo.root / "names" / box.name).endswith(box.id)
            assert box.labels == labels


async def test_stop(crungo: Crungo, busybox_reference: str, push_image: PushImage) -> None:
    own = push_image(
        "library/stop-usr1", config={"Cmd": ["sh", "-c", POLITE.format(signal="USR1")], "StopSignal": "SIGUSR1"}
    )
    async with engine(crungo) as api:
        async with api.container(busybox_reference, ["sh", "-c", POLITE.format(signal="TERM")]) as container:
            await line(container)
            assert await container.stop() == 5
            assert await container.stop() == 5  # it has ended: nothing more to do
        async with api.container(own) as container:
            await line(container)
            assert await container.stop() == 5
        command = ["sh", "-c", POLITE.format(signal="INT")]
        async with api.container(busybox_reference, command, stop_signal="INT") as container:
            await line(container)
            await container.pause()
            assert await container.stop() == 5
        async with api.container(busybox_reference, ["sh", "-c", STUBBORN], stop_timeout="100ms") as container:
            await line(container)
            assert await container.stop() == 137


async def test_stats(crungo: Crungo, busybox_reference: str) -> None:
    script = "dd if=/dev/zero of=/tmp/x bs=1M count=20 2>/dev/null; echo; while :; do :; done"
    async with (
        engine(crungo) as api,
        api.container(busybox_reference, ["sh", "-c", script], memory="256m", pids_limit=77) as container,
    ):
        await line(container)
        readings = []
        async for stats in container.stats(0.2):
            readings.append(stats)
            if len(readings) == 4:
                break
        for earlier, later in pairwise(readings):
            assert later.time > earlier.time
            assert later.cpu > earlier.cpu
        last = readings[-1]
        assert (last.memory_limit, last.pids_limit) == (256 << 20, 77)
        assert 20 << 20 <= last.memory <= last.memory_peak <= 256 << 20
        assert last.pids == 1
        further = container.stats("10h")
        await anext(further)
        container.kill()
        with pytest.raises(StopAsyncIteration), anyio.fail_after(10):
            await anext(further)


async def test_pause_and_resume(crungo: Crungo, busybox_reference: str) -> None:
    script = "while read x; do echo $x; done"
    async with (
        engine(crungo) as api,
        api.container(busybox_reference, ["sh", "-c", script], stdin=True) as container,
    ):
        assert container.stdin is not None
        await container.stdin.send(b"1\n")
        assert await line(container) == b"1"
        await container.pause()
        await container.pause()
        await container.stdin.send(b"2\n")
        with anyio.move_on_after(0.3) as scope:
            await line(container)
        assert scope.cancelled_caught
        with pytest.raises(LibcrunError, match="paused"):
            await container.run(["true"])
        await container.resume()
        assert await line(container) == b"2"
        container.kill()
        await container.wait()
        for call in (container.pause, container.resume):
            with pytest.raises(NotRunning):
                await call()


async def test_a_paused_container_ends_like_any_other(crungo: Crungo, busybox_reference: str) -> None:
    async with engine(crungo) as api:
        start = time.monotonic()
        async with api.container(busybox_reference, ["sleep", "1000"]) as container:
            await container.pause()
        assert not remains(crungo, container.id)
        async with api.container(busybox_reference, ["sleep", "1000"]) as container:
            await container.pause()
            container.kill()
            assert await container.wait() == 137
        assert time.monotonic() - start < 10


async def test_update(crungo: Crungo, busybox_reference: str) -> None:
    async with (
        engine(crungo) as api,
        api.container(busybox_reference, ["sleep", "1000"], memory="64m") as container,
    ):
        await container.update(memory="32m", cpus=0.5, pids_limit=10)
        stats = await anext(container.stats())
        assert (stats.memory_limit, stats.pids_limit) == (32 << 20, 10)
        script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 9 >/dev/null 2>&1 & done"
        forked = await container.run(["sh", "-c", script])
        assert b"fork" in (forked.stderr or b"")
        await container.update(memory="1g", memory_swap="2g", pids_limit=-1)
        stats = await anext(container.stats())
        assert (stats.memory_limit, stats.pids_limit) == (1 << 30, None)
        await container.update()
        for wrong in ({"memory_swap": "1g"}, {"memory": "1k"}, {"cpus": "many"}):
            with pytest.raises(UsageError):
                await container.update(**wrong)
        container.kill()
        await container.wait()
        with pytest.raises(NotRunning):
            await container.update(memory="64m")


async def test_memory_beyond_an_updated_limit_is_refused(crungo: Crungo, busybox_reference: str) -> None:
    script = "dd if=/dev/zero of=/dev/null bs=200M count=1 2>/dev/null; echo $?"
    async with (
        engine(crungo) as api,
        api.container(busybox_reference, ["sleep", "1000"], memory="512m") as container,
    ):
        assert (await container.run(["sh", "-c", script])).stdout == b"0\n"
        await container.update(memory="32m")
        assert (await container.run(["sh", "-c", script])).stdout == b"137\n"


async def test_signals(crungo: Crungo, busybox_reference: str) -> None:
    async with engine(crungo) as api:
        async with api.container(busybox_reference, ["sh", "-c", "echo; exec sleep 1000"], init=True) as container:
            await line(container)
            container.terminate()
            assert await container.wait() == 128 + signal.SIGTERM
            for call in (container.terminate, container.kill):
                with pytest.raises(NotRunning):
                    call()
        async with api.container(busybox_reference, ["cat"], stdin=True, tty=True, size=(80, 24)) as container:
            container.resize(100, 40)
            assert (await container.run(["stty", "-F", "/dev/console", "size"])).stdout == b"40 100\n"
            assert container.terminal is not None
            await container.terminal.send(b"\x04")
            assert await container.wait() == 0


async def test_an_init_misses_no_signal_from_its_start_on(crungo: Crungo, busybox_reference: str) -> None:
    async with engine(crungo) as api:
        for _ in range(20):
            async with api.container(busybox_reference, ["sleep", "1000"], init=True) as container:
                container.terminate()
                with anyio.fail_after(10):
                    assert await container.wait() == 143


async def test_images(crungo: Crungo, push_image: PushImage) -> None:
    reference = push_image("library/api-images", config={"Cmd": ["true"], "Labels": {"unique": "api"}})
    events: list[object] = []
    async with engine(crungo) as api:
        image = await api.pull(reference, progress=events.append)
        assert (type(events[0]).__name__, type(events[-1]).__name__) == ("ImageResolved", "ImageDone")
        assert image.id in {known.id for known in await api.images()}
        async with api.container(reference, ["sleep", "1000"]) as container:
            with pytest.raises(ImageInUse, match=container.id[:12]):
                await api.remove(reference)
            async with engine(crungo) as other:
                with pytest.raises(ImageInUse, match="another"):
                    await other.remove(reference)
        removal = await api.remove(reference)
        assert removal.deleted == (image.id,)
        assert image.id not in {known.id for known in await api.images()}


async def test_a_pull_that_outlives_its_engine(fresh_crungo: Crungo, busybox_reference: str) -> None:
    """It ends with an error that says so, and leaves nothing but what the next one goes on with."""
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(engine(fresh_crungo))

        def leave(event: object) -> None:
            api.spawner.end_requests()

        with pytest.raises(UsageError, match="used outside its `async with` block"):
            await api.pull(busybox_reference, progress=leave)


async def test_images_of_one_configuration(crungo: Crungo, push_image: PushImage) -> None:
    """The same layers, compressed in two ways: one id, but each image has directories of its own in the store."""
    layer, config = Layer().file("hello", "here"), {"Labels": {"unique": "twice"}}
    ways = ("gzip", "zstd")
    names = [push_image(f"library/api-{way}", layer, config=config, compression=way) for way in ways]
    async with engine(crungo) as api:
        assert len({(await api.pull(name)).id for name in names}) == 1
        async with api.container(names[0], ["sleep", "1000"]), api.container(names[1], ["sleep", "1000"]) as second:
            for name in names:
                assert "is used by process" in crungo("rmi", name, check=125).stderr
            assert (await second.run(["cat", "/hello"])).stdout == b"here"
        async with api.container(names[0], ["sleep", "1000"]):
            with pytest.raises(ImageInUse):
                await api.remove(names[0])
            assert (await api.remove(names[1])).untagged == (names[1],)
        await api.remove(names[0])


async def test_an_image_that_is_removed_before_it_is_held(
    fresh_crungo: Crungo, busybox_reference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another process, after it was looked up: it is pulled again, and nobody mounts what is gone."""
    keep, removals = Store.keep, 0

    def keep_late(self: Store, image: Image, **options: Any) -> Lease:
        nonlocal removals
        if removals:
            removals -= 1
            self.remove(image.digest)
        return keep(self, image, **options)

    monkeypatch.setattr(Store, "keep", keep_late)
    async with engine(fresh_crungo) as api:
        await api.pull(busybox_reference)
        removals = 1
        assert begin(ContainerConfig(image=busybox_reference), api.roots, api.spawner) is None
        removals = 2
        assert (await api.run(busybox_reference, ["echo", "hi"])).stdout == b"hi\n"
        assert removals == 0


async def test_many_at_once_from_two_engines(crungo: Crungo, busybox_reference: str) -> None:
    results: list[bytes | None] = []

    async def one(api: object, number: int) -> None:
        assert hasattr(api, "run")
        done = await api.run(busybox_reference, ["echo", str(number)])
        results.append(done.stdout)

    async with AsyncExitStack() as stack:
        apis = [await stack.enter_async_context(engine(crungo)) for _ in range(2)]
        async with anyio.create_task_group() as group:
            for number in range(30):
                group.start_soon(one, apis[number % 2], number)
    assert sorted(results, key=lambda text: int(text or b"-1")) == [b"%d\n" % number for number in range(30)]


async def test_who_waits_to_be_created_costs_nothing_yet(
    crungo: Crungo, busybox_reference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many are asked for at once, the loop prepares no more of them in a turn than may be made."""
    prepared = 0
    when_running: list[int] = []

    def counting(config: Any) -> Any:
        nonlocal prepared
        prepared += 1
        return stdio.standard_streams(config)

    monkeypatch.setattr(creation, "standard_streams", counting)
    async with engine(crungo, start_limit=2) as api:

        async def one() -> None:
            async with api.container(busybox_reference, ["true"]):
                when_running.append(prepared)

        async with anyio.create_task_group() as group:
            for _ in range(12):
                group.start_soon(one)
    assert len(when_running) == prepared == 12
    assert when_running[0] <= 2


def test_an_engine_on_a_loop_outside_the_main_thread(
    crungo: Crungo, busybox_reference: str, anyio_backend_name: str
) -> None:
    async def work(number: int) -> bytes | None:
        async with engine(crungo) as api:
            return (await api.run(busybox_reference, ["echo", str(number)])).stdout

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(lambda n: anyio.run(work, n, backend=anyio_backend_name), n) for n in range(2)]
        assert [future.result(60) for future in futures] == [b"0\n", b"1\n"]


async def test_without_an_engine(crungo: Crungo, busybox_reference: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import crungo as library

    monkeypatch.setenv("CRUNGO_ROOT", str(crungo.root))
    monkeypatch.setenv("CRUNGO_RUN", str(crungo.run))
    assert (await library.run(busybox_reference, ["echo", "hi"])).stdout == b"hi\n"
    config = library.configure(busybox_reference, ["sh", "-c", "echo $A; cat"], env=["A=1"])
    async with library.container(config, stdin=True) as container:
        assert container.stdin is not None
        await container.stdin.aclose()
        assert [piece.data async for piece in container.output()] == [b"1\n"]
