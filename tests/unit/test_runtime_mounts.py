"""Mounts and devices in a specification."""

from __future__ import annotations

from typing import Any

import pytest

from crungo.config import Device, Mount
from crungo.errors import UsageError
from crungo.records import replace
from tests.support.spec import HOST, mount_on, spec


def test_users_mounts_take_the_place_of_defaults() -> None:
    shm = Mount(type="tmpfs", target="/dev/shm", options=("size=1m",))
    hosts = Mount(type="bind", source="/h", target="/etc/hosts", options=("rbind", "rprivate", "rw"))
    built = spec(mounts=(hosts, shm))
    assert mount_on(built, "/dev/shm")["options"] == ["size=1m"]
    assert mount_on(built, "/etc/hosts")["source"] == "/h"
    assert mount_on(built, "/etc/hostname")["source"] == "/run/x/hostname"
    over_dev = spec(mounts=(Mount(type="bind", source="/dev", target="/dev", options=("rbind", "rprivate", "rw")),))
    assert [mount["destination"] for mount in over_dev["mounts"] if mount["destination"].startswith("/dev")] == ["/dev"]


def test_mounts_come_after_those_that_they_lie_under() -> None:
    mounts = tuple(Mount(type="tmpfs", target=target) for target in ("/a/b/c", "/run", "/a", "/a/b"))
    order = [mount["destination"] for mount in spec(mounts=mounts, init=True)["mounts"]]
    assert order.index("/a") < order.index("/a/b") < order.index("/a/b/c")
    assert order.index("/run") < order.index("/run/crungo-init")
    with pytest.raises(UsageError, match="duplicate mount point"):
        spec(mounts=(Mount(type="tmpfs", target="/a"), Mount(type="tmpfs", target="/a")))


def test_read_only_binds_are_so_recursively_where_the_kernel_can() -> None:
    mounts = (Mount(type="bind", source="/h", target="/t", options=("rbind", "rprivate", "ro")),)
    assert "rro" in mount_on(spec(mounts=mounts), "/t")["options"]
    assert "ro" in mount_on(spec(mounts=mounts, host=replace(HOST, kernel=(5, 10))), "/t")["options"]


def test_a_bind_needs_no_options() -> None:
    assert mount_on(spec(mounts=(Mount(type="bind", source="/h", target="/t"),)), "/t")["options"] == ["rbind"]
    read_only = (Mount(type="bind", source="/h", target="/t", options=("ro",)),)
    assert mount_on(spec(mounts=read_only), "/t")["options"] == ["rbind", "rro"]


def test_read_only_root_keeps_the_images_volumes_writable() -> None:
    built = spec(read_only=True)
    assert built["root"]["readonly"] is True
    assert "ro" in mount_on(built, "/etc/hosts")["options"]
    assert mount_on(built, "/data")["options"] == ["nosuid", "nodev", "tmpcopyup"]
    assert mount_on(built, "/var/lib")["type"] == "tmpfs"
    assert not [m for m in built["mounts"] if m["destination"] in ("/", "/proc/x", "/relative")]
    assert not [m for m in spec()["mounts"] if m["destination"] == "/data"]


def test_propagation_of_the_root_follows_the_mounts() -> None:
    def propagation(option: str) -> Any:
        mounts = (Mount(type="bind", source="/h", target="/t", options=("rbind", option, "rw")),)
        return spec(mounts=mounts)["linux"].get("rootfsPropagation")

    assert propagation("rprivate") is None
    assert propagation("rslave") == "slave"
    assert propagation("rshared") == "shared"


def test_devices() -> None:
    built = spec(
        devices=(
            Device(source="/dev/fuse", target="/dev/f", permissions="rw"),
            Device(source="/dev/snd", target="/dev/snd"),
        )
    )
    assert built["linux"]["devices"] == [
        {"path": "/dev/f", "type": "c", "major": 10, "minor": 229, "fileMode": 0o666, "uid": 0, "gid": 0},
        {"path": "/dev/snd/seq", "type": "c", "major": 116, "minor": 1, "fileMode": 0o660, "uid": 0, "gid": 29},
    ]
    rules = built["linux"]["resources"]["devices"]
    assert rules[-2:] == [
        {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rw"},
        {"allow": True, "type": "c", "major": 116, "minor": 1, "access": "rwm"},
    ]
    with pytest.raises(UsageError, match="/dev/none"):
        spec(devices=(Device(source="/dev/none", target="/dev/none"),))
