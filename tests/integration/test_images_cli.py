"""The verbs about images, from pull to prune, against a real registry and with real containers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.integration.conftest import PushImage
from tests.support.command import Crungo
from tests.support.fakeregistry import FakeRegistry, Fault, Request
from tests.support.image import Layer, make_image
from tests.support.registry import Registry

OLD = "2019-01-02T03:04:05Z"


@pytest.fixture(scope="module")
def tiny(push_image: PushImage) -> str:
    """An image of one small layer, in a repository with two tags."""
    source = make_image([Layer().file("hello", "one")], config={"Labels": {"team": "blue"}, "Env": ["A=1"]})
    push_image("team/tiny", image=source, tag="v1")
    other = make_image([Layer().file("hello", "two")], change_config=lambda config: config.update(created=OLD))
    push_image("team/tiny", image=other, tag="v2")
    return push_image("team/tiny", image=source).removesuffix(":latest")


@pytest.fixture
def slow() -> Iterator[FakeRegistry]:
    """A registry whose blobs never quite arrive."""
    with FakeRegistry() as registry:
        yield registry


def images(crungo: Crungo, *words: str) -> list[str]:
    return crungo("images", *words, check=0).stdout.splitlines()


class TestPull:
    @pytest.mark.parametrize("limit", [10, 13, 17, 22, 28, 35])
    def test_no_more_files_can_be_opened(self, limit: int, fresh_crungo: Crungo, push_image: PushImage) -> None:
        """Wherever that happens, the limit is named; with enough of them the pull goes on."""
        layers = [Layer().file("file", os.urandom(2_000_000 if n < 3 else 50_000)) for n in range(8)]
        text = push_image("team/many", image=make_image(layers))
        command = ["sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh", *fresh_crungo.argv("pull", text)]
        done = subprocess.run(
            command, env=fresh_crungo.environ(), capture_output=True, text=True, timeout=60, check=False
        )
        *_, error, hint = done.stderr.splitlines()
        assert done.returncode == 125
        assert error == f"crungo: pull {text}: this process has as many files open as it may: {limit}"
        assert hint.startswith("hint: raise the limit: ulimit -n")
        fresh_crungo("pull", text, check=0)

    @pytest.mark.parametrize("limit", ["-n 50", "-t 600", "-d 140000"])
    def test_limits_below_those_of_an_unpacker(self, limit: str, fresh_crungo: Crungo, tiny: str) -> None:
        """It has some of its own, and no right to raise what it was given."""
        command = ["sh", "-c", f'ulimit {limit}; exec "$@"', "sh", *fresh_crungo.argv("pull", tiny)]
        subprocess.run(command, env=fresh_crungo.environ(), capture_output=True, timeout=60, check=True)

    def test_digest_status_and_name(self, fresh_crungo: Crungo, tiny: str) -> None:
        done = fresh_crungo("pull", tiny, check=0)
        digest, status, name = done.stdout.splitlines()
        assert digest.startswith("Digest: sha256:")
        assert (status, name) == (f"Status: Downloaded newer image for {tiny}:latest", f"{tiny}:latest")
        head, layer = done.stderr.splitlines()
        assert head == f"latest: Pulling from {tiny}"
        assert layer.endswith(": Pull complete")

        again = fresh_crungo("pull", f"{tiny}:latest", check=0)
        assert again.stdout.splitlines() == [digest, f"Status: Image is up to date for {tiny}:latest", name]
        assert again.stderr == ""
        assert fresh_crungo("pull", "-q", tiny, check=0).stdout == digest.removeprefix("Digest: ") + "\n"
        by_digest = f"{tiny}@{digest.removeprefix('Digest: ')}"
        assert fresh_crungo("pull", by_digest, check=0).stdout.splitlines()[-1] == by_digest
        assert images(fresh_crungo, "--digests")[1].split()[2] == digest.removeprefix("Digest: ")

    def test_what_is_unchanged_needs_no_helper(self, fresh_crungo: Crungo, push_image: PushImage) -> None:
        """Only what has to be unpacked does, also when the name was known before."""
        name = push_image("team/moving", image=make_image([Layer().file("a", "one")]))
        fresh_crungo("pull", name, check=0)
        program = (
            "import sys; from crungo.cli.dispatch import main; code = main(sys.argv[1:]);"
            "print('crungo.runtime.unpacking' in sys.modules); sys.exit(code)"
        )
        command = [sys.executable, "-c", program, *fresh_crungo.argv("pull", name)[3:]]

        def pull() -> list[str]:
            done = subprocess.run(command, capture_output=True, env=fresh_crungo.environ(), text=True, check=True)
            return done.stdout.splitlines()[1:]

        assert pull() == [f"Status: Image is up to date for {name}", name, "False"]
        push_image("team/moving", image=make_image([Layer().file("a", "two")]))
        assert pull() == [f"Status: Downloaded newer image for {name}", name, "True"]

    def test_several_of_which_one_fails(self, fresh_crungo: Crungo, tiny: str, registry: Registry) -> None:
        done = fresh_crungo("pull", f"{tiny}:v2", f"{registry.address}/team/none", f"{tiny}:v1", check=125)
        names = [line for line in done.stdout.splitlines() if line.startswith(registry.address)]
        assert names == [f"{tiny}:v2", f"{tiny}:v1"]
        assert done.stderr.count("crungo: ") == 1
        assert "team/none" in done.stderr

    def test_what_ends_one_image_ends_no_other(self, fresh_crungo: Crungo, tiny: str, slow: FakeRegistry) -> None:
        source = make_image([Layer().file("x", "y")])
        [layer] = source.document["layers"]
        part = fresh_crungo.root / "ingest" / f"{layer['digest'].replace(':', '-')}.part"
        part.mkdir(parents=True)
        done = fresh_crungo("pull", "-q", slow.add(source), f"{tiny}:v1", check=125)
        assert done.stdout.startswith("sha256:")
        assert done.stderr == f"crungo: store: {part}: Is a directory\n"
        assert images(fresh_crungo, "--format", "{{.Tag}}") == ["v1"]
        assert str(part) in fresh_crungo("system", "prune", "-f", check=0).stdout

    def test_all_tags(self, fresh_crungo: Crungo, tiny: str) -> None:
        done = fresh_crungo("pull", "--all-tags", "-q", tiny, check=0)
        assert len(done.stdout.splitlines()) == 3
        assert images(fresh_crungo, "--format", "{{.Tag}}") == ["latest", "v1", "v2"]

    def test_policies_and_platforms(self, fresh_crungo: Crungo, tiny: str) -> None:
        assert (
            fresh_crungo("pull", "--policy", "never", tiny, check=125).stderr
            == f"crungo: No such image: {tiny}:latest\n"
        )
        fresh_crungo("pull", tiny, check=0)
        for policy in ("never", "missing", "newer", "always"):
            assert "up to date" in fresh_crungo("pull", "--policy", policy, tiny, check=0).stdout
        wrong = fresh_crungo("pull", "--platform", "linux/s390x", tiny, check=125)
        assert "s390x" in wrong.stderr

    def test_retries(self, fresh_crungo: Crungo, slow: FakeRegistry) -> None:
        name = slow.add(make_image([Layer().file("x", "y")]))
        slow.faults = lambda request: Fault(status=503) if "blobs" in request.path and request.number < 2 else None
        done = fresh_crungo("pull", "--retry", "1", "--retry-delay", "1ms", name, check=125)
        assert "503" in done.stderr
        slow.faults = lambda request: Fault(status=503) if "manifests" in request.path and request.number < 9 else None
        fresh_crungo("pull", "--retry", "20", "--retry-delay", "1ms", name, check=0)


class TestDisplay:
    """``crungo pull`` on a terminal, of an image that stops half-way."""

    @pytest.fixture
    def stop(self) -> Iterator[threading.Event]:
        """Layers go on when this is set."""
        event = threading.Event()
        yield event
        event.set()

    @pytest.fixture
    def name(self, slow: FakeRegistry, stop: threading.Event) -> str:
        image = make_image([Layer().file("a", os.urandom(900_000)), Layer().file("b", os.urandom(700_000))])
        layers = {layer["digest"] for layer in image.document["layers"]}

        def fault(request: Request) -> Fault | None:
            return Fault(after=400_000, hold=stop) if request.path.rpartition("/")[2] in layers else None

        slow.faults = fault
        return slow.add(image, "team/app")

    def test_ctrl_c_leaves_a_clean_screen(self, fresh_crungo: Crungo, name: str, stop: threading.Event) -> None:
        with fresh_crungo.terminal("pull", name) as terminal:
            terminal.expect_screen(r"^[0-9a-f]{12}: Downloading \[=*>? *\] +\d+[kM]?B/(?:900|901)kB")
            terminal.expect_screen(r"^Total: .*, 0/2 layers")
            terminal.resize(60, 24)
            terminal.expect_screen(r"^[0-9a-f]{12}: Downloading +\d+[kM]?B/(?:900|901)kB$")
            terminal.control("C")
            assert terminal.wait() == 130
            assert terminal.screen.strip() == ""
            terminal.assert_restored()
        stop.set()
        with fresh_crungo.terminal("pull", name) as terminal:
            assert terminal.wait() == 0
            title, first, second, digest, *_ = terminal.screen.splitlines()
            assert title.startswith("latest: Pulling from 127.0.0.1:")
            assert first.endswith("Pull complete")
            assert second.endswith("Pull complete")
            assert digest.startswith("Digest: ")

    def test_run_shows_it_too(self, fresh_crungo: Crungo, name: str) -> None:
        with fresh_crungo.terminal("run", name, "true") as terminal:
            terminal.expect_screen(r"^Unable to find image '127.0.0.1:\d+/team/app:latest' locally")
            terminal.expect_screen(r"^Total: .*, 0/2 layers")
            terminal.process.send_signal(signal.SIGINT)
            assert terminal.wait() == 130
            assert len(terminal.screen.strip().splitlines()) == 1
            terminal.assert_restored()

    def test_quiet(self, fresh_crungo: Crungo, name: str, stop: threading.Event) -> None:
        stop.set()
        with fresh_crungo.terminal("pull", "-q", name) as terminal:
            assert terminal.wait() == 0
            assert terminal.text.strip().startswith("sha256:")
            assert len(terminal.text.split()) == 1


class TestNames:
    def test_lists(self, fresh_crungo: Crungo, tiny: str) -> None:
        assert images(fresh_crungo) == ["REPOSITORY   TAG       IMAGE ID   CREATED   SIZE"]
        fresh_crungo("pull", "-aq", tiny, check=0)
        fresh_crungo("tag", f"{tiny}:v2", "mine:here", check=0)
        table = images(fresh_crungo)
        assert [line.split()[1] for line in table[1:]] == ["latest", "v1", "v2", "here"]
        assert table[0].split() == ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]
        assert "years ago" in table[4]
        ids = images(fresh_crungo, "-q")
        assert len(ids) == 4
        assert len(set(ids)) == 2
        assert images(fresh_crungo, "-q", "--no-trunc", "mine")[0].startswith(f"sha256:{ids[3]}")
        assert json.loads(images(fresh_crungo, "--format", "json", "mine:here")[0])["Repository"] == "mine"
        assert images(fresh_crungo, "-f", "label=team=blue", "--format", "{{.Tag}}") == ["latest", "v1"]
        assert images(fresh_crungo, "-f", f"before={tiny}:v1", "--format", "{{.Tag}}") == ["v2", "here"]
        assert images(fresh_crungo, "-f", "until=2020-01-01", "--format", "table {{.Tag}}") == ["TAG", "v2", "here"]
        assert fresh_crungo("image", "ls", check=0).stdout.splitlines() == table

    def test_inspect(self, fresh_crungo: Crungo, tiny: str) -> None:
        fresh_crungo("pull", "-q", tiny, check=0)
        [found] = json.loads(fresh_crungo("inspect", tiny, check=0).stdout)
        assert found["RepoTags"] == [f"{tiny}:latest"]
        assert found["Config"]["Labels"] == {"team": "blue"}
        assert found["Config"]["Entrypoint"] is None
        assert len(found["RootFS"]["Layers"]) == 1
        assert Path(found["GraphDriver"]["Data"]["UpperDir"], "hello").read_text() == "one"
        labels = "{{range $k, $v := .Config.Labels}}{{$k}}-{{$v}}{{end}}"
        form = f"{{{{.Id}}}} {{{{index .Config.Env 0}}}} {{{{.Config.Entrypoint}}}} {labels}"
        done = fresh_crungo("image", "inspect", "-f", form, tiny, found["Id"][7:15], "nothing", check=125)
        assert done.stdout == f"{found['Id']} A=1 [] team-blue\n" * 2
        assert done.stderr == "crungo: No such image: nothing:latest\n"

    def test_remove(self, fresh_crungo: Crungo, tiny: str) -> None:
        fresh_crungo("pull", "-q", tiny, f"{tiny}:v1", f"{tiny}:v2", check=0)
        identifier = images(fresh_crungo, "-q", f"{tiny}:v1")[0]
        fresh_crungo("tag", identifier, "mine", check=0)
        assert fresh_crungo("rmi", f"{tiny}:v1", check=0).stdout == f"Untagged: {tiny}:v1\n"
        assert "several repositories" in fresh_crungo("rmi", identifier, check=125).stderr
        done = fresh_crungo("rmi", "-f", identifier, "nothing", f"{tiny}:v2", check=0).stdout.splitlines()
        assert done[:2] == [f"Untagged: {tiny}:latest", "Untagged: mine:latest"]
        assert done[2].startswith(f"Deleted: sha256:{identifier}")
        assert done[3] == f"Untagged: {tiny}:v2"
        assert "No such image" in fresh_crungo("image", "rm", "nothing", check=125).stderr
        assert images(fresh_crungo, "-q") == []
        assert os.listdir(fresh_crungo.root / "layers") == []

    def test_short_names(self, fresh_crungo: Crungo, busybox_reference: str, tiny: str, tmp_path: Path) -> None:
        """What was pulled by an alias is known by it, unless the store has something of just that name."""
        conf = tmp_path / "registries.conf"
        conf.write_text(f'[aliases]\n"box" = "{busybox_reference.removesuffix(":latest")}"\n')
        user = replace(fresh_crungo, env={"CONTAINERS_REGISTRIES_CONF": str(conf)})
        user("pull", "box", check=0)
        assert user("run", "--pull=never", "box", "echo", "hello", check=0).stdout == "hello\n"
        assert json.loads(user("inspect", "box", check=0).stdout)[0]["RepoTags"] == [busybox_reference]
        for policy in ("missing", "never"):
            printed = user("pull", f"--policy={policy}", "box", check=0).stdout.splitlines()
            assert printed[1:] == [f"Status: Image is up to date for {busybox_reference}", busybox_reference]
        user("tag", "box", "other/box", check=0)
        assert user("rmi", "box", check=0).stdout == f"Untagged: {busybox_reference}\n"
        assert "No such image: box:latest" in user("inspect", "box", check=125).stderr
        user("pull", tiny, "box", check=0)
        user("tag", tiny, "box", check=0)
        assert "box:latest" in json.loads(user("inspect", "box", check=0).stdout)[0]["RepoTags"]

    def test_names_that_are_looked_for(self, fresh_crungo: Crungo, tiny: str, tmp_path: Path) -> None:
        """In a registry of the house, where Docker Hub is not among those that are searched."""
        host, name = tiny.split("/", 1)
        conf = tmp_path / "registries.conf"
        user = replace(fresh_crungo, env={"CONTAINERS_REGISTRIES_CONF": str(conf)})
        conf.write_text(f'unqualified-search-registries = ["{host}"]\n')
        assert user("pull", f"{name}:v1", check=0).stdout.splitlines()[-1] == f"{tiny}:v1"
        assert json.loads(user("inspect", f"{name}:v1", check=0).stdout)[0]["RepoTags"] == [f"{tiny}:v1"]
        conf.write_text(f'unqualified-search-registries = ["none.example", "{host}"]\n')
        done = user("pull", f"{name}:v2", f"{tiny}:v2", check=125)
        assert done.stdout.splitlines()[-1] == f"{tiny}:v2"
        assert f"crungo: {name}:v2: unqualified-search-registries has several registries for it" in done.stderr
        assert user("rmi", f"{name}:v1", check=0).stdout.startswith(f"Untagged: {tiny}:v1\n")

    def test_a_container_keeps_its_image(self, fresh_crungo: Crungo, busybox_reference: str) -> None:
        fresh_crungo("pull", "-q", busybox_reference, check=0)
        with fresh_crungo.start("run", "-i", busybox_reference, "cat", stdin=-1) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"up\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"up\n"
            refused = fresh_crungo("rmi", busybox_reference, check=125)
            assert f"it is used by process {process.pid}" in refused.stderr
            assert "reclaimed space: 0B" in fresh_crungo("image", "prune", "-af", check=0).stdout
            assert fresh_crungo("system", "df", "--format", "{{.Active}}", check=0).stdout.split() == ["1", "1", "0"]
            forced = fresh_crungo("rmi", "-f", busybox_reference, check=0).stdout
            assert forced == f"Untagged: {busybox_reference}\n"  # its content stays as long as the container needs it
            process.stdin.write(b"still\n")
            process.stdin.close()
            assert process.stdout.read() == b"still\n"
            assert process.wait() == 0
        assert images(fresh_crungo, "-f", "dangling=true", "--format", "{{.Repository}}") == ["<none>"]
        assert "Deleted Images:" in fresh_crungo("image", "prune", "-f", check=0).stdout
        assert images(fresh_crungo, "-q") == []


class TestSystem:
    def test_df_and_prune(self, fresh_crungo: Crungo, tiny: str, slow: FakeRegistry) -> None:
        header, *empty = fresh_crungo("system", "df", check=0).stdout.splitlines()
        assert header.split() == ["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"]
        assert [line.split()[1:] for line in empty] == [["0", "0", "0B", "0B"]] * 3
        fresh_crungo("pull", "-q", f"{tiny}:v1", f"{tiny}:v2", check=0)
        fresh_crungo("tag", f"{tiny}:v1", f"{tiny}:v2", check=0)  # v2 has no name any more
        name = slow.add(make_image([Layer().file("x", os.urandom(100_000))]))
        slow.faults = lambda request: Fault(after=50_000) if "blobs" in request.path else None
        fresh_crungo("pull", "--retry", "0", name, check=125)
        dead = fresh_crungo.root / "containers" / ("a" * 64) / "upper" / "file"
        dead.parent.mkdir(parents=True)
        dead.write_bytes(bytes(10_000))

        rows = [
            json.loads(line) for line in fresh_crungo("system", "df", "--format", "json", check=0).stdout.splitlines()
        ]
        assert [row["TotalCount"] for row in rows] == ["2", "1", "1"]
        assert rows[1]["Reclaimable"].endswith("(100%)")
        verbose = fresh_crungo("system", "df", "-v", check=0).stdout
        assert verbose.count(tiny) == 2
        assert "UNIQUE SIZE" in verbose
        for what, size in (("Containers", rows[1]["Size"]), ("Leftovers", rows[2]["Size"])):
            assert f"\n{what} usage: {size}\n" in verbose
        assert "\nBlobs usage: " in verbose

        declined = fresh_crungo("system", "prune", input="n\n", check=0).stdout
        assert "WARNING! This will remove:" in declined
        assert "reclaimed" not in declined
        assert dead.exists()
        done = fresh_crungo("system", "prune", input="y\n", check=0).stdout
        assert "Deleted leftovers of 1 container\n" in done
        assert done.count("deleted: sha256:") == 1
        assert not dead.exists()
        assert os.listdir(fresh_crungo.root / "ingest") == []
        assert images(fresh_crungo, "--format", "{{.Tag}}") == ["v1", "v2"]
        assert fresh_crungo("system", "prune", "-f", check=0).stdout == "Total reclaimed space: 0B\n"
        assert "untagged: " in fresh_crungo("image", "prune", "-a", "-f", "--filter", "label=team", check=0).stdout
        assert images(fresh_crungo, "-q") == []

    def test_check(self, fresh_crungo: Crungo, tiny: str) -> None:
        fresh_crungo("pull", "-q", tiny, check=0)
        assert fresh_crungo("system", "check", check=0).stdout == "1 image checked: no problems\n"
        form = "{{.GraphDriver.Data.UpperDir}}"
        layer = Path(fresh_crungo("inspect", "-f", form, tiny, check=0).stdout.strip())
        (layer / "hello").write_text("spoiled")
        told, summary = fresh_crungo("system", "check", check=1).stdout.splitlines()
        assert told.startswith("layer sha256:")
        assert "/hello" in told
        assert summary == "1 image checked: 1 problem, 1 left"
        mended = fresh_crungo("system", "check", "--repair", "-q", check=0).stdout
        assert mended.endswith("(mended)\n")
        assert (layer / "hello").read_text() == "one"
        assert fresh_crungo("system", "check", "-q", check=0).stdout == ""

    def test_what_was_synced_outlives_a_restart(self, fresh_crungo: Crungo, tiny: str) -> None:
        fresh_crungo("pull", "-q", tiny, check=0)
        [record] = (fresh_crungo.root / "layers").glob("*/record.json")
        assert not json.loads(record.read_text())["synced"]
        fresh_crungo("system", "prune", "-f", check=0)
        assert json.loads(record.read_text())["synced"]
