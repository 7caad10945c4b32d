"""The table of published DINOv2 and DINOv3 models, and of others in their forms, without loading one.

It holds names, sizes and licences.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dinoneck.errors import BackboneError
from dinoneck.text import did_you_mean

TINY = "dinoneck_tiny"
TINY_WIDTH = 64
TINY_DEPTH = 6
TINY_PATCH = 16
DINOV3_SMALL = "vit_small_patch16_dinov3.lvd1689m"
# family of published weights -> their licence
LICENSES = {
    "dinov2": "apache-2.0",
    "dinov3": "dinov3-license",
    "lingbot": "apache-2.0",
    "tipsv2": "apache-2.0",
}
# family -> the family whose modules and names of weights it has: with learned positions, or rotary
FORMS = {"dinov2": "dinov2", "dinov3": "dinov3", "lingbot": "dinov3", "tipsv2": "dinov2"}
# what the installed timm and transformers must be to have the classes of a family
NEEDED_TIMM = {"lingbot": "1.0.29", "tipsv2": "1.0.28"}
NEEDED_TRANSFORMERS = {"tipsv2": "5.14.0"}
EUPE = "eupe_lvd1689m"  # distilled by Meta into architectures of DINOv3, under terms of their own
TAG_LICENSES = {EUPE: "fair-noncommercial-research-license"}
LICENSE_LINKS = {
    "apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "dinov3-license": "https://ai.meta.com/resources/models-and-libraries/dinov3-license",
    "fair-noncommercial-research-license": "https://huggingface.co/facebook/EUPE-ViT-B",
}
SATELLITE = "sat493m"
SATELLITE_MEAN = (0.430, 0.411, 0.296)
SATELLITE_STD = (0.213, 0.156, 0.143)
NOT_NORMALISED_MEAN = (0.0, 0.0, 0.0)  # of images in 0 ... 1 that a model takes as they are
NOT_NORMALISED_STD = (1.0, 1.0, 1.0)
TIPSV2_MEAN = NOT_NORMALISED_MEAN
TIPSV2_STD = NOT_NORMALISED_STD
TIPSV2_BACKBONE = "vision_encoder."
"""What the names of the backbone's tensors begin with, in files of TIPSv2 that hold its heads too."""
TIPSV2_HEADS = ("depth_head.", "normals_head.", "segmentation_head.")
"""What the names of the heads' tensors begin with, in files of TIPSv2."""


class WeightNames(NamedTuple):
    """The names of published weights.

    Attributes:
        timm: with the tag of the weights.
        transformers: of the same weights for that library; None where it has no copy of them.
    """

    timm: str
    transformers: str | None


class Known(NamedTuple):
    """A published architecture.

    Attributes:
        name: timm's name, without tag.
        patch: pixels per patch side.
        width: channels of a token.
        depth: blocks.
        registers: register tokens.
        hubs: weights tag of timm -> name of the same weights for the transformers library; None
            where it has none. The first tag is the one that the name alone stands for.
        official: name in torch.hub, of the weights of the first tag; None if it has none.
        alias: another name of the weights of the first tag; None if there is none.
        image_size: pixels per side of the images that learned positions were made for; None for
            rotary positions.
    """

    name: str
    patch: int
    width: int
    depth: int
    registers: int
    hubs: Mapping[str, str | None]
    official: str | None = None
    alias: str | None = None
    image_size: int | None = None

    @property
    def form(self) -> str:
        """``dinov2`` with learned positions, ``dinov3`` with rotary ones."""
        return FORMS[family_of(self.name)]

    @property
    def is_gated(self) -> bool:
        """Whether the MLPs are gated (SwiGLU)."""
        return any(size in self.name for size in ("_plus_", "_giant_", "_7b_"))

    def license(self, tag: str) -> str | None:
        """Return the licence of the published weights of a tag."""
        return license_of(f"{self.name}.{tag}")


def _dinov2(size: str, width: int, depth: int) -> list[Known]:
    """The models of one size, without registers and with them."""
    official = f"dinov2_vit{size[0]}14"
    plain = Known(
        name=f"vit_{size}_patch14_dinov2",
        patch=14,
        width=width,
        depth=depth,
        registers=0,
        hubs={"lvd142m": f"facebook/dinov2-{size}"},
        official=official,
        image_size=518,
    )
    with_registers = plain._replace(
        name=f"vit_{size}_patch14_reg4_dinov2",
        registers=4,
        hubs={"lvd142m": f"facebook/dinov2-with-registers-{size}"},
        official=f"{official}_reg",
    )
    return [plain, with_registers]


