"""Frozen feature stores hold the tokens that they held."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from dinoneck import FeatureStore
from dinoneck.data import View
from tests import kit
from tests.frozen import stores
from tests.frozen.comparison import assert_same_numbers, differences
from tests.frozen.folder import FrozenFile, frozen_files, plain

STORES = frozen_files(stores.FOLDER)
ADD_IT = "add a row to tests/frozen/stores.py, then: python -m tests.frozen"
each_store = pytest.mark.parametrize("file", STORES, ids=str)


@pytest.fixture
def store(file: FrozenFile, tmp_path: Path) -> FeatureStore:
    """A copy of a frozen store: opening it may write its index."""
    return FeatureStore.open(shutil.copytree(file.path, tmp_path / "store"))


@each_store
def test_a_store_holds_the_recorded_tokens(file: FrozenFile, store: FeatureStore) -> None:
    assert_same_numbers(stores.read_tokens(store), file.numbers(), rtol=0, atol=0)


@each_store
def test_a_store_says_what_it_said(file: FrozenFile, store: FeatureStore) -> None:
    assert differences(file.facts, plain(stores.describe(store))) == []


@each_store
def test_every_byte_of_a_store_is_verified(file: FrozenFile, store: FeatureStore) -> None:
    assert store.verify() == []
    assert kit.cli("verify", store.path).code == 0


@each_store
def test_a_store_without_its_index_holds_the_same(file: FrozenFile, tmp_path: Path) -> None:
    copy = shutil.copytree(file.path, tmp_path / "store")
    (copy / stores.INDEX).unlink(missing_ok=True)
    tokens = stores.read_tokens(FeatureStore.open(copy))
    assert_same_numbers(tokens, file.numbers(), rtol=0, atol=0)


def test_every_dtype_has_a_frozen_store() -> None:
    frozen = {file.facts["dtype"] for file in STORES}
    known = get_args(get_type_hints(FeatureStore.create)["dtype"])
    assert sorted({*known} - frozen) == [], ADD_IT


def test_every_change_of_a_view_is_in_a_frozen_store() -> None:
    frozen = {change for file in STORES for view in file.facts["views"] for change in view}
    assert sorted({*View.__struct_fields__} - frozen) == [], ADD_IT
