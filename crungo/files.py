"""Files of a running container, in and out: the asynchronous side of ``runtime.tree`` and ``runtime.archive``.

All work is done in worker threads, in steps of bounded size; streams go through pipes, whose closing ends the thread at
the other end. Invariant: cancelling leaves no thread, no descriptor and no temporary file.
"""

from __future__ import annotations

import os
import stat
import tarfile
import zlib
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from lzma import LZMAError
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple, Unpack

import anyio
from anyio import to_thread
from anyio.abc import ByteReceiveStream
from anyio.lowlevel import checkpoint

from crungo.errors import FileError, HostError, NotRunning, UsageError
from crungo.fields import text_of
from crungo.io.fds import Fd, pipe, widen
from crungo.io.streams import FdReceiveStream, FdSendStream
from crungo.openfiles import naming_the_limit
from crungo.registry.groups import single_failure
from crungo.runtime.archive import pack, unpack
from crungo.runtime.tree import NewFile, Tree

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator

    from crungo.process import Process

__all__ = ["Files"]

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")
STEP = 8 << 20
"""Bytes copied by one call in a worker thread: cancelling takes effect between two."""


class Files:
    """The files of the container whose first process is ``process``."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def put(
        self,
        path: str | os.PathLike[str],
        data: bytes | os.PathLike[str] | AsyncIterable[bytes],
        *,
        mode: int | None,
        owner: tuple[int, int] | None,
    ) -> None:
        """See :meth:`crungo.Container.put`."""
        if isinstance(data, str):
            raise UsageError("put: bytes, a pathlib.Path or a stream of bytes is expected, not a text")
        path = text_of(path, "path")
        what = f"put {path}"
        with self._tree(what) as tree:
            if isinstance(data, os.PathLike):
                await _put_local(tree, path, os.fspath(data), mode=mode, owner=owner)
                return
            async with _new_file(what, tree, path) as new:
                if isinstance(data, (bytes, bytearray, memoryview)):
                    await _call(what, new.write, data)
                else:
                    async for chunk in data:
                        await _call(what, new.write, chunk)
                await _call(what, new.finish, mode, owner)

    async def get(self, path: str | os.PathLike[str], limit: int) -> bytes:
        """See :meth:`crungo.Container.get`."""
        path = text_of(path, "path")
        what = f"get {path}"
        with self._tree(what) as tree:
            return await _call(what, _read, tree, path, limit)

    async def put_archive(
        self, path: str | os.PathLike[str], data: bytes | AsyncIterable[bytes], *, owner: tuple[int, int] | None
    ) -> None:
        """See :meth:`crungo.Container.put_archive`."""
        if isinstance(data, (str, os.PathLike)):
            raise UsageError(f"put archive: bytes or a stream of bytes is expected, not {data!r:.100}")
        path = text_of(path, "path")
        what = f"put archive {path}"
        stream = _pieces(data) if isinstance(data, (bytes, bytearray, memoryview)) else data
        with self._tree(what) as tree:
            await _consume(what, stream, partial(_unpack, tree, path, owner))

    @asynccontextmanager
    async def get_archive(self, path: str | os.PathLike[str]) -> AsyncIterator[ByteReceiveStream]:
        """See :meth:`crungo.Container.get_archive`."""
        path = text_of(path, "path")
        what = f"get archive {path}"
        with self._tree(what) as tree:
            os.close(await _call(what, tree.locate, path))  # what is not there is said before the block begins
            async with _produce(what, partial(_pack, tree, path)) as stream:
                yield stream

    @contextmanager
    def _tree(self, what: str) -> Iterator[Tree]:
        """The container's root, as its first process sees it."""
        process = self._process
        try:
            with naming_the_limit(what):
                tree = Tree.at(f"/proc/{process.pid}/root")
        except OSError:
            raise NotRunning(f"{what}: the container has ended") from None
        try:
            try:
                process.send_signal(0)  # alive after the opening: the pid was still its own
            except NotRunning:
                raise NotRunning(f"{what}: the container has ended") from None
            yield tree
        finally:
            tree.close()


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def _put_local(tree: Tree, path: str, local: str, *, mode: int | None, owner: tuple[int, int] | None) -> None:
    what = f"put {path}"
    source = await _call(f"read {local}", _open_local, local)
    try:
        status = os.fstat(source)
        if stat.S_ISDIR(status.st_mode):
            async with _produce(f"read {local}", partial(_pack_local, source)) as stream:
                await _consume(what, stream, partial(_unpack, tree, path, owner))
            return
        async with _new_file(what, tree, path) as new:
            while await _call(what, os.sendfile, new.fd, source, None, STEP):
                pass
            mode = stat.S_IMODE(status.st_mode) if mode is None else mode
            await _call(what, new.finish, mode, (status.st_uid, status.st_gid) if owner is None else owner)
    finally:
        os.close(source)


