"""Random sequences of everything that CloudFormation, Lambda, ECS and people do, and what must hold in all of them.

TRIGGER_SEQUENCES sets how many are played; a failing one is printed as the calls that repeat it, and as what happened.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from tests.constructs_lib.simulation import ENDINGS, Release, Simulation

SEQUENCES = int(os.environ.get("TRIGGER_SEQUENCES", "2000"))
# A sequence that reaches none of these would prove nothing.
SITUATIONS = {
    "cancelled",
    "continuation",
    "delete during create",
    "delivered again",
    "downgrade",
    "kept",
    "killed",
    "lost",
    "no rollback",
    "no room",
    "rollback failed",
    "stopped",
    "token known",
    "unchanged",
}
# Not within the second in which the request was sent: its address tells that no more finely than the rollback's.
CANCELLED = st.one_of(st.none(), st.none(), st.none(), st.floats(1, 5), st.floats(1, 200))
SEEDS = st.integers(0, 2**32)
AFTER = st.sampled_from([1.0, 30.0, 100.0, 4000.0])
SETTLED = ("CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE", "UPDATE_FAILED")
REACHED: Counter[str] = Counter()


class Deployments(RuleBasedStateMachine):
    """Someone who deploys, cancels, rolls back, deletes and migrates by hand, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.simulation = Simulation()
        self.releases = 0

    @initialize(head=st.integers(1, 3))
    def first(self, head: int) -> None:
        self.simulation.deploy(self.release(head))
        self.hold()

    @precondition(lambda self: self.simulation.stable and self.simulation.status in SETTLED)
    @rule(
        steps=st.integers(1, 2),
        ending=st.sampled_from(["ok", "ok", "half", "killed"]),
        cancel_after=st.one_of(st.none(), st.none(), st.floats(10, 200)),
        seed=SEEDS,
        after=AFTER,
    )
    def deploy_what_is_taken_back(
        self, steps: int, ending: str, cancel_after: float | None, seed: int, after: float
    ) -> None:
        newer = self.release(min(4, self.simulation.at + steps), on_rollback="DOWNGRADE")
        self.simulation.deploy(newer, seed=seed, ending=ending, cancel_after=cancel_after, later_failure=True)
        self.hold(after)

    @precondition(lambda self: self.simulation.status in (*SETTLED, "ROLLBACK_COMPLETE", "DELETE_COMPLETE"))
    @rule(
        head=st.integers(1, 4),
        edited=st.sampled_from([False, False, False, True]),
        family=st.sampled_from(["dev-migration-task", "dev-migration-task", "dev-migration-task", "renamed"]),
        on_rollback=st.sampled_from(["KEEP", "DOWNGRADE"]),
        proceed=st.sampled_from([False, False, False, True]),
        minutes=st.sampled_from([1, 5, 30, 55]),
        ending=st.sampled_from([None, None, *ENDINGS]),
        cancel_after=CANCELLED,
        later_failure=st.booleans(),
        no_rollback=st.sampled_from([False, False, False, True]),
        same_id=st.booleans(),
        seed=SEEDS,
        after=AFTER,
    )
    def deploy(
        self,
        head: int,
        edited: bool,
        family: str,
        on_rollback: str,
        proceed: bool,
        minutes: float,
        ending: str | None,
        cancel_after: float | None,
        later_failure: bool,
        no_rollback: bool,
        same_id: bool,
        seed: int,
        after: float,
    ) -> None:
        self.simulation.deploy(
            self.release(head, edited, family, on_rollback, proceed, minutes),
            seed=seed,
            ending=ending,
            cancel_after=cancel_after,
            later_failure=later_failure,
            no_rollback=no_rollback,
            same_id=same_id,
        )
        self.hold(after)

    @precondition(lambda self: self.simulation.status in ("UPDATE_FAILED", "UPDATE_ROLLBACK_FAILED"))
    @rule(seed=SEEDS, after=AFTER)
    def roll_back(self, seed: int, after: float) -> None:
        self.simulation.begin(seed)
        self.simulation.roll_back()
        self.hold(after)

    @precondition(lambda self: self.simulation.status == "UPDATE_ROLLBACK_FAILED")
    @rule()
    def skip(self) -> None:
        self.simulation.skip()

    @precondition(lambda self: self.simulation.status in SETTLED)
    @rule(position=st.integers(1, 4))
    def migrate_by_hand(self, position: int) -> None:
        self.simulation.by_hand(position)

    @precondition(lambda self: self.simulation.status in SETTLED)
    @rule(seed=SEEDS, after=AFTER)
    def delete(self, seed: int, after: float) -> None:
        self.simulation.begin(seed)
        self.simulation.delete()
        self.hold(after)

    def release(
        self,
        head: int,
        edited: bool = False,
        family: str = "dev-migration-task",
        on_rollback: str = "KEEP",
        proceed: bool = False,
        minutes: float = 30,
    ) -> Release:
        self.releases += 1
        return Release(self.releases * 10 + head, head, edited, family, on_rollback, proceed, minutes)

    def hold(self, after: float = 1) -> None:
        self.simulation.idle(after)
        assert not self.simulation.broken, "\n".join([*self.simulation.broken, *self.simulation.trace])

    def teardown(self) -> None:
        self.simulation.end()
        REACHED.update(self.simulation.counts.keys())
        assert not [what for what in self.simulation.broken if "signed" in what]


def test_whatever_happens_in_whatever_order_what_must_hold_holds() -> None:
    REACHED.clear()
    run_state_machine_as_test(
        Deployments,
        settings=settings(
            max_examples=SEQUENCES,
            stateful_step_count=5,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    for situation, times in sorted(REACHED.items()):
        print(f"{times:7}  {situation}")
    assert REACHED.keys() >= SITUATIONS


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
