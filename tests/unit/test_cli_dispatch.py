"""The command line as a whole: exit codes, messages, what is imported, help and completion."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from crungo import errors
from crungo.cli import dispatch
from crungo.cli.messages import report
from crungo.cli.run_options import VERB


def crungo(*words: str, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "80", **(environ or {})}
    return subprocess.run(
        [sys.executable, "-m", "crungo", *words],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("words", "message", "verb"),
    [
        (["rnu"], '"rnu" is not a crungo command\nhint: did you mean run?', None),
        (["--rot", "x"], "unknown flag: --rot\nhint: did you mean --root?", None),
        (["run"], "missing argument IMAGE: crungo run needs at least 1", "run"),
        (["run", "-it"], "missing argument IMAGE: crungo run needs at least 1", "run"),
        (["run", "--xyzzy", "x"], "unknown flag: --xyzzy", "run"),
        (["run", "-m", "5q", "x"], None, "run"),
    ],
)
def test_usage_errors(
    words: list[str], message: str | None, verb: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dispatch.main(words) == 125
    out, err = capsys.readouterr()
    assert out == ""
    head, _, tail = err.partition("\n\n")
    assert head == (f"crungo: {message}" if message else head)
    assert head.startswith("crungo: ")
    assert tail == f"Run 'crungo {verb + ' ' if verb else ''}--help' for more information\n"


def test_errors_are_one_line_and_one_code(capsys: pytest.CaptureFixture[str]) -> None:
    def said(error: BaseException, **keywords: object) -> tuple[int, str]:
        code = report(error, **keywords)  # type: ignore[arg-type]
        out, err = capsys.readouterr()
        assert out == ""
        return code, err

    assert said(errors.CommandNotFound("exec x: not found")) == (127, "crungo: exec x: not found\n")
    assert said(errors.CommandNotExecutable("exec x: is a directory"))[0] == 126
    assert said(errors.HostError("a: b", hint="do c")) == (125, "crungo: a: b\nhint: do c\n")
    assert said(errors.StoreError("x\x1b[2J\ny")) == (125, "crungo: x\\x1b[2J\\ny\n")
    assert said(KeyboardInterrupt()) == (130, "")
    assert said(SystemExit(3)) == (3, "")
    assert said(PermissionError(13, "Permission denied", "/x")) == (125, "crungo: /x: Permission denied\n")
    code, text = said(RuntimeError("odd"))
    assert (code, text.splitlines()[0]) == (125, "crungo: internal error: RuntimeError: odd")
    with pytest.raises(ZeroDivisionError) as caught:
        print(1 // 0)
    assert "Traceback" in said(caught.value, debug=True)[1]
    group = BaseExceptionGroup("", [RuntimeError("later"), ExceptionGroup("", [errors.NameInUse("taken: by x")])])
    assert said(group) == (125, "crungo: taken: by x\n")


def test_every_error_has_an_exit_code() -> None:
    found = [
        value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.CrungoError)
    ]
    assert len(found) > 20
    assert {kind.exit_code for kind in found} == {125, 126, 127}


def test_help_names_every_flag_within_eighty_columns() -> None:
    done = crungo("run", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 80
    for flag in VERB.flags:
        assert flag.name in done.stdout
        assert flag.help
        assert flag.help.endswith((".", ")"))
        assert flag.panel in done.stdout
    everything = crungo()
    assert everything.returncode == 0
    for name in dispatch.VERBS:
        assert name in everything.stdout


def test_version_and_completion() -> None:
    assert crungo("--version").stdout.startswith("crungo version ")
    completed = crungo(
        environ={"_CRUNGO_COMPLETE": "complete_bash", "COMP_WORDS": "crungo run --mem", "COMP_CWORD": "2"}
    )
    assert completed.stdout.split() == ["--memory", "--memory-swap"]


def test_a_reader_that_leaves_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "crungo", "--version"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
    )
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode in (0, 120, 141)


@pytest.mark.parametrize("words", [["run", "-m", "5q", "x"], ["--version"], ["nope"]])
def test_reading_a_line_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys; from crungo.cli.dispatch import main; main(sys.argv[1:]);"
        "heavy = {'typer', 'rich', 'httpx', 'anyio', 'asyncio', 'pydantic', 'cffi', 'aiofiles'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_entry_imports_nothing_by_itself() -> None:
    code = "import sys; before = set(sys.modules); import crungo.__main__; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert set(done.stdout.split()) <= {"crungo", "crungo.__main__", "__future__"}
