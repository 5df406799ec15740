"""Container ids and names: random ones, and the grammar of those that users give.

Invariant: an id is 64 lower-case hex digits whose first 12, the default hostname, are never all decimal: there are
programs that take a numeric host name for an address.
"""

from __future__ import annotations

import os
import re

from crungo.parsing.values import bad_value, words

__all__ = ["SHORT", "check_name", "random_id", "random_name"]

SHORT = 12
"""Digits of the short form of an id."""

_NAME = r"[a-zA-Z0-9][a-zA-Z0-9_.-]{1,249}"  # with an ending, still a file name of 255 bytes

_ADJECTIVES = words(
    "able agile airy amber ample apt arctic astute avid balmy bold brave breezy bright brisk calm candid cheery "
    "civil clear clever cosmic cozy crisp curious daring dapper deft dewy eager early earnest easy epic exact fair "
    "famous fancy fast fearless fine fleet fluent fond frank free fresh frosty gentle glad golden grand green handy "
    "hardy hasty hearty humble icy ideal jolly jovial keen kind lavish level light lively lofty loyal lucid lucky "
    "lunar mellow merry mighty mild misty modest neat nimble noble open patient placid plucky polite proud pure "
    "quick quiet rapid rare ready regal robust rosy sage serene sharp silent silver sleek smart snug solar solid "
    "spry stable steady stellar stoic sturdy subtle sunny sure swift tidy trim true upbeat urban valiant vast vivid "
    "warm wise witty young zesty"
)
_NOUNS = words(
    "acorn alder anchor aspen badger banjo basil beacon beech birch bison brook cactus canoe canyon cedar cello "
    "cherry clover cobalt comet condor copper coral cove crane creek cricket dahlia delta dingo dolphin dune eagle "
    "ember falcon fennel fern finch fjord flint forest fox gecko geyser ginger glacier granite grove gull harbor "
    "hawk hazel heron hickory hornet ibex iris island ivy jasper juniper kayak kestrel kiwi koala lagoon lantern "
    "larch lark laurel lemur lichen lily linden lotus lynx magpie mango maple marble marmot marten meadow meteor "
    "mint moose nebula nettle newt oak oasis ocelot olive onyx opal orchid osprey otter owl panda pebble pelican "
    "pepper pine plover poplar prairie puffin quail quartz raven reef ridge river robin rowan saffron salmon "
    "sequoia sparrow spruce starling stork summit tapir teal thistle thrush tiger topaz trout tulip tundra turtle "
    "valley violet walnut weasel willow wolf wren yak yew"
)


def random_id() -> str:
    """A fresh container id."""
    while (identifier := os.urandom(32).hex())[:SHORT].isdigit():
        pass
    return identifier


def random_name() -> str:
    """A fresh ``adjective_noun``; it may be taken, the store tells."""
    # Modulo bias over 64 bits is beyond noticing.
    adjective = int.from_bytes(os.urandom(8), "little") % len(_ADJECTIVES)
    noun = int.from_bytes(os.urandom(8), "little") % len(_NOUNS)
    return f"{_ADJECTIVES[adjective]}_{_NOUNS[noun]}"


def check_name(text: str, *, flag: str = "--name") -> str:
    """The name as it is, once it fits the grammar ``[a-zA-Z0-9][a-zA-Z0-9_.-]+``.

    Raises:
        UsageError: it does not, or is longer than 250 characters.
    """
    if not re.fullmatch(_NAME, text):
        why = "not a container name; expected 2 to 250 of letters, digits, _ . and -, a letter or digit first"
        raise bad_value(flag, text, why)
    return text
