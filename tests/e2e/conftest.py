from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.world import World


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("world"))
    made.aws.start()
    yield made
    made.aws.destroy()
