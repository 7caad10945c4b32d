"""The commands: findings of people who tried the library for an hour, and mistakes made on purpose."""

from __future__ import annotations

from typing import NamedTuple

SHORT = "--backbone dinoneck_tiny --epochs 1 --folds 2"
"""Options of a training that takes seconds."""

RUNS = (
    f"train --csv ds/cover.csv --targets soil crop weed --out run_abc --group group {SHORT}",
    f"train --csv ds/cover.csv --targets crop weed --out run_b --group group {SHORT}",
    f"train --images ds/images --labels ds/masks --classes soil crop weed --out run_seg {SHORT}",
    f"train --images cls --out run_cls {SHORT}",
    f"train --csv ds/cover.csv --targets crop --import own.py --head max_head --out run_own {SHORT}",
    "train --boxes cells/train.json --val-boxes cells/val.json --images cells/images --out run_det "
    "--backbone dinoneck_tiny --head sta_pyramid --epochs 1 --size 96x128",
    "predict new/images --heads run_b --out predicted.csv",
    "predict clsnew --heads run_cls --out classes.csv --overlay pictures_of_classes",
)
"""The runs and predictions that later commands name."""
WITHOUT_MATPLOTLIB = "viz report run_b new/images --truth new/cover.csv --out report.html"
"""Makes the report that later commands name, where matplotlib is not installed."""


class Case(NamedTuple):
    """A command or a line of Python, and what it has to print.

    Attributes:
        what: was found, or is wrong.
        words: of the command, after ``dinoneck``; or the line of Python.
        code: the exit code.
        says: is in a line of the output.
        lacks: packages that are not installed.
        leaves: a file or folder that the command makes, which is removed after it; empty: none.
        shows: are in further lines of the output, which the page shows too.
        is_python: whether it is a line of Python.
    """

    what: str
    words: str
    code: int
    says: str
    lacks: tuple[str, ...] = ()
    leaves: str = ""
    shows: tuple[str, ...] = ()
    is_python: bool = False

    @property
    def command(self) -> str:
        """What a shell runs."""
        if self.is_python:
            return f'python -c "{self.words}"'
        return f"dinoneck {self.words}"


def _train(options: str) -> str:
    return f"train {options} --out run {SHORT}"


def _of_cover(options: str) -> str:
    return _train(f"--csv ds/cover.csv {options}")


_DEFAULTS_IN_HELP = (
    "import subprocess, sys; "
    "text = subprocess.check_output([sys.executable, '-m', 'dinoneck', 'train', '--help'], text=True); "
    "print(text.count('default: None'), 'times (default: None)')"
)
_PHOTO_IN_PICTURE = (
    "import numpy as np; from PIL import Image; "
    "photo = Image.open('clsnew/early/00.png').resize((1200, 800)); "
    "picture = Image.open('pictures_of_classes/early/00.jpg'); "
    "difference = np.abs(np.float32(photo) - np.float32(picture)[:800]).mean(); "
    "print('below the photo', picture.height - 800, 'px; the photo is unchanged:', difference < 5)"
)
_NO_CHARTS = (
    "import html, re; text = html.unescape(open('report.html').read()); "
    "print(re.search('Charts are left out[^<]*', text)[0])"
)
_DIGITS_IN_REPORT = (
    "import csv; number = next(csv.DictReader(open('predicted.csv')))['crop']; "
    "text = open('report.html').read(); "
    "print('six digits:', number in text, 'three digits:', f'{float(number):.3g}' in text)"
)
_COLOUR_OF_WBC = (
    "import numpy as np; from dinoneck.viz import boxes_panel; "
    "box = {'boxes': [[8, 8, 40, 40]], 'labels': [1]}; "
    "picture = boxes_panel(np.zeros((64, 64, 3), 'uint8'), box, classes=['RBC', 'WBC']); "
    "print('#%02x%02x%02x' % picture.getpixel((300, 112)))"
)
_TRAIN_WITH_DICT = (
    "import dinoneck; data = {'csv': 'ds/cover.csv', 'targets': ['crop']}; "
    "print(dinoneck.train({'data': data, 'backbone': {'name': 'dinoneck_tiny'}, "
    "'optim': {'epochs': 1}, 'folds': {'count': 2}}, 'run'))"
)
_TRAIN_WITH_KEYWORDS = (
    "import dinoneck; result = dinoneck.train(out='run', csv='ds/cover.csv', targets=['crop'], "
    "backbone='dinoneck_tiny', epochs=1, folds=2); print(result)"
)

