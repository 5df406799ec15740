"""Go templates: what is printed, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crungo.cli.templates import NIL_LIST, NIL_MAP, Record, Template, plain
from crungo.errors import UsageError

DATA = Record(
    ID="abc",
    Count=3,
    Ratio=1.5,
    Yes=True,
    Env=["A=1", "B=2"],
    Labels={"b": "2", "a.b": "1"},
    Config=Record(Cmd=NIL_LIST, Labels=NIL_MAP, Health=None, User="me"),
    Mounts=[Record(Name="x", Size=1), Record(Name="y", Size=2)],
)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("plain", "plain"),
        ("{{.ID}}", "abc"),
        ("<{{ .ID }}>", "<abc>"),
        ("{{.Count}} {{.Ratio}} {{.Yes}}", "3 1.5 true"),
        ("{{.Env}} {{.Labels}}", "[A=1 B=2] map[a.b:1 b:2]"),
        ("{{.Config.Cmd}}{{.Config.Labels}}{{.Config}}", "[]map[]{[] map[] <nil> me}"),
        ("{{json .Config}}", '{"Cmd":null,"Labels":null,"Health":null,"User":"me"}'),
        ("{{.Env | json}} {{json .}}", '["A=1","B=2"] ' + Template("{{json .}}").render(DATA)),
        ('{{index .Env 1}} {{index .Labels "a.b"}}{{index .Labels "none"}}', "B=2 1"),
        ("{{(index .Mounts 1).Name}}", "y"),
        ("{{.Labels.b}} {{.Labels.none}} {{.Config.Labels.x}}", "2 <no value> <no value>"),
        ("{{range .Env}}{{.}};{{end}}", "A=1;B=2;"),
        ("{{range $i, $e := .Env}}{{$i}}={{$e}} {{$.ID}} {{end}}", "0=A=1 abc 1=B=2 abc "),
        ("{{range $k, $v := .Labels}}{{$k}}:{{$v}},{{end}}", "a.b:1,b:2,"),
        ("{{range .Config.Cmd}}x{{else}}none{{end}}", "none"),
        ("{{range .Mounts}}{{.Name}}{{if gt .Size 1}}!{{end}}{{end}}", "xy!"),
        ('{{if eq .ID "x"}}1{{else if eq .ID "abc"}}2{{else}}3{{end}}', "2"),
        ("{{if not .Config.Health}}no{{end}}{{with .Config.User}}{{.}}{{end}}", "nome"),
        ("{{with .Config.Health}}{{.}}{{else}}-{{end}}", "-"),
        ("{{if and .Yes .Config.User}}a{{end}}{{if or .Config.Cmd .Config.Labels}}b{{end}}", "a"),
        ("{{len .Env}} {{upper .ID}} {{.ID | upper | lower}} {{title .ID}}", "2 ABC abc Abc"),
        ('{{join .Env ","}} {{join .Config.Cmd ","}}{{split "a b" " "}} {{truncate .ID 2}}', "A=1,B=2 [a b] ab"),
        ('{{printf "%-5s|%03d|%q|%v|%%" .ID .Count .ID .Env}}', 'abc  |003|"abc"|[A=1 B=2]|%'),
        ("{{println .ID 1}}{{print .ID 1}}", "abc 1\nabc1"),
        ('{{"a\\tb"}}{{`c\\n`}}{{"}}"}}', "a\tbc\\n}}"),
        ("a {{- .ID -}} b{{/* nothing */}}{{- /* x */ -}} c", "aabcbc"),
        ("{{$x := .ID}}{{$x}}", "abc"),
        ("{{pad .ID 1 2}}|", " abc  |"),
        ("{{slice .ID 1}} {{slice .ID 0 2}} {{slice .ID}} {{slice .Env 1 2}}", "bc ab abc [B=2]"),
        ("{{true}} {{nil | json}}", "true null"),
    ],
)
def test_rendered(template: str, text: str) -> None:
    assert Template(template).render(DATA) == text


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{.Nope}}", "there is no field Nope"),
        ("{{.ID.x}}", "there is no field x"),
        ("{{.Config.Nope.Deeper}}", "there is no field Nope"),
        ("{{nope .ID}}", 'there is no function "nope"'),
        ("{{.ID", "an action is not closed"),
        ("{{}}", "an action is empty"),
        ("{{if .ID}}", "if has no end"),
        ("{{end}}", "unexpected end"),
        ("{{range .ID}}{{end}}", "range cannot go over"),
        ("{{(.ID}}", "an action ends too early"),
        ("{{.ID | .ID}}", "only functions may follow a |"),
        ("{{.ID .ID}}", 'unexpected ".ID"'),
        ("{{index .Env 7}}", "index cannot be applied to"),
        ("{{index .Env -1}}", "index cannot be applied to"),
        ("{{slice .ID 2 7}}", "slice cannot be applied to"),
        ("{{slice .ID 2 1}}", "slice cannot be applied to"),
        ("{{slice .ID 0 1 2}}", "slice cannot be applied to"),
        ("{{slice .Count}}", "slice cannot be applied to"),
        ("{{$x}}", r"undefined variable \$x"),
        ("{{#}}", 'unexpected "#"'),
        ("{{json}}", "json cannot be applied to"),
        ("{{" + "(" * 60 + "1" + ")" * 60 + "}}", "nested too deeply"),
        ("{{if 1}}" * 60 + "{{end}}" * 60, "nested too deeply"),
    ],
)
def test_refused(template: str, why: str) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        Template(template).render(DATA)
    assert str(caught.value).isprintable()


def test_a_header_ignores_functions() -> None:
    titles = {"ID": "IMAGE ID", "Tag": "TAG"}
    assert Template("{{.ID}}\t{{json .Tag}}\t{{upper .Tag}}").header(titles) == "IMAGE ID\tTAG\tTAG"


def test_plain_is_json() -> None:
    assert plain(DATA)["Config"] == {"Cmd": None, "Labels": None, "Health": None, "User": "me"}


_WORDS = "{{ }} . .ID .Env | ( ) json index range if else end $x := 1 - /* */ with len printf .Labels .Config.Cmd x"
_PIECES = st.sampled_from([*_WORDS.split(), " ", '"', "`", '"%d"'])


@given(st.lists(_PIECES, max_size=12).map("".join) | st.text(max_size=20))
def test_nothing_but_usage_errors(text: str) -> None:
    try:
        rendered: Any = Template(text).render(DATA)
    except UsageError as error:
        assert str(error).isprintable()  # noqa: PT017
    else:
        assert isinstance(rendered, str)
