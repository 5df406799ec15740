"""What a container sees of files: volumes, mounts, tmpfs, devices, read-only roots, a root of the host's."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import PushImage
from tests.support.command import Crungo
from tests.support.image import Layer, make_image

Run = Callable[..., str]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A directory of the host with a file and a link."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "file").write_text("of the host\n")
    (folder / "link").symlink_to("file")
    return folder


@pytest.fixture
def run(crungo: Crungo, busybox_reference: str) -> Run:
    """``run(*flags, script, check=0)``: what a shell script prints with these flags."""

    def call(*words: str, check: int = 0) -> str:
        *flags, script = words
        done = crungo("run", *flags, busybox_reference, "sh", "-c", script, check=check)
        return done.stdout + done.stderr

    return call


def test_a_volume_can_be_written(run: Run, data: Path) -> None:
    assert run("-v", f"{data}:/data", "cat /data/link; echo inside > /data/new") == "of the host\n"
    assert (data / "new").read_text() == "inside\n"


@pytest.mark.parametrize("flag", ["-v={}:/data:ro", "--mount=type=bind,src={},dst=/data,readonly", "-v={}:/data:z,ro"])
def test_a_volume_that_is_read_only(run: Run, data: Path, flag: str) -> None:
    found = run(flag.format(data), "cat /data/file; echo x > /data/new; touch /data/file; rm -r /data/*; true")
    assert found.count("Read-only file system") == 4
    assert sorted(os.listdir(data)) == ["file", "link"]


def test_read_only_holds_for_what_is_mounted_below(run: Run) -> None:
    """The host's /sys has further mounts: inside a read-only volume, they are read-only."""
    found = run("-v", "/sys:/volume:ro", "grep ' /volume' /proc/mounts")
    options = [line.split()[3].split(",")[0] for line in found.splitlines()]
    assert len(options) > 1
    assert set(options) == {"ro"}


def test_relative_volumes(crungo: Crungo, busybox_reference: str) -> None:
    assert crungo.cwd is not None
    folder = crungo.cwd / "relative"
    folder.mkdir(exist_ok=True)
    (folder / "file").write_text("found\n")
    for source in ("./relative", "relative/", "relative/.", "../" + crungo.cwd.name + "/relative"):
        flags = ["-v", f"{source}:/there"]
        assert crungo("run", *flags, busybox_reference, "cat", "/there/file", check=0).stdout == "found\n"


def test_a_single_file_in_place_of_the_images(run: Run, data: Path) -> None:
    assert (
        run("-v", f"{data}/file:/etc/group:ro", "cat /etc/group; stat -c %F /etc/group")
        == "of the host\nregular file\n"
    )


def test_mount_points_that_the_image_lacks(run: Run, data: Path) -> None:
    found = run("-v", f"{data}:/a/b/c", "-v", f"{data}/file:/d/e/file", "ls /a/b/c; cat /d/e/file")
    assert found == "file\nlink\nof the host\n"


def test_volumes_inside_volumes(run: Run, data: Path, tmp_path: Path) -> None:
    """The outer one comes first, whatever the order of the flags."""
    (data / "inner").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "deep").touch()
    assert run("-v", f"{tmp_path}/other:/v/inner", "-v", f"{data}:/v", "ls /v /v/inner | xargs") == (
        "/v: file inner link /v/inner: deep\n"
    )