def _dinov3(
    size: str, short: str, width: int, depth: int, *, satellite: bool = False
) -> list[Known]:
    """The models of one size, without query and value biases and with them."""
    hubs: dict[str, str | None] = {"lvd1689m": f"facebook/dinov3-{short}-pretrain-lvd1689m"}
    if satellite:
        hubs[SATELLITE] = f"facebook/dinov3-{short}-pretrain-{SATELLITE}"
    name = f"vit_{size}_patch16_dinov3"
    plain = Known(
        name=name,
        patch=16,
        width=width,
        depth=depth,
        registers=4,
        hubs=hubs,
        official=f"dinov3_{short}",
    )
    if size == "7b":
        return [plain]
    with_bias = plain._replace(name=f"{name}_qkvb", official=None)
    if size in ("small", "base"):
        with_bias = with_bias._replace(hubs={**hubs, EUPE: None})
    return [plain, with_bias]


def _lingbot(size: str, width: int, depth: int) -> Known:
    """The model of one size: transformers has no class of its own for it."""
    return Known(
        name=f"vit_{size}_patch16_lingbot",
        patch=16,
        width=width,
        depth=depth,
        registers=4,
        hubs={"robbyant": None},
        alias=f"robbyant/lingbot-vision-vit-{size}",
    )


def _tipsv2(size: str, short: str, width: int, depth: int) -> Known:
    """The model of one size: its register is a second CLS token, of synthetic captions."""
    return Known(
        name=f"vit_{size}_patch14_reg1_tipsv2",
        patch=14,
        width=width,
        depth=depth,
        registers=1,
        hubs={"webli": f"google/tipsv2-{short}"},
        alias=f"tipsv2_{short}",
        image_size=448,
    )


KNOWN = (
    *_dinov2("small", 384, 12),
    *_dinov2("base", 768, 12),
    *_dinov2("large", 1024, 24),
    *_dinov2("giant", 1536, 40),
    *_dinov3("small", "vits16", 384, 12),
    *_dinov3("small_plus", "vits16plus", 384, 12),
    *_dinov3("base", "vitb16", 768, 12),
    *_dinov3("large", "vitl16", 1024, 24, satellite=True),
    *_dinov3("huge_plus", "vith16plus", 1280, 32),
    *_dinov3("7b", "vit7b16", 4096, 40, satellite=True),
    Known(
        name="vit_tiny_patch16_dinov3_qkvb",
        patch=16,
        width=192,
        depth=12,
        registers=4,
        hubs={EUPE: None},
    ),
    _lingbot("small", 384, 12),
    _lingbot("base", 768, 12),
    _lingbot("large", 1024, 24),
    _lingbot("giant", 1536, 40),
    _tipsv2("base", "b14", 768, 12),
    _tipsv2("large", "l14", 1024, 24),
    _tipsv2("so400m", "so400m14", 1152, 27),
    _tipsv2("giant", "g14", 1536, 40),
)

# what the names of Meta's files end in: the first digits of the file's SHA-256
_FILE_HASHES = {
    "08c60483": "vit_small_patch16_dinov3.lvd1689m",
    "4057cbaa": "vit_small_plus_patch16_dinov3.lvd1689m",
    "73cec8be": "vit_base_patch16_dinov3.lvd1689m",
    "8aa4cbdd": "vit_large_patch16_dinov3.lvd1689m",
    "eadcf0ff": "vit_large_patch16_dinov3.sat493m",
    "7c1da9a5": "vit_huge_plus_patch16_dinov3.lvd1689m",
    "a955f4ea": "vit_7b_patch16_dinov3.lvd1689m",
    "a6675841": "vit_7b_patch16_dinov3.sat493m",
}
_EUPE_FILES = {
    "eupe-vit-t": f"vit_tiny_patch16_dinov3_qkvb.{EUPE}",
    "eupe-vit-s": f"vit_small_patch16_dinov3_qkvb.{EUPE}",
    "eupe-vit-b": f"vit_base_patch16_dinov3_qkvb.{EUPE}",
}
_LINGBOT_FILES = {
    "lbotv_vit_small": "vit_small_patch16_lingbot.robbyant",
    "lbotv_vit_base": "vit_base_patch16_lingbot.robbyant",
    "lbotv_vit_large": "vit_large_patch16_lingbot.robbyant",
    "lbotv_vit_giant": "vit_giant_patch16_lingbot.robbyant",
}
_TIPSV2_FILES = {
    "tips_v2_oss_b14_vision": "vit_base_patch14_reg1_tipsv2.webli",
    "tips_v2_oss_l14_vision": "vit_large_patch14_reg1_tipsv2.webli",
    "tips_v2_oss_so14_vision": "vit_so400m_patch14_reg1_tipsv2.webli",
    "tips_v2_oss_g14_vision": "vit_giant_patch14_reg1_tipsv2.webli",
}
_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".npz", ".safetensors")
# a file's name without its suffix: Meta's hash, and what a browser adds to a second copy
_FILE = re.compile(r"(?P<base>.+?)(-(?P<hash>[0-9a-f]{8}))?( ?\(\d+\))?")
_ANONYMOUS = ("model.safetensors", "pytorch_model.bin", "model.pt")  # the folder has the name
_CACHED = re.compile(r"models--(?P<owner>[\w.\-]+?)--(?P<name>[\w.\-]+)")  # the Hub's cache