async def _call(what: str, function: Callable[[Unpack[Arguments]], T], *arguments: *Arguments) -> T:
    """Call in a worker thread; what the system or an archive refuses becomes a FileError, want of descriptors a
    HostError."""
    try:
        with naming_the_limit(what):
            return await to_thread.run_sync(function, *arguments)
    except OSError as problem:
        reason = (problem.strerror or str(problem) or type(problem).__name__).lower()
        raise FileError(f"{what}: {reason}", errno=problem.errno or 0) from problem
    except (tarfile.TarError, EOFError, zlib.error, LZMAError, ValueError, OverflowError) as problem:
        raise FileError(f"{what}: malformed archive: {str(problem) or type(problem).__name__:.200}") from problem


@asynccontextmanager
async def _new_file(what: str, tree: Tree, path: str) -> AsyncIterator[NewFile]:
    new = await _call(what, NewFile, tree, path)
    try:
        yield new
    finally:
        new.close()


def _wide_pipe(what: str) -> tuple[Fd, Fd]:
    with naming_the_limit(what):
        reader, writer = pipe()
    widen(writer.fileno(), STEP)
    return reader, writer


@asynccontextmanager
async def _produce(what: str, work: Callable[[int], None]) -> AsyncIterator[ByteReceiveStream]:
    """What ``work`` writes to the descriptor that it is given, in a worker thread, as a stream."""
    reader, writer = _wide_pipe(what)
    stream = _Produced(FdReceiveStream(reader))

    async def run() -> None:
        try:
            await _call(what, work, writer.fileno())
        except (FileError, HostError) as problem:
            stream.problem = problem
        finally:
            writer.close()
            stream.done.set()

    with single_failure():
        async with anyio.create_task_group() as group:
            group.start_soon(run)
            try:
                yield stream
            finally:
                stream.close()  # a thread that still writes gets EPIPE


async def _consume(what: str, stream: AsyncIterable[bytes], work: Callable[[int], None]) -> None:
    """Let ``work`` read a stream, in a worker thread, from the descriptor that it is given."""
    reader, writer = _wide_pipe(what)
    sink = FdSendStream(writer)

    async def feed() -> None:
        try:
            async for chunk in stream:
                await sink.send(chunk)
        except anyio.BrokenResourceError:
            pass  # the archive ends, or is refused, before the stream ends
        finally:
            sink.close()

    with single_failure():
        async with anyio.create_task_group() as group:
            group.start_soon(feed)
            try:
                await _call(what, work, reader.fileno())
            except (FileError, HostError):
                await checkpoint()  # cancelled, or the stream has failed: then that is the reason, and raised here
                raise
            finally:
                reader.close()
            group.cancel_scope.cancel()  # what comes behind the archive is nobody's


class _Produced(ByteReceiveStream):
    """The read end of a pipe that knows whether its writer has failed."""

    def __init__(self, stream: FdReceiveStream) -> None:
        self._stream = stream
        self.done = anyio.Event()
        self.problem: FileError | HostError | None = None

    async def receive(self, max_bytes: int = 65536) -> bytes:
        try:
            return await self._stream.receive(max_bytes)
        except anyio.EndOfStream:
            await self.done.wait()
            if self.problem is None:
                raise
            raise self.problem from None

    async def aclose(self) -> None:
        await self._stream.aclose()

    def close(self) -> None:
        self._stream.close()


def _read(tree: Tree, path: str, limit: int) -> bytes:
    with open(tree.open_file(path), "rb", buffering=0) as file:
        parts, left = [], limit + 1
        while left > 0 and (data := file.read(min(left, STEP))):
            parts.append(data)
            left -= len(data)
    if left <= 0:
        raise FileError(f"get {path}: larger than {limit} bytes", hint="get_archive has no limit")
    return b"".join(parts)


def _open_local(path: str) -> int:
    """A regular file or directory of ours; O_NONBLOCK, because a FIFO would wait for its writer."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    if stat.S_IFMT(os.fstat(fd).st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
        os.close(fd)
        raise FileError(f"read {path}: neither a file nor a directory")
    return fd


def _unpack(tree: Tree, path: str, owner: tuple[int, int] | None, source: int) -> None:
    with open(source, "rb", buffering=STEP, closefd=False) as file:
        unpack(tree, path, file, owner=owner)


def _pack(tree: Tree, path: str, target: int) -> None:
    with open(target, "wb", closefd=False) as file:
        pack(tree, path, file)


def _pack_local(source: int, target: int) -> None:
    with open(target, "wb", closefd=False) as file:
        pack(Tree(source), ".", file, prefix=".")
