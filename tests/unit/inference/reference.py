"""What a Predictor predicts, written from its documentation: one view of one tile of one image at a time.

Nothing is batched, shared or kept: every head runs the backbone for itself, with exactly the blocks
that it reads. Of the library it uses the preparation of an image, the backbone, and what a single
head returns for the tokens of one view. All that follows is plain arithmetic in float64: views are
undone, members of ensembles averaged, tiles weighted, cells brought to the pixels of the image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import map_coordinates
from torch import Tensor

from dinoneck import Backbone, CLSGatingHead, MaskHead, PatchMeanHead, Task
from dinoneck.data import Preprocessing
from dinoneck.heads import Head
from dinoneck.losses import Composition

PATCH = 16  # px, of the built-in backbone
Turn = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Member:
    """A head, or an ensemble of members.

    Attributes:
        head: what predicts; None = the mean of ``members``.
        layers: the blocks whose tokens the head reads.
        members: of an ensemble.
        weight: in the mean that this member is part of.
    """

    head: Any = None
    layers: tuple[int, ...] = ()
    members: tuple[Member, ...] = ()
    weight: float = 1.0

    def heads(self) -> Iterator[Head]:
        """Yield the heads that run, those of nested ensembles too."""
        if self.head is not None:
            yield self.head
        for member in self.members:
            if member.weight > 0:
                yield from member.heads()


@dataclass(frozen=True)
class Setting:
    """How images are predicted: what a Predictor is constructed with."""

    backbone: Backbone
    preprocess: Preprocessing
    views: str = "none"
    tile: tuple[int, int] | None = None  # (height, width) in pixels of the image
    overlap: int | float = 0


@dataclass
class Outputs:
    """Of one image or a part of it, in original units: values (dim,), maps (dim, rows, cols), gates (1, rows, cols)."""

    values: dict[str, Tensor]
    maps: dict[str, Tensor]
    gates: dict[str, Tensor]


@dataclass(frozen=True)
class Axis:
    """One axis of a prepared image, in patches: tiles of ``length`` that begin at ``starts``."""

    total: int
    length: int
    starts: list[int]

    def weights(self, tile: int, cells_per_patch: int = 1) -> Tensor:
        """The weight of one tile's cells: it falls linearly from its middle to its ends, and all tiles add up to 1."""
        sums = np.zeros(self.total * cells_per_patch)
        for start in self.starts:
            for cell in range(self.length * cells_per_patch):
                sums[start * cells_per_patch + cell] += self._height(cell, cells_per_patch)
        first = self.starts[tile] * cells_per_patch
        heights = [
            self._height(cell, cells_per_patch) for cell in range(self.length * cells_per_patch)
        ]
        return torch.from_numpy(np.array(heights) / sums[first : first + len(heights)])

    def _height(self, cell: int, cells_per_patch: int) -> float:
        """How far the centre of a cell is from the nearer end of its tile."""
        return min(cell + 0.5, self.length * cells_per_patch - cell - 0.5)


# The prediction of an image
# --------------------------


