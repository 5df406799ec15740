"""The command line as a whole: exit codes, messages, what is imported, help and completion."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

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
        (["run"], "missing argument IMAGE; expected crungo run [OPTIONS] IMAGE [COMMAND] [ARG...]", "run"),
        (["run", "-it"], "missing argument IMAGE; expected crungo run [OPTIONS] IMAGE [COMMAND] [ARG...]", "run"),
        (["run", "--xyzzy", "x"], "unknown flag: --xyzzy", "run"),
        (["run", "-m", "5q", "x"], None, "run"),
        (["image", "prnue"], '"image prnue" is not a crungo command\nhint: did you mean image prune?', "image"),
        (["image", "rm"], "missing argument IMAGE; expected crungo image rm [OPTIONS] IMAGE [IMAGE...]", "image rm"),
        (["image", "foo"], '"image foo" is not a crungo command', "image"),
        (["image", "push", "x"], "image push is not supported: images are pulled, and made elsewhere", "image"),
        (["sytem", "df"], '"sytem" is not a crungo command\nhint: did you mean system?', None),
        (["image", "ls", "-x"], "unknown shorthand flag: -x in -x", "image ls"),
        (["tag", "x"], "missing argument TARGET; expected crungo tag [OPTIONS] SOURCE TARGET", "tag"),
        (["system", "df", "x"], "too many arguments; expected crungo system df [OPTIONS]", "system df"),
        (["images", "--format", "{{.Nope}}"], 'template "{{.Nope}}": there is no field Nope', "images"),
        (["images", "-f", "x=y"], None, "images"),
        (["inspect", "-f", "{{", "x"], 'template "{{": an action is not closed', "inspect"),
        (["pull", "x", "A/b"], None, "pull"),
        (["pull", "-a", "x:y"], "--all-tags: the name may have no tag and no digest", "pull"),
        (["pull", "--retry", "-1", "x"], 'invalid value "-1" for --retry: too small; the least is 0', "pull"),
        (["login", "-u", "me", "a/b://"], None, "login"),
        (["login", "--password-stdin", "x.y"], "--password-stdin needs --username", "login"),
        (
            ["login", "-u", "me", "-p", "x", "host"],
            "invalid registry 'host': without a dot or a port it would be part of an image's name",
            "login",
        ),
        (["logout", "-"], "invalid registry '-': the registry is not a host name with an optional port", "logout"),
        (
            ["ps", "-a"],
            "ps is not supported: a container ends with its crungo run; the library has exec, stop, pause, stats, "
            "put, get and more",
            None,
        ),
        (["build", "."], "build is not supported: images are pulled, and made elsewhere", None),
        (["info"], "info is not supported: crungo system df tells what is on disk", None),
        (
            ["run", "--cpuset-cpus", "0", "x"],
            "--cpuset-cpus is not supported: the limit of processors is --cpus",
            "run",
        ),
        (
            ["pull", "--tls-verify=false", "x"],
            "--tls-verify is not supported: registries.conf says which registries are insecure",
            "pull",
        ),
        (["compose"], "compose is not supported: each container runs on its own", None),
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


def test_errors_are_one_line_and_one_code(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def said(error: BaseException, **keywords: object) -> tuple[int, str]:
        code = report(error, **keywords)  # type: ignore[arg-type]
        out, err = capsys.readouterr()
        assert out == ""
        return code, err

    assert said(errors.CommandNotFound("exec x: not found")) == (127, "crungo: exec x: not found\n")
    assert said(errors.CommandNotExecutable("exec x: is a directory"))[0] == 126
    assert said(errors.HostError("a: b", hint="do c")) == (125, "crungo: a: b\nhint: do c\n")
    assert "--help" in said(errors.UsageError("a: b"))[1]
    # What a file says wrong is not to be read about in a verb's help.
    assert said(errors.ConfigurationError("/x.conf: b")) == (125, "crungo: /x.conf: b\n")
    assert said(errors.StoreError("x\x1b[2J\ny")) == (125, "crungo: x\\x1b[2J\\ny\n")
    assert said(KeyboardInterrupt()) == (130, "")
    assert said(SystemExit(3)) == (3, "")
    for user, hint in ((0, ""), (1000, "hint: run it with sudo\n")):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        assert said(PermissionError(13, "Permission denied", "/x")) == (125, f"crungo: /x: Permission denied\n{hint}")
    code, text = said(RuntimeError("odd"))
    assert (code, text.splitlines()[0]) == (125, "crungo: internal error: RuntimeError: odd")
    with pytest.raises(ZeroDivisionError) as caught:
        print(1 // 0)
    assert "Traceback" in said(caught.value, debug=True)[1]
    assert said(OSError("x\x1b]0;\x07")) == (125, "crungo: x\\x1b]0;\\x07\n")
    group = BaseExceptionGroup("", [RuntimeError("later"), ExceptionGroup("", [errors.NameInUse("taken: by x")])])
    assert said(group) == (125, "crungo: taken: by x\n")


def test_a_traceback_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """It shows the messages of everything that led to the error, libraries' too, which quote what they were sent."""
    try:
        try:
            raise ValueError("an answer: \x1b]52;c;ZXZpbA==\x07\x9b2J\u202e")
        except ValueError as cause:
            cause.add_note("noted \x1b[2J")
            raise errors.RegistryError("evil\x1b[31m", hint="hint\x1b[32m") from cause
    except errors.RegistryError as error:
        report(ExceptionGroup("group\x1b[33m", [error]), debug=True)
    text = capsys.readouterr().err
    assert all(c.isprintable() or c == "\n" for c in text)
    for shown in ("an answer: \\x1b]52;c;ZXZpbA==\\x07\\x9b2J\\u202e\n", "noted \\x1b[2J\n", "group\\x1b[33m"):
        assert shown in text
    assert text.endswith("crungo: evil\\x1b[31m\nhint: hint\\x1b[32m\n")


