"""The page on fine-tuning RF-DETR: its command on the blood cells lowers the loss."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from tests.conftest import DATA, ROOT
from tests.unit.detection import rf_detr_files

from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.cli.main import main
from dinoneck.published.loading import load_published

PAGE = ROOT / "docs" / "how-to" / "tune-a-detector.md"
_COMMAND = re.compile(r'^```sh title="cells"\n(.*?)^```', re.DOTALL | re.MULTILINE)
STEPS = 50
VIT = "model.model.backbone.backbone."


def write_cells(folder: Path) -> None:
    """Write the boxes of 25 images to learn from and of six held-out ones."""
    (folder / "blood_cells").symlink_to(DATA / "blood_cells")
    dataset = json.loads((DATA / "blood_cells" / "train.json").read_text("utf-8"))
    for name, rows in (("cells_train", slice(0, 25)), ("cells_val", slice(25, 31))):
        images = dataset["images"][rows]
        ids = {image["id"] for image in images}
        boxes = [box for box in dataset["annotations"] if box["image_id"] in ids]
        subset = {"images": images, "annotations": boxes, "categories": dataset["categories"]}
        (folder / f"{name}.json").write_text(json.dumps(subset), "utf-8")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not (DATA / "blood_cells").exists(), reason="the shared data are not there")
def test_fifty_steps_on_blood_cells_lower_the_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The architecture is the published one, its weights are random ones."""
    write_cells(tmp_path)
    rf_detr_files.write_folder(tmp_path / "rf-detr-nano", rf_detr_files.BOXES)
    monkeypatch.chdir(tmp_path)
    [command] = _COMMAND.findall(PAGE.read_text("utf-8"))
    program, *words = shlex.split(command)
    assert program == "dinoneck"

    assert main(words) == 0

    rows = [json.loads(line) for line in Path("RUN/log.jsonl").read_text("utf-8").splitlines()]
    batch_size = int(words[words.index("--batch-size") + 1])
    assert len(rows) * 25 // batch_size == STEPS
    assert rows[-1]["loss"] < 0.98 * rows[0]["loss"]
    published = load_published(rf_detr_files.BOXES, weights="rf-detr-nano").state_dict
    trained = HeadCheckpoint.load("RUN/detector.safetensors").state_dict
    in_vit = [name for name in published if name.startswith(VIT)]
    assert len(in_vit) > 100
    assert all(trained[name].equal(published[name]) for name in in_vit)
