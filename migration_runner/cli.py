"""The commands and their options."""

from __future__ import annotations

import argparse
import gc
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from migration_runner.report import Report
from migration_runner.runner import run
from migration_runner.target import Request

EXIT_CODES = """\
exit codes:
    0  the schema is at the target
    1  a migration failed; for status: revisions are pending
    2  wrong use: no revisions, several heads, a broken chain, bad settings, an unknown revision
    3  the database can't be reached, or the session was lost
    4  a lock was not free in time
    5  the database is at a revision that this image does not have
    6  the database refused the credentials
  130  interrupted with Ctrl-C
  143  told to stop with SIGTERM

"""
ENVIRONMENT = """\
environment variables:
  DATABASE_SECRET    the JSON of an RDS secret: username, password, host, port, dbname
  DATABASE_HOST, DATABASE_PORT, DATABASE_NAME
                     in place of what the secret says or lacks
  DATABASE_URL       instead of the secret: postgresql://user:password@host:5432/dbname
  PGSSLMODE, PGSSLROOTCERT
                     with a secret: libpq's, by default verify-full and the authorities of RDS
  SERVICE_SECRET     the JSON of the services' own secret: upgrade sees to their role
  MIGRATION_TARGET   the revision that must be the newest one; anything else is wrong use
  MIGRATION_TIMEOUT  see --timeout
  MIGRATION_CONTRACT_FOLLOWS
                     true: see --contract-follows
  ALEMBIC_CONFIG     see --config
  NO_COLOR           if set, no colours on a terminal
"""
COMMANDS = (
    ("upgrade", "apply the revisions up to the newest, or to REVISION", "upgrade --wait 120"),
    ("contract", "take the older names of renames away, and apply the contract revisions that are next", "contract"),
    ("reopen", "let the older names work again that a release at REVISION needs", "reopen 48871d03964b"),
    ("downgrade", "take revisions back down to REVISION", "downgrade -1"),
    ("stamp", "record that the schema is at REVISION, and run nothing", "stamp 49871d03964c"),
    ("plan", "show the SQL of the pending revisions, the locks it takes, and what is unsafe about it", "plan"),
    ("check", "look for unsafe operations in the revision files; needs no database", "check --output-format github"),
    ("history", "list the revisions, newest first", "history"),
    ("status", "show where the schema is and which revisions are pending", "status --config service/alembic.ini"),
)
# A person reads them wherever they run; what the others say off a terminal is read by machines.
FOR_PERSONS = ("plan", "check", "history")
# What changes the database.
MIGRATING = ("upgrade", "contract", "reopen", "downgrade", "stamp")
REVISIONS: dict[str, dict[str, Any]] = {
    "upgrade": {"nargs": "?", "help": "a whole revision id (default: newest)"},
    "downgrade": {"help": "a whole revision id, base, or -1 for one step back"},
    "stamp": {"help": "a whole revision id, head or base"},
    "reopen": {"help": "the newest revision of the older release, a whole id, or base"},
}


class Argument(NamedTuple):
    """What a command takes: its name on the command line, and what ``argparse`` is told about it."""

    name: str
    settings: dict[str, Any]


def main(arguments: Sequence[str]) -> int:
    """Run one command; the exit code."""
    # Alembic makes many objects that live until the end, so that looking for garbage takes a fifth of the time.
    gc.set_threshold(50_000, 20, 100)
    parsed = parser().parse_args(arguments)
    limits = {name: value for name, value in vars(parsed).items() if name in ("wait", "lock_wait", "timeout")}
    request = Request(
        parsed.command,
        parsed.config,
        revision=getattr(parsed, "revision", None),
        files=tuple(getattr(parsed, "files", ())),
        contract_follows=getattr(parsed, "contract_follows", False),
        **limits,
    )
    return run(request, os.environ, Report.of_process(parsed.output_format))


def parser() -> argparse.ArgumentParser:
    """Of the whole command line."""
    whole = argparse.ArgumentParser(
        prog="python -m migration_runner",
        description="Migrate the database that DATABASE_SECRET or DATABASE_URL names.",
        epilog=f"{ENVIRONMENT}\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary, example in COMMANDS:
        added = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=f"example: python -m migration_runner {example}",
        )
        for argument in arguments_of(name):
            added.add_argument(argument.name, **argument.settings)
    return whole


def arguments_of(command: str) -> Iterator[Argument]:
    """What a command takes, in the order of its help."""
    if command in REVISIONS:
        yield Argument("revision", {"metavar": "REVISION", **REVISIONS[command]})
    if command == "check":
        told = "a revision file to look into (default: all)"
        yield Argument("files", {"nargs": "*", "type": Path, "metavar": "FILE", "help": told})
    yield Argument(
        "--config",
        {
            "type": Path,
            "default": Path(os.environ.get("ALEMBIC_CONFIG") or "alembic.ini"),
            "metavar": "FILE",
            "help": "Alembic's configuration (default: ALEMBIC_CONFIG, or alembic.ini in the working directory)",
        },
    )
    yield _output_format(command)
    if command in ("upgrade", "plan", "check"):
        told = (
            "a contract run follows: until then renamed columns and tables keep their older names too (default: if "
            "MIGRATION_CONTRACT_FOLLOWS is true)"
        )
        yield Argument("--contract-follows", {"action": "store_true", "help": told})
    if command != "check":
        told = "how long to wait for the database (default: 60)"
        yield Argument("--wait", {"type": seconds, "default": 60.0, "metavar": "SECONDS", "help": told})
    if command in MIGRATING:
        told = "how long to wait for another run, or for a table's lock (default: 300)"
        yield Argument("--lock-wait", {"type": seconds, "default": 300.0, "metavar": "SECONDS", "help": told})
        yield Argument(
            "--timeout",
            {
                "type": seconds,
                "default": os.environ.get("MIGRATION_TIMEOUT") or None,
                "metavar": "SECONDS",
                "help": "when a statement is given up, counted from the beginning (default: MIGRATION_TIMEOUT, or "
                "never)",
            },
        )


def _output_format(command: str) -> Argument:
    choices = ["text", "json"]
    told = "sentences, or a line of JSON for each event"
    if command == "check":
        choices.append("github")
        told = f"{told}; github: text, and a line for each finding that GitHub Actions shows beside the code"
    default = "text" if command in FOR_PERSONS else None
    told = f"{told} (default: {default or 'text on a terminal, json elsewhere'})"
    return Argument("--output-format", {"choices": choices, "default": default, "help": told})


def seconds(text: str) -> float:
    """A time to wait, from 0 to 3600; argparse shows this function's name when it is no number."""
    number = float(text)
    if not 0 <= number <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 3600")
    return number
