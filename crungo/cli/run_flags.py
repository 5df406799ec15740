"""The flags of ``crungo run``, in the order and with the words of its help."""

from __future__ import annotations

from crungo.cli.flags import Flag

__all__ = ["ABSENT", "FLAGS"]

_PROCESS = "Process"
_TERMINAL = "Terminal and streams"
_LIMITS = "Limits"
_FILES = "Files"
_NETWORK = "Network"
_SECURITY = "Security"
_CONTAINER = "Container"
_IMAGE = "Image"

FLAGS = (
    Flag(name="--interactive", short="-i", kind="switch", panel=_TERMINAL, help="Keep stdin open."),
    Flag(name="--tty", short="-t", kind="switch", panel=_TERMINAL, help="Give the command a terminal."),
    Flag(name="--sig-proxy", kind="switch", default=True, panel=_TERMINAL, help="Send signals on to the command (on)."),
    Flag(
        name="--env",
        short="-e",
        kind="list",
        metavar="NAME[=VALUE]",
        panel=_PROCESS,
        help="Set a variable; without a value take the caller's.",
    ),
    Flag(name="--env-file", kind="list", metavar="FILE", panel=_PROCESS, help="Set the variables of a file."),
    Flag(name="--user", short="-u", metavar="USER[:GROUP]", panel=_PROCESS, help="Run as this user, by name or id."),
    Flag(name="--group-add", kind="list", metavar="GROUP", panel=_PROCESS, help="Join a further group."),
    Flag(name="--workdir", short="-w", metavar="DIR", panel=_PROCESS, help="Directory to start in; made when missing."),
    Flag(name="--entrypoint", metavar="PROGRAM", panel=_PROCESS, help='Program in place of the image\'s; "" for none.'),
    Flag(name="--init", kind="switch", panel=_PROCESS, help="Run an init that reaps zombies and passes on signals."),
    Flag(name="--stop-signal", metavar="SIGNAL", panel=_PROCESS, help="Signal that asks the command to end (SIGTERM)."),
    Flag(
        name="--stop-timeout",
        metavar="SECONDS",
        panel=_PROCESS,
        help="How long it has before SIGKILL (10).",
    ),
    Flag(
        name="--volume",
        short="-v",
        kind="list",
        metavar="HOST:PATH[:OPTIONS]",
        panel=_FILES,
        help="Show a path of the host inside; options: ro, rslave, ….",
    ),
    Flag(
        name="--mount",
        kind="list",
        metavar="KEY=VALUE,…",
        panel=_FILES,
        help="Mount with type=bind or tmpfs, source=, target=, readonly, ….",
    ),
    Flag(name="--tmpfs", kind="list", metavar="PATH[:OPTIONS]", panel=_FILES, help="Mount an empty tmpfs."),
    Flag(name="--read-only", kind="switch", panel=_FILES, help="Make the container's root read-only."),
    Flag(name="--device", kind="list", metavar="HOST[:PATH[:rwm]]", panel=_FILES, help="Add a device of the host."),
    Flag(name="--shm-size", metavar="SIZE", panel=_FILES, help="Size of /dev/shm (64m)."),
    Flag(name="--memory", short="-m", metavar="SIZE", panel=_LIMITS, help="Most memory, such as 256m or 1.5g."),
    Flag(name="--memory-swap", metavar="SIZE", panel=_LIMITS, help="Most memory plus swap; -1: no limit (--memory)."),
    Flag(name="--cpus", metavar="NUMBER", panel=_LIMITS, help="Most CPUs, such as 0.5."),
    Flag(name="--pids-limit", metavar="NUMBER", panel=_LIMITS, help="Most processes; -1: no limit (2048)."),
    Flag(
        name="--ulimit",
        kind="list",
        metavar="NAME=SOFT[:HARD]",
        panel=_LIMITS,
        help="Set a limit of setrlimit(2), such as nofile.",
    ),
    Flag(
        name="--network",
        aliases=("--net",),
        metavar="none|host",
        panel=_NETWORK,
        help="Loopback alone, or the host's network (none).",
    ),
    Flag(name="--hostname", short="-h", metavar="NAME", panel=_NETWORK, help="Host name inside."),
    Flag(name="--add-host", kind="list", metavar="NAME:ADDRESS", panel=_NETWORK, help="Add a line to /etc/hosts."),
    Flag(name="--dns", kind="list", metavar="ADDRESS", panel=_NETWORK, help="Set a name server."),
    Flag(name="--sysctl", kind="list", metavar="NAME=VALUE", panel=_NETWORK, help="Set a kernel parameter inside."),
    Flag(name="--cap-add", kind="list", metavar="NAME", panel=_SECURITY, help="Add a capability, or ALL."),
    Flag(name="--cap-drop", kind="list", metavar="NAME", panel=_SECURITY, help="Take a capability away, or ALL."),
    Flag(
        name="--privileged",
        kind="switch",
        panel=_SECURITY,
        help="Give every capability and device; no seccomp, nothing masked.",
    ),
    Flag(
        name="--security-opt",
        kind="list",
        metavar="OPTION",
        panel=_SECURITY,
        help="seccomp=FILE|unconfined, no-new-privileges, systempaths=unconfined.",
    ),
    Flag(name="--name", metavar="NAME", panel=_CONTAINER, help="Name of the container (random)."),
    Flag(name="--label", short="-l", kind="list", metavar="KEY[=VALUE]", panel=_CONTAINER, help="Set a label."),
    Flag(name="--label-file", kind="list", metavar="FILE", panel=_CONTAINER, help="Set the labels of a file."),
    Flag(name="--cidfile", metavar="FILE", panel=_CONTAINER, help="Write the container's id to a new file."),
    Flag(
        name="--rm",
        kind="switch",
        default=True,
        panel=_CONTAINER,
        help="Accepted: a container is always removed at its end.",
    ),
    Flag(name="--crun-debug", kind="switch", panel=_CONTAINER, help="Show libcrun's debug log on stderr."),
    Flag(
        name="--pull",
        metavar="POLICY",
        panel=_IMAGE,
        help="Ask the registry: missing, always, never, newer (missing).",
    ),
    Flag(
        name="--authfile",
        metavar="FILE",
        panel=_IMAGE,
        help="File of credentials for a pull (that of docker or podman).",
    ),
    Flag(name="--platform", metavar="OS/ARCH", panel=_IMAGE, help="Platform to choose, such as linux/arm64."),
    Flag(name="--quiet", short="-q", kind="switch", panel=_IMAGE, help="Show no progress of a pull."),
    Flag(name="--rootfs", kind="switch", panel=_IMAGE, help="IMAGE is a directory to use as the root, as it is."),
)

