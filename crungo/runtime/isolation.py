"""How a spawner is set apart, before it serves: the first and the second start of its interpreter.

In the first, it leaves the caller's descriptors, directory, signals and mount namespace, and mounts its own interpreter
read-only upon itself; in the second, it runs from that mount. A program inside a container that reaches the
interpreter through ``/proc/self/exe`` (as the entrypoint, a script's or a binary's interpreter, or while something is
executed inside) finds a file that cannot be written (CVE-2019-5736). libcrun's own answer, a copy in memory, costs
more each time and breaks interpreters that find their libraries relative to themselves.

Called by ``python -I -S -c … ROOT RUN PATH…`` with the control socket as descriptor 3.
"""

from __future__ import annotations

import _socket
import os
import sys

from crungo.runtime import syscalls, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["main"]

CONTROL_FD = 3
CGROUPS = "/sys/fs/cgroup"
SECOND = "import sys; sys.path += sys.argv[3:]; from crungo.runtime.isolation import second; second()"


def main() -> NoReturn:
    """The first start: ends in the exec of the second."""
    control = _socket.socket(fileno=CONTROL_FD)
    try:
        syscalls.close_range(CONTROL_FD + 1)
        os.chdir("/")
        os.umask(0o022)
        _leave_mount_namespace()
        executable = os.readlink("/proc/self/exe")
        syscalls.mount(executable, executable, None, syscalls.MS_BIND)
        syscalls.mount("none", executable, None, syscalls.MS_BIND | syscalls.MS_REMOUNT | syscalls.MS_RDONLY)
        os.execv(  # noqa: S606 - an interpreter, without a shell, is what is wanted
            sys.executable, [sys.executable, "-I", "-S", "-c", SECOND, *sys.argv[1:]]
        )
    except BaseException as error:
        wire.send(control, {"event": "died", "message": f"{type(error).__name__}: {error}"})
        os._exit(1)


def second() -> NoReturn:
    """The second start: serves, and ends."""
    control = _socket.socket(fileno=CONTROL_FD)
    try:
        from crungo.runtime import cgroups, spawner

        os.set_inheritable(CONTROL_FD, False)
        for signum in spawner.IGNORED:
            syscalls.set_signal(signum, ignored=True)
        syscalls.set_name("crungo-spawner")
        syscalls.set_child_subreaper()
        cgroups.claim_controllers()
        spawner.Spawner(control, sys.argv[1], sys.argv[2]).serve()
    except BaseException as error:  # the engine shall be told, whatever it was
        import traceback

        wire.send(control, {"event": "died", "message": "".join(traceback.format_exception(error))})
        os._exit(1)
    os._exit(0)


def _leave_mount_namespace() -> None:
    """A namespace of our own, that sees what the host mounts later, and whose mounts the host never sees."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_SLAVE)
    try:
        with open(f"{CGROUPS}/unified/cgroup.controllers", "rb") as file:
            hybrid = bool(file.read().strip())
    except FileNotFoundError:
        hybrid = False
    if hybrid:
        _make_cgroups_v1()


def _make_cgroups_v1() -> None:
    """Make a hybrid layout, whose v2 tree libcrun refuses when it has controllers, look like plain v1 in here.

    Unmounting the v2 tree is not enough: libcrun would take the empty directory below it, which is the host's, for a
    hierarchy, and make directories and files in it. So the v1 trees move to a tmpfs of ours without such a directory.
    """
    unified = f"{CGROUPS}/unified"
    syscalls.umount(unified, syscalls.MNT_DETACH)
    syscalls.mount("tmpfs", unified, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC, "mode=755")
    for entry in os.scandir(CGROUPS):
        if entry.is_symlink():  # cpu -> cpu,cpuacct
            os.symlink(os.readlink(entry.path), f"{unified}/{entry.name}")
        elif entry.name != "unified" and os.path.ismount(entry.path):
            os.mkdir(f"{unified}/{entry.name}", 0o755)
            syscalls.mount(entry.path, f"{unified}/{entry.name}", None, syscalls.MS_MOVE)
    syscalls.mount(unified, CGROUPS, None, syscalls.MS_MOVE)