def resolve_name(name: str) -> str:
    """Return timm's name of the model that ``name`` stands for; an unknown name is returned unchanged.

    Known are the torch.hub names of the official repositories (``dinov3_vits16``), the names of
    transformers (``facebook/dinov3-vits16-pretrain-lvd1689m``), timm's Hub addresses
    (``timm/...``, ``hf-hub:timm/...``) and the aliases of the table (``tipsv2_b14``).
    """
    short = _without_hub(name)
    names = names_of(short)
    if names is None or short.startswith("vit_"):
        return name if "/" in short else short
    return names.timm


def _without_hub(name: str) -> str:
    """Return timm's name without what makes it an address of the Hub."""
    return name.removeprefix("hf-hub:").removeprefix("hf_hub:").removeprefix("timm/")


def family_of(name: str) -> str:
    """Return ``dinov2``, ``dinov3``, ``lingbot``, ``tipsv2`` or ``other`` for a model name."""
    lowered = name.lower()
    for family in LICENSES:
        if family in lowered:
            return family
    return "other"


def refined_family(family: str | None, name: str) -> str:
    """Return the family of a model, by its name where its class is that of several.

    Args:
        family: of the model's class, as a record or an adapter states it; None if it states none.
        name: of the model.
    """
    family_of_name = family_of(name)
    if family is None or family == "other" or FORMS.get(family_of_name) == family:
        return family_of_name
    return family