@torch.no_grad()
def predict_slowly(ensemble: Member, image: Any, setting: Setting) -> dict[str, Any]:
    """Return what is predicted of an upright image with ``maps="patch"``: task -> array, ``"maps"``, ``"gate"``.

    Args:
        ensemble: the heads that are averaged; :class:`dinoneck.Predictor` takes one for each key.
        image: an array (H, W, 3) or a tensor (3, H, W), upright.
        setting: views, tiles and preparation.
    """
    recipe = preparation(image_size(image), setting)
    prepared = recipe.prepare(image)
    rows, cols = tile_axes(prepared.images.shape[-2:], image_size(image), setting)
    tiles = list(product(range(len(rows.starts)), range(len(cols.starts))))

    whole = Outputs({}, {}, {})
    for i, j in tiles:
        top = rows.starts[i] * PATCH
        left = cols.starts[j] * PATCH
        bottom = top + rows.length * PATCH
        right = left + cols.length * PATCH
        tile_pixels = prepared.images[:, :, top:bottom, left:right]
        views = []
        for turn, undo in VIEWS[setting.views]:
            view = predict_view(ensemble, tile_pixels, setting, turn, undo)
            views.append((1.0, view))
        outputs = mean(views)
        area = rows.weights(i).sum() * cols.weights(j).sum() / (rows.total * cols.total)
        for name, value in outputs.values.items():
            whole.values[name] = whole.values.get(name, 0.0) + area * value
        for cells, drawn in ((outputs.maps, whole.maps), (outputs.gates, whole.gates)):
            for name, tile in cells.items():
                add_tile(drawn, name, tile, rows, cols, (i, j))

    shown = shown_cells(whole.maps, image_size(image), recipe)
    is_tiled = is_cut(image_size(image), setting)
    values = whole_values(ensemble, whole, shown, is_tiled)
    prediction: dict[str, Any] = {name: value.numpy() for name, value in values.items()}
    prediction["maps"] = {name: cells.numpy() for name, cells in whole.maps.items()}
    for name, gate in whole.gates.items():  # what the head looked at, adding up to one
        prediction[name] = (gate[0] / gate.sum()).numpy()
    return prediction


def predict_view(
    member: Member, images: Tensor, setting: Setting, turn: Turn, undo: Turn
) -> Outputs:
    """The outputs for one view (1, 3, H, W) of an image or a tile; maps and gates are upright."""
    if member.head is None:
        parts = []
        for other in member.members:
            if other.weight > 0:
                parts.append((other.weight, predict_view(other, images, setting, turn, undo)))
        return mean(parts)
    backbone = setting.backbone.with_layers(member.layers, setting.backbone.norm)
    tokens = backbone(turn(images))
    predicted = member.head.predict(tokens)
    values = {name: value[0].double() for name, value in predicted.items() if value.ndim == 2}
    maps = {
        name: undo(cells[0].double()) for name, cells in member.head.predict_maps(tokens).items()
    }
    gates = {}
    if isinstance(member.head, CLSGatingHead):
        gates["gate"] = undo(member.head.gate(tokens).double())
    return Outputs(values, maps, gates)


def whole_values(
    ensemble: Member, whole: Outputs, shown: dict[str, Tensor], is_tiled: bool
) -> dict[str, Tensor]:
    """The values of the whole image: from its map where the value of any area is the sum or mean of the map there.

    Of tasks that are maps the cells count that show the image, of others all.
    """
    tasks = tasks_of(ensemble)
    values = dict(whole.values)
    for task in tasks.values():
        if is_map(task):
            counted = whole.maps[task.name][:, shown[task.name]]
            values[task.name] = within(task, counted.mean(dim=1))
        elif is_tiled and reads_off_map(task.name, ensemble):
            cells = whole.maps[task.name]
            adds_up = task.kind == "density" and task.aggregate == "sum"
            value = cells.sum(dim=(1, 2)) if adds_up else cells.mean(dim=(1, 2))
            values[task.name] = within(task, value)
    for task in tasks.values():
        if task.from_map is not None:
            labels = tasks[task.from_map].labels
            channel = labels.index(task.name) if labels else 0
            values[task.name] = within(task, values[task.from_map][channel : channel + 1])
    add_up(ensemble, values)
    return values


def add_up(ensemble: Member, values: dict[str, Tensor]) -> None:
    """Let the composed parts of averaged values add up to the averaged totals."""
    for composition in compositions_of(ensemble).values():
        values[composition.name] = composed(composition, values)


def reads_off_map(name: str, ensemble: Member) -> bool:
    """Whether the value of a tiled image is the sum or mean of its map: densities, and PatchMeanHead's regressions."""
    heads = [head for head in ensemble.heads() if name in {task.name for task in head.tasks}]
    for head in heads:
        [task] = [task for task in head.tasks if task.name == name]
        if task.kind == "density":
            return True
        has_logarithm = task.transform is not None and task.transform.log1p
        is_mean_of_map = isinstance(head, PatchMeanHead) and not has_logarithm
        if task.kind != "regression" or not is_mean_of_map:
            return False
    return True


