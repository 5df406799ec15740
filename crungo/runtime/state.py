"""The directories, names and locks of containers: the file system is the database.

    <root>/containers/<id>/   made by the spawner, which holds flock(2) on it as long as the container lives
    <root>/names/<name>       a symbolic link to ../containers/<id>
    <run>/containers/<id>/    libcrun's state
    <run>/work-<random>/      a spawner's own folder, locked by it likewise

A directory that can be locked has no living owner: it is left over from a crash, and anybody may remove it. There is no
daemon to ask and no process id to compare, and the kernel drops a lock on every way out of a process.
"""

from __future__ import annotations

import errno
import fcntl
import os

from crungo.errors import ContainerError, NameInUse

TYPE_CHECKING = False

__all__ = ["Budget", "Claim", "Overrun", "Places", "remove_tree"]

WORK_PREFIX = "work-"
DEPTH_LIMIT = 200


class Places:
    """The folders that containers of one store use."""

    def __init__(self, root: str, run: str) -> None:
        self.containers = f"{root}/containers"
        self.names = f"{root}/names"
        self.state = f"{run}/containers"
        self.run = run
        self.work = ""

    def make(self) -> None:
        """Create them; only their owner may look inside."""
        for path in (self.containers, self.names, self.state):
            os.makedirs(path, 0o700, exist_ok=True)

    def claim(self, identifier: str, name: str | None) -> Claim:
        """Take an id and, if given, a name; raises NameInUse."""
        directory = f"{self.containers}/{identifier}"
        folder = _lock_folder(self.containers, fcntl.LOCK_SH)  # between the two steps, it looks like a leftover
        try:
            os.mkdir(directory, 0o700)
            lock = _lock(directory)
            if lock is None:
                os.rmdir(directory)
        except FileExistsError:
            raise ContainerError(f"container {identifier}: the id is taken") from None
        finally:
            os.close(folder)
        if lock is None:
            raise ContainerError(f"container {identifier}: its directory cannot be locked")
        claim = Claim(self, identifier, name, lock)
        if name is not None:
            try:
                self._take_name(name, identifier)
            except BaseException:
                claim.name = None
                claim.release()
                raise
        return claim

    def leftovers(self) -> list[Claim]:
        """Containers whose owner is gone, locked for the caller to remove; their names are free already."""
        folder = _lock_folder(self.containers, fcntl.LOCK_EX)
        try:
            # Who wants such a name finds it free, or its holder not yet locked by us.
            names = _lock_folder(self.names, fcntl.LOCK_EX)
            try:
                locks = {name: _lock(f"{self.containers}/{name}") for name in os.listdir(self.containers)}
                claims = [Claim(self, name, None, lock) for name, lock in locks.items() if lock is not None]
                self._free_names({claim.identifier for claim in claims})
            finally:
                os.close(names)
        finally:
            os.close(folder)
        return claims

    def directories(self) -> tuple[list[str], list[str]]:
        """The directories of containers with an owner, and of those without. Claims none, and changes nothing."""
        folder = _lock_folder(self.containers, fcntl.LOCK_EX)
        try:
            # Who wants the name of one that we hold waits until we do not.
            names = _lock_folder(self.names, fcntl.LOCK_EX)
            try:
                owned: list[str] = []
                left: list[str] = []
                for name in os.listdir(self.containers):
                    directory = f"{self.containers}/{name}"
                    lock = _lock(directory)
                    if lock is not None:
                        os.close(lock)
                    (owned if lock is None else left).append(directory)
            finally:
                os.close(names)
        finally:
            os.close(folder)
        return owned, left

    def make_work(self) -> None:
        """Make a folder for what lasts no longer than the calling process; ``work`` is its path from now on."""
        self.work = f"{self.run}/{WORK_PREFIX}{os.urandom(8).hex()}"
        folder = _lock_folder(self.containers, fcntl.LOCK_SH)
        try:
            os.mkdir(self.work, 0o700)
            _lock(self.work)  # for good: it ends with the process
        finally:
            os.close(folder)

    def sweep_work(self) -> None:
        """Remove the folders of processes that were killed."""
        names = [name for name in os.listdir(self.run) if name.startswith(WORK_PREFIX)]
        if all(f"{self.run}/{name}" == self.work for name in names):
            return
        folder = _lock_folder(self.containers, fcntl.LOCK_EX)
        try:
            locks = {name: _lock(f"{self.run}/{name}") for name in names}
        finally:
            os.close(folder)
        for name, lock in locks.items():
            if lock is not None:
                remove_tree(f"{self.run}/{name}")
                os.close(lock)

    def _take_name(self, name: str, identifier: str) -> None:
        link = f"{self.names}/{name}"
        # Two takers could both find the same dead link: the folder's lock makes look and replace one step.
        folder = _lock_folder(self.names, fcntl.LOCK_EX)
        try:
            holder = _link_target(link)
            if holder is not None:
                lock = _lock(f"{self.containers}/{holder}")
                if lock is None and os.path.isdir(f"{self.containers}/{holder}"):
                    raise NameInUse(
                        f'The container name "{name}" is already in use by container "{holder}"; it is free '
                        "when that one has ended"
                    )
                if lock is not None:
                    os.close(lock)
                os.unlink(link)
            os.symlink(f"../containers/{identifier}", link)
        finally:
            os.close(folder)

    def _free_names(self, identifiers: set[str]) -> None:
        """Free the names of these containers; the lock of their folder must be held."""
        for name in os.listdir(self.names) if identifiers else ():
            if _link_target(f"{self.names}/{name}") in identifiers:
                os.unlink(f"{self.names}/{name}")


