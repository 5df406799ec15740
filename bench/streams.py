"""How fast bytes go through a command: by its standard input and output, or by its terminal.

The clock runs from the first byte that comes out to the last, so that starting the command is no part of it.
"""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO

from bench.common import environment

__all__ = ["pipe_rate", "terminal_rate"]

PIECE = 1 << 20


def pipe_rate(command: Sequence[str], size: int, env: Mapping[str, str] = {}) -> float:
    """GB/s of ``size`` bytes into the command and out of it again."""
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**environment(), **env}, bufsize=0
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, process.stdin = process.stdin, None  # the writer closes it
        writer = threading.Thread(target=_write, args=(stdin, size))
        writer.start()
        received, seconds = _read(process.stdout.fileno())
        writer.join()
    if received != size or process.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {process.returncode}, {received} bytes of {size}")
    return size / seconds / 1e9


def terminal_rate(command: Sequence[str], size: int, env: Mapping[str, str] = {}) -> float:
    """MB/s of a command that writes at least ``size`` bytes to its terminal; echo and line discipline as usual."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    try:
        with subprocess.Popen(
            ["setsid", "--ctty", "--", *command],
            stdin=slave, stdout=slave, stderr=slave, env={**environment(), **env},
        ) as process:  # fmt: skip
            os.close(slave)
            slave = -1
            received, seconds = _read(master)
    finally:
        os.close(master)
        if slave >= 0:
            os.close(slave)
    if received < size or process.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {process.returncode}, {received} bytes of {size}")
    return received / seconds / 1e6


def _write(file: IO[bytes], size: int) -> None:
    piece = memoryview(bytes(PIECE))
    left = size
    with file:
        while left:
            left -= os.write(file.fileno(), piece[: min(left, PIECE)])


def _read(fd: int) -> tuple[int, float]:
    """Read to the end; the number of bytes, and the seconds from the first of them to the last.

    The end itself comes later: when whoever holds the other side has cleaned up after the command.
    """
    buffer = bytearray(PIECE)
    received, begun, last = 0, 0.0, 0.0
    while True:
        try:
            count = os.readv(fd, [buffer])
        except OSError:  # a terminal whose other side is closed
            count = 0
        if not count:
            return received, last - begun
        last = time.monotonic()
        if not received:
            begun = last
        received += count
