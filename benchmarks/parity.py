"""The same tokens from timm, transformers and the official code: largest differences and bounds.

    python -m benchmarks parity [--official-dinov2 DIR] [--official-dinov3 DIR] [--only MODEL ...]

DIR is a checkout of facebookresearch/dinov2 or dinov3. timm and transformers get one seeded set of
weights by name; the official model is filled at random, its state dict saved, and that file loaded
by the others through ``checkpoint=``. Compared are layers 11, 2, 5, 5 in this order, with and
without the final norm. The other tables are common mistakes, and exported models next to the eager
ones: ONNX in float32 and half, at sizes that the export never saw, relative to the largest
prediction of a patch. The exit code is 1 if a row is above its bound.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from benchmarks import parity_published
from benchmarks.measure import Row
from dinoneck import PatchMeanHead, Predictor, Task, Tokens, load_backbone, wrap_backbone
from dinoneck.backbones import transformers
from dinoneck.backbones.adapter import PosEmbed
from dinoneck.backbones.known import family_of, model_of
from dinoneck.backbones.load import fill_seeded
from dinoneck.backbones.weights import load_file

ROUNDS = 1
# column -> attribute of Tokens
PARTS = {"patches": "patches", "cls": "cls_token", "registers": "registers"}
IMAGES_SEED = 2
PAIRS = ("timm - transformers", "official - timm", "official - transformers")
EXPORTED = ("vit_small_patch16_dinov3", "vit_base_patch16_dinov3", "vit_small_patch14_dinov2")
GRIDS = ((1, 14, 14), (2, 7, 21), (1, 37, 37))  # batch, rows, cols
SIZES_16 = ((224, 224), (240, 480), (112, 336))
TRAINED_SIZE = (518, 518)  # of DINOv2
SIZES_14 = (TRAINED_SIZE, (224, 224), (238, 476), (126, 336))
LARGE = 500  # pixels: one image of this height, else two


class Case(NamedTuple):
    """A model and the sizes of its images.

    Attributes:
        name: timm's name of the model with seeded weights.
        factory: the function in the repository's ``hub.backbones``; or the arguments of its class,
            if blocks are left out. Empty: it is not compared with its repository.
        sizes: of the images, (height, width).
        official: timm's name of the model that loads official weights; None: ``name``.
        depth: the number of first blocks that are used; None: all.
    """

    name: str
    factory: str | dict[str, Any]
    sizes: Sequence[tuple[int, int]]
    official: str | None = None
    depth: int | None = None

    @property
    def layers(self) -> list[int]:
        """The compared layers: not in order, one of them twice."""
        if self.depth is None:
            return [11, 2, 5, 5]
        return [2, 0, 1, 1]

    def title(self, pair: str) -> str:
        """Return the name under which a pair of libraries is loaded, and the number of blocks."""
        name = self.name
        if "official" in pair:
            name = self.official or self.name
        if self.depth is not None:
            return f"{name}, first {self.depth} blocks"
        return name

    def recipes(self, size: tuple[int, int]) -> tuple[PosEmbed, ...]:
        """Return the recipes of position embeddings to compare.

        Libraries resample TIPSv2 and models without registers each in their own way, if the images
        are not of the trained size.
        """
        if self._has_one_recipe or size == self._trained_size:
            return ("native",)
        if size == (224, 224):
            return ("native", "official")
        return ("official",)

    def bound(self, size: tuple[int, int], recipe: PosEmbed) -> float | None:
        """Return the bound of a difference, or None where the libraries are known to differ."""
        if "dinov3" in self.name or "lingbot" in self.name:
            return 2e-5
        if "reg4" in self.name:
            return 0.0
        if size == self._trained_size or recipe == "official":
            return 1e-5
        return None

    @property
    def _has_one_recipe(self) -> bool:
        """Whether positions are rotary, or resampled alike by all libraries."""
        return self._trained_size is None or "reg4" in self.name

    @property
    def _trained_size(self) -> tuple[int, int] | None:
        """(height, width) of the images that learned positions were made for; None without any."""
        model = model_of(self.name)
        if model is None or model.image_size is None:
            return None
        return model.image_size, model.image_size


GIANT = {
    "img_size": 518,
    "patch_size": 14,
    "embed_dim": 1536,
    "num_heads": 24,
    "depth": 3,
    "ffn_layer": "swiglufused",
    "init_values": 1.0,
    "block_chunks": 0,
    "num_register_tokens": 4,
    "interpolate_antialias": True,
    "interpolate_offset": 0.0,
}
CASES = (
    Case(
        "vit_small_patch16_dinov3",
        "dinov3_vits16",
        SIZES_16,
        official="vit_small_patch16_dinov3_qkvb",
    ),
    Case("vit_small_plus_patch16_dinov3_qkvb", "dinov3_vits16plus", SIZES_16),
    Case("vit_small_patch14_reg4_dinov2", "dinov2_vits14_reg", SIZES_14),
    Case("vit_giant_patch14_reg4_dinov2", GIANT, ((224, 224), (126, 336)), depth=3),
    Case("vit_small_patch14_dinov2", "dinov2_vits14", SIZES_14),
    Case("vit_small_patch16_lingbot", "", SIZES_16),
    Case("vit_base_patch14_reg1_tipsv2", "", ((448, 448), *SIZES_14[1:]), depth=3),
)


def rows(case: Case, checkouts: Mapping[str, Path]) -> Iterator[dict[str, Any]]:
    """Compare timm with transformers, and both with the official code if there is a checkout."""
    yield from _compare(case, _libraries(case, case.name, None))
    checkout = checkouts.get(family_of(case.name))
    if checkout is None:
        return
    official_model = official(case, checkout)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "official.pth"
        torch.save(official_model.state_dict(), file)
        models = {"official": official_model}
        models |= _libraries(case, case.official or case.name, file)
        yield from _compare(case, models, first="official")


def official(case: Case, checkout: Path) -> nn.Module:
    """Build the repository's model with random parameters.

    Its rotary periods are rounded to bfloat16, as in the released files.
    """
    family = family_of(case.name)
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))
    model: Any
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about missing xFormers, which changes speed only
        if isinstance(case.factory, str):
            module = importlib.import_module(f"{family}.hub.backbones")
            model = getattr(module, case.factory)(pretrained=False)
        else:
            module = importlib.import_module(f"{family}.models.vision_transformer")
            block = partial(module.Block, attn_class=module.MemEffAttention)
            model = module.DinoVisionTransformer(block_fn=block, **case.factory)
    fill_seeded(model, 1)
    rope = getattr(model, "rope_embed", None)
    if rope is not None:
        rope.periods.copy_(rope.periods.bfloat16())
    return model.eval()


def _libraries(case: Case, name: str, file: Path | None) -> dict[str, nn.Module]:
    """Return the model of both libraries with the same weights: seeded, or of a file."""
    model: nn.Module
    if case.depth is not None:
        model = timm.create_model(
            name, pretrained=False, num_classes=0, dynamic_img_size=True, depth=case.depth
        )
        if file is None:
            fill_seeded(model, 0)
        else:
            load_file(model, file)
    elif file is None:
        model = load_backbone(name, pretrained=False).adapter.model
    else:
        model = load_backbone(name, checkpoint=file).adapter.model
    return {"timm": model, "transformers": transformers.from_timm(model)}


def _compare(
    case: Case, models: dict[str, nn.Module], first: str | None = None
) -> Iterator[dict[str, Any]]:
    """Compare all pairs of models, or those with the first one, at every size."""
    for size in case.sizes:
        generator = torch.Generator().manual_seed(IMAGES_SEED)
        num_images = 1 if size[0] > LARGE else 2
        images = torch.randn(num_images, 3, *size, generator=generator)
        for recipe in case.recipes(size):
            tokens = {}
            for library, model in models.items():
                tokens[library] = both_norms(model, case.layers, recipe, images)
            if first is not None:
                _check_wrapper(models[first], tokens[first], images)
            for one, other in combinations(models, 2):
                if first is not None and one != first:
                    continue
                pair = f"{one} - {other}"
                gaps = difference(tokens[one], tokens[other])
                bound = case.bound(size, recipe)
                yield {
                    "model": case.title(pair),
                    "size": list(size),
                    "pair": pair,
                    "pos_embed": recipe,
                    **gaps,
                    "bound": bound,
                    "holds": None if bound is None else _holds(gaps, bound),
                }


def _holds(gaps: Mapping[str, float | None], bound: float) -> bool:
    """Return whether no difference is above the bound; NaN is."""
    for part in PARTS:
        gap = gaps[part]
        if gap is not None and not gap <= bound:
            return False
    return True


def both_norms(
    model: nn.Module, layers: Sequence[int], recipe: PosEmbed, images: Tensor
) -> list[Tokens]:
    """Return the tokens of images with and without the final norm."""
    normed = wrap_backbone(model, layers=layers, norm=True, pos_embed=recipe)(images)
    raw = wrap_backbone(model, layers=layers, norm=False, pos_embed=recipe)(images)
    return [normed, raw]


@torch.no_grad()
def _check_wrapper(model: Any, both: Sequence[Tokens], images: Tensor) -> None:
    """Compare the wrapped official model with the repository's own method, bit for bit.

    Raises:
        SystemExit: if they differ.
    """
    for tokens, norm in zip(both, (True, False), strict=True):
        layers = tokens.layers or ()
        sorted_layers = sorted(set(layers))
        outputs = model.get_intermediate_layers(
            images, n=sorted_layers, return_class_token=True, norm=norm
        )
        expected = dict(zip(sorted_layers, outputs, strict=True))
        for layer, patches, cls_token in zip(layers, tokens.patches, tokens.cls_token, strict=True):
            expected_patches, expected_cls_token = expected[layer]
            same_patches = torch.equal(patches, expected_patches)
            same_cls_token = torch.equal(cls_token, expected_cls_token)
            if not (same_patches and same_cls_token):
                raise SystemExit(
                    f"layer {layer}, norm={norm}: other than get_intermediate_layers of the "
                    "repository"
                )


def difference(one: Sequence[Tokens], other: Sequence[Tokens]) -> dict[str, float | None]:
    """Return the largest differences over layers and norms; None for registers without any."""
    result: dict[str, float | None] = {}
    for column, attribute in PARTS.items():
        gaps = []
        for tokens, other_tokens in zip(one, other, strict=True):
            pairs = zip(getattr(tokens, attribute), getattr(other_tokens, attribute), strict=True)
            gaps += [(left - right).abs().max() for left, right in pairs if left.numel() > 0]
        result[column] = torch.stack(gaps).max().item() if gaps else None
    layers = [layer for tokens in one for layer in tokens.sequence]
    result["scale"] = max(layer.abs().max().item() for layer in layers)
    return result


def largest_gap(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """Return the largest absolute difference of the tensors of two lists."""
    gaps = []
    for tensor, other in zip(tensors, others, strict=True):
        gaps.append((tensor - other).abs().max().item())
    return max(gaps)


@torch.no_grad()
def slips(case: Case) -> Row:
    """Measure by how much common mistakes change the patches of layers 2, 5, 8, at 224 x 224."""
    model = load_backbone(case.name, source="transformers", pretrained=False).adapter.model
    generator = torch.Generator().manual_seed(IMAGES_SEED)
    images = torch.randn(2, 3, 224, 224, generator=generator)
    layers = (2, 5, 8)
    normed, raw = both_norms(model, layers, "native", images)
    hidden_states = model(images, output_hidden_states=True).hidden_states
    prefix = raw.num_prefix_tokens
    right_state = [hidden_states[layer + 1][:, prefix:] for layer in layers]
    state_before = [hidden_states[layer][:, prefix:] for layer in layers]
    after_cls = [layer[:, 1 : 1 + raw.grid.count] for layer in normed.sequence]
    return {
        "`hidden_states[i + 1]` (right)": largest_gap(right_state, raw.patches),
        "`hidden_states[i]`": largest_gap(state_before, raw.patches),
        "no final norm": largest_gap(raw.patches, normed.patches),
        "registers taken as patches": (
            largest_gap(after_cls, normed.patches) if prefix > 1 else None
        ),
        "largest value": max(layer.abs().max().item() for layer in normed.patches),
    }


def exported(name: str) -> Row:
    """Measure the size of the ONNX file and the largest difference of its predictions.

    In float32 and in half.
    """
    import onnxruntime

    from dinoneck.export import export_model

    backbone = load_backbone(name, pretrained=False)
    head = PatchMeanHead(backbone.embed_dim, [Task("mass")])
    predictor = Predictor(head, backbone)
    patch = backbone.patch_size
    row = Row()
    for half in (False, True):
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file = Path(folder, "m.onnx")
            export = export_model(head, file, backbone=backbone, maps=True, half=half)
            session = onnxruntime.InferenceSession(
                export.files[0], providers=["CPUExecutionProvider"]
            )
            size = sum(file.stat().st_size for file in export.files)
        gaps = []
        for batch, rows, cols in GRIDS:
            generator = torch.Generator().manual_seed(rows)
            images = torch.rand(batch, 3, rows * patch, cols * patch, generator=generator)
            outputs = session.run(["mass.map"], {"images": images.numpy()})
            of_export = torch.tensor(outputs[0])
            predictions = predictor(list(images), maps="patch")
            maps = [prediction["maps"]["mass"] for prediction in predictions]
            eager = torch.stack([torch.as_tensor(cells) for cells in maps])
            gaps.append(float((of_export - eager).abs().max() / eager.abs().max()))
        title = "half" if half else "float32"
        row[f"{title}, MB"] = size / 1e6
        row[f"{title}, difference"] = max(gaps)
    return row


def table_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Row]:
    """Return a row per model, recipe and bound.

    It has the largest difference of each pair over the parts of tokens and the sizes of images.
    """
    table: dict[str, Row] = {}
    for row in rows:
        name = f"`{row['model']}`, {row['pos_embed']}"
        if row["bound"] is None:
            name += ", free"
        if name not in table:
            table[name] = {
                "images": "",
                **dict.fromkeys(PAIRS),
                "largest value": 0.0,
                "bound": row["bound"],
            }
        line = table[name]
        height, width = row["size"]
        size = f"{height}x{width}"
        if not line["images"]:
            line["images"] = size
        elif size not in line["images"]:
            line["images"] += f", {size}"
        gaps = [row[part] for part in PARTS if row[part] is not None]
        pair = row["pair"]
        line[pair] = max([*gaps, line[pair] or 0.0])
        line["largest value"] = max(line["largest value"], row["scale"])
    return table


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--official-dinov2", type=Path, metavar="DIR")
    parser.add_argument("--official-dinov3", type=Path, metavar="DIR")
    parser.add_argument("--published", action="store_true", help="only published heads")


def measure(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Row]]]:
    """Yield the differences, the slips, the exports and the published heads.

    Raises:
        SystemExit: if a row is above its bound.
    """
    failed: list[str] = []
    if not options.published:
        failed += yield from _backbones(options)
    for title, table in parity_published.tables():
        yield title, table
        failed += [f"{title}: {name}" for name in parity_published.above(table)]
    if failed:
        raise SystemExit(f"above the bound: {'; '.join(failed)}")


def _backbones(
    options: argparse.Namespace,
) -> Generator[tuple[str, dict[str, Row]], None, list[str]]:
    """Yield the tables of backbones, and return the rows above their bound."""
    checkouts: dict[str, Path] = {}
    if options.official_dinov2:
        checkouts["dinov2"] = options.official_dinov2.resolve()
    if options.official_dinov3:
        checkouts["dinov3"] = options.official_dinov3.resolve()
    cases = [case for case in CASES if not options.only or case.name in options.only]
    names = EXPORTED
    if options.short:
        cases = cases[:1]
        names = names[:1]

    compared = []
    for case in cases:
        compared += rows(case, checkouts)
    yield "differences", table_of(compared)
    yield "slips", {f"`{case.name}`": slips(case) for case in cases if case.depth is None}
    yield "exports", {f"`{name}`": exported(name) for name in names}
    return [f"{row['model']}, {row['pair']}" for row in compared if row["holds"] is False]
