"""Writes docs/REFERENCE.md from the docstrings and the runner's options: ``python -m docs.reference``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import griffe

from migration_runner import cli

FILE = Path(__file__).parent / "REFERENCE.md"
CLASSES = ("MigrationTask", "AlembicMigrations", "OnRollback")
HEAD = """
<!-- `make reference` makes this page from the docstrings and migration_runner/cli.py: change those. -->
# Reference

For an infrastructure, installed with `[cdk]`: [MigrationTask](#migrationtask),
[AlembicMigrations](#alembicmigrations), [OnRollback](#onrollback), and for its tests
[constructs_lib.snapshots](#constructs_libsnapshots). For an image, installed with `[runner]`:
[python -m migration_runner](#python--m-migration_runner).

In the types, `ecs` stands for `aws_cdk.aws_ecs`, and so on.
"""


def page() -> str:
    """The whole page, in Markdown."""
    package = griffe.load("constructs_lib", search_paths=[FILE.parents[1]], docstring_parser="google", submodules=True)
    blocks = [HEAD]
    for title in (*CLASSES, "constructs_lib.snapshots"):
        thing = package[title.removeprefix("constructs_lib.")]
        # A class is an alias in the package, whose members would all be aliases too.
        thing = thing.final_target if thing.is_alias else thing
        blocks += [f"## {title}", *described(thing), *members(thing)]
    blocks += ["## python -m migration_runner", *commands()]
    return "\n\n".join(block.strip("\n") for block in blocks) + "\n"


def described(thing: Any) -> Iterator[str]:
    """What its docstring says, section by section."""
    for section in thing.docstring.parsed:
        match section.kind.value:
            case "text":
                yield markdown(section.value)
            case "parameters":
                yield table(["Parameter", "Type", "Default", "Meaning"], parameters(thing, section.value))
            case "attributes":
                yield table(["Attribute", "Meaning"], ([f"`{one.name}`", one.description] for one in section.value))
            case "raises":
                yield from (f"Raises `{one.annotation}`: {markdown(one.description)}" for one in section.value)
            case kind:
                raise ValueError(f"the docstring of {thing.path} has a section {kind!r}, for which there is no place.")


def parameters(thing: Any, described: Iterable[Any]) -> Iterator[list[str]]:
    """A row for each parameter."""
    for one in described:
        declared = thing.parameters[one.name]
        some = declared.kind is griffe.ParameterKind.var_positional
        default = "" if some else "required" if declared.required else f"`{declared.default}`"
        yield [f"`{'*' if some else ''}{one.name}`", f"`{declared.annotation}`", default, one.description]


def members(thing: Any) -> Iterator[str]:
    """The properties of a class in a table, then each function."""
    public = [one for one in thing.members.values() if one.is_public and not one.is_alias]
    properties = [one for one in public if "property" in one.labels]
    if properties:
        rows = ([f"`{one.name}`", f"`{one.annotation}`", one.docstring.value] for one in properties)
        yield table(["Property", "Type", "Meaning"], rows)
    for one in public:
        if one.is_function and one.name != "__init__":
            yield f"### {one.name}()"
            yield from described(one)
            if str(one.returns) != "None":
                yield f"Returns `{one.returns}`."


def table(titles: list[str], rows: Iterable[list[str]]) -> str:
    """A table; what a cell holds stays on one line."""
    lines = [titles, ["---"] * len(titles), *rows]
    cells = ([" ".join(markdown(cell).split()).replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def markdown(text: str) -> str:
    """A docstring's double backticks are Markdown's single ones."""
    return re.sub(r"(?<!`)``([^`]+)``(?!`)", r"`\1`", text)


def commands() -> Iterator[str]:
    """The runner, and each of its commands; not as ``--help`` puts it, which every release of Python wraps anew."""
    parser = cli.parser()
    yield parser.description or ""
    yield f"```text\n{(parser.epilog or '').strip()}\n```"
    for name, summary, example in cli.COMMANDS:
        yield f"### {name}"
        yield f"{summary[0].upper()}{summary[1:]}."
        rows = ([f"`{argument(one)}`", one.settings["help"]] for one in cli.arguments_of(name))
        yield table(["Argument", "Meaning"], rows)
        yield f"For example `python -m migration_runner {example}`."


def argument(one: cli.Argument) -> str:
    """How it stands on a command line."""
    if one.settings.get("action") == "store_true":
        return one.name
    value = one.settings.get("metavar") or "{" + ",".join(one.settings["choices"]) + "}"
    shown = {"?": f"[{value}]", "*": f"[{value} ...]"}.get(one.settings.get("nargs", ""), value)
    return f"{one.name} {shown}" if one.name.startswith("-") else shown


if __name__ == "__main__":
    # A page that can't be made leaves the one that is there.
    FILE.write_text(page())
