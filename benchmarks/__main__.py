"""Times the migration runner next to its peers, and prints tables.

Every figure is of a whole process, from start to exit, with a database of its own on a PostgreSQL of this run. All
tools run once at all sizes, then again, so that what else the machine does hits all alike. A cell holds the median,
the fastest and the slowest run, and the median of the peak memory. Below a table stand the promises that it has to
hold; the exit code is 1 when one is not held.

All tools make the same changes, in the SQL that Alembic writes, to empty tables. PostgreSQL runs on loopback with TLS
and without fsync. Bytecode and manifest are made before, as an image build does. "bare psycopg2" is the floor: a
script that does no more than apply the SQL and write down the version.

Peers are installed below .local/bench, which git ignores.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.peers import INSTALLED, NotInstalledError, Tool
from benchmarks.tables import SCENARIOS, TOOLS, Scenario, machine, tell
from local_aws.postgres import Postgres, PostgresError


def main() -> int:
    """Print the tables.

    Returns:
        the exit code: 0 when every promise is held.
    """
    arguments = _parser().parse_args()
    scenarios = [SCENARIOS[name] for name in arguments.tables or SCENARIOS]
    if arguments.sizes:
        # How long a query waits does not depend on the number of revisions.
        scenarios = [one if one is SCENARIOS["stall"] else replace(one, sizes=arguments.sizes) for one in scenarios]
    # A shell lets a process in the background ignore Ctrl-C; a plain kill is no less of a reason to clean up.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        return _print_tables(scenarios, arguments.runs)
    except PostgresError as error:
        tell(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        return 130


def _print_tables(scenarios: Iterable[Scenario], runs: int) -> int:
    installed, missing = _install({tool for scenario in scenarios for tool in scenario.tools})
    held = True
    with TemporaryDirectory(dir=INSTALLED, prefix="run-") as folder:
        postgres = Postgres(Path(folder) / "postgres", force_tls=True)
        try:
            postgres.start(with_parent=True)
            print(machine(postgres), ", ".join(dict.fromkeys(installed.values())), sep="\n", flush=True)
            for number, scenario in enumerate(scenarios):
                tools = [tool for tool in scenario.tools if tool in installed]
                table = scenario.table(tools, runs, Path(folder) / str(number), postgres)
                print(*scenario.lines(table, missing), sep="\n", flush=True)
                held = held and all(promise.held for promise in scenario.promises(table, scenario.sizes))
        finally:
            postgres.stop()
    return 0 if held else 1


def _install(wanted: set[Tool]) -> tuple[dict[Tool, str], dict[Tool, str]]:
    """What is there with its version, and what is not with the reason."""
    INSTALLED.mkdir(parents=True, exist_ok=True)
    installed, missing = {}, {}
    for tool in TOOLS:
        if tool in wanted:
            tell(f"Installing {tool.name}, unless it is there")
            try:
                installed[tool] = tool.install()
            except NotInstalledError as error:
                missing[tool] = str(error)
    return installed, missing


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog="example: python -m benchmarks at-head one-pending --sizes 10,100 --runs 3",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = ", ".join(SCENARIOS)
    parser.add_argument("tables", nargs="*", type=table, metavar="TABLE", help=f"{names} (default: all)")
    parser.add_argument("--runs", type=count, default=7, metavar="NUMBER", help="of each tool (default: 7)")
    parser.add_argument(
        "--sizes", type=sizes, metavar="NUMBERS", help="of revisions, not for stall (default: promised)"
    )
    return parser


def table(text: str) -> str:
    """The name of a table."""
    if text not in SCENARIOS:
        raise argparse.ArgumentTypeError(f"{text} is not one of {', '.join(SCENARIOS)}")
    return text


def count(text: str, least: int = 1) -> int:
    """A number that is not too small; argparse shows this function's name when it is none."""
    number = int(text)
    if number < least:
        raise argparse.ArgumentTypeError(f"{number} is below {least}")
    return number


def sizes(text: str) -> tuple[int, ...]:
    """Numbers with commas between them, in rising order. The first two revisions make the tools' version tables."""
    return tuple(sorted({count(part, least=2) for part in text.split(",")}))


if __name__ == "__main__":
    sys.exit(main())
