"""How the steps of a run get over renames: which are bridged, which bridges go, and what must wait for a contract."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

from alembic.runtime.migration import MigrationStep, RevisionStep

from migration_runner.bridge import Bridges, bridges_of
from migration_runner.errors import RunError, wrong_use
from migration_runner.operations import Lead, Recording, may_rename, mixed, record, touched, unforeseen
from migration_runner.renames import Bridge, Recorded, Rename
from migration_runner.revisions import Revision, lineage
from migration_runner.steps import Journey


class Crossing:
    """The renames of one run.

    Args:
        bridges: of the database.
        revisions: the image's, by id, newest first.
        journey: where to.
        current: what the version table holds.
    """

    def __init__(
        self, bridges: Bridges, revisions: Mapping[str, Revision], journey: Journey, current: Collection[str]
    ) -> None:
        self._bridges = bridges
        self._revisions = revisions
        self._journey = journey
        self._applied = lineage(list(revisions.values()), current)
        self._known = bridges.recorded()
        self._of_others = bridges.open_bridges_of_others()
        # What an upgrade has begun that did not come to its end; to stay is to leave it as it is.
        self._begun = [
            one
            for one in self._known
            if journey.direction in ("upgrade", "downgrade")
            and one.revision in revisions
            and one.revision not in self._applied
            and not one.is_closed
        ]
        self._ways: dict[str, Callable[[], None]] = {}
        self._lead: Lead | None = None

    def look_ahead(self, planned: Sequence[MigrationStep], *, is_external: bool) -> None:
        """Find out how each step is to be done, before the first of them is.

        Args:
            planned: Alembic's steps.
            is_external: whether env.py has begun a transaction that holds all of them.

        Raises:
            RunError: a revision can't be bridged, or does something to a table whose rename is open.
        """
        # What the ledger will hold when a step's turn has come.
        before = [self._then(one) for one in self._known if one not in self._begun]
        then, only_bridges, last = before, True, ""
        for step in planned:
            if not isinstance(step, RevisionStep):
                continue
            revision = self._revisions[step.revision.revision]
            schema_of = self._schema_of(then)
            recording = self._recorded(revision, step, then, schema_of)
            renames = self._bridged_renames(revision, step, recording)
            if renames:
                self._refuse_external(revision, is_external=is_external)
                opened = [Recorded(revision.revision, at, one, False, False) for at, one in enumerate(renames)]
                if recording:
                    self._refuse_touched_of_others(revision, recording, schema_of)
                refuse_clash(revision.revision, opened, before, then, last)
                then = [*then, *opened]
                if only_bridges:
                    self._bridges.check(revision.revision, renames, strictly=False)
                self._ways[revision.revision] = partial(self._bridges.expand, revision.revision, renames)
            elif own := self._taken_back(revision, step, recording):
                self._refuse_external(revision, is_external=is_external)
                self._ways[revision.revision] = partial(self._bridges.revert, own)
                then = [one for one in then if one not in own]
            else:
                only_bridges = False
                if recording:
                    self._refuse_touched(revision, recording, then, schema_of)
                    self._refuse_touched_of_others(revision, recording, schema_of)
            last = revision.revision

    def begin(self) -> None:
        """Do what comes before the steps: mend what interrupted runs have left, and close or open bridges."""
        journey = self._journey
        self._bridges.forget([one for one in self._begun if one.revision not in self._ways])
        if journey.direction not in ("downgrade", "stamp"):
            self._bridges.repair(self._applied)
        if journey.contracted:
            self._bridges.contract(journey.contracted)
            self._bridges.prove(journey.contracted)
        if journey.reopened:
            self._bridges.reopen(journey.reopened)

    def way_of(self, step: RevisionStep) -> Callable[[], None] | None:
        """What is done instead of the revision's own function; None for that."""
        return self._ways.get(step.revision.revision)

    @contextmanager
    def led(self, revision: str) -> Iterator[None]:
        """Within, the revision's operations know of open bridges."""
        is_bridging = self._is_bridged(self._revisions[revision])
        self._lead = Lead(self._bridges, self._revisions[revision], is_bridging=is_bridging)
        try:
            with self._lead.leading():
                yield
        finally:
            self._lead = None

    def refuse(self, revision: str, statement: str) -> None:
        """Raise RunError for a statement that was not seen before, and is about a table whose rename is open."""
        if self._lead and (bridge := self._lead.forbids(statement)):
            raise must_contract(revision, bridge, is_of_others=bridge in self._of_others)

    def is_plain_rename(self, statement: str) -> bool:
        """Whether a statement renames plainly, in a revision whose other renames would be bridged."""
        return self._lead is not None and self._lead.is_plain_rename(statement)

    def _schema_of(self, then: Sequence[Recorded]) -> Callable[[str], str]:
        """Finds the schema of a table by its name alone, also by one that revisions before it are going to give."""
        given = {one.rename.new: one.rename.schema for one in then if one.rename.of_table and one not in self._known}
        return lambda table: given.get(table) or self._bridges.schema_of(table)

    def _recorded(
        self, revision: Revision, step: RevisionStep, then: Sequence[Recorded], schema_of: Callable[[str], str]
    ) -> Recording | None:
        """What the revision does, if that matters."""
        is_open = self._of_others or any(not one.is_closed for one in then)
        if is_open or (step.is_upgrade and self._is_bridged(revision) and may_rename(revision)):
            return record(step.migration_fn, schema_of)
        return None

    def _bridged_renames(
        self, revision: Revision, step: RevisionStep, recording: Recording | None
    ) -> Sequence[Rename] | None:
        if recording is None or not step.is_upgrade or not self._is_bridged(revision):
            return None
        # A rename may come after a query, where it was not seen.
        may_be = recording.renames or (not recording.is_whole and may_rename(revision))
        if may_be and recording.asks and not recording.is_whole:
            raise unforeseen(revision)
        if may_be and not recording.is_of_renames_alone:
            raise mixed(revision.revision)
        return recording.renames

    def _taken_back(
        self, revision: Revision, step: RevisionStep, recording: Recording | None
    ) -> Sequence[Recorded] | None:
        """The renames of a revision, of which a downgrade takes back the open ones too."""
        own = [one for one in self._known if one.revision == revision.revision]
        if recording is None or step.is_upgrade or all(one.is_closed for one in own):
            return None
        inverse = sorted(one.rename.inverse for one in own)
        if not recording.is_of_renames_alone or sorted(recording.renames) != inverse:
            raise must_contract(revision.revision, Bridge(own[0].rename.schema, own[0].rename.table))
        return own

    def _then(self, one: Recorded) -> Recorded:
        """What becomes of a rename before the steps."""
        if one.revision in self._journey.contracted:
            return one._replace(is_closed=True)
        if self._journey.direction == "upgrade" and one.revision in self._applied:
            # An interrupted downgrade has taken it back.
            return one._replace(is_reverted=False)
        return one

    def _is_bridged(self, revision: Revision) -> bool:
        return self._journey.is_bridged and revision.bridge and revision.phase == "expand"

    @staticmethod
    def _refuse_touched(
        revision: Revision, recording: Recording, then: Sequence[Recorded], schema_of: Callable[[str], str]
    ) -> None:
        bridge = touched(recording, [one for one in bridges_of(then).values() if one.views], schema_of)
        if bridge:
            raise must_contract(revision.revision, bridge)

    def _refuse_touched_of_others(
        self, revision: Revision, recording: Recording, schema_of: Callable[[str], str]
    ) -> None:
        bridge = touched(recording, self._of_others, schema_of)
        if bridge:
            raise must_contract(revision.revision, bridge, is_of_others=True)

    @staticmethod
    def _refuse_external(revision: Revision, *, is_external: bool) -> None:
        if is_external:
            raise wrong_use(
                "ExternalTransaction",
                f"{revision.revision} can't be bridged, for env.py has begun a transaction around all revisions.",
                "Let env.py leave that to Alembic: with context.begin_transaction(): context.run_migrations().",
            )


