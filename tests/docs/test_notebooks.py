"""The notebooks in examples/notebooks: stored without outputs; every cell runs on drawn images, without a network."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
# run after the last cell, with the names of the notebook
CHECKS = {
    "ten_lines": """
assert result.best.metric == "r2"
assert [*result.table()["target"].unique()] == ["cover", "Dry_Total_g", "overall"]
assert len(rows) == len(frame) == 48
assert overlay_panel(rows[0]["image"], rows[0], predictor.tasks, predictor.preprocess).width > 1000""",
    "regression": """
assert report["scores"]["cover"]["head"]["r2"]["pooled"] > 0.2
written = pd.read_csv("submission.csv", index_col=ID)
assert list(written.index) == list(pd.read_csv(sample)[ID]) != list(test_table[ID])
[own] = predictor(paths[0])  # values are matched by id, not by position
assert all(abs(written.loc[test_table[ID][0], name] - own[name]) < 1e-3 for name in TARGETS)""",
    "segmentation": """
assert scores["head"]["mean_iou"]["pooled"] > 0.6
for number in range(48, 52):
    assert (np.array(Image.open(f"predicted/{number}.png")) == np.array(draw(number)[1])).mean() > 0.8""",
    "detection": """
assert report["best"]["AP50"] > 0.7 > report["untrained"]["AP50"]
assert np.abs(boxes[: len(prediction["boxes"])] - prediction["boxes"].numpy()).max() < 1  # ONNX Runtime and torch""",
}


def cells(path: Path, kind: str) -> list[str]:
    return [
        "".join(cell["source"])
        for cell in json.loads(path.read_text())["cells"]
        if cell["cell_type"] == kind
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_without_outputs(path: Path) -> None:
    content = json.loads(path.read_text())
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    assert content["metadata"]["kernelspec"]["name"] == "python3"
    assert len({cell["id"] for cell in content["cells"]}) == len(content["cells"])
    assert not [
        cell for cell in content["cells"] if cell.get("outputs") or cell.get("execution_count")
    ]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_from_top_to_bottom(path: Path, tmp_path: Path) -> None:
    sources = json.dumps([*cells(path, "code"), CHECKS[path.stem]])
    script = (
        "import json, sys\nnames = {}\nfor source in json.load(sys.stdin):\n    exec(source, names)"
    )
    no_display = {**os.environ, "MPLBACKEND": "Agg"}
    (tmp_path / "run").mkdir()  # of the quick start, perhaps
    (tmp_path / "run" / "report.json").write_text("{}")
    subprocess.run(
        [sys.executable, "-c", script],
        input=sources,
        cwd=tmp_path,
        env=no_display,
        text=True,
        check=True,
    )
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["report.json"]
    assert (tmp_path / "notebook-run" / "report.json").is_file()


def test_the_shortest_notebook_has_ten_lines() -> None:
    """From the imports to the picture, without the cells that install dinoneck and draw images."""
    _, _, *sources = cells(ROOT / "examples" / "notebooks" / "ten_lines.ipynb", "code")
    statements = [statement for source in sources for statement in ast.parse(source).body]
    assert len(statements) == 10


def test_the_page_links_every_notebook() -> None:
    page, site = (
        (ROOT / name).read_text() for name in ("docs/quick-start.md", "mkdocs.yml")
    )
    [name] = re.findall(r"^repo_url: https://github.com/(\S+)$", site, re.MULTILINE)
    paths = {f"github/{name}/blob/main/examples/notebooks/{path.name}" for path in NOTEBOOKS}
    assert paths == set(re.findall(r"colab\.research\.google\.com/(\S+?)\)", page)) != set()
