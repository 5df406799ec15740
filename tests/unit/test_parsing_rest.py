"""Environment, process, host and network values."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crungo.config import Device, Ulimit
from crungo.errors import UsageError
from crungo.parsing import environment, host, network, process

if TYPE_CHECKING:
    from collections.abc import Callable

ENVIRON = {"HOME": "/root", "EMPTY": ""}


def test_env() -> None:
    assert environment.parse_env("A=b=c", ENVIRON) == ("A", "b=c")
    assert environment.parse_env("A=", ENVIRON) == ("A", "")
    assert environment.parse_env("HOME", ENVIRON) == ("HOME", "/root")
    assert environment.parse_env("EMPTY", ENVIRON) == ("EMPTY", "")
    assert environment.parse_env("ABSENT", ENVIRON) == ("ABSENT", None)
    for text in ("", "=x", "A=\0"):
        with pytest.raises(UsageError, match="--env"):
            environment.parse_env(text, ENVIRON)


def test_env_file_is_dockers_format() -> None:
    data = b'\xef\xbb\xbf# comment\n\nA=1\n  B= two \r\nC="kept"\nHOME\nABSENT\nD=x # no comment\nE='
    assert environment.parse_env_file(data, ENVIRON, path="f") == {
        "A": "1",
        "B": " two ",
        "C": '"kept"',
        "HOME": "/root",
        "D": "x # no comment",
        "E": "",
    }


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"A=1\nB C=2\n", r'^--env-file "x.env": line 2: variable "B C" contains whitespace'),
        (b"=2", r'"x.env": line 1: no variable name'),
        (b"A=\xff", r"line 1: not valid UTF-8"),
        (b"A=\0", r"line 1: holds a NUL"),
        (b"export A=1", r"line 1: .*whitespace"),
    ],
)
def test_env_file_errors_name_file_and_line(data: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        environment.parse_env_file(data, ENVIRON, path="x.env")


@given(st.binary(max_size=60) | st.text(alphabet="A=# \n\r\t", max_size=40).map(str.encode))
def test_files_raise_only_usage_errors(data: bytes) -> None:
    with contextlib.suppress(UsageError):
        assert all(name and "=" not in name for name in environment.parse_env_file(data, {}, path="p"))
    with contextlib.suppress(UsageError):
        assert all(name and "=" not in name for name in environment.parse_label_file(data, path="p"))


@given(
    st.dictionaries(
        st.from_regex(r"[A-Za-z_]\w{0,8}", fullmatch=True), st.text().filter(lambda t: not set(t) & set("\0\n\r"))
    )
)
def test_env_file_round_trip(pairs: dict[str, str]) -> None:
    data = "".join(f"{name}={value}\n" for name, value in pairs.items()).encode("utf-8")
    assert environment.parse_env_file(data, {}, path="p") == pairs


def test_labels() -> None:
    assert environment.parse_label("a=b=c") == ("a", "b=c")
    assert environment.parse_label("a") == ("a", "")
    assert environment.parse_label_file(b"a=1\n# c\nb\n", path="p") == {"a": "1", "b": ""}
    with pytest.raises(UsageError, match="--label"):
        environment.parse_label("=x")


def test_users() -> None:
    assert process.parse_user("") is None
    for text in ("app", "1000", "app:staff", "1000:1000", "0:0", "4294967294", "a.b-c$"):
        assert process.parse_user(text) == text
    for text in (":", "a:", ":b", "a:b:c", "a b", "4294967295", "-1", "1:-1", "1:99999999999999999999", "a/b", "a\n"):
        with pytest.raises(UsageError, match="--user"):
            process.parse_user(text)
    with pytest.raises(UsageError, match="--group-add"):
        process.parse_group("")


def test_entrypoint_and_workdir() -> None:
    assert process.parse_entrypoint("") == ()
    assert process.parse_entrypoint("/bin/sh -c") == ("/bin/sh -c",)
    assert process.parse_entrypoint('["a", "b c"]') == ("a", "b c")
    assert process.parse_entrypoint("[") == ("[",)
    with pytest.raises(UsageError, match="strings"):
        process.parse_entrypoint("[1]")
    assert process.parse_workdir("/a//b/../c") == "/a/c"
    assert process.parse_workdir("") is None
    with pytest.raises(UsageError, match="absolute"):
        process.parse_workdir("tmp")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("TERM", 15),
        ("SIGTERM", 15),
        ("sigkill", 9),
        ("9", 9),
        ("64", 64),
        ("RTMIN", 34),
        ("SIGRTMIN+3", 37),
        ("RTMAX-1", 63),
        ("rtmax", 64),
    ],
)
def test_signals(text: str, number: int) -> None:
    assert process.parse_signal(text) == number


@pytest.mark.parametrize(
    "text", ["", "SIG", "0", "65", "-1", "SIGSIGTERM", "RTMIN-1", "RTMAX+1", "RTMIN+31", "1.5", "²"]
)
def test_unknown_signals(text: str) -> None:
    with pytest.raises(UsageError, match="--stop-signal"):
        process.parse_signal(text)


def test_ulimits() -> None:
    assert process.parse_ulimit("nofile=1024:4096") == Ulimit(name="nofile", soft=1024, hard=4096)
    assert process.parse_ulimit("core=0") == Ulimit(name="core", soft=0, hard=0)
    assert process.parse_ulimit("memlock=-1:-1") == Ulimit(name="memlock", soft=-1, hard=-1)
    assert process.parse_ulimit("nofile=5:-1") == Ulimit(name="nofile", soft=5, hard=-1)
    for text in (
        "",
        "nofile",
        "nofile=",
        "nofile=a",
        "nofile=2:1",
        "nofile=-1:5",
        "nofile=-2",
        "files=1",
        "nofile=1:2:3",
        "nofile=" + "9" * 5000,
    ):
        with pytest.raises(UsageError, match="--ulimit"):
            process.parse_ulimit(text)


def test_capabilities() -> None:
    assert host.parse_capability("net_admin") == ("NET_ADMIN",)
    assert host.parse_capability("CAP_SYS_PTRACE,all") == ("SYS_PTRACE", "ALL")
    assert len(host.CAPABILITIES) == 41
    assert host.CAPABILITIES.index("SYS_ADMIN") == 21
    assert host.CAPABILITIES.index("CHECKPOINT_RESTORE") == 40
    for text in ("", "NET", "CAP_", "NET_ADMIN,"):
        with pytest.raises(UsageError, match="--cap-add"):
            host.parse_capability(text)


def test_devices() -> None:
    assert host.parse_device("/dev/fuse") == Device(source="/dev/fuse", target="/dev/fuse")
    assert host.parse_device("/dev/sda:/dev/xvda:r") == Device(source="/dev/sda", target="/dev/xvda", permissions="r")
    assert host.parse_device("/dev/sda:rw") == Device(source="/dev/sda", target="/dev/sda", permissions="rw")
    for text in (
        "",
        "fuse",
        "/",
        "/dev/a:/dev/b:x",
        "/dev/a:/dev/b:rr",
        "/dev/a:",
        "/dev/a:/b:rw:m",
        "nvidia.com/gpu=all",
        "/dev/a:/dev",
    ):
        with pytest.raises(UsageError, match="--device"):
            host.parse_device(text)


def test_sysctls() -> None:
    assert host.parse_sysctl("net.core.somaxconn=1024") == ("net.core.somaxconn", "1024")
    assert host.parse_sysctl("net/ipv4/conf/eth0.1/forwarding=1") == ("net.ipv4.conf.eth0/1.forwarding", "1")
    assert host.parse_sysctl("kernel.sem=1 2 3 4") == ("kernel.sem", "1 2 3 4")
    for text in ("", "a", "a=1", "net..x=1", "../x=1", "net.ipv4=\n", "=1"):
        with pytest.raises(UsageError, match="--sysctl"):
            host.parse_sysctl(text)


def test_security_options() -> None:
    assert host.parse_security_opt("no-new-privileges").no_new_privileges is True
    assert host.parse_security_opt("no-new-privileges:false").no_new_privileges is False
    assert host.parse_security_opt("seccomp=unconfined").seccomp == "unconfined"
    assert host.parse_security_opt("seccomp:/etc/p.json").seccomp == "/etc/p.json"
    assert host.parse_security_opt("systempaths=unconfined").unmask is True
    assert host.parse_security_opt("apparmor=unconfined") == host.parse_security_opt("label=disable")
    for text in ("", "seccomp", "seccomp=", "apparmor=mine", "label=type:x", "no-new-privileges=maybe", "odd=1"):
        with pytest.raises(UsageError, match="--security-opt"):
            host.parse_security_opt(text)


def test_platform_and_pull() -> None:
    assert host.parse_platform("Linux/ARM64/v8") == "linux/arm64/v8"
    assert host.parse_pull("newer") == "newer"
    for text in ("", "linux", "linux/", "linux/a/b/c", "li nux/x"):
        with pytest.raises(UsageError, match="--platform"):
            host.parse_platform(text)
    with pytest.raises(UsageError, match="--pull"):
        host.parse_pull("sometimes")


def test_networks() -> None:
    assert network.parse_network("none") == "none"
    assert network.parse_network("host") == "host"
    for text in ("bridge", "container:x", "mine", ""):
        with pytest.raises(UsageError, match="expected none or host"):
            network.parse_network(text)


def test_hostnames() -> None:
    for text in ("a", "web-1", "a.b.c", "A" * 64):
        assert network.parse_hostname(text) == text
    for text in ("", "-a", "a-", "a..b", "a b", "A" * 65, "ü", "a\n"):
        with pytest.raises(UsageError, match="--hostname"):
            network.parse_hostname(text)


def test_hosts_and_name_servers() -> None:
    assert network.parse_add_host("db:10.0.0.5") == ("db", "10.0.0.5")
    assert network.parse_add_host("db=::1") == ("db", "::1")
    assert network.parse_add_host("db:[2001:DB8::0:1]") == ("db", "2001:db8::1")
    assert network.parse_add_host("gw:host-gateway") == ("gw", "host-gateway")
    assert network.parse_dns("1.1.1.1") == "1.1.1.1"
    for text in (
        "",
        "db",
        "db:",
        ":1.1.1.1",
        "d b:1.1.1.1",
        "db:1.1.1",
        "db:fe80::1%eth0",
        "db:01.1.1.1",
        "a#b:1.1.1.1",
    ):
        with pytest.raises(UsageError, match="--add-host"):
            network.parse_add_host(text)
    with pytest.raises(UsageError, match="--dns"):
        network.parse_dns("one.one")


PARSERS: list[Callable[[str], object]] = [
    lambda text: environment.parse_env(text, {}),
    environment.parse_label,
    process.parse_user,
    process.parse_group,
    process.parse_workdir,
    process.parse_entrypoint,
    process.parse_signal,
    process.parse_ulimit,
    host.parse_capability,
    host.parse_device,
    host.parse_sysctl,
    host.parse_security_opt,
    host.parse_platform,
    host.parse_pull,
    network.parse_network,
    network.parse_hostname,
    network.parse_add_host,
    network.parse_dns,
]


@given(
    st.sampled_from(PARSERS),
    st.text()
    | st.from_regex(r"(RT|MIN|nofile|[-+=:/.,0-9\[\]\"{a-c])*", fullmatch=True)
    | st.text(alphabet="[", max_size=3000),
)
def test_nothing_but_usage_errors(parse: Callable[[str], object], text: str) -> None:
    try:
        parse(text)
    except UsageError as error:
        assert str(error).isprintable()  # noqa: PT017