def test_a_mount_of_one_own_name_with_a_comma(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a,b").mkdir()
    (tmp_path / "a,b" / "x").touch()
    assert run("--mount", f'type=bind,"src={tmp_path}/a,b",target=/m', "ls /m") == "x\n"


def test_tmpfs(run: Run) -> None:
    found = run("--tmpfs", "/small:size=1m,mode=700,exec", "--tmpfs", "/plain", "grep -e /small -e /plain /proc/mounts")
    options = {line.split()[1]: set(line.split()[3].split(",")) for line in found.splitlines()}
    assert {"size=1024k", "mode=700", "nosuid", "nodev"} <= options["/small"]
    assert "noexec" not in options["/small"]
    assert {"nosuid", "nodev", "noexec"} <= options["/plain"]


def test_a_tmpfs_is_as_large_as_said(run: Run) -> None:
    script = "head -c 4m /dev/zero > /m/x; stat -c %s /m/x; stat -c %a /m"
    found = run("--mount", "type=tmpfs,dst=/m,tmpfs-size=2m,tmpfs-mode=1777", script)
    assert found.startswith("2097152\n1777\nhead: ")


def test_shm(run: Run) -> None:
    script = "df -k /dev/shm | tail -1; stat -c %a /dev/shm"
    assert run(script).split()[1::5] == ["65536", "1777"]
    assert run("--shm-size", "1m", script).split()[1::5] == ["1024", "1777"]


@pytest.mark.parametrize(
    ("source", "target", "why"),
    [
        ("file", "/etc", "a file cannot be mounted on a directory; both must be of the same kind"),
        ("file", "/proc", "a file cannot be mounted on a directory; both must be of the same kind"),
        (".", "/etc/passwd", "a directory cannot be mounted on a file; both must be of the same kind"),
        (".", "/bin/busybox/x/y", '"/bin/busybox" is not a directory'),
        (".", "/proc/x", "nothing is there, and nothing can be made below /proc"),
        ("file", "/sys/kernel/x", "nothing is there, and nothing can be made below /sys"),
        (".", "/dev", "the container needs /dev/null, which is not there"),
    ],
)
def test_a_volume_that_cannot_be_one(run: Run, data: Path, source: str, target: str, why: str) -> None:
    found = run("-v", f"{data / source}:{target}", "true", check=125)
    assert found.splitlines()[0] == f'crungo: mount "{data / source}" on "{target}": {why}'


def test_a_working_directory_that_cannot_be_one(run: Run) -> None:
    assert run("-w", "/etc/passwd", "true", check=125) == 'crungo: working directory "/etc/passwd": Not a directory\n'


@pytest.mark.parametrize("target", ["/proc", "/dev", "/etc/passwd"])
def test_an_images_volume_that_cannot_be_one(crungo: Crungo, push_image: PushImage, target: str) -> None:
    def add_volume(config: dict[str, Any]) -> None:
        config["config"].update(Volumes={"/data": {}})

    reference = push_image(f"volume{target}", Layer().symlink("data", target), change_config=add_volume)
    crungo("run", reference, "true", check=0)
    done = crungo("run", "--read-only", reference, "true", check=125)
    assert done.stderr.endswith(
        "hint: a read-only root keeps the image's volumes writable (/data), if they are directories of its own\n"
    )


def test_a_read_only_root(run: Run, data: Path) -> None:
    script = "touch /x /etc/x /tmp/x; echo x >> /etc/hosts; touch /t/x /data/x /dev/shm/x && echo written"
    found = run("--read-only", "--tmpfs", "/t", "-v", f"{data}:/data", script)
    assert found.count("Read-only file system") == 4
    assert "written\n" in found


def test_the_root_can_be_written_and_is_forgotten(run: Run) -> None:
    assert run("rm /usr/local/bin/hello; echo x > /new; ls /usr/local/bin /new | wc -l").strip() != "0"
    assert run("cat /new; hello") == "hello world\ncat: can't open '/new': No such file or directory\n"


def _openable(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_RDWR))
    except OSError:
        return False
    return True


DEVICE = next(filter(_openable, ["/dev/fuse", "/dev/net/tun", "/dev/loop-control", "/dev/kvm", "/dev/autofs"]), None)
"""A device of the host that a container does not have by itself, and that opens without side effects."""


@pytest.mark.skipif(DEVICE is None, reason="the host has no such device")
def test_a_device(run: Run) -> None:
    assert DEVICE is not None
    numbers = os.stat(DEVICE).st_rdev
    kind = f"character special file {os.major(numbers):x}:{os.minor(numbers):x}\n"
    script = "stat -c '%F %t:%T' /dev/thing; (: < /dev/thing) && echo read; (: <> /dev/thing) || echo refused"
    found = run("--device", f"{DEVICE}:/dev/thing:r", script)
    assert found == f"{kind}read\nrefused\nsh: can't create /dev/thing: Operation not permitted\n"
    assert run("--device", f"{DEVICE}:/dev/thing", script) == f"{kind}read\n"
    assert "No such file" in run(f"ls {DEVICE}", check=1)


