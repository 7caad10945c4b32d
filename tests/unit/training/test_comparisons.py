"""Heads, folds and linear baselines that are compared on the same tokens."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
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
from dinoneck.training import MemoryTokens, group_folds, ridge_probe, train
from dinoneck.training.baselines import ALPHAS, PENALTIES, baseline_head, ridge_path
from dinoneck.training.comparison import prepare_heads, train_heads
from dinoneck.training.folds import FoldRows, column_folds
from dinoneck.training.head_arguments import compared_heads
from dinoneck.training.scores import Split, score_values

NAMES = ("patch_mean", "linear")


@pytest.mark.slow
def test_heads_are_trained_as_alone_and_compared_pairwise(meadow: Path, tmp_path: Path) -> None:
    words = (
        f"train --csv {meadow} --targets soil --backbone dinoneck_tiny --folds 2 --epochs 2 "
        "--batch-size 4 --heads"
    )
    assert main([*words.split(), *NAMES, "--out", str(tmp_path / "all")]) == 0
    report = json.loads((tmp_path / "all" / "report.json").read_text())
    tables = []
    for name in NAMES:
        alone = train(a_run(meadow, ["soil"], head={"type": name}), tmp_path / name)
        assert report["scores"]["soil"][name]["r2"] == alone["scores"]["soil"]["head"]["r2"]
        assert report["cost"][name]["parameters"] == alone["parameters"]
        file = "head.safetensors"
        assert (tmp_path / "all" / name / file).read_bytes() == (
            tmp_path / name / file
        ).read_bytes()
        tables.append(pd.read_csv(tmp_path / name / "out_of_fold.csv"))
    own = [np.flatnonzero(tables[0]["fold"] == fold) for fold in (0, 1)]
    split = Split(own, tables[0]["image"].to_list())
    minus = score_values(
        tables[0]["soil"], tables[1]["soil (head)"], split, reference=tables[0]["soil (head)"]
    )
    found = report["scores"]["soil"]["linear"]["head_minus"]["r2"]
    assert found == pytest.approx(minus["head_minus"]["r2"], abs=1e-4)
    assert "patch_mean" in report["verdict"]


@pytest.mark.slow
def test_an_interrupted_comparison_goes_on(
    meadow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder has no head of an earlier run; a head that is trained already is kept."""
    train(a_run(meadow, ["soil"]), tmp_path)
    words = (
        f"train --csv {meadow} --targets soil --backbone dinoneck_tiny --epochs 1 --out "
        f"{tmp_path} --heads"
    ).split()
    with monkeypatch.context() as patch:
        patch.setattr(LinearHead, "calibrate", None)
        assert (
            main([*words, *NAMES, "--overwrite"]) == 1
            and not (tmp_path / "head.safetensors").exists()
        )
    file = tmp_path / NAMES[0] / "heads" / "fold-0.safetensors"
    before = file.stat().st_mtime_ns
    assert main([*words, *NAMES]) == 0 and file.stat().st_mtime_ns == before


def test_the_width_is_that_of_each_head(meadow: Path, tmp_path: Path) -> None:
    words = (
        f"--csv {meadow} --targets soil --backbone dinoneck_tiny --folds 2 --epochs 1 "
        "--hidden-dim 8"
    ).split()
    assert (
        main(
            ["train", *words, "--heads", "patch_mean", "cls_gating", "--out", str(tmp_path / "all")]
        )
        == 0
    )
    for name in ("patch_mean", "cls_gating"):
        assert (
            load_head(tmp_path / "all" / name / "heads" / "fold-0.safetensors").config["hidden_dim"]
            == 8
        )


