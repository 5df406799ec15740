"""The real counterparts: a registry, an image in it, the command line; and a check that nothing is left behind."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import Crungo
from tests.support.image import Image, Layer, busybox_image, push
from tests.support.leaks import Snapshot, become_subreaper, leave_others_mounts, own_store, settle, sweep
from tests.support.registry import TOOLS, Registry

PushImage = Callable[..., str]


def pytest_collection_modifyitems() -> None:
    if os.geteuid() != 0:
        raise pytest.UsageError("the integration tests make containers and need root: sudo make test-integration")
    missing = [name for name in ("docker-registry", "busybox") if not (TOOLS / name).exists()]
    if missing:
        raise pytest.UsageError(f"{' and '.join(missing)} not in {TOOLS}: make test-integration puts them there")


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """An empty registry, for the whole session."""
    with Registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="session")
def busybox() -> Path:
    """The static busybox that images are made of."""
    return (TOOLS / "busybox").resolve()


@pytest.fixture(scope="session")
def busybox_reference(registry: Registry, busybox: Path) -> str:
    """The busybox image in the registry, as users name it."""
    return push(busybox_image(busybox), registry.address, "library/busybox")


@pytest.fixture(scope="session")
def push_image(registry: Registry, busybox: Path) -> PushImage:
    """Push a variant: ``push_image("name", *extra_layers, **options of make_image)`` returns its reference.

    ``image=`` pushes one that the test has made.
    """

    def push_variant(name: str, *extra: Layer, image: Image | None = None, tag: str = "latest", **options: Any) -> str:
        return push(image or busybox_image(busybox, *extra, **options), registry.address, name, tag)

    return push_variant


@pytest.fixture(scope="session")
def warm_crungo(tmp_path_factory: pytest.TempPathFactory, busybox_reference: str) -> Crungo:
    """A command line whose store has the image, and whose folders are laid out."""
    base = tmp_path_factory.mktemp("crungo")
    command = Crungo(root=base / "root", run=base / "run", cwd=base)
    command("run", busybox_reference, "true", check=0)
    return command


@pytest.fixture
def crungo(warm_crungo: Crungo) -> Crungo:
    """The command line, with the busybox image in its store."""
    return warm_crungo


@pytest.fixture
def fresh_crungo(tmp_path: Path) -> Crungo:
    """The command line with an empty store of this test's own."""
    return Crungo(root=tmp_path / "root", run=tmp_path / "run", cwd=tmp_path)


def pytest_configure() -> None:
    """Keep what tests start among our descendants, where the leak check finds it, and what others mount out of it.

    Before any test module is imported: some start a process that the tests of theirs share.
    """
    become_subreaper()
    if os.geteuid() == 0:  # else they fail one by one
        leave_others_mounts()


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a process, mount, cgroup, descriptor or container's file behind."""
    # These outlive the test: what they leave is no leak, so they come before the first look.
    for name in ("registry", "busybox_reference", "push_image", "warm_crungo"):
        if name in request.fixturenames:
            request.getfixturevalue(name)
    folders = []
    for name in ("crungo", "fresh_crungo"):
        if name in request.fixturenames:
            command: Crungo = request.getfixturevalue(name)
            own_store(command.root)
            # All of the run root counts, and of the store what belongs to containers and to unfinished work.
            folders += [command.run, command.root / "containers", command.root / "names"]
            folders += [command.root / "ingest", command.root / "leases"]
    before = Snapshot.take(folders)
    yield
    if left := settle(before, folders):
        sweep(before)
        pytest.fail("left behind two seconds after the test:\n  " + "\n  ".join(left), pytrace=False)
