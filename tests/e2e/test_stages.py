"""The stages beside Dev, with the real CDK CLI."""

from __future__ import annotations

from pathlib import Path

import pytest

from local_aws.machine import LocalAws

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_production_is_deployed_as_dev_is_with_its_own_tasks(tmp_path: Path) -> None:
    aws = LocalAws(tmp_path / "aws")
    said = list[str]()
    try:
        aws.start()
        assert aws.deploy("ProdStack", stage="prod", tell=said.append) == 0, "\n".join(said)
        assert aws.stack_status("ProdDataStack") == "CREATE_COMPLETE"
        assert len(aws.containers("inventory-service")) == 3
        families = aws.client("ecs").list_task_definition_families()["families"]
        assert set(families) == {"prod-inventory-service", "prod-migration-task"}
    finally:
        aws.destroy()
