"""Published heads in transformers, where it has them; needs transformers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from tests.unit.published import official_files as official
from tests.unit.published.narrow import CHANNELS, HIDDEN, PATCH, WIDTH
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.chmv2 import modeling_chmv2 as chmv2
from transformers.models.depth_anything import modeling_depth_anything as da
from transformers.models.dpt import modeling_dpt as dpt

from dinoneck import Tokens

Logits = Callable[[Tokens], Tensor]
hf.utils.logging.disable_progress_bar()


def logits_of(name: str, state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Logits]:
    """The head in transformers, where it has one, with the same weights and without its last activation."""
    if name.endswith("imagenet_linear"):
        config = hf.Dinov2Config(hidden_size=WIDTH, num_hidden_layers=1, num_labels=1000)
        classifier = hf.Dinov2ForImageClassification(config).eval()
        classifier.classifier.load_state_dict(state)
        classifier.dinov2 = Given()
        classifier.to(dtype)
        return {"transformers": lambda tokens: classifier(plain(tokens)[-1]).logits}
    if name.startswith("tipsv2"):
        return {"transformers": tipsv2_logits(tipsv2_model(name, state).to(dtype))}
    if "depth_anything" not in name and not name.endswith(("nyu_dpt", "chmv2")):
        return {}
    modules = decoder(name, state, WIDTH, HIDDEN, CHANNELS).to(dtype)

    def logits(tokens: Tokens) -> Tensor:
        if name.endswith("chmv2"):
            return modules["head"](
                list(zip(tokens.maps(), tokens.cls_token, strict=True)), *tokens.grid
            )
        fused = modules["neck"](plain(tokens), *tokens.grid)
        return modules["head"](fused, *(() if name.endswith("dpt") else tokens.grid))

    return {"transformers": logits}


def decoder(
    name: str,
    state: Mapping[str, Tensor],
    width: int,
    hidden: Sequence[int],
    channels: int,
    patch: int = PATCH,
) -> nn.ModuleDict:
    """Transformers' neck and head of a published DPT decoder, which ends in logits."""
    sizes: dict[str, Any] = {
        "neck_hidden_sizes": [*hidden],
        "fusion_hidden_size": channels,
        "patch_size": patch,
    }
    if name.endswith("chmv2"):
        vit = hf.DINOv3ViTConfig(hidden_size=width)
        sizes = {"post_process_channels": sizes.pop("neck_hidden_sizes"), **sizes}
        config = hf.CHMv2Config(backbone_config=vit, **sizes)
        modules, model = nn.ModuleDict({"head": chmv2.CHMv2Head(config)}), "chmv2"
    elif name.endswith("dpt"):
        given = {
            "hidden_size": width,
            "readout_type": "project",
            "use_bias_in_fusion_residual": False,
        }
        config = hf.DPTConfig(**sizes, **given, reassemble_factors=[4, 2, 1, 0.5])
        modules, model = (
            nn.ModuleDict(
                {"neck": dpt.DPTNeck(config), "head": dpt.DPTDepthEstimationHead(config)}
            ),
            "dpt",
        )
        # which has 256 channels there
        modules["head"].projection = nn.Conv2d(channels, channels, 3, padding=1)
        modules["head"].head[-1] = nn.Identity()
    else:
        config = hf.DepthAnythingConfig(**sizes, reassemble_hidden_size=width)
        modules, model = nn.ModuleDict({"neck": da.DepthAnythingNeck(config)}), "depth_anything"
        modules["head"] = da.DepthAnythingDepthEstimationHead(config)
        modules["head"].activation2 = nn.Identity()
    own = {
        official.transformers_name(key.removeprefix("decode_head."), model): value
        for key, value in state.items()
    }
    idle = {
        key: torch.zeros(shape)
        for key, shape in official.unused(channels).items()
        if key in modules.state_dict()
    }
    modules.load_state_dict({**idle, **(state if model == "depth_anything" else own)}, strict=True)
    return modules.eval()


def tipsv2_model(name: str, state: Mapping[str, Tensor]) -> Any:
    """TIPSv2's class in transformers, which reads the tensors of a narrow head in the publisher's names.

    The file that it reads holds a backbone of random weights in front of them.
    """
    models = {
        "depth": hf.Tipsv2DptForDepthEstimation,
        "normals": hf.Tipsv2DptForNormalEstimation,
        "ade20k": hf.Tipsv2DptForSemanticSegmentation,
    }
    vit = hf.Tipsv2VisionConfig(
        hidden_size=WIDTH,
        num_hidden_layers=4,
        num_attention_heads=1,
        image_size=28,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
    )
    config = hf.Tipsv2DptConfig(
        backbone_config=vit,
        neck_hidden_sizes=list(HIDDEN),
        fusion_hidden_size=CHANNELS,
        num_labels=150,
    )
    model = models[name.rpartition("_")[2]](config)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        file = Path(folder, "model.safetensors")
        written = load_file(file)
        assert state.keys() <= written.keys()  # transformers writes the publisher's names
        save_file({**written, **state}, file, metadata={"format": "pt"})
        return models[name.rpartition("_")[2]].from_pretrained(folder).eval()


def tipsv2_logits(model: Any) -> Logits:
    """The decoder's output on tokens, before bins and before vectors are made as long as 1."""

    def logits(tokens: Tokens) -> Tensor:
        sequences = []
        for cls, x in zip(tokens.cls_token, tokens.patches, strict=True):
            register = torch.zeros_like(cls)  # which the neck leaves out
            sequences.append(torch.cat([cls[:, None], register[:, None], x], dim=1))
        with torch.no_grad():
            return model.decoder(model.neck(sequences, *tokens.grid)[-1])

    return logits


class Given(nn.Module):
    """Stands where a backbone does: hands out the sequence that it is given."""

    def forward(self, sequence: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(last_hidden_state=sequence)


def plain(tokens: Tokens) -> list[Tensor]:
    """Sequences without registers, which these models do not know."""
    return [
        torch.cat([cls[:, None], x], dim=1)
        for cls, x in zip(tokens.cls_token, tokens.patches, strict=True)
    ]
