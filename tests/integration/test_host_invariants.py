"""A process that has run a hundred containers is as it was: nothing of what libcrun does to its caller reaches it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.support.command import Crungo
from tests.support.registry import ROOT


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_hundred_runs_change_nothing(crungo: Crungo, busybox_reference: str, backend: str) -> None:
    command = [sys.executable, "-m", "tests.support.hoststate", backend]
    command += [str(crungo.root), str(crungo.run), busybox_reference, "100"]
    done = subprocess.run(command, stdout=subprocess.PIPE, env=crungo.environ(), cwd=ROOT, timeout=120, check=True)
    before, first, last, after = json.loads(done.stdout)
    assert differences(before, after) == {}
    assert differences(first, last) == {}
    # Between the two pairs lie the loop and the engine: their descriptors, their signal wake-up, the spawner.
    assert set(differences(before, first)) <= {"descriptors", "wakeup", "handlers", "SigCgt", "children"}
    assert len(first["children"]) == 1
    assert before["subreaper"] == 0
    assert before["dumpable"] == 1
    assert before["Umask"] == "0027"


def differences(one: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {name: (one[name], other[name]) for name in one if one[name] != other[name]}
