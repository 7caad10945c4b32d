"""Training on several augmented views: which ones are read, and where the labels of flipped cells lie."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from dinoneck import PatchMeanHead, Task, Tokens
from dinoneck.data import Views
from dinoneck.training import Recipe, fit
from dinoneck.training.sources import Samples

ROWS, COLS, WIDTH, IMAGES = 2, 3, 4, 6


class Flipped:
    """A store in small: index images, every cell's token holds its place; the views flip them."""

    def __init__(self) -> None:
        cells = torch.arange(IMAGES * ROWS * COLS, dtype=torch.float32).reshape(IMAGES, 1, ROWS, COLS)
        self.cells = cells / cells.numel()
        self.ids = tuple(f"p{i}" for i in range(IMAGES))
        self.views = Views.named("flips4")
        self.asked: list[list[int]] = []

    def batch(self, ids: Sequence[str], views: Sequence[int] | None = None) -> Tokens:
        views = [0] * len(ids) if views is None else list(views)
        self.asked.append(views)
        maps = []
        for image_id, view in zip(ids, views, strict=True):
            horizontal, vertical = self.views.flips(view)
            axes = [axis for axis, flipped in ((-1, horizontal), (-2, vertical)) if flipped]
            maps.append(self.cells[self.ids.index(image_id)].flip(axes))
        values = torch.stack(maps).reshape(len(ids), ROWS * COLS, 1)
        tokens = values * torch.tensor([1.0, 0.0, -1.0, 0.5]) + torch.tensor([0.0, 1.0, 0.0, -1.0])
        return Tokens.from_patches(tokens, grid=(ROWS, COLS), patch_size=16)


def test_labels_of_a_cell_follow_the_image() -> None:
    source = Flipped()
    pixels = torch.arange(IMAGES * 4 * 6).reshape(IMAGES, 4, 6)
    values = {"map": source.cells, "mask": pixels, "mean": source.cells.mean(dim=(1, 2, 3))[:, None]}
    values["map.weight"] = source.cells[:, 0]
    labels = Samples(source, source.ids, IMAGES, {"map", "mask", "map.weight"}, values, torch.device("cpu"))
    tokens, wanted = labels.read([4, 1, 0, 5], [3, 1, 0, 2], is_training=True)
    shown = tokens.maps()[-1]
    assert torch.equal(wanted["map"][:, 0], shown[:, 0])
    assert torch.equal(wanted["map.weight"], shown[:, 0])
    expected = [pixels[4].flip(-1, -2), pixels[1].flip(-1), pixels[0], pixels[5].flip(-2)]
    assert torch.equal(wanted["mask"], torch.stack(expected))
    assert torch.equal(wanted["mean"], values["mean"][[4, 1, 0, 5]])


def test_every_sample_meets_every_view_in_training_and_its_own_image_in_validation() -> None:
    source = Flipped()
    torch.manual_seed(0)
    head = PatchMeanHead(WIDTH, [Task("x")], hidden_dim=4)
    recipe = Recipe(standardise_tokens=False)
    split = {"target_ids": source.ids, "ids": source.ids[:4], "val_ids": source.ids[4:]}
    fit(head, source, {"x": np.arange(IMAGES) * 1.0}, epochs=30, batch_size=4, recipe=recipe, **split)
    trained = [views for views in source.asked if len(views) == 4]
    for place in range(4):
        assert {views[place] for views in trained} == {0, 1, 2, 3}
    assert all(views == [0, 0] for views in source.asked if len(views) == 2)
