"""Seccomp: key calls with and without capabilities, consistency of the tables, and users' profiles."""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crungo.errors import UsageError
from crungo.parsing.host import CAPABILITIES
from crungo.runtime.capabilities import DEFAULT
from crungo.runtime.seccomp import default_profile, user_profile
from crungo.runtime.seccomp_rules import ALLOWED, NAMESPACE_FLAGS, REFUSED

NO_CAPABILITIES: frozenset[str] = frozenset()


def matches(rule: dict[str, Any], argument: int) -> bool:
    """Whether the rule's condition on the first argument holds."""
    for condition in rule.get("args", []):
        op, value = condition["op"], condition["value"]
        if op == "SCMP_CMP_EQ" and argument != value:
            return False
        if op == "SCMP_CMP_NE" and argument == value:
            return False
        if op == "SCMP_CMP_MASKED_EQ" and argument & value != condition["valueTwo"]:
            return False
    return True


def verdict(profile: dict[str, Any], call: str, argument: int = 0) -> str | int:
    """``allow`` or the errno of a call; fails where rules disagree."""
    found = {
        "allow" if rule["action"] == "SCMP_ACT_ALLOW" else rule["errnoRet"]
        for rule in profile["syscalls"]
        if call in rule["names"] and matches(rule, argument)
    }
    assert len(found) <= 1, (call, found)
    result: str | int = found.pop() if found else profile["defaultErrnoRet"]
    return result


DEFAULT_PROFILE = default_profile(frozenset(DEFAULT), "amd64")


@pytest.mark.parametrize(
    "call",
    [
        "read",
        "openat",
        "execve",
        "futex",
        "socketpair",
        "ptrace",
        "chroot",
        "epoll_pwait2",
        "statx",
        "getrandom",
        "rseq",
        "mmap",
        "arch_prctl",
    ],
)
def test_everyday_calls_are_allowed(call: str) -> None:
    assert verdict(DEFAULT_PROFILE, call) == "allow"


@pytest.mark.parametrize(
    "call",
    [
        "mount",
        "unshare",
        "setns",
        "bpf",
        "keyctl",
        "add_key",
        "kexec_load",
        "init_module",
        "reboot",
        "swapon",
        "pivot_root",
        "io_uring_setup",
        "userfaultfd",
        "perf_event_open",
        "open_by_handle_at",
        "settimeofday",
        "iopl",
        "acct",
        "syslog",
        "kcmp",
        "mbind",
        "uselib",
    ],
)
def test_dangerous_calls_are_refused_as_the_kernel_would(call: str) -> None:
    assert verdict(DEFAULT_PROFILE, call) == errno.EPERM


@pytest.mark.parametrize("call", ["clone3", "a_call_of_the_future"])
def test_unknown_calls_do_not_exist(call: str) -> None:
    assert verdict(DEFAULT_PROFILE, call) == errno.ENOSYS


@pytest.mark.parametrize(
    ("capability", "call"),
    [
        ("SYS_ADMIN", "mount"),
        ("SYS_ADMIN", "clone3"),
        ("SYS_ADMIN", "bpf"),
        ("BPF", "bpf"),
        ("PERFMON", "perf_event_open"),
        ("SYS_TIME", "clock_settime"),
        ("SYS_PTRACE", "kcmp"),
        ("SYS_MODULE", "init_module"),
        ("SYS_BOOT", "reboot"),
        ("SYS_RAWIO", "iopl"),
        ("SYSLOG", "syslog"),
        ("SYS_NICE", "mbind"),
        ("DAC_READ_SEARCH", "open_by_handle_at"),
        ("SYS_CHROOT", "chroot"),
        ("SYS_PACCT", "acct"),
        ("SYS_TTY_CONFIG", "vhangup"),
    ],
)
def test_capabilities_open_their_calls(capability: str, call: str) -> None:
    assert verdict(default_profile(NO_CAPABILITIES, "amd64"), call) != "allow"
    assert verdict(default_profile(frozenset({capability}), "amd64"), call) == "allow"


def test_clone_makes_no_namespaces_without_sys_admin() -> None:
    assert verdict(DEFAULT_PROFILE, "clone", 0x11) == "allow"  # SIGCHLD: fork
    assert verdict(DEFAULT_PROFILE, "clone", 0x3D0F00) == "allow"  # a thread
    for flag in NAMESPACE_FLAGS:
        assert verdict(DEFAULT_PROFILE, "clone", flag | 0x11) == errno.EPERM
    assert verdict(DEFAULT_PROFILE, "clone", sum(NAMESPACE_FLAGS)) == errno.EPERM
    assert verdict(default_profile(frozenset({"SYS_ADMIN"}), "amd64"), "clone", sum(NAMESPACE_FLAGS)) == "allow"


def test_arguments_of_socket_and_personality() -> None:
    assert verdict(DEFAULT_PROFILE, "socket", 2) == "allow"
    assert verdict(DEFAULT_PROFILE, "socket", 40) == errno.ENOSYS  # AF_VSOCK
    assert verdict(DEFAULT_PROFILE, "personality", 0xFFFFFFFF) == "allow"
    assert verdict(DEFAULT_PROFILE, "personality", 0x0040000) == errno.ENOSYS  # ADDR_NO_RANDOMIZE


