"""Specifications: what a container gets by default, and what each wish changes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crungo.config import ContainerConfig, ExecConfig, Ulimit
from crungo.errors import CommandNotFound, HostError, UsageError
from crungo.image.imageconfig import ImageConfig
from crungo.records import replace
from crungo.runtime.host import HostFacts
from crungo.runtime.spec import build_exec
from tests.support.spec import HOST, environment, mount_on, namespaces, spec


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
    assert built["linux"]["resources"]["devices"] == [{"allow": False, "access": "rwm"}]  # the usual ones by libcrun


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
    for name, least in (("nofile", 16), ("cpu", 1)):
        with pytest.raises(UsageError, match=f"too low to start a container with; the least is {least}"):
            spec(ulimits=(Ulimit(name=name, soft=least - 1, hard=4096),))
        spec(ulimits=(Ulimit(name=name, soft=least, hard=4096),))
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


def test_exec_unsets_a_variable_and_refuses_what_names_none() -> None:
    base = spec(env={"A": "1", "B": "2"})["process"]
    env = build_exec(ExecConfig(command=("sh",), env={"A": None}), base, host=HOST)["env"]
    assert "B=2" in env
    assert not [entry for entry in env if entry.startswith("A=")]
    for name in ("", "A=B"):
        with pytest.raises(UsageError, match=f'^environment variable "{name}": not a name$'):
            build_exec(ExecConfig(command=("sh",), env={name: "1"}), base, host=HOST)


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
