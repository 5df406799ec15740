"""Tar archives byte by byte: good ones, odd ones, and ones that no honest tool writes.

``Entry`` says what a header holds, ``archive`` puts entries one after the other. Nothing is checked or cleaned.
Formats: ustar (POSIX.1-1988), pax (POSIX.1-2001), and GNU's long names, big numbers and sparse files (tar(5)).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

BLOCK = 512
END = b"\0" * (2 * BLOCK)

FILE, HARD_LINK, SYMLINK, CHAR, BLOCK_DEVICE, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry. ``pax`` are records of a pax header before it; ``size`` overrides the content's length."""

    name: bytes
    type: bytes = FILE
    content: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = 1_000_000_000
    link: bytes = b""
    device: tuple[int, int] = (0, 0)
    size: int | None = None
    pax: Mapping[bytes, bytes] | Iterable[tuple[bytes, bytes]] = field(default_factory=dict)
    magic: bytes = b"ustar\x0000"
    extra: bytes = b""  # from byte 345 on: ustar's prefix, or GNU's own fields

    def raw(self) -> bytes:
        """The entry as it stands in an archive."""
        before = b""
        records = self.pax.items() if isinstance(self.pax, Mapping) else self.pax
        name, link = self.name, self.link
        pax = [*records]
        if self.magic.startswith(b"ustar\0"):
            pax += [(b"path", name)] if len(name) > 100 else []
            pax += [(b"linkpath", link)] if len(link) > 100 else []
        else:
            before += _gnu_long(b"L", name) if len(name) > 100 else b""
            before += _gnu_long(b"K", link) if len(link) > 100 else b""
        if pax:
            before = pax_header(pax)
        return before + self.header() + padded(self.content)

    def header(self) -> bytes:
        """The header block alone."""
        size = len(self.content) if self.size is None else self.size
        fields = b"".join(
            [
                self.name[:100].ljust(100, b"\0"),
                number(self.mode, 8),
                number(self.uid, 8),
                number(self.gid, 8),
                number(size, 12),
                number(self.mtime, 12),
                b" " * 8,
                self.type,
                self.link[:100].ljust(100, b"\0"),
                self.magic.ljust(8, b"\0"),
                b"\0" * 64,
                number(self.device[0], 8),
                number(self.device[1], 8),
                self.extra,
            ]
        ).ljust(BLOCK, b"\0")
        return fields[:148] + b"%06o\0 " % sum(fields) + fields[156:]


def directory(name: bytes, mode: int = 0o755, **rest: int) -> Entry:
    return replace(Entry(name=name, type=DIRECTORY, mode=mode), **rest)  # type: ignore[arg-type]


def symlink(name: bytes, target: bytes) -> Entry:
    return Entry(name=name, type=SYMLINK, link=target, mode=0o777)


def hard_link(name: bytes, target: bytes) -> Entry:
    return Entry(name=name, type=HARD_LINK, link=target)


def archive(*entries: Entry, end: bytes = END) -> bytes:
    """The entries and the mark of the archive's end."""
    return b"".join(entry.raw() for entry in entries) + end


def padded(content: bytes) -> bytes:
    return content + b"\0" * (-len(content) % BLOCK)


def number(value: int, width: int) -> bytes:
    """Octal where it fits, else GNU's base 256 (negative numbers, too)."""
    if 0 <= value < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, value)
    raw = (value % (1 << 8 * width)).to_bytes(width, "big")
    return bytes([raw[0] | 0x80]) + raw[1:]


def pax_record(key: bytes, value: bytes) -> bytes:
    """``length key=value``: the length counts itself."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def pax_header(records: Iterable[tuple[bytes, bytes]], type_: bytes = b"x") -> bytes:
    body = b"".join(pax_record(key, value) for key, value in records)
    return Entry(name=b"PaxHeaders/entry", type=type_, content=body).header() + padded(body)


def _gnu_long(kind: bytes, text: bytes) -> bytes:
    header = Entry(name=b"././@LongLink", type=kind, content=text + b"\0", magic=b"ustar  \0", mtime=0)
    return header.header() + padded(text + b"\0")


def gnu_sparse(name: bytes, size: int, blocks: Iterable[tuple[int, bytes]]) -> Entry:
    """GNU's old sparse format, up to four blocks: (offset, data)."""
    parts = list(blocks)
    table = b"".join(number(at, 12) + number(len(data), 12) for at, data in parts).ljust(96, b"\0")
    return Entry(
        name=name,
        type=b"S",
        magic=b"ustar  \0",
        content=b"".join(data for _, data in parts),
        extra=b"\0" * 41 + table + b"\0" + number(size, 12),
    )


def pax_sparse(name: bytes, size: int, blocks: Iterable[tuple[int, bytes]], version: str) -> Entry:
    """GNU's pax sparse formats 0.0, 0.1 and 1.0."""
    parts = list(blocks)
    data = b"".join(data for _, data in parts)
    pairs = [(at, len(data)) for at, data in parts]
    entry = Entry(name=b"GNUSparseFile.0/entry", content=data)
    if version == "0.0":
        records = [(b"GNU.sparse.size", b"%d" % size), (b"GNU.sparse.numblocks", b"%d" % len(pairs))]
        for at, length in pairs:
            records += [(b"GNU.sparse.offset", b"%d" % at), (b"GNU.sparse.numbytes", b"%d" % length)]
        return replace(entry, name=name, pax=records)
    if version == "0.1":
        listed = b",".join(b"%d,%d" % pair for pair in pairs)
        records = [
            (b"GNU.sparse.size", b"%d" % size),
            (b"GNU.sparse.numblocks", b"%d" % len(pairs)),
            (b"GNU.sparse.map", listed),
            (b"GNU.sparse.name", name),
        ]
        return replace(entry, pax=records)
    table = padded(b"%d\n" % len(pairs) + b"".join(b"%d\n%d\n" % pair for pair in pairs))
    records = [
        (b"GNU.sparse.major", b"1"),
        (b"GNU.sparse.minor", b"0"),
        (b"GNU.sparse.name", name),
        (b"GNU.sparse.realsize", b"%d" % size),
    ]
    return replace(entry, pax=records, content=table + data)
