"""The direction of imports: app -> stacks -> constructs_lib, and every program apart from the others."""

from __future__ import annotations

import ast
import sys

import pytest

from local_aws.machine import CLONE

OURS = {
    "app",
    "benchmarks",
    "constructs_lib",
    "examples",
    "inventory_service",
    "local_aws",
    "migration_runner",
    "migrations",
    "scan",
    "stacks",
}
CDK = {"aws_cdk", "constructs", "jsii"}
HANDLER = {
    "index",
    "aws",
    "contract",
    "decision",
    "ecs_task",
    "outcome",
    "cfn_response",
    "notice",
    "record",
    "request",
    "rollback",
    "services",
    "watch",
}


def imports(path: str) -> set[str]:
    """Every module that the files below ``path`` import, complete with its package."""
    found: set[str] = set()
    for module in [CLONE / path] if path.endswith(".py") else (CLONE / path).rglob("*.py"):
        if "node_modules" in module.parts or ("trigger_handler" in module.parts and "trigger_handler" not in path):
            continue
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{module}: a relative import"
                found.add(node.module or "")
    return found


def packages(path: str) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)} - sys.stdlib_module_names


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("app.py", CDK | {"stacks"}),
        ("stacks", CDK | {"stacks", "constructs_lib"}),
        ("constructs_lib", CDK | {"constructs_lib", "migration_runner"}),
        ("constructs_lib/trigger_handler", HANDLER | {"boto3", "botocore"}),
        ("examples", CDK | {"constructs_lib"}),
        ("migration_runner", {"migration_runner", "alembic", "sqlalchemy", "psycopg2"}),
        (
            "inventory_service",
            {"inventory_service", "alembic", "sqlalchemy", "psycopg2", "fastapi", "pydantic", "starlette", "uvicorn"}
            | {"botocore"},
        ),
        ("benchmarks", {"benchmarks", "local_aws", "psycopg", "psycopg2"}),
        ("docs", {"griffe", "migration_runner"}),
        ("noxfile.py", {"nox", "packaging"}),
        ("scan", CDK | {"app", "cdk_nag", "scan", "stacks"}),
        ("local_aws", {"local_aws", "boto3", "botocore", "ministack", "psutil", "psycopg2", "trustme"}),
    ],
)
def test_a_program_imports_only_what_its_place_allows(path: str, allowed: set[str]) -> None:
    assert packages(path) <= allowed


def test_the_construct_reads_revisions_as_the_runner_does_and_needs_nothing_else_of_it() -> None:
    ours = {name for name in imports("constructs_lib") if name.startswith("migration_runner")}
    assert ours <= {"migration_runner.revisions"}
    for module in ("revisions", "manifest"):
        assert packages(f"migration_runner/{module}.py") <= {"migration_runner"}