FINDINGS = (
    Case(
        "images/ and masks/ in one folder were trained as two classes",
        _train("--images ds"),
        0,
        "targets segmentation",
        leaves="run",
    ),
    Case(
        "a folder of masks as the truth of a report ended in a TypeError",
        "viz report run_seg new/images --truth new/masks --out r.html",
        0,
        "12 images predicted, 12 drawn; written: r.html",
        leaves="r.html",
    ),
    Case(
        "class folders were no truth of a report",
        "viz report run_cls clsnew --truth clsnew --out r.html",
        0,
        "12 images predicted, 12 drawn; written: r.html",
        leaves="r.html",
    ),
    Case(
        "a COCO file was no truth of a report",
        "viz report run_det cells/images --truth cells/val.json --out r.html",
        0,
        "6 images predicted, 6 drawn; written: r.html",
        leaves="r.html",
    ),
    Case(
        "a folder of masks was no truth of pictures",
        "predict new/images --heads run_seg --truth new/masks --out p.csv --overlay pictures",
        0,
        "12 images predicted; written: p.csv, pictures",
        leaves="pictures",
    ),
    Case(
        "a training without a finished epoch blocked its folder",
        f"train --csv ds/cover.csv --targets crop --out stopped {SHORT}",
        0,
        "written: stopped, with report.json",
        leaves="stopped",
    ),
    Case(
        "heads with some equal targets were not compared",
        "evaluate new --heads run_abc run_b --truth new/cover.csv",
        0,
        "soil: predicted by run_abc only, so it is not compared",
        shows=("R², 95 % interval", "run_abc minus run_b"),
    ),
    Case(
        "images that a head was trained on were scored without a word",
        "evaluate ds --heads run_b --truth ds/cover.csv",
        0,
        "head was trained on 48 of the 48 images, such as",
    ),
    Case(
        "and with a copy of the head",
        "evaluate ds --heads copy.safetensors --truth ds/cover.csv",
        0,
        "head was trained on 48 of the 48 images, such as",
    ),
    Case(
        "names with their folder were refused by evaluate, and not by predict",
        "evaluate new/images --heads run_b --truth new/cover.csv",
        0,
        "R² (MAE)",
    ),
    Case(
        "a truth of some of the images: these are scored",
        "evaluate ds --heads run_b --truth ds/cover2.csv",
        0,
        "R² (MAE)",
        shows=("head  ", "images  "),
    ),
    Case(
        "predict took no --import",
        "predict new/images --heads run_own --out p.csv --import own.py",
        0,
        "12 images predicted",
    ),
    Case(
        "evaluate took no --import",
        "evaluate new --heads run_own --truth new/cover.csv --import own.py",
        0,
        "R² (MAE)",
        shows=("head  ",),
    ),
    Case(
        "evaluate took no names of heads",
        "evaluate new --heads a=run_abc b=run_b --truth new/cover.csv",
        0,
        "soil: predicted by a only, so it is not compared",
        shows=("R² (MAE)", "a  ", "b  "),
    ),
    Case(
        "a dict was no configuration of train",
        _TRAIN_WITH_DICT,
        0,
        "TrainingResult of run",
        shows=("crop  linear  R²",),
        leaves="run",
        is_python=True,
    ),
    Case(
        "train took a configuration alone",
        _TRAIN_WITH_KEYWORDS,
        0,
        "TrainingResult of run",
        shows=("crop  linear  R²",),
        leaves="run",
        is_python=True,
    ),
    Case(
        "a class had another colour where the class before it was not found",
        _COLOUR_OF_WBC,
        0,
        "#d55e00",
        is_python=True,
    ),
    Case(
        "a report without matplotlib has no chart; it says how to get them",
        _NO_CHARTS,
        0,
        "Charts are left out: matplotlib draws them, pip install 'dinoneck[train]'.",
        is_python=True,
    ),
    Case(
        "a class per image was drawn as a wash over the photo",
        _PHOTO_IN_PICTURE,
        0,
        "px; the photo is unchanged: True",
        is_python=True,
    ),
    Case(
        "the worse of head and baseline predicted",
        _of_cover("--targets crop weed --group group"),
        0,
        "It predicts with the",
        leaves="run",
    ),
    Case(
        "the help of train began with any options",
        "train --help",
        0,
        "for a first run, in the order of use:",
    ),
    Case(
        "and said (default: None) 40 times",
        _DEFAULTS_IN_HELP,
        0,
        "0 times (default: None)",
        is_python=True,
    ),
    Case(
        "doctor printed a line per package",
        "doctor",
        0,
        "extra detection:",
        shows=("the core works",),
    ),
    Case(
        "types and published heads were one list",
        "list heads",
        0,
        "Heads and necks to train (dinoneck train --head NAME):",
        shows=("Published heads, to predict with as they are",),
    ),
    Case(
        "tables had keys for words, such as mean_iou, and a worst fold without folds",
        "evaluate new --heads run_seg --truth new",
        0,
        "mean IoU",
        shows=("head  ",),
    ),
    Case(
        "a table of errors had pixels alone",
        "evaluate new --heads run_seg --truth new",
        0,
        "% of row (count)",
        shows=("% (",),
    ),
    Case(
        "a report had the six digits of the CSV file, and its pictures three",
        _DIGITS_IN_REPORT,
        0,
        "six digits: False three digits: True",
        is_python=True,
    ),
    Case(
        "a report of 48 images, three targets, 24 of them drawn, was too large for mail",
        "viz report run_abc ds/images --truth ds/cover.csv --out r.html",
        0,
        "48 images predicted, 24 drawn; written: r.html",
        leaves="r.html",
    ),
    Case(
        "dir(dinoneck) had names of the package's own modules",
        "import dinoneck; print({'Path', 'attach', 'exports', 'homes', 'lazy'} & {*dir(dinoneck)})",
        0,
        "set()",
        is_python=True,
    ),
    Case(
        "a Predictor did not say what it is",
        "from dinoneck import Predictor; print(Predictor('run_b'))",
        0,
        "Predictor(",
        is_python=True,
    ),
    Case(
        "a folder was no input of a Predictor",
        "from dinoneck import Predictor; print(len(Predictor('run_b')('new/images')))",
        0,
        "12",
        is_python=True,
    ),
    Case(
        "class folders in train/ and val/ were refused",
        "train --images split --out run --backbone dinoneck_tiny --epochs 1",
        0,
        "parts: train 12, val 12",
        leaves="run",
    ),
    Case(
        "a size that is no multiple of the patch becomes one, in a line",
        _of_cover("--targets crop --size 100x100"),
        0,
        "becomes 96x96 px",
        leaves="run",
    ),
)
"""What people found, and a command of today that shows it."""