def composed(composition: Composition, values: dict[str, Tensor]) -> Tensor:
    """Parts and sums: parts keep their shares and add up to the total; parts that are tasks stay as they are."""
    if composition.adds_tasks:
        parts = torch.cat([values[name] for name in composition.parts])
    else:
        averaged = values[composition.name][: len(composition.parts)]
        share = averaged / averaged.sum() if averaged.sum() else averaged
        parts = share * values[composition.total]
    sums = []
    for _, members in composition.sums:
        sums.append(sum(parts[composition.parts.index(part)] for part in members))
    if composition.adds_tasks:
        return torch.stack(sums)
    return torch.cat([parts, torch.stack(sums)])


def tasks_of(ensemble: Member) -> dict[str, Task]:
    """Name -> task, of all heads that run."""
    return {task.name: task for head in ensemble.heads() for task in head.tasks}


def compositions_of(ensemble: Member) -> dict[str, Composition]:
    """Name -> composition, of all heads that run."""
    return {item.name: item for head in ensemble.heads() for item in head.compositions}


def is_map(task: Task) -> bool:
    """Whether a task predicts a map, and has the mean of it as its value."""
    return task.kind in ("dense", "segmentation")


def within(task: Task, value: Tensor) -> Tensor:
    """The value, kept within the task's minimum and maximum."""
    low = -math.inf if task.minimum is None else task.minimum
    high = math.inf if task.maximum is None else task.maximum
    return value.clamp(low, high)


# Means
# -----


def mean(weighted: Sequence[tuple[float, Outputs]]) -> Outputs:
    """The weighted mean of every output over those that have it; maps at the size of the finest."""
    averaged = Outputs({}, {}, {})
    for kind in ("values", "maps", "gates"):
        tables = [(weight, getattr(outputs, kind)) for weight, outputs in weighted]
        for name in {name: None for _, table in tables for name in table}:
            weights = [weight for weight, table in tables if name in table]
            parts = [table[name] for _, table in tables if name in table]
            if kind == "maps":
                finest = max(part.shape[1:] for part in parts)
                parts = [resized(part, finest) for part in parts]
            total = sum(weight * part for weight, part in zip(weights, parts, strict=True))
            getattr(averaged, kind)[name] = total / sum(weights)
    return averaged


def resized(cells: Tensor, size: Sequence[int]) -> Tensor:
    """A map (dim, rows, cols) with cells of another size, bilinearly."""
    if cells.shape[1:] == size:
        return cells
    return F.interpolate(cells[None], tuple(size), mode="bilinear", align_corners=False)[0]


def shown_cells(
    maps: dict[str, Tensor], size: tuple[int, int], recipe: Preprocessing
) -> dict[str, Tensor]:
    """Name -> bool (rows, cols): the cells that hold any pixel of the image, and not padding alone."""
    placement = recipe.placement(size)
    top, left = placement.corner
    is_image = torch.zeros(placement.canvas, dtype=torch.bool)
    bottom, right = top + placement.resized[0], left + placement.resized[1]
    is_image[max(top, 0) : bottom, max(left, 0) : right] = True
    found = {}
    for name, cells in maps.items():
        rows, cols = cells.shape[1:]
        height, width = (
            placement.canvas[0] / rows,
            placement.canvas[1] / cols,
        )  # of a cell, in pixels
        found[name] = torch.zeros(rows, cols, dtype=torch.bool)
        for row, col in product(range(rows), range(cols)):
            down = slice(math.floor(row * height), math.ceil((row + 1) * height))
            across = slice(math.floor(col * width), math.ceil((col + 1) * width))
            found[name][row, col] = is_image[down, across].any()
    return found


# Views
# -----


