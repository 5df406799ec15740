"""Devices, kernel parameters, security options and the platform.

Invariant: what leaves here is spelled one way: capabilities upper case without ``CAP_``, parameters with dots.
"""

from __future__ import annotations

import posixpath
import re

from crungo.config import Device
from crungo.parsing.values import bad_value, parse_bool, quote, words
from crungo.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from crungo.config import PullPolicy

__all__ = [
    "CAPABILITIES",
    "SecurityOption",
    "parse_capability",
    "parse_device",
    "parse_platform",
    "parse_pull",
    "parse_security_opt",
    "parse_sysctl",
]

# capabilities(7), in the order of their numbers: the position of a name is its number.
CAPABILITIES = words(
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE "
    "NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT "
    "SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP "
    "MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
)
_KNOWN_CAPABILITIES = frozenset(CAPABILITIES)
_PERMISSIONS = r"(?!.*(.).*\1)[rwm]{1,3}"
_SYSCTL_NAME = r"[A-Za-z0-9_-]+(?:[./][A-Za-z0-9_:-]+)+"
_PLATFORM = r"[a-z0-9_.-]{1,32}(?:/[a-z0-9_.-]{1,32}){1,2}"
_PULL: dict[str, PullPolicy] = {"missing": "missing", "always": "always", "never": "never", "newer": "newer"}


def parse_capability(text: str, *, flag: str = "--cap-add") -> tuple[str, ...]:
    """Capability names, several with commas between them, either case, with or without ``CAP_``; or ``ALL``."""
    names = []
    for word in text.split(","):
        name = word.strip().upper().removeprefix("CAP_")
        if name != "ALL" and name not in _KNOWN_CAPABILITIES:
            raise bad_value(flag, text, f"unknown capability {quote(word)}; expected a name such as NET_ADMIN, or ALL")
        names.append(name)
    return tuple(names)


def parse_device(text: str, *, flag: str = "--device") -> Device:
    """``host[:container[:permissions]]`` or ``host:permissions``; permissions are of r, w and m."""
    source, *rest = text.split(":")
    permissions = "rwm"
    if rest and not rest[-1].startswith("/"):
        permissions = rest.pop()
        if not re.fullmatch(_PERMISSIONS, permissions):
            raise bad_value(flag, text, f"malformed permissions {quote(permissions)}; expected a selection of rwm")
    if len(rest) > 1:
        raise bad_value(flag, text, "too many parts; expected host-path[:container-path[:permissions]]")
    if not source.startswith("/"):
        what = "CDI devices are not supported; " if "=" in source else ""
        raise bad_value(flag, text, f"{what}expected an absolute path of the host, such as /dev/fuse")
    target = rest[0] if rest else source
    if "\0" in text or posixpath.normpath(target) in ("/", "//", "/dev"):
        raise bad_value(flag, text, "no path for a device; expected one such as /dev/fuse")
    return Device(source=_normal(source), target=_normal(target), permissions=permissions)


def _normal(path: str) -> str:
    return "/" + posixpath.normpath(path).lstrip("/")


def parse_sysctl(text: str, *, flag: str = "--sysctl") -> tuple[str, str]:
    """``name=value``; slashes in the name are taken as dots, as sysctl(8) does."""
    name, equals, value = text.partition("=")
    if not equals or not re.fullmatch(_SYSCTL_NAME, name) or ".." in name:
        raise bad_value(flag, text, "not a kernel parameter; expected name=value, such as net.core.somaxconn=1024")
    if "\0" in value or "\n" in value:
        raise bad_value(flag, text, "the value is not one line")
    return _dotted(name), value


def _dotted(name: str) -> str:
    # In the form with slashes a dot is part of a component (an interface called eth0.1): the two swap places.
    first = next(c for c in name if c in "./")
    return name.translate(str.maketrans("./", "/.")) if first == "/" else name


class SecurityOption(Record):
    """What one ``--security-opt`` asks for; ``None`` where it says nothing.

    ``seccomp`` is ``unconfined``, ``builtin`` or the path of a profile, still to be read.
    """

    seccomp: str | None = None
    no_new_privileges: bool | None = None
    unmask: bool | None = None


def parse_security_opt(text: str, *, flag: str = "--security-opt") -> SecurityOption:
    """``seccomp=…``, ``no-new-privileges[=bool]``, ``systempaths|apparmor=unconfined``, ``label=disable``."""
    separator = "=" if "=" in text else ":"  # docker's older form has a colon
    key, _, value = text.partition(separator)
    if key == "no-new-privileges":
        return SecurityOption(no_new_privileges=parse_bool(value or "true", flag=f"{key} in {flag}"))
    if key == "seccomp" and value:
        return SecurityOption(seccomp=value)
    if (key, value) in (("systempaths", "unconfined"), ("unmask", "ALL"), ("unmask", "all")):
        return SecurityOption(unmask=True)
    # No AppArmor profile and no SELinux label is ever applied, so that asking for none changes nothing.
    if (key, value) in (("apparmor", "unconfined"), ("label", "disable")):
        return SecurityOption()
    if key in ("apparmor", "label"):
        only = "label=disable" if key == "label" else "apparmor=unconfined"
        raise bad_value(flag, text, f"{key} is not supported, except for {only}")
    raise bad_value(
        flag, text, "unknown option; expected seccomp=<profile|unconfined>, no-new-privileges or systempaths=unconfined"
    )


def parse_platform(text: str, *, flag: str = "--platform") -> str:
    """``os/architecture[/variant]``, in lower case."""
    platform = text.lower()
    if not re.fullmatch(_PLATFORM, platform):
        raise bad_value(flag, text, "not a platform; expected os/architecture[/variant], such as linux/arm64")
    return platform


def parse_pull(text: str, *, flag: str = "--pull") -> PullPolicy:
    """When to ask the registry: always, missing, never, newer."""
    policy = _PULL.get(text)
    if policy is None:
        raise bad_value(flag, text, "unknown policy; expected always, missing, never or newer")
    return policy
