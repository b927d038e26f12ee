"""``python -m local_aws deploy | migrate | tour | destroy``: what ``make deploy-local`` and its sisters run."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
from pathlib import Path
from urllib.error import URLError

import psycopg2
from botocore.exceptions import BotoCoreError

from local_aws import application, tour
from local_aws.machine import CLONE, NOT_RUNNING, REGION, LocalAws, LocalAwsError
from local_aws.postgres import PostgresError

# After Ctrl-C.
GO_ON = {
    "deploy": "`make deploy-local` goes on from here, `make destroy-local` removes all of it.",
    "destroy": "`make destroy-local` goes on from here.",
    "tour": "the tour has removed what it made.",
}

ROOM = 50 * 2**20  # bytes; with less, the CDK CLI fails in ways that do not say why


def deploy(aws: LocalAws, kept_template: Path) -> None:
    """Run the real ``cdk deploy DevStack``, keep its template for ``make diff`` and say what there is now."""
    if aws.running:
        print(f"The local AWS runs at {aws.endpoint}.", flush=True)
    else:
        if aws.root.exists():
            print("The local AWS of before has died, and its stacks with it.")
        print("Starting the local AWS and PostgreSQL ...", flush=True)
        aws.start()
        print(f"The local AWS has started at {aws.endpoint}.", flush=True)
    before = application.last_change(aws), len(application.migration_tasks(aws))
    print("cdk deploy DevStack ...", flush=True)
    if aws.deploy("DevStack"):
        if not aws.running:
            raise LocalAwsError(NOT_RUNNING)
        if shutil.disk_usage(aws.root).free < ROOM:
            raise LocalAwsError(f"The disk of {aws.root} is full: make room and run `make deploy-local` again.")
        raise LocalAwsError("cdk deploy failed: the reason stands above; mend it and run `make deploy-local` again.")
    kept_template.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(aws.root / "cdk.out" / "DevStack.template.json", kept_template)
    after = application.last_change(aws), len(application.migration_tasks(aws))
    print()
    if after == before:
        print("Nothing had changed: DevStack was not touched, and no migration task was started.")
    else:
        print(f"Migration tasks started: {after[1] - before[1]}.")
    for line in summary(aws):
        print(line)


def summary(aws: LocalAws) -> list[str]:
    """The stacks, the schema, the service and what to do next, as a person reads them."""
    url = application.service_url(aws)
    facts = {stack: aws.stack_status(stack) for stack in application.STACKS}
    facts |= {"schema": application.revision(aws)}
    facts |= {table: ", ".join(application.columns(aws, table)) for table in application.TABLES}
    facts |= {"service": url}
    return [
        *(f"{name:<13} {fact}" for name, fact in facts.items()),
        f"not emulated  {', '.join(application.not_emulated(aws))}",
        "",
        "Try next:",
        f"  curl -s {url}/parents        what the service answers",
        "  make tour                                    the rename, a failing migration, a code-only release",
        "  make destroy-local                           remove all of it",
    ]


def main() -> int:
    """Run one command; the exit code is 0, 1 when it failed, 130 when it was interrupted."""
    parser = argparse.ArgumentParser(prog="python -m local_aws", description="AWS on this machine, without Docker.")
    parser.add_argument("--folder", type=Path, default=CLONE / ".local", help="where all of it lives (default: .local)")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("deploy", help="cdk deploy DevStack")
    migrate = commands.add_parser("migrate", help="run_migration_ecs.sh dev us-west-2 COMMAND ...")
    migrate.add_argument("arguments", nargs=argparse.REMAINDER, metavar="COMMAND ...", help="default: upgrade")
    commands.add_parser("tour", help="a release, a rename, a failing migration, a code-only release")
    commands.add_parser("destroy", help="end every process and remove every file")
    arguments = parser.parse_args()
    command, folder = arguments.command, arguments.folder.resolve()
    for interruption in (signal.SIGINT, signal.SIGTERM):
        signal.signal(interruption, signal.default_int_handler)
    aws, touring = LocalAws(folder / "aws"), LocalAws(folder / "tour" / "aws")
    try:
        if command == "destroy":
            print("Ending the local AWS ...", flush=True)
            with aws.exclusively(), touring.exclusively():
                for machine in (aws, touring):
                    machine.destroy()
            _remove(folder)
            print("The local AWS is gone: no process of it runs, and its files are removed.")
        elif command == "migrate":
            script = CLONE / "run_migration_ecs.sh"
            os.execve(script, [str(script), "dev", REGION, *arguments.arguments], aws.environment)  # noqa: S606
        elif command == "tour":
            with touring.exclusively():
                tour.run(touring, folder / "tour" / "app")
        else:
            with aws.exclusively():
                deploy(aws, folder / "deployed" / "DevStack.template.json")
    except KeyboardInterrupt:
        print(f"\nInterrupted: {GO_ON[command]}")
        return 130
    except (LocalAwsError, PostgresError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (BotoCoreError, psycopg2.OperationalError, URLError):
        # Whatever of it is asked first can't be reached any more.
        print(f"error: {NOT_RUNNING}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.strerror}: {error.filename}", file=sys.stderr)
        return 1
    return 0


def _remove(folder: Path) -> None:
    """Remove what the commands made in the folder, and the folder when it holds nothing else."""
    for made in (folder / "tour", folder / "deployed"):
        shutil.rmtree(made, ignore_errors=True)
    (folder / "aws.lock").unlink(missing_ok=True)
    if folder.exists() and not any(folder.iterdir()):
        folder.rmdir()
