"""The notebooks of examples/notebooks: stored without outputs, and every cell runs, on drawn data and without a network."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
# what holds after the last cell, in the names of the notebook
HOLDS = {
    "regression": """
assert result.report["scores"]["head"]["cover"] > 0.2
written = pd.read_csv("submission.csv", index_col=ID)
assert list(written.index) == list(pd.read_csv(sample)[ID]) != list(test_table[ID]) and list(written) == [*TARGETS]
for row in (0, 5):  # matched by id, not by position
    [own] = predictor(paths[row])
    assert all(abs(written.loc[test_table[ID][row], name] - own[name]) < 1e-3 for name in TARGETS)
""",
    "segmentation": """
assert scores["head"]["mean_iou"]["pooled"] > 0.6 > scores["most frequent class"]["mean_iou"]["pooled"]
for number in range(48, 52):
    assert (np.array(Image.open(f"predicted/{number}.png")) == np.array(draw(number)[1])).mean() > 0.8
""",
    "detection": """
assert report["best"]["AP50"] > 0.7 > report["untrained"]["AP50"]
assert prediction["boxes"].shape == (2, 4) and Path("detector.onnx").exists()
""",
}


def cells(path: Path, kind: str) -> list[str]:
    return ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_short_and_stored_without_outputs(path: Path) -> None:
    content = json.loads(path.read_text())
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    assert content["metadata"]["kernelspec"]["name"] == "python3"
    assert len({cell["id"] for cell in content["cells"]}) == len(content["cells"])
    assert not [cell for cell in content["cells"] if cell.get("outputs") or cell.get("execution_count")]
    assert len(cells(path, "code")) <= 15
    assert len(re.findall(r"\w[\w'-]*", " ".join(cells(path, "markdown")))) <= 350


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_from_top_to_bottom(path: Path, tmp_path: Path) -> None:
    sources = json.dumps([*cells(path, "code"), HOLDS[path.stem]])
    script = "import json, sys\nnames = {}\nfor source in json.load(sys.stdin):\n    exec(source, names)"
    no_display = {**os.environ, "MPLBACKEND": "Agg"}
    subprocess.run([sys.executable, "-c", script], input=sources, cwd=tmp_path, env=no_display, text=True, check=True)


def test_the_page_links_every_notebook_of_the_repository() -> None:
    page, site = ((ROOT / name).read_text() for name in ("docs/tutorials/notebooks.md", "mkdocs.yml"))
    [name] = re.findall(r"^repo_url: https://github.com/(\S+)$", site, re.MULTILINE)
    links = {f"github/{name}/blob/main/examples/notebooks/{path.name}" for path in NOTEBOOKS}
    assert len(links) == 3
    assert links == set(re.findall(r"colab\.research\.google\.com/(\S+?\.ipynb)", page))