def test_every_error_has_an_exit_code() -> None:
    found = [
        value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.CrungoError)
    ]
    assert len(found) > 20
    assert {kind.exit_code for kind in found} == {125, 126, 127}


def test_h_asks_for_help_where_it_is_no_other_flag() -> None:
    asked, spelled = crungo("image", "ls", "-ah"), crungo("image", "ls", "--help")
    assert (asked.returncode, asked.stdout) == (0, spelled.stdout)
    assert "-h" in asked.stdout
    assert crungo("run", "-h").stderr.startswith("crungo: flag needs an argument: -h\n")


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
        assert name.partition(" ")[0] in everything.stdout


@pytest.mark.parametrize("words", [[], ["run"], ["image"], ["system", "df"]])
def test_help_is_a_verb_too(words: list[str]) -> None:
    assert crungo("help", *words).stdout == crungo(*words, "--help").stdout
    assert crungo("help", "nope").returncode == 125
    assert crungo("help", "run", "x", "true").stdout == crungo("run", "--help").stdout


def test_help_speaks_of_no_types_and_as_docker_does() -> None:
    for words, usage in {
        ("run",): "crungo run [OPTIONS] IMAGE [COMMAND] [ARG...]",
        ("rmi",): "crungo rmi [OPTIONS] IMAGE [IMAGE...]",
        ("login",): "crungo login [OPTIONS] [SERVER]",
        ("system", "df"): "crungo system df [OPTIONS]",
        ("image",): "crungo image [OPTIONS] COMMAND [ARGS]...",
        (): "crungo [OPTIONS] COMMAND [ARGS]...",
    }.items():
        text = crungo(*words, "--help").stdout
        assert f"Usage: {usage}" in [line.strip() for line in text.splitlines()]
        assert not {"<bool>", "<str>", "<list[str]>", "BOOLEAN"} & set(text.split())


@pytest.mark.parametrize("group", dispatch.GROUPS)
def test_a_group_lists_its_verbs(group: str) -> None:
    done = crungo(group)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == crungo(group, "--help").stdout
    assert dispatch.GROUPS[group] in done.stdout
    verbs = [name for name in dispatch.VERBS if name.startswith(f"{group} ")]
    assert verbs
    for name in verbs:
        assert f"│ {name.partition(' ')[2]} " in done.stdout
    assert f"Usage: crungo {verbs[0]} " in crungo(*verbs[0].split(), "--help").stdout


def test_every_verb_is_described() -> None:
    for name in dispatch.VERBS:
        verb = dispatch.load(name).VERB
        assert verb.summary[0].isupper()
        assert not verb.summary.endswith(".")
        assert verb.description.endswith(".")
        assert all(flag.help.endswith((".", ")")) for flag in verb.flags)
        assert all(argument.name.lower().isidentifier() for argument in verb.arguments)


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


