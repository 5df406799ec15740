"""A seccomp filter, interpreted: classic BPF as ``seccomp(2)`` takes it (kernel document networking/filter)."""

from __future__ import annotations

import struct

__all__ = ["ALLOW", "AUDIT_ARCH_X86_64", "decide"]

AUDIT_ARCH_X86_64 = 0xC000003E
ALLOW = 0x7FFF0000
LOAD, JUMP, RETURN, AND = 0x20, 0x05, 0x06, 0x54
CONDITIONS = {
    0x15: lambda value, k: value == k,
    0x25: lambda value, k: value > k,
    0x35: lambda value, k: value >= k,
    0x45: lambda value, k: value & k != 0,
}


def decide(program: bytes, architecture: int, number: int, arguments: tuple[int, ...] = ()) -> tuple[int, int]:
    """The filter's answer to a system call, and how many instructions it took."""
    data = struct.pack("<IIQ6Q", number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    at = steps = accumulator = 0
    while True:
        code, if_true, if_false, k = struct.unpack_from("<HBBI", program, 8 * at)
        at += 1
        steps += 1
        if code == RETURN:
            return k, steps
        if code == LOAD:
            (accumulator,) = struct.unpack_from("<I", data, k)
        elif code == AND:
            accumulator &= k
        elif code == JUMP:
            at += k
        else:
            at += if_true if CONDITIONS[code](accumulator, k) else if_false
