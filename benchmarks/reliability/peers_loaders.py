"""Six ways to load a trained head, each as its documentation shows it, under one interface.

Every loader gets a small head with square matrices, saved by its own means, and gives the head's answer to one fixed
input, so that a wrong head shows in its output.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from benchmarks.reliability import forge
from dinoneck import CheckpointError, HeadCheckpoint, PatchMeanMLP, load_backbone, load_head, save_head
from dinoneck.checkpoint import read_header

WIDTH = 8
OWN = "dinoneck"
_TIMM_OPTIONS = {"img_size": 32, "embed_dim": WIDTH, "depth": 2, "num_heads": 1, "num_classes": 3}
_PLAIN: dict[str, Any] = {"square": "hidden.weight", "twin": "out.weight", "layers": ("hidden.", "out.")}
ConfigChange = Callable[[dict[str, Any]], object]


@dataclass(frozen=True)
class Loader:
    """One way to load a head.

    Attributes:
        name: as it stands in the table.
        package: whose version is told.
        weights: the file with the tensors.
        config: the JSON file beside it; None if there is none.
        save: writes a head into a folder: (folder, its seed, whether it is one of the other setting).
        load: reads it and returns its answer.
        square, twin: two tensors of the same square shape.
        layers: prefixes of two layers of the same shapes.
        unknown, newer, value, size: changes of the configuration: an unknown key, a version of the future, another
            value under which the same tensors answer otherwise, and one under which they do not fit. None = no such.
        other_base: loads it onto other base weights than it was trained on; None if it has no base.
        wants: why it cannot run here, or an empty string.
    """

    name: str
    package: str
    weights: str
    config: str | None
    save: Callable[[Path, int, bool], Tensor]
    load: Callable[[Path], Tensor]
    square: str
    twin: str
    layers: tuple[str, str]
    unknown: ConfigChange | None = None
    newer: ConfigChange | None = None
    value: ConfigChange | None = None
    size: ConfigChange | None = None
    other_base: Callable[[Path], Tensor] | None = None
    wants: str = ""

    @property
    def version(self) -> str:
        """The version of the package."""
        return self.wants or f"{self.package} {metadata.version(self.package)}"


class Head(nn.Module):
    """A head as people write it: two layers, an activation, the mean over patches."""

    def __init__(self, width: int = WIDTH, activation: str = "relu") -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.activation = {"relu": torch.relu, "softplus": nn.functional.softplus}[activation]

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, C)."""
        return self.activation(self.out(self.activation(self.hidden(x)))).mean(dim=1)


def features() -> Tensor:
    """The fixed input of heads."""
    return torch.randn(2, 6, WIDTH, generator=torch.Generator().manual_seed(0))


def photo() -> Tensor:
    """The fixed input of whole models."""
    return torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def answer(module: nn.Module, x: Tensor) -> Tensor:
    """What a module says in eval mode."""
    return module.eval()(x)


@contextlib.contextmanager
def quiet() -> Any:
    """Take what peers print and log off the screen."""
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def _save(write: Callable[[nn.Module, Path], None]) -> Callable[[Path, int, bool], Tensor]:
    def save(folder: Path, seed: int, other: bool) -> Tensor:
        torch.manual_seed(seed)
        head = Head(activation="softplus" if other else "relu")
        write(head, folder)
        return answer(head, features())

    return save


def _torch_save(head: nn.Module, folder: Path) -> None:
    torch.save(head.state_dict(), folder / "head.pt")


def _torch_load(folder: Path) -> Tensor:
    head = Head()
    head.load_state_dict(torch.load(folder / "head.pt", weights_only=True), strict=True)
    return answer(head, features())


def _safetensors_save(head: nn.Module, folder: Path) -> None:
    safetensors.torch.save_file(head.state_dict(), folder / "head.safetensors")


def _safetensors_load(folder: Path) -> Tensor:
    head = Head()
    head.load_state_dict(safetensors.torch.load_file(folder / "head.safetensors"), strict=True)
    return answer(head, features())


def _set(place: tuple[str, ...], value: Any) -> ConfigChange:
    def change(config: dict[str, Any]) -> None:
        inner = config
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value

    return change


def _torch(name: str) -> Loader:
    return Loader(name, "torch", "head.pt", None, _save(_torch_save), _torch_load, **_PLAIN)


def _safetensors(name: str) -> Loader:
    write = _save(_safetensors_save)
    return Loader(name, "safetensors", "head.safetensors", None, write, _safetensors_load, **_PLAIN)


def _mixin(name: str, **options: Any) -> Loader:
    from huggingface_hub import PyTorchModelHubMixin

    class HubHead(Head, PyTorchModelHubMixin):
        """The head with the hub's mixin."""

    def save(folder: Path, seed: int, other: bool) -> Tensor:
        torch.manual_seed(seed)
        head = HubHead(width=WIDTH, activation="softplus" if other else "relu")
        head.save_pretrained(folder)
        return answer(head, features())

    def load(folder: Path) -> Tensor:
        return answer(HubHead.from_pretrained(str(folder), local_files_only=True, **options), features())

    changes = {
        "unknown": _set(("unknown_option",), 1),
        "newer": _set(("schema_version",), 999),
        "value": _set(("activation",), "softplus"),
        "size": _set(("width",), WIDTH + 1),
    }
    return Loader(name, "huggingface_hub", "model.safetensors", "config.json", save, load, **_PLAIN, **changes)


