"""One local AWS: its folder, its processes, and the CDK CLI pointed at it.

Everything lives below one folder, so removing that folder removes all of it; several may run at once, since every
port is chosen when it starts.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import boto3
import psutil
from botocore.config import Config

from local_aws import images, record
from local_aws.postgres import HOST, Postgres, PostgresError, free_port

CLONE = Path(__file__).parent.parent
ACCOUNT = "000000000000"
REGION = "us-west-2"
# jsii unpacks the library there once, which takes seconds; every local AWS may share it.
JSII_CACHE = "JSII_RUNTIME_PACKAGE_CACHE_ROOT"


NOT_RUNNING = "The local AWS does not run: `make deploy-local` starts it."
# In the environment of every process of a local AWS: the folder that it belongs to.
MARK = "LOCAL_AWS_ROOT"


class LocalAwsError(RuntimeError):
    """The local AWS can't do what was asked; the message is one sentence for a person."""


class LocalAws:
    """The local AWS below ``root``.

    Args:
        root: the folder that holds all of its state; made when missing.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.postgres = Postgres(root / "postgres", force_tls=True)
        self._state = root / "emulator.json"
        self.log = root / "emulator.log"
        self._containers = root / "containers"
        self._launched: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether the emulator answers and PostgreSQL lives."""
        return self._emulator_answers() and self.postgres.running

    @property
    def endpoint(self) -> str:
        """The URL at which every AWS service answers.

        Raises:
            LocalAwsError: when it does not run.
        """
        emulator = record.read(self._state)
        if emulator is None:
            raise LocalAwsError(NOT_RUNNING)
        return f"http://{HOST}:{emulator['port']}"

    def start(self) -> None:
        """Start the emulator and PostgreSQL, unless both run.

        The emulator keeps its state in memory. When it has died, the stacks are gone with it, so the database and
        the tasks of that time are removed first.

        Raises:
            LocalAwsError: when the emulator or PostgreSQL does not come up.
        """
        if self.running:
            return
        self.destroy()
        for folder in ("home", "tmp", "bin", "images"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        docker = self.root / "bin" / "docker"
        docker.write_text(f'#!/bin/sh\nPYTHONPATH="{CLONE}" exec "{sys.executable}" -m local_aws.images "$@"\n')
        docker.chmod(0o755)
        try:
            self.postgres.start()
            self._start_emulator()
        except PostgresError as error:
            raise LocalAwsError(str(error)) from None

    def destroy(self) -> None:
        """End every process and remove the folder; no error when there is nothing."""
        self.postgres.stop()
        # Not by records: files may be gone, but a process carries its environment.
        while processes := self._processes():
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.terminate()
            _, alive = psutil.wait_procs(processes, timeout=15)
            for process in alive:
                process.kill()
        if self._launched:
            self._launched.wait()
        shutil.rmtree(self.root, ignore_errors=True)

    def cdk(self, *arguments: str, app: Path = CLONE, tell: Callable[[str], None] | None = None) -> int:
        """Run the CDK CLI in ``app`` against this AWS; its exit code.

        Args:
            arguments: those of ``cdk``.
            app: the folder with cdk.json.
            tell: is called with each line of output; by default the CLI writes to the terminal itself.
        """
        process = subprocess.Popen(
            [str(Path(sys.executable).parent / "cdk"), "--no-notices", *arguments],
            cwd=app,
            env=self.environment,
            stdout=subprocess.PIPE if tell else None,
            stderr=subprocess.STDOUT if tell else None,
            text=True,
            start_new_session=True,
        )
        threading.Thread(target=self._end_with_emulator, args=[process], daemon=True).start()
        try:
            if tell and process.stdout:
                with process.stdout:
                    for line in process.stdout:
                        tell(line.rstrip())
            return process.wait()
        finally:
            # The CLI is a chain of processes (Python, Node, the app): an interrupted one ends as a whole.
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()

    def deploy(
        self, stack: str, *, stage: str = "dev", app: Path = CLONE, tell: Callable[[str], None] | None = None
    ) -> int:
        """Run ``cdk deploy``, after ``cdk bootstrap`` unless that is done; the exit code.

        Args:
            stack: the one to deploy, and what it needs.
            stage: of that stack; the others are not synthesized, which would take a second.
            app: the folder with cdk.json.
            tell: is called with each line of output; by default the CLI writes to the terminal itself.
        """
        if self.stack_status("CDKToolkit") not in ("CREATE_COMPLETE", "UPDATE_COMPLETE"):
            # In a folder without cdk.json, where the CLI has no app to run first.
            code = self.cdk("bootstrap", f"aws://{ACCOUNT}/{REGION}", app=self.root, tell=tell)
            if code:
                return code
        out = f"--output={self.root / 'cdk.out'}"
        options = ["--require-approval=never", "--progress=events", f"--context=stage={stage}", out]
        return self.cdk("deploy", stack, *options, app=app, tell=tell)

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which the AWS and CDK tools talk to this AWS and write nothing outside its folder."""
        mine = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "CDK_"))}
        return mine | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(self.root / "home"),
            "TMPDIR": str(self.root / "tmp"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "CDK_DOCKER": str(self.root / "bin" / "docker"),
            "CDK_DISABLE_CLI_TELEMETRY": "true",
            "CDK_VALIDATION": "false",  # costs seconds in each process; `make synth` has it on
            JSII_CACHE: os.environ.get(JSII_CACHE, str(CLONE / ".local" / "jsii")),
            # Half of the CDK CLI's start is the compilation of its code.
            "NODE_COMPILE_CACHE": str(CLONE / ".local" / "node"),
            "JSII_NODE": str(Path(sys.executable).parent / "node"),
            "JSII_SILENCE_WARNING_UNTESTED_NODE_VERSION": "true",
            images.STORE: str(self.root / "images"),
            MARK: str(self.root),
        }

    def client(self, service: str) -> Any:
        """A boto3 client of this AWS."""
        return boto3.client(
            service,
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id="test",
            aws_secret_access_key="test",  # noqa: S106  # the emulator's only credentials
            config=Config(retries={"max_attempts": 2}),
        )

    def stack(self, name: str) -> dict[str, Any] | None:
        """The stack as CloudFormation describes it, None when there is none."""
        cloudformation = self.client("cloudformation")
        try:
            stacks: list[dict[str, Any]] = cloudformation.describe_stacks(StackName=name)["Stacks"]
        except cloudformation.exceptions.ClientError:
            return None
        return stacks[0]

    def stack_status(self, name: str) -> str | None:
        """The status of the stack, None when there is none."""
        stack = self.stack(name)
        return str(stack["StackStatus"]) if stack else None

    def containers(self, name: str) -> list[dict[str, Any]]:
        """The records of the containers of this name that run now, the oldest first: pid, task, port."""
        running = [facts for path in self._containers.glob("*.json") if (facts := record.read(path))]
        named = [facts for facts in running if facts["container"] == name]
        return sorted(named, key=lambda facts: float(facts["created"]))

    @contextmanager
    def exclusively(self) -> Iterator[None]:
        """Keep a second command out of this local AWS while one runs.

        Raises:
            LocalAwsError: when another process is at work on it.
        """
        self.root.parent.mkdir(parents=True, exist_ok=True)
        with self.root.with_suffix(".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LocalAwsError("Another command is at work on this local AWS: wait for it, or end it.") from None
            yield

    def _end_with_emulator(self, process: subprocess.Popen[str]) -> None:
        """End a CLI that would go on for minutes to ask an emulator that has died."""
        while process.poll() is None:
            if record.read(self._state) is None:
                os.killpg(process.pid, signal.SIGTERM)
                return
            time.sleep(1)

    def _processes(self) -> list[psutil.Process]:
        """Every process of this local AWS that still runs."""
        return [
            process
            for process in psutil.process_iter(["environ", "cmdline"])
            if (process.info["environ"] or {}).get(MARK) == str(self.root)
            or str(self.postgres.data) in (process.info["cmdline"] or [])
        ]

    def _start_emulator(self) -> None:
        port = free_port()
        variables = {
            "GATEWAY_PORT": str(port),
            "MINISTACK_HOST": HOST,
            "MINISTACK_REGION": REGION,
            "BIND_HOST": HOST,
            "IOT_MTLS_ENABLED": "0",
            "SFTP_ENABLED": "0",
            "PYTHONPATH": str(CLONE),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": str(self.root / "home"),
            "TMPDIR": str(self.root / "tmp"),
            "PATH": os.environ["PATH"],
            "S3_DATA_DIR": str(self.root / "s3"),
            "LOCAL_AWS_POSTGRES": str(self.postgres.directory),
            MARK: str(self.root),
            "LOCAL_AWS_CONTAINERS": str(self._containers),
            images.STORE: str(self.root / "images"),
        }
        with self.log.open("wb") as log:
            process = self._launched = subprocess.Popen(
                [sys.executable, "-m", "local_aws.emulator"],
                cwd=self.root,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        record.write(self._state, process.pid, port=port)
        if not self._emulator_answers():
            said = self.log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
            self.destroy()
            raise LocalAwsError(f"The emulator did not start: {said[-1]}")

    def _emulator_answers(self) -> bool:
        """Whether it answers, within a minute; at once False when its process has ended."""
        deadline = time.monotonic() + 60
        while record.read(self._state) and time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.endpoint}/_ministack/health", timeout=5):  # noqa: S310  # loopback
                    return True
            except OSError:
                time.sleep(0.1)
        return False
