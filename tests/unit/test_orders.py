"""What the spawner writes for ``crungo-forks`` is what C reads, and nothing else is read at all."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from crungo.runtime._native import ffi, lib
from crungo.runtime.forkserver import encode_order

texts = st.text("abc/.:é\U0001f600", max_size=20)
limits = st.integers(0, 2**64 - 1)
orders = st.fixed_dictionaries(
    {
        "identifier": texts,
        "directory": texts,
        "spec": texts.map(str.encode),
        "user": texts,
        "groups": st.lists(texts, max_size=4),
        "nofile": st.tuples(limits, limits),
        "terminal": st.booleans(),
        "debug": st.booleans(),
        "layers": st.lists(texts, max_size=4),
        "rootfs": texts,
        "files": st.dictionaries(texts, st.binary(max_size=20), max_size=4),
        "await_command": st.booleans(),
        "init": st.integers(0, 2**31 - 1),
        "container_cgroup": texts,
        "cgroup": texts,
        "below": texts,
    }
)


def decode(data: bytes) -> dict[str, Any] | None:
    """The order as C sees it, or None where C refuses it."""
    start = ffi.new("struct crungo_start *")
    # A copy of the exact size: a read beyond it is one that the sanitizers see.
    copy = ffi.new("char[]", len(data) or 1)
    ffi.memmove(copy, data, len(data))
    status = lib.crungo_decode_start(copy, len(data), start)
    lists = ffi.gc(start.groups, lib.free), ffi.gc(start.layers, lib.free), ffi.gc(start.files, lib.free)
    if status < 0:
        return None

    def text(pointer: Any) -> str:
        return bytes(ffi.string(pointer)).decode(errors="replace")

    return {
        "identifier": text(start.id),
        "directory": text(start.directory),
        "spec": bytes(ffi.string(start.spec)),
        "user": text(start.user),
        "groups": [text(lists[0][i]) for i in range(start.n_groups)],
        "nofile": (start.nofile[0], start.nofile[1]),
        "terminal": start.terminal,
        "debug": start.debug,
        "layers": [text(lists[1][i]) for i in range(start.n_layers)],
        "rootfs": text(start.rootfs),
        "files": {
            text(lists[2][i].name): bytes(ffi.buffer(lists[2][i].content, lists[2][i].size))
            for i in range(start.n_files)
        },
        "await_command": start.await_command,
        "init": start.init,
        "container_cgroup": text(start.container_cgroup),
        "cgroup": text(start.cgroup),
        "below": text(start.below),
    }


@given(orders)
def test_an_order_is_read_as_it_was_written(order: dict[str, Any]) -> None:
    assert decode(encode_order(**order)) == order


@given(orders, st.data())
def test_an_order_that_is_cut_off_or_longer_is_refused(order: dict[str, Any], data: st.DataObject) -> None:
    whole = encode_order(**order)
    assert decode(whole[: data.draw(st.integers(0, len(whole) - 1))]) is None
    assert decode(whole + b"\0") is None


@given(orders, st.data())
def test_a_damaged_order_is_refused_or_read_within_its_bounds(order: dict[str, Any], data: st.DataObject) -> None:
    damaged = bytearray(encode_order(**order))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    found = decode(bytes(damaged))
    assert found is None or found.keys() == order.keys()


@given(st.binary(max_size=200))
def test_whatever_is_no_order_is_refused(data: bytes) -> None:
    assert decode(data) is None
