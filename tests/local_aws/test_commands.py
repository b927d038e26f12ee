"""``python -m local_aws`` as ``make`` calls it, in a folder of its own."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from local_aws.machine import CLONE, LocalAws

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("commands")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("clone") / "local"
    yield made
    LocalAws(made / "aws").destroy()


def local_aws(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "local_aws", f"--folder={folder}", command],
        cwd=CLONE,
        capture_output=True,
        text=True,
        check=False,
    )


def command_lines() -> list[str]:
    return [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]


@pytest.fixture(scope="module")
def deployed(folder: Path) -> str:
    made = local_aws(folder, "deploy")
    assert made.returncode == 0, made.stdout + made.stderr
    return made.stdout


def test_deploy_ends_with_the_stacks_the_schema_the_url_and_three_commands(deployed: str) -> None:
    end = deployed[deployed.index("Migration tasks started: 1.") :]
    assert re.search(r"DevStack +CREATE_COMPLETE", end)
    assert re.search(r"schema +49871d03964c", end)
    assert re.search(r"parent_items +id, sku, ", end)
    assert re.search(r"child_items +id, parent_id, sku, ", end)
    url = re.search(r"service +(http://127.0.0.1:\d+)", end)
    assert url
    with urllib.request.urlopen(f"{url[1]}/ready", timeout=10) as answer:
        assert answer.status == 200
    assert len(re.findall(r"^  (?:curl|make) ", end, re.MULTILINE)) == 3


def test_deploy_again_finds_nothing_to_do_starts_no_task_and_says_so(folder: Path, deployed: str) -> None:  # noqa: ARG001
    again = local_aws(folder, "deploy")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "Nothing had changed: DevStack was not touched, and no migration task was started." in again.stdout


def test_everything_listens_on_loopback_only(folder: Path, deployed: str) -> None:  # noqa: ARG001
    aws = LocalAws(folder / "aws")
    pids = {int(record["pid"]) for record in aws.containers("inventory-service")} | {aws.postgres.pid}
    sockets = [socket for socket in psutil.net_connections("inet") if socket.status == psutil.CONN_LISTEN]
    addresses = [str(tuple(socket.laddr)) for socket in sockets if socket.pid in pids]
    emulator = aws.endpoint.rpartition(":")[2]
    addresses += [address for socket in sockets if (address := str(tuple(socket.laddr))).endswith(f" {emulator})")]
    assert len(addresses) == 3
    assert all(address.startswith("('127.0.0.1'") for address in addresses)


def test_a_second_command_on_the_same_local_aws_is_refused_in_one_sentence(folder: Path, deployed: str) -> None:  # noqa: ARG001
    with (folder / "aws.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused = local_aws(folder, "deploy")
    assert refused.returncode == 1
    assert refused.stderr == "error: Another command is at work on this local AWS: wait for it, or end it.\n"


def test_when_postgresql_has_died_a_deployment_starts_anew(folder: Path, deployed: str) -> None:  # noqa: ARG001
    os.kill(LocalAws(folder / "aws").postgres.pid, signal.SIGKILL)
    again = local_aws(folder, "deploy")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "The local AWS of before has died, and its stacks with it." in again.stdout
    assert "Migration tasks started: 1." in again.stdout


def test_destroy_leaves_no_process_and_no_file(folder: Path, deployed: str) -> None:  # noqa: ARG001
    assert local_aws(folder, "destroy").returncode == 0
    assert not folder.exists()
    assert [args for args in command_lines() if str(folder) in args] == []
    assert local_aws(folder, "destroy").returncode == 0
