"""The documents: what can run of their commands and code is run, what they link to is there, their tables are true."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psycopg2
import pytest

from local_aws import release
from local_aws.machine import CLONE
from local_aws.postgres import HOST
from tests.conftest import Database

QUICK_START, LONG_VERSION = "MIGRATION_QUICK_START.md", "docs/DATABASE_MIGRATIONS.md"
DOCUMENTS = ["README.md", QUICK_START, "examples/README.md", *(f"docs/{one.name}" for one in CLONE.glob("docs/*.md"))]
RUNNABLE = ("alembic ", "python -m migration_runner ", "ruff format migrations/")
SCRIPT = re.compile(r"(?:[A-Z_]+=\S+ )*\./run_migration_ecs\.sh ")
# They need AWS, or make the environment in which everything here already runs.
ELSEWHERE = (
    ". .venv/bin/activate",
    "export DATABASE_URL=",
    "cdk bootstrap",
    "cdk deploy DevStack",
    'cdk synth --app "python -m examples.',
    "pip install ",
)
CREATED, RENAMED = "48871d03964b", "49871d03964c"
ROWS = 25_000


def text_of(document: str) -> str:
    return (CLONE / document).read_text()


def blocks(document: str, language: str) -> list[str]:
    """The code in the document's blocks; one that belongs to a list is indented."""
    found = re.findall(rf"^( *)```(?:{language})\n(.*?)^ *```$", text_of(document), re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(code) for _, code in found]


def commands(document: str) -> list[str]:
    """Every command in the document's shell blocks, without prompts and comments."""
    lines = [line for block in blocks(document, "bash|console") for line in block.splitlines()]
    lines = [re.sub(r"\s+#.*", "", line.removeprefix("$ ")) for line in lines]
    return [line for line in lines if line]


def revisions(document: str) -> list[str]:
    """The document's blocks that are revisions, but for their first lines."""
    return [code for code in blocks(document, "python") if re.search(r"^def upgrade\(\)", code, re.MULTILINE)]


def in_environment(**variables: str) -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **variables}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_make_target_in_a_document_is_in_the_makefile(document: str) -> None:
    menu = subprocess.run(["make", "help"], cwd=CLONE, capture_output=True, text=True, check=True).stdout
    targets = set(re.findall(r"^  make ([a-z-]+)", menu, re.MULTILINE))
    asked = set(re.findall(r"(?:^|[`$] ?)make ([a-z-]+)", text_of(document), re.MULTILINE))
    assert asked <= targets


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_in_a_document_is_of_a_known_kind(document: str) -> None:
    known = (*RUNNABLE, *ELSEWHERE, "make ", "aws ")
    assert [line for line in commands(document) if not line.startswith(known) and not SCRIPT.match(line)] == []


@pytest.mark.parametrize("document", [QUICK_START, LONG_VERSION])
def test_the_commands_for_a_developer_run_in_the_order_in_which_they_stand(
    document: str, tmp_path: Path, database: Database
) -> None:
    app = tmp_path / "app"
    release.copy(app)
    environment = in_environment(DATABASE_URL=database.url)
    subprocess.run(["alembic", "upgrade", "head"], cwd=app, env=environment, check=True, capture_output=True)
    run = [line for line in commands(document) if line.startswith(RUNNABLE)]
    assert len(run) >= 4
    for line in run:
        done = subprocess.run(line, cwd=app, env=environment, shell=True, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


def test_the_script_takes_every_command_that_a_document_gives_it(tmp_path: Path) -> None:
    # Without an aws command it ends just after it has understood its arguments.
    for tool in ("bash", "sed", "cat"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or f"/bin/{tool}")
    lines = [line for document in DOCUMENTS for line in commands(document) if SCRIPT.match(line)]
    assert len(lines) >= 4
    ended = {
        line: subprocess.run(line, cwd=CLONE, env={"PATH": str(tmp_path)}, shell=True, capture_output=True, check=False)
        for line in lines
    }
    assert [line for line, one in ended.items() if one.returncode != (0 if line.endswith("--help") else 69)] == []


def test_the_aws_cli_takes_every_command_that_a_document_gives_it(tmp_path: Path) -> None:
    # It understands a command before it finds that nobody listens.
    nowhere = {"AWS_ENDPOINT_URL": f"http://{HOST}:1", "AWS_MAX_ATTEMPTS": "1", "AWS_DEFAULT_REGION": "us-west-2"}
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}
    lines = {line for document in DOCUMENTS for line in commands(document) if line.startswith("aws ")}
    assert lines
    for line in sorted(lines):
        (tmp_path / "newer.json").write_text('{"family": "f", "containerDefinitions": []}')
        environment = in_environment(**nowhere, **keys)
        done = subprocess.run(
            line, cwd=tmp_path, env=environment, shell=True, capture_output=True, text=True, check=False
        )
        assert "Could not connect to the endpoint URL" in done.stderr, f"{line}\n{done.stderr}"