def as_it_is(x: Tensor) -> Tensor:
    """(..., H, W) itself."""
    return x


def left_right(x: Tensor) -> Tensor:
    """Mirror (..., H, W); doing it twice changes nothing."""
    return x.flip(-1)


def up_down(x: Tensor) -> Tensor:
    """Mirror (..., H, W); doing it twice changes nothing."""
    return x.flip(-2)


def both(x: Tensor) -> Tensor:
    """Mirror (..., H, W) in both directions; doing it twice changes nothing."""
    return x.flip(-1, -2)


def to_the_left(x: Tensor) -> Tensor:
    """Turn (..., H, W) by a quarter, counter-clockwise: what was at the right is at the top."""
    return x.transpose(-1, -2).flip(-2)


def to_the_right(x: Tensor) -> Tensor:
    """Turn (..., H, W) by a quarter, clockwise: what was at the left is at the top."""
    return x.transpose(-1, -2).flip(-1)


FLIPS = [(as_it_is, as_it_is), (left_right, left_right), (up_down, up_down), (both, both)]
TURNS = [(to_the_left, to_the_right), (to_the_right, to_the_left)]
VIEWS: dict[str, list[tuple[Turn, Turn]]] = {
    "none": FLIPS[:1],
    "flip4": FLIPS,
    "d6": FLIPS + TURNS,
}
"""What is done to an image, and what undoes it on its maps."""


# Tiles
# -----


def image_size(image: Any) -> tuple[int, int]:
    """(height, width) of an array (H, W, 3) or a tensor (3, H, W)."""
    height, width = image.shape[-2:] if isinstance(image, Tensor) else image.shape[:2]
    return height, width


def preparation(size: tuple[int, int], setting: Setting) -> Preprocessing:
    """How an image is prepared: one that is cut at the scale that brings a tile to the heads' size."""
    recipe, tile = setting.preprocess, setting.tile
    if not is_cut(size, setting) or recipe.size is None:
        return recipe
    assert tile is not None
    patches = tile_patches(setting)
    canvas = [
        max(1, round(side * length / whole)) * PATCH
        for side, length, whole in zip(size, patches, tile, strict=True)
    ]
    return recipe.changed(size=tuple(canvas), resize="stretch", pad_to="corner")


def is_cut(size: tuple[int, int], setting: Setting) -> bool:
    """Whether an image of (height, width) is larger than a tile."""
    return setting.tile is not None and (size[0] > setting.tile[0] or size[1] > setting.tile[1])


def tile_patches(setting: Setting) -> tuple[int, int]:
    """(rows, cols) of a tile, in patches: those of the heads' images, or of a tile at its own size."""
    assert setting.tile is not None
    size = setting.preprocess.size or setting.tile
    height, width = setting.preprocess.placement(size).canvas
    return height // PATCH, width // PATCH


def tile_axes(
    prepared: Sequence[int], size: tuple[int, int], setting: Setting
) -> tuple[Axis, Axis]:
    """Where tiles lie on a prepared image of (height, width); one tile where the image is not cut."""
    axes = []
    for k, side in enumerate(prepared):
        total = length = side // PATCH
        overlap = 0
        if is_cut(size, setting):
            assert setting.tile is not None
            share = setting.overlap
            if isinstance(share, int):
                share = share / setting.tile[k]
            length = tile_patches(setting)[k]
            overlap = math.ceil(round(share * length, 6))
            length = min(length, total)
        axes.append(Axis(total, length, starts(total, length, overlap)))
    return axes[0], axes[1]


def starts(total: int, length: int, overlap: int) -> list[int]:
    """As few tiles as cover ``total`` patches with at least this overlap, spread evenly, half patches rounded up."""
    count = 1
    while count * length - (count - 1) * overlap < total:
        count += 1
    if count == 1:
        return [0]
    step = (total - length) / (count - 1)
    return [math.floor(number * step + 0.5) for number in range(count)]