def refuse_clash(
    revision: str, own: Sequence[Recorded], before: Sequence[Recorded], then: Sequence[Recorded], last: str
) -> None:
    """Raise RunError when an older name would stand for two things.

    Args:
        revision: whose renames are to be bridged.
        own: its renames.
        before: those that the database has now.
        then: with those of the revisions that come first.
        last: the one of these that comes right before.
    """
    try:
        bridges_of([*then, *own])
    except RunError as error:
        error.revision = revision
        plainly = (
            f"Or write bridge = False into {revision}, for plain renames, which fail the older release's requests."
        )
        if _clashes(own):
            error.hint = (
                f"{revision} gives and takes the same name: split it into two revisions, and deploy the second when "
                f"the first has been contracted. {plainly}"
            )
        elif not _clashes([*before, *own]):
            error.hint = (
                f"{last} and {revision} need two deployments: python -m migration_runner upgrade {last}, then contract "
                f"when no task of an older release is left, then {revision}. {plainly}"
            )
        raise


def _clashes(renames: Sequence[Recorded]) -> bool:
    try:
        bridges_of(renames)
    except RunError:
        return True
    return False


def must_contract(revision: str, bridge: Bridge, *, is_of_others: bool = False) -> RunError:
    """Why a revision is not run while a rename of the table is open.

    Args:
        revision: that is not run.
        bridge: of the table.
        is_of_others: whether the rename is one of another version table, so that another project contracts it.
    """
    error = wrong_use(
        "RenameOpen",
        f"{revision} changes {bridge}, whose rename is still open: meanwhile it may only get columns and indexes.",
        "It was made with another version table of this database: the contract of that project finishes it."
        if is_of_others
        else "Deploy a release without this revision first, whose contract finishes the rename. Or, once no task of an "
        "older release is left, run: python -m migration_runner contract.",
    )
    error.revision = revision
    return error
