"""Content digests: ``algorithm:hex`` as the OCI image specification writes them (descriptor.md, Digests).

Invariant: a text that ``is_digest`` accepts holds nothing but a known algorithm, a colon and lower-case hex digits of
the right number, so that it is safe in file names, URLs and messages.
"""

from __future__ import annotations

import hashlib
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hashlib import _Hash

__all__ = ["ALGORITHMS", "EMPTY_SHA256", "algorithm_of", "digest_of", "digest_problem", "hasher", "hex_of", "is_digest"]

_HEX_LENGTH = {"sha256": 64, "sha512": 128}
ALGORITHMS = tuple(_HEX_LENGTH)
_HEX = re.compile(r"[0-9a-f]+")

EMPTY_SHA256 = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def digest_problem(text: str) -> str | None:
    """What is wrong with a digest, in words, or ``None`` when nothing is."""
    algorithm, colon, encoded = text.partition(":")
    if not colon:
        return "digest lacks its algorithm (sha256:…)"
    length = _HEX_LENGTH.get(algorithm)
    if length is None:
        return "digest algorithm is neither sha256 nor sha512"
    if len(encoded) != length:
        return f"{algorithm} digest has {len(encoded)} digits, not {length}"
    if not _HEX.fullmatch(encoded):
        return "digest has characters other than 0-9 and a-f"
    return None


def is_digest(text: str) -> bool:
    """Whether the text is a digest of a known algorithm."""
    return digest_problem(text) is None


def algorithm_of(digest: str) -> str:
    """``sha256`` or ``sha512``."""
    return digest.partition(":")[0]


def hex_of(digest: str) -> str:
    """The digits after the colon."""
    return digest.partition(":")[2]


def hasher(digest: str) -> _Hash:
    """A fresh hash object of the digest's algorithm."""
    return hashlib.new(algorithm_of(digest))


def digest_of(body: bytes, algorithm: str = "sha256") -> str:
    """The digest of bytes in memory."""
    return f"{algorithm}:{hashlib.new(algorithm, body).hexdigest()}"
