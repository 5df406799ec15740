"""The programs that crungo is compared with, those that are installed, each with its stores on the benchmark's tmpfs.

Daemons are started here, on sockets of their own, and end with their block or, by the kernel's hand, with this process.
crungo needs none of this.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from crungo.config import ContainerConfig
from crungo.runtime.host import HostFacts
from crungo.runtime.template import Template

__all__ = ["Containerd", "Crun", "Docker", "Podman", "cgroup_prefix"]

PATIENCE = 60.0  # seconds for a daemon to answer
UNIFIED = Path("/sys/fs/cgroup/unified")


def cgroup_prefix() -> list[str]:
    """What podman and crun are started by on a hybrid host with controllers on its version 2 tree: they refuse those.

    In a mount namespace of their own, the tree is not there.
    """
    try:
        if not (UNIFIED / "cgroup.controllers").read_text().strip():
            return []
    except OSError:
        return []
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", f'umount {UNIFIED}; exec "$@"', "sh"]


def installed(*programs: str) -> bool:
    return all(shutil.which(program) for program in programs)


def run(command: Sequence[str], env: Mapping[str, str] = {}) -> None:
    """Run to the end, quietly; what it said comes with the error when it fails."""
    with tempfile.TemporaryFile() as output:  # not a pipe: a container that goes on would keep it open
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**os.environ, **env}, check=False
        )
        if done.returncode:
            output.seek(0)
            said = output.read().decode(errors="replace")
            raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{said}")


@contextmanager
def daemon(command: Sequence[str], *, answers: Sequence[str], log: Path) -> Iterator[None]:
    """A daemon, from when ``answers`` succeeds; it gets SIGTERM at the end, and SIGKILL if it is slow."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *command], stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )
    try:
        deadline = time.monotonic() + PATIENCE
        while subprocess.run(answers, capture_output=True, check=False).returncode:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} does not answer:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.05)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def clear(folder: Path) -> None:
    """Remove a store with what is mounted in it, and make its folder again."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for place in sorted((mount for mount in mounts if mount.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "--lazy", place], check=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)


class Podman:
    """podman with crun."""

    name = "podman"

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "podman"
        clear(self.folder)
        self.prefix = cgroup_prefix()
        config, policy = folder / "containers.conf", folder / "policy.json"
        config.write_text(
            '[containers]\ndefault_ulimits = ["nofile=1024:4096", "nproc=4096:4096"]\n'
            '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\nruntime = "crun"\n'
        )
        policy.write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
        self.policy = str(policy)
        self.env = {"CONTAINERS_CONF": str(config)}

    @staticmethod
    def available() -> bool:
        return installed("podman", "crun", "conmon")

    @contextmanager
    def ready(self) -> Iterator[None]:
        """podman needs no daemon: its store is emptied afterwards."""
        try:
            yield
        finally:
            clear(self.folder)

    def command(self, *arguments: str) -> list[str]:
        root = ["--root", str(self.folder / "root"), "--runroot", str(self.folder / "run")]
        return ["podman", *root, "--tmpdir", str(self.folder / "tmp"), "--storage-driver", "overlay", *arguments]

    def pull(self, reference: str) -> None:
        arguments = ["pull", "--quiet", "--tls-verify=false", "--signature-policy", self.policy, reference]
        run([*self.prefix, *self.command(*arguments)], self.env)

    def run_command(self, reference: str, *arguments: str, options: Sequence[str] = ()) -> list[str]:
        return self.command("run", "--rm", "--network", "none", "--pull", "never", *options, reference, *arguments)


class Containerd:
    """containerd, asked by its ctr."""

    name = "containerd"
    env: Mapping[str, str] = {}

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "containerd"
        self.socket = str(self.folder / "sock")

    @staticmethod
    def available() -> bool:
        return installed("containerd", "ctr")

    @contextmanager
    def ready(self) -> Iterator[None]:
        """A daemon with an empty store."""
        clear(self.folder)
        config = self.folder / "config.toml"
        # The plug-in for Kubernetes takes its time, and is not what is compared.
        config.write_text('version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n')
        places = ["--root", str(self.folder / "root"), "--state", str(self.folder / "state")]
        command = ["containerd", "--config", str(config), *places, "--address", self.socket]
        with daemon(command, answers=[*self.client(), "version"], log=self.folder / "log"):
            yield
        clear(self.folder)

    def client(self) -> list[str]:
        return ["ctr", "--address", self.socket]

    def pull(self, reference: str) -> None:
        run([*self.client(), "images", "pull", "--plain-http", reference])


class Docker:
    """dockerd, with a containerd of its own, asked by the docker command."""

    name = "docker"
    prefix: Sequence[str] = ()
    env: Mapping[str, str] = {"DOCKER_CONFIG": "/nonexistent"}

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "docker"
        self.containerd = Containerd(self.folder)
        self.socket = f"unix://{self.folder}/sock"

    @staticmethod
    def available() -> bool:
        return installed("dockerd", "docker", "runc") and Containerd.available()

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Both daemons, with an empty store and no network, which nothing here uses."""
        clear(self.folder)
        (self.folder / "daemon.json").write_text("{}")
        command = [
            "dockerd", "--config-file", str(self.folder / "daemon.json"), "--data-root", str(self.folder / "root"),
            "--exec-root", str(self.folder / "exec"), "--pidfile", str(self.folder / "pid"), "--host", self.socket,
            "--containerd", self.containerd.socket, "--bridge", "none", "--iptables=false", "--ip6tables=false",
        ]  # fmt: skip
        with ExitStack() as stack:
            stack.enter_context(self.containerd.ready())
            stack.enter_context(daemon(command, answers=self.command("version"), log=self.folder / "log"))
            yield
        clear(self.folder)

    def command(self, *arguments: str) -> list[str]:
        return ["docker", "--host", self.socket, *arguments]

    def pull(self, reference: str) -> None:
        run(self.command("pull", "--quiet", reference), self.env)

    def run_command(self, reference: str, *arguments: str, options: Sequence[str] = ()) -> list[str]:
        return self.command("run", "--rm", "--network", "none", *options, reference, *arguments)