def test_devices_that_were_not_given(run: Run) -> None:
    """A node alone gives no access, whoever has made it."""
    found = run("--cap-add", "MKNOD", "mknod /dev/log c 1 11 && (: < /dev/log) || echo refused")
    assert found == "refused\nsh: can't open /dev/log: Operation not permitted\n"


def test_the_usual_devices(run: Run) -> None:
    assert run("echo gone > /dev/null; head -c 3 /dev/zero | od -An -tx1; echo x > /dev/full; true") == (
        " 00 00 00\nsh: write error: No space left on device\n"
    )
    assert run("ls /dev | grep -v core | xargs") == (
        "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero\n"
    )


@pytest.fixture
def rootfs(tmp_path: Path, busybox: Path) -> Path:
    """A root file system on the host with little in it."""
    folder = tmp_path / "rootfs"
    (folder / "bin").mkdir(parents=True)
    shutil.copy2(busybox, folder / "bin" / "busybox")
    (folder / "bin" / "sh").symlink_to("busybox")
    return folder


def test_a_root_of_the_hosts(crungo: Crungo, rootfs: Path) -> None:
    """It is used as it is: what is written stays, and its owner removes it."""
    done = crungo("run", "--rootfs", rootfs, "/bin/sh", "-c", "echo kept > /file; echo $PATH; cd /; echo *", check=0)
    assert done.stdout.splitlines()[0].startswith("/usr/local/sbin:")
    assert {"bin", "dev", "etc", "file", "proc", "sys"} <= set(done.stdout.splitlines()[1].split())
    assert (rootfs / "file").read_text() == "kept\n"


def test_a_root_in_which_nothing_can_be_made(crungo: Crungo) -> None:
    done = crungo("run", "--rootfs", "/proc", "true", check=125)
    assert done.stderr == "crungo: root file system: /dev cannot be made: No such file or directory\n"


def test_a_relative_root(crungo: Crungo, rootfs: Path) -> None:
    assert crungo.cwd is not None
    relative = os.path.relpath(rootfs, crungo.cwd)
    assert crungo("run", "--rootfs", relative, "/bin/busybox", "echo", "hi", check=0).stdout == "hi\n"


@pytest.mark.parametrize("name", ["dev", "proc", "sys"])
def test_a_root_of_the_hosts_with_a_link(crungo: Crungo, rootfs: Path, tmp_path: Path, name: str) -> None:
    """It is refused, and neither the link nor what it points to is touched."""
    target = tmp_path / "target"
    target.mkdir()
    (rootfs / name).symlink_to(target)
    done = crungo("run", "--rootfs", rootfs, "/bin/sh", check=125)
    assert done.stderr == f"crungo: root file system: /{name} is not a directory\n"
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("name", ["dev", "proc", "sys"])
@pytest.mark.parametrize("kind", ["absolute", "inside", "dangling", "file", "fifo"])
def test_an_image_whose_mount_points_are_no_directories(
    crungo: Crungo, push_image: PushImage, tmp_path: Path, name: str, kind: str
) -> None:
    """They are made real directories; nothing that the image points to is followed (CVE-2026-47766)."""
    target = tmp_path / "target"
    target.mkdir()
    layer = Layer().directory("inside").file("inside/witness")
    if kind == "fifo":
        layer.entry(name, b"6", 0o666)
    elif kind == "file":
        layer.file(name, "a file")
    else:
        layer.symlink(name, {"absolute": str(target), "inside": "/inside", "dangling": "/no/where"}[kind])
    reference = push_image(f"files/{name}-{kind}", layer)
    script = f"stat -c %F /{name}; ls /inside; grep -c ' /{name} ' /proc/mounts; test -e /no && echo followed; true"
    done = crungo("run", reference, "sh", "-c", script, check=0)
    assert done.stdout == "directory\nwitness\n1\n"
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("name", ["etc", "run", "mnt"])
def test_mount_points_below_a_link(crungo: Crungo, push_image: PushImage, tmp_path: Path, name: str) -> None:
    """Mounts are made where the link leads within the root, never on the host."""
    target, volume = tmp_path / "target", tmp_path / "volume"
    target.mkdir()
    volume.mkdir()
    layer = Layer().symlink(name, str(target))
    for parent in [*reversed(target.parents[:-1]), target]:
        layer.directory(str(parent).lstrip("/"))
    reference = push_image(f"files/link-{name}", layer)
    flags = ["--init", "-v", f"{volume}:/mnt/deep/volume", "--tmpfs", "/mnt/t"]
    script = f"touch /mnt/t/x /mnt/deep/volume/x; cat /etc/hostname; ls {target}"
    done = crungo("run", *flags, "--hostname", "inside", reference, "sh", "-c", script, check=0)
    expected = {"etc": "hostname hosts resolv.conf", "run": "crungo-init", "mnt": "deep t"}[name]
    assert done.stdout.split() == ["inside", *expected.split()]
    assert list(target.iterdir()) == []
    assert (volume / "x").exists()


