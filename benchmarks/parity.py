"""The same tokens from timm, transformers and the official code: largest differences, with the bounds they must keep.

    python -m benchmarks parity [--official-dinov2 DIR] [--official-dinov3 DIR] [--only MODEL ...]

DIR is a checkout of facebookresearch/dinov2 or dinov3. Between timm and transformers both get one
seeded set of weights by name; for the official code, the repository's own model is filled at
random, its state dict saved, and that file loaded through ``checkpoint=``. Compared are layers 11,
2, 5, 5 in this order, with and without the final norm. Then common slips, and exported models next
to the eager ones: ONNX in float32 and half, at sizes that the export never saw, relative to the
largest prediction of a patch. Exit code 1 if a row is above its bound.
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
from dinoneck.backbones.known import family_of
from dinoneck.backbones.load import fill_seeded
from dinoneck.backbones.weights import load_file

ROUNDS = 1
# title -> attribute of Tokens
PARTS = {"patches": "patches", "cls": "cls_token", "registers": "registers"}
PAIRS = ("timm - transformers", "official - timm", "official - transformers")
EXPORTED = ("vit_small_patch16_dinov3", "vit_base_patch16_dinov3", "vit_small_patch14_dinov2")
GRIDS = ((1, 14, 14), (2, 7, 21), (1, 37, 37))  # batch, rows, cols
SIZES_16 = ((224, 224), (240, 480), (112, 336))
SIZES_14 = ((518, 518), (224, 224), (238, 476), (126, 336))


class Case(NamedTuple):
    """A model: timm's names for it, where the official code builds it, and on which images.

    Attributes:
        name: built with seeded weights.
        factory: in the repository's ``hub.backbones``; or the settings of its class, where blocks
            are cut.
        sizes: images, (height, width).
        official: the name that official weights load under, where it is another one.
        depth: blocks kept; None = all.
    """

    name: str
    factory: str | dict[str, Any]
    sizes: Sequence[tuple[int, int]]
    official: str | None = None
    depth: int | None = None

    @property
    def layers(self) -> list[int]:
        """Out of order, one of them twice."""
        return [11, 2, 5, 5] if self.depth is None else [2, 0, 1, 1]

    def shown(self, pair: str) -> str:
        """The name that a pair of libraries is loaded under, and how much of the model runs."""
        name = (self.official or self.name) if "official" in pair else self.name
        return name + (f", first {self.depth} blocks" if self.depth else "")

    def recipes(self, size: tuple[int, int]) -> tuple[PosEmbed, ...]:
        """Position recipes that matter here: models without registers resample in ways of their own."""
        if "dinov3" in self.name or "reg4" in self.name or size == (518, 518):
            return ("native",)
        return ("native", "official") if size == (224, 224) else ("official",)

    def bound(self, size: tuple[int, int], recipe: PosEmbed) -> float | None:
        """What a difference must not exceed; None where the libraries are known to differ."""
        if "dinov3" in self.name:
            return 2e-5
        if "reg4" in self.name:
            return 0.0
        return 1e-5 if size == (518, 518) or recipe == "official" else None


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
)


def rows(case: Case, checkouts: Mapping[str, Path]) -> Iterator[dict[str, Any]]:
    """Compare every pair of libraries that is there."""
    yield from _compare(case, _libraries(case, case.name, None))
    checkout = checkouts.get(family_of(case.name))
    if checkout is None:
        return
    ours = official(case, checkout)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "official.pth"
        torch.save(ours.state_dict(), file)
        models = {"official": ours, **_libraries(case, case.official or case.name, file)}
        yield from _compare(case, models, first="official")


def official(case: Case, checkout: Path) -> nn.Module:
    """The repository's own model, with every parameter at random and bf16-rounded periods as its released files."""
    family = family_of(case.name)
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # xFormers is not there; it changes speed only
        if isinstance(case.factory, str):
            model = getattr(importlib.import_module(f"{family}.hub.backbones"), case.factory)(
                pretrained=False
            )
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
    """Both libraries' model with the same weights: seeded, or of a file."""
    if case.depth is None:
        given = {"pretrained": False} if file is None else {"checkpoint": file}
        model = load_backbone(name, **given).adapter.model
        return {"timm": model, "transformers": transformers.from_timm(model)}
    cut = timm.create_model(
        name, pretrained=False, num_classes=0, dynamic_img_size=True, depth=case.depth
    )
    if file is None:
        fill_seeded(cut, 0)
    else:
        load_file(cut, file)
    return {"timm": cut, "transformers": transformers.from_timm(cut)}


def _compare(
    case: Case, models: dict[str, nn.Module], first: str | None = None
) -> Iterator[dict[str, Any]]:
    for size in case.sizes:
        images = torch.randn(
            1 if size[0] > 500 else 2, 3, *size, generator=torch.Generator().manual_seed(2)
        )
        for recipe in case.recipes(size):
            found = {
                key: both_norms(model, case.layers, recipe, images) for key, model in models.items()
            }
            if first is not None:
                _check_wrapper(models[first], found[first], images)
            for one, other in combinations(models, 2):
                if first in (None, one):
                    pair = f"{one} - {other}"
                    row = {
                        "model": case.shown(pair),
                        "size": list(size),
                        "pair": pair,
                        "pos_embed": recipe,
                    }
                    row |= difference(found[one], found[other])
                    bound = case.bound(size, recipe)
                    # written so that NaN does not hold
                    holds = (
                        None
                        if bound is None
                        else all(row[p] is None or row[p] <= bound for p in PARTS)
                    )
                    yield row | {"bound": bound, "holds": holds}


