"""A host and an image that are made up, and the specification of a container of that image on that host."""

from __future__ import annotations

import json
from typing import Any

from crungo.config import ContainerConfig
from crungo.errors import UsageError
from crungo.image.imageconfig import ImageConfig
from crungo.parsing.host import CAPABILITIES
from crungo.runtime.host import DeviceNode, HostFacts
from crungo.runtime.spec import ContainerPlace, build_spec

__all__ = [
    "DEVICES",
    "DISK",
    "FUSE",
    "HOST",
    "IMAGE",
    "PLACE",
    "SOUND",
    "devices_at",
    "environment",
    "mount_on",
    "namespaces",
    "spec",
]

PLACE = ContainerPlace(
    id="0123456789ab" + "c" * 52, rootfs="/run/x/rootfs", directory="/run/x", cgroups_path="/crungo-0123456789ab"
)
FUSE = DeviceNode(path="/dev/fuse", type="c", major=10, minor=229, mode=0o666, uid=0, gid=0)
SOUND = DeviceNode(path="/dev/snd/seq", type="c", major=116, minor=1, mode=0o660, uid=0, gid=29)
DISK = DeviceNode(path="/dev/vda", type="b", major=254, minor=0, mode=0o660, uid=0, gid=6)
DEVICES = {"/dev/fuse": (FUSE,), "/dev/snd": (SOUND,)}


def devices_at(path: str) -> tuple[DeviceNode, ...]:
    if path not in DEVICES:
        raise UsageError(f'device "{path}": No such file or directory')
    return DEVICES[path]


HOST = HostFacts(
    cgroup_version=2,
    capabilities=frozenset(CAPABILITIES) - {"SYS_RESOURCE"},
    rlimits={"nofile": (1024, 4096), "core": (0, -1), "nproc": (100, 100)},
    nr_open=1 << 20,
    hostname="metal",
    architecture="amd64",
    kernel=(6, 1),
    term="xterm-256color",
    swap_limit=True,
    init_path="/lib/crungo-init",
    hosts=lambda: "127.0.0.1 localhost metal",
    resolv_conf=lambda: "search lan\nnameserver 10.0.0.1\noptions edns0\n",
    devices_at=devices_at,
    all_devices=lambda: (FUSE, DISK),
)
IMAGE = ImageConfig(
    entrypoint=("/entry",),
    cmd=("serve",),
    env=("PATH=/app/bin", "A=image", "B=image"),
    working_dir="/srv",
    volumes=("/data", "/", "/proc/x", "relative", "/var/../var/lib"),
)


def spec(
    config: ContainerConfig | None = None, *, image: ImageConfig | None = IMAGE, host: HostFacts = HOST, **fields: Any
) -> dict[str, Any]:
    config = config or ContainerConfig(image="x", **fields)
    built = build_spec(config, image, place=PLACE, host=host)
    json.dumps(built, ensure_ascii=False).encode("utf-8")
    return built


def environment(built: dict[str, Any]) -> dict[str, str]:
    return dict(entry.split("=", 1) for entry in built["process"]["env"])


def mount_on(built: dict[str, Any], target: str) -> dict[str, Any]:
    found = [mount for mount in built["mounts"] if mount["destination"] == target]
    assert len(found) == 1, (target, found)
    mount: dict[str, Any] = found[0]
    return mount


def namespaces(built: dict[str, Any]) -> set[str]:
    return {entry["type"] for entry in built["linux"]["namespaces"]}
