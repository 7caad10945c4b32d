"""Several heads of one command are trained on the same tokens and folds as alone, and compared in one table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tests.unit.training.meadow import a_run

from dinoneck import load_head
from dinoneck.cli.main import main
from dinoneck.training import MemoryTokens, train
from dinoneck.training.scores import Split, method_scores

NAMES = ("patch_mean", "linear")


def test_heads_are_trained_as_alone_and_compared_pairwise(
    meadow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extracted: list[int] = []
    extract = MemoryTokens.extract

    def counted(backbone: Any, images: Any, *arguments: Any, **options: Any) -> Any:
        extracted.append(len(images))
        return extract(backbone, images, *arguments, **options)

    monkeypatch.setattr(MemoryTokens, "extract", counted)
    (tmp_path / "run.yaml").write_text(
        f"data: {{csv: '{meadow}', targets: [soil]}}\nbackbone: {{name: dinoneck_tiny}}\n"
        "optim: {epochs: 2, batch_size: 4}\nfolds: {count: 2}\n"
    )
    words = ["train", str(tmp_path / "run.yaml"), "--heads", *NAMES, "--out", str(tmp_path / "all")]
    assert main(words) == 0
    assert extracted == [1, 12], "the first image, then all of them once"
    report = json.loads((tmp_path / "all" / "report.json").read_text())
    tables = []
    for name in NAMES:
        alone = train(a_run(meadow, ["soil"], head={"type": name}), tmp_path / name)
        assert report["scores"]["soil"][name]["r2"] == alone["scores"]["soil"]["head"]["r2"]
        assert report["cost"][name]["parameters"] == alone["parameters"]
        file = "head.safetensors"
        assert (tmp_path / "all" / name / file).read_bytes() == (tmp_path / name / file).read_bytes()
        tables.append(pd.read_csv(tmp_path / name / "out_of_fold.csv"))
    own = [np.flatnonzero(tables[0]["fold"] == fold) for fold in (0, 1)]
    split = Split(own, tables[0]["image"].to_list())
    minus = method_scores("value", tables[0]["soil"], tables[1]["soil (head)"], split, head=tables[0]["soil (head)"])
    found = report["scores"]["soil"]["linear"]["head_minus"]["r2"]
    assert found == pytest.approx(minus["head_minus"]["r2"], abs=1e-4)
    assert "patch_mean" in report["verdict"]


def test_the_width_is_that_of_each_head(meadow: Path, tmp_path: Path) -> None:
    words = (
        f"--csv {meadow} --targets soil --backbone dinoneck_tiny --folds 2 --epochs 1 --hidden-dim 8 --heads".split()
    )
    assert main(["train", *words, "patch_mean", "cls_gating", "--out", str(tmp_path / "all")]) == 0
    for name in ("patch_mean", "cls_gating"):
        assert load_head(tmp_path / "all" / name / "heads" / "fold-0.safetensors").config["hidden_dim"] == 8
    assert main(["train", *words, *NAMES, "--out", str(tmp_path / "refused")]) == 1, "a linear head has no width"
