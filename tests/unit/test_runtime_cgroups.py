"""Which controllers are claimed for containers; the kernel's own part in it is tested where there is a v2 tree."""

from __future__ import annotations

from pathlib import Path

import pytest

from crungo.runtime import cgroups


def tree(folder: Path, *, controllers: str, given: str, true_root: bool = False) -> Path:
    """What the top of a v2 tree looks like."""
    (folder / "cgroup.controllers").write_text(controllers)
    (folder / "cgroup.subtree_control").write_text(given)
    (folder / "cgroup.procs").write_text("")
    if not true_root:
        (folder / "cgroup.type").write_text("domain\n")
    return folder / "cgroup.subtree_control"


@pytest.mark.parametrize(
    ("controllers", "given", "claimed"),
    [
        ("cpuset cpu io memory hugetlb pids rdma misc\n", "\n", "+cpu +cpuset +io +memory +pids"),
        ("cpu memory pids\n", "memory\n", "+cpu +pids"),
        ("memory pids\n", "memory pids\n", "memory pids\n"),
        ("\n", "\n", "\n"),
    ],
)
def test_what_is_lacking_is_claimed(tmp_path: Path, controllers: str, given: str, claimed: str) -> None:
    control = tree(tmp_path, controllers=controllers, given=given)
    cgroups.claim_controllers(str(tmp_path))
    assert control.read_text() == claimed


def test_the_true_root_is_left_alone(tmp_path: Path) -> None:
    control = tree(tmp_path, controllers="memory pids\n", given="\n", true_root=True)
    cgroups.claim_controllers(str(tmp_path))
    assert control.read_text() == "\n"
    assert not (tmp_path / "init").exists()


def test_what_is_not_allowed_is_no_error(tmp_path: Path) -> None:
    control = tree(tmp_path, controllers="memory\n", given="\n")
    control.unlink()
    control.mkdir()
    cgroups.claim_controllers(str(tmp_path))
    assert not (tmp_path / "init").exists()
