"""What a revision does to a database in use: its locks, what is unsafe about it, and the safe way to write it.

Squawk (https://squawkhq.com) finds what is unsafe; the words about it, and the code to write instead, are here.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
import textwrap
import tokenize
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import psycopg2.extensions

from migration_runner.errors import RunError, wrong_use
from migration_runner.offline import HARMLESS, Script, Statement, flat, write_sql
from migration_runner.renames import Rename, bridges
from migration_runner.revisions import Revision, read_revisions

# The oldest PostgreSQL that is supported: what is safe there is safe in each later one.
PG_VERSION = "14"
WORD = r'(?:"(?:""|[^"])+"|[^\W\d][\w$]*)'
NAME = rf"{WORD}(?:\.{WORD})?"
NAMES = rf"(?:ONLY )?{NAME}(?: ?, ?(?:ONLY )?{NAME})*"
ALTER = r"ALTER (?:FOREIGN )?TABLE (?:IF EXISTS )?(?:ONLY )?<table> ?\*? ?"


class Lock(NamedTuple):
    """A lock of a statement on a table.

    Args:
        table: the table as the statement writes it; the index, where the statement names only that.
        mode: PostgreSQL's name of it.
        blocks: what waits, in words.
    """

    table: str
    mode: str
    blocks: str


class Size(NamedTuple):
    """How much a statement that reads or rewrites a table has to do.

    Args:
        rows: PostgreSQL's estimate; None when the table was never analyzed.
        bytes: with indexes and TOAST.
    """

    rows: int | None
    bytes: int


@dataclass(frozen=True)
class Finding:
    """Something unsafe in a revision.

    Args:
        rule: squawk's name of the rule, or ours; what a mark names.
        revision: the revision's id.
        file: its file.
        line: of the call that does it.
        sentence: the danger.
        instead: Python to write instead, or what to do.
    """

    rule: str
    revision: str
    file: Path
    line: int
    sentence: str
    instead: str


@dataclass(frozen=True)
class PlannedRevision:
    """What a run will do for one revision.

    Args:
        revision: the revision.
        statements: with their locks.
        findings: what is unsafe about them.
        bridged: the renames that keep their older names until the contract step.
    """

    revision: Revision
    statements: list[tuple[Statement, list[Lock]]]
    findings: list[Finding]
    bridged: list[Rename]


@dataclass(frozen=True)
class Plan:
    """What an upgrade will do.

    Args:
        revisions: the pending ones, in the order of the upgrade.
        note: why nothing is said about dangers; None when they were looked for.
    """

    revisions: list[PlannedRevision]
    note: str | None = None


NAME_OF_TABLE = re.compile(r"""(?:(?:"(?:[^"]|"")+"|\w+)\.)?(?:"(?:[^"]|"")+"|\w+)""")


def check(config: Path, files: Collection[Path] = (), *, contract_follows: bool = False) -> list[Finding]:
    """What is unsafe in a project's revisions, oldest first; no database is needed.

    Args:
        config: the project's ``alembic.ini``.
        files: the revision files to look into; none for all.
        contract_follows: whether renames keep their older names until a contract step.

    Raises:
        RevisionError: the chain is broken, see ``read_revisions``.
        RunError: one of ``files`` is no revision, squawk is not installed, or ``env.py`` can't work offline.
    """
    revisions = read_revisions(config)[::-1]
    known = {one.path.resolve() for one in revisions}
    asked = {file.resolve(): file for file in files}
    if strangers := [str(file) for path, file in asked.items() if path not in known]:
        folders = sorted({_shown(one.path.parent) for one in revisions})
        raise wrong_use(
            "NotARevision",
            f"{' and '.join(strangers)} {'is' if len(strangers) == 1 else 'are'} no revision of this project.",
            f"Its revisions are in {' and '.join(folders)}.",
        )
    scripts = write_sql(config, [one for one in revisions if not asked or one.path.resolve() in asked])
    return [finding for script in scripts for finding in _review(script, contract_follows=contract_follows)]


def plan(config: Path, pending: Sequence[Revision], *, contract_follows: bool = False) -> Plan:
    """What an upgrade will do; without squawk, what is unsafe about it stays unsaid.

    Args:
        config: the project's ``alembic.ini``.
        pending: in the order of the upgrade.
        contract_follows: whether renames keep their older names until a contract step.

    Raises:
        RunError: ``env.py`` can't work offline.
    """
    scripts = write_sql(config, pending)
    try:
        reviews, note = [_review(script, contract_follows=contract_follows) for script in scripts], None
    except SquawkMissingError as error:
        refused = [_refused(script) if contract_follows else [] for script in scripts]
        reviews = [[*_stops(script), *found] for script, found in zip(scripts, refused, strict=True)]
        note = f"{error.message} {error.hint}"
    planned = []
    for script, review in zip(scripts, reviews, strict=True):
        new = _created(script.statements)
        statements = [
            (statement, [lock for lock in locks(statement) if _plain(lock.table) not in new])
            for statement in script.statements
        ]
        bridged = script.renames if contract_follows and _is_bridged(script) else []
        planned.append(PlannedRevision(script.revision, statements, review, bridged))
    return Plan(planned, note)


def tables(plan: Plan) -> set[str]:
    """The tables whose sizes matter to a plan."""
    return {lock.table for one in plan.revisions for _, taken in one.statements for lock in taken}


def sizes(connection: psycopg2.extensions.connection, tables: Collection[str]) -> dict[str, Size]:
    """How large the tables are; one that does not exist is left out.

    Args:
        connection: to the database that the plan is for.
        tables: as a statement writes them.
    """
    query = """
        SELECT name, nullif(reltuples::bigint, -1), pg_total_relation_size(pg_class.oid)
        FROM unnest(%s::text[]) AS name JOIN pg_class ON pg_class.oid = to_regclass(name)
    """
    with connection.cursor() as cursor:
        # PostgreSQL before 16 refuses to look for what can't be a name.
        cursor.execute(query, [sorted(name for name in tables if NAME_OF_TABLE.fullmatch(name))])
        return {name: Size(rows, size) for name, rows, size in cursor.fetchall()}


def locks(statement: Statement) -> list[Lock]:
    """The locks that a statement takes on tables that it names, and holds until its transaction ends.

    Not told by the text, and so not told here: the tables at the other end of a foreign key that is dropped or
    validated, and the partitions of a table. ACCESS SHARE, which only reads, is left out.
    https://www.postgresql.org/docs/current/explicit-locking.html
    """
    blanked = flat(statement.sql)[1]
    outer = blanked
    if re.match("ALTER ", outer, re.IGNORECASE):
        while outer != (outer := re.sub(r"\([^()]*\)", "", outer)):
            pass
    taken = []
    for pattern, modes in LOCKS:
        if match := pattern.match(outer):
            mode_in_text = (match.groupdict().get("mode") or "").upper()
            for group, mode in modes.items():
                taken += [_lock(table, mode or mode_in_text) for table in _names(match[group])]
            break
    if re.match(r"(CREATE|ALTER) [^(]*?TABLE ", blanked, re.IGNORECASE):
        others = re.findall(rf"\bREFERENCES ({NAME})", blanked, re.IGNORECASE)
        taken += [_lock(table, "SHARE ROW EXCLUSIVE") for table in others]
    if re.match(r"(WITH|UPDATE|DELETE|INSERT|MERGE|COPY) ", blanked, re.IGNORECASE):
        changed = re.finditer(CHANGED, blanked, re.IGNORECASE)
        taken += [_lock(match["table"], "ROW EXCLUSIVE") for match in changed]
    if re.match(r"(DO|CALL)\b", blanked, re.IGNORECASE):
        taken.append(Lock("any table", "UNKNOWN LOCKS", "what the code does can't be told from its text"))
    return list(dict.fromkeys(taken))


def findings(statements: Sequence[Statement], revision: Revision) -> list[Finding]:
    """What squawk finds unsafe, in words of ours; marks in the file are not considered.

    A table that the revision itself creates is not in use yet, whatever is done to it. In a contract revision that
    counts as safe which only an older release would miss.

    Args:
        statements: of the revision, in their order.
        revision: the one they are from.

    Raises:
        SquawkMissingError: squawk is not installed.
    """
    if not statements:
        return []
    seen: dict[tuple[int, str], dict[str, Any]] = {}
    text = [f"{statement.sql}\n;\n" for statement in statements]
    first_lines = [0, *accumulate(part.count("\n") for part in text)]
    for violation in _squawk("".join(text)):
        index = bisect_right(first_lines, violation["line"]) - 1
        # Of a serial column squawk sees the style alone; but it has a default, the next value of its sequence.
        is_added = violation["rule_name"] == "prefer-identity" and statements[index].sql[:5].upper() == "ALTER"
        rule = "adding-field-with-default" if is_added else violation["rule_name"]
        seen.setdefault((index, rule), violation)
    unread = {index for index, rule in seen if rule == "syntax-error"}
    if unread:
        # Squawk says nothing more about a text of which it can't read a part.
        rest = findings([one for index, one in enumerate(statements) if index not in unread], revision)
        return [*rest, *(_unreadable(statements[index], revision) for index in sorted(unread))]
    new = _created(statements)
    return [
        _finding(rule, violation, statements[index], revision)
        for (index, rule), violation in seen.items()
        if rule in RULES
        and not (revision.phase == "contract" and rule in OF_OLDER_RELEASES)
        and not (rule == "constraint-missing-not-valid" and any((index, better) in seen for better in ITS_BETTERS))
        and not any(_plain(lock.table) in new for lock in locks(statements[index])[:1])
    ]


class SquawkMissingError(RunError):
    """Squawk is not installed."""

    def __init__(self) -> None:
        missing = wrong_use("SquawkMissing", "squawk, which finds what is unsafe, is not installed.")
        super().__init__(
            missing.message, exit_code=missing.exit_code, kind=missing.kind, hint="Run: pip install squawk-cli"
        )


def explanation(finding: Finding) -> str:
    """What a finding does to a running service, and what to write instead, in lines."""
    code = textwrap.indent(finding.instead, "    ")
    mark = f"# safe: {finding.rule} - the reason"
    last = "" if finding.rule in OURS else f"\nIf it is safe here, say so in that line or above it: {mark}"
    return f"{finding.sentence}\nInstead:\n{code}{last}"


def as_json(finding: Finding) -> dict[str, Any]:
    """A finding for machines."""
    return {**asdict(finding), "file": _shown(finding.file)}


def plan_as_json(plan: Plan, sizes: Mapping[str, Size]) -> list[dict[str, Any]]:
    """A plan for machines; each lock has ``rows`` and ``bytes`` of its table, null when they are not known.

    Args:
        plan: what to tell.
        sizes: of the tables, as far as they are known.
    """
    known = {table: size._asdict() for table, size in sizes.items()}
    unknown = {"rows": None, "bytes": None}
    return [
        {
            "revision": one.revision.revision,
            "message": one.revision.message,
            "phase": one.revision.phase,
            "bridged": [*map(str, one.bridged)],
            "statements": [
                {
                    "sql": statement.sql,
                    "line": statement.line,
                    "locks": [lock._asdict() | known.get(lock.table, unknown) for lock in taken],
                }
                for statement, taken in one.statements
            ],
            "findings": [as_json(finding) for finding in one.findings],
        }
        for one in plan.revisions
    ]


def render_check(findings: Sequence[Finding]) -> str:
    """The findings for a terminal."""
    if not findings:
        return "No findings.\n"
    count = len(findings)
    return "\n".join([*map(_rendered, findings), f"{count} finding{'s'[: count != 1]}.\n"])


def render_plan(plan: Plan, sizes: Mapping[str, Size]) -> str:
    """The plan for a terminal.

    Args:
        plan: what to tell.
        sizes: of the tables, as far as they are known.
    """
    parts = []
    for one in plan.revisions:
        step = " (by the contract step)" if one.revision.phase == "contract" else ""
        parts.append(f"{one.revision.revision} {one.revision.message}{step}\n")
        for statement, taken in one.statements:
            parts.append(textwrap.indent(f"{statement.sql};\n", "    "))
            parts += [f"        {lock.mode} on {lock.table}{_size(sizes, lock)}: {lock.blocks}\n" for lock in taken]
        parts += [f"    {rename}: both names work until the contract step\n" for rename in one.bridged]
        parts += [textwrap.indent(f"\n{_rendered(finding)}", "    ") for finding in one.findings]
        parts.append("\n")
    return "".join(parts) + (f"{plan.note}\n" if plan.note else "") or "Nothing is pending.\n"


def _review(script: Script, *, contract_follows: bool) -> list[Finding]:
    """What is unsafe in a revision, apart from what its author has marked as safe."""
    revision = script.revision
    found = [*_stops(script), *_directions(revision), *findings(script.statements, revision)]
    marks = list(_marks(revision.path))
    refused = _refused(script) if contract_follows else []
    # A mark on a bridged rename is needed wherever no contract step follows.
    used = {(mark, finding.rule) for finding in [*found, *refused] for mark in marks if mark.is_about(finding)}
    if contract_follows and (refused or _is_bridged(script)):
        lines = {one.line for one in script.statements if one.rename}
        found = [*refused, *(one for one in found if one.rule not in RENAMING or one.line not in lines)]
    if contract_follows:
        found = [replace(one, instead=one.instead.removesuffix(GIVE_OPTION)) for one in found]
    open_ones = [finding for finding in found if not any(mark.is_about(finding) for mark in marks)]
    for mark in marks:
        if not mark.reason:
            sentence = f"The mark in line {mark.line} gives no reason, so nobody can tell later whether it still holds."
            instead = f"# safe: {', '.join(mark.rules) or 'RULE'} - why it is safe here"
            open_ones.append(
                Finding("mark-without-reason", revision.revision, revision.path, mark.line, sentence, instead)
            )
        for rule in mark.rules:
            if (mark, rule) not in used:
                sentence = f"The mark in line {mark.line} allows {rule}, but nothing here needs it."
                open_ones.append(
                    Finding("unused-mark", revision.revision, revision.path, mark.line, sentence, "Remove the mark.")
                )
    return sorted(open_ones, key=lambda finding: finding.line)


@dataclass(frozen=True)
class _Mark:
    """A comment ``# safe: RULE, RULE - reason`` on a statement of Python or above it."""

    rules: tuple[str, ...]
    reason: str
    line: int
    first: int
    last: int

    def is_about(self, finding: Finding) -> bool:
        return finding.rule in self.rules and self.first <= finding.line <= self.last


def _marks(path: Path) -> Iterator[_Mark]:
    """The marks in a file; one belongs to the statement that it stands in, or that comes next."""
    comments: list[tuple[int, re.Match[str]]] = []
    first = 0
    with tokenize.open(path) as file:
        tokens = list(tokenize.generate_tokens(file.readline))
    for token in tokens:
        if token.type == tokenize.COMMENT:
            mark = re.fullmatch(
                r"#\s*safe:\s*([\w-]+(?:\s*,\s*[\w-]+)*)?(?:\s+[-\u2013\u2014]\s*|\s*$)(.*)", token.string
            )
            comments += [(token.start[0], mark)] if mark else []
        elif token.type in (tokenize.NEWLINE, tokenize.ENDMARKER):
            last = token.start[0]
            for line, mark in comments:
                yield _Mark(tuple(re.findall(r"[\w-]+", mark[1] or "")), mark[2].strip(), line, first or last, last)
            comments, first = [], 0
        elif token.type not in (tokenize.NL, tokenize.INDENT, tokenize.DEDENT):
            first = first or token.start[0]


def _stops(script: Script) -> list[Finding]:
    if not script.stopped:
        return []
    line, kind = script.stopped
    sentence = f"Line {line} raises {kind} when there is no database to read, so the SQL from there on can't be told."
    instead = 'Let one statement read and write: op.execute("UPDATE ... SET ... FROM ...")'
    return [Finding("needs-a-database", script.revision.revision, script.revision.path, line, sentence, instead)]


def _is_bridged(script: Script) -> bool:
    """Whether an upgrade that a contract step follows keeps the older names of all that the revision does."""
    return _may_be_bridged(script.revision) and _only_renames(script)


def _may_be_bridged(revision: Revision) -> bool:
    return revision.bridge and revision.phase == "expand"


def _only_renames(script: Script) -> bool:
    others = [one.sql for one in script.statements if not one.rename]
    return bool(script.renames) and not script.stopped and all(HARMLESS.fullmatch(flat(sql)[0]) for sql in others)


def _refused(script: Script) -> list[Finding]:
    """Where an upgrade that a contract step follows will stop."""
    if not script.renames or not _may_be_bridged(script.revision):
        return []
    return _clashing(script) if _only_renames(script) else [_mixed(script)]


def _mixed(script: Script) -> Finding:
    """That it does more than rename."""
    line = next(one.line for one in script.statements if one.rename)
    sentence = f"{script.revision.revision} does more than rename: an upgrade with --contract-follows stops before it."
    calls = "\n".join(map(_call, script.renames))
    instead = f"# in a revision of their own\n{calls}\n# or here, for plain renames\nbridge = False"
    return Finding("mixed-rename", script.revision.revision, script.revision.path, line, sentence, instead)


def _clashing(script: Script) -> list[Finding]:
    """Whether an older name would stand for two things."""
    try:
        bridges((rename, True) for rename in script.renames)
    except RunError:
        line = next(one.line for one in script.statements if one.rename)
        sentence = (
            f"{script.revision.revision} gives and takes the same name, which the running release uses for something "
            "else: an upgrade with --contract-follows stops before it."
        )
        instead = "# two revisions, of which the second is deployed after the first one's contract\n" + "\n".join(
            map(_call, script.renames)
        )
        instead += "\n# or here, for plain renames\nbridge = False"
        return [Finding("name-used-twice", script.revision.revision, script.revision.path, line, sentence, instead)]
    return []


def _call(rename: Rename) -> str:
    schema = f", schema={_quoted(rename.schema)}" if rename.schema else ""
    table, old, new = map(_quoted, (rename.table, rename.old, rename.new))
    if rename.of_table:
        return f"op.rename_table({old}, {new}{schema})"
    return f"op.alter_column({table}, {old}, new_column_name={new}{schema})"


def _directions(revision: Revision) -> Iterator[Finding]:
    """Whether there is a way up and a way down."""
    functions = {
        node.name: node for node in ast.parse(revision.path.read_bytes()).body if isinstance(node, ast.FunctionDef)
    }
    for name in ("upgrade", "downgrade"):
        if name not in functions:
            sentence = f"There is no {name}(), so Alembic can't {name} through {revision.revision}."
            instead = f"def {name}() -> None: ..."
            yield Finding("missing-direction", revision.revision, revision.path, 1, sentence, instead)
    if len(functions.keys() & {"upgrade", "downgrade"}) == 2 and not _does_something(functions["downgrade"]):
        if not _does_something(functions["upgrade"]):
            return
        line = functions["downgrade"].lineno
        sentence = f"{revision.revision} can't be taken back: its downgrade() does nothing."
        instead = (
            "# safe: irreversible - what was deleted can't be brought back\n"
            "def downgrade() -> None:\n"
            '    raise NotImplementedError("restore the backup")'
        )
        yield Finding("irreversible", revision.revision, revision.path, line, sentence, instead)


def _does_something(function: ast.FunctionDef) -> bool:
    return not all(
        isinstance(node, ast.Pass | ast.Raise) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for node in function.body
    )


def _squawk(sql: str) -> list[dict[str, Any]]:
    program = shutil.which("squawk", path=str(Path(sys.executable).parent)) or shutil.which("squawk")
    if not program:
        raise SquawkMissingError
    # Alembic runs a revision in a transaction; what an autocommit block ends and begins is in the SQL. Squawk takes a
    # lone statement for one without a transaction, so there is another: as in truth, for the version table.
    options = ["--reporter", "json", "--assume-in-transaction", "--pg-version", PG_VERSION]
    done = subprocess.run(
        [program, *options], input=f"{sql}SELECT 1;", capture_output=True, encoding="utf-8", check=False
    )
    try:
        return list(json.loads(done.stdout))
    except ValueError:
        raise wrong_use(
            "SquawkFailed", "squawk gave no answer.", "Look at what `squawk --version` says, and at .squawk.toml."
        ) from None


def _unreadable(statement: Statement, revision: Revision) -> Finding:
    sentence = "squawk can't read this statement, so what is unsafe about it can't be told."
    instead = "Look for a mistake; if PostgreSQL takes it, look up its locks, and mark it."
    return Finding("syntax-error", revision.revision, statement.file, statement.line, sentence, instead)


def _finding(rule: str, violation: Mapping[str, Any], statement: Statement, revision: Revision) -> Finding:
    sentence, instead = violation["message"], violation["help"] or f"{LATER} is in use, and mark it"
    plain, blanked = flat(statement.sql)
    if rule in OF_OLDER_RELEASES:
        instead = ANY_STATEMENT.format_map({"statement": _Name(plain)})
    for advice in RULES[rule]:
        if match := advice.pattern.match(blanked):
            spans = {name: match.span(name) for name in match.groupdict()}
            fields = {name: _Name(plain[begin:end] if begin >= 0 else "") for name, (begin, end) in spans.items()}
            fields["statement"] = _Name(plain)
            sentence, instead = advice.danger.format_map(fields), advice.instead.format_map(fields)
            if rule in RENAMING:
                instead = f"{_unbridged(revision)}{instead}"
            break
    return Finding(rule, revision.revision, statement.file, statement.line, sentence, instead)


def _unbridged(revision: Revision) -> str:
    """What keeps a revision from being bridged."""
    if revision.phase == "contract":
        return '# in a revision without phase = "contract", which is applied while both releases run\n'
    return "" if revision.bridge else "# in a revision without bridge = False\n"


class _Name(str):
    """A name, or another part of a statement, for a format string.

    ``{name}`` reads as a person says it, ``{name!r}`` is a Python string without the schema, ``{name.schema}`` is the
    argument for that, ``{name.columns}`` are the items of a Python list, ``{name.text}`` is all of it as a Python
    string, ``{name.sql}`` is the same without the double quotes, and the rest are names made from it.
    """

    __slots__ = ()

    def __format__(self, _: str) -> str:
        return _plain(self)

    def __repr__(self) -> str:
        return _quoted(_words(self)[-1])

    @property
    def schema(self) -> str:
        schemas = _words(self)[:-1]
        return f", schema={_quoted(schemas[0])}" if schemas else ""

    @property
    def columns(self) -> str:
        return ", ".join(_quoted(name) for name in _words(self))

    @property
    def text(self) -> str:
        return _quoted(str(self))

    @property
    def sql(self) -> str:
        return _quoted(str(self))[1:-1]

    @property
    def not_null(self) -> _Name:
        return self._and("_not_null")

    @property
    def successor(self) -> _Name:
        return self._and("_new")

    def _and(self, suffix: str) -> _Name:
        return _Name(f'{self[:-1]}{suffix}"' if self.endswith('"') else f"{self}{suffix}")


def _words(names: str) -> list[str]:
    return [_plain(word) for word in re.findall(WORD, names)]


def _plain(name: str) -> str:
    """A name without its quotes."""
    return re.sub(r'"((?:""|[^"])+)"', lambda quoted: quoted[1].replace('""', '"'), name)


def _quoted(text: str) -> str:
    """A Python string in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def _names(names: str) -> list[str]:
    return [re.sub("^ONLY ", "", name, flags=re.IGNORECASE) for name in re.findall(rf"(?:ONLY )?{NAME}", names)]


def _lock(table: str, mode: str) -> Lock:
    return Lock(table, mode, BLOCKS[mode])


def _created(statements: Iterable[Statement]) -> set[str]:
    texts = [flat(statement.sql)[1] for statement in statements]
    return {_plain(match["table"]) for text in texts if (match := CREATE_TABLE.match(text))}


def _rendered(finding: Finding) -> str:
    head = f"{_shown(finding.file)}:{finding.line}: {finding.rule}"
    return f"{head}\n{textwrap.indent(explanation(finding), '  ')}\n"


def _shown(file: Path) -> str:
    return str(file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file)


def _size(sizes: Mapping[str, Size], lock: Lock) -> str:
    if lock.table not in sizes:
        return ""
    size = sizes[lock.table]
    rows = "number of rows unknown" if size.rows is None else f"about {size.rows:,} rows"
    number, unit = float(size.bytes), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if number < 1024:
            break
        number, unit = number / 1024, larger
    return f" ({rows}, {number:.0f} {unit})"


def _pattern(text: str) -> re.Pattern[str]:
    """A regular expression in which ``<x>`` is a name, maybe with its schema, and ``<x...>`` several."""

    def group(name: re.Match[str]) -> str:
        return f"(?P<{name[1]}>{NAMES if name[2] else NAME})"

    return re.compile(re.sub(r"(?<!\?P)<(\w+)(\.\.\.)?>", group, text), re.IGNORECASE)


CREATE_TABLE = _pattern(r"CREATE (?:(?:GLOBAL |LOCAL )?(?:TEMP|TEMPORARY) |UNLOGGED )?TABLE (?:IF NOT EXISTS )?<table>")
CHANGED = (
    rf"(?:\b(?:INSERT|MERGE) INTO|\bDELETE FROM|(?<!FOR )(?<!KEY )\bUPDATE|^COPY)"
    rf" (?:ONLY )?(?!SET\b|ONLY\b)(?P<table>{NAME})(?! ?(?:\([^)]*\) )?TO\b)"
)

# What waits for each mode: the statements of a service, which are reads (ACCESS SHARE) and writes (ROW EXCLUSIVE).
BLOCKS = {
    "ROW SHARE": "blocks neither reads nor writes",
    "ROW EXCLUSIVE": "blocks neither reads nor writes, but other changes to the same rows",
    "SHARE UPDATE EXCLUSIVE": "blocks neither reads nor writes",
    "SHARE": "blocks writes",
    "SHARE ROW EXCLUSIVE": "blocks writes",
    "EXCLUSIVE": "blocks writes",
    "ACCESS EXCLUSIVE": "blocks reads and writes",
    "ACCESS SHARE": "blocks neither reads nor writes",
}

# The first that matches counts; what stands in parentheses is not there. An empty mode is the one in the statement.
# https://www.postgresql.org/docs/current/sql-altertable.html names the lock of each action.
LOCKS: list[tuple[re.Pattern[str], dict[str, str]]] = [
    (_pattern(text), modes)
    for text, modes in (
        (
            ALTER + r"(?:ADD (?:CONSTRAINT <_> )?FOREIGN KEY|(?:EN|DIS)ABLE (?:ALWAYS |REPLICA )?TRIGGER)[^,]*$",
            {"table": "SHARE ROW EXCLUSIVE"},
        ),
        (
            ALTER + r"(?:VALIDATE CONSTRAINT|ALTER (?:COLUMN )?<_> (?:SET STATISTICS|(?:RE)?SET ?$)|(?:RE)?SET ?$"
            r"|CLUSTER ON|SET WITHOUT CLUSTER)[^,]*$",
            {"table": "SHARE UPDATE EXCLUSIVE"},
        ),
        (ALTER + "ATTACH PARTITION <part>", {"table": "SHARE UPDATE EXCLUSIVE", "part": "ACCESS EXCLUSIVE"}),
        (
            ALTER + "DETACH PARTITION <part> (?:CONCURRENTLY|FINALIZE)",
            {"table": "SHARE UPDATE EXCLUSIVE", "part": "ACCESS EXCLUSIVE"},
        ),
        (ALTER + "DETACH PARTITION <part>", {"table": "ACCESS EXCLUSIVE", "part": "ACCESS EXCLUSIVE"}),
        (ALTER, {"table": "ACCESS EXCLUSIVE"}),
        (CREATE_TABLE.pattern + " PARTITION OF <parent>", {"parent": "ACCESS EXCLUSIVE"}),
        (CREATE_TABLE.pattern + r" .*\bINHERITS ?\( ?<parents...>", {"parents": "SHARE UPDATE EXCLUSIVE"}),
        (r"CREATE (?:UNIQUE )?INDEX CONCURRENTLY .*?\bON (?:ONLY )?<table>", {"table": "SHARE UPDATE EXCLUSIVE"}),
        (r"CREATE (?:UNIQUE )?INDEX .*?\bON (?:ONLY )?<table>", {"table": "SHARE"}),
        ("DROP INDEX CONCURRENTLY (?:IF EXISTS )?<tables...>", {"tables": "SHARE UPDATE EXCLUSIVE"}),
        ("ALTER INDEX (?:IF EXISTS )?<table> RENAME", {"table": "SHARE UPDATE EXCLUSIVE"}),
        (
            "DROP (?:TABLE|INDEX|VIEW|MATERIALIZED VIEW) (?:IF EXISTS )?<tables...>",
            {"tables": "ACCESS EXCLUSIVE"},
        ),
        (r"ALTER (?:MATERIALIZED )?VIEW (?:IF EXISTS )?<table>", {"table": "ACCESS EXCLUSIVE"}),
        ("TRUNCATE (?:TABLE )?<tables...>", {"tables": "ACCESS EXCLUSIVE"}),
        ("LOCK (?:TABLE )?<tables...> IN (?P<mode>.*) MODE", {"tables": ""}),
        ("LOCK (?:TABLE )?<tables...>", {"tables": "ACCESS EXCLUSIVE"}),
        (r"CREATE (?:OR REPLACE )?(?:CONSTRAINT )?TRIGGER .*?\bON <table>", {"table": "SHARE ROW EXCLUSIVE"}),
        (
            r"(?:DROP TRIGGER|DROP RULE|(?:CREATE|ALTER|DROP) POLICY) .*?\bON <table>",
            {"table": "ACCESS EXCLUSIVE"},
        ),
        ("REFRESH MATERIALIZED VIEW CONCURRENTLY <table>", {"table": "EXCLUSIVE"}),
        ("REFRESH MATERIALIZED VIEW <table>", {"table": "ACCESS EXCLUSIVE"}),
        ("REINDEX (?:TABLE|INDEX) CONCURRENTLY <table>", {"table": "SHARE UPDATE EXCLUSIVE"}),
        ("REINDEX TABLE <table>", {"table": "SHARE"}),
        ("REINDEX INDEX <table>", {"table": "ACCESS EXCLUSIVE"}),
        (r"VACUUM (?:FULL|\([^)]*\bFULL\b[^)]*\)) ?(?:ANALYZE )?<table>", {"table": "ACCESS EXCLUSIVE"}),
        (r"(?:VACUUM|ANALYZE) (?:\([^)]*\) ?)?(?:ANALYZE )?<table>", {"table": "SHARE UPDATE EXCLUSIVE"}),
        ("CLUSTER <table>", {"table": "ACCESS EXCLUSIVE"}),
        ("COMMENT ON TABLE <table>", {"table": "SHARE UPDATE EXCLUSIVE"}),
        (rf"COMMENT ON COLUMN <table>\.{WORD} IS", {"table": "SHARE UPDATE EXCLUSIVE"}),
    )
]


@dataclass(frozen=True)
class Advice:
    """How a rule speaks of a statement that it is about; both texts are format strings over the pattern's groups."""

    pattern: re.Pattern[str]
    danger: str
    instead: str


def _advice(pattern: str, danger: str, instead: str) -> Advice:
    return Advice(_pattern(pattern), danger, textwrap.dedent(instead).strip())


AUTOCOMMIT = """\
# In a revision of its own: the block commits what comes before it.
with op.get_context().autocommit_block():
    """
VALIDATE = """
# next revision
op.execute("ALTER TABLE {table.sql} VALIDATE CONSTRAINT {constraint.sql}")"""
FILL = """
# next revision, once the running release writes {new}; a statement for each 10,000 rows
with op.get_context().autocommit_block():
    op.execute(\"\"\"DO $$ BEGIN LOOP
        UPDATE {table.sql} SET {new.sql} = {value.sql} WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM {table.sql} WHERE {new.sql} IS NULL AND {value.sql} IS NOT NULL LIMIT 10000));
        EXIT WHEN NOT FOUND;
        COMMIT;
    END LOOP; END $$\"\"\")"""
LATER = "Ship it once no running release uses what"
CONTRACT = """\
phase = "contract"  # applied when no task of an older release is left

def upgrade() -> None:
    """
OWN = "# in a revision of its own, once "
ANY_STATEMENT = OWN + "no newer release needs it\n" + CONTRACT + 'op.execute("{statement.sql}")'
GIVE_OPTION = "\n# Give check the option --contract-follows, too."
BRIDGED = f"""
# In a revision of renames alone both names work until no older task is left, if a contract step follows:
# migration.contract_after(service) in the stack; by hand, `upgrade --contract-follows`, and `contract` in the end.\
{GIVE_OPTION}"""
COLUMNS = rf"\((?P<columns>{WORD}(?:, ?{WORD})*)\)"

# The rules that are on: what holds up or breaks a service that is running. The first advice that fits a statement
# speaks; where none does, squawk's own words do.
RULES: dict[str, tuple[Advice, ...]] = {
    "require-concurrent-index-creation": (
        _advice(
            rf"CREATE INDEX <index> ON <table> {COLUMNS}$",
            "Building the index {index} blocks every write to {table} until it is done.",
            AUTOCOMMIT + "op.create_index({index!r}, {table!r}, [{columns.columns}]{table.schema},"
            " postgresql_concurrently=True)",
        ),
        _advice(
            r"(?P<create>CREATE (?:UNIQUE )?INDEX) (?P<rest>(?:IF NOT EXISTS )?<index> ON (?:ONLY )?<table>.*)",
            "Building the index {index} blocks every write to {table} until it is done.",
            AUTOCOMMIT + 'op.execute("{create} CONCURRENTLY {rest.sql}")',
        ),
    ),
    "require-concurrent-index-deletion": (
        _advice(
            "DROP INDEX (?:IF EXISTS )?<index>$",
            "Dropping the index {index} waits for every query on its table, and blocks all later ones meanwhile.",
            AUTOCOMMIT + 'op.execute("DROP INDEX CONCURRENTLY {index.sql}")',
        ),
    ),
    "ban-concurrent-index-creation-in-transaction": (
        _advice(
            "CREATE (?:UNIQUE )?INDEX CONCURRENTLY (?:IF NOT EXISTS )?<index> ON",
            "PostgreSQL refuses to build {index} concurrently in the transaction of the migration.",
            AUTOCOMMIT + 'op.execute("{statement.sql}")',
        ),
    ),
    "require-concurrent-reindex": (
        _advice(
            r"REINDEX (?P<kind>TABLE|INDEX) (?P<name>.*)",
            "Rebuilding the indexes of {name} blocks writes, and reads that use them, until it is done.",
            AUTOCOMMIT + 'op.execute("REINDEX {kind} CONCURRENTLY {name.sql}")',
        ),
    ),
    "require-concurrent-partition-detach": (
        _advice(
            "ALTER TABLE <table> DETACH PARTITION <part>$",
            "Detaching {part} waits for every query on {table}, and blocks all later ones meanwhile.",
            AUTOCOMMIT + 'op.execute("{statement.sql} CONCURRENTLY")',
        ),
    ),
    "adding-foreign-key-constraint": (
        _advice(
            rf"ALTER TABLE <table> ADD CONSTRAINT <constraint> FOREIGN KEY ?{COLUMNS} REFERENCES (?P<other>{WORD}) ?"
            rf"\((?P<others>{WORD}(?:, ?{WORD})*)\)$",
            "Adding the foreign key {constraint} blocks writes to {table} and {other} until every row is checked.",
            "op.create_foreign_key({constraint!r}, {table!r}, {other!r}, [{columns.columns}], [{others.columns}]"
            ", postgresql_not_valid=True)" + VALIDATE,
        ),
        _advice(
            "ALTER TABLE (?:ONLY )?<table> ADD CONSTRAINT <constraint> FOREIGN KEY.* REFERENCES <other>",
            "Adding the foreign key {constraint} blocks writes to {table} and {other} until every row is checked.",
            'op.execute("{statement.sql} NOT VALID")' + VALIDATE,
        ),
    ),
    "constraint-missing-not-valid": (
        _advice(
            r"ALTER TABLE <table> ADD CONSTRAINT <constraint> CHECK ?\((?P<condition>.*)\)$",
            "Adding the check {constraint} blocks reads and writes of {table} until every row is checked.",
            "op.create_check_constraint({constraint!r}, {table!r}, {condition.text}{table.schema}"
            ", postgresql_not_valid=True)" + VALIDATE,
        ),
        _advice(
            "ALTER TABLE <table> VALIDATE CONSTRAINT <constraint>",
            "The lock that has added {constraint} is held until every row of {table} is checked, for both happen"
            " in one transaction.",
            VALIDATE,
        ),
        _advice(
            "ALTER TABLE <table> ADD CONSTRAINT <constraint> EXCLUDE",
            "Adding {constraint} blocks reads and writes of {table} until its index is built.",
            "PostgreSQL knows no other way: do it while the table is small, or fill a new table that has it, and mark"
            " the line.",
        ),
    ),
    "disallowed-unique-constraint": (
        _advice(
            rf"ALTER TABLE <table> ADD CONSTRAINT <constraint> UNIQUE {COLUMNS}$",
            "Adding {constraint} blocks reads and writes of {table} until its index is built.",
            AUTOCOMMIT + "op.create_index({constraint!r}, {table!r}, [{columns.columns}]{table.schema}, unique=True"
            ', postgresql_concurrently=True)\n# next revision\nop.execute("ALTER TABLE {table.sql} ADD CONSTRAINT'
            ' {constraint.sql} UNIQUE USING INDEX {constraint.sql}")',
        ),
    ),
    "adding-serial-primary-key-field": (
        _advice(
            rf"ALTER TABLE <table> ADD CONSTRAINT <constraint> PRIMARY KEY {COLUMNS}$",
            "Adding {constraint} blocks reads and writes of {table} until its index is built.",
            AUTOCOMMIT + "op.create_index({constraint!r}, {table!r}, [{columns.columns}]{table.schema}, unique=True"
            ", postgresql_concurrently=True)\n# next revision; columns that may be null are read once more: see"
            ' adding-not-nullable-field\nop.execute("ALTER TABLE {table.sql} ADD CONSTRAINT'
            ' {constraint.sql} PRIMARY KEY USING INDEX {constraint.sql}")',
        ),
    ),
    "adding-not-nullable-field": (
        _advice(
            "ALTER TABLE <table> ALTER COLUMN <column> SET NOT NULL$",
            "Making {column} NOT NULL blocks reads and writes of {table} until every row is checked.",
            'op.create_check_constraint({column.not_null!r}, {table!r}, "{column.sql} IS NOT NULL"{table.schema}'
            ", postgresql_not_valid=True)\n"
            '# next revision\nop.execute("ALTER TABLE {table.sql} VALIDATE CONSTRAINT {column.not_null.sql}")\n'
            "# next revision; the check spares PostgreSQL the look at every row\n"
            "# safe: adding-not-nullable-field - the check is valid already\n"
            "op.alter_column({table!r}, {column!r}, nullable=False{table.schema})\n"
            "op.drop_constraint({column.not_null!r}, {table!r}{table.schema})",
        ),
    ),
    "adding-required-field": (
        _advice(
            "ALTER TABLE <table> ADD COLUMN <column> (?P<type>.+) NOT NULL$",
            "{column} has no default, so this fails when {table} has a row, and afterwards the inserts of the running"
            " release fail.",
            'op.execute("ALTER TABLE {table.sql} ADD COLUMN {column.sql} {type.sql}")\n'
            "# once the running release writes {column} and no row lacks it: see adding-not-nullable-field",
        ),
    ),
    "adding-field-with-default": (
        _advice(
            r"ALTER TABLE <table> ADD COLUMN <new> (?P<type>[^,]+?) DEFAULT (?P<value>[^,]+?)(?: NOT NULL)?$",
            "Every row gets a {new} of its own, so {table} is rewritten while reads and writes wait.",
            'op.execute("ALTER TABLE {table.sql} ADD COLUMN {new.sql} {type.sql}")\n'
            'op.execute("ALTER TABLE {table.sql} ALTER COLUMN {new.sql} SET DEFAULT {value.sql}")' + FILL,
        ),
        _advice(
            r"ALTER TABLE <table> ADD COLUMN <new> (?P<type>[^,]+)",
            "Every row gets a {new} of its own, so {table} is rewritten while reads and writes wait.",
            "Add {new} without it, let the running release or a trigger write it, then fill the rows that lack it.",
        ),
    ),
    "changing-column-type": (
        _advice(
            r"ALTER TABLE <table> ALTER COLUMN <value> TYPE (?P<type>.+?)(?: USING .*)?$",
            "Changing {value} to {type} rewrites {table} while reads and writes wait, and breaks queries of a running"
            " release that count on the old type.",
            'op.execute("ALTER TABLE {table.sql} ADD COLUMN {value.successor.sql} {type.sql}")\n'
            "# fill {value.successor} in batches while the release writes both; the next one reads it, and has no"
            " {value} any more\n"
            "# next revision\n" + CONTRACT + "op.drop_column({table!r}, {value!r}{table.schema})\n"
            "# a varchar that gets longer, or becomes text, rewrites nothing: mark it",
        ),
    ),
    "renaming-column": (
        _advice(
            "ALTER TABLE (?:IF EXISTS )?(?:ONLY )?<table> RENAME (?:COLUMN )?<column> TO <new>$",
            "Each query of the running release that names {table}.{column} fails from this rename until the last old"
            " task is gone.",
            "op.alter_column({table!r}, {column!r}, new_column_name={new!r}{table.schema})" + BRIDGED,
        ),
    ),
    "renaming-table": (
        _advice(
            "ALTER TABLE (?:IF EXISTS )?<table> RENAME TO <new>$",
            "Each query of the running release on {table} fails from this rename until the last old task is gone.",
            "op.rename_table({table!r}, {new!r}{table.schema})" + BRIDGED,
        ),
    ),
    "ban-drop-column": (
        _advice(
            "ALTER TABLE <table> DROP COLUMN <column>$",
            "Each query of the running release that names {table}.{column} fails, and its data is gone.",
            OWN
            + "{column} is out of the models: SQLAlchemy names every mapped column\n"
            + CONTRACT
            + "op.drop_column({table!r}, {column!r}{table.schema})",
        ),
        _advice(
            "ALTER TABLE (?:IF EXISTS )?(?:ONLY )?<table> DROP COLUMN (?:IF EXISTS )?<column>",
            "Each query of the running release that names {table}.{column} fails, and its data is gone.",
            ANY_STATEMENT,
        ),
    ),
    "ban-drop-table": (
        _advice(
            "DROP TABLE <table>$",
            "Each query of the running release on {table} fails, and its data is gone.",
            OWN + "{table} is out of the models\n" + CONTRACT + "op.drop_table({table!r}{table.schema})",
        ),
        _advice(
            "DROP TABLE (?:IF EXISTS )?<tables...>",
            "Each query of the running release on {tables} fails, and its data is gone.",
            ANY_STATEMENT,
        ),
    ),
    "ban-drop-default": (
        _advice(
            "ALTER TABLE <table> ALTER COLUMN <column> DROP DEFAULT$",
            "Inserts of the running release that leave {column} of {table} out get NULL, or fail where it is NOT NULL.",
            OWN
            + "every insert names {column}\n"
            + CONTRACT
            + "op.alter_column({table!r}, {column!r}, server_default=None{table.schema})",
        ),
    ),
    "ban-drop-view": (),
    "ban-drop-function": (),
    "ban-drop-type": (),
    "ban-drop-sequence": (),
    "ban-drop-domain": (),
    "ban-drop-schema": (),
    "ban-drop-database": (),
    "ban-drop-extension": (),
    "ban-drop-generated-expression": (),
    "ban-set-schema": (),
    "ban-revoke": (),
    "ban-truncate-cascade": (),
    "ban-alter-domain-with-add-constraint": (),
    "renaming-object": (),
}
# What is said better by another rule about the same statement.
ITS_BETTERS = ("adding-foreign-key-constraint", "disallowed-unique-constraint", "adding-serial-primary-key-field")
RENAMING = ("renaming-column", "renaming-table")
# What harms nobody once no task of an older release is left, that is, in a contract revision.
OF_OLDER_RELEASES = (
    "ban-drop-column",
    "ban-drop-table",
    "ban-drop-default",
    "ban-drop-view",
    "ban-drop-function",
    "ban-drop-type",
    "ban-drop-sequence",
    "ban-drop-domain",
    "ban-drop-schema",
    "ban-drop-extension",
    "ban-drop-generated-expression",
)
# Findings that no mark can settle.
OURS = ("missing-direction", "mark-without-reason", "unused-mark")
