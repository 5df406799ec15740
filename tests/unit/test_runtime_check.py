"""What is checked before anything is pulled, the facts about the host, and the files of /etc."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from crungo.config import ContainerConfig, Device, Mount
from crungo.errors import CrungoError, HostError, UsageError
from crungo.records import replace
from crungo.runtime.check import check_config
from crungo.runtime.etc import etc_files
from crungo.runtime.host import HostFacts
from tests.support.spec import HOST

if TYPE_CHECKING:
    from pathlib import Path


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
