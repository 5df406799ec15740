"""Templates: what is made once for many containers is what would have been made for each."""

from __future__ import annotations

import json
from typing import Any

import pytest

from crungo.config import ContainerConfig, Mount
from crungo.errors import UsageError
from crungo.records import replace
from crungo.runtime.cgroups import path_of
from crungo.runtime.etc import etc_files
from crungo.runtime.names import random_id
from crungo.runtime.spec import ContainerPlace, build_spec
from crungo.runtime.template import LIMIT, Template, Templates
from tests.support.spec import HOST, IMAGE

ROOT = "/var/lib/store"
CONFIGS = [
    ContainerConfig(image="x"),
    ContainerConfig(image="x", hostname="given", env={"A": "1", "HOSTNAME": "mine"}, tty=True, size=(80, 24)),
    ContainerConfig(image="x", network="host", dns=("192.0.2.1",), add_host=(("other", "192.0.2.2"),), name="named"),
    ContainerConfig(
        image="x", mounts=(Mount(type="bind", source="/", target="/host"),), read_only=True, memory=1 << 26
    ),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_a_filled_template_is_what_would_have_been_made(config: ContainerConfig) -> None:
    identifier = random_id()
    directory = f"{ROOT}/containers/{identifier}"
    place = ContainerPlace(
        id=identifier, rootfs=f"{directory}/rootfs", directory=directory, cgroups_path=path_of(identifier)
    )
    spec = build_spec(config, IMAGE, place=place, host=HOST)
    files = etc_files(config, hostname=spec["hostname"], host=HOST)
    filled = Template.make(config, IMAGE, root=ROOT, host=HOST).fill(identifier)
    assert json.loads(filled.spec) == json.loads(json.dumps(spec))
    assert filled.files == {name: text.encode() for name, text in files.items()}
    assert filled.process == spec["process"]


def templates() -> Templates:
    return Templates(ROOT, HOST)


def arguments(template: Template) -> Any:
    return json.loads(template.spec)["process"]["args"]


def test_equal_configurations_share_one() -> None:
    kept = templates()
    first = kept.get(ContainerConfig(image="x", command=("a",)), None)
    assert kept.get(ContainerConfig(image="x", command=("a",)), None) is first
    other = kept.get(ContainerConfig(image="x", command=("b",)), None)
    assert (arguments(first), arguments(other)) == (["a"], ["b"])


def test_a_mapping_that_its_owner_changes() -> None:
    kept = templates()
    env: dict[str, str | None] = {"A": "1"}
    config = ContainerConfig(image="x", command=("a",), env=env)
    before = kept.get(config, None)
    env["A"] = "2"
    after = kept.get(config, None)
    assert "A=1" in before.process["env"]
    assert "A=2" in after.process["env"]
    env["="] = "wrong"
    with pytest.raises(UsageError):
        kept.check(config)


@pytest.mark.parametrize("fields", [{"network": "host"}, {"mounts": CONFIGS[3].mounts}, {"privileged": True}])
def test_what_depends_on_the_host_is_made_each_time(fields: dict[str, Any]) -> None:
    kept = templates()
    config = ContainerConfig(image="x", command=("a",), **fields)
    assert kept.get(config, None) is not kept.get(config, None)


def test_only_so_many_are_kept() -> None:
    kept = templates()
    config = ContainerConfig(image="x", command=("a",))
    first = kept.get(config, None)
    for number in range(LIMIT - 1):
        kept.get(replace(config, command=(str(number),)), None)
    assert kept.get(config, None) is first
    kept.get(replace(config, command=("last",)), None)
    assert kept.get(config, None) is not first
