"""The command lines that people type first, word for word, the image's name aside; without a terminal."""

from __future__ import annotations

import http.server
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.command import Crungo

NAME = "registry.example"


def test_a_simple_command(crungo: Crungo, busybox_reference: str) -> None:
    done = crungo("run", busybox_reference, "echo", "hello", "world", check=0)
    assert (done.stdout, done.stderr) == ("hello world\n", "")


def test_the_first_run_pulls_and_keeps_stdout_clean(fresh_crungo: Crungo, busybox_reference: str) -> None:
    done = fresh_crungo("run", busybox_reference, "echo", "hello", "world", check=0)
    assert done.stdout == "hello world\n"
    assert done.stderr.startswith(f"Unable to find image '{busybox_reference}' locally\n")


def test_a_shell_without_a_terminal(crungo: Crungo, busybox_reference: str) -> None:
    done = crungo("run", "-i", busybox_reference, "/bin/sh", input="echo $((6 * 7))\nexit 5\n", check=5)
    assert (done.stdout, done.stderr) == ("42\n", "")


def test_environment(crungo: Crungo, busybox_reference: str) -> None:
    done = crungo("run", "-e", "DB_HOST=localhost", "-e", "DB_PORT=5432", busybox_reference, "env", check=0)
    assert {"DB_HOST=localhost", "DB_PORT=5432"} <= set(done.stdout.splitlines())


def test_a_read_only_volume(crungo: Crungo, busybox_reference: str) -> None:
    assert crungo.cwd is not None
    data = crungo.cwd / "data"
    data.mkdir(exist_ok=True)
    (data / "table.csv").write_text("1,2\n")
    done = crungo("run", "-v", "./data:/data:ro", busybox_reference, "ls", "-la", "/data", check=0)
    assert [line.split()[-1] for line in done.stdout.splitlines()[1:]] == [".", "..", "table.csv"]


def test_resource_limits(crungo: Crungo, busybox_reference: str) -> None:
    file = "memory.max" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "memory/memory.limit_in_bytes"
    done = crungo("run", "-m", "256m", "--cpus", "0.5", busybox_reference, "cat", f"/sys/fs/cgroup/{file}", check=0)
    assert done.stdout == f"{256 << 20}\n"


def test_a_different_user(crungo: Crungo, busybox_reference: str) -> None:
    done = crungo("run", "-u", "1000:1000", busybox_reference, "id", check=0)
    assert done.stdout == "uid=1000(app) gid=1000(app) groups=1000(app)\n"


def test_another_entrypoint(crungo: Crungo, busybox_reference: str) -> None:
    done = crungo("run", "--entrypoint", "/bin/sh", busybox_reference, "-c", "echo custom command", check=0)
    assert done.stdout == "custom command\n"


def test_debug_output_of_libcrun(crungo: Crungo, busybox_reference: str) -> None:
    done = crungo("run", "--crun-debug", busybox_reference, "echo", "hello", check=0)
    assert done.stdout == "hello\n"
    assert "Running linux container" in done.stderr.splitlines()


@pytest.mark.parametrize("command", [["/nope"], ["-w", "/etc/passwd", "true"]])
def test_debug_output_of_a_failed_create(crungo: Crungo, busybox_reference: str, command: list[str]) -> None:
    options, words = command[:-1], command[-1:]
    done = crungo("run", "--crun-debug", *options, busybox_reference, *words)
    *log, last = done.stderr.splitlines()
    assert done.returncode in (125, 127)
    assert "Running linux container" in log
    assert last.startswith("crungo: ")


def test_debug_output_has_the_words_of_the_init(crungo: Crungo, busybox_reference: str) -> None:
    """A user without an entry in passwd makes libcrun's init, which has another log, say something."""
    done = crungo("run", "--crun-debug", "-u", "1234", busybox_reference, "true", check=0)
    assert "cannot detect HOME environment variable, setting default" in done.stderr.splitlines()


def test_ping_with_the_hosts_network(crungo: Crungo, busybox_reference: str) -> None:
    done = crungo("run", "--net=host", busybox_reference, "ping", "-c", "1", "127.0.0.1", check=0)
    assert "1 packets transmitted, 1 packets received" in done.stdout


def test_a_lookup_with_the_hosts_network(crungo: Crungo, busybox_reference: str) -> None:
    with name_server() as server:
        done = crungo("run", "--net=host", "--dns", server, busybox_reference, "nslookup", NAME, check=0)
    assert f"Server:\t\t{server}\n" in done.stdout
    assert f"Name:\t{NAME}\nAddress: 192.0.2.7\n" in done.stdout


def test_a_download_with_the_hosts_network(crungo: Crungo, busybox_reference: str) -> None:
    with web_server() as address:
        url = f"http://{address}/ip"
        done = crungo("run", "--net=host", busybox_reference, "sh", "-c", f"wget -q -O - {url}", check=0)
    assert done.stdout == '{"origin": "127.0.0.1"}\n'


@contextmanager
def web_server() -> Iterator[str]:
    """A web server on loopback that tells its clients who they are; its host:port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"origin": "%b"}\n' % self.client_address[0].encode()
            self.send_response(200 if self.path == "/ip" else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def name_server() -> Iterator[str]:
    """A name server on an address of loopback that nobody else listens on; it knows one name."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.20.53.1", 53))
        thread = threading.Thread(target=_serve_names, args=(sock,))
        thread.start()
        try:
            yield "127.20.53.1"
        finally:
            sock.sendto(b"", ("127.20.53.1", 53))  # an empty question ends the thread
            thread.join()


def _serve_names(sock: socket.socket) -> None:
    """Answer with one address what asks for one, and with nothing else what asks for something else (RFC 1035)."""
    while True:
        question, client = sock.recvfrom(512)
        if not question:
            return
        end = question.index(b"\0", 12) + 5
        (kind,) = struct.unpack_from(">H", question, end - 4)
        known = question[12 : end - 4] == b"".join(bytes([len(x)]) + x for x in NAME.encode().split(b".")) + b"\0"
        answers = (
            b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 60, 4) + bytes([192, 0, 2, 7]) if kind == 1 and known else b""
        )
        header = question[:2] + struct.pack(">HHHHH", 0x8180 if known else 0x8183, 1, bool(answers), 0, 0)
        sock.sendto(header + question[12:end] + answers, client)