def normalisation_of(name: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return mean and std of the images of published weights, where they are not ImageNet's, else None."""
    if name.endswith(SATELLITE):
        return SATELLITE_MEAN, SATELLITE_STD
    if family_of(name) == "tipsv2":
        return TIPSV2_MEAN, TIPSV2_STD
    return None


def is_supported(architecture: str) -> bool:
    """Whether a timm architecture name (without tag) is a ViT of the families of the table."""
    return architecture.startswith("vit_") and family_of(architecture) != "other"


def names_of(name: str) -> WeightNames | None:
    """Return the names of published weights, given any of them; None if unknown."""
    for model in KNOWN:
        first_tag = next(iter(model.hubs))
        for tag, hub in model.hubs.items():
            full = f"{model.name}.{tag}"
            is_of_first = name in (model.name, model.official, model.alias)
            stands_for_tag = is_of_first and tag == first_tag
            if name in (hub, full) or stands_for_tag:
                return WeightNames(timm=full, transformers=hub)
    return None


def license_of(name: str) -> str | None:
    """Return the licence of the published weights that ``name`` stands for, by its tag, else by its family.

    None for a repository of the Hub that is not in the table, whatever it is called.
    """
    if is_unknown_repository(name):
        return None
    names = names_of(_without_hub(name))
    full = _without_hub(name) if names is None else names.timm
    tag = full.partition(".")[2]
    return TAG_LICENSES.get(tag, LICENSES.get(family_of(full)))


def is_unknown_repository(name: str) -> bool:
    """Whether a name is that of a repository of the Hub, or of a folder, with other weights than published ones."""
    short = _without_hub(name)
    return "/" in short and names_of(short) is None


def states_tag(name: str) -> bool:
    """Whether a name itself says which weights of its architecture are meant."""
    return "." in _without_hub(name) or is_of_transformers(name)


def is_of_transformers(name: str) -> bool:
    """Whether a name is that of published weights for the transformers library."""
    return any(name in model.hubs.values() for model in KNOWN)


def weights_of_file(path: str | os.PathLike[str]) -> str | None:
    """Return timm's name, with its tag, of the published weights that a file's name or folder names.

    The names of Meta's files are known (``dinov3_vitl16_pretrain_sat493m-eadcf0ff.pth``), and so is
    the hash that they end in. Those of LingBot-Vision's and TIPSv2's files are known too. The names
    of timm's and transformers' copies and of the publishers' repositories are recognised as files,
    as folders, and in the cache of the Hub.

    Returns:
        None if it names no published weights.
    """
    file = Path(path).absolute()  # not resolved: the Hub's cache holds links to files without names
    name = file.name
    if name in _ANONYMOUS:
        folder = file.parent
        if folder.parent.name == "snapshots":  # of a commit, in the folder of the repository
            folder = folder.parent.parent
        name = folder.name
    if name.lower().endswith(_SUFFIXES):
        name = name.rpartition(".")[0]
    cached = _CACHED.fullmatch(name)
    if cached:
        name = cached["name"]
    parts = _FILE.fullmatch(name.lower())
    if not parts:
        return None
    if parts["hash"] in _FILE_HASHES:
        return _FILE_HASHES[parts["hash"]]
    return _published_files().get(parts["base"])


@functools.cache
def _published_files() -> dict[str, str]:
    """Return names of files and folders of published weights, without suffix and hash -> timm's name."""
    names = {**_EUPE_FILES, **_LINGBOT_FILES, **_TIPSV2_FILES}
    for model in KNOWN:
        for tag, hub in model.hubs.items():
            full = f"{model.name}.{tag}"
            names[full] = full
            if model.alias is not None:
                names[model.alias.rpartition("/")[2]] = full
            # of the two architectures of DINOv3, Meta's names are those of the one without biases
            is_first_of_name = model.official is not None or model.alias is not None
            if hub is not None and is_first_of_name:
                names[hub.rpartition("/")[2]] = full
            if model.official is None:
                continue
            if family_of(model.name) == "dinov3":
                names[f"{model.official}_pretrain_{tag}"] = full
            else:
                names[f"{model.official.replace('_reg', '_reg4')}_pretrain"] = full
    return names


def dimensions_of(name: str) -> tuple[int, int] | None:
    """Return (channels of a token, number of blocks) of a published model, given any of its names; None if unknown."""
    if name == TINY:
        return TINY_WIDTH, TINY_DEPTH
    model = model_of(name)
    return None if model is None else (model.width, model.depth)


def patch_of(name: str) -> int | None:
    """Return the pixels per patch side of a published model, given any of its names; None if unknown."""
    if name == TINY:
        return TINY_PATCH
    model = model_of(name)
    return None if model is None else model.patch


def model_of(name: str) -> Known | None:
    """Return the published architecture of a model, given any of its names; None if unknown."""
    architecture = resolve_name(name).split(".", 1)[0]
    for model in KNOWN:
        if model.name == architecture:
            return model
    return None


def architecture_of(name: str) -> str:
    """Return the architecture of a model name: timm's name without tag and ``_qkvb``."""
    names = names_of(name)
    full = name if names is None else names.timm
    return full.split(".", 1)[0].removesuffix("_qkvb")


def unknown_backbone(name: str, names: list[str]) -> BackboneError:
    """Return the error for a name that is not that of a ViT of the table.

    Args:
        name: as the caller gave it.
        names: the architectures that there are.
    """
    if "convnext" in name.lower():
        return BackboneError(
            f"{name!r} is a ConvNeXt, which has no patch tokens; 'dinoneck list backbones' lists "
            "the ViTs of DINOv2, DINOv3, LingBot-Vision and TIPSv2"
        )
    hint = ""
    if "/" in name:
        hint = " For a model of your own on the hub pass source='transformers'."
    short_names = [model.official for model in KNOWN if model.official is not None]
    short_names += [model.alias for model in KNOWN if model.alias is not None]
    near = did_you_mean(name.split(".")[0], [TINY, *names, *short_names])
    return BackboneError(
        f"backbone {name!r} is unknown.{hint}{near} 'dinoneck list backbones' lists the "
        f"{len(names)} known names; for another timm ViT that you built yourself use "
        "wrap_backbone(model)"
    )


def has_several_recipes(family: str, registers: int) -> bool:
    """Whether the libraries resample the position embeddings of a family's models in different ways."""
    return (family == "dinov2" and not registers) or family == "tipsv2"


ONLY_RECIPE = "the only one"
OFFICIAL_RECIPE = "'official'"


def position_recipe(record: Mapping[str, Any]) -> str:
    """Return which recipe resamples the position embeddings of a record's model, in words.

    Plain DINOv2 (without registers) has several: that of the dinov2 repository, and one of each
    library. TIPSv2 has two: timm's, and its publisher's, which is that of transformers too. Models
    of unknown families have that of their library, unless the official one was asked for. All
    others have one, and ``pos_embed`` changes nothing.
    """
    asked_for_official = record.get("pos_embed") == "official"
    family = refined_family(record.get("family"), record.get("name") or "")
    has_several = has_several_recipes(family, record.get("num_registers") or 0)
    if not has_several and not (family == "other" and asked_for_official):
        return ONLY_RECIPE
    if asked_for_official or record.get("source") == "official":
        return OFFICIAL_RECIPE
    if family == "tipsv2" and record.get("source") == "transformers":
        return OFFICIAL_RECIPE
    return f"{record.get('pos_embed')!r} of {record.get('source')}"


def uses_official_recipe(record: Mapping[str, Any]) -> bool:
    """Whether a record's model resamples positions with the official recipe instead of its library's own."""
    return position_recipe(record) == OFFICIAL_RECIPE and record.get("source") != "official"
