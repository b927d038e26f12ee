"""What must hold whatever CloudFormation, Lambda, ECS and people do, on random sequences and on told ones."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.constructs_lib.simulation import Release, Simulation


def test_whatever_happens_in_whatever_order_what_must_hold_holds() -> None:
    # Hypothesis also tries the constants of all modules that are loaded: alone it plays the same sequences each time.
    played = subprocess.run(
        [sys.executable, "-m", "tests.constructs_lib.sequences"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        text=True,
        capture_output=True,
        check=False,
    )
    print(played.stdout)
    assert played.returncode == 0, played.stdout + played.stderr


@contextmanager
def simulated() -> Iterator[Simulation]:
    """A calm day, with a stack whose schema is at the first revision."""
    simulation = Simulation()
    try:
        simulation.deploy(Release(image=11, head=1))
        simulation.idle(60)
        yield simulation
    finally:
        simulation.end()


def test_a_rollback_never_claims_that_a_schema_is_back_when_the_upgrades_end_was_not_seen() -> None:
    with simulated() as simulation:
        # The host is lost after the migration; the trigger waits for ECS to find the task again.
        newer = Release(image=22, head=2, on_rollback="DOWNGRADE")
        simulation.deploy(newer, ending="vanish in the end", cancel_after=60)
        assert simulation.at == 2
        assert not simulation.broken


def test_an_update_that_is_cancelled_at_its_very_start_runs_no_task_after_the_rollback() -> None:  # C9
    with simulated() as simulation:
        simulation.deploy(Release(image=22, head=2), cancel_after=0.15)
        simulation.idle(600)
        assert not simulation.broken


def test_a_task_that_ecs_does_not_list_yet_is_stopped_by_the_rollback_too() -> None:  # C9, E3
    with simulated() as simulation:
        simulation.unseen_for = 15
        simulation.deploy(Release(image=22, head=2), cancel_after=4)
        simulation.idle(600)
        assert not simulation.broken


def test_an_event_that_comes_again_during_a_later_deployment_starts_no_task() -> None:  # C3, C5
    with simulated() as simulation:
        simulation.deploy(Release(image=22, head=2), ending="fail")
        simulation.deliver_again(2, after=3)
        simulation.deploy(Release(image=33, head=3))
        assert simulation.status == "UPDATE_COMPLETE"


def test_a_rollback_does_not_claim_a_revision_that_the_upgrades_result_has_disproved() -> None:
    with simulated() as simulation:
        simulation.by_hand(3)
        simulation.deploy(Release(image=22, head=2, on_rollback="DOWNGRADE"))
        assert not simulation.broken


def test_a_release_that_passed_behind_the_schema_does_not_make_the_next_one_unchanged() -> None:
    with simulated() as simulation:
        simulation.deploy(Release(image=22, head=2))
        simulation.deploy(Release(image=31, head=1, proceed=True))
        simulation.deploy(Release(image=41, head=1))
        assert not simulation.broken


def test_a_rollback_to_another_family_waits_for_a_task_that_is_being_stopped() -> None:  # C9
    with simulated() as simulation:
        renamed = Release(image=22, head=2, family="renamed", minutes=1)
        simulation.deploy(renamed, ending="hang", cancel_after=70)
        assert not simulation.broken


def test_a_rollback_of_an_upgrade_that_never_began_takes_back_nothing_of_an_earlier_one() -> None:  # C8
    with simulated() as simulation:
        simulation.deploy(Release(image=23, head=3, on_rollback="DOWNGRADE"), ending="half", no_rollback=True)
        simulation.begin(0, "fail")
        simulation.roll_back()
        simulation.skip()
        simulation.outages.append(("GetParameter", simulation.clock.now, simulation.clock.now + 100))
        simulation.deploy(Release(image=34, head=4, on_rollback="DOWNGRADE"))
        assert not simulation.broken