class Claim:
    """One container's hold on its id and name."""

    def __init__(self, places: Places, identifier: str, name: str | None, lock: int) -> None:
        self.places = places
        self.identifier = identifier
        self.name = name
        self.directory = f"{places.containers}/{identifier}"
        self._lock = lock

    def remove(self, budget: Budget | None = None) -> None:
        """Remove the name and every file; the lock stays until :meth:`release`."""
        if self.name is not None:
            link = f"{self.places.names}/{self.name}"
            if _link_target(link) == self.identifier:
                os.unlink(link)
        remove_tree(f"{self.places.state}/{self.identifier}", budget)
        remove_tree(self.directory, budget)

    def release(self) -> None:
        """Let go of the lock, removing an empty directory."""
        try:
            os.rmdir(self.directory)
        except OSError:
            pass  # removed already, or there is something left for the next look at leftovers
        os.close(self._lock)


class Overrun(Exception):
    """There is more to remove than the budget allows."""


class Budget:
    """How many entries may be removed by who cannot stay away for long."""

    def __init__(self, entries: int) -> None:
        self._left = entries

    def spend(self, entries: int) -> None:
        """Raises Overrun when that many are not left."""
        self._left -= entries
        if self._left < 0:
            raise Overrun


def remove_tree(path: str, budget: Budget | None = None) -> None:
    """Remove a directory with everything below it, following no link, at any depth; a missing one is fine.

    With a budget, Overrun is raised when that is spent; what was removed by then is gone.

    The content is the container's: names are arbitrary, and the depth may exceed any limit on open descriptors. Deep
    directories are first moved up, beside their ancestors, where they are removed like any other.
    """
    try:
        top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        _remove_content(top, top, 0, budget)
    finally:
        os.close(top)
    os.rmdir(path)


def _remove_content(directory: int, top: int, depth: int, budget: Budget | None) -> None:
    again = True
    while again:
        again = False
        with os.scandir(directory) as entries:
            names = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        if budget is not None:
            budget.spend(len(names))
        for name, is_directory in names:
            if not is_directory:
                os.unlink(name, dir_fd=directory)
            elif depth >= DEPTH_LIMIT:
                _move_up(name, directory, top)
            else:
                child = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
                try:
                    _remove_content(child, top, depth + 1, budget)
                finally:
                    os.close(child)
                os.rmdir(name, dir_fd=directory)
        # What was moved up landed in the top directory while it was being listed.
        again = depth == 0 and bool(os.listdir(directory))


def _move_up(name: str, directory: int, top: int) -> None:
    serial = 0
    while True:
        try:
            os.rename(name, f".deep-{serial}", src_dir_fd=directory, dst_dir_fd=top)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            serial += 1
        else:
            return


def _lock_folder(path: str, how: int) -> int:
    """A descriptor that holds the lock of a folder that stays, shared or exclusive; waits for it."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, how)
    except BaseException:
        os.close(folder)
        raise
    return folder


def _lock(directory: str) -> int | None:
    """A descriptor that holds the directory's lock; None when somebody else does, or there is no such directory."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # It may have been removed, and even made again, between open and flock.
        if os.path.samestat(os.fstat(fd), os.stat(directory, follow_symlinks=False)):
            return fd
    except OSError:
        pass
    os.close(fd)
    return None


def _link_target(link: str) -> str | None:
    try:
        return os.path.basename(os.readlink(link))
    except OSError:
        return None
