"""Random archives against a model of what they mean: a tree in memory, in a page of Python.

Names are few, so that everything meets everything: links as parents, directories over files, whiteouts before and
after, hard links to what was replaced.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import tarballs
from tests.support.tarballs import Entry, archive
from tests.support.unpacking import survey, unpack_bytes


class Refused(Exception):
    """The model says that the archive is an error."""


@dataclass(eq=False)
class Node:
    kind: str
    entry: Entry | None = None  # None: implied, or a whiteout
    children: dict[bytes, Node] = field(default_factory=dict)
    opaque: bool = False


class Model:
    """The tree that entries make, one after the other."""

    def __init__(self) -> None:
        self.root = Node("directory")
        self.opaque = False

    def apply(self, entry: Entry) -> None:
        parts = clean(entry.name)
        if not parts:
            if entry.type != tarballs.DIRECTORY:
                raise Refused
            self.root.entry = entry
            return
        *parents, name = parts
        if any(p.startswith(b".wh.") for p in parents):
            raise Refused
        parent = self.walk(parents, create=True)
        if name == b".wh..wh..opq":
            parent.opaque = True
            self.opaque = self.opaque or not parents
        elif name.startswith(b".wh."):
            if name[4:] in (b"", b".", b".."):
                raise Refused
            node = parent.children.setdefault(name[4:], Node("whiteout"))
            node.opaque = node.opaque or node.kind == "directory"
        elif entry.type == tarballs.DIRECTORY:
            self.directory(parent, name).entry = entry
        elif entry.type == tarballs.HARD_LINK:
            self.hard_link(parent, name, entry)
        else:
            parent.children[name] = Node({b"0": "file", b"2": "symlink", b"6": "fifo"}[entry.type], entry)

    def directory(self, parent: Node, name: bytes) -> Node:
        """The directory of that name: the one there is, or one in place of whatever there is."""
        node = parent.children.get(name)
        if node is None or node.kind != "directory":
            opaque = node is not None and node.kind == "whiteout"
            node = parent.children[name] = Node("directory", opaque=opaque)
        return node

    def hard_link(self, parent: Node, name: bytes, entry: Entry) -> None:
        *parents, last = clean(entry.link) or [b""]
        holder = self.walk(parents, create=False)
        target = holder.children.get(last)
        if target is None or target.kind in ("directory", "whiteout"):
            raise Refused
        taken = parent.children.get(name)
        if taken is not None and taken.kind == "directory" and holder in below(taken):
            raise Refused  # the target goes with what it would replace
        parent.children[name] = target

    def walk(self, parts: list[bytes], *, create: bool) -> Node:
        """The directory of a path, links followed, with the root as the top of everything."""
        stack = [self.root]
        pending = parts[::-1]
        links = 0
        while pending:
            part = pending.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                stack = stack[:-1] or [self.root]
                continue
            node = stack[-1].children.get(part)
            if node is None or node.kind == "whiteout":
                if not create:
                    raise Refused
                node = self.directory(stack[-1], part)
            if node.kind == "symlink":
                assert node.entry is not None
                links += 1
                if links > 40:
                    raise Refused
                pending += node.entry.link.split(b"/")[::-1]
                if node.entry.link.startswith(b"/"):
                    stack = [self.root]
            elif node.kind == "directory":
                stack.append(node)
            else:
                raise Refused
        return stack[-1]


def below(node: Node) -> set[Node]:
    """A directory and all directories in it."""
    return {node}.union(*(below(child) for child in node.children.values() if child.kind == "directory"))


def clean(name: bytes) -> list[bytes]:
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            if not parts:
                raise Refused
            parts.pop()
        elif part not in (b"", b"."):
            parts.append(part)
    return parts


Shape = dict[bytes, tuple[object, ...]]


def expected(model: Model) -> Shape:
    """What survey() should say, without what nobody decides (times of implied directories)."""
    paths: dict[bytes, Node] = {b".": model.root}

    def list_(node: Node, path: bytes) -> None:
        for name, child in node.children.items():
            paths[path + name] = child
            list_(child, path + name + b"/")

    list_(model.root, b"")
    names: dict[int, list[bytes]] = {}
    for path, node in paths.items():
        names.setdefault(id(node), []).append(path)
    shape: Shape = {}
    for path, node in paths.items():
        entry = node.entry
        if node.kind == "whiteout":
            shape[path] = ("whiteout",)
            continue
        mode = 0o755 if entry is None else 0o777 if node.kind == "symlink" else entry.mode
        owner = (0, 0) if entry is None else (entry.uid, entry.gid)
        mtime = None if entry is None else entry.mtime * 10**9
        content = b"" if entry is None else entry.link if node.kind == "symlink" else entry.content
        shape[path] = (node.kind, mode, owner, mtime, content, node.opaque, tuple(sorted(names[id(node)])))
    return shape


def found(directory: Path, model: Shape) -> Shape:
    shape: Shape = {}
    for path, seen in survey(directory).items():
        if seen.kind == "char":
            shape[path] = ("whiteout",)
            continue
        wanted = model.get(path, (None,) * 7)
        mtime = None if len(wanted) > 3 and wanted[3] is None else seen.mtime
        opaque = dict(seen.xattrs).get("trusted.overlay.opaque") == b"y"
        shape[path] = (seen.kind, seen.mode, seen.owner, mtime, seen.content, opaque, seen.links)
    return shape


COMPONENTS = st.sampled_from([b"a", b"b", b"c"] * 4 + [b"..", b".", b""])
PLAIN_PATHS = st.lists(COMPONENTS, min_size=1, max_size=4).map(b"/".join).filter(bool)
WHITEOUTS = st.sampled_from([b".wh.a", b".wh.b", b".wh.c", b".wh..wh..opq", b".wh.", b".wh..."])
NAMES = st.one_of(PLAIN_PATHS, PLAIN_PATHS, st.tuples(PLAIN_PATHS, WHITEOUTS).map(b"/".join), WHITEOUTS, st.just(b"./"))
TYPES = st.sampled_from([tarballs.FILE, tarballs.DIRECTORY, tarballs.SYMLINK, tarballs.HARD_LINK, tarballs.FIFO])


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    type_ = draw(TYPES)
    linking = type_ in (tarballs.SYMLINK, tarballs.HARD_LINK)
    entry = Entry(
        name=draw(NAMES),
        type=type_,
        mode=draw(st.sampled_from([0o755, 0o644, 0o2775, 0o4711, 0o1777, 0])),
        uid=draw(st.sampled_from([0, 0, 1000])),
        gid=draw(st.sampled_from([0, 0, 50])),
        mtime=draw(st.integers(0, 2_000_000_000)),
        link=draw(PLAIN_PATHS) if linking else b"",
        content=draw(st.binary(max_size=20)) if type_ == tarballs.FILE else b"",
    )
    # A trailing slash makes an empty file a directory, as old archives have them: said elsewhere.
    return replace(entry, name=entry.name.rstrip(b"/") or b".") if type_ == tarballs.FILE else entry


def play(made: list[Entry]) -> Model | None:
    """The model of an archive; None where it is refused."""
    model = Model()
    try:
        for entry in made:
            model.apply(entry)
    except Refused:
        return None
    return model


@given(st.lists(entries(), min_size=1, max_size=25), st.booleans())
@settings(max_examples=300)
def test_random_archives(drawn: list[Entry], end_badly: bool) -> None:
    """Entries that would be refused are left out, but for one at the end of some archives."""
    made: list[Entry] = []
    bad: list[Entry] = []
    for entry in drawn:
        (made if play([*made, entry]) is not None else bad).append(entry)
    if end_badly:
        made += bad[-1:]
    model = play(made)
    with tempfile.TemporaryDirectory() as folder:
        outer = Path(folder)
        (outer / "canary").write_bytes(b"alive")
        layer = outer / "layer"
        outcome = unpack_bytes(archive(*made), layer)
        assert outcome.exit == 0
        assert sorted(os.listdir(outer)) == ["canary", "layer", "layer.blob"]
        if model is None:
            assert outcome.message["event"] == "error"
            assert outcome.message["errno"] == 0, "the archive is at fault, not the system"
        else:
            assert outcome.message["event"] == "unpacked", outcome.error
            shape = expected(model)
            assert found(layer, shape) == shape
            assert outcome.message["opaque"] == model.opaque
        subprocess.run(["rm", "-rf", layer], check=True)
