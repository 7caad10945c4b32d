"""The files of schema 1 in ``tests/fixtures/schema_1``, which every later version reads: ``python -m tests.schema_1``.

They are written once, with 0.3.0: a head of every type and two small stores, with what they gave
then. A head type that is added later joins them; files that are there stay as they are.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dinoneck import FeatureStore
from dinoneck.checkpoint import HeadCheckpoint
from dinoneck.heads import Head
from tests import kit
from tests.contract.cases import CASES, Case

FOLDER = Path(__file__).parent / "fixtures" / "schema_1"
EXPECTED = FOLDER / "expected.safetensors"
DTYPES = ("fp16", "int8")
IMAGES = ("a.png", "b.png")


def built() -> Iterator[tuple[Case, Head]]:
    """The cases of the contract battery that are heads, with weights as after training."""
    for case in CASES:
        module = case.build()
        if isinstance(module, Head):
            yield case, kit.randomised(module).eval()


def outputs(head: Any, sequence: list[Tensor], case: Case) -> dict[str, Tensor]:
    """What a head gives for tokens: normalised outputs and predictions, by their names."""
    rows, cols = case.grid or (3, 5)
    tokens = kit.tokens_from(sequence, rows, cols, layers=range(case.layers), normed=True)
    with torch.no_grad():
        found = {f"predicted {name}": x for name, x in head.predict(tokens).items()}
        return {name: x.contiguous() for name, x in {**head(tokens), **found}.items()}


def write() -> None:
    """Write the files that are missing."""
    expected: dict[str, Tensor] = load_file(EXPECTED) if EXPECTED.exists() else {}
    FOLDER.mkdir(parents=True, exist_ok=True)
    for case, head in built():
        file = FOLDER / f"{case.name}.safetensors"
        if not file.exists():
            torch.manual_seed(0)
            sequence = [x.contiguous() for x in case.inputs().sequence]
            HeadCheckpoint.from_module(head, backbone=None).save(file)
            expected |= {f"{case.name}/tokens/{i}": x for i, x in enumerate(sequence)}
            expected |= {
                f"{case.name}/{name}": x for name, x in outputs(head, sequence, case).items()
            }
    if not (FOLDER / "with_backbone.safetensors").exists():
        kit.saved_head(
            FOLDER / "with_backbone.safetensors", kit.randomised(kit.head()), backbone=lora()
        )
    for dtype in DTYPES:
        if not (FOLDER / f"store_{dtype}").exists():
            with tempfile.TemporaryDirectory() as images:
                kit.write_images(Path(images), IMAGES)
                store = FeatureStore.create(
                    FOLDER / f"store_{dtype}",
                    backbone=kit.backbone(layers=2),
                    image_size=kit.SIZE,
                    dtype=dtype,
                )
                store.extract([images], images)
            expected[f"store_{dtype}"] = store.batch(store.ids).sequence[0]
    save_file(expected, EXPECTED)


def lora() -> Any:
    """The tiny backbone with LoRA weights that are not zero."""
    own = kit.backbone().add_lora(1, seed=0)
    for name, parameter in own.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    return own


if __name__ == "__main__":
    write()
