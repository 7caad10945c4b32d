"""What is refused before torch is imported, whose import takes seconds; nothing is written."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from tests.kit import head, saved_head, write_images

from dinoneck import Task
from dinoneck.tasks import Interval

pytestmark = pytest.mark.slow

# runs each command line of stdin in one process; prints codes, output, and which of these are imported
PROGRAM = """
import contextlib, io, json, sys
from dinoneck.cli.main import main
lines = []
for words in json.load(sys.stdin):
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        code = main(words)
    imported = sorted({"torch"}.intersection(sys.modules))
    lines.append([code, text.getvalue(), imported])
print(json.dumps(lines))
"""

# words of a command line without --out, and what its only line says
REFUSED = {
    "a table that is missing": (
        "train --csv covr.csv --targets crop",
        "covr.csv does not exist; check the name",
    ),
    "a column": (
        "train --csv cover.csv --targets corp",
        "cover.csv has no column 'corp'; there are crop, field, image, name, site. Did you mean 'crop'?",
    ),
    "a column of groups": (
        "train --csv cover.csv --targets crop --group plot",
        "cover.csv has no column 'plot'",
    ),
    "an image of a table": (
        "train --csv missing.csv --images . --targets crop",
        "1 of 4 images named in missing.csv are not in .: 'images/9.png'",
    ),
    "fewer groups than folds": (
        "train --csv cover.csv --targets crop --group field --folds 3",
        "2 groups cannot fill 3 folds; use fewer folds (--folds) or a finer group column",
    ),
    "fewer images than folds": (
        "train --csv cover.csv --targets crop --folds 5",
        "4 images cannot fill 5 folds; use fewer folds (--folds)",
    ),
    "the number of a fold": (
        "train --csv cover.csv --targets crop --folds 2 --fold 2",
        "fold is 2 and there are 2 folds; expected 0 ... 1",
    ),
    "a column to stratify by": (
        "train --csv cover.csv --targets crop --folds 2 --stratify field",
        "folds.stratify is 'field'; expected one of the targets crop",
    ),
    "a folder without images": (
        "train --images empty",
        "the folder empty holds no images (.jpg, ",
    ),
    "images alone": (
        "train --images images",
        "images holds images, without class folders and masks",
    ),
    "a folder of masks": (
        "train --images images --labels maks --classes a b",
        "maks does not exist; check the name",
    ),
    "a type of head": (
        "train --csv cover.csv --targets crop --head patch_men",
        "head_type 'patch_men' is not registered. Did you mean 'patch_mean'?",
    ),
    "the name of a published head": (
        "predict images --heads dinov2_vits14_nyu_linar4",
        "Did you mean 'dinov2_vits14_nyu_linear4'?",
    ),
    "a head file": (
        "predict images --heads nothing",
        "the head file 'nothing' cannot be opened",
    ),
    "a folder without heads": (
        "predict images --heads empty",
        "the folder empty holds no head files",
    ),
    "a level that a head does not hold": (
        "predict images --heads head.safetensors --interval 0.9",
        "interval is 0.9, and the head holds no intervals: train with held-out images of 9 groups",
    ),
    "another level": (
        "predict images --heads intervals.safetensors --interval 0.95",
        "interval is 0.95; the head holds 0.5, 0.9, as 0.95 needs held-out images of 19 groups",
    ),
    "a level that is none": (
        "predict images --heads intervals.safetensors --interval 90",
        "interval is 90.0; expected a number between 0 and 1, such as 0.9",
    ),
    "a level of two heads": (
        "predict images --heads intervals.safetensors head.safetensors --interval 0.8",
        "interval is 0.8; the head holds 0.5, 0.9, as",
    ),
    "the truth of a report": (
        "viz report head.safetensors images --truth covr.csv",
        "covr.csv does not exist; check the name",
    ),
    "the column of a truth": (
        "viz report head.safetensors images --truth cover.csv --image-column file",
        "cover.csv has no column 'file'",
    ),
    "a column of names": (
        "train --csv cover.csv --targets name --folds 2",
        "target 'name' has 4 classes in 4 images; expected 2 images a class on average",
    ),
    "a column with one class": (
        "train --csv cover.csv --targets site --folds 2",
        "target 'site' has one class alone, 'north', in 4 images",
    ),
    "blocks that are not there": (
        "train --csv cover.csv --targets crop --folds 2 --layers 6",
        "layers is [6]; expected block indices -6 ... 5",
    ),
    "the size of a detector": (
        "train --boxes boxes.json --images images --size 100x130",
        "size is 100x130 (height x width); this detector needs multiples of 32x32, such as 128x160",
    ),
    "the size of a detector with half patches": (
        "train --boxes boxes.json --images images --head sta_pyramid --size 96x112",
        "multiples of 32x32, such as 96x128",
    ),
    "the size of a detector on a simple pyramid": (
        "train --boxes boxes.json --images images --head simple_pyramid --size 96x112",
        "multiples of 32x32, such as 96x128",
    ),
    "the size of a detector on three levels": (
        "train --boxes boxes.json --images images --head vit_fpn --size 64x96",
        "multiples of 64x64, such as 64x128",
    ),
    "the scales of a neck": (
        "train scales.yaml",
        "scales is (3,); expected one or more of 4, 2, 1, 0.5, 0.25",
    ),
    "the layers of a neck": (
        "train --boxes boxes.json --images images --head dpt_neck --layers 1 2 3 4 5",
        "num_layers is 5; a DPTNeck has 4 scales, so at most 4 layers",
    ),
    "the layers of the neck of objects": (
        "train --instances boxes.json --images images --layers 1 2 3 4 5",
        "num_layers is 5; a DPTNeck has 4 scales, so at most 4 layers",
    ),
    "heads that differ": (
        "predict images --heads head.safetensors other.safetensors",
        "heads 1 and 2 of the list differ (heads.config.tasks.0.activation: softplus / None)",
    ),
    "known values next to those of an exported file": (
        "predict images --heads head.onnx --truth cover.csv --overlay pictures",
        "--truth cover.csv is drawn next to predictions of head files, and head.onnx is an exported",
    ),
    "the target of a smallest score": (
        "evaluate . --heads head.safetensors --truth cover.csv --at-least crops=0.1",
        "--at-least names 'crops'; expected one of AP, ",
    ),
    "a truth of other targets": (
        "evaluate . --heads head.safetensors --truth sites.csv",
        "the truth has none of what is predicted, ",
    ),
    "a class to paint alone": (
        "paint images --classes crop",
        "classes are ['crop']; expected 2 ... 255 names (--classes)",
    ),
    "strokes that are missing": (
        "paint images --strokes stroke.json",
        "stroke.json does not exist; check the name",
    ),
    "strokes that are none": (
        "paint images --strokes cover.csv",
        "cover.csv is damaged: it is no JSON",
    ),
    "the backbone of a page to paint in": (
        "paint images --classes crop weed --backbone resnet50",
        "resnet50",
    ),
    "a table in the place of images": (
        "predict cover.csv --heads head.safetensors",
        "cover.csv is a .csv file, not an image; name images, or the folder that they are in",
    ),
    "a COCO file among the images of a report": (
        "viz report head.safetensors images boxes.json",
        "boxes.json is a .json file, not an image",
    ),
    "groups of a truth": (
        "evaluate . --heads head.safetensors --truth cover.csv --group plot",
        "cover.csv has no column 'plot'",
    ),
}


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, list[str]]]:
    """Case -> exit code, output, and whether torch is imported by then."""
    folder = tmp_path_factory.mktemp("work")
    write_images(folder / "images", [f"{i}.png" for i in range(4)])
    (folder / "empty").mkdir()
    saved_head(folder / "head.safetensors")
    saved_head(folder / "other.safetensors", head(Task("other")))
    interval = Interval(levels=(0.5, 0.9), half_widths=(1.0, 2.0), groups=12)
    saved_head(folder / "intervals.safetensors", head(Task("crop", interval=interval)))
    header = "image,crop,field,name,site"
    rows = [f"images/{i}.png,0.{i},{i % 2},plot {'abcd'[i]},north" for i in range(4)]
    (folder / "cover.csv").write_text("\n".join([header, *rows]))
    rows[3] = "images/9.png,0.3,1,plot d,north"
    (folder / "missing.csv").write_text("\n".join([header, *rows]))
    scales = {
        "data": {"boxes": "boxes.json", "images": "images"},
        "head": {"type": "simple_pyramid", "scales": [3]},
    }
    (folder / "scales.yaml").write_text(json.dumps(scales))
    (folder / "sites.csv").write_text("image,site\nimages/0.png,north\n")
    coco = {
        "images": [{"id": 1, "file_name": "0.png", "width": 8, "height": 8}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4]}],
        "categories": [{"id": 1, "name": "cell"}],
    }
    (folder / "boxes.json").write_text(json.dumps(coco))
    suffixes = {"train": "", "predict": ".csv", "viz": ".html", "paint": ""}
    commands = []
    for words, _ in REFUSED.values():
        verb, *rest = words.split()
        out = [] if verb == "evaluate" else ["--out", f"result{suffixes[verb]}"]
        backbone = ["--backbone", "dinoneck_tiny"] if verb == "train" else []
        commands.append([verb, *rest, *backbone, *out])
    before = sorted(folder.rglob("*"))
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(commands),
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert sorted(folder.rglob("*")) == before, "nothing is written"
    results = json.loads(process.stdout)
    return {case: tuple(result) for case, result in zip(REFUSED, results, strict=True)}


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_before_torch_is_imported(
    case: str, printed: dict[str, tuple[int, str, list[str]]]
) -> None:
    code, text, imported = printed[case]
    assert code == 1
    assert text.startswith("error: ")
    assert REFUSED[case][1] in text
    assert imported == []
