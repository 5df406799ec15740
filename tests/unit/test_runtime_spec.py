"""Specifications: what a container gets by default, and what each wish changes."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crungo.config import ContainerConfig, Device, ExecConfig, Mount, Ulimit
from crungo.errors import CommandNotFound, CrungoError, HostError, UsageError
from crungo.image.imageconfig import ImageConfig
from crungo.parsing.host import CAPABILITIES
from crungo.records import replace
from crungo.runtime.check import check_config
from crungo.runtime.etc import etc_files
from crungo.runtime.host import DeviceNode, HostFacts
from crungo.runtime.spec import ContainerPlace, build_exec, build_spec

if TYPE_CHECKING:
    from pathlib import Path

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


def test_defaults() -> None:
    built = spec()
    assert built["ociVersion"] == "1.0.2"
    assert built["root"] == {"path": "/run/x/rootfs", "readonly": False}
    assert built["hostname"] == "0123456789ab"
    assert built["process"]["cwd"] == "/srv"
    assert built["process"]["user"] == {"uid": 0, "gid": 0}
    assert built["process"]["terminal"] is False
    assert "rlimits" not in built["process"]
    assert built["linux"]["cgroupsPath"] == "/crungo-0123456789ab"
    assert built["linux"]["resources"]["pids"] == {"limit": 2048}
    assert namespaces(built) == {"pid", "ipc", "uts", "mount", "network", "cgroup"}
    assert "/proc/kcore" in built["linux"]["maskedPaths"]
    assert "/proc/sys" in built["linux"]["readonlyPaths"]
    assert built["linux"]["sysctl"]["net.ipv4.ip_unprivileged_port_start"] == "0"
    assert built["linux"]["seccomp"]["defaultAction"] == "SCMP_ACT_ERRNO"
    assert built["linux"]["resources"]["devices"][0] == {"allow": False, "access": "rwm"}
    assert {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"} in built["linux"]["resources"][
        "devices"
    ]


def test_cgroup_namespace_is_the_hosts_on_v1() -> None:
    assert "cgroup" not in namespaces(spec(host=replace(HOST, cgroup_version=1)))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ["/entry", "serve"]),
        ({"command": ("x", "-y")}, ["/entry", "x", "-y"]),
        ({"command": ()}, ["/entry", "serve"]),
        ({"entrypoint": ("/other",)}, ["/other"]),
        ({"entrypoint": ("/other",), "command": ("x",)}, ["/other", "x"]),
        ({"entrypoint": (), "command": ("x",)}, ["x"]),
        ({"init": True}, ["/run/crungo-init", "--", "/entry", "serve"]),
    ],
)
def test_arguments(fields: dict[str, Any], expected: list[str]) -> None:
    assert spec(**fields)["process"]["args"] == expected


def test_no_command_at_all() -> None:
    with pytest.raises(UsageError, match="no command"):
        spec(entrypoint=())
    with pytest.raises(UsageError, match="no command"):
        spec(image=ImageConfig())
    with pytest.raises(UsageError, match="no command"):
        spec(ContainerConfig(rootfs="/r"), image=None)


def test_an_empty_name_is_no_program() -> None:
    for fields in (
        {"command": ("",), "entrypoint": ()},
        {"entrypoint": ("", "x")},
        {"entrypoint": ("",), "init": True},
    ):
        with pytest.raises(CommandNotFound, match="not found"):
            spec(**fields)
    with pytest.raises(CommandNotFound, match="not found"):
        build_exec(ExecConfig(command=("",)), spec()["process"], host=HOST)


def test_environment_order_and_overrides() -> None:
    built = spec(env={"A": "mine", "B": None, "C": "x=y"}, tty=True)
    assert environment(built) == {
        "PATH": "/app/bin",
        "HOSTNAME": "0123456789ab",
        "TERM": "xterm-256color",
        "container": "crungo",
        "A": "mine",
        "C": "x=y",
    }
    plain = environment(spec(image=ImageConfig(cmd=("sh",))))
    assert plain["PATH"] == "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    assert "TERM" not in plain
    assert environment(spec(tty=True, host=replace(HOST, term=None)))["TERM"] == "xterm"


def test_terminal_size() -> None:
    assert spec(tty=True, size=(120, 40))["process"]["consoleSize"] == {"width": 120, "height": 40}
    assert "consoleSize" not in spec(size=(120, 40))["process"]


def test_working_directory() -> None:
    assert spec(workdir="/a/../b")["process"]["cwd"] == "/b"
    assert spec(image=ImageConfig(cmd=("x",)))["process"]["cwd"] == "/"
    assert spec(image=ImageConfig(cmd=("x",), working_dir="app/../../.."))["process"]["cwd"] == "/"


def test_capabilities() -> None:
    def bounding(**fields: Any) -> set[str]:
        sets = spec(**fields)["process"]["capabilities"]
        assert sets["bounding"] == sets["effective"] == sets["permitted"]
        assert sets["inheritable"] == sets["ambient"] == []
        return {name.removeprefix("CAP_") for name in sets["bounding"]}

    default = {
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "NET_BIND_SERVICE",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    }
    assert bounding() == default
    assert bounding(network="host") == default | {"NET_RAW"}
    assert bounding(cap_drop=("ALL",)) == set()
    assert bounding(cap_drop=("ALL",), cap_add=("CHOWN",)) == {"CHOWN"}
    assert bounding(cap_add=("ALL",), cap_drop=("SYS_ADMIN",)) == set(HOST.capabilities) - {"SYS_ADMIN"}
    assert bounding(cap_add=("SYS_ADMIN",), cap_drop=("KILL", "SYS_ADMIN")) == default - {"KILL"} | {"SYS_ADMIN"}
    assert bounding(privileged=True) == set(HOST.capabilities)
    assert bounding(host=replace(HOST, capabilities=frozenset({"CHOWN"}))) == {"CHOWN"}
    with pytest.raises(HostError, match="--cap-add SYS_RESOURCE"):
        bounding(cap_add=("SYS_RESOURCE",))


def test_host_network() -> None:
    built = spec(network="host")
    assert "network" not in namespaces(built)
    assert built["hostname"] == "metal"
    assert "sysctl" not in built["linux"]
    assert spec(network="host", hostname="own")["hostname"] == "own"


def test_memory_and_cpus() -> None:
    def limits(host: HostFacts = HOST, **fields: Any) -> dict[str, Any]:
        found: dict[str, Any] = spec(host=host, **fields)["linux"]["resources"]
        return found

    assert limits(memory=256 << 20)["memory"] == {"limit": 256 << 20, "swap": 256 << 20}
    assert limits(memory=256 << 20, memory_swap=-1)["memory"] == {"limit": 256 << 20, "swap": -1}
    assert limits(memory=256 << 20, host=replace(HOST, swap_limit=False))["memory"] == {"limit": 256 << 20}
    assert limits(cpus=0.5)["cpu"] == {"quota": 50_000, "period": 100_000}
    assert limits(cpus=0.01)["cpu"]["quota"] == 1000
    assert "pids" not in limits(pids_limit=None)
    assert "pids" not in limits(pids_limit=-1)
    assert not {"memory", "cpu"} & set(limits())
    wrong: list[dict[str, Any]] = [
        {"memory_swap": 1 << 30},
        {"memory": 1 << 30, "memory_swap": 1 << 20},
        {"memory": 1},
    ]
    for fields in wrong:
        with pytest.raises(UsageError, match="--memory"):
            limits(**fields)


def test_rlimits_are_only_what_was_asked_for_and_possible() -> None:
    built = spec(ulimits=(Ulimit(name="nofile", soft=1024, hard=4096), Ulimit(name="core", soft=-1, hard=-1)))
    assert built["process"]["rlimits"] == [
        {"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 4096},
        {"type": "RLIMIT_CORE", "soft": (1 << 64) - 1, "hard": (1 << 64) - 1},
    ]
    above = (Ulimit(name="nofile", soft=1024, hard=4097),)
    with pytest.raises(HostError, match="the hard limit of this process is 4096"):
        spec(ulimits=above)
    able = replace(HOST, capabilities=HOST.capabilities | {"SYS_RESOURCE"})
    assert spec(ulimits=above, host=able)["process"]["rlimits"][0]["hard"] == 4097
    with pytest.raises(UsageError, match="too few to start a container with; the least is 32"):
        spec(ulimits=(Ulimit(name="nofile", soft=31, hard=4096),))
    with pytest.raises(HostError, match="nr_open"):
        spec(ulimits=(Ulimit(name="nofile", soft=-1, hard=-1),), host=able)


def test_sysctls_belong_to_the_container() -> None:
    assert spec(sysctls={"kernel.shmmax": "1", "fs.mqueue.msg_max": "2"})["linux"]["sysctl"]["kernel.shmmax"] == "1"
    assert (
        spec(sysctls={"net.ipv4.ip_unprivileged_port_start": "80"})["linux"]["sysctl"][
            "net.ipv4.ip_unprivileged_port_start"
        ]
        == "80"
    )
    for fields in ({"sysctls": {"vm.swappiness": "1"}}, {"sysctls": {"net.core.somaxconn": "1"}, "network": "host"}):
        with pytest.raises(UsageError, match="--sysctl"):
            spec(**fields)


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


def test_privileged() -> None:
    built = spec(privileged=True)
    assert "seccomp" not in built["linux"]
    assert "maskedPaths" not in built["linux"]
    assert "readonlyPaths" not in built["linux"]
    assert {device["path"] for device in built["linux"]["devices"]} == {"/dev/fuse", "/dev/vda"}
    assert built["linux"]["resources"]["devices"] == [{"allow": True, "access": "rwm"}]
    assert "rw" in mount_on(built, "/sys")["options"]
    assert "rw" in mount_on(built, "/sys/fs/cgroup")["options"]
    own = spec(privileged=True, seccomp='{"defaultAction": "SCMP_ACT_ALLOW"}')
    assert own["linux"]["seccomp"] == {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}


def test_security_options() -> None:
    assert spec(no_new_privileges=True)["process"]["noNewPrivileges"] is True
    assert "seccomp" not in spec(seccomp="unconfined")["linux"]
    assert "maskedPaths" not in spec(unmask=True)["linux"]
    with pytest.raises(UsageError, match="seccomp profile"):
        spec(seccomp="{")


@pytest.mark.parametrize(
    "fields", [{"command": ("a\udcff",)}, {"command": ("a\0",)}, {"env": {"A": "\udc80"}}, {"workdir": "/\udcff"}]
)
def test_texts_that_json_cannot_hold(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="UTF-8"):
        spec(**fields)


def test_exec_starts_from_the_containers_process() -> None:
    base = spec(workdir="/w", env={"A": "1"}, tty=True, size=(80, 24))["process"]
    process = build_exec(ExecConfig(command=("sh",), env={"A": "2", "PATH": "/p"}), base, host=HOST)
    assert process["args"] == ["sh"]
    assert process["cwd"] == "/w"
    assert "A=2" in process["env"]
    assert "consoleSize" not in process
    assert process["terminal"] is False
    assert process["capabilities"] == base["capabilities"]
    assert (
        len(build_exec(ExecConfig(command=("sh",), privileged=True), base, host=HOST)["capabilities"]["bounding"]) == 40
    )
    assert base["args"] != ["sh"]
    with pytest.raises(UsageError, match="no command"):
        build_exec(ExecConfig(command=()), base, host=HOST)


def etc(**fields: Any) -> dict[str, str]:
    return etc_files(ContainerConfig(image="x", **fields), hostname="web.lan", host=HOST)


def test_etc_without_a_network() -> None:
    files = etc(name="box", add_host=(("db", "10.0.0.5"),))
    assert files["hosts"] == (
        "10.0.0.5\tdb\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.0.1\tweb.lan web box\n"
    )
    assert files["hostname"] == "web.lan\n"
    assert "nameserver" not in files["resolv.conf"]
    assert etc(dns=("1.1.1.1",))["resolv.conf"] == "nameserver 1.1.1.1\n"
    with pytest.raises(UsageError, match="host-gateway"):
        etc(add_host=(("gw", "host-gateway"),))


def test_etc_with_the_hosts_network() -> None:
    files = etc(network="host", add_host=(("gw", "host-gateway"),))
    assert files["hosts"] == "127.0.0.1\tgw\n127.0.0.1 localhost metal\n"
    assert files["resolv.conf"] == HOST.resolv_conf()
    assert etc(network="host", dns=("1.1.1.1",))["resolv.conf"] == "search lan\noptions edns0\nnameserver 1.1.1.1\n"


def test_check_finds_what_no_image_can_mend(tmp_path: Path) -> None:
    init = tmp_path / "init"
    init.write_text("#!/bin/true\n")
    init.chmod(0o755)
    host = replace(HOST, init_path=str(init))
    bind = Mount(type="bind", source=str(tmp_path), target="/t", options=("rbind",))
    check_config(ContainerConfig(image="x", mounts=(bind,), init=True, hostname="h", name="box", user="app"), host)
    wrong: list[dict[str, Any]] = [
        {"mounts": (replace(bind, source=str(tmp_path / "none")),)},
        {"mounts": (replace(bind, target="t"),)},
        {"mounts": (bind, bind)},
        {"devices": (Device(source="/dev/none", target="/dev/none"),)},
        {"rootfs": str(tmp_path / "none")},
        {"image": ""},
        {"hostname": "a\nb"},
        {"name": "-"},
        {"add_host": (("a\nb", "1.1.1.1"),)},
        {"dns": ("x",)},
        {"user": ":"},
        {"group_add": ("",)},
        {"workdir": "x"},
        {"env": {"": "x"}},
        {"command": ("\udcff",)},
        {"seccomp": "[]"},
        {"sysctls": {"vm.x": "1"}},
        {"cap_add": ("SYS_RESOURCE",)},
        {"network": "bridge"},
    ]
    for fields in wrong:
        with pytest.raises(CrungoError):
            check_config(ContainerConfig(**({"image": "x"} | fields)), host)
    with pytest.raises(HostError, match="--init"):
        check_config(ContainerConfig(image="x", init=True), replace(HOST, init_path="/none"))


def test_facts_about_this_host() -> None:
    facts = HostFacts.read()
    assert facts.hostname == os.uname().nodename
    assert facts.kernel >= (4, 0)
    assert "nofile" in facts.rlimits
    assert facts.hosts() == facts.hosts()
    null = facts.devices_at("/dev/null")[0]
    assert (null.type, null.major, null.minor) == ("c", 1, 3)
    with pytest.raises(UsageError, match="not a device node"):
        facts.devices_at("/etc/passwd")
    with pytest.raises(UsageError, match="No such file"):
        facts.devices_at("/dev/surely/not")


TEXT = st.text(max_size=8)


@given(
    st.builds(
        ImageConfig,
        entrypoint=st.lists(TEXT, max_size=2).map(tuple),
        cmd=st.lists(TEXT, max_size=2).map(tuple),
        env=st.lists(TEXT, max_size=3).map(tuple),
        working_dir=TEXT,
        volumes=st.lists(TEXT | st.just("/../x"), max_size=3).map(tuple),
    ),
    st.booleans(),
)
def test_hostile_images_give_a_spec_or_an_error_of_ours(image: ImageConfig, read_only: bool) -> None:
    try:
        built = spec(ContainerConfig(image="x", read_only=read_only), image=image)
    except (UsageError, CommandNotFound):
        return
    assert built["process"]["cwd"].startswith("/")
    assert all(
        mount["destination"].startswith("/") and ".." not in mount["destination"].split("/")
        for mount in built["mounts"]
    )
