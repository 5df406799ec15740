"""``crungo run``: its flags, and what they say as a ``ContainerConfig``.

Invariant: :func:`to_options` is pure. What it needs of its surroundings, the environment, the working directory and the
contents of files that flags name, comes with :class:`Surroundings`.
"""

from __future__ import annotations

import os

from crungo.cli.flags import Argument, Verb
from crungo.cli.run_flags import ABSENT, FLAGS
from crungo.config import ContainerConfig
from crungo.errors import UsageError
from crungo.parsing import environment, host, mounts, network, process, values
from crungo.parsing.values import quote
from crungo.records import Record, replace
from crungo.runtime.names import check_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from crungo.cli.flags import Context, Parsed
    from crungo.config import Mount

__all__ = ["VERB", "RunOptions", "Surroundings", "call", "to_config", "to_options"]

VERB = Verb(
    name="run",
    summary="Run a command in a new container",
    description="Run a command in a new container, which is gone when the command ends.",
    flags=FLAGS,
    arguments=(
        Argument(name="IMAGE", help="Image to run; with --rootfs, a directory."),
        Argument(name="COMMAND", help="Command in place of the image's own.", required=False),
        Argument(name="ARG", help="Its arguments, dashes and all.", required=False, many=True),
    ),
    epilog="Exit code: the command's own; 125 crungo failed, 126 not executable, 127 not found, 128+n signal n.",
    interspersed=False,
    absent=ABSENT,
)
_FILE_LIMIT = 16 << 20


class Surroundings(Record):
    """Environment, absolute working directory, and how to read a file (raising ``OSError``)."""

    environ: Mapping[str, str]
    cwd: str
    read: Callable[[str], bytes]

    @classmethod
    def actual(cls) -> Surroundings:
        """Those of this process."""
        try:
            cwd = os.getcwd()
        except FileNotFoundError:
            cwd = "/"  # the directory was removed; only relative paths would miss it, and they miss anyway
        return cls(environ=os.environ, cwd=cwd, read=_read)


class RunOptions(Record):
    """What ``crungo run`` is asked to do: the container, and how to attend to it.

    ``cidfile`` is a path to write the id to, ``authfile`` one of credentials for a pull;
    ``sig_proxy`` sends signals on; ``quiet`` shows no progress; ``crun_debug`` brings libcrun's log to stderr.
    """

    config: ContainerConfig
    cidfile: str | None = None
    authfile: str | None = None
    sig_proxy: bool = True
    quiet: bool = False
    crun_debug: bool = False
    debug: bool = False


def call(parsed: Parsed, context: Context) -> int:
    """Run the container; returns its exit code."""
    options = to_options(parsed, Surroundings.actual(), debug=context.debug)
    if options.config.tty:
        options = replace(options, config=_on_terminal(options.config))
    from crungo.cli.early import run

    return run(options, context.roots)


def _on_terminal(config: ContainerConfig) -> ContainerConfig:
    """The configuration with the size of the user's terminal, where there is one."""
    if config.stdin and not os.isatty(0):
        raise UsageError("the input device is not a TTY")
    for fd in (1, 0):
        try:
            size = os.get_terminal_size(fd)
        except OSError:
            continue
        return replace(config, size=(size.columns, size.lines) if all(size) else None)
    return config


def to_options(parsed: Parsed, around: Surroundings, *, debug: bool = False) -> RunOptions:
    """The whole command line, checked as far as that is possible without touching the system.

    Raises:
        UsageError: a value is malformed, or two contradict each other.
    """
    if not parsed.switch("rm"):
        raise UsageError("--rm=false is not supported: a container is always removed at its end")
    cidfile = parsed.text("cidfile")
    if cidfile == "":
        raise UsageError("--cidfile: the path is empty")
    return RunOptions(
        config=to_config(parsed, around),
        cidfile=cidfile,
        authfile=parsed.text("authfile"),
        sig_proxy=parsed.switch("sig_proxy"),
        quiet=parsed.switch("quiet"),
        crun_debug=parsed.switch("crun_debug"),
        debug=debug,
    )


def to_config(parsed: Parsed, around: Surroundings) -> ContainerConfig:
    """The container that the flags describe; raises like :func:`to_options`."""
    image, *command = parsed.arguments
    rootfs = os.path.normpath(os.path.join(around.cwd, image)) if parsed.switch("rootfs") else None
    if not image:
        raise UsageError("the image's name is empty")
    given: dict[str, Any] = {}
    for key, (field, convert) in _SINGLE.items():
        text = parsed.text(key)
        if text is not None:
            given[field] = convert(text)
    for key, (field, convert) in _REPEATED.items():
        given[field] = tuple(convert(text) for text in parsed.texts(key))
    for key, field in _SWITCHES.items():
        given[field] = parsed.switch(key)
    return ContainerConfig(
        image="" if rootfs else image,
        rootfs=rootfs,
        command=tuple(command) or None,
        env=_environment(parsed, around),
        labels=_labels(parsed, around),
        mounts=_mounts(parsed, around),
        sysctls=dict(host.parse_sysctl(text) for text in parsed.texts("sysctl")),
        cap_add=tuple(name for text in parsed.texts("cap_add") for name in host.parse_capability(text)),
        cap_drop=_dropped(parsed),
        **_security(parsed, around),
        **given,
    )


