"""What is public is told in docstrings, completely, and docs/REFERENCE.md says what they say."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import griffe
import pytest

from docs import reference
from local_aws.machine import CLONE

# Of the shell or of GitHub Actions, not for this program alone; and one that is read only to keep it out of the output.
OTHERS = {"GITHUB_WORKSPACE", "PGPASSWORD"}


def public() -> Iterator[Any]:
    """The classes with their properties and methods, and the functions of the snapshot helper."""
    package: Any = griffe.load("constructs_lib", search_paths=[CLONE], docstring_parser="google", submodules=True)
    for thing in [*(package[name].final_target for name in package.exports), package["snapshots"]]:
        yield thing
        yield from (one for one in thing.members.values() if one.is_public and not one.is_alias)


THINGS = {thing.path.removeprefix("constructs_lib."): thing for thing in public()}
CALLED = [name for name, thing in THINGS.items() if thing.is_function or thing.is_class]


def sections(thing: Any, kind: str) -> list[Any]:
    """What the docstring's sections of this kind hold; those of a class are about ``__init__`` too."""
    # What makes an object is told by its class.
    told_by = thing.parent if thing.name == "__init__" else thing
    return [one for section in told_by.docstring.parsed if section.kind.value == kind for one in section.value]


def attributes(thing: Any) -> set[str]:
    return {one.name for one in sections(thing.parent, "attributes")}


@pytest.mark.parametrize("name", THINGS)
def test_every_public_name_says_what_it_is_for(name: str) -> None:
    thing = THINGS[name]
    told = thing.docstring or thing.name == "__init__" or thing.name in attributes(thing)
    assert told, f"{name} has no docstring, and is no attribute that its class tells of"


@pytest.mark.parametrize("name", CALLED)
def test_what_is_told_of_parameters_is_what_is_declared(name: str) -> None:
    thing = THINGS[name]
    told = [one.name for one in sections(thing, "parameters")]
    declared = [one for one in thing.parameters if one.name != "self"]
    assert told == [one.name for one in declared]
    assert [one.name for one in declared if one.annotation is None] == []


@pytest.mark.parametrize("name", [name for name in CALLED if THINGS[name].is_function])
def test_what_a_function_raises_is_told(name: str) -> None:
    thing = THINGS[name]
    tree = ast.parse(textwrap.dedent(thing.source))
    calls = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise)]
    raised = {call.func.id for call in calls if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)}
    assert raised <= {str(one.annotation) for one in sections(thing, "raises")}


def test_the_page_is_the_one_that_the_docstrings_and_the_options_make() -> None:
    assert reference.page().splitlines() == reference.FILE.read_text().splitlines(), "stale: `make reference`"


def test_every_public_name_stands_on_the_page() -> None:
    page = (CLONE / "docs" / "REFERENCE.md").read_text()
    names = {thing.name for thing in THINGS.values()} - {"__init__", "snapshots"}
    assert {"execute_before", "revision_after", "DOWNGRADE", "masked_template"} <= names
    assert {name for name in names if not re.search(rf"`{name}`|^#+ {name}\b", page, re.MULTILINE)} == set()


def test_the_help_and_the_page_name_every_variable_that_the_runner_reads() -> None:
    source = "".join(file.read_text() for file in (CLONE / "migration_runner").glob("*.py"))
    read = set(re.findall(r'environ(?:ment)?(?:\.get\(|\[)"(\w+)"', source))
    read |= {f"DATABASE_{name}" for name in ("HOST", "PORT", "NAME")}
    page = (CLONE / "docs" / "REFERENCE.md").read_text()
    told = page.partition("environment variables:")[2].partition("exit codes:")[0]
    assert len(read) > 8
    assert {name for name in read - OTHERS if not re.search(rf"\b{name}\b", told)} == set()