MISTAKES = (
    Case("an option", _of_cover("--target crop"), 2, "Did you mean '--targets'?"),
    Case("a column", _of_cover("--targets corp"), 1, "has no column 'corp'; there are crop"),
    Case("a table", _train("--csv ds/covr.csv --targets crop"), 1, "ds/covr.csv does not exist"),
    Case(
        "a folder of images",
        "predict new/imags --heads run_b --out p.csv",
        1,
        "1 of 1 images or folders do not exist, the first is new/imags",
    ),
    Case(
        "an image of a table",
        _train("--csv missing.csv --images ds --targets crop"),
        1,
        "1 of 48 images named in missing.csv are not in ds: 'images/99.png'",
    ),
    Case("a verb", "trian --csv ds/cover.csv", 2, "unknown verb 'trian'. Did you mean 'train'?"),
    Case(
        "a backbone",
        "train --csv ds/cover.csv --targets crop --out run --backbone dinov3_vitsmall",
        1,
        "backbone 'dinov3_vitsmall' is unknown. Did you mean 'dinov3_vits16'?",
    ),
    Case("a size", _of_cover("--targets crop --size 640*480"), 2, "640*480"),
    Case(
        "the size of a detector",
        "train --boxes cells/train.json --images cells/images --out run --backbone dinoneck_tiny "
        "--head sta_pyramid --size 100x130",
        1,
        "this detector needs multiples of 32x32, such as 128x160",
    ),
    Case(
        "a folder with results",
        f"train --csv ds/cover.csv --targets crop --out run_b {SHORT}",
        1,
        "--out run_b holds results of an earlier run",
    ),
    Case(
        "a folder that holds files",
        "predict new/images --heads run_b --out p.csv --overlay ds",
        1,
        "--overlay ds holds files; name a new folder",
    ),
    Case(
        "a value of masks that is no class",
        _train("--images ds/images --labels ds/masks --classes soil crop"),
        1,
        "holds 2 in 686 pixels, which is of no class",
        leaves="run",
    ),
    Case(
        "a column of names",
        _of_cover("--targets image"),
        1,
        "target 'image' has 48 classes in 48 images; expected 2 images a class",
    ),
    Case(
        "a detector among heads",
        "predict new/images --heads run_b run_det --out p.csv",
        1,
        "2 heads are given, a detector among them",
    ),
    Case(
        "heads of two kinds",
        "predict new/images --heads run_b run_seg --out p.csv",
        1,
        "heads 1 and 2 of the list differ",
    ),
    Case(
        "images after the options",
        "predict --heads run_b new/images --out p.csv",
        1,
        "name images, or folders of them, before the options",
    ),
    Case(
        "a published head",
        "predict new/images --heads dinov2_vits14_nyu_linar4 --out p.csv",
        1,
        "Did you mean 'dinov2_vits14_nyu_linear4'?",
    ),
    Case(
        "the target of a smallest score",
        "evaluate new --heads run_b --truth new/cover.csv --at-least crops=0.1",
        1,
        "--at-least names 'crops'; expected one of AP,",
    ),
    Case(
        "no onnx",
        "export run_b --with-backbone --format onnx --out o.onnx --size 96x128",
        1,
        "onnx is not installed; it comes with an extra: pip install 'dinoneck[export]'",
        lacks=("onnx", "onnxscript", "onnxruntime"),
    ),
    Case(
        "no uvicorn",
        "serve run_b",
        1,
        "uvicorn is not installed; it comes with an extra: pip install 'dinoneck[serve]'",
        lacks=("uvicorn",),
    ),
    Case(
        "a type of head",
        _of_cover("--targets crop --head patch_men"),
        1,
        "head_type 'patch_men' is not registered. Did you mean 'patch_mean'?",
    ),
    Case(
        "a column of groups",
        _of_cover("--targets crop --group plot"),
        1,
        "ds/cover.csv has no column 'plot'",
    ),
    Case(
        "fewer groups than folds",
        "train --csv two_groups.csv --targets crop --group group --out run --folds 5",
        1,
        "2 groups cannot fill 5 folds; use fewer folds (--folds) or a finer group column",
    ),
    Case(
        "the folder of boxes",
        "train --boxes cells/train.json --images ds/images --out run --backbone dinoneck_tiny",
        1,
        "12 of 12 images of cells/train.json are not in ds/images",
    ),
    Case(
        "a truth without what is predicted",
        "evaluate new --heads run_cls --truth new/cover.csv",
        1,
        "the truth has none of what is predicted, class",
    ),
    Case(
        "images that are not in the folder",
        _train("--csv ds/cover.csv --images empty --targets crop"),
        1,
        "48 of 48 images named in ds/cover.csv are not in empty",
    ),
    Case(
        "a folder without images",
        _train("--images text"),
        1,
        "the folder text holds no images (.jpg, ",
    ),
    Case(
        "a folder without images to predict",
        "predict text --heads run_b --out p.csv",
        1,
        "the folder text holds no images (.jpg, ",
    ),
    Case(
        "no pycocotools for objects",
        "train --instances cells/train.json --images cells/images --out run --backbone dinoneck_tiny",
        1,
        "pycocotools is not installed; it comes with an extra: pip install 'dinoneck[masks]'",
        lacks=("pycocotools", "faster_coco_eval"),
    ),
    Case(
        "no pandas",
        _of_cover("--targets crop"),
        1,
        "pandas is not installed; it comes with an extra: pip install 'dinoneck[train]'",
        lacks=("pandas",),
    ),
    Case(
        "a head file",
        "predict new/images --heads nothing --out p.csv",
        1,
        "the head file 'nothing' cannot be opened",
    ),
    Case(
        "the truth of a report",
        "viz report run_b new/images --truth new/covr.csv --out r.html",
        1,
        "new/covr.csv does not exist",
    ),
    Case(
        "a block of the backbone",
        _of_cover("--targets crop --layers 9"),
        1,
        "layers is [9]; expected block indices -6 ... 5",
    ),
    Case(
        "a package that is missing, before anything is written",
        "train --boxes cells/train.json --images cells/images --out run --backbone dinoneck_tiny",
        1,
        "pycocotools is not installed; it comes with an extra: pip install 'dinoneck[detection]'",
        lacks=("pycocotools", "faster_coco_eval"),
    ),
    Case(
        "an own head without its module",
        "predict new/images --heads run_own --out p.csv",
        1,
        "--import",
    ),
    Case(
        "a published head without network",
        "predict new/images --heads dinov2_vits14_nyu_linear4 --out p.csv",
        1,
        "dinov2_vits14_nyu_linear4 was not fetched from https://",
    ),
    Case(
        "a table in the place of images",
        "predict ds/cover.csv --heads run_b --out p.csv",
        1,
        "ds/cover.csv is a .csv file, not an image",
    ),
    Case(
        "the name of a run, in Python",
        "from dinoneck import Predictor; Predictor('rnu_b')",
        1,
        "the head file 'rnu_b' cannot be opened",
        is_python=True,
    ),
    Case(
        "a column, in Python",
        "from dinoneck.data import read_table; read_table('ds/cover.csv', targets=['crops'])",
        1,
        "Did you mean 'crop'?",
        is_python=True,
    ),
)
"""What is wrong, and what is said of it."""

AFTER_TORCH = (
    "the folder of boxes",
    "a value of masks that is no class",  # shows in the pixels alone
    "an own head without its module",
    "a published head without network",
    "the name of a run, in Python",
    "a column, in Python",
)
"""Mistakes that are refused when the libraries are imported, which takes seconds."""
