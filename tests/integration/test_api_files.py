"""Files of running containers, whose processes do what they can against it; on asyncio and trio."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path, PurePosixPath

import anyio
import pytest
from anyio.lowlevel import checkpoint

import crungo
from crungo.errors import FileError, HostError, NotRunning, UsageError
from tests.support.api import engine
from tests.support.command import Crungo
from tests.support.openfiles import descriptors_left
from tests.support.tarballs import Entry, archive

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def sleeping(command: Crungo, image: str) -> AsyncIterator[crungo.Container]:
    async with engine(command) as api, api.container(image, ["sleep", "1000"]) as container:
        yield container


async def shell(container: crungo.Container, script: str) -> bytes:
    result = await container.run(["sh", "-c", script], check=True)
    assert result.stdout is not None
    return result.stdout


async def chunks(data: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def test_bytes_files_and_streams(crungo: Crungo, busybox_reference: str, tmp_path: Path) -> None:
    large = os.urandom(3_000_000)
    local = tmp_path / "local"
    local.write_bytes(large)
    local.chmod(0o750)
    async with sleeping(crungo, busybox_reference) as container:
        await container.put("/srv/new/bytes", b"content")
        await container.put("/srv/owned", b"x", mode=0o4640, owner=(1000, 50))
        await container.put("/srv/file", local)
        await container.put("/srv/stream", chunks(large))
        listed = await shell(
            container, "cd /srv; cat new/bytes; echo; stat -c '%a %u:%g %n' owned file stream new/bytes"
        )
        assert listed.decode().split("\n") == [
            "content", "4640 1000:50 owned", "750 0:0 file", "644 0:0 stream", "644 0:0 new/bytes", "",
        ]  # fmt: skip
        assert await container.get("/srv/file") == await container.get("srv/../srv/stream") == large
        assert await container.get("/etc/hostname") == container.id[:12].encode() + b"\n"
        assert b"sleep" in await container.get("/proc/1/cmdline")


async def test_a_path_inside_may_be_a_path_and_an_archive_bytes(crungo: Crungo, busybox_reference: str) -> None:
    async with sleeping(crungo, busybox_reference) as container:
        place = PurePosixPath("/srv/of/ours")
        await container.put(place / "file", b"one")
        assert await container.get(place / "file") == b"one"
        async with container.get_archive(place) as stream:
            archive = b"".join([chunk async for chunk in stream])
        await container.put_archive(PurePosixPath("/copy"), archive)
        assert await container.get("/copy/ours/file") == b"one"


async def test_a_mounted_file_is_overwritten_in_place(crungo: Crungo, busybox_reference: str) -> None:
    async with sleeping(crungo, busybox_reference) as container:
        await container.put("/etc/hosts", b"127.0.0.1 changed\n")
        assert await shell(container, "cat /etc/hosts") == b"127.0.0.1 changed\n"


async def test_directories(crungo: Crungo, busybox_reference: str, tmp_path: Path) -> None:
    local = tmp_path / "tree"
    (local / "deep").mkdir(parents=True)
    (local / "deep" / "file").write_bytes(b"x" * 200_000)
    (local / "link").symlink_to("deep/file")
    async with sleeping(crungo, busybox_reference) as container:
        await container.put("/srv/tree", local, owner=(5, 6))
        assert await shell(container, "cd /srv/tree; wc -c <link; stat -c %u:%g deep/file") == b"200000\n5:6\n"
        async with container.get_archive("/srv/tree") as stream:
            data = b"".join([piece async for piece in stream])
        with tarfile.open(fileobj=io.BytesIO(data)) as listed:
            assert sorted(listed.getnames()) == ["tree", "tree/deep", "tree/deep/file", "tree/link"]
        await container.put_archive("/srv/again", chunks(data))
        assert (
            await shell(container, "cmp /srv/tree/link /srv/again/tree/link && cat /srv/again/tree/link | wc -c")
            == b"200000\n"
        )
        async with container.get_archive("/") as stream:
            names = tarfile.open(fileobj=io.BytesIO(b"".join([piece async for piece in stream]))).getnames()  # noqa: SIM115
        assert "./etc/passwd" in names
        assert not [name for name in names if name.startswith(("./proc/", "./sys/", "./dev/"))]


async def test_a_container_cannot_mislead(crungo: Crungo, busybox_reference: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    script = f"""mkdir -p /srv/a/b; cd /srv; mkfifo fifo; ln -s loop loop; ln -s / root; ln -s /etc/passwd passwd
        ln -s {secret} absolute; ln -s ../../../../../../..{secret} relative; ln -s /proc/1/root{secret} magic"""
    async with sleeping(crungo, busybox_reference) as container:
        await shell(container, script)
        for path in ("absolute", "relative", "magic", "fifo", "loop", "missing", "a", f"root{secret}"):
            with pytest.raises(FileError), anyio.fail_after(5):
                await container.get(f"/srv/{path}")
        await container.put("/srv/absolute", b"inside")
        await container.put("/srv/passwd", b"inside")
        await container.put("/srv/fifo", b"inside")
        await container.put(f"/srv/root{tmp_path}/secret", b"inside")
        assert secret.read_text() == "of the host"
        assert (await container.get("/etc/passwd")).startswith(b"root:")
        for path in ("/srv/loop/x", "/", "/srv/a", "/srv/absolute/x", "/srv/x\0y"):
            with pytest.raises(FileError):
                await container.put(path, b"x")
        hostile = archive(Entry(name=b"../../outside", content=b"x"))
        with pytest.raises(FileError, match="archive"):
            await container.put_archive("/srv/a", chunks(hostile))


async def test_a_container_that_exchanges_directories_for_links(
    crungo: Crungo, busybox_reference: str, tmp_path: Path
) -> None:
    """The classic race: a path component turns from a directory into a link to the host's while it is used."""
    target = tmp_path / "target"
    target.mkdir()
    script = f"mkdir -p /srv/x; cd /srv; while :; do mv x y; ln -s {target} x; rm x; mv y x; done"
    async with sleeping(crungo, busybox_reference) as container, container.exec(["sh", "-c", script]):
        for number in range(1000):
            try:
                await container.put("/srv/x/planted", b"x" * number)
                await container.get("/srv/x/planted")
            except FileError:
                continue
        assert not os.listdir(target)


