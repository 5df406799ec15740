"""Names and networks of containers: host names, /etc/hosts, name servers, kernel parameters, both kinds of network."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.support.command import Crungo


def test_the_host_name(crungo: Crungo, busybox_reference: str, tmp_path: Path) -> None:
    script = "hostname; cat /etc/hostname; echo $HOSTNAME"
    cidfile = tmp_path / "id"
    done = crungo("run", "--cidfile", cidfile, busybox_reference, "sh", "-c", script, check=0)
    assert done.stdout.split() == [cidfile.read_text()[:12]] * 3
    done = crungo("run", "--hostname", "web-1.example", busybox_reference, "sh", "-c", script, check=0)
    assert done.stdout.split() == ["web-1.example"] * 3
    done = crungo("run", "-h", "short", "--net", "host", busybox_reference, "sh", "-c", script, check=0)
    assert done.stdout.split() == ["short"] * 3
    done = crungo("run", "--net", "host", busybox_reference, "hostname", check=0)
    assert done.stdout.strip() == socket.gethostname()


def test_etc_hosts(crungo: Crungo, busybox_reference: str) -> None:
    flags = [
        "--hostname",
        "web.example",
        "--name",
        "net_names",
        "--add-host",
        "db:192.0.2.9",
        "--add-host",
        "six=[::2]",
    ]
    done = crungo("run", *flags, busybox_reference, "cat", "/etc/hosts", check=0)
    found = [line.split() for line in done.stdout.splitlines()]
    assert ["192.0.2.9", "db"] in found
    assert ["::2", "six"] in found
    assert ["127.0.0.1", "localhost"] in found
    assert ["127.0.0.1", "web.example", "web", "net_names"] in found


def test_the_hosts_own_files_with_its_network(crungo: Crungo, busybox_reference: str) -> None:
    flags = ["--net=host", "--add-host", "here:host-gateway", "--dns", "192.0.2.53"]
    done = crungo("run", *flags, busybox_reference, "cat", "/etc/hosts", check=0)
    assert done.stdout == "127.0.0.1\there\n" + Path("/etc/hosts").read_text()
    done = crungo("run", "--net=host", busybox_reference, "cat", "/etc/resolv.conf", check=0)
    assert done.stdout == Path("/etc/resolv.conf").read_text()
    done = crungo("run", *flags, busybox_reference, "grep", "nameserver", "/etc/resolv.conf", check=0)
    assert done.stdout == "nameserver 192.0.2.53\n"


def test_name_servers(crungo: Crungo, busybox_reference: str) -> None:
    flags = ["--dns", "192.0.2.1", "--dns", "2001:db8:0:0::1"]
    done = crungo("run", *flags, busybox_reference, "cat", "/etc/resolv.conf", check=0)
    assert done.stdout == "nameserver 192.0.2.1\nnameserver 2001:db8::1\n"


def test_etc_files_can_be_written(crungo: Crungo, busybox_reference: str) -> None:
    script = "echo 192.0.2.3 mine >> /etc/hosts; ping -c 1 -w 1 mine 2>&1 | head -1; stat -c '%a %u' /etc/hosts"
    done = crungo("run", busybox_reference, "sh", "-c", script, check=0)
    assert "192.0.2.3" in done.stdout or "Network is unreachable" in done.stdout or "permitted" in done.stdout
    assert done.stdout.endswith("644 0\n")


@pytest.mark.parametrize("flags", [[], ["--net", "none"], ["--network=none"]])
def test_no_network(crungo: Crungo, busybox_reference: str, flags: list[str]) -> None:
    """There is a loopback that is up, and nothing else."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        script = f"ls /sys/class/net; ip addr show lo | grep -c -e UP -e 127.0.0.1; nc 127.0.0.1 {port} || echo refused"
        done = crungo("run", *flags, busybox_reference, "sh", "-c", script, check=0)
    assert done.stdout.split() == ["lo", "2", "refused"]


def test_the_hosts_network(crungo: Crungo, busybox_reference: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        command = ["sh", "-c", f"nc 127.0.0.1 {port}; ls /sys/class/net"]
        with crungo.start("run", "--network", "host", busybox_reference, *command) as process:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"hello from the host\n")
            assert process.stdout is not None
            first, *interfaces = process.stdout.read().decode().splitlines()
            assert process.wait(30) == 0
    assert first == "hello from the host"
    assert set(interfaces) == {name for _, name in socket.if_nameindex()}


def test_low_ports_and_pings_need_no_privilege(crungo: Crungo, busybox_reference: str) -> None:
    """In a network of one's own, which nobody else shares."""
    script = "httpd -p 80 -h /etc; wget -q -O - http://127.0.0.1/hostname; cat /proc/sys/net/ipv4/ping_group_range"
    flags = ["-u", "1000", "--cap-drop", "ALL", "--hostname", "inside"]
    done = crungo("run", *flags, busybox_reference, "sh", "-c", script, check=0)
    assert done.stdout.split() == ["inside", "0", "2147483647"]


def test_kernel_parameters(crungo: Crungo, busybox_reference: str) -> None:
    flags = [
        "--sysctl",
        "net.ipv4.ip_forward=1",
        "--sysctl",
        "kernel.msgmax=10000",
        "--sysctl",
        "net/core/somaxconn=77",
    ]
    script = (
        "cd /proc/sys; cat net/ipv4/ip_forward kernel/msgmax net/core/somaxconn net/ipv4/ip_unprivileged_port_start"
    )
    before = Path("/proc/sys/net/ipv4/ip_forward").read_text()
    done = crungo("run", *flags, busybox_reference, "sh", "-c", script, check=0)
    assert done.stdout.split() == ["1", "10000", "77", "0"]
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == before
