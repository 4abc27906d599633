"""One store and one client for the tests of this room; what they are made of is in `test_app`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from chiasm.search import Store
from chiasm.serve.app import create_app
from chiasm.serve.test_app import Client, make_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    folder = tmp_path_factory.mktemp("serve")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHIASM_CACHE", str(folder / "cache"))
        with make_store(folder) as store:
            yield store


@pytest.fixture(scope="module")
def client(store: Store) -> Client:
    return Client(create_app(store))
