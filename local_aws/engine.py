"""A container engine that runs a container's command as a local process.

The emulator talks to it as it would to the ``docker`` Python client, so the methods have that client's names and
no more than the emulator calls. Every server listens on loopback: a container with a port mapping is told HOST and
PORT. The database's host name leads to the local PostgreSQL by libpq's own variables.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from local_aws import images, record
from local_aws.postgres import HOST, free_port


class StartError(RuntimeError):
    """The container could not be started; the message is in ECS's words."""


class Container:
    """One process of its own group, with its output in a file."""

    def __init__(self, folder: Path, image: images.Image, command: list[str], environment: dict[str, str]) -> None:
        self.id = uuid.uuid4().hex * 2
        self.attrs = {"NetworkSettings": {"Networks": {"local": {"IPAddress": HOST}}}}
        self.environment = environment
        self.image = image
        self.output = folder / f"{self.id[:12]}.log"
        self.record = folder / f"{self.id[:12]}.json"
        with self.output.open("wb") as output:
            try:
                self.process = subprocess.Popen(
                    command,
                    cwd=image.folder,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except FileNotFoundError:
                raise StartError(
                    f'CannotStartContainerError: exec: "{command[0]}": executable file not found in $PATH'
                ) from None

    @property
    def status(self) -> str:
        """Docker's word: ``running`` or ``exited``."""
        return "running" if self.process.poll() is None else "exited"

    def reload(self) -> None:
        """Nothing to do: ``status`` always tells the present state."""

    def wait(self) -> dict[str, int]:
        """Wait for the end; a process ended by a signal has 128 + its number, as in Docker."""
        code = self.process.wait()
        return {"StatusCode": code if code >= 0 else 128 - code}

    def logs(self, *, stream: bool = False, **_: object) -> bytes | Iterator[bytes]:
        """All the output so far, or with ``stream`` line by line until the process has ended."""
        return self._follow() if stream else self.output.read_bytes()

    def stop(self, timeout: float = 10) -> None:
        """SIGTERM to the group, and SIGKILL after ``timeout`` seconds."""
        self.kill(signal.SIGTERM)
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill(signal.SIGKILL)
            self.process.wait()

    def remove(self, **_: object) -> None:
        """Forget the container; its output is kept, as it may be the only trace of a failure."""
        self.record.unlink(missing_ok=True)

    def kill(self, number: signal.Signals) -> None:
        """Send a signal to the group, unless the process has ended."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)

    def _follow(self) -> Iterator[bytes]:
        with self.output.open("rb") as output:
            while True:
                ended = self.process.poll() is not None
                yield from output
                if ended:
                    return
                time.sleep(0.05)


class Containers:
    """The engine's ``containers``."""

    def __init__(self, folder: Path, ca_file: Path) -> None:
        self.folder = folder
        self.ca_file = ca_file
        self.known: dict[str, Container] = {}
        self.lock = threading.Lock()
        self.closed = False

    def run(
        self, image: str, *, command: list[str] | None, environment: dict[str, str], labels: dict[str, str], **_: object
    ) -> Container:
        """Start the container, and return when it is healthy where its task definition has a health check."""
        definition = _container_definition(labels)
        found = images.find(image)
        variables = self._environment(found.environment | environment)
        if definition.get("portMappings"):
            variables |= {"HOST": HOST, "PORT": str(free_port())}
        with self.lock:
            if self.closed:
                raise RuntimeError("the engine is stopping")
            container = Container(self.folder, found, command or found.command, variables)
            self.known[container.id] = container
        record.write(
            container.record,
            container.process.pid,
            container=labels["com.amazonaws.ecs.container-name"],
            task=labels["com.amazonaws.ecs.task-arn"],
            port=variables.get("PORT"),
        )
        if check := definition.get("healthCheck"):
            _wait_until_healthy(container, check)
        return container

    def get(self, container_id: str) -> Container:
        """The container of this id; KeyError when there is none."""
        return self.known[container_id]

    def list(self, **_: object) -> list[Container]:
        """None: the emulator asks only to clean up after an earlier run, which ``make destroy-local`` does."""
        return []

    def _environment(self, environment: dict[str, str]) -> dict[str, str]:
        inherited = {
            name: os.environ[name] for name in ("HOME", "TMPDIR", "LANG", "LOCAL_AWS_ROOT") if name in os.environ
        }
        path = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
        # ministack tells every container to reach it, and its role's credentials, under a name of Docker's.
        told = ("AWS_ENDPOINT_URL", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "ECS_CONTAINER_METADATA_URI_V4")
        aws: dict[str, str] = {
            name: environment[name].replace("host.docker.internal", HOST) for name in told if name in environment
        }
        # Fargate tells the region under both names.
        aws |= dict.fromkeys(("AWS_REGION", "AWS_DEFAULT_REGION"), os.environ["MINISTACK_REGION"])
        # The template asks for verify-full; the certificate behind the RDS host name is a local one.
        database = {"PGHOSTADDR": HOST, "PGSSLROOTCERT": str(self.ca_file)}
        return inherited | environment | path | aws | database


class Images:
    """The engine's ``images``."""

    def get(self, reference: str) -> images.Image:
        """The image; ImageError when there is none."""
        return images.find(reference)

    def pull(self, reference: str, **_: object) -> PulledImage:
        """The image; ImageError when there is none."""
        return PulledImage(images.find(reference))

    def get_registry_data(self, reference: str, **_: object) -> RegistryData:
        """The digest: the asset's hash, under which ``images`` finds it again."""
        return RegistryData(f"sha256:{images.find(reference).folder.parent.name}")


class PulledImage:
    """What a pull returns."""

    def __init__(self, image: images.Image) -> None:
        self.image = image

    def tag(self, repository: str, tag: str) -> bool:  # noqa: ARG002  # docker's signature
        """Nothing to do: the tag is the image's own."""
        return True


class RegistryData:
    """What a registry says of an image."""

    def __init__(self, digest: str) -> None:
        self.id = digest


class Engine:
    """The object that the emulator takes for its docker client.

    Args:
        folder: where output and records of the containers go.
        ca_file: the certificate authority of the local PostgreSQL.
    """

    def __init__(self, folder: Path, ca_file: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.containers = Containers(folder, ca_file)
        self.images = Images()

    def stop_all(self) -> None:
        """End every container that still runs, and start no more: a service would replace what is ended here."""
        with self.containers.lock:
            self.containers.closed = True
            running = list(self.containers.known.values())
        for container in running:
            container.kill(signal.SIGTERM)
        for container in running:
            container.stop(timeout=5)
            container.remove()


def _container_definition(labels: dict[str, str]) -> dict[str, Any]:
    from ministack.services import ecs

    family = labels["com.amazonaws.ecs.task-definition-family"]
    revision = labels["com.amazonaws.ecs.task-definition-version"]
    definitions: list[dict[str, Any]] = ecs._task_defs[f"{family}:{revision}"]["containerDefinitions"]
    name = labels["com.amazonaws.ecs.container-name"]
    return next(definition for definition in definitions if definition["name"] == name)


def _wait_until_healthy(container: Container, check: dict[str, Any]) -> None:
    """Run the health check as ECS does, faster: until it passes, or fails ``retries`` times after the start period."""
    kind, *command = check["command"]
    if kind == "CMD-SHELL":
        command = ["sh", "-c", *command]
    retries, started = int(check.get("retries", 3)), time.monotonic()
    while container.status == "running":
        try:
            passed = subprocess.run(
                command,
                cwd=container.image.folder,
                env=container.environment,
                capture_output=True,
                timeout=float(check.get("timeout", 5)),
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            passed = 1
        if passed == 0:
            return
        if time.monotonic() - started > float(check.get("startPeriod", 0)):
            retries -= 1
            if retries == 0:
                container.stop()
                raise RuntimeError("Task failed container health checks")
        time.sleep(0.5)
    said = container.output.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
    raise RuntimeError(f"container exited with {container.wait()['StatusCode']} before it was healthy: {said[-1]}")