def test_a_mount_point_below_a_dead_link(crungo: Crungo, push_image: PushImage, tmp_path: Path) -> None:
    """It is refused, although the link would lead somewhere on the host."""
    reference = push_image("files/dead-mnt", Layer().symlink("mnt", str(tmp_path)))
    done = crungo("run", "--tmpfs", "/mnt/t", reference, "true", check=125)
    assert done.stderr.splitlines()[-2].startswith('crungo: mount tmpfs on "/mnt/t": ')
    assert list(tmp_path.iterdir()) == []


def test_dead_links_in_etc(crungo: Crungo, push_image: PushImage) -> None:
    """Images of whole systems have resolv.conf as a link to what a service would write."""
    layer = Layer().symlink("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf")
    layer.symlink("etc/hosts", "hosts").symlink("etc/hostname", "/no/where")
    reference = push_image("files/dead-etc", layer)
    script = "tail -n 1 /etc/resolv.conf /etc/hosts /etc/hostname; ls /no"
    done = crungo("run", "--hostname", "inside", "--dns", "192.0.2.1", reference, "sh", "-c", script, check=1)
    assert "nameserver 192.0.2.1\n" in done.stdout
    assert "127.0.0.1\tinside\n" in done.stdout
    assert done.stdout.endswith("==> /etc/hostname <==\ninside\n")


def test_links_in_etc_that_lead_somewhere(crungo: Crungo, push_image: PushImage) -> None:
    layer = Layer().directory("run/own").file("run/own/resolv.conf", "old\n")
    reference = push_image("files/live-etc", layer.symlink("etc/resolv.conf", "../run/own/resolv.conf"))
    done = crungo("run", "--dns", "192.0.2.1", reference, "cat", "/etc/resolv.conf", "/run/own/resolv.conf", check=0)
    assert done.stdout == "nameserver 192.0.2.1\n" * 2


def test_an_image_of_one_file(crungo: Crungo, push_image: PushImage, busybox: Path) -> None:
    """Everything else that a container needs is made."""
    program = Layer().file("busybox", busybox.read_bytes(), 0o755)
    reference = push_image("files/scratch", image=make_image([program], config={}))
    flags = ["--init", "--hostname", "inside", "-w", "/srv"]
    script = "for f in proc sys dev etc srv; do [ -d /$f ] && echo $f; done; cat /etc/hostname"
    done = crungo("run", *flags, reference, "/busybox", "sh", "-c", script.replace("cat", "/busybox cat"), check=0)
    assert done.stdout.split() == ["proc", "sys", "dev", "etc", "srv", "inside"]


def test_modes_of_what_is_mounted(run: Run) -> None:
    """The directories that are mounted over have the modes that programs rely on."""
    found = run("stat -c '%a %n' / /dev /dev/shm /dev/pts /proc /sys /tmp /etc/hosts /etc/resolv.conf")
    assert {name: mode for mode, name in map(str.split, found.splitlines())} == {
        "/": "755", "/dev": "755", "/dev/shm": "1777", "/dev/pts": "755", "/proc": "555", "/sys": "555", "/tmp": "1777",
        "/etc/hosts": "644", "/etc/resolv.conf": "644",
    }  # fmt: skip


def test_the_store_is_not_for_others(crungo: Crungo) -> None:
    """A setuid program of an image must not be within reach of the host's other users."""
    assert stat.S_IMODE((crungo.root / "containers").stat().st_mode) == 0o700
    assert stat.S_IMODE((crungo.root / "layers").stat().st_mode) == 0o700