def imported(heavy: set[str], *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command line in a process that fails when it imports one of these."""
    code = (
        "import sys; from crungo.cli.dispatch import main; heavy = set(sys.argv.pop(1).split()); main(sys.argv[1:]);"
        "heavy &= set(sys.modules); sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    return subprocess.run(
        [sys.executable, "-c", code, " ".join(heavy), *words], capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize("words", [["run", "-m", "5q", "x"], ["--version"], ["nope"], ["image", "rm"]])
def test_reading_a_line_imports_nothing_heavy(words: list[str]) -> None:
    done = imported({"typer", "rich", "httpx", "anyio", "asyncio", "pydantic", "cffi", "aiofiles"}, *words)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["images"],
        ["images", "--format", "{{.ID}}"],
        ["inspect", "x"],
        ["rmi", "x"],
        ["tag", "x", "y"],
        ["system", "df"],
        ["image", "prune", "-f"],
        ["pull", "--policy", "missing"],
    ],
)
def test_verbs_without_a_network_import_none(words: list[str], tmp_path: Path) -> None:
    done = imported({"typer", "rich", "httpx", "ssl", "asyncio", "cffi", "ctypes"}, "--root", str(tmp_path), *words)
    assert done.returncode == 0, done.stderr


def test_what_is_left_for_later_is_there_when_it_is_asked_for() -> None:
    code = (
        "import sys\n"
        "from crungo.cli.later import leave_for_later\n"
        "leave_for_later()\n"
        "import httpcore, httpx\n"
        "names = ('certifi.core', 'idna.core')\n"
        "assert not any(name in sys.modules for name in names)\n"
        "assert httpcore.default_ssl_context().cert_store_stats()['x509_ca'] > 0\n"
        "assert httpx.URL('http://b\\xfccher/').raw_host == b'xn--bcher-kva'\n"
        "assert all(name in sys.modules for name in names)\n"
        "import certifi, idna\n"
        "assert certifi.where() and idna.IDNAError.__mro__\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_entry_imports_nothing_by_itself() -> None:
    code = "import sys; before = set(sys.modules); import crungo.__main__; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert set(done.stdout.split()) <= {"crungo", "crungo.__main__", "__future__"}


def test_an_interrupt_while_it_starts() -> None:
    """It ends, and says nothing of what it was importing."""
    program = (
        "import sys, time\n"
        "from crungo.__main__ import main\n"
        "class Slow:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'crungo.cli.dispatch':\n"
        "            print('there', flush=True)\n"
        "            time.sleep(30)\n"
        "sys.meta_path.insert(0, Slow())\n"
        "main()\n"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == (b"", b"")
        assert process.returncode == -signal.SIGINT


@pytest.mark.parametrize("closed", [(0,), (1, 2), (0, 1, 2)])
def test_closed_standard_descriptors_are_given_to_nothing_else(closed: tuple[int, ...]) -> None:
    """For every verb: they lead to /dev/null before anything of the command line runs."""
    program = (
        "import os\n"
        "from crungo import __main__\n"
        "from crungo.cli import dispatch\n"
        f"for fd in {closed}: os.close(fd)\n"
        "def check():\n"
        f"    return 7 if all(os.path.samestat(os.fstat(fd), os.stat('/dev/null')) for fd in {closed}) else 1\n"
        "dispatch.main = check\n"
        "__main__.main()\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 7


def test_what_a_thread_writes_is_not_cut_off(tmp_path: Path) -> None:
    """After Ctrl-C the loop has ended without its workers; those that wait for nobody knows what are left alone."""
    program = (
        "import pathlib, threading, time\n"
        "from crungo import __main__\n"
        "from crungo.cli import dispatch\n"
        "def work():\n"
        "    time.sleep(0.2)\n"
        f"    pathlib.Path({str(tmp_path / 'done')!r}).touch()\n"
        "def interrupted():\n"
        "    threading.Thread(target=work).start()\n"
        "    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n"
        "    return 130\n"
        "dispatch.main = interrupted\n"
        "__main__.main()\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 130
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize("words", [["images"], ["system", "prune"], ["pull", "--help"], ["--version"]])
def test_an_answer_that_nobody_can_have_is_no_failure(words: list[str], tmp_path: Path) -> None:
    """As with docker and podman, whose output goes nowhere either where stdout is closed."""
    command = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "crungo", "--root", str(tmp_path), *words]
    done = subprocess.run(command, input="", stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
