"""Layers as a running container sees them: removals, replacements, and what belongs to a file beside its bytes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from tests.integration.conftest import PushImage
from tests.support.command import Crungo
from tests.support.image import Layer

Look = Callable[..., str]


@pytest.fixture
def look(crungo: Crungo, push_image: PushImage) -> Look:
    """``look(name, *layers, script)``: what a script prints in a container of these layers on the busybox image."""

    def call(name: str, *layers: Layer, script: str) -> str:
        reference = push_image(f"layers/{name}", *layers)
        return crungo("run", "-q", reference, "sh", "-c", script, check=0).stdout

    return call


def test_the_layers_of_the_image(crungo: Crungo, busybox_reference: str) -> None:
    script = "ls /etc/motd; ls /usr/share/doc; cat /usr/share/doc/new; grep app /etc/passwd"
    done = crungo("run", busybox_reference, "sh", "-c", script, check=0)
    assert done.stdout == "new\nhere to stay\napp:x:1000:1000:An application:/home/app:/bin/sh\n"
    assert done.stderr == "ls: /etc/motd: No such file or directory\n"


def test_removals(look: Look) -> None:
    """Of a file, a directory with content, a link; then some of it again, in a layer on top."""
    below = Layer().directory("d").file("d/a", "a").file("d/b", "b").directory("d/e").file("d/e/f", "f")
    below.symlink("link", "d").file("gone", "x").file("again", "old")
    removing = Layer().whiteout("d/a").whiteout("d/e").whiteout("link").whiteout("gone").whiteout("again")
    above = Layer().directory("d/e").file("d/e/new", "n").file("again", "new")
    script = "cd /; find d link gone again 2>/dev/null | sort | xargs; cat again"
    assert look("removals", below, removing, above, script=script) == "again d d/b d/e d/e/new\nnew"


def test_opaque_directories(look: Look) -> None:
    """What lies below is hidden, what comes with the mark or later is seen."""
    below = Layer().directory("d").file("d/old", "").directory("d/sub").file("d/sub/old", "")
    opaque = Layer().directory("d").opaque("d").file("d/with", "")
    above = Layer().file("d/later", "").directory("d/sub").file("d/sub/new", "")
    script = "cd /d; find . | sort | xargs"
    assert look("opaque", below, opaque, above, script=script) == ". ./later ./sub ./sub/new ./with\n"


def test_the_mark_may_come_after_the_content(look: Look) -> None:
    """Only lower layers are hidden, wherever in its layer the mark stands (layer.md of the image specification)."""
    below = Layer().directory("d").file("d/old", "")
    opaque = Layer().directory("d").file("d/with", "").opaque("d")
    assert look("late-mark", below, opaque, script="ls /d") == "with\n"


def test_kinds_that_change(look: Look) -> None:
    below = Layer().directory("was-directory").file("was-directory/x", "").file("was-file", "").symlink("was-link", "d")
    above = Layer().file("was-directory", "now a file\n").directory("was-file").file("was-file/y", "")
    above.directory("was-link").file("was-link/z", "")
    assert look(
        "kinds", below, above, script="cd /; cat was-directory; ls was-file; ls was-link; stat -c %F was-link"
    ) == ("now a file\ny\nz\ndirectory\n")


def test_a_removed_directory_can_be_made_again_inside(look: Look) -> None:
    """The container's own layer starts from what is seen, not from what lies beneath."""
    below = Layer().directory("d").file("d/old", "")
    script = "mkdir /d; touch /d/new; ls /d; rm -r /usr/share/doc; mkdir /usr/share/doc; ls /usr/share/doc"
    assert look("again", below, Layer().whiteout("d"), script=script) == "new\n"


