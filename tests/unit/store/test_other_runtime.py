"""A store that another runtime continues: its first images are computed again and compared."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import pytest
import torch
from tests.unit.store.store_samples import make, write_images
from torch import Tensor

from dinoneck import Backbone, FeatureStore, StoreError, load_backbone
from dinoneck.kinds import Runtime
from dinoneck.store.encoding import StoreDtype, units_between
from dinoneck.store.extraction import COMPARED_IMAGES

DTYPES = get_args(StoreDtype)
NAMES = [f"{number:02}.png" for number in range(COMPARED_IMAGES + 3)]


class OtherTokens(Backbone):
    """A backbone whose tokens are larger by a share; it says that another runtime computes them."""

    share = 0.0
    computed = 0

    def _run(self, images: Tensor, *, is_frozen: bool) -> list[Tensor]:
        self.computed += len(images)
        sequence = super()._run(images, is_frozen=is_frozen)
        return [(1 + self.share) * tokens for tokens in sequence]

    def record(self) -> dict[str, object]:
        return {**super().record(), "runtime": self.runtime}


def other_tokens(share: float) -> OtherTokens:
    tiny = load_backbone("dinoneck_tiny")
    backbone = OtherTokens(tiny.adapter, name=tiny.name)
    backbone.runtime = "auto"  # computes in torch for images that nobody announced
    backbone.share = share
    return backbone


def begun(folder: Path, dtype: str, count: int) -> tuple[FeatureStore, list[Path]]:
    """A store of the first images, by torch, and all images."""
    paths = write_images(folder / "images", NAMES)
    store = make(folder / "store", load_backbone("dinoneck_tiny"), dtype=dtype)
    store.extract(paths[:count], folder / "images")
    return store, paths


@pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="the extra [fast] is not installed"
)
@pytest.mark.usefixtures("shared_programs")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("first", "second"),
    [("torch", "openvino"), ("openvino", "torch")],
    ids=["begun by torch", "begun by openvino"],
)
def test_openvino_continues_a_store_of_torch_and_torch_one_of_openvino(
    tmp_path: Path, dtype: str, first: Runtime, second: Runtime
) -> None:
    backbone = load_backbone("dinoneck_tiny")
    paths = write_images(tmp_path / "images", NAMES[:4])
    begun = make(tmp_path / "store", backbone.with_runtime(first), dtype=dtype)
    begun.extract(paths[:2], tmp_path / "images")

    store = make(tmp_path / "store", backbone.with_runtime(second), dtype=dtype)
    report = store.extract(paths, tmp_path / "images")

    assert report.written == ["02", "03"]
    assert store.backbone_record.get("runtime", "torch") == first
    assert store.verify() == []


@pytest.mark.parametrize(
    ("dtype", "share", "units"),
    [
        # a value of 1.0 to 2.0 times the unit's power of two moves by share x 1024 ... 2048 units
        ("fp16", 0.01, (10, 21)),
        ("bf16", 0.05, (6, 14)),
        # the prefix, in units of fp16; the largest of 127 steps moves by 1.27 of them
        ("int8", 0.01, (10, 21)),
    ],
)
def test_other_tokens_are_refused_with_the_number_of_units(
    tmp_path: Path, dtype: str, share: float, units: tuple[float, float]
) -> None:
    _, paths = begun(tmp_path, dtype, count=2)
    store = make(tmp_path / "store", other_tokens(share), dtype=dtype)
    expected = r"begun with the runtime 'torch', and 'auto' gives other tokens for '00'.*units"
    with pytest.raises(StoreError, match=expected) as refusal:
        store.extract(paths, tmp_path / "images")
    number = float(str(refusal.value).partition("differ by ")[2].split()[0])
    low, high = units
    assert low <= number <= high
    assert FeatureStore.open(tmp_path / "store").ids == ("00", "01")


def test_ten_images_are_computed_again_and_none_for_the_store_s_own_runtime(tmp_path: Path) -> None:
    _, paths = begun(tmp_path, "fp16", count=len(NAMES) - 1)
    backbone = other_tokens(share=0.0)
    make(tmp_path / "store", backbone).extract(paths, tmp_path / "images", batch_size=4)
    num_views = 4
    assert backbone.computed == (COMPARED_IMAGES + 1) * num_views
    again = other_tokens(share=0.0)
    again.runtime = "torch"
    make(tmp_path / "store", again).extract(paths, tmp_path / "images")
    assert again.computed == 0


@pytest.mark.parametrize("is_text", [True, False], ids=["damaged", "missing"])
def test_stored_images_that_cannot_be_read_any_more_are_not_compared(
    tmp_path: Path, is_text: bool
) -> None:
    _, paths = begun(tmp_path, "fp16", count=2)
    if is_text:
        changed = paths[0].stat().st_mtime_ns
        length = paths[0].stat().st_size
        paths[0].write_bytes(b"-" * length)
        os.utime(paths[0], ns=(changed, changed))
    else:
        paths[0].unlink()
    other = make(tmp_path / "store", other_tokens(0.01))
    same = make(tmp_path / "store", other_tokens(0.0))

    with pytest.raises(StoreError, match="gives other tokens for '01'"):
        other.extract(paths[:3], tmp_path / "images")
    report = same.extract(paths[:3], tmp_path / "images")

    assert report.written == ["02"]
    assert report.unusable == {}


def of_one_token(values: Sequence[float], dtype: torch.dtype) -> Tensor:
    return torch.tensor(values, dtype=dtype)[None, None]  # (B, N, C)


@pytest.mark.parametrize(
    ("values", "stored", "units"),
    [
        # between 4 and 8 the numbers of fp16 are 2 ** -8 apart, also for the small values of a token
        ((5.0, 0.0), (5.0, 2**-8), 1.0),
        ((5.0, 0.0), (5.0, 2**-9), 0.5),
        ((5.0, 1.0), (5.0 + 3 * 2**-8, 1.0), 3.0),
        ((0.0, 0.0), (0.0, 0.0), 0.0),
    ],
)
def test_a_unit_is_the_step_at_the_largest_value_of_a_token(
    values: Sequence[float], stored: Sequence[float], units: float
) -> None:
    encoded = {"tokens": of_one_token(values, torch.float16)[:, None]}
    columns = {"tokens": (of_one_token(stored, torch.float16),)}
    assert units_between(encoded, columns, "fp16") == units


def test_a_unit_of_int8_is_the_scale_of_its_token() -> None:
    scale = torch.tensor([[0.5]])  # (B, N)
    prefix = torch.ones(1, 1, 2)
    encoded = {
        "q": of_one_token([100, -3], torch.int8)[:, None],
        "scale": scale[:, None],
        "prefix": prefix[:, None],
    }
    columns = {
        "q": (of_one_token([98, -3], torch.int8),),
        "scale": (scale,),
        "prefix": (prefix,),
    }
    assert units_between(encoded, columns, "int8") == 2.0
    columns["prefix"] = (prefix * (1 + 3 * 2**-10),)  # three steps of fp16 from 1.0
    assert units_between(encoded, columns, "int8") == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("views", "counts"),
    [("none", {(32, 48): 2}), ("flips4", {(32, 48): 8}), ("d6", {(32, 48): 8, (48, 32): 4})],
)
def test_an_extraction_states_how_many_views_of_each_size_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, views: str, counts: dict[tuple[int, int], int]
) -> None:
    stated: list[dict[tuple[int, int], int]] = []
    monkeypatch.setattr(Backbone, "expect_images", lambda self, counts: stated.append(dict(counts)))
    paths = write_images(tmp_path / "images", NAMES[:2])
    store = make(tmp_path / "store", load_backbone("dinoneck_tiny"), views=views)
    store.extract(paths, tmp_path / "images")
    assert stated == [counts]