async def test_limits_and_wrong_arguments(crungo: Crungo, busybox_reference: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    async with sleeping(crungo, busybox_reference) as container:
        with pytest.raises(FileError, match="larger than 1000 bytes"):
            await container.get("/bin/busybox", limit=1000)
        with pytest.raises(FileError, match="larger"):
            await container.get("/dev/../bin/busybox", limit=0)
        with pytest.raises(UsageError):
            await container.put("/x", "text")  # type: ignore[arg-type]
        for wrong_archive in ("text", tmp_path):
            with pytest.raises(UsageError, match=r"^put archive: bytes or a stream of bytes is expected, not "):
                await container.put_archive("/x", wrong_archive)  # type: ignore[arg-type]
        for wrong_path in (5, b"/x"):
            with pytest.raises(UsageError, match=r"^path: a text is expected, not "):
                await container.get(wrong_path)  # type: ignore[arg-type]
        for wrong in (tmp_path / "missing", tmp_path / "fifo"):
            with pytest.raises(FileError, match="read"), anyio.fail_after(5):
                await container.put("/x", wrong)
        with pytest.raises(FileError, match="malformed archive"):
            await container.put_archive("/x", chunks(b"no archive at all" * 100))
        container.kill()
        await container.wait()
        for call in (lambda: container.put("/x", b""), lambda: container.get("/x")):
            with pytest.raises(NotRunning):
                await call()


async def test_a_failing_stream_is_the_error_and_leaves_nothing(crungo: Crungo, busybox_reference: str) -> None:
    async def failing(data: bytes) -> AsyncIterator[bytes]:
        yield data
        raise ValueError("of the caller")

    whole = archive(Entry(name=b"file", content=b"x" * 1_000_000), end=b"")
    async with sleeping(crungo, busybox_reference) as container:
        with pytest.raises(ValueError, match="of the caller"):
            await container.put("/srv/file", failing(b"x"))
        with pytest.raises(ValueError, match="of the caller"):
            await container.put_archive("/srv", failing(whole[:100_000]))
        assert await shell(container, "ls -A /srv") == b""


async def test_cancelling_leaves_nothing(crungo: Crungo, busybox_reference: str) -> None:
    async def endless() -> AsyncGenerator[bytes, None]:
        yield archive(Entry(name=b"big", size=1 << 40), end=b"")
        while True:
            yield b"x" * 65536
            await checkpoint()

    async def silent() -> AsyncGenerator[bytes, None]:
        yield b"x"
        await anyio.sleep_forever()

    async with sleeping(crungo, busybox_reference) as container:
        with anyio.move_on_after(0.2) as scope:
            async with aclosing(silent()) as content:
                await container.put("/srv/x", content)
        assert scope.cancelled_caught
        for source in (endless, silent):
            with anyio.move_on_after(0.2) as scope:
                async with aclosing(source()) as content:
                    await container.put_archive("/srv", content)
            assert scope.cancelled_caught
        await shell(container, "head -c 100000000 /dev/zero >/zero")
        with anyio.move_on_after(0.2) as scope:
            async with container.get_archive("/zero") as stream:
                await stream.receive(10)
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        async with container.get_archive("/zero") as stream:
            await stream.receive(10)  # and leave: the thread that still writes ends
        assert await shell(container, "ls -A /srv") == b""


async def test_a_missing_path_is_said_before_the_block(crungo: Crungo, busybox_reference: str) -> None:
    async with sleeping(crungo, busybox_reference) as container:
        with pytest.raises(FileError) as caught:
            async with container.get_archive("/nowhere"):
                raise AssertionError("entered")
        assert str(caught.value) == "get archive /nowhere: no such file or directory"
        assert caught.value.errno == 2


async def test_special_files_travel_as_what_they_are(crungo: Crungo, busybox_reference: str) -> None:
    async with sleeping(crungo, busybox_reference) as container:
        await shell(container, "mkdir /d; mkfifo /d/fifo; ln -s nowhere /d/dangling; : >/d/empty")
        async with container.get_archive("/d") as stream:
            data = b"".join([piece async for piece in stream])
        await container.put_archive("/e", chunks(data))
        listed = await shell(container, "cd /e/d; stat -c '%F %n' *; readlink dangling")
        assert listed == b"symbolic link dangling\nregular empty file empty\nfifo fifo\nnowhere\n"


async def put_and_get(container: crungo.Container, local: Path) -> object:
    await container.put("/srv/new", b"content")
    return await container.get("/srv/new")


async def copy(container: crungo.Container, local: Path) -> object:
    await container.put("/srv", local)
    return None


async def unpack(container: crungo.Container, local: Path) -> object:
    await container.put_archive("/srv", chunks(archive(Entry(name=b"below/file", content=b"content"))))
    return None


async def pack(container: crungo.Container, local: Path) -> object:
    async with container.get_archive("/etc") as stream:
        return len(b"".join([part async for part in stream]))


async def pause(container: crungo.Container, local: Path) -> object:
    await container.pause()
    await container.resume()
    return None


async def stats(container: crungo.Container, local: Path) -> object:
    return (await anext(aiter(container.stats()))).pids


@pytest.mark.parametrize("work", [put_and_get, copy, unpack, pack, pause, stats])
async def test_too_few_descriptors_are_one_clear_error(
    crungo: Crungo,
    busybox_reference: str,
    tmp_path: Path,
    work: Callable[[crungo.Container, Path], Awaitable[object]],
) -> None:
    """Whichever descriptor is the one too many: nothing half-made stays, and with enough of them all works."""
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "file").write_bytes(b"x")
    async with sleeping(crungo, busybox_reference) as container:
        expected = await work(container, tmp_path)  # and the threads and modules that it takes
        before = len(os.listdir("/proc/self/fd"))
        for count in range(20):
            problem = None
            with descriptors_left(count):
                try:
                    found = await work(container, tmp_path)
                except HostError as error:
                    problem = error
            assert len(os.listdir("/proc/self/fd")) == before
            if problem is None:
                break
            assert "as many files open as it may" in problem.message
        assert count > 0
        assert found == expected
        assert b".crungo-" not in await shell(container, "ls -a /srv /srv/below 2>&1 || true")


async def test_input_that_is_a_text_is_refused_before_anything_is_made(crungo: Crungo) -> None:
    async with engine(crungo) as api:
        with pytest.raises(UsageError, match=r"^input: bytes are expected, not a text; its encode\(\) makes them$"):
            await api.run("registry.invalid/nothing", ["cat"], input="text")  # type: ignore[arg-type]
