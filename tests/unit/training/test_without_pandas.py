"""Without the extra ``train``: fit on arrays and prediction work; tables name the extra."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import sys
sys.modules["pandas"] = sys.modules["sklearn"] = None
import numpy as np
import torch
from dinoneck import PatchMeanHead, Predictor, Task, Tokens, load_backbone
from dinoneck.training import MemoryTokens, fit

torch.manual_seed(0)
backbone = load_backbone("dinoneck_tiny")
images = [np.full((32, 48, 3), 30 * i, np.uint8) for i in range(4)]
source = MemoryTokens.extract(backbone, images, list("abcd"))
head = PatchMeanHead(backbone.embed_dim, [Task("y")], hidden_dim=4)
fit(head, source, targets={"y": np.arange(4.0)}, target_ids=list("abcd"), epochs=1)
fit(head, source, targets={"y": dict(zip("abcd", range(4)))}, epochs=1)
print(len(Predictor(head, backbone)(images)))
for call in ("from dinoneck.data import read_table", "Pasture(size=(32, 32)).table(range(1))"):
    try:
        exec("from dinoneck.data import Pasture\\n" + call)
    except ImportError as error:
        print("dinoneck[train]" in str(error))
"""


@pytest.mark.slow
def test_fit_and_prediction_need_no_pandas() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["4", "True", "True"], done.stderr
