"""Random sequences of everything that CloudFormation, Lambda, ECS and people do.

TRIGGER_SEQUENCES sets how many are played; a failing one is printed as the calls that repeat it, and as what happened.
"""

from __future__ import annotations

import os
from collections import Counter

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from tests.constructs_lib.simulation import ENDINGS, Release, Simulation

SEQUENCES = int(os.environ.get("TRIGGER_SEQUENCES", "2000"))
# A sequence that reaches none of these would prove nothing.
SITUATIONS = {
    "cancelled",
    "continuation",
    "contract",
    "contract back first",
    "contract back second",
    "contract closed",
    "contract delete",
    "contract open",
    "contract update FAILED",
    "an older release passes beside open names",
    "reopen",
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

    @precondition(lambda self: self.simulation.stable and self.simulation.status in SETTLED)
    @rule(
        steps=st.integers(0, 2),
        on_rollback=st.sampled_from(["KEEP", "KEEP", "DOWNGRADE"]),
        required=st.booleans(),
        ending=st.sampled_from(["ok", "ok", "ok", "half"]),
        contract_ending=st.sampled_from([None, "ok", "ok", *ENDINGS]),
        cancel_contract_after=CANCELLED,
        later_failure=st.booleans(),
        no_rollback=st.sampled_from([False, False, False, True]),
        seed=SEEDS,
        after=AFTER,
    )
    def deploy_with_a_contract(
        self,
        steps: int,
        on_rollback: str,
        required: bool,
        ending: str,
        contract_ending: str | None,
        cancel_contract_after: float | None,
        later_failure: bool,
        no_rollback: bool,
        seed: int,
        after: float,
    ) -> None:
        head = min(4, max(1, self.simulation.at) + steps)
        self.simulation.deploy(
            self.release(head, on_rollback=on_rollback, contract=True, required=required),
            seed=seed,
            ending=ending,
            contract_ending=contract_ending,
            cancel_contract_after=cancel_contract_after,
            later_failure=later_failure,
            no_rollback=no_rollback,
        )
        self.hold(after)

    @precondition(lambda self: self.simulation.status in (*SETTLED, "ROLLBACK_COMPLETE", "DELETE_COMPLETE"))
    @rule(
        head=st.integers(1, 4),
        edited=st.sampled_from([False, False, False, True]),
        family=st.sampled_from(["dev-migration-task", "dev-migration-task", "dev-migration-task", "renamed"]),
        on_rollback=st.sampled_from(["KEEP", "DOWNGRADE"]),
        proceed=st.sampled_from([False, False, False, True]),
        minutes=st.sampled_from([1, 5, 30, 55]),
        contract=st.booleans(),
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
        contract: bool,
        ending: str | None,
        cancel_after: float | None,
        later_failure: bool,
        no_rollback: bool,
        same_id: bool,
        seed: int,
        after: float,
    ) -> None:
        self.simulation.deploy(
            self.release(head, edited, family, on_rollback, proceed, minutes, contract),
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
        contract: bool = False,
        required: bool = False,
    ) -> Release:
        self.releases += 1
        image = self.releases * 10 + head
        return Release(image, head, edited, family, on_rollback, proceed, minutes, contract, required)

    def hold(self, after: float = 1) -> None:
        self.simulation.idle(after)
        assert not self.simulation.broken, "\n".join([*self.simulation.broken, *self.simulation.trace])

    def teardown(self) -> None:
        self.simulation.end()
        REACHED.update(self.simulation.counts.keys())
        assert not [what for what in self.simulation.broken if "signed" in what]


def play() -> None:
    """Play them, and tell what they have reached."""
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


if __name__ == "__main__":
    play()