def add_tile(
    drawn: dict[str, Tensor],
    name: str,
    tile: Tensor,
    rows: Axis,
    cols: Axis,
    place: tuple[int, int],
) -> None:
    """Add the map (dim, rows, cols) of a tile to that of the image, with the weights of the tile."""
    down, across = tile.shape[1] // rows.length, tile.shape[2] // cols.length
    if name not in drawn:
        drawn[name] = torch.zeros(len(tile), rows.total * down, cols.total * across).double()
    weights = rows.weights(place[0], down)[:, None] * cols.weights(place[1], across)
    top, left = rows.starts[place[0]] * down, cols.starts[place[1]] * across
    drawn[name][:, top : top + tile.shape[1], left : left + tile.shape[2]] += weights * tile


# Maps in the pixels of the image
# -------------------------------


def pixels_slowly(
    prediction: dict[str, Any], ensemble: Member, image: Any, setting: Setting
) -> dict[str, np.ndarray[Any, Any]]:
    """Return the maps of a prediction in the pixels of its image: name -> (dim, height, width).

    Classes have probabilities; pixels that are not shown are NaN.
    """
    size = image_size(image)
    recipe = preparation(size, setting)
    heads = list(ensemble.heads())
    found = {}
    for name, cells in prediction["maps"].items():
        task = tasks_of(ensemble)[name]
        # with other heads with maps beside them, or tiles, there are no masks of the whole image
        are_masks = is_map(task) and all(
            isinstance(head, MaskHead) for head in heads if any(map(is_map, head.tasks))
        )
        if are_masks and not is_cut(size, setting):
            pixels = mask_pixels(ensemble, name, image, setting)
        elif task.kind == "segmentation":
            logits = np.log(np.maximum(cells, np.finfo(np.float32).tiny))
            pixels = softmax(in_pixels(logits, size, recipe))
        else:
            pixels = in_pixels(cells, size, recipe)
        pixels[:, ~shown_pixels(size, recipe)] = np.nan
        if task.kind == "density" and task.aggregate == "sum":
            pixels *= cells.sum() / np.nansum(pixels)
        found[name] = pixels
    return found


def mask_pixels(member: Member, name: str, image: Any, setting: Setting) -> np.ndarray[Any, Any]:
    """Shares (K, H, W) of the classes: masks of queries in pixels, then sigmoid, sum, and shares; then the mean."""
    if member.head is None:
        running = [
            other for other in member.members if other.weight > 0 and name in tasks_of(other)
        ]
        weights = [other.weight for other in running]
        pixels = [mask_pixels(other, name, image, setting) for other in running]
        return np.average(pixels, axis=0, weights=weights)
    recipe = preparation(image_size(image), setting)
    prepared = recipe.prepare(image)
    backbone = setting.backbone.with_layers(member.layers, setting.backbone.norm)
    views = []
    for turn, undo in VIEWS[setting.views]:
        with torch.no_grad():
            outputs = member.head(backbone(turn(prepared.images)))
        masks = undo(outputs[f"{name}.masks"][0]).double().numpy()
        classes = softmax(outputs[f"{name}.classes"][0].double().numpy().T)[:-1]  # (K, Q)
        logits = in_pixels(masks, image_size(image), recipe)
        sums = np.einsum("kq,qhw->khw", classes, 1 / (1 + np.exp(-logits)))
        views.append(sums / sums.sum(axis=0))
    return np.mean(views, axis=0)


def in_pixels(
    cells: np.ndarray[Any, Any], size: tuple[int, int], recipe: Preprocessing
) -> np.ndarray[Any, Any]:
    """A map (dim, rows, cols) at the pixels of the image, bilinearly; cells that show padding alone are left out."""
    placement = recipe.placement(size)
    places = canvas_places(size, recipe)
    between = []
    windows = []
    for k in range(2):
        pixels_per_cell = placement.canvas[k] / cells.shape[1 + k]
        begin = max(placement.corner[k], 0)
        end = min(placement.corner[k] + placement.resized[k], placement.canvas[k])
        window = slice(math.floor(begin / pixels_per_cell), math.ceil(end / pixels_per_cell))
        windows.append(window)
        between.append(places[k] / pixels_per_cell - 0.5 - window.start)
    grid = np.meshgrid(*between, indexing="ij")
    window_cells = cells[:, windows[0], windows[1]].astype(np.float64)
    # "nearest": beyond the outermost centres the value of the outermost cell
    return np.stack([map_coordinates(x, grid, order=1, mode="nearest") for x in window_cells])


