"""Children that unpack are watched, or they are none."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from contextlib import closing

import pytest

from crungo.runtime import unpackserver, wire
from crungo.runtime.spawner import Spawner
from crungo.runtime.unpackserver import UnpackServer

LOSES_ITS_ANSWER = """
import os, signal, socket
orders = socket.socket(fileno=0)
orders.recv(100)
if os.fork() == 0:
    orders.close()
    signal.pause()
"""


def test_the_server_is_killed_before_it_has_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its child, whose process id it has not told, would write beside the one of another try."""
    ours, theirs = wire.pair()
    command = [sys.executable, "-c", LOSES_ITS_ANSWER]
    with subprocess.Popen(command, stdin=theirs.fileno(), stdout=subprocess.PIPE, start_new_session=True) as process:
        theirs.close()
        monkeypatch.setattr(unpackserver, "start_server", lambda *_arguments, **_options: (ours, process.pid))
        with closing(UnpackServer()) as server:
            with pytest.raises(OSError, match="killed") as caught:
                server.order([0, 0, 0], limit=1, size=1)
            assert not isinstance(caught.value, BrokenPipeError), "which would be tried again"
        assert process.stdout is not None
        assert process.stdout.read() == b"", "and nobody holds it open any more"


def test_a_child_that_cannot_be_watched_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_pid: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "pidfd_open", full)
    process = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    with process, pytest.raises(OSError, match="Too many open files"):
        Spawner.__new__(Spawner).adopt(process.pid, lambda _code: None)
    with pytest.raises(ChildProcessError):
        os.waitpid(process.pid, 0)
