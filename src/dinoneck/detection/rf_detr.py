"""RF-DETR of transformers: a detector with a tuned DINOv2 of its own, for boxes or masks."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dinoneck.backbones.backbone import Backbone
from dinoneck.checks import check_class_names
from dinoneck.configured import Configured
from dinoneck.detection.detr import add_loss, best_pairs, boxes_of_queries, labels_of
from dinoneck.detection.levels import Target
from dinoneck.errors import CheckpointError, ConfigError
from dinoneck.extras import missing_extra
from dinoneck.kinds import Runtime
from dinoneck.published.detectors import VIT_NAME
from dinoneck.runtime.least_scores import check_thresholds
from dinoneck.text import first_line, some_of
from dinoneck.training.parameter_groups import OwnVit
from dinoneck.training.recipe import Share, converted

try:
    import transformers
except ImportError as error:
    raise missing_extra("transformers", "detection") from error
try:
    from transformers import (
        RfDetrConfig,
        RfDetrForInstanceSegmentation,
        RfDetrForObjectDetection,
    )
    from transformers.core_model_loading import revert_weight_conversion
except ImportError as error:
    raise ImportError(
        f"RF-DETR is part of transformers from version 5.9 on, and {transformers.__version__} is "
        "installed: pip install --upgrade 'transformers>=5.9'"
    ) from error

from dinoneck.detection.rf_detr_vit import VitOfRuntime  # imports transformers too

DETECTOR = "rf_detr"
_WIDTH = 384  # of the ViT-S that all published models hold
_HEADS = 6
_STAGES = 4  # blocks whose patches the projector reads: the last of every quarter
_SHOWN = 5  # names in an error
# loss -> its weight, a field of the configuration of transformers
_LOSS_WEIGHTS = {
    "loss_ce": "class_loss_coefficient",
    "loss_bbox": "bbox_loss_coefficient",
    "loss_giou": "giou_loss_coefficient",
    "loss_mask_ce": "mask_class_loss_coefficient",
    "loss_mask_dice": "mask_dice_loss_coefficient",
}
# what follows the name of the loss of an earlier layer of the decoder, or of the proposals
_LOSS_SUFFIX = re.compile(r"_(\d+|enc)$")
_CLASS_HEADS = "class_embed."  # in the names of the tensors that have a row per class
# what makes another architecture, in the configuration of transformers
_ARCHITECTURE = (
    "num_queries",
    "group_detr",
    "d_model",
    "decoder_layers",
    "decoder_ffn_dim",
    "decoder_n_points",
    "decoder_self_attention_heads",
    "decoder_cross_attention_heads",
    "decoder_activation_function",
    "activation_function",
    "hidden_expansion",
    "c2f_num_blocks",
    "layer_norm_eps",
    "mask_downsample_ratio",
)
_BACKBONE_ARCHITECTURE = (
    "image_size",
    "patch_size",
    "num_windows",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "mlp_ratio",
    "hidden_act",
    "layer_norm_eps",
    "use_swiglu_ffn",
    "apply_layernorm",
    "out_features",
)


class RawOutputs(NamedTuple):
    """What the network gives for a batch.

    Attributes:
        logits: (B, queries, classes).
        shares: boxes (B, queries, 4) as centre and size, in shares of the image.
        masks: logits (B, queries, H / 4, W / 4); None of a model for boxes.
    """

    logits: Tensor
    shares: Tensor
    masks: Tensor | None


class RfDetr(Configured, nn.Module):
    """RF-DETR with its ViT, as transformers has it: what the file of such a detector holds.

    A :class:`dinoneck.detection.Detector` prepares images for it. It takes square images: those
    windows of its ViT that are not square are cut wrongly by transformers.

    Args:
        classes: names of the labels.
        outputs: the output of the network for each class. Those of the published models are COCO's
            category ids, 91 numbers with gaps.
        num_outputs: how many outputs the network has.
        image_size: pixels of a side of the images that it was trained on; the ViT has a position
            for each of their patches, and resamples them for other sizes.
        patch_size: pixels of a side of a patch.
        num_windows: windows along a side, within which most blocks of the ViT attend.
        decoder_layers: layers of the decoder.
        queries: boxes that it gives at most.
        masks: whether it also gives a mask for each box.
        encoder_layers: blocks of the ViT.
        min_score: of the boxes that :meth:`dinoneck.detection.Detector.predict` gives.
        thresholds: the same for the boxes of each class, in the place of ``min_score``; empty:
            ``min_score`` for all.
        device: of the weights.
        dtype: of the weights.

    Attributes:
        model: the model of transformers.
        trained_size: (height, width) in pixels of the images that its weights were trained on last:
            that of ``image_size``, and of a detector that was read from a file the file's.
        has_masks: whether it gives a mask for each box.

    Shape:
        normalised images (B, 3, H, W) -> losses by name with targets. Without targets, per image
        and by falling score: ``boxes`` (queries, 4) XYXY in pixels, ``scores``, ``labels``, and of
        a model of masks ``masks``, logits (queries, H / 4, W / 4).

    Raises:
        ConfigError: if classes and outputs do not fit each other, or blocks have no four quarters.
        ImportError: if transformers is missing, or older than 5.9.

    Reference:
        Robinson et al., 2025 (RF-DETR).
    """

    detector = DETECTOR
    _left_out_defaults = ("thresholds",)

    def __init__(
        self,
        classes: tuple[str, ...],
        outputs: tuple[int, ...],
        num_outputs: int,
        image_size: int,
        patch_size: int = 16,
        num_windows: int = 2,
        decoder_layers: int = 3,
        queries: int = 300,
        masks: bool = False,
        encoder_layers: int = 12,
        min_score: float = 0.5,
        thresholds: tuple[float, ...] = (),
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_class_names(classes)
        if len(set(outputs)) != len(classes) or not set(outputs) <= set(range(num_outputs)):
            raise ConfigError(
                f"outputs are {outputs}; expected {len(classes)} different numbers below "
                f"{num_outputs}, one per class"
            )
        if encoder_layers % _STAGES or encoder_layers < _STAGES:
            raise ConfigError(
                f"encoder_layers is {encoder_layers}; expected a multiple of {_STAGES}"
            )
        converted("min_score", min_score, Share)
        check_thresholds(thresholds, len(classes))
        self.classes = classes
        self.outputs = outputs
        self.image_size = image_size
        self.trained_size = (image_size, image_size)
        self.patch_size = patch_size
        self.num_windows = num_windows
        self.has_masks = masks
        blocks_per_stage = encoder_layers // _STAGES
        stages = [f"stage{blocks_per_stage * number}" for number in range(1, _STAGES + 1)]
        config = RfDetrConfig(
            backbone_config={
                "model_type": "rf_detr_dinov2",
                "hidden_size": _WIDTH,
                "num_attention_heads": _HEADS,
                "num_hidden_layers": encoder_layers,
                "out_features": stages,
                "image_size": image_size,
                "patch_size": patch_size,
                "num_windows": num_windows,
            },
            decoder_layers=decoder_layers,
            decoder_n_points=2,
            num_queries=queries,
            num_labels=num_outputs,
            dropout=0.0,  # as the publisher trains; the default of transformers is another one
        )
        self.model: Any
        with nullcontext() if device is None else torch.device(device):
            self.model = _with_float32_logits(self._model_class(config))
        if device is not None or dtype is not None:
            self.to(device=device, dtype=dtype)

    @property
    def _model_class(self) -> Any:
        """The class of transformers."""
        if self.has_masks:
            return RfDetrForInstanceSegmentation
        return RfDetrForObjectDetection

    @property
    def vit(self) -> nn.Module:
        """The windowed ViT."""
        vit: nn.Module = self._vit_with_projector.backbone
        return vit

    @property
    def _vit_with_projector(self) -> Any:
        """The module of transformers that holds the ViT and the projector."""
        boxes_model = self.model.model if self.has_masks else self.model
        return boxes_model.model.backbone

    @property
    def runtime_backbone(self) -> Backbone | None:
        """The ViT as a backbone, whose runtime computes it after :meth:`use_runtime`; None before."""
        vit = self.vit
        return vit.backbone if isinstance(vit, VitOfRuntime) else None

    def use_runtime(self, runtime: Runtime, image_size: tuple[int, int]) -> None:
        """Freeze the ViT, and let a runtime compute it.

        Args:
            runtime: see :meth:`dinoneck.Backbone.with_runtime`.
            image_size: (height, width) in pixels of the images that the network gets.

        Raises:
            BackboneError: if ``openvino`` does not compute in the dtype of the weights.
            ImportError: naming the extra, if ``openvino`` is not installed.
        """
        self._vit_with_projector.backbone = VitOfRuntime(self.vit, image_size, runtime).eval()

    @contextmanager
    def with_plain_vit(self) -> Iterator[None]:
        """Let transformers compute the ViT in the ``with`` block, for images of any size."""
        vit = self.vit
        if isinstance(vit, VitOfRuntime):
            self._vit_with_projector.backbone = vit.plain_vit.eval()
        try:
            yield
        finally:
            self._vit_with_projector.backbone = vit

    @property
    def own_vit(self) -> OwnVit:
        """The windowed ViT by its blocks, for what trains it."""
        vit: Any = self.vit
        return OwnVit(
            VIT_NAME,
            vit,
            blocks=vit.encoder.layer,
            norm=vit.layernorm,
            unused=(vit.embeddings.mask_token,),
        )

    @property
    def num_groups(self) -> int:
        """Groups of queries that are trained side by side; one of them predicts."""
        return int(self.model.config.group_detr)

    def check_size(self, size: Sequence[int], patch: tuple[int, int]) -> None:
        """Reject a network size that is not square, whose windows have a fraction of a patch, or too small a one.

        Args:
            size: (height, width) in pixels.
            patch: (height, width) of a patch, in pixels.

        Raises:
            ConfigError: naming the next size that fits, or the number of patches, of which each
                query takes one.
        """
        height, width = size
        unit = math.lcm(*patch) * self.num_windows
        side = math.ceil(max(height, width) / unit) * unit
        if height != width or height % unit:
            raise ConfigError(
                f"size is {height}x{width} (height x width); RF-DETR takes squares whose side is a "
                f"multiple of {unit} (patch x windows), such as {side}x{side}"
            )
        num_patches = (height // patch[0]) * (width // patch[1])
        num_queries = self.model.config.num_queries
        if num_patches < num_queries:
            raise ConfigError(
                f"size {height}x{width} gives {num_patches} patches; expected {num_queries} "
                "(queries) or more"
            )

    def forward(self, images: Tensor, targets: Sequence[Target] | None = None) -> Any:
        """Return losses by name with targets, else the detections of each image.

        Args:
            images: normalised, (B, 3, H, W).
            targets: per image ``boxes`` (n, 4) XYXY in pixels of ``images``, ``labels`` (n,) from 0
                and, of a model for masks, ``masks`` (n, H, W).

        Raises:
            ConfigError: for targets in eval mode, or without masks that the model learns from.
        """
        if targets is not None:
            return self.losses(images, targets)
        raw = self.raw(images)
        scores, queries, labels = best_pairs(raw.logits)
        boxes = boxes_of_queries(raw.shares, queries, images.shape[-2:])
        detections = []
        for i in range(len(images)):
            of_image = {"boxes": boxes[i], "scores": scores[i], "labels": labels[i]}
            if raw.masks is not None:
                of_image["masks"] = raw.masks[i, queries[i]]
            detections.append(of_image)
        return detections

    def losses(self, images: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Return the losses of transformers by kind, weighed as published, see :meth:`forward`.

        Those of the earlier layers of the decoder and of the proposals are added to their kind.
        """
        if not self.training:
            raise ConfigError(
                "targets are given in eval mode; the losses are those of all groups of queries, of "
                "which eval mode has one: call train() first"
            )
        if self.has_masks and not all("masks" in target for target in targets):
            raise ConfigError(
                "targets have no masks, and this RF-DETR learns boxes and masks; add masks (n, H, W)"
            )
        outputs_of_labels = torch.tensor(self.outputs, device=images.device)
        labels = labels_of(images, targets)
        for i, target in enumerate(targets):
            labels[i]["class_labels"] = outputs_of_labels[target["labels"]]
            if self.has_masks:
                labels[i]["masks"] = target["masks"].to(images)
        loss_dict = self.model(pixel_values=images, labels=labels).loss_dict
        losses: dict[str, Tensor] = {}
        for name, value in loss_dict.items():
            kind = _LOSS_SUFFIX.sub("", name)
            if kind not in _LOSS_WEIGHTS:
                continue  # a count that is no loss
            # without an object transformers gives an empty tensor for masks, whose sum is 0
            weighted = getattr(self.model.config, _LOSS_WEIGHTS[kind]) * value.sum()
            add_loss(losses, kind, weighted)
        return losses

    def with_classes(self, classes: Sequence[str]) -> RfDetr:
        """Return this detector for the classes of a training.

        The tensors are copied, except rows of classes that this detector does not have: those are
        new, as torch's random state draws them. A detector of equal classes is returned itself.

        Args:
            classes: names of the labels, in their order.
        """
        if tuple(classes) == self.classes:
            return self
        config = {
            **self.config,
            "classes": list(classes),
            "outputs": list(range(len(classes))),
            "num_outputs": len(classes),
            "thresholds": [],  # those of other classes
        }
        detector = type(self).from_config(config)
        state = detector.state_dict()
        for name, value in self.state_dict().items():
            if _CLASS_HEADS not in name:
                state[name] = value
                continue
            for row, label in enumerate(classes):
                if label in self.classes:
                    earlier_row = self.outputs[self.classes.index(label)]
                    state[name][row] = value[earlier_row]
        detector.load_state_dict(state)
        detector.trained_size = self.trained_size
        return detector

    def class_heads(self) -> list[str]:
        """Return the names of the tensors that have a row per class."""
        return [name for name in self.state_dict() if _CLASS_HEADS in name]

    def ranked(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return boxes (n, 4) XYXY in pixels, scores (n,) and labels (n,) of one image by falling score, for a trace.

        A model of masks also gives (n, H / 4, W / 4): the probability that a cell belongs to the
        object.
        """
        raw = self.raw(images)
        scores, queries, labels = best_pairs(raw.logits)
        boxes = boxes_of_queries(raw.shares, queries, images.shape[-2:])
        if raw.masks is None:
            return boxes[0], scores[0], labels[0]
        masks = raw.masks[0].index_select(0, queries[0])
        return boxes[0], scores[0], labels[0], masks.sigmoid()

    def raw(self, images: Tensor) -> RawOutputs:
        """Return the outputs of the network that belong to classes, for normalised images (B, 3, H, W)."""
        outputs = self.model(pixel_values=images)
        return RawOutputs(
            logits=outputs.logits.float()[..., list(self.outputs)],
            shares=outputs.pred_boxes.float(),
            masks=outputs.pred_masks.float() if self.has_masks else None,
        )

    def load_published(self, state: Mapping[str, Tensor], where: str) -> None:
        """Take the weights of a published file, with the names of transformers or of the package rfdetr.

        Args:
            state: of the file.
            where: the file, for messages.

        Raises:
            CheckpointError: naming the tensors that are missing, unknown or of another shape, or
                hold other values than finite floats.
        """
        weights = {}
        for name, value in state.items():
            _check_values(value, f"{where}: {name}")
            weights[name] = value.float()  # in which it computes, whatever the file stores
        problems = []
        try:
            with _without_progress():
                model, info = self._model_class.from_pretrained(
                    None,
                    config=self.model.config,
                    state_dict=weights,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,
                )
        except Exception as error:  # of transformers: many unrelated types
            problems.append(f"is not taken by transformers ({first_line(error)})")
        else:
            if any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")):
                problems = self._problems_of_file(state, info)
        if problems:
            raise CheckpointError(
                f"{where} {', and '.join(problems)}: it is the file of another model",
                step="tensors",
            )
        self.model = _with_float32_logits(model.eval())

    def _problems_of_file(self, state: Mapping[str, Tensor], info: Mapping[str, Any]) -> list[str]:
        """What transformers does not take of a file, with the names of the file.

        Args:
            state: of the file.
            info: what transformers reports of loading it, with the names of its modules.
        """
        missing = set(info["missing_keys"])
        unexpected = set(info["unexpected_keys"])
        mismatched = {name: (shape, expected) for name, shape, expected in info["mismatched_keys"]}
        own = self.model.state_dict()
        published = revert_weight_conversion(self.model, dict(own))
        if len(state.keys() & published.keys()) > len(state.keys() & own.keys()):
            missing = published.keys() - state.keys()
            unexpected = state.keys() - published.keys()
            mismatched = {}
            for name in state.keys() & published.keys():
                if state[name].shape != published[name].shape:
                    mismatched[name] = (state[name].shape, published[name].shape)
        problems = []
        if missing:
            problems.append(f"lacks {some_of(missing, _SHOWN)}")
        if unexpected:
            problems.append(f"holds {some_of(unexpected, _SHOWN)} in addition")
        if mismatched:
            name = min(mismatched)
            shape, expected_shape = mismatched[name]
            problems.append(
                f"holds {name} of shape {tuple(shape)}, where {tuple(expected_shape)} is expected"
            )
        return problems

    def check_config(self, config: Mapping[str, Any], where: str) -> None:
        """Compare the configuration of a published model with this one: its architecture, and its labels.

        Args:
            config: of its ``config.json``.
            where: the file, for messages.

        Raises:
            CheckpointError: naming the first difference.
        """
        model_type = config.get("model_type")
        if model_type != RfDetrConfig.model_type:
            raise CheckpointError(
                f"{where} is of a model of type {model_type!r}; expected "
                f"{RfDetrConfig.model_type!r}",
                step="config",
            )
        try:
            with _without_progress():
                published = RfDetrConfig.from_dict(dict(config))
        except Exception as error:  # of transformers: many unrelated types
            raise CheckpointError(
                f"{where} is no configuration of RF-DETR: {first_line(error)}", step="config"
            ) from error
        expected = self.model.config
        _check_same_settings(published, expected, _ARCHITECTURE, where=where)
        _check_same_settings(
            published.backbone_config,
            expected.backbone_config,
            _BACKBONE_ARCHITECTURE,
            where=where,
        )
        self._check_labels(published.id2label, where)

    def _check_labels(self, labels: Mapping[int, str], where: str) -> None:
        """Raise a CheckpointError if a label of a published model is another one, or their number differs."""
        num_outputs = self.model.config.num_labels
        if len(labels) != num_outputs:
            raise CheckpointError(
                f"{where} has {len(labels)} labels; expected {num_outputs}", step="config"
            )
        if all(label == f"LABEL_{i}" for i, label in labels.items()):
            return  # the file names none
        for output, name in zip(self.outputs, self.classes, strict=True):
            if labels.get(output) != name:
                raise CheckpointError(
                    f"{where} calls output {output} {labels.get(output)!r}; expected {name!r}: its "
                    "classes are others",
                    step="config",
                )


def _with_float32_logits(model: Any) -> Any:
    """Let the class heads of a model of transformers give float32 under autocast; return the model.

    Its loss takes the logarithm of 1 - sigmoid(logit), and in bfloat16 the sigmoid of 7 is 1.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and _CLASS_HEADS in f"{name}.":
            module.register_forward_hook(_as_float32)
    return model


def _as_float32(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """A forward hook that gives the output in float32."""
    return output.float()


def _check_values(value: Tensor, where: str) -> None:
    """Raise a CheckpointError for a weight of a file that is no float, or not finite."""
    if not value.is_floating_point():
        raise CheckpointError(
            f"{where} is {value.dtype}; expected floats: it is the file of another model",
            step="tensors",
        )
    if not value.isfinite().all():
        raise CheckpointError(
            f"{where} holds NaN or infinite values; fetch the file again", step="tensors"
        )


def _check_same_settings(
    published: Any, expected: Any, names: Sequence[str], *, where: str
) -> None:
    """Raise a CheckpointError if a configuration of transformers differs from ours in one of these names."""
    for name in names:
        value = getattr(published, name, None)
        expected_value = getattr(expected, name)
        if value != expected_value:
            raise CheckpointError(
                f"{where} has {name} {value!r}; expected {expected_value!r}: it is of another model",
                step="config",
            )


@contextmanager
def _without_progress() -> Iterator[None]:
    """Keep transformers from drawing bars and from reporting what an error states."""
    logging = transformers.utils.logging
    is_drawing = logging.is_progress_bar_enabled()
    verbosity = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if is_drawing:
            logging.enable_progress_bar()