_SINGLE: dict[str, tuple[str, Callable[[str], object]]] = {
    "name": ("name", check_name),
    "user": ("user", process.parse_user),
    "workdir": ("workdir", process.parse_workdir),
    "entrypoint": ("entrypoint", process.parse_entrypoint),
    "hostname": ("hostname", network.parse_hostname),
    "network": ("network", network.parse_network),
    "memory": ("memory", values.parse_memory),
    "memory_swap": ("memory_swap", values.parse_memory_swap),
    "cpus": ("cpus", values.parse_cpus),
    "pids_limit": ("pids_limit", values.parse_pids_limit),
    "shm_size": ("shm_size", values.parse_shm_size),
    "stop_signal": ("stop_signal", process.parse_signal),
    "stop_timeout": ("stop_timeout", lambda text: values.parse_duration(text, flag="--stop-timeout")),
    "pull": ("pull", host.parse_pull),
    "platform": ("platform", host.parse_platform),
}
_REPEATED: dict[str, tuple[str, Callable[[str], object]]] = {
    "add_host": ("add_host", network.parse_add_host),
    "dns": ("dns", network.parse_dns),
    "device": ("devices", host.parse_device),
    "ulimit": ("ulimits", process.parse_ulimit),
    "group_add": ("group_add", process.parse_group),
}
_SWITCHES = {"tty": "tty", "interactive": "stdin", "read_only": "read_only", "privileged": "privileged", "init": "init"}


def _environment(parsed: Parsed, around: Surroundings) -> dict[str, str | None]:
    """Files first, in their order, then single variables, as in docker."""
    env: dict[str, str | None] = {}
    for path in parsed.texts("env_file"):
        env.update(environment.parse_env_file(_file("--env-file", path, around), around.environ, path=path))
    env.update(environment.parse_env(text, around.environ) for text in parsed.texts("env"))
    return env


def _labels(parsed: Parsed, around: Surroundings) -> dict[str, str]:
    labels: dict[str, str] = {}
    for path in parsed.texts("label_file"):
        labels.update(environment.parse_label_file(_file("--label-file", path, around), path=path))
    labels.update(environment.parse_label(text) for text in parsed.texts("label"))
    return labels


def _mounts(parsed: Parsed, around: Surroundings) -> tuple[Mount, ...]:
    found = [mounts.parse_volume(text, cwd=around.cwd) for text in parsed.texts("volume")]
    found += [mounts.parse_mount(text, cwd=around.cwd) for text in parsed.texts("mount")]
    found += [mounts.parse_tmpfs(text) for text in parsed.texts("tmpfs")]
    mounts.check_targets(found)
    return tuple(found)


def _dropped(parsed: Parsed) -> tuple[str, ...]:
    texts = parsed.texts("cap_drop")
    return tuple(name for text in texts for name in host.parse_capability(text, flag="--cap-drop"))


def _security(parsed: Parsed, around: Surroundings) -> dict[str, Any]:
    """The fields of all ``--security-opt``; the last that speaks of a thing counts."""
    fields: dict[str, Any] = {}
    for text in parsed.texts("security_opt"):
        option = host.parse_security_opt(text)
        if option.no_new_privileges is not None:
            fields["no_new_privileges"] = option.no_new_privileges
        if option.unmask is not None:
            fields["unmask"] = option.unmask
        if option.seccomp is not None:
            fields["seccomp"] = _profile(option.seccomp, around)
    return fields


def _profile(seccomp: str, around: Surroundings) -> str | None:
    if seccomp == "unconfined":
        return seccomp
    if seccomp == "builtin":
        return None
    try:
        return _file("--security-opt seccomp", seccomp, around).decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"--security-opt seccomp {quote(seccomp)}: not valid UTF-8") from None


def _file(flag: str, path: str, around: Surroundings) -> bytes:
    try:
        return around.read(os.path.join(around.cwd, path))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UsageError(f"{flag} {quote(path)}: {why}") from None


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        data = file.read(_FILE_LIMIT + 1)
    if len(data) > _FILE_LIMIT:
        raise ValueError(f"larger than {_FILE_LIMIT >> 20} MiB")
    return data
