"""Which image a run takes, when it asks the registry; and what goes with a container's identity: names, ids, labels."""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import PushImage
from tests.support.command import Crungo
from tests.support.fakeregistry import FakeRegistry
from tests.support.image import ARCHITECTURES, Image, busybox_image, push_index
from tests.support.registry import Registry


@pytest.fixture
def fake() -> Iterator[FakeRegistry]:
    """A registry that counts what it is asked for."""
    with FakeRegistry() as running:
        yield running


def variant(busybox: Path, word: str) -> Image:
    return busybox_image(busybox, config={"Env": [f"WORD={word}"]})


def word(crungo: Crungo, *arguments: str) -> str:
    return crungo("run", *arguments, "sh", "-c", "echo $WORD", check=0).stdout.strip()


def test_an_image_is_asked_for_once(fresh_crungo: Crungo, fake: FakeRegistry, busybox: Path) -> None:
    reference = fake.add(variant(busybox, "one"))
    assert word(fresh_crungo, reference) == "one"
    assert fake.sent
    fake.sent.clear()
    assert word(fresh_crungo, reference) == "one"
    assert word(fresh_crungo, "--pull", "missing", reference) == "one"
    assert word(fresh_crungo, "--pull=never", reference) == "one"
    assert fake.sent == []


@pytest.mark.parametrize("flags", [[], ["--cidfile=id"]])
def test_an_image_for_another_machine_is_warned_of(
    flags: list[str], fresh_crungo: Crungo, fake: FakeRegistry, busybox: Path
) -> None:
    """It may run, where the host emulates; here it does because it only says that it is for another."""
    reference = fake.add(busybox_image(busybox, architecture="s390x"))
    fresh_crungo("pull", "-q", "--platform", "linux/s390x", reference, check=0)
    here = f"linux/{ARCHITECTURES[platform.machine()]}"
    done = fresh_crungo("run", *flags, reference, "true", check=0)
    assert done.stderr == (
        f"crungo: warning: image {reference} is for linux/s390x, and this machine is {here}; "
        "--platform says which is meant\n"
    )
    assert fresh_crungo("run", "--platform=linux/s390x", reference, "true", check=0).stderr == ""
    assert "is for linux/s390x, not for" in fresh_crungo("run", "--pull=always", reference, "true", check=125).stderr


def test_pull_policies(fresh_crungo: Crungo, fake: FakeRegistry, busybox: Path) -> None:
    reference = fake.add(variant(busybox, "one"))
    done = fresh_crungo("run", "--pull", "never", reference, "true", check=125)
    assert done.stderr == f"crungo: No such image: {reference}\n"
    assert fake.sent == []
    assert word(fresh_crungo, "--pull", "newer", reference) == "one"
    fake.add(variant(busybox, "two"))
    assert word(fresh_crungo, reference) == "one"
    assert word(fresh_crungo, "--pull", "newer", reference) == "two"
    fake.add(variant(busybox, "three"))
    assert word(fresh_crungo, "--pull", "always", reference) == "three"
    fake.sent.clear()
    assert word(fresh_crungo, "--pull", "always", reference) == "three"
    assert [sent.request.method for sent in fake.sent] == ["HEAD"]
    assert fake.requests("/blobs/") == []


def test_a_registry_that_is_gone(fresh_crungo: Crungo, busybox: Path) -> None:
    """What is in the store runs without it, unless the user insists on asking."""
    with FakeRegistry() as fake:
        reference = fake.add(variant(busybox, "kept"))
        assert word(fresh_crungo, reference) == "kept"
    assert word(fresh_crungo, reference) == "kept"
    assert word(fresh_crungo, "--pull", "newer", reference) == "kept"
    done = fresh_crungo("run", "--pull", "always", reference, "true", check=125)
    assert f"{reference.partition('/')[0]}: connection refused" in done.stderr


def test_an_image_by_its_digest(fresh_crungo: Crungo, fake: FakeRegistry, busybox: Path) -> None:
    first, second = variant(busybox, "first"), variant(busybox, "second")
    reference = fake.add(first)
    fake.add(second)
    name = reference.removesuffix(":latest")
    assert word(fresh_crungo, f"{name}@{first.digest}") == "first"
    assert word(fresh_crungo, f"{name}:latest@{first.digest}") == "first"
    assert word(fresh_crungo, name) == "second"


def test_an_image_by_its_id(crungo: Crungo, push_image: PushImage, busybox: Path) -> None:
    image = variant(busybox, "by id")
    reference = push_image("store/id", image=image)
    assert word(crungo, reference) == "by id"
    identifier = image.document["config"]["digest"].removeprefix("sha256:")
    assert word(crungo, identifier) == "by id"
    assert word(crungo, identifier[:12]) == "by id"


