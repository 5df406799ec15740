"""Credential helpers: ``docker-credential-<name> get|store|erase``, programs that keep secrets in a keychain.

The protocol is that of docker/docker-credential-helpers: the server's key or a JSON object on stdin, a JSON object or a
message on stdout, exit code 0 or 1.

Invariant: a helper gets its input on stdin only, never in its arguments, and runs for at most a minute.
"""

from __future__ import annotations

import json
import os
import subprocess

import anyio

from crungo.errors import AuthenticationError
from crungo.registry.credentials import TOKEN_USER, Credential
from crungo.registry.headers import printable

__all__ = ["erase", "get", "store"]

_TIMEOUT = 60.0  # seconds: some ask the user to unlock a keychain
_NOT_FOUND = "credentials not found in native keychain"


async def get(helper: str, key: str) -> Credential | None:
    """What ``helper`` keeps for ``key``; None where it has nothing.

    Raises:
        AuthenticationError: the helper is not installed, fails, or answers something else than its protocol says.
    """
    status, output = await _run(helper, "get", key.encode())
    if status != 0:
        if _NOT_FOUND in output:
            return None
        raise AuthenticationError(f"{_program(helper)} get: {printable(output) or f'ended with exit code {status}'}")
    try:
        answer = json.loads(output)
        username, secret = answer["Username"], answer["Secret"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise AuthenticationError(f"{_program(helper)} get: its answer is malformed") from None
    if not isinstance(username, str) or not isinstance(secret, str):
        raise AuthenticationError(f"{_program(helper)} get: its answer is malformed")
    if username == TOKEN_USER:
        return Credential(identity_token=secret)
    return Credential(username=username, password=secret)


async def store(helper: str, key: str, credential: Credential) -> None:
    """Let ``helper`` keep ``credential`` for ``key``.

    Raises:
        AuthenticationError: the helper is not installed or fails.
    """
    token = credential.identity_token
    request = {
        "ServerURL": key,
        "Username": TOKEN_USER if token else credential.username,
        "Secret": token or credential.password,
    }
    status, output = await _run(helper, "store", json.dumps(request).encode())
    if status != 0:
        raise AuthenticationError(f"{_program(helper)} store: {printable(output) or f'ended with exit code {status}'}")


async def erase(helper: str, key: str) -> bool:
    """Let ``helper`` forget ``key``; False where it knew nothing of it.

    Helpers differ in what they say about an unknown key, hence the question before.

    Raises:
        AuthenticationError: the helper is not installed or fails.
    """
    if await get(helper, key) is None:
        return False
    status, output = await _run(helper, "erase", key.encode())
    if status != 0:
        raise AuthenticationError(f"{_program(helper)} erase: {printable(output) or f'ended with exit code {status}'}")
    return True


def _program(helper: str) -> str:
    return f"docker-credential-{helper}"


async def _run(helper: str, verb: str, stdin: bytes) -> tuple[int, str]:
    """Exit code and stdout; stderr goes nowhere, since helpers report on stdout."""
    # A file in memory, not a pipe: a helper that ends without reading its input is no error, and breaks no pipe here.
    memory = os.memfd_create("credential", os.MFD_CLOEXEC)
    try:
        os.write(memory, stdin)
        os.lseek(memory, 0, os.SEEK_SET)
        with anyio.fail_after(_TIMEOUT):
            ended = await anyio.run_process(
                [_program(helper), verb], stdin=memory, check=False, stderr=subprocess.DEVNULL
            )
    except FileNotFoundError:
        raise AuthenticationError(f"{_program(helper)}: not installed") from None
    except OSError as error:
        why = f"no answer within {_TIMEOUT:g} seconds" if isinstance(error, TimeoutError) else error.strerror
        raise AuthenticationError(f"{_program(helper)} {verb}: {why}") from None
    finally:
        os.close(memory)
    return ended.returncode, ended.stdout[: 1 << 20].decode("utf-8", "replace").strip()
