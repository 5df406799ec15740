"""Messages between an engine and its spawner, and between the spawner and its children.

A message is one packet on a ``SOCK_SEQPACKET`` socket: a dict of str, int, float, bytes, bool, None, and lists and
dicts of them, with any number of descriptors beside it (``SCM_RIGHTS``, unix(7)). Packets keep their boundaries, so
there is no framing, and a send is atomic, so that threads need no lock.

``marshal`` encodes them. Both ends are the same interpreter and trust each other; it is built in, where ``json`` would
add six milliseconds to the start of every spawner; and it carries bytes. Nothing from outside is ever unmarshalled.

A message too large for a packet travels in a memfd(2), passed as the first descriptor.

One kind of process is not trusted: the one that reads an archive from outside, which the archive might take over. It
sends text, a packet of lines ``name value`` with numbers and quoted text as values. Invariant: what ``decode_text``
returns has exactly one encoding, the one that it was given, and nothing in it but names, numbers and characters.
"""

from __future__ import annotations

import _socket
import errno
import marshal
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    Message = dict[str, Any]
    Text = dict[str, int | str]

__all__ = [
    "MAX_FDS",
    "TEXT_LIMIT",
    "decode_text",
    "encode_text",
    "pair",
    "recv",
    "recv_packet",
    "recv_text",
    "rights",
    "send",
    "send_packet",
    "send_text",
]

INLINE_LIMIT = 64 * 1024
"""Larger messages go through a memfd: well below the kernel's default socket buffer of 208 KiB."""

TEXT_LIMIT = 16 * 1024
"""Bytes of a message of text; its numbers have 64 bits."""

MAX_FDS = 16
_BY_MEMFD = b"\0"
_INLINE = b"\1"


def pair() -> tuple[_socket.socket, _socket.socket]:
    """Two connected message sockets, close-on-exec."""
    return _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)


def send(sock: _socket.socket, message: Message, fds: Sequence[int] = (), flags: int = 0) -> bool:
    """Send one message; False when the other side is gone.

    Blocks while the socket's buffer is full, unless ``flags`` (send(2)) say otherwise.
    """
    body = marshal.dumps(message)
    if len(body) <= INLINE_LIMIT:
        return send_packet(sock, _INLINE + body, fds, flags)
    memfd = os.memfd_create("crungo-message", os.MFD_CLOEXEC)
    try:
        view = memoryview(body)
        while view:
            view = view[os.write(memfd, view) :]
        return send_packet(sock, _BY_MEMFD, [memfd, *fds], flags)
    finally:
        os.close(memfd)


def recv(sock: _socket.socket) -> tuple[Message | None, list[int]]:
    """Receive one message and its descriptors (close-on-exec, owned by the caller); ``(None, [])`` at the end."""
    data, fds = recv_packet(sock)
    if not data:
        return None, []
    try:
        body = _read_all(fds.pop(0)) if data[:1] == _BY_MEMFD else data[1:]
        message: Message = marshal.loads(body)  # noqa: S302 - from our own process; see above
        taken, fds = fds, []
        return message, taken
    finally:
        for fd in fds:
            os.close(fd)


def recv_packet(sock: _socket.socket) -> tuple[bytes, list[int]]:
    """Receive one packet of any form and its descriptors, as ``recv`` does; ``(b"", [])`` at the end."""
    while True:
        try:
            data, ancillary, flags, _ = sock.recvmsg(
                INLINE_LIMIT + 1, _socket.CMSG_SPACE(4 * (MAX_FDS + 1)), _socket.MSG_CMSG_CLOEXEC
            )
            break
        except ConnectionResetError:
            # The other side closed with something of ours unread. That is said once, and before its last words.
            continue
    fds: list[int] = []
    for level, kind, content in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            fds += [
                int.from_bytes(content[at : at + 4], sys.byteorder)
                for at in range(0, len(content) - len(content) % 4, 4)
            ]
    if data and not flags & (_socket.MSG_TRUNC | _socket.MSG_CTRUNC):
        return data, fds
    for fd in fds:
        os.close(fd)
    if flags & _socket.MSG_CTRUNC:  # there is room for all that the other side ever sends
        raise OSError(errno.EMFILE, "descriptors cut off: too many open files")
    if data:
        raise OSError(errno.EMSGSIZE, "message cut off")
    return b"", []