# Objects in the pixels of the image
# -----------------------------------


@torch.no_grad()
def objects_slowly(
    head: Any, layers: tuple[int, ...], image: Any, setting: Setting, min_score: float | None
) -> Any:
    """Return the instances or the panoptic segments of an image in its pixels, as a Predictor does.

    The canvas is predicted at the scale of the image; what it shows of the image is copied from it.
    """
    size = image_size(image)
    placement = setting.preprocess.placement(size)
    scale = [size[k] / placement.resized[k] for k in range(2)]
    canvas = [round(placement.canvas[k] * scale[k]) for k in range(2)]
    corner = [round(placement.corner[k] * scale[k]) for k in range(2)]
    backbone = setting.backbone.with_layers(layers, setting.backbone.norm)
    tokens = backbone(setting.preprocess(image))
    if head.tasks[0].kind == "panoptic":
        [(segments, listed)] = head.predict_panoptic(tokens, canvas, min_score)
        [copied] = copy_to_image(segments.numpy()[None], corner, size)
        kept = []
        for segment in listed:
            area = int((copied == segment["id"]).sum())
            if area > 0:
                kept.append({**segment, "area": area})
        return copied, kept
    [found] = head.predict_instances(tokens, canvas, min_score)
    masks = copy_to_image(found["masks"].numpy(), corner, size)
    kept = [number for number, mask in enumerate(masks) if mask.any()]
    boxes = []
    for number in kept:
        rows, cols = np.nonzero(masks[number])
        boxes.append([cols.min(), rows.min(), cols.max() + 1, rows.max() + 1])
    return {
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "labels": found["labels"].numpy()[kept],
        "scores": found["scores"].numpy()[kept],
        "masks": masks[kept],
    }


def copy_to_image(
    canvas: np.ndarray[Any, Any], corner: Sequence[int], size: tuple[int, int]
) -> np.ndarray[Any, Any]:
    """The image (N, height, width) that begins at this corner (top, left) of canvases (N, H, W); 0 outside of them."""
    copied = np.zeros((len(canvas), *size), canvas.dtype)
    for row in range(size[0]):
        for col in range(size[1]):
            top, left = row + corner[0], col + corner[1]
            if 0 <= top < canvas.shape[1] and 0 <= left < canvas.shape[2]:
                copied[:, row, col] = canvas[:, top, left]
    return copied


# Places of pixels
# ----------------


def canvas_places(size: tuple[int, int], recipe: Preprocessing) -> list[np.ndarray[Any, Any]]:
    """Where the centres of the image's rows and columns lie in the prepared image, in its pixels."""
    placement = recipe.placement(size)
    places = []
    for k in range(2):
        centres = np.arange(size[k]) + 0.5
        places.append(centres * placement.resized[k] / size[k] + placement.corner[k])
    return places


def shown_pixels(size: tuple[int, int], recipe: Preprocessing) -> np.ndarray[Any, Any]:
    """(H, W): the pixels that the prepared image shows, and those around it up to one patch (a cut remainder)."""
    places = canvas_places(size, recipe)
    canvas = recipe.placement(size).canvas
    rows, cols = (
        (place > -PATCH) & (place < side + PATCH)
        for place, side in zip(places, canvas, strict=True)
    )
    return rows[:, None] & cols


def softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Probabilities along the first axis."""
    shares = np.exp(logits - logits.max(axis=0))
    return shares / shares.sum(axis=0)
