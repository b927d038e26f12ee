"""Whether older tasks of a service may still ask for older names. Pure: nothing here calls AWS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from request import Request, Service, is_meant


@dataclass(frozen=True)
class Obstacle:
    """Why a contract can't be closed yet.

    Attributes:
        sentence: what is in the way.
        passes: whether it goes away by itself, as a deployment that goes on does.
    """

    sentence: str
    passes: bool


def only_later(older: Request, newer: Request) -> str:
    """Why it takes a later deployment to close the contract; empty when this one can.

    Args:
        older: what the deployment before has asked of the contract.
        newer: what this one asks.
    """
    before = {one.arn: one for one in older.services}
    gone = before.keys() - {one.arn for one in newer.services}
    if gone:
        # CloudFormation deletes what a deployment replaces or removes only when all else has succeeded.
        name = before[min(gone)].name
        return f"The service {name} is deleted only after this deployment; the next one closes the contract."
    known = [(one.task_definition, before[one.arn].task_definition) for one in newer.services if one.arn in before]
    unchanged = known and all(now and now == then for now, then in known)
    if newer.fingerprint != older.fingerprint and unchanged:
        return (
            "The migrations have changed, but the task definition of no service, so what runs may be the code of an "
            "older release."
        )
    return ""


def deployment_obstacle(service: Service, described: Mapping[str, Any] | None) -> Obstacle | None:
    """What is wrong with the service's deployments; None when the release's is its only one, and done.

    Args:
        service: as the release has it.
        described: as ECS describes it; None when ECS does not know it.
    """
    if described is None or described["status"] != "ACTIVE":
        return Obstacle(f"The service {service.name} is gone.", passes=False)
    deployments = [one for one in described["deployments"] if one["status"] != "INACTIVE" and not _is_left_over(one)]
    newest = next((one for one in deployments if one["status"] == "PRIMARY"), None)
    if newest is None:
        return _goes_on(service)
    if service.task_definition and not is_meant(newest["taskDefinition"], service.task_definition):
        runs, wanted = (name.rsplit("/", 1)[-1] for name in (newest["taskDefinition"], service.task_definition))
        return Obstacle(
            f"The service {service.name} runs {runs}, not {wanted} of this release: it was taken back, or changed by "
            "hand.",
            passes=False,
        )
    if newest.get("rolloutState") == "FAILED":
        reason = newest.get("rolloutStateReason") or "ECS gives no reason"
        return Obstacle(f"The deployment of the service {service.name} has failed: {reason.rstrip('.')}.", passes=False)
    return None if len(deployments) == 1 and _is_done(newest) else _goes_on(service)


def older_tasks_obstacle(
    service: Service, described: Mapping[str, Any], tasks: Sequence[Mapping[str, Any]]
) -> Obstacle | None:
    """Tasks of other releases that have not stopped, and may serve requests until then; None when there are none.

    Args:
        service: as the release has it, which may know only the family of its task definition.
        described: as ECS describes it, with its newest deployment.
        tasks: all of the service, as ECS describes them.
    """
    newest = {one["taskDefinition"] for one in described["deployments"] if one["status"] == "PRIMARY"}
    older = [task for task in tasks if task["lastStatus"] != "STOPPED" and task["taskDefinitionArn"] not in newest]
    if not older:
        return None
    return Obstacle(
        f"Of the service {service.name}, tasks of another release have not stopped: {len(older)}.", passes=True
    )


def _is_done(deployment: Mapping[str, Any]) -> bool:
    # ECS tells no state of a deployment behind a Classic Load Balancer.
    # https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_Deployment.html
    if "rolloutState" in deployment:
        return bool(deployment["rolloutState"] == "COMPLETED")
    return bool(deployment["runningCount"] == deployment["desiredCount"] and not deployment["pendingCount"])


def _is_left_over(deployment: Mapping[str, Any]) -> bool:
    """Whether it is one that has failed and has no task: ECS may list it on beside the one that has replaced it."""
    has_failed = deployment["status"] != "PRIMARY" and deployment.get("rolloutState") == "FAILED"
    return has_failed and not deployment["runningCount"] and not deployment["pendingCount"]


def _goes_on(service: Service) -> Obstacle:
    return Obstacle(f"The deployment of the service {service.name} still goes on.", passes=True)
