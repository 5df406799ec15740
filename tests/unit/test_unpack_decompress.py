"""The blob becomes the tar stream: every compression, every damage, in bounded pieces."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import os
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.native import compiled, isal

PIECE = 64 << 10
WINDOW_LOG = 25


class Refused(Exception):
    """Why a blob is no layer's."""


_program: subprocess.Popen[bytes]


@pytest.fixture(scope="module", autouse=True)
def _decompressor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The C file under the sanitizers, in a process that serves all tests."""
    global _program  # hypothesis' functions take no fixtures
    options = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", *isal(), "-lzstd"]
    path = compiled("decompress", ["decompress"], tmp_path_factory.mktemp("decompress"), *options)
    environ = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1"}
    with subprocess.Popen([path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ) as _program:
        yield
        assert _program.stdin is not None
        _program.stdin.close()
        assert _program.wait() == 0


def pieces(blob: bytes, *, limit: int, step: int, piece: int) -> Iterator[bytes]:
    source, sink = _program.stdin, _program.stdout
    assert source is not None
    assert sink is not None
    source.write(struct.pack("=4Q", limit, piece, step, len(blob)) + blob)
    source.flush()
    while length := struct.unpack("=q", sink.read(8))[0]:
        if length < 0:
            raise Refused(sink.read(256).split(b"\0")[0].decode())
        yield sink.read(length)


def unpack(blob: bytes, *, limit: int = 1 << 30, step: int = 1 << 30, piece: int = PIECE) -> bytes:
    """All of the stream, with reads of at most ``step`` bytes, in pieces of at most ``piece``."""
    found = list(pieces(blob, limit=limit, step=step, piece=piece))
    assert all(len(each) <= piece for each in found)
    return b"".join(found)


def zstd(data: bytes, *, write_checksum: bool = False) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=write_checksum).compress(data)


def skippable(data: bytes, kind: int = 0x50) -> bytes:
    return bytes([kind]) + b"\x2a\x4d\x18" + len(data).to_bytes(4, "little") + data


def gzip_of(
    data: bytes,
    *,
    flags: int = 0,
    extra: bytes | None = None,
    name: bytes | None = None,
    comment: bytes | None = None,
    checksum: bool = False,
    method: int = 8,
    error: int = 0,
) -> bytes:
    """A member with whatever a header may hold (RFC 1952, 2.3); ``error`` is what its checksum is wrong by."""
    flags |= 2 * checksum + 4 * (extra is not None) + 8 * (name is not None) + 16 * (comment is not None)
    header = b"\x1f\x8b" + bytes([method, flags]) + b"\0\0\0\0\0\xff"
    header += b"" if extra is None else len(extra).to_bytes(2, "little") + extra
    header += b"".join(text + b"\0" for text in (name, comment) if text is not None)
    if checksum:
        header += (zlib.crc32(header) + error & 0xFFFF).to_bytes(2, "little")
    return header + gzip.compress(data)[10:]


COMPRESSORS: list[Callable[[bytes], bytes]] = [gzip.compress, zstd, lambda data: zstd(data, write_checksum=True)]
NAMES = ["gzip", "zstd", "zstd-checksum"]
TEXT = b"".join(b"%d lines\n" % n for n in range(100_000))
NOISE = os.urandom(2_000_000)


@pytest.mark.parametrize("compress", COMPRESSORS, ids=NAMES)
@pytest.mark.parametrize(
    "data", [b"", b"x", TEXT, NOISE, b"\0" * 5_000_000], ids=["empty", "x", "text", "noise", "zeros"]
)
def test_round_trip(compress: Callable[[bytes], bytes], data: bytes) -> None:
    assert unpack(compress(data)) == data


def test_plain() -> None:
    assert unpack(NOISE[:300] + TEXT) == NOISE[:300] + TEXT
    assert unpack(b"") == b""
    assert unpack(b"x") == b"x"


@given(
    st.lists(st.tuples(st.sampled_from(range(3)), st.binary(max_size=3000)), min_size=1, max_size=6),
    st.integers(1, 200),
    st.integers(8, 5000),
    st.integers(0, 40),
)
@settings(max_examples=100)
def test_members_and_frames_in_any_pieces(parts: list[tuple[int, bytes]], step: int, piece: int, zeros: int) -> None:
    """Several members of gzip, or frames of zstd with skippable ones between, padded with zeros, read in any steps."""
    data = b"".join(part for _, part in parts)
    gz = b"".join(gzip.compress(part) for _, part in parts)
    assert unpack(gz + b"\0" * zeros, step=step, piece=piece) == data
    frames = b"".join(COMPRESSORS[1 + kind % 2](part) + skippable(b"s" * kind, 0x50 + kind) for kind, part in parts)
    assert unpack(skippable(b"first") + frames + b"\0" * zeros, step=step, piece=piece) == data


@pytest.mark.parametrize("compress", COMPRESSORS, ids=NAMES)
def test_output_that_has_no_room_when_the_input_ends(compress: Callable[[bytes], bytes]) -> None:
    """A decoder keeps what does not fit, and may have taken all of the blob by then."""
    for length in range(1, 300):
        data = NOISE[: length % 7] + b"x" * length
        assert unpack(compress(data), piece=64) == data


fields = st.none() | st.binary(max_size=60) | st.just(b"long" * 10_000)
texts = fields.map(lambda field: None if field is None else field.replace(b"\0", b"0"))


@given(
    st.lists(
        st.builds(
            gzip_of,
            st.just(b"content"),
            flags=st.integers(0, 1),
            extra=fields,
            name=texts,
            comment=texts,
            checksum=st.booleans(),
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 200),
)
@settings(max_examples=60)
def test_a_gzip_header_in_any_pieces(members: list[bytes], step: int) -> None:
    """All that a header may hold, wherever a read ends: layers that are fetched file by file have such members."""
    assert unpack(b"".join(members), step=step) == b"content" * len(members)


@pytest.mark.parametrize("step", [1, 1000])
@pytest.mark.parametrize(
    "blob",
    [
        gzip_of(b"x", method=7),
        gzip_of(b"x", flags=0x20),
        gzip_of(b"x", flags=0x80),
        gzip_of(b"x", checksum=True, error=1),
        gzip_of(b"x", checksum=True, name=b"name", error=0x100),
    ],
    ids=["method", "reserved", "encrypted", "checksum", "name and checksum"],
)
def test_a_gzip_header_that_is_wrong(blob: bytes, step: int) -> None:
    for before in (b"", gzip.compress(b"first")):
        with pytest.raises(Refused, match=r"the gzip stream is damaged: an (invalid header|unknown method)"):
            unpack(before + blob, step=step)


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_a_gzip_header_that_is_cut_off(step: int) -> None:
    header = gzip_of(b"", extra=b"extra", name=b"name", comment=b"comment", checksum=True)[:-10]
    for length in range(2, len(header)):
        with pytest.raises(Refused, match="the gzip stream ends early"):
            unpack(header[:length], step=step)


def test_zeros_between_members() -> None:
    assert unpack(gzip.compress(b"a") + b"\0" * 700_000 + gzip.compress(b"b")) == b"ab"


def test_a_member_per_file() -> None:
    """As in layers made to be fetched file by file: time must not grow with the square of their number."""
    assert unpack(gzip.compress(b"x" * 100) * 20_000) == b"x" * 2_000_000


def test_zstd_without_content_size() -> None:
    compressor = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    assert unpack(compressor.compress(TEXT) + compressor.flush()) == TEXT


@pytest.mark.parametrize("compress", COMPRESSORS, ids=NAMES)
def test_truncated_anywhere(compress: Callable[[bytes], bytes]) -> None:
    blob = compress(b"some content, " * 30)
    for length in range(4, len(blob)):
        with pytest.raises(Refused, match=r"the (gzip|zstd) stream (ends early|is damaged)"):
            unpack(blob[:length])


@pytest.mark.parametrize("compress", COMPRESSORS, ids=NAMES)
def test_garbage_after_the_end(compress: Callable[[bytes], bytes]) -> None:
    with pytest.raises(Refused, match="garbage follows"):
        unpack(compress(TEXT) + b"garbage")
    with pytest.raises(Refused, match="garbage follows"):
        unpack(compress(TEXT) + b"\0\0\0garbage")


@pytest.mark.parametrize("compress", [gzip.compress, COMPRESSORS[2]], ids=["gzip", "zstd-checksum"])
@given(data=st.data())
@settings(max_examples=60)
def test_a_flipped_bit_is_seen(compress: Callable[[bytes], bytes], data: st.DataObject) -> None:
    content = TEXT[:5000]
    blob = bytearray(compress(content))
    at = data.draw(st.integers(10, len(blob) - 1))
    blob[at] ^= 1 << data.draw(st.integers(0, 7))
    try:
        result = unpack(bytes(blob))
    except Refused:
        return
    assert result == content  # a bit that means nothing


def test_bombs_stop_at_the_limit() -> None:
    """Nothing is expanded far beyond the limit, however small the blob: the pieces' bound is checked in unpack()."""
    for blob in (gzip.compress(b"\0" * 50_000_000), zstd(b"\0" * 50_000_000)):
        with pytest.raises(Refused, match="more than the limit of 1000000 bytes"):
            unpack(blob, limit=1_000_000)
    assert len(unpack(gzip.compress(b"\0" * 1_000_000), limit=1_000_000)) == 1_000_000


