"""The Lightning module of the page on training loops resumes a run with what was trained."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import dinoneck
from dinoneck import PatchMeanHead, Task, load_backbone

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "integrations" / "training-loops.md"


def module_of_the_page() -> Any:
    lightning = pytest.importorskip("lightning")
    [source] = re.findall(
        r"^class Classification\(.*?(?=^\S)", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    space: dict[str, Any] = {"L": lightning, "torch": torch, "F": torch.nn.functional}
    exec(source, space)
    return space["Classification"]


def trainer(epochs: int) -> Any:
    return pytest.importorskip("lightning").Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@pytest.mark.filterwarnings("ignore")
def test_a_run_that_is_resumed_begins_with_the_lora_weights_that_it_had(tmp_path: Path) -> None:
    module = module_of_the_page()

    def model() -> Any:
        task = Task("light", dim=2, kind="classification")
        return module(load_backbone("dinoneck_tiny").add_lora(2), PatchMeanHead(64, [task]))

    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    data = DataLoader(TensorDataset(images, torch.tensor([0, 1, 0, 1])), batch_size=2)
    first, second = model(), model()
    run = trainer(2)
    run.fit(first, data)
    run.save_checkpoint(tmp_path / "last.ckpt")
    with torch.serialization.safe_globals(dinoneck.safe_globals()):
        trainer(2).fit(second, data, ckpt_path=tmp_path / "last.ckpt")
    trained = {name: p for name, p in first.named_parameters() if p.requires_grad}
    lora = [name for name in trained if "lora_B" in name]
    assert lora
    assert all(trained[name].abs().sum() > 0 for name in lora)
    resumed = dict(second.named_parameters())
    assert all(torch.equal(resumed[name], p) for name, p in trained.items())
    content = torch.load(tmp_path / "last.ckpt", weights_only=False)
    assert not any("patch_embed" in name for name in content["state_dict"])
