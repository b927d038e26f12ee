"""The tools: how each is installed and called, what its files look like, and what it writes into its version table."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

from benchmarks.history import ALEMBIC_SETTINGS, Revision, alembic_file
from local_aws.machine import CLONE

# Kept between runs, and ignored by git.
INSTALLED = CLONE / ".local" / "bench"
VENV = INSTALLED / "venv"
REQUIREMENTS = CLONE / "benchmarks" / "requirements.txt"
MACHINE = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
DBMATE_VERSION = "2.36.0"
DBMATE = INSTALLED / "npm" / "node_modules" / "@dbmate" / f"{sys.platform}-{MACHINE}" / "bin" / "dbmate"
SQL_MIGRATE = INSTALLED / "sql-migrate" / "usr" / "bin" / "sql-migrate"

COMPILE = ("-m", "compileall", "-q", ".")
BESIDE_PYTHON = Path(sys.executable).parent


class NotInstalledError(RuntimeError):
    """A peer could not be installed; the message says why."""


@dataclass(frozen=True, eq=False)
class Tool:
    """A tool, and how its projects look.

    Args:
        name: in the tables.
        install: installs it unless it is there, and returns what it is with its version; raises NotInstalledError.
        command: brings the database to the newest revision; the first part is a path.
        version: what the version table holds for a revision.
        file: path and content of a revision's file.
        newest: the query for the newest revision in the version table.
        record: the statement that makes a revision an applied one, with ``version`` and ``name`` as parameters.
        settings: the other files of a project.
        packages: folders that are copied into a project.
        build: what is run in a project after revisions were added.
        environment: variables that only this tool needs.
    """

    name: str
    install: Callable[[], str]
    command: tuple[str, ...]
    version: Callable[[Revision], str]
    file: Callable[[Revision], tuple[str, str]]
    newest: str
    record: str
    settings: Mapping[str, str] = field(default_factory=dict)
    packages: tuple[Path, ...] = ()
    build: tuple[tuple[str, ...], ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


def _from_npm() -> str:
    if not DBMATE.exists():
        npm = [str(BESIDE_PYTHON / "npm"), "install", f"--prefix={INSTALLED / 'npm'}", f"dbmate@{DBMATE_VERSION}"]
        _install([*npm, "--no-save", "--ignore-scripts", "--no-fund", "--no-audit"])
    if not DBMATE.exists():
        # npm ends well without it.
        raise NotInstalledError(f"npm has no {DBMATE.parts[-3]} of it")
    return f"dbmate {DBMATE_VERSION}"


def _from_debian() -> str:
    folder = INSTALLED / "sql-migrate"
    folder.mkdir(parents=True, exist_ok=True)
    if not SQL_MIGRATE.exists():
        _install(["apt-get", "download", "sql-migrate"], folder)
        _install(["dpkg", "-x", *(path.name for path in folder.glob("*.deb")), "."], folder)
    (package,) = folder.glob("*.deb")
    return f"sql-migrate {package.name.split('_')[1]}"


def _from_pypi(name: str) -> str:
    if not VENV.exists():
        _install([sys.executable, "-m", "venv", str(VENV)])
    pip = [str(VENV / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    _install([*pip, "--no-deps", "--requirement", str(REQUIREMENTS)])
    pinned = dict(line.split("==") for line in REQUIREMENTS.read_text().splitlines() if "==" in line)
    return f"{name} {pinned[name]}"


def _install(command: list[str], folder: Path = CLONE) -> None:
    program = Path(command[0]).name
    try:
        subprocess.run(command, cwd=folder, check=True, stdout=sys.stderr)
    except FileNotFoundError:
        raise NotInstalledError(f"there is no {program}") from None
    except subprocess.CalledProcessError as error:
        raise NotInstalledError(f"{program} ended with exit code {error.returncode}") from None


def _time(revision: Revision) -> str:
    return f"20251006{revision.number:06}"


def _django_name(number: int) -> str:
    return f"migration_{number:05}"


def _django_file(revision: Revision) -> tuple[str, str]:
    before = [("shop", _django_name(revision.number - 1))] if revision.number > 1 else []
    text = f"""\
from django.db import migrations


class Migration(migrations.Migration):
    dependencies = {before}
    operations = [migrations.RunSQL({revision.sql!r}, migrations.RunSQL.noop)]