def anchors(document: str) -> set[str]:
    """As GitHub makes them of the headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"(?ms)^ *```.*?^ *```$", "", text_of(document)), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", [*DOCUMENTS, "CHANGELOG.md"])
def test_every_link_within_the_repository_leads_somewhere(document: str) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(document)):
        if re.match("[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        where = (CLONE / document).parent / file if file else CLONE / document
        if not where.exists() or (anchor and anchor not in anchors(str(where.resolve().relative_to(CLONE)))):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_block_of_python_is_python(document: str) -> None:
    for code in blocks(document, "python"):
        ast.parse(code)


@dataclass(frozen=True)
class Service:
    """This application in a folder of its own, with more revisions, and its database."""

    app: Path
    database: Database

    def add(self, codes: list[str], after: str) -> list[str]:
        """Write revisions, one after the other; their ids."""
        ids = [f"d0c{number:03}" for number, _ in enumerate(codes)]
        for own, parent, code in zip(ids, [after, *ids], codes, strict=False):
            first = f'"""{own}"""\nimport sqlalchemy as sa\nfrom alembic import op\n'
            ends = f'revision = "{own}"\ndown_revision = "{parent}"\n'
            (self.app / "migrations" / "versions" / f"{own}_step.py").write_text(f"{first}{ends}{code}")
        return ids

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "migration_runner", *arguments, "--output-format", "text"]
        environment = in_environment(DATABASE_URL=self.database.url)
        return subprocess.run(command, cwd=self.app, env=environment, capture_output=True, text=True, check=False)

    def migrate(self, *arguments: str) -> None:
        done = self.run(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr

    def value(self, query: str) -> object:
        return self.database.rows(query)[0][0]


@pytest.fixture
def service(tmp_path: Path, database: Database) -> Callable[[Callable[[Path], None]], Service]:
    def make(copy: Callable[[Path], None]) -> Service:
        copy(tmp_path / "app")
        return Service(tmp_path / "app", database)

    return make


def test_the_ways_of_a_safe_migration_go_up_down_and_up_again_with_data(
    service: Callable[[Callable[[Path], None]], Service],
) -> None:
    # given a table with data, and each block of the document as a revision of its own
    one = service(release.copy)
    one.migrate("upgrade")
    one.database.rows(f"INSERT INTO parent_items (sku) SELECT 'PUMP-' || n FROM generate_series(1, {ROWS}) AS n")
    one.database.rows("INSERT INTO child_items (parent_id, sku) SELECT id, 'SEAL' FROM parent_items")
    codes = revisions(LONG_VERSION)
    *ids, last = one.add(codes, RENAMED)
    assert len(ids) >= 10
    everything = "SELECT md5(string_agg(id || ' ' || sku, ',' ORDER BY id)) FROM parent_items"
    before = one.value(everything)

    # then nothing in them is unsafe but what is marked
    one.migrate("check", "--contract-follows", *(f"migrations/versions/{own}_step.py" for own in (*ids, last)))
    # and they go up, but for the last one, without a change to what was there
    one.migrate("upgrade", ids[-1], "--contract-follows")
    assert one.value(everything) == before
    assert one.value("SELECT bool_and(quantity = pieces) FROM child_items")
    assert one.value("SELECT count(*) FROM parent_items WHERE weight = length(sku) AND code = sku") == ROWS
    assert one.value("SELECT bool_and(convalidated) FROM pg_constraint WHERE conrelid = 'child_items__base'::regclass")
    assert one.value("SELECT indisvalid FROM pg_index WHERE indexrelid = 'ix_parent_items_status'::regclass")
    with pytest.raises(psycopg2.errors.NotNullViolation):
        one.database.rows("INSERT INTO parent_items (sku, weight) VALUES ('PUMP-0', NULL)")
    # both names are the same, whichever release writes
    one.database.rows("INSERT INTO parent_items (sku, weight) VALUES ('OLD', 1)")
    one.database.rows("INSERT INTO parent_items (code, weight) VALUES ('NEW', 1)")
    one.database.rows("UPDATE parent_items SET sku = 'OLD-2' WHERE code = 'OLD'")
    one.database.rows("UPDATE parent_items SET code = 'NEW-2' WHERE sku = 'NEW'")
    both = "SELECT string_agg(sku || ' ' || code, ',' ORDER BY id) FROM parent_items WHERE weight = 1"
    assert one.value(both) == "OLD-2 OLD-2,NEW-2 NEW-2"

    # when they are taken back, everything is as it was
    one.database.rows("DELETE FROM parent_items WHERE weight = 1")
    one.migrate("downgrade", RENAMED)
    assert one.value(everything) == before
    # and up again, to the end
    one.migrate("upgrade", "--contract-follows")
    one.migrate("contract")
    assert one.value("SELECT bool_and(pieces = 0) FROM child_items")
    assert one.value(everything.replace("sku", "code")) == before
    # where the way back is barred, with the words that stand in the file
    done = one.run("downgrade", "-1")
    assert done.returncode == 1
    assert "restore the backup" in done.stdout


def test_the_rename_of_the_quick_start_goes_up_down_and_up_again(
    service: Callable[[Callable[[Path], None]], Service],
) -> None:
    one = service(release.copy_before_the_rename)
    one.add(revisions(QUICK_START), CREATED)
    for arguments in (["upgrade"], ["downgrade", "-1"], ["upgrade"]):
        one.migrate(*arguments)
    assert one.value("SELECT count(sku) FROM parent_items") == 0


def test_the_stage_that_is_added_in_the_document_has_its_two_stacks(tmp_path: Path) -> None:
    [code] = [code for code in blocks(LONG_VERSION, "python") if "STAGES" in code]
    release.copy(tmp_path / "app")
    with (tmp_path / "app" / "stacks" / "stage.py").open("a") as stage:
        stage.write(code)
    program = (
        "import app, aws_cdk\n"
        "one = aws_cdk.App(context={'stage': 'qa'})\n"
        "app.add_stacks(one)\n"
        "print(*(child.node.id for child in one.node.children))\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, cwd=tmp_path / "app", env=in_environment(), capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["QaDataStack", "QaStack"], done.stderr


def test_the_table_of_the_stages_says_what_the_code_does() -> None:
    from stacks.stage import STAGES

    found = re.search(r"^## Environments\n.*?\n(\|.*?)\n\n", text_of(LONG_VERSION), re.MULTILINE | re.DOTALL)
    assert found
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in found[1].splitlines()]
    assert head[1:] == [stage.stack_prefix for stage in STAGES.values()]
    told = {row[0]: row[1:] for row in rows}
    left = {"DESTROY": "nothing is left", "RETAIN_ON_UPDATE_OR_DELETE": "a snapshot, the key and the logs"}
    assert told == {
        "names begin with": [f"`{one.environment}-`" for one in STAGES.values()],
        "availability zones": [str(one.availability_zones) for one in STAGES.values()],
        "database instance": [one.database_instance_type.to_string() for one in STAGES.values()],
        "standby in another zone": ["yes" if one.multi_az else "no" for one in STAGES.values()],
        "automatic backups, days": [f"{one.backup_retention.to_days():g}" for one in STAGES.values()],
        "logs are kept": [one.log_retention.name.lower().replace("_", " ") for one in STAGES.values()],
        "tasks of the service": [str(one.desired_count) for one in STAGES.values()],
        "`on_rollback`": [one.on_rollback.value for one in STAGES.values()],
        "protected against deletion": ["yes" if one.protected else "no" for one in STAGES.values()],
        "when it is destroyed": [left[one.removal_policy.name] for one in STAGES.values()],
    }


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_sequence_diagram_has_whole_blocks_and_statements(document: str) -> None:
    # Mermaid's own parser brings 200 MB of packages. These two are what it stumbles over in a sequence.
    for code in blocks(document, "mermaid"):
        first, *lines = [line.strip() for line in code.splitlines()]
        assert first == "sequenceDiagram"
        assert [line for line in lines if ";" in line] == []
        opened = [line for line in lines if re.match(r"(alt|opt|loop|par|critical|break|rect|box)\b", line)]
        assert len(opened) == lines.count("end")
        named = set(re.findall(r"^participant (\w+)", "\n".join(lines), re.MULTILINE))
        said = re.findall(r"^(\w+)-?->>?(\w+):|^Note over (\w+)(?:,(\w+))?:", "\n".join(lines), re.MULTILINE)
        assert {one for names in said for one in names if one} <= named