def test_modes_owners_and_times(look: Look) -> None:
    layer = Layer().file("set", "", 0o6755, uid=1000, gid=50).directory("sticky", 0o3777).file("none", "", 0)
    layer.file("huge", "", uid=4_000_000_000, gid=4_000_000_001).file("early", "", mtime=1).symlink("l", "none", uid=7)
    script = "cd /; stat -c '%a %u:%g %Y %n' set sticky none huge early; stat -c '%u %N' l"
    assert look("modes", layer, script=script).splitlines() == [
        "6755 1000:50 1700000000 set",
        "3777 0:0 1700000000 sticky",
        "0 0:0 1700000000 none",
        "644 4000000000:4000000001 1700000000 huge",
        "644 0:0 1 early",
        "7 'l' -> 'none'",
    ]


def test_a_setuid_program(look: Look, busybox: Path) -> None:
    """The bit is there, and the root is not mounted so that it would mean nothing."""
    layer = Layer().file("bin/su", busybox.read_bytes(), 0o4755)
    script = "mount | grep ' / ' | grep -c nosuid; stat -c %a /bin/su"
    assert look("setuid", layer, script=script) == "0\n4755\n"


def test_hard_links(look: Look) -> None:
    layer = Layer().directory("a").directory("b").file("a/x", "same\n").hardlink("b/y", "a/x").hardlink("z", "b/y")
    script = "cd /; stat -c %h a/x; cat z; [ a/x -ef b/y ] && [ b/y -ef z ] && echo one"
    assert look("links", layer, script=script) == "3\nsame\none\n"


def test_device_nodes_and_pipes(look: Look) -> None:
    layer = (
        Layer().entry("null", b"3", 0o666, devmajor=1, devminor=3).entry("disk", b"4", 0o600, devmajor=7, devminor=9)
    )
    layer.entry("pipe", b"6", 0o622)
    script = "cd /; stat -c '%F %t:%T %a' null disk pipe; echo x > null && echo written; cat disk 2>&1"
    assert look("devices", layer, script=f"{script}; true").splitlines() == [
        "character special file 1:3 666",
        "block special file 7:9 600",
        "fifo 0:0 622",
        "written",
        "cat: can't open 'disk': Operation not permitted",
    ]


def test_attributes(crungo: Crungo, push_image: PushImage) -> None:
    """busybox has nothing that shows them, so that the unpacked layer itself is asked."""
    layer = Layer().file("tagged", "x", pax_headers={"SCHILY.xattr.user.note": "of the layer"})
    reference = push_image("layers/attributes", layer)
    crungo("run", reference, "cat", "/tagged", check=0)
    diffs = (crungo.root / "layers").glob("*/*/tagged")
    assert [os.getxattr(path, "user.note") for path in diffs] == [b"of the layer"]


def test_names(look: Look) -> None:
    """Long ones, odd ones, and bytes that are no UTF-8."""
    long = "/".join(["n" * 200] * 3)
    layer = Layer()
    for end in (200, 401, 602):
        layer.directory(long[:end])
    layer.file(f"{long}/file", "deep\n").file("new\nline", "").file("spaced name ", "").file("bytes-\udcff\udcfe", "")
    script = f"cat /{long}/file; cd /; ls -d new* 'spaced name '; printf %s bytes* | od -An -b"
    found = look("names", layer, script=script).split()
    assert found[0] == "deep"
    assert "377" in found
    assert "376" in found


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
@pytest.mark.parametrize("flavour", ["oci", "docker"])
def test_compressions(
    fresh_crungo: Crungo,
    push_image: PushImage,
    compression: Literal["gzip", "zstd", "none"],
    flavour: Literal["oci", "docker"],
) -> None:
    reference = push_image(f"layers/{flavour}-{compression}", compression=compression, flavour=flavour)
    assert fresh_crungo("run", "-q", reference, "hello", check=0).stdout == "hello world\n"


def test_many_layers(look: Look) -> None:
    """More than fit into one page of mount options by their paths; the uppermost wins."""
    layers = [Layer().file("which", f"{number}\n").file(f"l{number}", "") for number in range(60)]
    assert look("many", *layers, script="cat /which; ls / | grep -c '^l[0-9]'") == "59\n60\n"


def test_the_same_layer_twice(look: Look) -> None:
    same = [Layer().file("once", "x"), Layer().whiteout("once"), Layer().file("once", "x")]
    assert look("twice", *same, script="cat /once") == "x"
