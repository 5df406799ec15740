"""Figures of a container, from the files of either version of cgroups."""

from __future__ import annotations

from pathlib import Path

import pytest

from crungo.runtime.freezer import thaw
from crungo.runtime.limits import changed_resources
from crungo.runtime.stats import read_stats

ID = "ab" * 32


def lay(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def test_version_2(tmp_path: Path) -> None:
    base = f"crungo-{ID}"
    lay(tmp_path, {
        f"{base}/cpu.stat": "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 0\n",
        f"{base}/memory.current": "4096\n",
        f"{base}/memory.peak": "8192\n",
        f"{base}/memory.max": "max\n",
        f"{base}/memory.stat": "anon 1\ninactive_file 1024\n",
        f"{base}/pids.current": "3\n",
        f"{base}/pids.max": "2048\n",
        f"{base}/io.stat": "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0\n8:16 rbytes=5 wbytes=5\n7:0 \n",
    })  # fmt: skip
    stats = read_stats(ID, str(tmp_path))
    assert stats is not None
    assert (stats.cpu, stats.cpu_user, stats.cpu_system) == (1_500_000, 1_000_000, 500_000)
    assert (stats.memory, stats.memory_peak, stats.memory_inactive, stats.memory_limit) == (4096, 8192, 1024, None)
    assert (stats.pids, stats.pids_limit, stats.read, stats.written) == (3, 2048, 15, 25)


def test_version_1(tmp_path: Path) -> None:
    lay(tmp_path, {
        f"cpuacct/crungo-{ID}/cpuacct.usage": "7\n",
        f"memory/crungo-{ID}/memory.usage_in_bytes": "100\n",
        f"memory/crungo-{ID}/memory.limit_in_bytes": "9223372036854771712\n",
        f"memory/crungo-{ID}/memory.stat": "cache 1\ntotal_inactive_file 50\n",
        f"pids/crungo-{ID}/pids.current": "1\n",
        f"pids/crungo-{ID}/pids.max": "max\n",
        f"blkio/crungo-{ID}/blkio.throttle.io_service_bytes_recursive": "8:0 Read 5\n8:0 Write 6\nTotal 11\n",
    })  # fmt: skip
    stats = read_stats(ID, str(tmp_path))
    assert stats is not None
    assert (stats.cpu, stats.memory, stats.memory_inactive, stats.memory_limit) == (7, 100, 50, None)
    assert (stats.pids, stats.pids_limit, stats.read, stats.written) == (1, None, 5, 6)


def test_what_is_gone_has_no_figures(tmp_path: Path) -> None:
    assert read_stats(ID, str(tmp_path)) is None
    assert not thaw(ID, str(tmp_path))


@pytest.mark.parametrize(
    ("limits", "swap_limit", "expected"),
    [
        ({"memory": 1 << 30}, True, {"memory": {"limit": 1 << 30, "swap": 1 << 30}}),
        ({"memory": 1 << 30}, False, {"memory": {"limit": 1 << 30}}),
        ({"memory": 1 << 30, "memory_swap": -1}, True, {"memory": {"limit": 1 << 30, "swap": -1}}),
        ({"cpus": 0.5}, True, {"cpu": {"quota": 50_000, "period": 100_000}}),
        ({"cpus": -1}, True, {"cpu": {"quota": -1, "period": 100_000}}),
        ({"pids_limit": -1}, True, {"pids": {"limit": -1}}),
        ({}, True, {}),
    ],
)
def test_changed_limits(limits: dict[str, float], swap_limit: bool, expected: dict[str, object]) -> None:
    assert changed_resources(limits, swap_limit=swap_limit) == expected
