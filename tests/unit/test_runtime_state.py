"""Ids, names and locks of containers, and the removal of what they wrote."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from crungo.errors import ContainerError, NameInUse
from crungo.runtime.state import DEPTH_LIMIT, Places, remove_tree

ONE, TWO = "1" * 64, "2" * 64


@pytest.fixture
def places(tmp_path: Path) -> Places:
    places = Places(f"{tmp_path}/root", f"{tmp_path}/run")
    places.make()
    return places


def test_a_name_is_taken_until_it_is_released(places: Places) -> None:
    one = places.claim(ONE, "web")
    with pytest.raises(NameInUse, match=f'"web" is already in use by container "{ONE}"; it is free when'):
        places.claim(TWO, "web")
    assert not os.path.exists(f"{places.containers}/{TWO}"), "a refused claim left its directory"
    one.remove()
    one.release()
    two = places.claim(TWO, "web")
    assert os.readlink(f"{places.names}/web").endswith(TWO)
    two.remove()
    two.release()
    assert os.listdir(places.names) == os.listdir(places.containers) == []


def test_an_id_is_taken_once(places: Places) -> None:
    one = places.claim(ONE, None)
    with pytest.raises(ContainerError, match="the id is taken"):
        places.claim(ONE, None)
    one.release()


def test_the_name_of_a_dead_owner_is_free(places: Places) -> None:
    dead = places.claim(ONE, "web")
    os.close(dead._lock)  # as the kernel does for a killed process
    alive = places.claim(TWO, "web")
    assert os.readlink(f"{places.names}/web").endswith(TWO)
    alive.remove()
    alive.release()


def test_leftovers_are_those_without_an_owner(places: Places) -> None:
    alive = places.claim(ONE, "alive")
    dead = places.claim(TWO, "dead")
    os.close(dead._lock)
    found = places.leftovers()
    assert [claim.identifier for claim in found] == [TWO]
    assert places.leftovers() == [], "a leftover that somebody removes is nobody else's"
    assert os.listdir(places.names) == ["alive"], "a name is free before the rest is removed"
    found[0].remove()
    found[0].release()
    assert os.listdir(places.containers) == [ONE]
    assert os.listdir(places.names) == ["alive"]
    alive.remove()
    alive.release()


def test_looking_changes_nothing(places: Places) -> None:
    alive = places.claim(ONE, "alive")
    dead = places.claim(TWO, "dead")
    os.close(dead._lock)
    for _ in range(2):
        assert places.directories() == ([alive.directory], [dead.directory])
    assert sorted(os.listdir(places.names)) == ["alive", "dead"]
    assert os.path.isdir(dead.directory)
    [left] = places.leftovers()
    assert left.identifier == TWO
    left.remove()
    left.release()
    alive.remove()
    alive.release()


def test_what_is_just_being_made_is_no_leftover(places: Places) -> None:
    """Between the making of a directory and its lock, another spawner of the same store may look for leftovers."""
    stop = threading.Event()
    found: list[str] = []

    def look() -> None:
        while not stop.is_set():
            for claim in places.leftovers():
                found.append(claim.identifier)
                claim.remove()
                claim.release()

    sweeper = threading.Thread(target=look)
    sweeper.start()
    try:
        for number in range(300):
            claim = places.claim(f"{number:064}", f"name-{number}")
            claim.remove()
            claim.release()
    finally:
        stop.set()
        sweeper.join()
    assert found == []


def test_the_folder_of_a_killed_spawner_is_swept(places: Places) -> None:
    other = Places(os.path.dirname(places.containers), places.run)
    other.make_work()
    (Path(other.work) / "exec-1").mkdir()
    places.make_work()
    places.sweep_work()
    assert os.path.isdir(f"{other.work}/exec-1"), "its owner lives"
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        try:
            if os.readlink(f"/proc/self/fd/{descriptor}") == other.work:
                os.close(descriptor)  # as the kernel does for a killed process
        except FileNotFoundError:
            continue
    places.sweep_work()
    assert not os.path.exists(other.work)
    assert os.path.isdir(places.work)


def test_removal_follows_no_link_and_minds_no_name(tmp_path: Path) -> None:
    keep = tmp_path / "keep"
    keep.mkdir()
    (keep / "file").touch()
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "link").symlink_to(keep)
    os.mkdir(os.fsencode(tree) + b"/\xff\n")
    os.mkfifo(tree / "fifo")
    (tree / ".deep-0").mkdir()
    remove_tree(str(tree))
    assert not tree.exists()
    assert (keep / "file").exists()
    remove_tree(str(tree))  # again: fine


def test_removal_of_a_tree_deeper_than_any_limit(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    fd = os.open(tree, os.O_RDONLY)
    for _ in range(5 * DEPTH_LIMIT):
        os.mkdir("d" * 100, dir_fd=fd)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        below = os.open("d" * 100, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    remove_tree(str(tree))
    assert not tree.exists()
