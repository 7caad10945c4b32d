"""One pass of the backbone over images, and the heads that read its tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from dinoneck.backbones import weight_hashes
from dinoneck.backbones.backbone import Backbone
from dinoneck.checkpoint.compare import check_records
from dinoneck.data.preprocessing import Preprocessing, Size
from dinoneck.devices import fetch, send
from dinoneck.errors import BackboneError, CheckpointError, ConfigError
from dinoneck.grid import PreparedImages
from dinoneck.heads.head import recompute_derived
from dinoneck.inference.loaded_head import LoadedHead, difference
from dinoneck.inference.resolution import objects_at_image_size
from dinoneck.inference.results import rows_of
from dinoneck.inference.tiles import VIEWS, Assembly, Tiling
from dinoneck.tasks import GATE, MAP, Task
from dinoneck.tokens import Tokens

if TYPE_CHECKING:
    from dinoneck.store.feature_store import FeatureStore

Rows = list[dict[str, dict[str, Any]]]  # per image: key of a head -> its row
Outputs = dict[tuple[str, str], Tensor]  # (key of a head, name of its output) -> a batch on the CPU
# views, their tokens, and which cells show the image; a batch per view
Seen = tuple[list[int], Tokens, Tensor]


class Ready(NamedTuple):
    """A decoded image of this (height, width) for a pass: prepared, or its pixels where it is cut into tiles."""

    size: Size
    image: PreparedImages | Tensor


class Pass:
    """A backbone, how its images are prepared, and the heads that read its tokens, by their keys.

    Args:
        heads: by their keys.
        backbone: with the weights that the heads need; its layers and norm follow from them.
        preprocess: how images are prepared.
        tta: the views that are averaged.
        tiling: how large images are cut; None = they are not.
        batch_size: images or tiles at once.

    Raises:
        ConfigError: if views or tiles do not fit the patch.
    """

    def __init__(
        self,
        *,
        heads: Mapping[str, LoadedHead],
        backbone: Backbone,
        preprocess: Preprocessing,
        tta: str,
        tiling: Tiling | None,
        batch_size: int | None,
    ) -> None:
        self.preprocess, self.tiling = preprocess, tiling
        self.tta, self.views = tta, VIEWS[tta]
        self.device = next(backbone.parameters()).device
        self.batch_size = batch_size or (4 if self.device.type == "cpu" else 8)
        if tiling is not None:
            tiling.check(preprocess)
        if not isinstance(backbone.patch_size, int) and tta == "d6":
            raise ConfigError(
                f"tta={tta!r} turns images by 90 degrees; patches of {backbone.patch_size} px are "
                "not square"
            )
        self.heads = {key: head.on(backbone) for key, head in heads.items()}
        union = tuple(
            sorted({layer for head in self.heads.values() for layer in head.layers or ()})
        )
        norm = all(head.norm for head in self.heads.values())
        same = (union, norm) == (backbone.layers, backbone.norm)
        self.backbone = backbone if same else backbone.with_layers(union, norm)
        self.objects: dict[str, Task] = {}
        for key, head in self.heads.items():
            if head.object_task is not None:
                self.objects[key] = head.object_task
        if self.objects and (tiling is not None or len(self.views) > 1):
            raise ConfigError(
                f"task {next(iter(self.objects.values())).name!r} predicts objects, which have no "
                "mean; leave tile= out, and pass tta='none'"
            )
        self.modules = [self.backbone, *(head.head for head in self.heads.values())]
        self._watch = weight_hashes.Watch(backbone.adapter)

    def check_weights(self) -> None:
        """Compare the backbone's weights with those at construction.

        Raises:
            BackboneError: if they changed.
        """
        if not self._watch.is_same(self.backbone.adapter):
            raise BackboneError(
                f"the weights of {self.backbone.name!r} changed after this Predictor was made, or "
                "its LoRA was switched off or on, so its heads do not fit them; load the backbone "
                "again, train heads on the new weights, or make a new Predictor of heads that "
                "were trained along"
            )

    def check_store(self, store: FeatureStore) -> None:
        """Refuse tokens that are not those of this pass.

        Raises:
            CheckpointError: if they are of another backbone, other layers, or of images that were
                prepared differently.
            ConfigError: if a view is not stored, and for maps of padded images: a store does not
                record which patches show the image.
        """
        made, own = store.backbone_record, self.backbone.record()
        # the norm can still be applied
        norm = own["norm"] if made.get("norm") is False else made.get("norm")
        layers = (
            own["layers"]
            if {*own["layers"]} <= {*(made.get("layers") or ())}
            else made.get("layers")
        )
        check_records(own, {**made, "norm": norm, "layers": layers})
        if found := difference(self.preprocess.record(), store.preprocess.record(), "inputs"):
            raise CheckpointError(
                f"the heads need images prepared differently than those of {store.path} "
                f"({found}); extract a store with the preprocessing of the heads, or pass "
                "preprocess=",
                step="pairing",
            )
        if missing := [view for view in self.views.views if view not in store.views.views]:
            raise ConfigError(
                f"{store.path} does not hold the view {missing[0]}; extract with views='flips4' "
                "or 'd6', or predict with tta='none' (--tta none)"
            )
        tasks = [task for head in self.heads.values() for task in head.head.tasks]
        pads = store.preprocess.resize == "pad"
        if unknown := [task.name for task in tasks if task.is_masks or (task.is_map and pads)]:
            raise ConfigError(
                f"{store.path} records neither the sizes of the images nor which patches are "
                f"padding, which {unknown[0]!r} needs; predict from the images"
            )

    def recipe(self, size: Size) -> Preprocessing:
        """Return how an image of this (height, width) is prepared."""
        return self.preprocess if self.tiling is None else self.tiling.recipe(size, self.preprocess)

    def ready(self, pixels: Tensor) -> Ready:
        """Prepare a decoded image, unless it is cut into tiles; called by threads."""
        size = pixels.shape[-2], pixels.shape[-1]
        is_cut = self.tiling is not None and not self.tiling.fits(size)
        return Ready(size, pixels if is_cut else self._prepared(pixels))

    def predict(self, images: Sequence[Ready], maps: bool, min_score: float | None = None) -> Rows:
        """Return the rows of every image; those of one size are one batch.

        ``min_score`` is of objects.
        """
        rows: dict[int, dict[str, Any]] = {}
        shapes: dict[Any, list[int]] = {}
        for place, (_, image) in enumerate(images):
            if isinstance(image, Tensor):
                [rows[place]] = self._tiled(image, maps)
            else:
                shapes.setdefault(image.images.shape, []).append(place)
        for places in shapes.values():
            prepared = [cast("PreparedImages", images[place].image) for place in places]
            batch = torch.cat([one.images for one in prepared])
            valid = torch.stack([one.valid[None] for one in prepared]).to(batch.dtype)
            seen: Any = self._seen(*send([batch, valid], self.device))
            seen = [*seen] if self.objects else seen  # objects have one view
            found = self._rows(self._averages(seen, maps), maps, len(places))
            for key, task in self.objects.items():
                head = self.heads[key]
                tokens = head.select(seen[0][1], self.backbone)
                for i, place in enumerate(places):
                    one, size = tokens[i : i + 1], images[place].size
                    where = task, size, self.preprocess
                    found[i][key][task.name] = objects_at_image_size(
                        head.head, one, *where, min_score
                    )
            rows |= dict(zip(places, found, strict=True))
        return [rows[place] for place in range(len(images))]

    def stored(self, store: FeatureStore, ids: list[str], maps: bool) -> Rows:
        """Return the rows of images, from their tokens under every view; all of one grid."""
        batches = []
        for i, view in enumerate(self.views.views):
            tokens = store.batch(ids, store.views.views.index(view)).to(device=self.device)
            batches.append(
                ([i], tokens, tokens.last.patches[0].new_ones(len(ids), 1, *tokens.grid))
            )
        return self._rows(self._averages(batches, maps), maps, len(ids))

    def _prepared(self, pixels: Tensor) -> PreparedImages:
        recipe = self.recipe((pixels.shape[-2], pixels.shape[-1]))
        return recipe.finished([recipe.fitted(pixels)])

    def _rows(self, outputs: Outputs, maps: bool, count: int) -> Rows:
        """The rows of every image; ``outputs`` are means over views or tiles."""
        rows = []
        for key, head in self.heads.items():
            own = {name: output for (other, name), output in outputs.items() if other == key}
            rows.append(rows_of(recompute_derived(head.head.predicted, own), maps, count))
        return [dict(zip(self.heads, row, strict=True)) for row in zip(*rows, strict=True)]

    def _tiled(self, pixels: Tensor, maps: bool) -> Rows:
        """The rows of an image that is larger than a tile, a batch of tiles at a time."""
        prepared = self._prepared(pixels)
        by_cells = {key: cast("Any", head.head).by_cells() for key, head in self.heads.items()}
        whole = Assembly(*cast("Tiling", self.tiling).axes(prepared.grid, self.preprocess))
        for begin in range(0, len(whole.places), self.batch_size):
            part = whole.places[begin : begin + self.batch_size]
            [tiles] = send([whole.cut(prepared.images, part)], self.device)
            shown = tiles.new_ones(len(part), 1, whole.rows.length, whole.cols.length)
            # without outputs of single members, "number:name": tiles are joined as cells
            averages = self._averages(self._seen(tiles, shown), maps or any(by_cells.values()))
            whole.add(
                part, {name: output for name, output in averages.items() if ":" not in name[1]}
            )
        outputs = whole.sums
        for key, head in self.heads.items():
            for task in head.head.tasks:
                if task.name in by_cells[key]:
                    cells = outputs[key, task.name + MAP]
                    adds_up = task.kind == "density" and task.aggregate == "sum"
                    outputs[key, task.name] = task.clamp(
                        cells.sum(dim=(1, 2)) if adds_up else cells.mean(dim=(1, 2))
                    )
            if (key, GATE) in outputs:
                outputs[key, GATE] /= outputs[key, GATE].sum()
        return self._rows({name: output[None].float() for name, output in outputs.items()}, maps, 1)

    def _seen(self, images: Tensor, valid: Tensor) -> Iterator[Seen]:
        """Run the backbone on a batch of prepared images of one size under all views."""
        at_once = (
            max(1, self.batch_size // len(images))
            if images.device.type == "cpu"
            else len(self.views)
        )
        for _, alike in groupby(
            range(len(self.views)), key=lambda i: self.views.views[i].turns % 2
        ):
            indices = [*alike]  # views that keep the image's size, or those that swap its sides
            for begin in range(0, len(indices), at_once):
                part = indices[begin : begin + at_once]
                batch, cells = (
                    torch.cat([self.views.place(x, i) for i in part]) for x in (images, valid)
                )
                yield part, self.backbone(batch, self._watch.fingerprint), cells

    def _averages(self, batches: Iterable[Seen], maps: bool) -> Outputs:
        """The outputs of all heads, averaged over views; the host waits for the device here only.

        With maps also :meth:`dinoneck.HeadEnsemble.unreduced`, (B, views, ...).
        """
        found: dict[tuple[str, str], list[Tensor]] = {}
        for views, tokens, valid in batches:
            is_turned = bool(self.views.views[views[0]].turns % 2)
            for key, head in self.heads.items():
                head.check_grid(tokens.grid, is_turned)
                own = head.select(tokens, self.backbone)
                for name, output in head.outputs(own, maps).items():
                    is_map = (
                        name.endswith(MAP) or name == GATE or (":" in name and output.ndim == 4)
                    )
                    is_mean = is_map or ":" in name or output.ndim == 2
                    parts = (output if is_mean else _mean_of_cells(output, valid)).chunk(len(views))
                    pairs = zip(parts, views, strict=True)
                    found.setdefault((key, name), []).extend(
                        self.views.undo(*pair) if is_map else pair[0] for pair in pairs
                    )
        # outputs of single members keep their views, the others are means over them
        joined = [
            torch.stack(parts, 1) if ":" in name[1] else torch.stack(parts).mean(0)
            for name, parts in found.items()
        ]
        return dict(zip(found, fetch(joined), strict=True))


def grids_of(store: FeatureStore, ids: Sequence[str], at_once: int) -> Iterator[list[str]]:
    """Yield the ids in their order, in batches of neighbours whose images have one grid.

    Raises:
        DataError: if an id is not in the store.
    """
    grids = [entry.grid for _, entry in store.entries.find(ids)]
    for _, group in groupby(zip(ids, grids, strict=True), key=lambda pair: pair[1]):
        batch = [image_id for image_id, _ in group]
        yield from (batch[begin : begin + at_once] for begin in range(0, len(batch), at_once))


def _mean_of_cells(maps: Tensor, valid: Tensor) -> Tensor:
    """(B, dim): means of maps over the cells that show the image and no padding, valid (B, 1, rows, cols)."""
    counts = nn.functional.interpolate(valid, size=maps.shape[-2:], mode="nearest").to(maps.dtype)
    return (maps * counts).sum(dim=(2, 3)) / counts.sum(dim=(2, 3))
