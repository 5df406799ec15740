"""The parser of command lines: pflag's grammar, and that typer's application reads the same."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crungo.cli.flags import Flag, Parsed, parse
from crungo.errors import UsageError

FLAGS = (
    Flag(name="--tty", short="-t", kind="switch", help=""),
    Flag(name="--interactive", short="-i", kind="switch", help=""),
    Flag(name="--sig-proxy", kind="switch", default=True, help=""),
    Flag(name="--env", short="-e", kind="list", help=""),
    Flag(name="--network", aliases=("--net",), help=""),
    Flag(name="--hostname", short="-h", help=""),
)


def line(*words: str, interspersed: bool = False) -> Parsed:
    return parse(FLAGS, words, interspersed=interspersed)


def test_defaults() -> None:
    parsed = line("image")
    assert parsed.values == {"tty": False, "interactive": False, "sig_proxy": True, "env": ()}
    assert parsed.arguments == ("image",)
    assert parsed.text("network") is None
    assert parsed.texts("env") == ()
    assert parsed.switch("sig_proxy")


@pytest.mark.parametrize(
    "words",
    [
        ("-it", "-e", "A=1", "-eB=2", "x"),
        ("-t", "-i", "--env", "A=1", "--env=B=2", "x"),
        ("-tie", "A=1", "-e=B=2", "x"),
        ("--tty=true", "-i=1", "-eA=1", "-eB=2", "--", "x"),
    ],
)
def test_spellings_of_one_line(words: tuple[str, ...]) -> None:
    parsed = line(*words)
    assert parsed.switch("tty")
    assert parsed.switch("interactive")
    assert parsed.texts("env") == ("A=1", "B=2")
    assert parsed.arguments == ("x",)


def test_switches_take_values_and_the_last_counts() -> None:
    assert not line("--sig-proxy=false", "x").switch("sig_proxy")
    assert not line("-t", "-t=false", "x").switch("tty")
    assert line("--tty=0", "--tty", "x").switch("tty")
    assert line("--net", "none", "--network=host", "x").text("network") == "host"
    assert line("--hostname=", "x").text("hostname") == ""


def test_all_after_the_image_belongs_to_the_command() -> None:
    assert line("-t", "image", "-i", "--net", "--", "-x").arguments == ("image", "-i", "--net", "--", "-x")
    assert line("image", "-i", interspersed=True).switch("interactive")
    assert line("--", "-image", "--").arguments == ("-image", "--")
    assert line("-", "x").arguments == ("-", "x")
    assert line("-e", "-x", "--env", "--", "y").texts("env") == ("-x", "--")


def test_help_is_met_before_the_image_only() -> None:
    assert line("-t", "--help", "--bogus").help
    assert not line("image", "--help").help
    assert not line("-e", "--help", "image").help
    assert line("-h", "name", "x").text("hostname") == "name"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--nope",), r"^unknown flag: --nope$"),
        (("--nope=1",), r"^unknown flag: --nope$"),
        (("-ix",), r"^unknown shorthand flag: -x in -ix$"),
        (("--env",), r"^flag needs an argument: --env$"),
        (("-ite",), r"^flag needs an argument: -e$"),
        (("--tty=maybe", "x"), r'^invalid value "maybe" for --tty: not a boolean'),
        (("--no\x1b[2J",), r'^unknown flag: "--no\\x1b'),
    ],
)
def test_errors(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        line(*words)


def test_a_near_miss_is_named() -> None:
    with pytest.raises(UsageError) as caught:
        line("--netwrok", "none")
    assert caught.value.hint == "did you mean --network?"


@given(
    st.lists(
        st.sampled_from(["-", "--", "-it", "--env", "-e", "=", "--tty=", "-t=f", "--net", "--help", "x"])
        | st.text(max_size=6)
    )
)
def test_nothing_but_usage_errors(words: list[str]) -> None:
    try:
        parsed = line(*words)
    except UsageError as error:
        assert str(error).isprintable()  # noqa: PT017
        return
    assert parsed.help or list(parsed.arguments) == words[len(words) - len(parsed.arguments) :]


def _run_words() -> st.SearchStrategy[list[str]]:
    """Well-formed lines of ``crungo run`` in the spellings that typer knows too."""
    from crungo.cli.run_flags import FLAGS as RUN_FLAGS

    value = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=6).filter(
        lambda v: not v.startswith("-")
    )

    def one(flag: Flag) -> st.SearchStrategy[list[str]]:
        name = st.sampled_from(flag.names)
        if flag.kind == "switch":
            return name.map(lambda n: [n])
        apart = st.tuples(name, value).map(list)
        return apart | value.map(lambda v: [f"{flag.name}={v}"])

    flags = st.lists(st.sampled_from(RUN_FLAGS).flatmap(one), max_size=5).map(
        lambda parts: [word for part in parts for word in part]
    )
    command = st.lists(value | st.sampled_from(["-x", "--rm", "--help", "-"]), max_size=3)
    return st.tuples(flags, value, command).map(lambda line: [*line[0], line[1], *line[2]])


def test_typers_application_reads_lines_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from crungo.cli import app, run_options

    seen: list[Parsed] = []

    def call(parsed: Parsed, context: Any) -> int:
        seen.append(parsed)
        return 7

    monkeypatch.setattr(run_options, "call", call)
    application = app.build()

    @given(_run_words())
    def same(words: list[str]) -> None:
        assert application(["run", *words], standalone_mode=False) == 7
        assert seen.pop() == parse(run_options.VERB.flags, words, interspersed=False)

    same()