"""
    return f"shop/migrations/{_django_name(revision.number)}.py", text


ALEMBIC_WITHOUT_BYTECODE = Tool(
    name="alembic, no .pyc",
    install=lambda: f"alembic {version('alembic')} (SQLAlchemy {version('sqlalchemy')})",
    command=(str(BESIDE_PYTHON / "alembic"), "upgrade", "head"),
    version=lambda revision: revision.id,
    file=alembic_file,
    newest="SELECT version_num FROM alembic_version",
    record="UPDATE alembic_version SET version_num = %(version)s",
    settings=ALEMBIC_SETTINGS,
)
ALEMBIC = replace(ALEMBIC_WITHOUT_BYTECODE, name="alembic", build=((sys.executable, *COMPILE),))
OURS = replace(
    ALEMBIC,
    name="migration_runner",
    install=lambda: f"psycopg2 {version('psycopg2-binary')}",
    command=(sys.executable, "-m", "migration_runner", "upgrade", "--config", "alembic.ini"),
    packages=(CLONE / "migration_runner",),
    # As the Dockerfile does.
    build=((sys.executable, "-m", "migration_runner.revisions", "alembic.ini"), (sys.executable, *COMPILE)),
)
FLOOR = Tool(
    name="bare psycopg2",
    install=lambda: f"psycopg2 {version('psycopg2-binary')}",
    command=(sys.executable, str(CLONE / "benchmarks" / "floor.py")),
    version=lambda revision: f"{revision.number:05}.sql",
    file=lambda revision: (f"revisions/{revision.number:05}.sql", revision.sql),
    newest="SELECT version FROM floor_version",
    record="UPDATE floor_version SET version = %(version)s",
)
PEERS = (
    Tool(
        name="dbmate",
        install=_from_npm,
        # The dump is another program's work.
        command=(str(DBMATE), "--no-dump-schema", "up"),
        version=_time,
        file=lambda one: (f"db/migrations/{_time(one)}_{one.slug}.sql", f"-- migrate:up\n{one.sql}-- migrate:down\n"),
        newest="SELECT max(version) FROM schema_migrations",
        record="INSERT INTO schema_migrations (version) VALUES (%(version)s)",
    ),
    Tool(
        name="sql-migrate",
        install=_from_debian,
        command=(str(SQL_MIGRATE), "up"),
        version=lambda revision: f"{_time(revision)}-{revision.slug}.sql",
        file=lambda one: (f"migrations/{_time(one)}-{one.slug}.sql", f"-- +migrate Up\n{one.sql}"),
        newest="SELECT max(id) FROM gorp_migrations",
        record="INSERT INTO gorp_migrations (id, applied_at) VALUES (%(version)s, now())",
        settings={
            "dbconfig.yml": json.dumps(
                {"development": {"dialect": "postgres", "datasource": "connect_timeout=10", "dir": "migrations"}}
            )
        },
    ),
    Tool(
        name="yandex-pgmigrate",
        install=lambda: _from_pypi("yandex-pgmigrate"),
        # By default it takes one transaction for all revisions.
        command=(str(VENV / "bin" / "pgmigrate"), "--conn=connect_timeout=10", "--ungroup", "-t", "latest", "migrate"),
        version=lambda revision: str(revision.number),
        file=lambda one: (f"migrations/V{one.number:05}__{one.slug}.sql", one.sql),
        newest="SELECT max(version)::text FROM schema_version",
        record="INSERT INTO schema_version (version, type, description, installed_by) "
        "VALUES (%(version)s, 'auto', %(name)s, current_user)",
    ),
    Tool(
        name="Django",
        install=lambda: _from_pypi("Django"),
        command=(str(VENV / "bin" / "python"), "-m", "django", "migrate"),
        version=lambda revision: _django_name(revision.number),
        file=_django_file,
        newest="SELECT max(name) FROM django_migrations",
        record="INSERT INTO django_migrations (app, name, applied) VALUES ('shop', %(version)s, now())",
        settings={
            "shop/__init__.py": "",
            "shop/migrations/__init__.py": "",
            "settings.py": """\
import os

DATABASES = {"default": {"ENGINE": "django.db.backends.postgresql", "NAME": os.environ["PGDATABASE"]}}
INSTALLED_APPS = ["shop"]
SECRET_KEY = "benchmark"
""",
        },
        build=((str(VENV / "bin" / "python"), *COMPILE),),
        environment={"DJANGO_SETTINGS_MODULE": "settings"},
    ),
)
