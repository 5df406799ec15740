"""Platforms: what an image is for, what this machine is, and which of several images suits it best. Pure but for
``Platform.host``.

Names are Go's, as everywhere in the image world (OCI image specification, image-index.md); other spellings
(``x86_64``, ``aarch64``, ``armhf``) are made canonical, and a variant that says nothing is dropped: ``arm64/v8`` is
``arm64``, ``amd64/v1`` is ``amd64``.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache

from crungo.errors import UsageError
from crungo.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Platform"]

_OS = {"macos": "darwin"}
_ARCHITECTURES = {  # spelling: (architecture, variant)
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "i386": ("386", ""),
    "i486": ("386", ""),
    "i586": ("386", ""),
    "i686": ("386", ""),
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "armv8l": ("arm", "v7"),  # a 64-bit processor running 32-bit programs
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "armv5tel": ("arm", "v5"),
    "armv5tejl": ("arm", "v5"),
}
_KNOWN_OS = frozenset({"linux", "windows", "darwin", "freebsd", "netbsd", "openbsd", "solaris", "plan9", "wasi"})
_PART = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_IMPLIED = {"arm64": "v8", "amd64": "v1"}

# The flags in /proc/cpuinfo that the x86-64 psABI asks for, per level; each level includes those before it.
_AMD64_LEVELS = (
    ("v2", frozenset(["cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"])),
    ("v3", frozenset(["avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"])),
    ("v4", frozenset(["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"])),
)


class Platform(Record):
    """An operating system, an architecture and perhaps a variant of it; empty parts are unknown."""

    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def of(cls, os_name: str, architecture: str, variant: str = "") -> Platform:
        """The canonical form of names as an image gives them; never fails."""
        os_name = os_name.lower()
        architecture = architecture.lower()
        variant = variant.lower()
        architecture, spelled = _ARCHITECTURES.get(architecture, (architecture, ""))
        variant = variant or spelled
        if variant.isdecimal():
            variant = "v" + variant
        if architecture == "arm" and not variant:
            variant = "v7"  # what images for "arm" without a variant are built for
        if _IMPLIED.get(architecture) == variant:
            variant = ""
        return cls(os=_OS.get(os_name, os_name), architecture=architecture, variant=variant)

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Read ``os/arch[/variant]``, or one of os and arch alone, the other being this machine's.

        Raises:
            UsageError: the text is none of these.
        """
        parts = text.strip().lower().split("/")
        if len(parts) > 3 or not all(_PART.fullmatch(part) for part in parts):
            raise UsageError(f"invalid platform {text!a:.80}: expected os/arch or os/arch/variant, as in linux/arm64")
        if len(parts) > 1:
            return cls.of(*parts)
        host = cls.host()
        if _OS.get(parts[0], parts[0]) in _KNOWN_OS:
            return cls(os=_OS.get(parts[0], parts[0]), architecture=host.architecture, variant=host.variant)
        return cls.of(host.os, parts[0])

    @classmethod
    def host(cls) -> Platform:
        """This machine, with the highest variant that it runs."""
        return _host()

    def accepts(self, other: Platform) -> int | None:
        """How well an image for ``other`` suits: 0 is exact, more is an older variant, ``None`` not at all."""
        if (self.os, self.architecture) != (other.os, other.architecture):
            return None
        ours, theirs = _level(self), _level(other)
        if ours is None or theirs is None:
            return 0 if self.variant == other.variant else None
        return ours - theirs if theirs <= ours else None

    def best(self, offered: Iterable[Platform | None]) -> int | None:
        """The position of the best offer: the first among the nearest. An offer without a platform comes last."""
        ranked: list[tuple[int, int]] = []
        for position, platform in enumerate(offered):
            rank = 1000 if platform is None else self.accepts(platform)
            if rank is not None:
                ranked.append((rank, position))
        return min(ranked)[1] if ranked else None

    def beside(self, others: Iterable[Platform | None]) -> Platform:
        """What to call it where there are only these: the variant matters to who has the architecture."""
        kind = (self.os, self.architecture)
        alike = any(other and (other.os, other.architecture) == kind for other in others)
        return self if alike else Platform(os=self.os, architecture=self.architecture)

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


def _level(platform: Platform) -> int | None:
    """The variant as a number where variants are a ladder (each runs what is made for those below it)."""
    if platform.architecture not in ("arm", "arm64", "amd64"):
        return None
    variant = platform.variant or _IMPLIED.get(platform.architecture, "")
    match = re.fullmatch(r"v([0-9]{1,2})(?:\.([0-9]{1,2}))?", variant)
    return int(match[1]) * 100 + int(match[2] or 0) if match else None


@lru_cache(maxsize=1)
def _host() -> Platform:
    system = os.uname()
    platform = Platform.of(system.sysname, system.machine)
    if platform.architecture != "amd64":
        return platform
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            line = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return platform
    return Platform.of(platform.os, "amd64", amd64_level(line.partition(":")[2].split()))


def amd64_level(flags: Iterable[str]) -> str:
    """The x86-64 level (``v1`` to ``v4``) of a processor with these flags of /proc/cpuinfo."""
    present = frozenset(flags)
    level = "v1"
    for name, needed in _AMD64_LEVELS:
        if not needed <= present:
            break
        level = name
    return level