def _peft(name: str) -> Loader:
    names = {"weights": "adapter_model.safetensors", "config": "adapter_config.json"}
    square = "base_model.model.hidden.lora_{}.weight"
    fields = {
        "square": square.format("A"),
        "twin": square.format("B"),
        "layers": ("base_model.model.hidden.", "base_model.model.out."),
        "unknown": _set(("unknown_option",), 1),
        "newer": _set(("peft_version",), "999.0.0"),
        "value": _set(("lora_alpha",), 64),
        "size": _set(("r",), WIDTH // 2),
    }
    try:
        import peft
    except ImportError:
        missing = "peft is not installed"
        return Loader(name, "peft", save=_no, load=_no, wants=missing, **names, **fields)

    def base(seed: int = 0) -> Head:
        torch.manual_seed(seed)
        return Head()

    def save(folder: Path, seed: int, other: bool) -> Tensor:
        config = peft.LoraConfig(r=WIDTH, lora_alpha=64 if other else 16, target_modules=["hidden", "out"])
        model = peft.get_peft_model(base(), config)
        torch.manual_seed(seed)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(str(folder))
        return answer(model, features())

    def load(folder: Path, seed: int = 0) -> Tensor:
        return answer(peft.PeftModel.from_pretrained(base(seed), str(folder)), features())

    return Loader(name, "peft", save=save, load=load, other_base=partial(load, seed=1), **names, **fields)


def _no(*_: Any) -> Tensor:
    raise RuntimeError("not installed")


def _timm(name: str, by_folder: bool) -> Loader:
    import timm

    def save(folder: Path, seed: int, other: bool) -> Tensor:
        torch.manual_seed(seed)
        options = {**_TIMM_OPTIONS, "num_heads": 2 if other else 1}
        model = timm.create_model("vit_tiny_patch16_224", **options)
        timm.models.save_for_hf(model, folder, model_args=options, safe_serialization=True)
        return answer(model, photo())

    def load(folder: Path) -> Tensor:
        if by_folder:
            return answer(timm.create_model(f"local-dir:{folder}", pretrained=True), photo())
        path = str(folder / "model.safetensors")
        return answer(timm.create_model("vit_tiny_patch16_224", checkpoint_path=path, **_TIMM_OPTIONS), photo())

    fields = {
        "square": "blocks.0.attn.proj.weight",
        "twin": "blocks.1.attn.proj.weight",
        "layers": ("blocks.0.", "blocks.1."),
        "unknown": _set(("unknown_option",), 1),
        "newer": _set(("schema_version",), 999),
        "value": _set(("model_args", "num_heads"), 2),
        "size": _set(("model_args", "embed_dim"), 2 * WIDTH),
    }
    return Loader(name, "timm", "model.safetensors", "config.json", save, load, **fields)


def _own(label: str) -> Loader:
    name = "head.safetensors"

    def save(folder: Path, seed: int, other: bool) -> Tensor:
        torch.manual_seed(seed)
        head = PatchMeanMLP(WIDTH, WIDTH, WIDTH, "softplus" if other else "relu")
        save_head(folder / name, head)
        return answer(head, features())

    def load(folder: Path) -> Tensor:
        return answer(load_head(folder / name), features())

    def other_base(folder: Path) -> Tensor:
        head = PatchMeanMLP(64)
        HeadCheckpoint.from_module(head, backbone=load_backbone("dinoneck_tiny")).save(folder / name)
        HeadCheckpoint.load(folder / name).check_backbone(load_backbone("dinoneck_tiny", seed=1))
        raise RuntimeError("the other base was accepted")

    return Loader(
        label,
        "dinoneck",
        name,
        None,
        save,
        load,
        square="hidden.weight",
        twin="out.weight",
        layers=("hidden.", "out."),
        unknown=_set(("config", "unknown_option"), 1),
        newer=_set(("schema",), 999),
        value=_set(("config", "activation"), "softplus"),
        size=_set(("config", "hidden_dim"), WIDTH + 1),
        other_base=other_base,
    )


LOADERS: dict[str, Callable[[str], Loader]] = {
    OWN: _own,
    "torch.load(weights_only) + strict": _torch,
    "safetensors load_file + strict": _safetensors,
    "hub mixin": _mixin,
    "hub mixin, strict=True": partial(_mixin, strict=True),
    "peft": _peft,
    "timm checkpoint_path=": partial(_timm, by_folder=False),
    "timm local-dir:": partial(_timm, by_folder=True),
}
"""All of them by name, dinoneck's first; a package is imported when its loader is asked for."""


def change_config(loader: Loader, folder: Path, change: ConfigChange) -> None:
    """Edit the configuration by hand: the JSON file, or dinoneck's metadata (its digest stays as it was)."""
    if loader.config is not None:
        path = folder / loader.config
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config, indent=2))
        return
    path = folder / loader.weights
    meta = read_header(path).meta
    change(meta)
    path.write_bytes(forge.written(meta, safetensors.torch.load(path.read_bytes()), digest=False))


def is_own(error: BaseException) -> bool:
    """Whether an error belongs to the one family."""
    return isinstance(error, CheckpointError)
