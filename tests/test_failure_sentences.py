"""docs/FAILURES.md has every sentence that a failure is told in, and none that the code no longer has."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from local_aws.machine import CLONE
from migration_runner.database import REASONS_TO_WAIT

DOCUMENT = CLONE / "docs" / "FAILURES.md"
# Where the sentence is among the arguments, if it is not the first one.
POSITIONS = {"wrong_use": 1, "Refusal": 3, "cannot_reopen": 0, "damaged": 0}
FEWEST_WORDS = 2


@dataclass(frozen=True)
class Sentence:
    """What is told: the texts in their order, None for a part that only a run knows."""

    where: str
    parts: tuple[str | None, ...]

    @property
    def words(self) -> int:
        return len(re.findall(r"[A-Za-z']+", " ".join(part or "" for part in self.parts)))

    def __str__(self) -> str:
        return f"{self.where}: {''.join('...' if part is None else part for part in self.parts)}"

    def begins(self, told: str) -> bool:
        """Whether it begins as the document says, where a variable part is one or more words in capitals."""
        return _begins(self.parts, told)


def _begins(parts: tuple[str | None, ...], told: str) -> bool:
    if not told:
        return True
    if not parts:
        return False
    first, rest = parts[0], parts[1:]
    if first is not None:
        return first.startswith(told) or (told.startswith(first) and _begins(rest, told[len(first) :]))
    # It may also be empty, as a part that is told only sometimes.
    name = re.match(r"(?:(?:^| )[A-Z_]+(?![A-Za-z]))*", told)
    ends = [0, *(word.end() for word in re.finditer("[A-Z_]+", name[0] if name else ""))]
    return any(_begins(rest, told[end:]) for end in ends)


def literals(node: ast.expr, names: dict[str, list[ast.expr]]) -> Iterator[tuple[str | None, ...]]:
    """The texts that an expression may be, as far as they stand in the code."""
    match node:
        case ast.Constant(value=str() as text):
            # Also a template for format_map().
            yield tuple(None if index % 2 else part for index, part in enumerate(re.split(r"\{(\w+)\}", text)))
        case ast.JoinedStr(values=values):
            yield tuple(str(one.value) if isinstance(one, ast.Constant) else None for one in values)
        case ast.IfExp(body=body, orelse=orelse):
            yield from literals(body, names)
            yield from literals(orelse, names)
        case ast.Name(id=name):
            for assigned in names.get(name, []):
                yield from literals(assigned, {})


def called(node: ast.Call) -> str:
    match node.func:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=ast.Call(func=ast.Name(id="super"))):
            return "super().__init__"
        case ast.Attribute(attr=name):
            return name
    return ""


def raised(file: str) -> Iterator[Sentence]:
    """What a module's errors say: of every call of something named ...Error, and of what makes one."""
    tree = ast.parse((CLONE / file).read_text())
    scopes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    # Each inner function is walked again by itself, when its own names count.
    for scope in [tree, *scopes]:
        names: dict[str, list[ast.expr]] = {}
        for node in ast.walk(scope):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                names.setdefault(node.targets[0].id, []).append(node.value)
        for node in ast.walk(scope):
            if not isinstance(node, ast.Call):
                continue
            name = called(node)
            position = POSITIONS.get(name, 0)
            if not (name.endswith("Error") or name in (*POSITIONS, "super().__init__")) or len(node.args) <= position:
                continue
            for parts in literals(node.args[position], {} if scope is tree else names):
                yield Sentence(file, parts)


def answered(file: str) -> Iterator[Sentence]:
    """Every sentence in a module of the trigger: any may become a part of what CloudFormation is told."""
    tree = ast.parse((CLONE / file).read_text())
    silent: set[ast.AST] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Constant() as docstring):
                silent.add(docstring)
            case ast.JoinedStr(values=values):
                silent |= set(values)
            case ast.Call() if called(node) in ("as_far_as_possible", "exception", "warning"):
                silent |= set(node.args)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant | ast.JoinedStr) and node not in silent:
            for parts in literals(node, {}):
                first, last = parts[0] or "", parts[-1] or ""
                if " " in first and (re.match("[A-Z]", first) or (re.match("[a-z]", first) and last.endswith("."))):
                    yield Sentence(file, parts)


def shouted(file: str) -> Iterator[Sentence]:
    """What the script ends with, and what it can't show."""
    text = (CLONE / file).read_text().replace("\\\n", " ")
    for ends, quoted in re.findall(r'\b(end_with \$\w+|say)((?:\s+"(?:\\.|[^"\\])*")+)', text):
        sentence = " ".join(re.findall(r'"((?:\\.|[^"\\])*)"', quoted)).replace("\\`", "`")
        if ends == "say" and not re.search("can't|^Interrupted", sentence):
            continue
        parts = re.split(r"(\$\(.*?\)|\$\{(?:[^{}]|\{[^}]*\})*\}|\$\w+)", sentence)
        yield Sentence(file, tuple(None if index % 2 else part for index, part in enumerate(parts)))


def files(folder: str) -> list[str]:
    return sorted(str(path.relative_to(CLONE)) for path in (CLONE / folder).glob("*.py"))


SYNTH = [*files("constructs_lib"), "migration_runner/revisions.py", "stacks/stage.py"]
RUNNER = [file for file in files("migration_runner") if file not in SYNTH]
GROUPS = {
    "In the output of cdk deploy": [one for file in files("constructs_lib/trigger_handler") for one in answered(file)],
    "From the runner": [one for file in RUNNER for one in raised(file)],
    "From cdk synth": [one for file in SYNTH for one in raised(file)],
    "From run_migration_ecs.sh": list(shouted("run_migration_ecs.sh")),
}


def sentences(group: str) -> list[Sentence]:
    return sorted({one for one in GROUPS[group] if one.words >= FEWEST_WORDS}, key=str)


def told(group: str) -> list[str]:
    """What stands in the first column of the group's tables."""
    section = re.search(rf"^## {re.escape(group)}\n(.*?)(?=^## |\Z)", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    assert section
    return [words.strip() for _, words in re.findall(r"^\| (`+)(.*?)\1 \|", section[1], re.MULTILINE)]


@pytest.mark.parametrize("group", GROUPS)
def test_every_sentence_of_a_failure_stands_in_the_document(group: str) -> None:
    listed = told(group)
    assert [str(one) for one in sentences(group) if not any(map(one.begins, listed))] == []


@pytest.mark.parametrize("group", GROUPS)
def test_every_sentence_in_the_document_is_one_of_the_code(group: str) -> None:
    known = sentences(group)
    meant = {one: [str(sentence) for sentence in known if sentence.begins(one)] for one in told(group)}
    # A beginning that fits many would stand for some that nobody has described.
    assert {one: those for one, those in meant.items() if not 1 <= len(those) <= 2} == {}


def test_the_reasons_for_which_a_database_is_waited_for_are_told_too() -> None:
    text = DOCUMENT.read_text()
    assert [reason for _, reason in REASONS_TO_WAIT if reason not in text] == []


def test_a_sentence_is_recognised_by_its_beginning_with_capitals_for_what_varies() -> None:
    sentence = Sentence("", ("the ", None, " of ", None, " ", None, " failed: ", None))
    assert sentence.begins("the ROLE of NAME REST failed: SOME WORDS")
    assert sentence.begins("the ROLE of NAME REST fai")
    assert not sentence.begins("the ROLE of NAME REST failed: some words")
    assert not sentence.begins("the role of NAME")
