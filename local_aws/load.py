"""Clients of the inventory service that work on through deployments, and count what fails."""

from __future__ import annotations

import http.client
import itertools
import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from local_aws.machine import LocalAws
from local_aws.postgres import HOST

LOOK_SECONDS = 0.05
TIMEOUT_SECONDS = 10
# A task that is told to stop ends its requests first.
STOP_SECONDS = 5.0
PREFIX = "load-"


@dataclass
class Count:
    """What the clients of one release have seen.

    Args:
        requests: how many were answered, or failed.
        errors: how many of them failed.
        first_error: what the first of these was; empty when there is none.
        longest: the time of the slowest request, in seconds.
    """

    requests: int = 0
    errors: int = 0
    first_error: str = ""
    longest: float = 0.0


class FailedError(Exception):
    """A request has failed, and is counted."""


class StoppedError(Exception):
    """The client is to end."""


class Load:
    """A client for each task of the service, from when the task answers until it has been told to stop.

    Args:
        aws: where the service runs.

    Attributes:
        counts: by the name that a release gives the column: ``name`` or ``sku``.
    """

    def __init__(self, aws: LocalAws) -> None:
        self._aws = aws
        self._over = threading.Event()
        self.counts: dict[str, Count] = {}

    @contextmanager
    def working(self) -> Iterator[Load]:
        """Within, the clients work."""
        looking = threading.Thread(target=self._look, daemon=True)
        looking.start()
        try:
            yield self
        finally:
            self._over.set()
            looking.join()
            self._clean_up()

    def _look(self) -> None:
        clients: dict[int, threading.Thread] = {}
        while not self._over.wait(LOOK_SECONDS):
            for container in self._aws.containers("inventory-service"):
                if container["pid"] not in clients:
                    clients[container["pid"]] = threading.Thread(target=self._work, args=[container], daemon=True)
                    clients[container["pid"]].start()
        for client in clients.values():
            client.join()

    def _work(self, container: dict[str, Any]) -> None:
        name = self._name_of_column(container)
        if name is None:
            return
        count = self.counts.setdefault(name, Count())
        for number in itertools.count():
            label = f"{PREFIX}{secrets.token_hex(6)}-{number}"
            try:
                parent = self._counted(count, container, "POST", "/parents", {name: label})
                key = parent["id"]
                child = {name: label, "parent_id": key, "quantity": number}
                self._counted(count, container, "POST", "/children", child)
                self._counted(count, container, "GET", f"/children?parent_id={key}")
                self._counted(count, container, "PATCH", f"/parents/{key}", {name: f"{label}-changed"})
                self._counted(count, container, "GET", f"/parents/{key}")
                self._counted(count, container, "DELETE", f"/parents/{key}")
            except FailedError:
                # The item's life is over.
                continue
            except StoppedError:
                return

    def _counted(
        self, count: Count, container: dict[str, Any], method: str, path: str, body: dict[str, Any] | None = None
    ) -> Any:
        """The answer; raises FailedError for one that counts as an error, StoppedError when the client is to end."""
        if self._over.is_set():
            raise StoppedError
        began = time.monotonic()
        try:
            status, answer = _ask(container["port"], method, path, body)
        except (OSError, http.client.HTTPException) as error:
            # A load balancer sends nothing more to a task that is told to stop.
            if self._stops(container):
                raise StoppedError from None
            status, answer = 0, type(error).__name__
        count.requests += 1
        count.longest = max(count.longest, time.monotonic() - began)
        if not 200 <= status < 300:
            count.errors += 1
            count.first_error = count.first_error or f"{method} {path}: {status or ''} {answer}"
            raise FailedError
        return answer

    def _name_of_column(self, container: dict[str, Any]) -> str | None:
        """What the release calls the column, once its task listens; None when it is stopped before."""
        while not self._over.is_set():
            try:
                described = _ask(container["port"], "GET", "/openapi.json")[1]
            except (OSError, http.client.HTTPException):
                if not self._runs(container):
                    break
                time.sleep(LOOK_SECONDS)
            else:
                (name,) = described["components"]["schemas"]["NewParent"]["properties"]
                return str(name)
        return None

    def _stops(self, container: dict[str, Any]) -> bool:
        """Whether the task's process ends now."""
        deadline = time.monotonic() + STOP_SECONDS
        while self._runs(container) and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)
        return not self._runs(container)

    def _clean_up(self) -> None:
        """Remove the items whose client was ended in the middle of their life."""
        running = self._aws.containers("inventory-service")
        if running:
            port = running[-1]["port"]
            for parent in _ask(port, "GET", "/parents?limit=500")[1]:
                if parent.get("sku", parent.get("name")).startswith(PREFIX):
                    _ask(port, "DELETE", f"/parents/{parent['id']}")

    def _runs(self, container: dict[str, Any]) -> bool:
        return any(one["pid"] == container["pid"] for one in self._aws.containers("inventory-service"))


def _ask(port: int, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
    with closing(http.client.HTTPConnection(HOST, port, timeout=TIMEOUT_SECONDS)) as connection:
        content = None if body is None else json.dumps(body)
        connection.request(method, path, content, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
    return answer.status, json.loads(text) if text else None