class Crun:
    """The crun command, given bundles: of a plain container, or of one like crungo's, but for the overlay."""

    name = "crun"
    env: Mapping[str, str] = {}

    def __init__(self, folder: Path, rootfs: Path) -> None:
        self.folder = folder / "crun"
        self.rootfs = rootfs
        self.prefix = cgroup_prefix()
        clear(self.folder)

    @staticmethod
    def available() -> bool:
        return installed("crun")

    def bundle_of(self, kind: str, name: str, *arguments: str) -> Path:
        """A bundle that runs a program of the root file system, made at the first call."""
        folder = self.folder / name
        if not folder.exists():
            folder.mkdir()
            document = self._plain(folder) if kind == "plain" else self._like_ours(folder)
            document["root"] = {"path": str(self.rootfs), "readonly": False}
            document["process"]["terminal"] = False
            document["process"]["args"] = list(arguments)
            (folder / "config.json").write_text(json.dumps(document))
        return folder

    def _plain(self, folder: Path) -> dict[str, Any]:
        """What ``crun spec`` writes."""
        run(["crun", "spec", "--bundle", str(folder)])
        document: dict[str, Any] = json.loads((folder / "config.json").read_text())
        return document

    def _like_ours(self, folder: Path) -> dict[str, Any]:
        """What crungo gives to libcrun: filter, limits, files of /etc, and all."""
        config = ContainerConfig(rootfs=str(self.rootfs), command=("true",))
        template = Template.make(config, None, root=str(folder), host=HostFacts.read())
        files = folder / "containers" / template.id
        files.mkdir(parents=True)
        for file, content in template.files.items():
            (files / file).write_bytes(content)
        document: dict[str, Any] = json.loads(template.spec)
        del document["linux"]["cgroupsPath"]  # crun names it after each container
        return document

    def command(self, *arguments: str) -> list[str]:
        return ["crun", "--root", str(self.folder / "state"), *arguments]