def test_a_head_without_a_width_leaves_it_out(
    meadow: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainers = prepare_heads(a_run(meadow, ["soil"]), NAMES, tmp_path / "run", hidden_dim=8)

    assert "linear leaves out hidden_dim" in capsys.readouterr().err
    assert trainers["patch_mean"].heads["0"].config["hidden_dim"] == 8
    with pytest.raises(ConfigError, match="none of the heads linear, linear has .* 'hidden_dim'"):
        compared_heads([{"type": "linear", "pool": "cls"}, "linear"], {}, hidden_dim=8)


def test_each_head_gets_the_arguments_that_it_has(
    meadow: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = {"type": "fpn", "fpn_dim": 16, "num_levels": 2, "hidden_dim": 24}
    config = a_run(meadow, ["soil"], head=head)

    trainers = prepare_heads(config, ["fpn", "patch_mean", "linear"], tmp_path / "run")

    built = {name: trainer.heads["0"].config for name, trainer in trainers.items()}
    assert built["fpn"]["fpn_dim"] == 16
    assert built["fpn"]["num_levels"] == 2
    assert built["patch_mean"]["hidden_dim"] == 24
    lines = capsys.readouterr().err
    assert "patch_mean leaves out fpn_dim, num_levels\n" in lines
    assert "linear leaves out fpn_dim, num_levels, hidden_dim\n" in lines
    assert "fpn leaves" not in lines.replace("leaves out fpn", "")


def test_heads_of_one_type_are_trained_next_to_each_other(meadow: Path, tmp_path: Path) -> None:
    words = (
        f"train --csv {meadow} --targets soil --backbone dinoneck_tiny --folds 2 --epochs 1 "
        "--batch-size 4 --heads"
    ).split()
    heads = ["{type: patch_mean, hidden_dim: 4}", "patch_mean"]

    assert main([*words, *heads, "--out", str(tmp_path / "all")]) == 0

    narrow = load_head(tmp_path / "all" / "patch_mean-hidden_dim=4" / "head.safetensors")
    assert narrow.config["members"][0]["config"]["hidden_dim"] == 4
    report = json.loads((tmp_path / "all" / "report.json").read_text())
    assert [*report["cost"]] == ["patch_mean-hidden_dim=4", "patch_mean"]


@pytest.mark.parametrize(
    ("heads", "names"),
    [
        (["fpn", "linear"], ["fpn", "linear"]),
        (
            [{"type": "fpn", "fpn_dim": 8}, "linear", "fpn"],
            ["fpn-fpn_dim=8", "linear", "fpn-fpn_dim=64"],
        ),
        (
            [{"type": "fpn", "layer_groups": [[0], [1]]}, {"type": "fpn", "fpn_dim": 8}],
            ["fpn-1", "fpn-2"],
        ),
        ([{"type": "linear", "pool": "a/b"}, {"type": "linear"}], ["linear-1", "linear-2"]),
    ],
    ids=["types", "what differs", "a list", "no name of a folder"],
)
def test_heads_are_named_by_what_they_differ_in(heads: Any, names: list[str]) -> None:
    compared = compared_heads(heads, {"type": "fpn", "fpn_dim": 64})
    assert [head.name for head in compared] == names


@pytest.mark.parametrize(
    ("heads", "common", "message"),
    [
        (["fpn", {"type": "fpn", "fpn_dim": 64}], {"type": "fpn", "fpn_dim": 64}, "each once"),
        (["fpn", "linear"], {"fpn_dims": 64}, "none of the heads fpn, linear has .* 'fpn_dims'"),
        ([{"fpn_dim": 64}, "linear"], {}, "names no type"),
    ],
    ids=["equal", "an argument of none", "no type"],
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


N = 120


GROUPS = [f"g{row // 3}" for row in range(N)]


CLASSES = ["rare" if row // 3 % 10 == 0 else "common" for row in range(N)]


def held_out(folds: Sequence[FoldRows]) -> list[list[int]]:
    return [valid.tolist() for _, valid in folds]


def test_stratified_folds_share_every_class_and_keep_groups_whole() -> None:
    for seed in range(5):
        folds = group_folds(GROUPS, 4, seed, stratify=CLASSES)
        assert sorted(row for rows in held_out(folds) for row in rows) == list(range(N))
        for trained, valid in folds:
            assert not {GROUPS[row] for row in trained} & {GROUPS[row] for row in valid}
            assert sum(CLASSES[row] == "rare" for row in valid) == 3, "one of four rare groups"
        assert held_out(folds) == held_out(group_folds(GROUPS, 4, seed, stratify=CLASSES))
        renamed = [2 if label == "rare" else 9 for label in CLASSES]
        assert held_out(folds) == held_out(group_folds(GROUPS, 4, seed, stratify=renamed))


def test_stratified_folds_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.model_selection", None)
    with pytest.raises(
        ImportError, match=r"scikit-learn is not installed.*pip install 'dinoneck\[train\]'"
    ):
        group_folds(GROUPS, 4, 0, stratify=CLASSES)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["10", "9", "10", "9.5"], [[1], [3], [0, 2]]),
        (np.array([1.0, 0.0, 1.0]), [[1], [0, 2]]),
        (["b", "a", "10"], [[2], [1], [0]]),
    ],
)
def test_a_column_gives_a_fold_per_label_in_order(labels: Any, expected: list[list[int]]) -> None:
    folds = column_folds(labels)
    assert held_out(folds) == expected
    assert all(sorted([*train, *valid]) == list(range(len(labels))) for train, valid in folds)


IMAGES, WIDTH, GRID = 40, 6, (2, 3)


TRAIN, FOLDS = np.arange(30), [(np.arange(30), np.arange(30, 40))]


RANDOM = np.random.RandomState(0)


PATCHES = torch.tensor(
    RANDOM.randn(IMAGES, 6, WIDTH) + RANDOM.randn(IMAGES, 1, WIDTH), dtype=torch.float32
)


MEANS = PATCHES.double().mean(dim=1).numpy()


Z = (MEANS - MEANS[TRAIN].mean(axis=0)) / MEANS[TRAIN].std(axis=0)


IMAGE_GROUPS = [f"g{row // 2}" for row in range(IMAGES)]


Y = 100 + 20 * MEANS @ RANDOM.randn(WIDTH) + RANDOM.randn(IMAGES)


KINDS = (MEANS @ RANDOM.randn(WIDTH, 3) + RANDOM.randn(IMAGES, 3)).argmax(axis=1)


MAPS = 5 + (PATCHES.double().numpy() @ RANDOM.randn(WIDTH)).reshape(IMAGES, 1, *GRID)


KIND = Task("kind", dim=3, kind="classification", labels=("a", "b", "c"))


def source(patches: torch.Tensor = PATCHES, layers: int = 1) -> MemoryTokens:
    """Tokens whose last layer holds the patches; the layers before it hold noise."""
    noise = [torch.randn_like(patches) for _ in range(layers - 1)]
    tokens = Tokens(
        (*noise, patches), grid=GridSize(*GRID), patch_size=16, layers=tuple(range(layers))
    )
    return MemoryTokens([f"p{i}" for i in range(IMAGES)], tokens)


def fitted(
    *tasks: Task, of: MemoryTokens | None = None, rows: Any = TRAIN, **targets: Any
) -> dict[str, np.ndarray]:
    """What the baseline of these rows predicts for all images."""
    own = of or source()
    head = baseline_head(
        own,
        {name: torch.tensor(x) for name, x in targets.items()},
        rows,
        tasks,
        groups=IMAGE_GROUPS,
    )
    assert all(
        isinstance(each, LinearHead)
        for each in (head.heads if isinstance(head, HeadEnsemble) else [head])
    )
    return {name: x.double().numpy() for name, x in head.eval().predict(own.batch(own.ids)).items()}


def closed_form(alpha: float) -> np.ndarray:
    """Ridge regression on standardised features, by its normal equations."""
    offset = Y[TRAIN].mean()
    w = np.linalg.solve(
        Z[TRAIN].T @ Z[TRAIN] + alpha * np.eye(WIDTH), Z[TRAIN].T @ (Y[TRAIN] - offset)
    )
    return Z @ w + offset


def test_ridge_is_the_closed_form() -> None:
    every = ridge_path(MEANS[TRAIN], Y[TRAIN, None], MEANS)
    np.testing.assert_allclose(every[..., 0], [closed_form(alpha) for alpha in ALPHAS], rtol=1e-6)
    probe = ridge_probe(source(), {"y": Y}, FOLDS, target_ids=source().ids, groups=IMAGE_GROUPS)
    assert np.isnan(probe[TRAIN]).all()
    assert min(np.abs(own[30:, 0] - probe[30:, 0]).max() for own in every) < 1e-9, (
        "one of the strengths"
    )
    for layers in (1, 3):
        own = source(layers=layers)
        found = fitted(
            Task("y", transform=TargetTransform().fit(torch.tensor(Y[TRAIN]))), of=own, y=Y
        )["y"]
        np.testing.assert_allclose(found[30:], probe[30:], rtol=1e-4)


def test_ridge_matches_ids_and_chooses_within_a_single_group_by_rows() -> None:
    """Of noise, the strongest ridge is right, not the first in the list."""
    ids, noise = source().ids, RANDOM.randn(IMAGES, 2)
    expected = ridge_probe(source(), {"a": noise[:, 0], "b": noise[:, 1]}, FOLDS, target_ids=ids)
    assert np.abs(expected[30:] - noise[:30].mean(axis=0)).max() < 0.5 * noise.std()
    order = [*range(30, IMAGES), *range(30)][::-1]
    shuffled = MemoryTokens(
        [ids[i] for i in order], Tokens.from_patches(PATCHES[order], grid=GRID, patch_size=16)
    )
    np.testing.assert_allclose(
        ridge_probe(shuffled, noise, FOLDS, target_ids=ids)[30:], expected[30:], rtol=1e-6
    )
    one = ridge_probe(source(), noise, FOLDS, target_ids=ids, groups=["a"] * 30 + ["b"] * 10)
    assert np.array_equal(one, expected, equal_nan=True)


def test_each_target_learns_from_the_rows_in_which_it_is_known() -> None:
    gaps, rows = np.where(np.arange(IMAGES) % 3, Y, np.nan), [row for row in TRAIN if row % 3]
    np.testing.assert_allclose(
        fitted(Task("y"), y=gaps)["y"], fitted(Task("y"), y=Y, rows=rows)["y"], rtol=1e-6
    )
    ids, others = source().ids, np.where(np.arange(IMAGES) % 2, Y[::-1], np.nan)
    both = ridge_probe(source(), {"u": gaps, "v": others}, FOLDS, target_ids=ids)
    for column, (values, own) in enumerate(
        ((Y, rows), (Y[::-1], [row for row in TRAIN if row % 2]))
    ):
        alone = ridge_probe(source(), {"x": values}, [(np.array(own), FOLDS[0][1])], target_ids=ids)
        np.testing.assert_allclose(both[30:, column], alone[30:, 0])


def test_classes_are_read_by_logistic_regression() -> None:
    """Probabilities are those of scikit-learn with one of the penalties; rows without a class are left out."""
    labelled = np.where(np.arange(IMAGES) % 7, KINDS, -1)
    found, rows = fitted(KIND, kind=labelled)["kind"], TRAIN[labelled[TRAIN] >= 0]
    z = (MEANS - MEANS[rows].mean(axis=0)) / MEANS[rows].std(axis=0)
    each = []
    for penalty in PENALTIES:
        peer = LogisticRegression(C=1 / (2 * penalty * len(rows)), tol=1e-8, max_iter=10_000)
        each.append(np.abs(peer.fit(z[rows], labelled[rows]).predict_proba(z) - found).max())
    assert min(each) < 2e-2, each


def test_maps_are_read_from_every_patch() -> None:
    gaps, classes = MAPS.copy(), (MAPS[:, 0] > 5).astype(np.int64)
    gaps[::2, :, 0] = np.nan
    tasks = [Task("map", kind="dense"), Task("seg", dim=2, kind="segmentation"), Task("y")]
    found = fitted(*tasks, map=gaps, seg=classes, y=Y)
    np.testing.assert_allclose(found["map"][30:], MAPS[30:], atol=0.05)
    assert (found["seg"][30:].argmax(axis=1) == classes[30:]).mean() > 0.95
    assert np.abs(found["y"][30:, 0] - Y[30:]).mean() < 0.2 * Y.std()


def test_held_out_rows_change_nothing() -> None:
    held_out, tasks = np.arange(IMAGES) >= 30, [Task("y"), KIND, Task("map", kind="dense")]
    moved = torch.where(torch.tensor(held_out)[:, None, None], 50.0, PATCHES)
    other = {"y": np.where(held_out, -1e4, Y), "kind": np.where(held_out, 0, KINDS)}
    other["map"] = np.where(held_out[:, None, None, None], 7e3, MAPS)
    first = fitted(*tasks, y=Y, kind=KINDS, map=MAPS)
    second = fitted(*tasks, of=source(moved), **other)
    assert all(np.array_equal(x[TRAIN], second[name][TRAIN]) for name, x in first.items())


def test_folds_keep_groups_whole_and_cover_every_row() -> None:
    random = np.random.RandomState(0)
    groups = [str(g) for g in random.randint(0, 17, 200)]
    folds = group_folds(groups, 5, seed=1)
    assert sorted(np.concatenate([valid for _, valid in folds]).tolist()) == list(range(200))
    for trained, valid in folds:
        assert set(trained) | set(valid) == set(range(200))
        assert not {groups[i] for i in trained} & {groups[i] for i in valid}
        assert 30 <= len(valid) <= 50
    again = group_folds(groups, 5, seed=1)
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(folds, again, strict=True))
    other = group_folds(groups, 5, seed=2)
    assert not all(np.array_equal(a[1], b[1]) for a, b in zip(folds, other, strict=True))