def test_zstd_bomb_of_repeated_blocks() -> None:
    """Blocks of four bytes that stand for 128 KiB each: a megabyte of them would be 32 GiB at once."""
    header = b"\x28\xb5\x2f\xfd\x00\x58"  # no content size, a window of 2 MiB
    block = ((128 * 1024) << 3 | 1 << 1).to_bytes(3, "little") + b"A"
    with pytest.raises(Refused, match="more than the limit"):
        unpack(header + block * 250_000, limit=10_000_000)


def test_zstd_window_limit() -> None:
    def frame(window_log: int) -> bytes:
        return b"\x28\xb5\x2f\xfd\x00" + bytes([(window_log - 10) << 3]) + (1).to_bytes(3, "little")

    assert unpack(frame(WINDOW_LOG)) == b""
    with pytest.raises(Refused, match="too much memory"):
        unpack(frame(WINDOW_LOG + 1))


@pytest.mark.parametrize(
    "block", [(7 << 3 | 3 << 1 | 1), ((128 * 1024 + 1) << 3 | 1)], ids=["reserved kind", "too large"]
)
def test_zstd_malformed_blocks(block: int) -> None:
    with pytest.raises(Refused, match="the zstd stream is damaged"):
        unpack(b"\x28\xb5\x2f\xfd\x00\x58" + block.to_bytes(3, "little") + b"x" * 200_000)


def test_other_compressions_are_named() -> None:
    with pytest.raises(Refused, match="bzip2"):
        unpack(bz2.compress(TEXT))


@given(
    st.binary(max_size=300), st.sampled_from([b"", b"\x1f\x8b", b"\x1f\x8b\x08\0", b"\x28\xb5\x2f\xfd", skippable(b"")])
)
def test_any_bytes_give_bytes_or_a_refusal(blob: bytes, start: bytes) -> None:
    with contextlib.suppress(Refused):
        unpack(start + blob, limit=10_000_000)
