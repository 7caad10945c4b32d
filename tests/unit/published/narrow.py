"""Published heads on 64 channels, which is the width of the built-in backbone: the same arithmetic in less time."""

from __future__ import annotations

from dataclasses import replace

from tests.unit.published import official_files as official

from dinoneck.published.table import PublishedHead

WIDTH, HIDDEN, CHANNELS, PATCH = 64, (8, 12, 16, 20), 16, 16


def narrowed(row: PublishedHead) -> tuple[PublishedHead, official.Shapes]:
    """Return the head of a row on 64 channels and patches of 16 px, with the names and shapes of its file."""
    config = {**row.head["config"], "embed_dim": WIDTH}
    if row.head["type"] == "dpt":
        own = {
            "embed_dim": WIDTH,
            "hidden_sizes": list(HIDDEN),
            "out_channels": CHANNELS,
            "patch_size": PATCH,
        }
        config["neck"] = {"type": "dpt_neck", "config": {**config["neck"]["config"], **own}}
        shapes = official.decoder_shapes(row.name, WIDTH, HIDDEN, CHANNELS)
    elif row.head["type"] == "mask":
        shapes = official.mask_shapes(WIDTH, config["tasks"][0]["dim"], config["num_queries"])
    else:
        full, _ = official.shapes_of(row.name)
        times = row.model.width // WIDTH
        shapes = {
            name: (shape[0], shape[1] // times, *shape[2:])
            if len(shape) > 1
            else (shape[0] // times,)
            if ".bn." in name and shape
            else shape
            for name, shape in full.items()
        }
    return replace(row, head={**row.head, "config": config}), shapes
