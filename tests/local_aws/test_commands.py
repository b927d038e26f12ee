"""``python -m local_aws`` as ``make`` calls it, in folders of its own."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from local_aws.machine import CLONE, LocalAws

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    # A name that breaks whoever forgets to quote.
    made = tmp_path_factory.mktemp("clone") / "lo cal é"
    yield made
    LocalAws(made / "aws").destroy()


def command(folder: Path, name: str) -> list[str]:
    return [sys.executable, "-m", "local_aws", f"--folder={folder}", name]


def local_aws(folder: Path, name: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(folder, name), cwd=CLONE, capture_output=True, text=True, check=False)


def processes(folder: Path) -> list[psutil.Process]:
    """Every process that works in the folder, names it, or has it in its environment."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd", "environ"]):
        facts = [*(process.info["cmdline"] or []), process.info["cwd"] or "", *(process.info["environ"] or {}).values()]
        if any(str(folder) in fact for fact in facts):
            found.append(process)
    return found


def interrupted_after(line: str, folder: Path, name: str, *, kill_emulator: bool = False) -> tuple[int, str]:
    """Run the command, and press Ctrl-C or kill the emulator as soon as it prints the line; exit code and output."""
    process = subprocess.Popen(
        command(folder, name), cwd=CLONE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    said = ""
    assert process.stdout
    with process.stdout:
        for printed in process.stdout:
            said += printed
            if line in printed and kill_emulator:
                os.kill(json.loads((folder / "aws" / "emulator.json").read_text())["pid"], signal.SIGKILL)
            elif line in printed:
                process.send_signal(signal.SIGINT)
    return process.wait(), said


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


def test_deploy_again_finds_nothing_to_do_starts_no_task_and_says_so(folder: Path, deployed: str) -> None:  # noqa: ARG001  # what came before
    again = local_aws(folder, "deploy")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "Nothing had changed: DevStack was not touched, and no migration task was started." in again.stdout


def test_everything_listens_on_loopback_only(folder: Path, deployed: str) -> None:  # noqa: ARG001
    ours = processes(folder)
    addresses = {
        str(connection.laddr[0])
        for process in ours
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert len(ours) > 3
    assert addresses == {"127.0.0.1"}


def test_a_second_command_on_the_same_local_aws_is_refused_in_one_sentence(folder: Path, deployed: str) -> None:  # noqa: ARG001
    with (folder / "aws.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused = local_aws(folder, "destroy")
    assert refused.returncode == 1
    assert refused.stderr == "error: Another command is at work on this local AWS: wait for it, or end it.\n"


def test_an_interrupted_deployment_says_how_to_go_on_and_another_local_aws_does_not_notice(
    deployed: str, tmp_path: Path
) -> None:
    second = tmp_path / "second"
    code, said = interrupted_after("cdk deploy DevStack ...", second, "deploy")
    assert code == 130
    assert said.endswith(
        "Interrupted: `make deploy-local` goes on from here, `make destroy-local` removes all of it.\n"
    )
    assert [process for process in processes(second) if "cdk" in " ".join(process.cmdline())] == []
    assert local_aws(second, "destroy").returncode == 0
    assert processes(second) == []

    url = re.search(r"service +(http://127.0.0.1:\d+)", deployed)
    assert url
    with urllib.request.urlopen(f"{url[1]}/health", timeout=10) as answer:
        assert answer.status == 200


def test_when_postgresql_has_died_a_deployment_says_so_and_starts_anew(folder: Path, deployed: str) -> None:  # noqa: ARG001
    os.kill(LocalAws(folder / "aws").postgres.pid, signal.SIGKILL)
    code, said = interrupted_after("The local AWS has started at", folder, "deploy")
    assert "The local AWS of before has died, and its stacks with it." in said
    assert code == 130


def test_destroy_ends_every_process_also_when_the_folder_was_emptied_by_hand(folder: Path, deployed: str) -> None:  # noqa: ARG001
    assert len(processes(folder)) > 3
    shutil.rmtree(folder / "aws")
    done = local_aws(folder, "destroy")
    assert done.returncode == 0, done.stderr
    assert processes(folder) == []
    assert not folder.exists()


def test_destroy_removes_what_it_made_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    (tmp_path / "aws").mkdir()
    (tmp_path / "aws" / "emulator.json").write_text("[]")
    assert local_aws(tmp_path, "destroy").returncode == 0
    assert [left.name for left in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_emulator_that_dies_ends_the_deployment_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "local"
    code, said = interrupted_after("DevDataStack: deploying...", folder, "deploy", kill_emulator=True)
    assert code == 1
    assert said.endswith("error: The local AWS does not run: `make deploy-local` starts it.\n")
    assert local_aws(folder, "destroy").returncode == 0


def test_a_folder_that_can_not_be_one_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused = local_aws(tmp_path / "file", "deploy")
    assert (refused.returncode, refused.stderr) == (1, f"error: File exists: {tmp_path / 'file'}\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_without_room_on_the_disk_a_deployment_ends_in_one_sentence(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    script = (
        f"mount -t tmpfs -o size=1m small '{small}' || exit 77; exec {' '.join(command(small / 'local', 'deploy'))}"
    )
    # In a mount namespace of its own, so that the small disk is gone with the process.
    full = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], cwd=CLONE, capture_output=True, text=True, check=False
    )
    if full.returncode == 77:
        pytest.skip("this machine lets not even root mount a disk")
    assert full.returncode == 1
    assert re.fullmatch(r"error: .*(No space left on device|the disk is full).*\n", full.stderr)