def send_text(sock: _socket.socket, message: Text) -> bool:
    """Send a message of text; False when the other side is gone, or does not read what was sent before."""
    try:
        return send_packet(sock, encode_text(message), (), _socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False


def recv_text(sock: _socket.socket) -> Text | None:
    """Receive one message of text; None at the end. Descriptors that come with it are dropped by the kernel.

    Raises:
        ValueError: it is malformed.
    """
    while True:
        try:
            data = sock.recv(TEXT_LIMIT + 1)
            break
        except ConnectionResetError:  # as in `recv`
            continue
    return decode_text(data) if data else None


def encode_text(message: Text) -> bytes:
    """The lines of a message, in its order. Whatever is not printable ASCII is written as ``\\u`` and six hex digits.

    Raises:
        ValueError: a name is not of 1 to 32 lower-case letters and underscores, a number does not fit 64 bits, a text
            holds a surrogate, or all together is longer than ``TEXT_LIMIT`` bytes.
    """
    lines = []
    for name, value in message.items():
        if not (0 < len(name) <= 32 and all("a" <= c <= "z" or c == "_" for c in name)):
            raise ValueError("text message: bad name")
        if isinstance(value, str):
            lines.append(f'{name} "{"".join(map(_escape, value))}"\n')
        elif -(1 << 63) <= value < 1 << 63:
            lines.append(f"{name} {int(value)}\n")
        else:
            raise ValueError("text message: a number does not fit 64 bits")
    data = "".join(lines).encode("ascii")
    if len(data) > TEXT_LIMIT:
        raise ValueError(f"text message: longer than {TEXT_LIMIT} bytes")
    return data


def decode_text(data: bytes) -> Text:
    """The message of ``encode_text``.

    Raises:
        ValueError: it is anything that ``encode_text`` does not write.
    """
    if len(data) > TEXT_LIMIT:
        raise ValueError(f"text message: longer than {TEXT_LIMIT} bytes")
    message: Text = {}
    for line in data.decode("ascii").split("\n")[:-1]:
        name, _, value = line.partition(" ")
        message[name] = _unescape(value[1:-1]) if value.startswith('"') else int(value[:20])
    # What was read loosely above is held against the only right way to write it.
    if encode_text(message) != data:
        raise ValueError("text message: malformed")
    return message


def _escape(character: str) -> str:
    if " " <= character <= "~" and character not in '"\\':
        return character
    if "\ud800" <= character <= "\udfff":
        raise ValueError("text message: holds a surrogate")
    return f"\\u{ord(character):06x}"


def _unescape(text: str) -> str:
    first, *rest = text.split("\\")
    return first + "".join(chr(int(part[1:7], 16)) + part[7:] for part in rest)


def send_packet(sock: _socket.socket, data: bytes, fds: Sequence[int] = (), flags: int = 0) -> bool:
    """Send one packet of any form; False when the other side is gone."""
    try:
        sock.sendmsg([data], rights(fds), _socket.MSG_NOSIGNAL | flags)
    except (BrokenPipeError, ConnectionResetError):
        return False
    return True


def rights(fds: Sequence[int]) -> list[tuple[int, int, bytes]]:
    """Descriptors as sendmsg(2) takes them beside its data (``SCM_RIGHTS``)."""
    packed = b"".join(fd.to_bytes(4, sys.byteorder) for fd in fds)
    return [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, packed)] if fds else []


def _read_all(memfd: int) -> bytes:
    try:
        size = os.fstat(memfd).st_size
        parts = []
        at = 0
        while at < size:
            part = os.pread(memfd, size - at, at)
            if not part:
                break
            parts.append(part)
            at += len(part)
        return b"".join(parts)
    finally:
        os.close(memfd)
