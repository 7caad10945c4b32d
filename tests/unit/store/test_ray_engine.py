"""Ray Data writes the same store; a machine where Ray cannot start is skipped."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.unit.store.store_samples import make, same, write_images

from dinoneck import Backbone, FeatureStore

ROOT = Path(__file__).resolve().parents[3]
LIMIT_S = 120

SCRIPT = """
import sys
from pathlib import Path
import ray
import ray.data
ray.init(num_cpus=4, include_dashboard=False, object_store_memory=200_000_000, log_to_driver=False)
ray.data.DataContext.get_current().wait_for_min_actors_s = 60
print("started", flush=True)
from dinoneck import load_backbone
from tests.unit.store.store_samples import make
store = make(sys.argv[1], load_backbone("dinoneck_tiny"), dtype="int8")
done = store.extract(sys.argv[2], engine="ray", skip_unusable=True, workers=1)
writers = {path.name.rsplit("-", 1)[0] for path in (Path(store.path) / "data").iterdir()}
print("done", len(done.written), sorted(done.unusable), len(store), len(writers), flush=True)
ray.shutdown()
"""


@pytest.mark.slow
def test_ray_writes_the_same_store(tiny: Backbone, tmp_path: Path) -> None:
    """Two actors, each with a writer of its own; what was stored before is not extracted again."""
    write_images(tmp_path, [f"p/{i:03}.png" for i in range(100)])
    (tmp_path / "p" / "x.png").write_text("no picture")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "RAY_USAGE_STATS_ENABLED": "0"}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "s"), str(tmp_path / "p")],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    late = False
    try:
        shown, _ = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        late = True
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        if late:
            shown, _ = process.communicate(timeout=30)
    if late or "started" not in shown:
        pytest.skip(f"Ray did not finish within {LIMIT_S} s on this machine: {shown[-300:]}")
    assert "done 100 ['x'] 100 2" in shown, shown[-3000:]
    expected = make(tmp_path / "expected", tiny, dtype="int8")
    expected.extract(tmp_path / "p", skip_unusable=True)
    assert same(FeatureStore.open(tmp_path / "s"), expected)


def test_without_ray_the_extra_is_named(tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_images(tmp_path, ["a.png"])
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"dinoneck\[ray\]"):
        make(tmp_path / "s", tiny).extract(images, engine="ray")
