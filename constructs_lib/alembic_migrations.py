"""The revisions of an Alembic project, as a deployment sees them."""

from __future__ import annotations

from pathlib import Path

from migration_runner.revisions import expand_target, fingerprint, head, read_revisions

MAX_LINE = 100


class AlembicMigrations:
    """The migrations of an Alembic project, read at synth: its files are not imported, no database is asked.

    Args:
        config: the project's ``alembic.ini``; a relative path is one from the working directory.

    Raises:
        ValueError: there is no such file, no revision, more than one head, or a broken chain.
    """

    def __init__(self, config: str | Path) -> None:
        self._revisions = read_revisions(config)

    @property
    def target(self) -> str:
        """The revision that a deployment migrates to: the head, contract revisions included."""
        return head(self._revisions)

    @property
    def targets(self) -> list[str]:
        """Where a deployment may leave the schema, the oldest first: the contract revisions at the end may fail."""
        by_id = {one.revision: one for one in self._revisions}
        chain = [self.target]
        while chain[0] != expand_target(self._revisions):
            chain.insert(0, by_id[chain[0]].down_revisions[0])
        return chain

    @property
    def descriptions(self) -> list[str]:
        """The revisions for a person, newest first, such as ``49871d03964c rename name to sku``.

        Without contract revisions. Each is ASCII, and at most 100 characters long: a message may be as long as it
        likes, a template may not.
        """
        return self._described("expand")

    @property
    def contract_descriptions(self) -> list[str]:
        """The contract revisions, as ``descriptions`` are."""
        return self._described("contract")

    @property
    def fingerprint(self) -> str:
        """Changes when a revision is added, removed, edited or moved; not with ``env.py``, models or the image.

        A revision runs once, so what only surrounds the revisions can't change what a database has been through.
        """
        return fingerprint(self._revisions)

    def _described(self, phase: str) -> list[str]:
        return [_ascii_line(f"{one.revision} {one.message}") for one in self._revisions if one.phase == phase]


def _ascii_line(text: str) -> str:
    # "?" is also what CloudFormation gives back for such a character, so that a diff shows no change where none is.
    # https://github.com/aws-cloudformation/cloudformation-coverage-roadmap/issues/814
    line = text.encode("ascii", "replace").decode()
    return line if len(line) <= MAX_LINE else f"{line[: MAX_LINE - 3]}..."
