"""Everything about a configuration that can be wrong whatever the image is, found before anything is pulled or made.

Invariant: a configuration built by a program is held to the same grammar as one read from flags.
"""

from __future__ import annotations

from crungo.errors import UsageError
from crungo.parsing.host import parse_sysctl
from crungo.parsing.mounts import check_targets
from crungo.parsing.network import parse_add_host, parse_dns, parse_hostname, parse_network
from crungo.parsing.process import parse_group, parse_user, parse_workdir
from crungo.parsing.values import quote
from crungo.runtime.capabilities import container_capabilities
from crungo.runtime.etc import etc_files
from crungo.runtime.host import check_host
from crungo.runtime.limits import resources, rlimits, sysctls
from crungo.runtime.names import check_name
from crungo.runtime.spec import check_names, check_text, seccomp_profile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from crungo.config import ContainerConfig
    from crungo.runtime.host import HostFacts

__all__ = ["check_config"]


def check_config(config: ContainerConfig, host: HostFacts) -> None:
    """Raise for the first thing that is wrong.

    Raises:
        UsageError: a value is malformed, contradicts another, or names something that does not exist.
        HostError: the host cannot give what was asked for.
    """
    if not config.image and config.rootfs is None:
        raise UsageError("no image: a container needs an image or a root file system")
    _check_words(config)
    check_targets(config.mounts)
    for mount in config.mounts:
        if not mount.target.startswith("/") or (mount.type == "bind" and not mount.source.startswith("/")):
            raise UsageError(f"mount on {quote(mount.target)}: source and target must be absolute paths")
    capabilities = container_capabilities(config, host.capabilities)
    resources(config, host, ())
    rlimits(config, host)
    sysctls(config)
    seccomp_profile(config, capabilities, host)
    etc_files(config, hostname="x", host=host)
    check_text([config.command, config.entrypoint, dict(config.env), dict(config.sysctls), dict(config.labels)])
    check_host(config, host)


def _check_words(config: ContainerConfig) -> None:
    parse_network(config.network)
    if config.name is not None:
        check_name(config.name)
    if config.hostname is not None:
        parse_hostname(config.hostname)
    for name, address in config.add_host:
        parse_add_host(f"{name}={address}")
    for address in config.dns:
        parse_dns(address)
    parse_user(config.user or "")
    for group in config.group_add:
        parse_group(group)
    parse_workdir(config.workdir or "")
    for name, value in config.sysctls.items():
        parse_sysctl(f"{name}={value}")
    check_names(config.env)