def test_platforms(fresh_crungo: Crungo, registry: Registry, busybox: Path) -> None:
    """Of an index, this machine's image, or the one that was asked for; asking again changes nothing for the other."""
    images = [
        busybox_image(busybox, config={"Env": [f"WORD={name}"]}, architecture=name)
        for name in ("amd64", "arm64", "s390x")
    ]
    reference = push_index(images, registry.address, "store/index", "all")
    own = ARCHITECTURES[__import__("platform").machine()]
    assert word(fresh_crungo, reference) == own
    assert word(fresh_crungo, "--platform", "linux/s390x", reference) == "s390x"
    assert word(fresh_crungo, "--platform", f"linux/{own}", reference) == own
    done = fresh_crungo("run", "--platform", "linux/mips64", reference, "true", check=125)
    assert "there is no image for linux/mips64" in done.stderr
    assert "linux/amd64, linux/arm64, linux/s390x" in done.stderr


def test_quiet(fresh_crungo: Crungo, busybox_reference: str) -> None:
    done = fresh_crungo("run", "-q", busybox_reference, "echo", "hi", check=0)
    assert (done.stdout, done.stderr) == ("hi\n", "")


def test_the_id_file(crungo: Crungo, busybox_reference: str, tmp_path: Path) -> None:
    cidfile = tmp_path / "id"
    crungo("run", "--cidfile", cidfile, busybox_reference, "true", check=0)
    assert re.fullmatch("[0-9a-f]{64}", cidfile.read_text())
    before = cidfile.read_text()
    done = crungo("run", "--cidfile", cidfile, busybox_reference, "true", check=125)
    assert done.stderr.splitlines()[0] == f"crungo: --cidfile {cidfile}: it exists; remove it, or name another"
    assert cidfile.read_text() == before


@pytest.mark.parametrize("what", [["/nope"], ["-u", "nobody", "true"]])
def test_no_id_file_without_a_container(
    crungo: Crungo, busybox_reference: str, tmp_path: Path, what: list[str]
) -> None:
    *flags, command = what
    crungo("run", "--cidfile", tmp_path / "id", *flags, busybox_reference, command)
    assert not (tmp_path / "id").exists()


def test_a_name_belongs_to_one_container(crungo: Crungo, busybox_reference: str, tmp_path: Path) -> None:
    flags = ["-i", "--name", "unique", "--cidfile", str(tmp_path / "id")]
    with crungo.start("run", *flags, busybox_reference, "sh", "-c", "echo up; cat", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        done = crungo("run", "--name", "unique", busybox_reference, "true", check=125)
        assert done.stderr == (
            f'crungo: The container name "unique" is already in use by container "{(tmp_path / "id").read_text()}"; '
            "it is free when that one has ended\n"
        )
        crungo("run", "--name", "another", busybox_reference, "true", check=0)
        process.stdin.close()
        assert process.wait(30) == 0
    crungo("run", "--name", "unique", busybox_reference, "true", check=0)


def test_labels(crungo: Crungo, busybox_reference: str, tmp_path: Path) -> None:
    (tmp_path / "labels").write_text("# of a file\nc=d\ne\n")
    flags = ["--label", "a=b=c", "-l", "bare", "--label-file", str(tmp_path / "labels")]
    crungo("run", *flags, busybox_reference, "true", check=0)


def test_roots_from_the_environment(fresh_crungo: Crungo, busybox_reference: str, tmp_path: Path) -> None:
    """CRUNGO_ROOT and CRUNGO_RUN in place of the flags."""
    argv = fresh_crungo.argv("run", "-q", busybox_reference, "echo", "hi")
    env = fresh_crungo.environ({"CRUNGO_ROOT": argv[4], "CRUNGO_RUN": argv[6]})
    done = subprocess.run([*argv[:3], *argv[7:]], env=env, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "hi\n"
    assert (tmp_path / "root" / "oci-layout").exists()


def test_a_full_disk_says_where(fresh_crungo: Crungo, busybox_reference: str) -> None:
    """Of what a start makes in the run root, nothing stays, and with room again all is well."""
    fresh_crungo("pull", busybox_reference, check=0)
    fresh_crungo.run.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", fresh_crungo.run], check=True)
    try:
        fresh_crungo("run", busybox_reference, "true", check=0)
        filler = fresh_crungo.run / "filler"
        subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=4k"], capture_output=True, check=False)
        before = sorted(fresh_crungo.run.rglob("*"))
        done = fresh_crungo("run", busybox_reference, "true", check=125)
        # The first file that is made; or libcrun's, where the kernel still finds a page.
        assert re.fullmatch(
            rf"crungo: .*{re.escape(str(fresh_crungo.run))}/containers/\S+: No space left on device\n", done.stderr
        )
        assert sorted(fresh_crungo.run.rglob("*")) == before
        filler.unlink()
        fresh_crungo("run", busybox_reference, "true", check=0)
    finally:
        subprocess.run(["umount", fresh_crungo.run], check=True)