def test_architectures() -> None:
    assert DEFAULT_PROFILE["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    arm = default_profile(frozenset(DEFAULT), "arm64")
    assert arm["architectures"] == ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
    assert verdict(arm, "cacheflush") == "allow"
    assert verdict(arm, "arch_prctl") == errno.ENOSYS
    assert "architectures" not in default_profile(NO_CAPABILITIES, "loong64")


def test_no_call_is_in_two_places() -> None:
    names = [name for group in (*ALLOWED, *REFUSED) for name in group.calls]
    assert len(names) == len(set(names))
    assert all(set(group.capabilities) <= set(CAPABILITIES) for group in ALLOWED)
    assert not {"clone", "clone3", "socket", "personality"} & set(names)


@given(st.frozensets(st.sampled_from(CAPABILITIES)), st.sampled_from(["amd64", "arm64"]))
def test_no_call_has_two_verdicts(capabilities: frozenset[str], architecture: str) -> None:
    profile = default_profile(capabilities, architecture)
    for name in {name for rule in profile["syscalls"] for name in rule["names"]}:
        for argument in (0, 40, *NAMESPACE_FLAGS, 0xFFFFFFFF):
            verdict(profile, name, argument)


def test_libseccomp_knows_all_but_the_newest_names() -> None:
    path = ctypes.util.find_library("seccomp")
    if path is None:
        pytest.skip("no libseccomp here")
    library = ctypes.CDLL(path)
    newest = {
        "uretprobe",
        "mseal",
        "statmount",
        "listmount",
        "getxattrat",
        "setxattrat",
        "listxattrat",
        "removexattrat",
    }
    newest |= {
        "cachestat",
        "fchmodat2",
        "map_shadow_stack",
        "futex_wait",
        "futex_wake",
        "futex_requeue",
        "set_mempolicy_home_node",
    }
    unknown = {
        name
        for group in (*ALLOWED, *REFUSED)
        for name in group.calls
        if library.seccomp_syscall_resolve_name(name.encode()) == -1
    }
    assert unknown <= newest


def user(profile: Any, capabilities: frozenset[str] = NO_CAPABILITIES) -> dict[str, Any]:
    return user_profile(json.dumps(profile), capabilities, architecture="amd64", kernel=(6, 1))


def test_dockers_form() -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "archMap": [
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
        ],
        "syscalls": [
            {
                "names": ["read", "write"],
                "action": "SCMP_ACT_ALLOW",
                "args": [],
                "comment": "",
                "includes": {},
                "excludes": {},
            },
            {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["chmod"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["cacheflush"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["arm64"]}},
            {"names": ["modify_ldt"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["amd64", "x32"]}},
            {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
            {"names": ["future"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "7.0"}},
            {
                "name": "clone",
                "action": "SCMP_ACT_ALLOW",
                "args": [{"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}],
            },
        ],
    }
    result = user(profile)
    assert result["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    assert [rule["names"] for rule in result["syscalls"]] == [
        ["read", "write"],
        ["chmod"],
        ["modify_ldt"],
        ["ptrace"],
        ["clone"],
    ]
    assert result["syscalls"][0] == {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"}
    assert result["syscalls"][-1]["args"] == [
        {"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
    ]
    assert ["mount"] in [rule["names"] for rule in user(profile, frozenset({"SYS_ADMIN"}))["syscalls"]]


def test_the_runtime_specifications_form_passes_unchanged() -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "syscalls": [{"names": ["chmod"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13}],
    }
    assert user(profile) == profile
    assert user(default_profile(frozenset(DEFAULT), "amd64")) == DEFAULT_PROFILE


@pytest.mark.parametrize(
    "profile",
    [
        [],
        {},
        {"defaultAction": "ALLOW"},
        {"defaultAction": "SCMP_ACT_NOTIFY"},
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": {}},
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"action": "SCMP_ACT_ALLOW"}]},
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["a b"], "action": "SCMP_ACT_ALLOW"}]},
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["a"], "action": "SCMP_ACT_ALLOW", "errnoRet": -1}]},
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["a"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 9, "op": "SCMP_CMP_EQ"}]}],
        },
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["a"], "action": "SCMP_ACT_ALLOW", "args": [{"op": ["SCMP_CMP_EQ"]}]}],
        },
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["a"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": 4.8}}],
        },
        {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["x86"]},
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86"],
            "archMap": [{"architecture": "SCMP_ARCH_X86"}],
        },
        {"defaultAction": ["SCMP_ACT_ALLOW"]},
        {"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": True},
    ],
)
def test_malformed_profiles(profile: Any) -> None:
    with pytest.raises(UsageError, match=r"^seccomp profile: "):
        user(profile)


def test_profiles_that_are_not_json() -> None:
    for text in (
        "",
        "{",
        "[" * 100_000,
        "\0",
        "x" * (5 << 20),
        '{"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": ' + "9" * 5000 + "}",
    ):
        with pytest.raises(UsageError, match=r"^seccomp profile: "):
            user_profile(text, NO_CAPABILITIES, architecture="amd64", kernel=(6, 1))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=5)
    | st.sampled_from(["SCMP_ACT_ALLOW", "SCMP_CMP_EQ", "read"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "defaultAction",
                    "syscalls",
                    "names",
                    "action",
                    "args",
                    "op",
                    "includes",
                    "caps",
                    "archMap",
                    "architecture",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON, JSON)
def test_hostile_profiles_raise_only_usage_errors(profile: Any, rules: Any) -> None:
    for document in (
        profile,
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rules]},
        {"defaultAction": "SCMP_ACT_ALLOW", "archMap": rules},
    ):
        try:
            assert user(document)["defaultAction"].startswith("SCMP_ACT_")
        except UsageError as error:
            assert str(error).isprintable()  # noqa: PT017