def both_norms(
    model: nn.Module, layers: Sequence[int], recipe: PosEmbed, images: Tensor
) -> list[Tokens]:
    return [
        wrap_backbone(model, layers=layers, norm=norm, pos_embed=recipe)(images)
        for norm in (True, False)
    ]


@torch.no_grad()
def _check_wrapper(model: Any, found: Sequence[Tokens], images: Tensor) -> None:
    """The wrapped official object must give what the repository's own method gives, bit for bit."""
    for tokens, norm in zip(found, (True, False), strict=True):
        wanted = sorted(set(tokens.layers or ()))
        rows = model.get_intermediate_layers(images, n=wanted, return_class_token=True, norm=norm)
        own = dict(zip(wanted, rows, strict=True))
        for layer, patches, cls_token in zip(
            tokens.layers or (), tokens.patches, tokens.cls_token, strict=True
        ):
            if not (torch.equal(patches, own[layer][0]) and torch.equal(cls_token, own[layer][1])):
                raise SystemExit(
                    f"layer {layer}, norm={norm}: other than get_intermediate_layers of the "
                    "repository"
                )


def difference(one: Sequence[Tokens], other: Sequence[Tokens]) -> dict[str, float | None]:
    """Largest differences over layers and norms; registers None where the model has none."""
    result: dict[str, float | None] = {}
    for part in PARTS:
        first, second = (
            [x for own in tokens for x in getattr(own, PARTS[part])] for tokens in (one, other)
        )
        gaps = [(a - b).abs().max() for a, b in zip(first, second, strict=True) if a.numel()]
        result[part] = torch.stack(gaps).max().item() if gaps else None
    result["scale"] = max(x.abs().max().item() for tokens in one for x in tokens.sequence)
    return result


@torch.no_grad()
def slips(case: Case) -> Row:
    """By how much the patches of layers 2, 5, 8 would be off after each of the common slips, at 224 x 224."""
    model = load_backbone(case.name, source="transformers", pretrained=False).adapter.model
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(2))
    layers = (2, 5, 8)
    normed, raw = both_norms(model, layers, "native", images)
    states = model(images, output_hidden_states=True).hidden_states
    prefix = raw.num_prefix_tokens
    shifted = [x[:, 1 : 1 + raw.grid.count] for x in normed.sequence]

    def off(wrong: Sequence[Tensor], right: Sequence[Tensor]) -> float:
        return max((a - b).abs().max().item() for a, b in zip(wrong, right, strict=True))

    return {
        "`hidden_states[i + 1]` (right)": off(
            [states[i + 1][:, prefix:] for i in layers], raw.patches
        ),
        "`hidden_states[i]`": off([states[i][:, prefix:] for i in layers], raw.patches),
        "no final norm": off(raw.patches, normed.patches),
        "registers taken as patches": off(shifted, normed.patches) if prefix > 1 else None,
        "largest value": max(x.abs().max().item() for x in normed.patches),
    }


def exported(name: str) -> Row:
    """Size of the ONNX file, and the largest difference of its predictions, in float32 and in half."""
    import onnxruntime

    from dinoneck.export import export_model

    backbone = load_backbone(name, pretrained=False)
    head = PatchMeanHead(backbone.embed_dim, [Task("mass")])
    predictor, side, row = Predictor(head, backbone), backbone.patch_size, Row()
    for half in (False, True):
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            done = export_model(
                head, Path(folder, "m.onnx"), backbone=backbone, maps=True, half=half
            )
            session = onnxruntime.InferenceSession(
                done.files[0], providers=["CPUExecutionProvider"]
            )
            size = sum(file.stat().st_size for file in done.files)
        gaps = []
        for batch, rows, cols in GRIDS:
            draw = torch.Generator().manual_seed(rows)
            images = torch.rand(batch, 3, rows * side, cols * side, generator=draw)
            found = torch.tensor(session.run(["mass.map"], {"images": images.numpy()})[0])
            each = [
                torch.as_tensor(one["maps"]["mass"])
                for one in predictor(list(images), maps="patch")
            ]
            gaps.append(
                float((found - torch.stack(each)).abs().max() / torch.stack(each).abs().max())
            )
        title = "half" if half else "float32"
        row |= {f"{title}, MB": size / 1e6, f"{title}, difference": max(gaps)}
    return row


def table_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Row]:
    """Return a row per model, recipe and bound: the largest difference of each pair over parts and image sizes."""
    table: dict[str, Row] = {}
    for row in rows:
        name = f"`{row['model']}`, {row['pos_embed']}{'' if row['bound'] is not None else ', free'}"
        line = table.setdefault(
            name,
            {"images": "", **dict.fromkeys(PAIRS), "largest value": 0.0, "bound": row["bound"]},
        )
        size = "x".join(map(str, row["size"]))
        if size not in line["images"]:
            line["images"] += f"{', ' if line['images'] else ''}{size}"
        gaps = [row[part] for part in PARTS if row[part] is not None]
        line[row["pair"]] = max([*gaps, line[row["pair"]] or 0.0])
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
    given = {"dinov2": options.official_dinov2, "dinov3": options.official_dinov3}
    checkouts = {family: path.resolve() for family, path in given.items() if path}
    cases = [case for case in CASES if not options.only or case.name in options.only][
        : 1 if options.short else None
    ]
    found = [row for case in cases for row in rows(case, checkouts)]
    yield "differences", table_of(found)
    yield "slips", {f"`{case.name}`": slips(case) for case in cases if case.depth is None}
    yield (
        "exports",
        {f"`{name}`": exported(name) for name in EXPORTED[: 1 if options.short else None]},
    )
    return [f"{row['model']}, {row['pair']}" for row in found if row["holds"] is False]
