"""``crungo pull``: its flags, and what they say."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from crungo.cli.flags import Argument, Flag, Verb
from crungo.errors import CrungoError, UsageError
from crungo.parsing.host import parse_platform, parse_pull
from crungo.parsing.values import parse_duration, parse_int
from crungo.records import Record

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crungo.cli.flags import Context, Parsed
    from crungo.config import PullPolicy
    from crungo.image.reference import Reference
    from crungo.image.store import Image
    from crungo.registry.ahead import Ahead
    from crungo.registry.hosts import Hosts
    from crungo.runtime.requests import SpawnerProcess

__all__ = ["IMAGES_AT_ONCE", "VERB", "Prepared", "PullOptions", "answer", "call", "to_options"]

IMAGES_AT_ONCE = 3
"""Each downloads several layers at once; more images would only share the same line."""

VERB = Verb(
    name="pull",
    summary="Pull images from registries",
    description="Pull images from registries, several at once.",
    flags=(
        Flag(name="--all-tags", short="-a", kind="switch", help="Pull every tag of the repository."),
        Flag(name="--authfile", metavar="FILE", help="File of credentials (that of docker or podman)."),
        Flag(name="--platform", metavar="OS/ARCH", help="Platform to choose, such as linux/arm64."),
        Flag(
            name="--policy",
            metavar="POLICY",
            help="Ask the registry: always, missing, never, newer (always).",
        ),
        Flag(name="--quiet", short="-q", kind="switch", help="Show no progress, and print the digests only."),
        Flag(name="--retry", metavar="NUMBER", help="How often to try again what failed (3)."),
        Flag(name="--retry-delay", metavar="TIME", help="Time between tries, such as 5s (grows from about 1s)."),
    ),
    arguments=(Argument(name="IMAGE", help="Images: NAME[:TAG] or NAME@DIGEST.", many=True),),
    epilog="Digest, status and full name of each image are printed on stdout, the progress on stderr.",
    absent={
        "--creds": "crungo login stores credentials, and --authfile names a file of them",
        "--tls-verify": "registries.conf says which registries are insecure",
    },
)


class PullOptions(Record):
    """What ``crungo pull`` is asked to do; ``retry_delay`` is in seconds, None lets it grow."""

    images: tuple[str, ...]
    all_tags: bool = False
    authfile: str | None = None
    platform: str | None = None
    policy: PullPolicy = "always"
    quiet: bool = False
    retry: int = 3
    retry_delay: float | None = None


class Prepared(Record):
    """What there is before an event loop: the answers about images that are ``here``, by name; what is configured about
    registries, and connections to them, which are under way; and the helper that unpacks, where that is needed."""

    here: Mapping[str, str]
    hosts: Hosts
    ahead: Ahead
    spawner: SpawnerProcess | None


def to_options(parsed: Parsed) -> PullOptions:
    """The command line, checked.

    Raises:
        UsageError: a value is malformed, or an image's name is.
    """
    from crungo.image.reference import Reference

    platform, policy = parsed.text("platform"), parsed.text("policy")
    retry, delay = parsed.text("retry"), parsed.text("retry_delay")
    all_tags = parsed.switch("all_tags")
    images = tuple(dict.fromkeys(parsed.arguments))
    for name in images:
        Reference.parse(name)
        if all_tags and ("@" in name or ":" in name.rpartition("/")[2]):
            raise UsageError("--all-tags: the name may have no tag and no digest")
    return PullOptions(
        images=images,
        all_tags=all_tags,
        authfile=parsed.text("authfile"),
        platform=None if platform is None else parse_platform(platform),
        policy="always" if policy is None else parse_pull(policy, flag="--policy"),
        quiet=parsed.switch("quiet"),
        retry=3 if retry is None else parse_int(retry, flag="--retry", maximum=1000),
        retry_delay=None if delay is None else parse_duration(delay, flag="--retry-delay"),
    )


def call(parsed: Parsed, context: Context) -> int:
    """Pull; returns the exit code."""
    options = to_options(parsed)
    here = _here(options, context)
    if here.keys() >= set(options.images):
        from crungo.cli.output import emit

        emit("".join(f"{here[name]}\n" for name in options.images))
        return 0
    from crungo.registry.hostfiles import load_hosts
    from crungo.runtime.requests import SpawnerProcess, require_root

    require_root()
    hosts = load_hosts()
    ahead = _connect(options, hosts, here)
    spawner = None
    if not _may_be_unchanged(options, context):
        # The helper, which unpacks, starts on another core while this process imports what it needs.
        spawner = SpawnerProcess.start(context.roots)
    from crungo.cli.later import leave_for_later

    leave_for_later()
    from crungo.cli.pulling import execute

    return execute(options, context, Prepared(here=here, hosts=hosts, ahead=ahead, spawner=spawner))


def answer(options: PullOptions, reference: Reference, image: Image, *, changed: bool) -> str:
    """What is printed of an image that is in the store now."""
    if options.quiet:
        return image.target
    status = "Downloaded newer image for" if changed else "Image is up to date for"
    return f"Digest: {image.target}\nStatus: {status} {reference.familiar}\n{reference}"


def _connect(options: PullOptions, hosts: Hosts, here: Mapping[str, str]) -> Ahead:
    """Connections to the registries, which come about while this process imports what it needs."""
    from crungo.image.reference import Reference
    from crungo.registry.ahead import Ahead, is_far
    from crungo.registry.urls import parse_url

    ahead = Ahead()
    opened: dict[str, int] = {}  # connections by base URL: one for each image that is pulled at once
    if options.policy == "never":
        return ahead
    for name in options.images:
        if name in here:
            continue
        with suppress(CrungoError):  # which is told where the image is pulled
            first, *others = hosts.endpoints(Reference.parse(hosts.expand(name)))
            for endpoint in (first, *others):
                url = parse_url(endpoint.base_url)
                count = opened.get(endpoint.base_url, 0)
                if endpoint.registry == first.registry and count < IMAGES_AT_ONCE and is_far(url):
                    ahead.open(url.host, url.port, 1)  # one for each scheme that it may be spoken to with
                    opened[endpoint.base_url] = count + 1
    return ahead


def _may_be_unchanged(options: PullOptions, context: Context) -> bool:
    """Whether the store knows every name: then there will most likely be nothing to unpack."""
    if options.all_tags:
        return False
    from crungo.image.reference import Reference
    from crungo.image.store import Store

    refs = Store(context.roots).refs
    try:
        return all(refs.get(Reference.parse(name)) is not None for name in options.images)
    except CrungoError:
        return False


def _here(options: PullOptions, context: Context) -> dict[str, str]:
    """The answers about images for which no registry is to be asked, by name."""
    if options.policy not in ("missing", "never") or options.all_tags:
        return {}
    from crungo.image.platform import Platform
    from crungo.image.reference import Reference
    from crungo.image.store import Store
    from crungo.images import local, stored_name

    store = Store(context.roots)
    platform = None if options.platform is None else Platform.parse(options.platform)
    found = {}
    for name in options.images:
        image = local(name, store, platform)
        if image is not None:
            reference = Reference.parse(stored_name(name, store))
            found[name] = answer(options, reference, image, changed=False)
    return found
