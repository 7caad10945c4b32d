"""Files that 0.3.0 wrote are read, and give what they gave then."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tests import kit
from tests.schema_1 import DTYPES, EXPECTED, FOLDER, built, lora, outputs

from dinoneck import FeatureStore, Predictor, load_head, registry
from dinoneck.checkpoint import HeadCheckpoint
from dinoneck.heads import Head

CASES = {case.name: case for case, _ in built()}
WITH_BACKBONE = FOLDER / "with_backbone.safetensors"


@pytest.mark.parametrize("name", CASES)
def test_a_head_of_schema_1_computes_what_it_computed(name: str) -> None:
    expected, head = load_file(EXPECTED), load_head(FOLDER / f"{name}.safetensors")
    found = outputs(head, [expected[f"{name}/tokens/{i}"] for i in range(CASES[name].layers)], CASES[name])
    kept = {own: x for own, x in expected.items() if own.startswith(f"{name}/") and "/tokens/" not in own}
    assert kit.same({f"{name}/{own}": x for own, x in sorted(found.items())}, dict(sorted(kept.items())), atol=1e-5)
    assert {f"{name}/{own}" for own in found} == {*kept}


def test_every_head_type_has_a_file_of_schema_1() -> None:
    there = {HeadCheckpoint.load(file).head_type for file in FOLDER.glob("*.safetensors") if file != EXPECTED}
    every = {name for name in registry.names() if issubclass(registry.resolve(name), Head)}
    assert every <= there


def test_a_file_with_its_backbone_and_lora_weights_predicts(tmp_path: Path) -> None:
    again = kit.saved_head(tmp_path / "head.safetensors", kit.randomised(kit.head()), backbone=lora())
    assert kit.same(Predictor(WITH_BACKBONE)(kit.images(1)), Predictor(again)(kit.images(1)), atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_store_of_schema_1_holds_what_it_held(dtype: str, tmp_path: Path) -> None:
    """A copy of it: an opening may write the index again."""
    store = FeatureStore.open(shutil.copytree(FOLDER / f"store_{dtype}", tmp_path / "store"))
    assert not store.verify()
    assert kit.same(store.batch(store.ids).sequence[0], load_file(EXPECTED)[f"store_{dtype}"])
