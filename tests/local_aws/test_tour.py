"""``make tour``, from its first line to its last."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from local_aws.machine import CLONE

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The chapters of the tour, the opening first."""
    folder = tmp_path_factory.mktemp("tour")
    tour = [sys.executable, "-m", "local_aws", f"--folder={folder}", "tour"]
    done = subprocess.run(tour, cwd=CLONE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (folder / "tour" / "aws").exists()
    return re.split(r"^\d/4  ", done.stdout, flags=re.MULTILINE)


def test_the_first_release_is_deployed_with_data_under_the_old_name(told: list[str]) -> None:
    assert '{"id": 1, "name": "PUMP-1"}' in told[1]


def test_the_rename_is_announced_by_diff_and_the_service_updates_after_the_task_has_exited(told: list[str]) -> None:
    assert '[+]   "49871d03964c rename name to sku"' in told[2]
    steps = [
        "Custom::DatabaseMigration UPDATE_IN_PROGRESS",
        "the task `upgrade` has stopped, exit code 0",
        "Custom::DatabaseMigration UPDATE_COMPLETE",
        "AWS::ECS::Service UPDATE_IN_PROGRESS",
        "AWS::ECS::Service UPDATE_COMPLETE",
        "Custom::DatabaseContract UPDATE_IN_PROGRESS",
        "the task `contract` has stopped, exit code 0",
        "Custom::DatabaseContract UPDATE_COMPLETE",
    ]
    assert re.findall(r"\d\d:\d\d:\d\d\.\d{3}  (.*)", told[2]) == steps
    counts = re.findall(r"^    \d +(name|sku) +(\d+) +(\d+) +[\d.]+ s$", told[2], re.MULTILINE)
    assert [(name, int(failed)) for name, _, failed in counts] == [("name", 0), ("sku", 0)]
    assert all(int(requests) > 20 for _, requests, _ in counts)
    assert '{"id": 1, "sku": "PUMP-1"}' in told[2]


def test_the_failing_migration_names_the_sql_error_and_leaves_the_service_running(told: list[str]) -> None:
    assert 'Migration 50871d03964d failed: UndefinedColumn: column "name" does not exist.' in told[3]
    assert "DevStack is UPDATE_ROLLBACK_COMPLETE." in told[3]
    assert "The service is still the same process" in told[3]


def test_the_code_only_release_starts_no_task(told: list[str]) -> None:
    assert "Migration tasks started: 0." in told[4]
    assert re.search(r"The service is a new process \(\d+ -> \d+\)", told[4])