_ATTENDED = "a container ends with the command that runs it"
_TWO_NETWORKS = "a container has no network but its own loopback, or the host's (--network none|host)"
_CPUS = "the limit of processors is --cpus"
_OWN = "a container has namespaces of its own"

ABSENT = {
    **dict.fromkeys(("-d", "--detach", "--restart", "--replace"), _ATTENDED),
    **dict.fromkeys(("-p", "--publish", "-P", "--publish-all", "--expose", "--ip", "--network-alias"), _TWO_NETWORKS),
    **dict.fromkeys(("--link", "--ip6", "--mac-address"), _TWO_NETWORKS),
    **dict.fromkeys(("-c", "--cpu-shares", "--cpu-quota", "--cpu-period", "--cpuset-cpus", "--cpuset-mems"), _CPUS),
    **dict.fromkeys(("-a", "--attach"), "output is attached anyway, and input with -i"),
    **dict.fromkeys(("--log-driver", "--log-opt"), "the command's output is that of crungo run, and nothing keeps it"),
    **dict.fromkeys(("--health-cmd", "--no-healthcheck"), "nothing asks for the command's health"),
    **dict.fromkeys(("--userns", "--pid", "--ipc", "--uts", "--cgroupns"), _OWN),
    "--volumes-from": "volumes are paths of the host (-v HOST:PATH)",
    "--runtime": "libcrun is built in",
    "--gpus": "name device nodes instead (--device)",
}
"""What users of docker and podman may try, and why it is not here."""
