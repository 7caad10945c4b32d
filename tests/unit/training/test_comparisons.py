"""Heads, folds and linear baselines that are compared on the same tokens."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from tests.unit.training.meadow import a_run

from dinoneck import HeadEnsemble, LinearHead, TargetTransform, Task, Tokens, load_head
from dinoneck.cli.main import main
from dinoneck.errors import ConfigError
from dinoneck.grid import GridSize
from dinoneck.heads import Head
from dinoneck.training import MemoryTokens, group_folds, ridge_probe, train
from dinoneck.training.baselines import ALPHAS, PENALTIES, baseline_head, ridge_path
from dinoneck.training.comparison import prepare_heads, train_heads
from dinoneck.training.folds import FoldRows, column_folds
from dinoneck.training.head_arguments import compared_heads
from dinoneck.training.scores import Split, score_values

NAMES = ("patch_mean", "linear")


def words_of(table: Path, heads: Sequence[str], out: Path, **options: int) -> list[str]:
    """The words of a short training of several heads for the soil of a table."""
    words = ["train", "--csv", str(table), "--targets", "soil", "--backbone", "dinoneck_tiny"]
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return [*words, "--out", str(out), "--heads", *heads]


# Heads that are trained next to each other


@dataclass
class ComparedHeads:
    """A training of two heads in one folder, and one of each of them alone."""

    folder: Path
    report: dict[str, Any]
    folders_alone: dict[str, Path]
    reports_alone: dict[str, dict[str, Any]]

    def table_alone(self, name: str) -> pd.DataFrame:
        return pd.read_csv(self.folders_alone[name] / "out_of_fold.csv")


@pytest.fixture(scope="module")
def compared(meadow: Path, tmp_path_factory: pytest.TempPathFactory) -> ComparedHeads:
    folder = tmp_path_factory.mktemp("compared")
    words = words_of(meadow, NAMES, folder / "all", folds=2, epochs=2, batch_size=4)

    assert main(words) == 0
    reports_alone = {}
    for name in NAMES:
        config = a_run(meadow, ["soil"], head={"type": name})
        reports_alone[name] = train(config, folder / name)

    return ComparedHeads(
        folder=folder / "all",
        report=json.loads((folder / "all" / "report.json").read_text()),
        folders_alone={name: folder / name for name in NAMES},
        reports_alone=reports_alone,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_compared_head_is_scored_as_alone(name: str, compared: ComparedHeads) -> None:
    alone = compared.reports_alone[name]["scores"]["soil"]["head"]

    assert compared.report["scores"]["soil"][name]["r2"] == alone["r2"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_compared_head_has_the_parameters_that_it_has_alone(
    name: str, compared: ComparedHeads
) -> None:
    alone = compared.reports_alone[name]["parameters"]

    assert compared.report["cost"][name]["parameters"] == alone


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_file_of_a_compared_head_is_that_of_the_head_alone(
    name: str, compared: ComparedHeads
) -> None:
    file = compared.folder / name / "head.safetensors"
    alone = compared.folders_alone[name] / "head.safetensors"

    assert file.read_bytes() == alone.read_bytes()


@pytest.mark.slow
def test_heads_are_compared_pairwise(compared: ComparedHeads) -> None:
    first = compared.table_alone("patch_mean")
    second = compared.table_alone("linear")
    rows_of_folds = [np.flatnonzero(first["fold"] == fold) for fold in (0, 1)]
    expected = score_values(
        first["soil"],
        second["soil (head)"],
        Split(rows_of_folds, first["image"].to_list()),
        reference=first["soil (head)"],
    )

    difference = compared.report["scores"]["soil"]["linear"]["head_minus"]

    assert difference["r2"] == pytest.approx(expected["head_minus"]["r2"], abs=1e-4)


@pytest.mark.slow
def test_the_verdict_names_a_head(compared: ComparedHeads) -> None:
    assert "patch_mean" in compared.report["verdict"]


@dataclass
class InterruptedComparison:
    """A comparison in the folder of an earlier run, which ended in the second head."""

    folder: Path
    words: list[str]
    exit_code: int
    keeps_earlier_head: bool

    @property
    def first_head(self) -> Path:
        return self.folder / NAMES[0] / "heads" / "fold-0.safetensors"


@pytest.fixture(scope="module")
def interrupted(meadow: Path, tmp_path_factory: pytest.TempPathFactory) -> InterruptedComparison:
    folder = tmp_path_factory.mktemp("interrupted")
    train(a_run(meadow, ["soil"]), folder)
    assert (folder / "head.safetensors").exists()
    words = words_of(meadow, NAMES, folder, epochs=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LinearHead, "calibrate", None)
        exit_code = main([*words, "--overwrite"])
    return InterruptedComparison(
        folder=folder,
        words=words,
        exit_code=exit_code,
        keeps_earlier_head=(folder / "head.safetensors").exists(),
    )


@pytest.mark.slow
def test_an_interrupted_comparison_has_no_head_of_an_earlier_run(
    interrupted: InterruptedComparison,
) -> None:
    assert interrupted.exit_code == 1
    assert not interrupted.keeps_earlier_head


@pytest.mark.slow
def test_an_interrupted_comparison_goes_on_and_keeps_trained_heads(
    interrupted: InterruptedComparison,
) -> None:
    written = interrupted.first_head.stat().st_mtime_ns

    exit_code = main(interrupted.words)

    assert exit_code == 0
    assert interrupted.first_head.stat().st_mtime_ns == written


def test_the_width_is_that_of_each_head(meadow: Path, tmp_path: Path) -> None:
    names = ["patch_mean", "cls_gating"]
    words = words_of(meadow, names, tmp_path / "all", folds=2, epochs=1, hidden_dim=8)

    exit_code = main(words)

    assert exit_code == 0
    for name in names:
        head = load_head(tmp_path / "all" / name / "heads" / "fold-0.safetensors")
        assert head.config["hidden_dim"] == 8


def test_a_head_without_a_width_leaves_it_out(
    meadow: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainers = prepare_heads(a_run(meadow, ["soil"]), NAMES, tmp_path / "run", hidden_dim=8)

    assert "linear leaves out hidden_dim" in capsys.readouterr().err
    assert trainers["patch_mean"].heads["0"].config["hidden_dim"] == 8


def test_a_width_that_no_head_has_is_refused() -> None:
    heads: list[Any] = [{"type": "linear", "pool": "cls"}, "linear"]

    with pytest.raises(ConfigError, match="none of the heads linear, linear has .* 'hidden_dim'"):
        compared_heads(heads, {}, hidden_dim=8)


def prepare_three_heads(table: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """The configs of heads that were prepared with the arguments of the first of them."""
    arguments = {"type": "fpn", "fpn_dim": 16, "num_levels": 2, "hidden_dim": 24}
    config = a_run(table, ["soil"], head=arguments)
    trainers = prepare_heads(config, ["fpn", "patch_mean", "linear"], folder)
    return {name: trainer.heads["0"].config for name, trainer in trainers.items()}


def test_each_head_gets_the_arguments_that_it_has(meadow: Path, tmp_path: Path) -> None:
    configs = prepare_three_heads(meadow, tmp_path / "run")

    assert configs["fpn"]["fpn_dim"] == 16
    assert configs["fpn"]["num_levels"] == 2
    assert configs["patch_mean"]["hidden_dim"] == 24


def test_the_arguments_that_a_head_leaves_out_are_named(
    meadow: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare_three_heads(meadow, tmp_path / "run")

    messages = capsys.readouterr().err
    assert "patch_mean leaves out fpn_dim, num_levels\n" in messages
    assert "linear leaves out fpn_dim, num_levels, hidden_dim\n" in messages
    assert "fpn leaves" not in messages.replace("leaves out fpn", "")


def test_heads_of_one_type_are_trained_next_to_each_other(meadow: Path, tmp_path: Path) -> None:
    heads = ["{type: patch_mean, hidden_dim: 4}", "patch_mean"]
    words = words_of(meadow, heads, tmp_path / "all", folds=2, epochs=1, batch_size=4)

    exit_code = main(words)

    assert exit_code == 0
    narrow = load_head(tmp_path / "all" / "patch_mean-hidden_dim=4" / "head.safetensors")
    assert narrow.config["members"][0]["config"]["hidden_dim"] == 4
    report = json.loads((tmp_path / "all" / "report.json").read_text())
    assert [*report["cost"]] == ["patch_mean-hidden_dim=4", "patch_mean"]


@pytest.mark.parametrize(
    ("heads", "names"),
    [
        pytest.param(
            ["fpn", "linear"],
            ["fpn", "linear"],
            id="types",
        ),
        pytest.param(
            [{"type": "fpn", "fpn_dim": 8}, "linear", "fpn"],
            ["fpn-fpn_dim=8", "linear", "fpn-fpn_dim=64"],
            id="what differs",
        ),
        pytest.param(
            [{"type": "fpn", "layer_groups": [[0], [1]]}, {"type": "fpn", "fpn_dim": 8}],
            ["fpn-1", "fpn-2"],
            id="a list",
        ),
        pytest.param(
            [{"type": "linear", "pool": "a/b"}, {"type": "linear"}],
            ["linear-1", "linear-2"],
            id="no name of a folder",
        ),
    ],
)
def test_heads_are_named_by_what_they_differ_in(heads: Any, names: list[str]) -> None:
    heads_to_compare = compared_heads(heads, {"type": "fpn", "fpn_dim": 64})

    assert [head.name for head in heads_to_compare] == names


@pytest.mark.parametrize(
    ("heads", "common", "message"),
    [
        pytest.param(
            ["fpn", {"type": "fpn", "fpn_dim": 64}],
            {"type": "fpn", "fpn_dim": 64},
            "each once",
            id="equal",
        ),
        pytest.param(
            ["fpn", "linear"],
            {"fpn_dims": 64},
            "none of the heads fpn, linear has .* 'fpn_dims'",
            id="an argument of none",
        ),
        pytest.param(
            [{"fpn_dim": 64}, "linear"],
            {},
            "names no type",
            id="no type",
        ),
    ],
)
def test_heads_that_cannot_be_compared(heads: Any, common: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compared_heads(heads, common)


@pytest.mark.slow
def test_the_learned_weights_of_the_losses_are_those_of_each_head(
    meadow: Path, tmp_path: Path
) -> None:
    config = a_run(meadow, ["soil", "crop"], losses={"weighting": "uncertainty"})
    trainers = prepare_heads(config, NAMES, tmp_path)

    report = train_heads(trainers, tmp_path)

    for name in NAMES:
        of_head = json.loads((tmp_path / name / "report.json").read_text())["loss_weights"]
        assert report["loss_weights"][name] == of_head
        assert [*of_head] == ["fold-0", "fold-1"]


# Folds


def rows_held_out(folds: Sequence[FoldRows]) -> list[list[int]]:
    return [valid.tolist() for _, valid in folds]


STRATIFIED_ROWS = 120
GROUPS = [f"g{row // 3}" for row in range(STRATIFIED_ROWS)]
CLASSES = ["rare" if row // 3 % 10 == 0 else "common" for row in range(STRATIFIED_ROWS)]
SEEDS = range(5)


@pytest.mark.parametrize("seed", SEEDS)
def test_stratified_folds_hold_out_every_row_once(seed: int) -> None:
    folds = group_folds(GROUPS, 4, seed, stratify=CLASSES)

    held_out = np.concatenate(rows_held_out(folds))
    assert sorted(held_out) == list(range(STRATIFIED_ROWS))


@pytest.mark.parametrize("seed", SEEDS)
def test_stratified_folds_keep_groups_whole(seed: int) -> None:
    for trained, valid in group_folds(GROUPS, 4, seed, stratify=CLASSES):
        groups_trained = {GROUPS[row] for row in trained}
        groups_valid = {GROUPS[row] for row in valid}
        assert not groups_trained & groups_valid


@pytest.mark.parametrize("seed", SEEDS)
def test_stratified_folds_share_every_class(seed: int) -> None:
    for _, valid in group_folds(GROUPS, 4, seed, stratify=CLASSES):
        classes = [CLASSES[row] for row in valid]
        assert classes.count("rare") == 3, "one of four rare groups"


@pytest.mark.parametrize("seed", SEEDS)
def test_stratified_folds_repeat_with_their_seed(seed: int) -> None:
    first = group_folds(GROUPS, 4, seed, stratify=CLASSES)

    second = group_folds(GROUPS, 4, seed, stratify=CLASSES)

    assert rows_held_out(first) == rows_held_out(second)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_names_of_classes_do_not_change_stratified_folds(seed: int) -> None:
    renamed = [2 if label == "rare" else 9 for label in CLASSES]
    folds = group_folds(GROUPS, 4, seed, stratify=CLASSES)

    folds_of_renamed = group_folds(GROUPS, 4, seed, stratify=renamed)

    assert rows_held_out(folds) == rows_held_out(folds_of_renamed)


def test_stratified_folds_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.model_selection", None)

    with pytest.raises(
        ImportError, match=r"scikit-learn is not installed.*pip install 'dinoneck\[train\]'"
    ):
        group_folds(GROUPS, 4, 0, stratify=CLASSES)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        pytest.param(["10", "9", "10", "9.5"], [[1], [3], [0, 2]], id="numbers as text"),
        pytest.param(np.array([1.0, 0.0, 1.0]), [[1], [0, 2]], id="numbers"),
        pytest.param(["b", "a", "10"], [[2], [1], [0]], id="text"),
    ],
)
def test_a_column_gives_a_fold_per_label_in_order(labels: Any, expected: list[list[int]]) -> None:
    folds = column_folds(labels)

    assert rows_held_out(folds) == expected
    for train_rows, valid_rows in folds:
        assert sorted([*train_rows, *valid_rows]) == list(range(len(labels)))


MANY_ROWS = 200
MANY_GROUPS = [str(group) for group in np.random.RandomState(0).randint(0, 17, MANY_ROWS)]


def test_folds_cover_every_row() -> None:
    folds = group_folds(MANY_GROUPS, 5, seed=1)

    held_out = np.concatenate(rows_held_out(folds))
    assert sorted(held_out) == list(range(MANY_ROWS))
    for trained, valid in folds:
        assert set(trained) | set(valid) == set(range(MANY_ROWS))


def test_folds_keep_groups_whole() -> None:
    for trained, valid in group_folds(MANY_GROUPS, 5, seed=1):
        groups_trained = {MANY_GROUPS[row] for row in trained}
        groups_valid = {MANY_GROUPS[row] for row in valid}
        assert not groups_trained & groups_valid


def test_folds_are_of_about_equal_size() -> None:
    for _, valid in group_folds(MANY_GROUPS, 5, seed=1):
        assert 30 <= len(valid) <= 50


def test_folds_repeat_with_their_seed() -> None:
    first = group_folds(MANY_GROUPS, 5, seed=1)

    second = group_folds(MANY_GROUPS, 5, seed=1)

    assert rows_held_out(first) == rows_held_out(second)


def test_another_seed_gives_other_folds() -> None:
    first = group_folds(MANY_GROUPS, 5, seed=1)

    other = group_folds(MANY_GROUPS, 5, seed=2)

    assert rows_held_out(first) != rows_held_out(other)


# Linear baselines of 40 images, of which 30 are trained


IMAGES = 40
WIDTH = 6
GRID = (2, 3)
NUM_TRAINED = 30
TRAIN = np.arange(NUM_TRAINED)
VALID = np.arange(NUM_TRAINED, IMAGES)
IDS = [f"p{image}" for image in range(IMAGES)]
IMAGE_GROUPS = [f"g{image // 2}" for image in range(IMAGES)]
KIND = Task("kind", dim=3, kind="classification", labels=("a", "b", "c"))

RANDOM = np.random.RandomState(0)
PATCHES = torch.tensor(
    RANDOM.randn(IMAGES, 6, WIDTH) + RANDOM.randn(IMAGES, 1, WIDTH), dtype=torch.float32
)
MEANS = PATCHES.double().mean(dim=1).numpy()
Y = 100 + 20 * MEANS @ RANDOM.randn(WIDTH) + RANDOM.randn(IMAGES)
KINDS = (MEANS @ RANDOM.randn(WIDTH, 3) + RANDOM.randn(IMAGES, 3)).argmax(axis=1)
MAPS = 5 + (PATCHES.double().numpy() @ RANDOM.randn(WIDTH)).reshape(IMAGES, 1, *GRID)
CLASSES_OF_CELLS = (MAPS[:, 0] > 5).astype(np.int64)
NOISE = RANDOM.randn(IMAGES, 2)


def source(patches: torch.Tensor = PATCHES, layers: int = 1) -> MemoryTokens:
    """Tokens whose last layer holds the patches; the layers before it hold noise."""
    noise = [torch.randn_like(patches) for _ in range(layers - 1)]
    tokens = Tokens(
        (*noise, patches), grid=GridSize(*GRID), patch_size=16, layers=tuple(range(layers))
    )
    return MemoryTokens(IDS, tokens)


def fit_baseline(
    *tasks: Task, tokens: MemoryTokens | None = None, rows: Any = TRAIN, **targets: Any
) -> Head:
    """The baseline that learned these rows of the targets."""
    return baseline_head(
        tokens or source(),
        {name: torch.tensor(values) for name, values in targets.items()},
        rows,
        tasks,
        groups=IMAGE_GROUPS,
    )


def predict_baseline(
    *tasks: Task, tokens: MemoryTokens | None = None, rows: Any = TRAIN, **targets: Any
) -> dict[str, np.ndarray]:
    """What the baseline of these rows predicts for all images."""
    tokens = tokens or source()
    head = fit_baseline(*tasks, tokens=tokens, rows=rows, **targets).eval()
    predicted = head.predict(tokens.batch(IDS))
    return {name: values.double().numpy() for name, values in predicted.items()}


def probe(targets: Any, tokens: MemoryTokens | None = None, **options: Any) -> np.ndarray:
    """What ridge regression on the means of the patches predicts for the images that are held out."""
    folds = [(TRAIN, VALID)]
    return ridge_probe(tokens or source(), targets, folds, target_ids=IDS, **options)


def standardised(rows: np.ndarray) -> np.ndarray:
    """The means of all images, by the mean and the deviation of some."""
    return (MEANS - MEANS[rows].mean(axis=0)) / MEANS[rows].std(axis=0)


def closed_form(alpha: float) -> np.ndarray:
    """Ridge regression on standardised features, by its normal equations."""
    features = standardised(TRAIN)
    trained = features[TRAIN]
    offset = Y[TRAIN].mean()
    weights = np.linalg.solve(
        trained.T @ trained + alpha * np.eye(WIDTH),
        trained.T @ (Y[TRAIN] - offset),
    )
    return features @ weights + offset


def test_a_baseline_of_one_target_is_a_linear_head() -> None:
    head = fit_baseline(Task("y"), y=Y)

    assert isinstance(head, LinearHead)


def test_a_baseline_of_values_and_maps_consists_of_linear_heads() -> None:
    head = fit_baseline(Task("map", kind="dense"), Task("y"), map=MAPS, y=Y)

    assert isinstance(head, HeadEnsemble)
    for member in head.heads:
        assert isinstance(member, LinearHead)


def test_ridge_is_the_closed_form() -> None:
    expected = [closed_form(alpha) for alpha in ALPHAS]

    predictions = ridge_path(MEANS[TRAIN], Y[TRAIN, None], MEANS)

    np.testing.assert_allclose(predictions[..., 0], expected, rtol=1e-6)


def test_the_probe_predicts_held_out_rows_alone() -> None:
    predictions = probe({"y": Y}, groups=IMAGE_GROUPS)

    assert np.isnan(predictions[TRAIN]).all()
    assert np.isfinite(predictions[VALID]).all()


def test_the_probe_is_ridge_of_one_of_the_strengths() -> None:
    of_strengths = ridge_path(MEANS[TRAIN], Y[TRAIN, None], MEANS)[:, VALID, 0]

    predictions = probe({"y": Y}, groups=IMAGE_GROUPS)[VALID, 0]

    largest_errors = np.abs(of_strengths - predictions).max(axis=1)
    assert largest_errors.min() < 1e-9


@pytest.mark.parametrize("layers", [1, 3])
def test_the_baseline_is_the_probe_of_the_last_layer(layers: int) -> None:
    expected = probe({"y": Y}, groups=IMAGE_GROUPS)
    task = Task("y", transform=TargetTransform().fit(torch.tensor(Y[TRAIN])))

    predictions = predict_baseline(task, tokens=source(layers=layers), y=Y)["y"]

    np.testing.assert_allclose(predictions[VALID], expected[VALID], rtol=1e-4)


def test_the_probe_chooses_the_strongest_ridge_for_noise() -> None:
    """Not the first in the list: the predictions are near the mean."""
    predictions = probe({"a": NOISE[:, 0], "b": NOISE[:, 1]})

    errors = np.abs(predictions[VALID] - NOISE[TRAIN].mean(axis=0))
    assert errors.max() < 0.5 * NOISE.std()


def test_the_probe_matches_ids() -> None:
    order = [*VALID, *TRAIN][::-1]
    tokens = Tokens.from_patches(PATCHES[order], grid=GRID, patch_size=16)
    shuffled = MemoryTokens([IDS[image] for image in order], tokens)

    predictions = probe(NOISE, tokens=shuffled)

    expected = probe({"a": NOISE[:, 0], "b": NOISE[:, 1]})
    np.testing.assert_allclose(predictions[VALID], expected[VALID], rtol=1e-6)


def test_the_probe_chooses_within_a_single_group_by_rows() -> None:
    group_per_side = ["a"] * len(TRAIN) + ["b"] * len(VALID)

    predictions = probe(NOISE, groups=group_per_side)

    assert np.array_equal(predictions, probe(NOISE), equal_nan=True)


ROWS_OF_U = TRAIN[TRAIN % 3 != 0]
ROWS_OF_V = TRAIN[TRAIN % 2 != 0]
U_WITH_GAPS = np.where(np.arange(IMAGES) % 3 != 0, Y, np.nan)
V_WITH_GAPS = np.where(np.arange(IMAGES) % 2 != 0, Y[::-1], np.nan)


def test_the_baseline_learns_from_the_rows_in_which_a_target_is_known() -> None:
    with_gaps = predict_baseline(Task("y"), y=U_WITH_GAPS)["y"]

    of_known_rows = predict_baseline(Task("y"), y=Y, rows=ROWS_OF_U.tolist())["y"]
    np.testing.assert_allclose(with_gaps, of_known_rows, rtol=1e-6)


@pytest.mark.parametrize(
    ("column", "values", "known_rows"),
    [
        pytest.param(0, Y, ROWS_OF_U, id="first"),
        pytest.param(1, Y[::-1], ROWS_OF_V, id="second"),
    ],
)
def test_each_target_of_the_probe_learns_from_the_rows_in_which_it_is_known(
    column: int, values: np.ndarray, known_rows: np.ndarray
) -> None:
    folds = [(known_rows, VALID)]
    alone = ridge_probe(source(), {"x": values}, folds, target_ids=IDS)

    both = probe({"u": U_WITH_GAPS, "v": V_WITH_GAPS})

    np.testing.assert_allclose(both[VALID, column], alone[VALID, 0])


def test_classes_are_read_by_logistic_regression() -> None:
    """Probabilities are those of scikit-learn with one of the penalties; rows without a class are left out."""
    labelled = np.where(np.arange(IMAGES) % 7, KINDS, -1)
    rows = TRAIN[labelled[TRAIN] >= 0]
    features = standardised(rows)

    probabilities = predict_baseline(KIND, kind=labelled)["kind"]

    differences = []
    for penalty in PENALTIES:
        peer = LogisticRegression(C=1 / (2 * penalty * len(rows)), tol=1e-8, max_iter=10_000)
        peer.fit(features[rows], labelled[rows])
        difference = peer.predict_proba(features) - probabilities
        differences.append(np.abs(difference).max())
    assert min(differences) < 2e-2, differences


@pytest.fixture(scope="module")
def predicted_maps() -> dict[str, np.ndarray]:
    """What the baseline predicts of values with gaps, classes of cells, and a value per image."""
    with_gaps = MAPS.copy()
    with_gaps[::2, :, 0] = np.nan
    tasks = [
        Task("map", kind="dense"),
        Task("seg", dim=2, kind="segmentation"),
        Task("y"),
    ]
    return predict_baseline(*tasks, map=with_gaps, seg=CLASSES_OF_CELLS, y=Y)


def test_maps_are_read_from_every_patch(predicted_maps: dict[str, np.ndarray]) -> None:
    np.testing.assert_allclose(predicted_maps["map"][VALID], MAPS[VALID], atol=0.05)


def test_maps_of_classes_are_read_from_every_patch(predicted_maps: dict[str, np.ndarray]) -> None:
    classes = predicted_maps["seg"].argmax(axis=1)

    assert (classes[VALID] == CLASSES_OF_CELLS[VALID]).mean() > 0.95


def test_values_next_to_maps_are_read_from_the_mean(predicted_maps: dict[str, np.ndarray]) -> None:
    errors = np.abs(predicted_maps["y"][VALID, 0] - Y[VALID])

    assert errors.mean() < 0.2 * Y.std()


def test_held_out_rows_change_nothing() -> None:
    tasks = [Task("y"), KIND, Task("map", kind="dense")]
    changed_patches = PATCHES.clone()
    changed_patches[VALID] = 50.0
    changed_targets = {"y": Y.copy(), "kind": KINDS.copy(), "map": MAPS.copy()}
    changed_targets["y"][VALID] = -1e4
    changed_targets["kind"][VALID] = 0
    changed_targets["map"][VALID] = 7e3

    first = predict_baseline(*tasks, y=Y, kind=KINDS, map=MAPS)
    second = predict_baseline(*tasks, tokens=source(changed_patches), **changed_targets)

    assert first.keys() == second.keys()
    for name, predictions in first.items():
        assert np.array_equal(predictions[TRAIN], second[name][TRAIN]), name
