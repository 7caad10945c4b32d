"""Every combination of heads, views, tiles, preparations and images predicts what the slow reference predicts.

The slow tier prints how many cases of each sort it drew and the largest difference that it saw:
``pytest tests/unit/inference/test_against_reference.py -n 0 -m slow -s``.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from tests import kit
from tests.unit.inference import drawn_cases as drawn
from tests.unit.inference.drawn_cases import Case
from tests.unit.inference.reference import (
    Member,
    Setting,
    objects_slowly,
    pixels_slowly,
    predict_slowly,
)

from dinoneck import (
    Backbone,
    DenseHead,
    HeadEnsemble,
    LinearHead,
    MaskHead,
    PatchMeanHead,
    Predictor,
    Task,
)

BOUND = 1e-5  # of the largest number of an output: rounding of float32 in another order
BOUND_OF_STORE = 5e-3  # the same, where tokens were rounded to 16 bits
LEAST_VALUE = (
    0.1  # a smaller value counts as one: it is the mean of cells of about 1 that cancel out
)
SETTINGS: dict[str, Any] = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "phases": [Phase.generate],  # a drawn case is small: shrinking it takes longer than reading it
    "suppress_health_check": list(HealthCheck),
}


class Differences:
    """The largest difference of all comparisons, and how many cases of each sort there were."""

    def __init__(self) -> None:
        self.largest = dict.fromkeys((False, True), 0.0)
        self.sorts: Counter[str] = Counter()

    def count(self, case: Case) -> None:
        """Count a case by its sorts."""
        [first, *_] = case.heads
        self.sorts.update(
            [
                "cases",
                f"views={first.views}",
                f"maps={case.maps}",
                f"resize={first.resize}",
                "tiles" if case.tile else "no tiles",
                "files" if case.are_files else "modules",
                *(["keyed"] if case.is_keyed else []),
                *(["stored tokens"] if case.is_stored else []),
                *(["several backbones"] if case.are_files and len(case.heads) > 1 else []),
                *(["turned image"] if any(i.orientation > 1 for i in case.images) else []),
                *(["ensemble"] if any(m.members for h in case.heads for m in h.members) else []),
            ]
        )

    def compare(
        self, found: Any, expected: Any, *, is_stored: bool, where: str, least: float = 0.0
    ) -> None:
        """Compare two numbers or arrays, relative to the largest number that is expected.

        Args:
            found: of the predictor.
            expected: of the reference.
            is_stored: whether tokens were rounded.
            where: what it is, for the message.
            least: the smallest number that a difference is relative to.
        """
        found = np.asarray(found, np.float64)
        expected = np.asarray(expected, np.float64).reshape(found.shape)
        assert np.array_equal(np.isnan(found), np.isnan(expected)), f"{where}: other pixels are NaN"
        if np.isnan(expected).all():
            return
        scale = max(float(np.nanmax(np.abs(expected))), least)
        difference = float(np.nanmax(np.abs(found - expected)))
        if difference:
            difference = difference / scale if scale else math.inf
        self.largest[is_stored] = max(self.largest[is_stored], difference)
        bound = BOUND_OF_STORE if is_stored else BOUND
        assert difference <= bound, f"{where}: {found} differs from {expected} by {difference:.2g}"

    def __str__(self) -> str:
        sorts = ", ".join(f"{name}: {count}" for name, count in sorted(self.sorts.items()))
        return (
            f"{sorts}. Largest difference, relative to the largest number of an output: "
            f"{self.largest[False]:.2g} of images, {self.largest[True]:.2g} of stored tokens"
        )


def check(case: Case, folder: Path, differences: Differences) -> None:
    """Predict the images of a case, and each of them slowly."""
    predictor = drawn.predictor_of(case)

    rows = predicted(case, predictor, folder)

    differences.count(case)
    for image, row in zip(case.images, rows, strict=True):
        if case.is_keyed:
            assert [*row] == [*predictor.tasks]
        for number, heads in enumerate(case.heads):
            key = f"key {number}" if case.is_keyed else ""
            check_row(case, heads, image, row[key] if key else row, key, differences)


def predicted(case: Case, predictor: Predictor, folder: Path) -> list[dict[str, Any]]:
    """What the predictor predicts of the images, or of a store of them."""
    images = [drawn.given_image(image, folder) for image in case.images]
    maps: Any = case.maps
    if not case.is_stored:
        return predictor(images, maps=maps, probabilities=case.are_probabilities)
    with tempfile.TemporaryDirectory(dir=folder) as own:
        store = drawn.store_of(case, predictor, Path(own))
        return predictor.predict(store, [image.stem for image in images], maps=maps)


def check_row(
    case: Case,
    heads: drawn.DrawnHeads,
    image: drawn.DrawnImage,
    row: dict[str, Any],
    key: str,
    differences: Differences,
) -> None:
    """Compare what is predicted of one image by the heads of one key."""
    setting = drawn.setting_of(case, heads)
    ensemble = drawn.reference_of(heads)
    pixels = drawn.upright(image)
    expected = predict_slowly(ensemble, pixels, setting)
    maps = expected.pop("maps")
    if case.maps == "image":
        maps = pixels_slowly({"maps": maps}, ensemble, pixels, setting)
    found_maps = row.pop("maps", {})
    row.pop("maps:outputs", None)
    if case.maps is None:
        maps = {}
        expected.pop("gate", None)
    assert row.keys() == expected.keys()
    assert found_maps.keys() == maps.keys()
    for name in expected:
        differences.compare(
            row[name], expected[name], is_stored=case.is_stored, where=name, least=LEAST_VALUE
        )
    for name, cells in maps.items():
        compare_map(found_maps[name], cells, name, case, differences)


def compare_map(found: Any, cells: Any, name: str, case: Case, differences: Differences) -> None:
    """Compare a map; a class index where the reference has probabilities."""
    assert found.shape[-2:] == cells.shape[-2:]
    where = f"map of {name}"
    is_index = found.dtype == np.int64
    if is_index:
        assert np.array_equal(found == -1, np.isnan(cells[0]))
        chosen = np.take_along_axis(cells, np.maximum(found, 0)[None], axis=0)[0]
        differences.compare(chosen, cells.max(axis=0), is_stored=case.is_stored, where=where)
    else:
        assert found.dtype == np.float32
        differences.compare(found, cells, is_stored=case.is_stored, where=where)


@pytest.mark.slow
@pytest.mark.parametrize("name", drawn.CHOSEN)
def test_chosen_predictions_are_those_of_the_reference(name: str, tmp_path: Path) -> None:
    check(drawn.CHOSEN[name], tmp_path, Differences())


@pytest.mark.slow
@settings(**SETTINGS, max_examples=25)
@given(case=drawn.cases())
def test_predictions_are_those_of_the_reference(
    tmp_path_factory: pytest.TempPathFactory, case: Case
) -> None:
    check(case, tmp_path_factory.getbasetemp(), Differences())


@pytest.mark.slow
@pytest.mark.timeout(1800)  # two minutes on a core of its own
def test_500_predictions_are_those_of_the_reference(tmp_path: Path) -> None:
    differences = Differences()

    @settings(**SETTINGS, max_examples=500)
    @given(case=drawn.cases())
    def compare(case: Case) -> None:
        check(case, tmp_path, differences)

    compare()

    print(differences)
    assert differences.sorts["cases"] >= 500
    assert min(differences.sorts.values()) >= 20


# What one case each shows
# ------------------------


def segmenting(seed: int, num_queries: int = 4) -> MaskHead:
    """A head of masks with edges, for tokens of two layers."""
    task = Task("segments", dim=3, kind="segmentation")
    head = MaskHead(
        drawn.WIDTH, [task], num_layers=2, num_queries=num_queries, num_blocks=1, dim=16
    )
    kit.randomised(head, seed=seed)
    with torch.no_grad():
        head.masks[-1].weight.mul_(20.0)
    return head.eval()


def finding(kind: str) -> Any:
    """A head that finds objects in any image, for tokens of one layer."""
    labels = ("a", "b")
    if kind == "panoptic":
        task = Task("plant", dim=2, kind="panoptic", labels=labels, things=("a",))
    else:
        task = Task("plant", dim=2, kind="instances", labels=labels)
    torch.manual_seed(0)
    head = MaskHead(drawn.WIDTH, [task], num_layers=1, num_queries=3, num_blocks=1, dim=16)
    with torch.no_grad():
        head.classes.weight.mul_(400.0)  # sure of its classes
        head.queries.weight.mul_(40.0)
        head.masks[-1].weight.mul_(10.0)
    return head.eval()


def photo(height: int, width: int) -> Any:
    """A smooth random image (H, W, 3)."""
    return drawn.upright(drawn.DrawnImage((height, width), "array", orientation=1, seed=3))


PREPARED = [
    pytest.param({"size": (48, 64)}, id="stretch"),
    pytest.param({"size": (48, 64), "resize": "keep"}, id="keep"),
    pytest.param({"size": (48, 64), "resize": "pad"}, id="pad"),
    pytest.param({"size": (64, 48), "resize": "pad", "pad_to": "center"}, id="pad to the centre"),
    pytest.param({"size": (32, 48), "resize": "crop"}, id="crop to a size"),
    pytest.param({"resize": "pad", "pad_to": "center"}, id="pad the remainder"),
    pytest.param({"resize": "crop"}, id="crop the remainder"),
]


@pytest.mark.parametrize("kind", ["instances", "panoptic"])
@pytest.mark.parametrize("changes", PREPARED)
@pytest.mark.parametrize("min_score", [None, 0.4])
def test_objects_are_those_of_the_canvas_where_it_shows_the_image(
    kind: str, changes: dict[str, Any], min_score: float | None, tiny: Backbone
) -> None:
    head = finding(kind)
    recipe = tiny.preprocess.changed(**changes)
    image = photo(61, 83)
    predictor = Predictor({"plants": head, "other": kit.head()}, tiny, preprocess=recipe)

    [row] = predictor(image, min_score=min_score)

    setting = Setting(tiny, recipe)
    expected = objects_slowly(head, tiny.layers, image, setting, min_score)
    found = row["plants"]["plant"]
    if kind == "panoptic":
        assert len(expected[1]) > 0
        assert np.array_equal(found[0], expected[0])
        assert [segment["area"] for segment in found[1]] == [s["area"] for s in expected[1]]
        assert [segment["id"] for segment in found[1]] == [s["id"] for s in expected[1]]
    else:
        assert len(expected["scores"]) > 0
        for name in ("boxes", "labels", "masks"):
            assert np.array_equal(found[name], expected[name])
        assert found["scores"] == pytest.approx(expected["scores"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("changes", PREPARED)
@pytest.mark.parametrize("views", ["flip4", "d6"])
def test_masks_are_shares_of_pixels_in_every_view(
    changes: dict[str, Any], views: Any, tiny: Backbone
) -> None:
    backbone = tiny.with_layers((2, 5))
    recipe = backbone.preprocess.changed(**changes)
    image = photo(61, 83)
    heads = [segmenting(1), segmenting(2, num_queries=5)]
    ensemble = HeadEnsemble(heads, weights=(1.0, 3.0))

    [row] = Predictor(ensemble, backbone, views, preprocess=recipe)(
        image, maps="image", probabilities=True
    )

    setting = Setting(backbone, recipe, views)
    members = (Member(heads[0], (2, 5)), Member(heads[1], (2, 5), weight=3.0))
    expected = prediction_in_pixels(Member(members=members), image, setting)
    assert np.nanmax(np.abs(row["maps"]["segments"] - expected["segments"])) < 1e-5


def prediction_in_pixels(ensemble: Member, image: Any, setting: Setting) -> dict[str, Any]:
    """The maps of the reference in the pixels of the image."""
    return pixels_slowly(predict_slowly(ensemble, image, setting), ensemble, image, setting)


def test_masks_of_nested_ensembles_are_resampled_before_they_are_shares(tiny: Backbone) -> None:
    backbone = tiny.with_layers((2, 5))
    image = photo(48, 64)
    heads = [segmenting(1), segmenting(2), segmenting(3)]
    nested = HeadEnsemble([HeadEnsemble(heads[:2]), heads[2]])

    [row] = Predictor(nested, backbone)(image, maps="image", probabilities=True)

    first, second, third = (Member(head, (2, 5)) for head in heads)
    ensemble = Member(members=(Member(members=(first, second)), third))
    expected = prediction_in_pixels(ensemble, image, Setting(backbone, backbone.preprocess))
    assert np.abs(row["maps"]["segments"] - expected["segments"]).max() < 1e-5


@pytest.mark.parametrize("is_nested", [False, True])
def test_masks_are_resampled_before_they_are_shares_beside_a_head_without_maps(
    is_nested: bool, tiny: Backbone
) -> None:
    backbone = tiny.with_layers((2, 5))
    image = photo(48, 64)
    mask_heads = [segmenting(1), segmenting(2)]
    scalar_head = kit.head(Task("mass"))
    heads: list[Any] = [scalar_head, *mask_heads]
    if is_nested:
        heads = [HeadEnsemble([scalar_head, mask_heads[0]]), mask_heads[1]]

    [row] = Predictor(HeadEnsemble(heads), backbone)(image, maps="image", probabilities=True)

    members = tuple(Member(head, (2, 5)) for head in mask_heads)
    setting = Setting(backbone, backbone.preprocess)
    expected = prediction_in_pixels(Member(members=members), image, setting)
    assert np.abs(row["maps"]["segments"] - expected["segments"]).max() < 1e-5


def test_a_member_of_weight_0_does_not_decide_how_a_tiled_image_is_valued(tiny: Backbone) -> None:
    task = Task("height")
    counted = kit.randomised(PatchMeanHead(drawn.WIDTH, [task], hidden_dim=8), seed=1).eval()
    pooled = LinearHead(drawn.WIDTH, [task]).eval()
    image = photo(96, 96)
    options: dict[str, Any] = {"tile": 32, "overlap": 16}
    [alone] = Predictor(counted, tiny, **options)(image, maps="patch")

    ensemble = HeadEnsemble([counted, pooled], weights=(1.0, 0.0))
    [row] = Predictor(ensemble, tiny, **options)(image)

    assert row["height"] == pytest.approx(alone["maps"]["height"].mean(), rel=1e-5)
    assert row["height"] == alone["height"]


@pytest.mark.parametrize("tile", [None, 32])
def test_an_ensemble_in_an_ensemble_has_the_parts_that_it_has_alone(
    tile: int | None, tiny: Backbone
) -> None:
    composed = drawn.build_head("composed", 1)
    other_totals = drawn.build_head("gate", 2)  # in the mean of totals, and not in that of parts
    ensemble = HeadEnsemble([composed, other_totals])
    image = photo(64, 80)

    [alone] = Predictor(ensemble, tiny, "flip4", tile=tile)(image)
    [nested] = Predictor(HeadEnsemble([ensemble]), tiny, "flip4", tile=tile)(image)

    assert nested["plant"] == pytest.approx(alone["plant"], rel=1e-5)
    assert nested["fruit"] == pytest.approx(alone["fruit"], rel=1e-5)


@pytest.mark.parametrize("views", ["none", "flip4", "d6"])
@pytest.mark.parametrize("tile", [None, 32])
@pytest.mark.parametrize(
    ("pad_to", "rows", "cols"),
    [  # of cells of 4 px: 9 of 12 rows, 14 of 16 columns
        pytest.param("corner", slice(0, 9), slice(0, 14), id="corner"),
        pytest.param("center", slice(1, 11), slice(1, 15), id="center"),
    ],
)
def test_cells_finer_than_patches_that_show_padding_alone_are_left_out_of_the_mean(
    pad_to: Any, rows: slice, cols: slice, tile: int | None, views: Any, tiny: Backbone
) -> None:
    task = Task("cover", kind="dense")
    head = LinearHead(drawn.WIDTH, [task], pool=None, upsample=4)
    kit.randomised(head, seed=2).eval()
    recipe = tiny.preprocess.changed(resize="pad", pad_to=pad_to)
    image = photo(36, 56)

    [row] = Predictor(head, tiny, views, preprocess=recipe, tile=tile)(image, maps="patch")

    cells = row["maps"]["cover"]
    assert cells.shape == (1, 12, 16)
    assert row["cover"] == pytest.approx(cells[:, rows, cols].mean(), rel=1e-5)


@pytest.mark.parametrize("tile", [None, 32])
def test_a_density_of_members_with_cells_of_two_sizes_is_the_mean_of_theirs(
    tile: int | None, tiny: Backbone
) -> None:
    task = Task("count", kind="density", activation="softplus")
    coarse = kit.randomised(DenseHead(drawn.WIDTH, [task], hidden_dim=8), seed=1).eval()
    fine = LinearHead(drawn.WIDTH, [task], pool=None, upsample=2)
    kit.randomised(fine, seed=2).eval()
    image = photo(64, 48)

    [row] = Predictor(HeadEnsemble([coarse, fine]), tiny, tile=tile)(image, maps="patch")

    values = [Predictor(head, tiny, tile=tile)(image)[0]["count"] for head in (coarse, fine)]
    assert row["count"] == pytest.approx(np.mean(values), rel=1e-5)
    assert row["maps"]["count"].sum() == pytest.approx(np.mean(values), rel=1e-5)


def test_a_minimum_that_one_member_states_holds_for_the_mean(tiny: Backbone) -> None:
    heads = [kit.head(Task("mass", minimum=0.0)), kit.head(Task("mass"), seed=1)]
    for head in heads:
        torch.nn.init.constant_(head.mlps[0].out.bias, -5.0)

    [row] = Predictor(HeadEnsemble(heads), tiny)(photo(32, 32))

    assert row["mass"] == 0.0
