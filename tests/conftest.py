"""What holds for every test: a known environment, and hypothesis without a deadline."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

# The machine may be shared, and a slow example is not a wrong one.
hypothesis.settings.register_profile(
    "crungo", deadline=None, print_blob=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("crungo")

_FOREIGN = ("CRUNGO_", "DOCKER_", "CONTAINERS_", "REGISTRY_AUTH_FILE", "XDG_", "LC_", "LANG", "NO_COLOR")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(scope="session", autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keep the user's own settings and credentials out of the tests; returns the home that they get instead."""
    home = tmp_path_factory.mktemp("home")
    for name in list(os.environ):
        if name.startswith(_FOREIGN) or name.upper() in _PROXIES:
            del os.environ[name]
    os.environ.update(HOME=str(home), TERM="xterm", LC_ALL="C.UTF-8")
    return home
