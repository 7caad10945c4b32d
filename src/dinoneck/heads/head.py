"""What every head has in common: tasks, outputs by task name in normalised units, ``predict`` in original units."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Unpack, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinoneck.backbones import weight_hashes
from dinoneck.codec import TAG
from dinoneck.configured import Configured
from dinoneck.errors import DataError, ShapeError
from dinoneck.grid import PatchSize
from dinoneck.heads.outputs import HeadOutputs
from dinoneck.layers.blocks import ConvBlock, MapLinear, reset
from dinoneck.layers.inputs import Origin, Plain, TokensLike, as_tokens, check_tokens
from dinoneck.losses.composition import Composition, outputs_of
from dinoneck.losses.masked import exact
from dinoneck.tasks import (
    MAP,
    Activation,
    Kind,
    Task,
    activate,
    check_tasks,
    describe_tasks,
    without_calibration,
)
from dinoneck.tokens import Tokens

Resample = Callable[[Tensor, Sequence[int]], Tensor]


def resampled(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Return maps (B, K, rows, cols) at another size, bilinearly, in float32 or wider."""
    return F.interpolate(exact(maps), size=tuple(size), mode="bilinear", align_corners=False)


class Head(Configured, nn.Module):
    """A module that turns Tokens, or plain tensors, into one tensor per task.

    Every method that takes Tokens also takes (B, P + N, C) tensors with ``grid=(rows, cols)`` (and
    ``num_prefix_tokens=`` or ``cls_token=``), maps (B, C, rows, cols), or a list of tensors, one
    per layer. ``forward(tokens)`` returns ``{task name: (B, dim)}`` in normalised units,
    ``(B, dim, rows, cols)`` for kinds that predict per cell (dense, segmentation);
    ``predict(tokens)`` the same in original units and ``{composition name: (B, its outputs)}``;
    ``predict_maps(tokens)``, where a head has maps, ``{task name: (B, dim, rows, cols)}`` in
    original units.

    Attributes:
        trained_on: what the head was trained on, from the records of the file it was loaded from,
            or from the tokens that :func:`dinoneck.training.fit` trained it on. A head of a file
            refuses tokens that differ; :func:`dinoneck.save_head` and
            :class:`dinoneck.Predictor` compare their backbone and images with it. None = unknown:
            nothing is compared. It is not part of the configuration or the weights.
    """

    tasks: tuple[Task, ...]
    compositions: tuple[Composition, ...] = ()
    embed_dim: int
    trained_on: Origin | None = None
    # what ``predicted`` returns; None in a class of the user that sets ``tasks`` itself
    _predicted: tuple[Task, ...] | None = None
    # whether it has read tokens of a trainable backbone, with gradients, since it was loaded
    _had_gradients: bool = False
    _takes_layers: int | None = None  # the only number of layers of the tokens; None = any
    reads_last_layer: bool = False  # takes tokens of several layers, and reads the last one alone

    def _set_tasks(
        self, tasks: Task | Sequence[Task], compositions: Sequence[Composition], *kinds: Kind
    ) -> None:
        """Check and keep what the head predicts; without ``kinds`` every kind is taken."""
        owner = type(self).__name__
        checked_tasks = check_tasks(tasks, kinds=kinds or get_args(Kind), owner=owner)
        self._set_outputs(checked_tasks, compositions)
        # tasks with a readout; the others are the mean of another task's map
        self._read_tasks = [task for task in self.tasks if task.from_map is None]

    def _set_outputs(self, tasks: Sequence[Task], compositions: Sequence[Composition]) -> None:
        """Set the tasks and compositions, and with them what :attr:`predicted` returns.

        It is not left to the first use of :attr:`predicted`, which torch.compile may trace.

        Raises:
            ConfigError: if a composition does not fit the tasks.
        """
        self.tasks = tuple(tasks)
        self.compositions = tuple(compositions)
        self._predicted = outputs_of(self.tasks, self.compositions, type(self).__name__)

    def drop_calibration(self) -> list[str]:
        """Remove prediction intervals and thresholds of labels, which hold for the weights as they are.

        Returns:
            The names of the tasks and compositions that had some.
        """
        names = [task.name for task in self.predicted if task.interval or task.thresholds]
        if names:
            tasks = [without_calibration(task) for task in self.tasks]
            compositions = [replace(composition, interval=()) for composition in self.compositions]
            self._set_outputs(tasks, compositions)
            self._config = _config_without_calibration(self._config)
        return names

    def extra_repr(self) -> str:
        """Show the tasks, and what is composed of them."""
        return f"tasks: {describe_tasks(self.predicted)}"

    def check_origin(self, tokens: Tokens) -> None:
        """Reject tokens of another backbone than the one that the head was trained on.

        Raises:
            BackboneError: naming what differs.
        """
        origin = self.trained_on
        if origin is None or not origin.refuses_tokens:
            return
        if _trains_backbone(tokens):
            self._had_gradients = True
        elif self._had_gradients and tokens.source not in (None, origin.source):
            was_trained = weight_hashes.values_digest(self) != origin.head_weights
            if was_trained:
                # together with its backbone, whose weights are no longer those of the file
                origin = replace(origin, source=None)
                self.trained_on = origin
        predicts = not self.training and not torch.is_grad_enabled()
        origin.check(
            tokens,
            type(self).__name__,
            reads=getattr(self, "layer_indices", None),
            predicts=predicts,
        )

    def note_origin(self, origin: Origin) -> None:
        """Set what the head, as it is now, was trained on."""
        self.trained_on = replace(origin, head_weights=weight_hashes.values_digest(self))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Head:
        """Move or convert the weights; where a cast changes trained weights, hash them again."""
        origin: Origin | None = vars(self).get("trained_on")  # an ensemble has those of its members
        casts_trained_weights = (
            origin is not None
            and _casts(fn, self)
            and weight_hashes.values_digest(self) == origin.head_weights
        )
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if origin is not None and casts_trained_weights:
            self.note_origin(origin)
        return self

    def readers(
        self, layers: Sequence[int] | None = None
    ) -> list[tuple[Head, tuple[int, ...] | None]]:
        """Return the heads that read tokens, itself or its members, each with the block indices that it is given.

        Args:
            layers: block indices that this head is given; None = unknown.
        """
        return [(self, None if layers is None else tuple(layers))]

    def reset_parameters(self) -> None:
        """Re-initialise the weights.

        A class that has parameters outside of its submodules overrides this.
        """
        for module in self.children():
            reset(module)

    def calibrate(self, batches: Iterable[Tokens]) -> None:
        """Set the scale of the tokens from training tokens, if it is not set yet."""
        for module in self.children():
            if isinstance(module, TokenScale) and not module.is_measured:
                module.measure(batches)

    @property
    def predicted(self) -> tuple[Task, ...]:
        """What ``predict`` returns: the tasks, then one :class:`dinoneck.losses.Composed` per composition."""
        if self._predicted is not None:
            return self._predicted
        return outputs_of(self.tasks, self.compositions, type(self).__name__)

    def natural(self, tokens: TokensLike, **plain: Unpack[Plain]) -> dict[str, Tensor]:
        """Return predictions in original units, with gradients where they are enabled."""
        return self._predictions_of(self(tokens, **plain))

    @torch.no_grad()
    def predict(self, tokens: TokensLike, **plain: Unpack[Plain]) -> dict[str, Tensor]:
        """Return predictions in original units (probabilities for classes and ratios), and what is composed of them."""
        return self.natural(tokens, **plain)

    @torch.no_grad()
    def predict_maps(self, tokens: TokensLike, **plain: Unpack[Plain]) -> dict[str, Tensor]:
        """Return ``{task name: (B, dim, rows, cols)}`` in original units, of the tasks that have maps.

        Densities are in original units per cell, classes and ratios are probabilities. ``minimum``
        and ``maximum`` are applied to dense cells, but not to densities, whose cells add up to the
        value before it is clamped.
        """
        return self._maps_of(self(tokens, **plain))

    def predict_outputs(self, tokens: Tokens, with_maps: bool = False) -> HeadOutputs:
        """Return predictions in original units, values and maps apart, to be averaged over views or tiles.

        Callers average first and then recompute what follows from other outputs, see
        :mod:`dinoneck.heads.outputs`.

        A head runs once, unless it replaces :meth:`natural` or :meth:`predict_maps` and not this
        method: then it runs once for each of the two, and once more for what it returns when it is
        called.

        Args:
            tokens: of the images.
            with_maps: with the map of every task that has one, and with what the head returns when
                it is called, if it replaces :meth:`at_size`.
        """
        if all(task.is_masks for task in self.tasks):
            return HeadOutputs()
        if not with_maps:
            return HeadOutputs.of_predictions(self.predicted, self.natural(tokens))

        has_own_natural = type(self).natural is not Head.natural
        has_own_maps = type(self).predict_maps is not Head.predict_maps
        replaces_at_size = type(self).at_size is not Head.at_size
        if has_own_natural or has_own_maps:
            separate = HeadOutputs.of_predictions(self.predicted, self.natural(tokens))
            shown_maps = self.predict_maps(tokens)
            raw_outputs = [self(tokens)] if replaces_at_size else []
            if not separate.maps:  # no value is the mean of a map of natural
                return replace(separate, maps=shown_maps, raw_outputs=raw_outputs)
            return replace(
                separate,
                maps=shown_maps | separate.maps,
                shown_maps=shown_maps,
                raw_outputs=raw_outputs,
            )
        outputs = self(tokens)  # one forward gives all
        separate = HeadOutputs.of_predictions(self.predicted, self._predictions_of(outputs))
        raw_outputs = [outputs] if replaces_at_size else []
        return replace(separate, maps=self._maps_of(outputs), raw_outputs=raw_outputs)

    def _predictions_of(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What :meth:`natural` returns for the outputs of ``forward``."""
        self._check_outputs(outputs)
        values = {}
        for task in self.tasks:
            if not task.is_masks:
                values[task.name] = task.predict(outputs[task.name])
        composed = {composition.name: composition.of(values) for composition in self.compositions}
        return values | composed

    def _check_outputs(self, outputs: Any) -> None:
        """Refuse outputs of ``forward`` that lack a task or its axis.

        Raises:
            ShapeError: naming the class, the task and the shape.
        """
        owner = type(self).__name__
        if not isinstance(outputs, Mapping):
            raise ShapeError(
                f"{owner}.forward returns a {type(outputs).__name__}; expected a dict of task names "
                "to tensors, (B, dim) each, or (B, dim, rows, cols) for dense and segmentation"
            )
        for task in self.tasks:
            if task.is_masks:
                continue
            expected = f"(B, {task.dim}, rows, cols)" if task.is_map else f"(B, {task.dim})"
            if task.name not in outputs:
                raise ShapeError(
                    f"{owner}.forward returns no {task.name!r}, which is one of its tasks; it "
                    f"returns {', '.join(map(repr, outputs)) or 'nothing'}. Return it too, {expected}"
                )
            shape = tuple(outputs[task.name].shape)
            if len(shape) < 2:
                raise ShapeError(
                    f"{owner}.forward returns {task.name!r} of shape {shape}; expected {expected}"
                )

    def _maps_of(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What :meth:`predict_maps` returns for the outputs of ``forward``."""
        maps = {}
        for task in self.tasks:
            output_name = task.name if task.is_map else f"{task.name}{MAP}"
            if output_name in outputs and not task.is_masks:
                maps[task.name] = task.predict_map(outputs[output_name])
        return maps

    def at_size(
        self, outputs: Mapping[str, Tensor], size: Sequence[int], resample: Resample = resampled
    ) -> dict[str, Tensor]:
        """Return the outputs, with maps resampled to another size; classes are resampled as logits.

        Surface normals have the length 1.

        Args:
            outputs: in normalised units, as ``forward`` returns them.
            size: (height, width) of the maps.
            resample: takes maps (B, K, rows, cols) and the size, and returns maps of that size, or
                a crop of them; by default bilinear interpolation (``align_corners=False``).
        """
        resized = dict(outputs)
        for task in self.tasks:
            if task.is_map:
                resized[task.name] = task.of_unit_length(resample(outputs[task.name], size))
        return resized

    @property
    def _patch_size(self) -> PatchSize:
        """Pixels per patch of plain tensors: the neck's, without a neck the file's, else 16."""
        source = getattr(self, "neck", self.trained_on)
        return getattr(source, "patch_size", None) or 16

    def _tokens(self, tokens: TokensLike, **plain: Unpack[Plain]) -> Tokens:
        """Tokens, of plain tensors too, checked against what this head was built for and trained on."""
        tokens = as_tokens(tokens, **plain, patch_size=self._patch_size, owner=self)
        check_tokens(tokens, self, self.embed_dim, num_layers=self._takes_layers)
        self.check_origin(tokens)
        return tokens


def _config_without_calibration(config: Any) -> Any:
    """The JSON of a configuration, in which tasks and compositions have no intervals and thresholds."""
    if isinstance(config, list):
        return [_config_without_calibration(value) for value in config]
    if not isinstance(config, Mapping):
        return config
    is_output = config.get(TAG) in (Task.__name__, Composition.__name__)
    changed = {}
    for key, value in config.items():
        if not (is_output and key in ("interval", "thresholds")):
            changed[key] = _config_without_calibration(value)
    return changed


def _casts(change: Callable[[Tensor], Tensor], module: nn.Module) -> bool:
    """Whether a change, as ``nn.Module._apply`` takes it, gives a module's first parameter another dtype."""
    parameter = next(module.parameters(), None)
    if parameter is None:
        return False
    sample = torch.zeros(1, dtype=parameter.dtype, device=parameter.device)
    changed = change(sample)
    if sample.is_meta or changed.is_meta:
        return False
    return changed.dtype != sample.dtype


def _trains_backbone(tokens: Tokens) -> bool:
    """Whether gradients of these tokens reach a backbone; False in a compiled graph, which is not checked."""
    # a backbone states its layers always, and no source while any of its parameters is trainable
    if torch.compiler.is_compiling() or tokens.source is not None or tokens.layers is None:
        return False
    return tokens.sequence[0].requires_grad


@torch.no_grad()
def init_bias(bias: Tensor, activation: Activation | None) -> None:
    """Set the bias of a task's layer to where its activation starts from; without a need it stays as it is.

    Before a ReLU it is 1, so that the ReLU is not dead for every sample. Surface normals start as
    those of a wall that faces the camera, so that no vector is so short that it has no direction.
    """
    if activation == "relu":
        nn.init.ones_(bias)
    elif activation == "unit":
        nn.init.zeros_(bias)
        bias[-1] = 1.0


class _Readout(nn.Module):
    """Layers that end in a linear one and a task's activation."""

    out: nn.Linear
    activation: Activation | None

    def reset_parameters(self) -> None:
        """Re-initialise the weights."""
        for module in self.children():
            reset(module)
        self._init_bias()

    def _init_bias(self) -> None:
        """Set the bias to what the activation starts from, see :func:`init_bias`."""
        init_bias(self.out.bias, self.activation)


class Light(_Readout):
    """Linear, or Linear -> GELU -> Linear, then the task's activation: (B, in_dim) -> (B, dim)."""

    def __init__(
        self, in_dim: int, task: Task, hidden_dim: int | None = None, **factory: Any
    ) -> None:
        super().__init__()
        self.activation = task.activation
        self.hidden = None if hidden_dim is None else nn.Linear(in_dim, hidden_dim, **factory)
        self.out = nn.Linear(hidden_dim or in_dim, task.dim, **factory)
        self._init_bias()

    def forward(self, pooled: Tensor) -> Tensor:
        """Return predictions in normalised units."""
        hidden = pooled if self.hidden is None else F.gelu(self.hidden(pooled))
        return activate(self.out(hidden), self.activation)


class Tower(_Readout):
    """``depth`` times 3x3 -> norm -> activation, then a linear layer and the task's activation, on maps.

    Shape:
        (B, channels, rows, cols) -> (B, dim, rows, cols).
    """

    def __init__(self, channels: int, task: Task, depth: int = 2, **factory: Any) -> None:
        super().__init__()
        self.activation = task.activation
        self.blocks = nn.ModuleList(
            ConvBlock(channels, channels, 1, "layer", "gelu", **factory) for _ in range(depth)
        )
        self.out = MapLinear(channels, task.dim, **factory)
        self._init_bias()

    def forward(self, maps: Tensor) -> Tensor:
        """Return the prediction of every cell in normalised units."""
        for block in self.blocks:
            maps = block(maps)
        return activate(self.out(maps), self.activation)


STD_FLOOR = 1e-4  # a channel that varies less is divided by it


class TokenScale(nn.Module):
    """Standardise every channel of tokens, ``(x - mean) / std``, as a batch norm in eval mode does.

    Tokens pass unchanged until :meth:`measure` sets the buffers, ``mean`` (C,) and ``std`` (C,).

    Args:
        embed_dim: channels C.
        device: torch factory keyword.
        dtype: torch factory keyword.

    Shape:
        Tokens of any layers -> Tokens of the last one.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, embed_dim: int, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(embed_dim, device=device, dtype=dtype))
        self.register_buffer("std", torch.ones(embed_dim, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Let tokens pass unchanged again."""
        nn.init.zeros_(self.mean)
        nn.init.ones_(self.std)

    @property
    def is_measured(self) -> bool:
        """Whether the buffers were set; the host waits for the device once."""
        return bool(self.mean.any() | (self.std != 1).any())

    def forward(self, tokens: Tokens) -> Tokens:
        """Return the standardised tokens of the last layer, CLS and registers too."""
        last = tokens.last
        if self._passes_tokens():
            return last
        centred = last.sequence[0] - self.mean  # (B, P + N, C)
        return replace(last, sequence=(centred.div_(self.std),))  # in place: tokens are large

    def _passes_tokens(self) -> bool:
        """Whether the buffers are not set, as far as the host can tell without waiting for a device."""
        if torch.compiler.is_compiling() or self.mean.device.type != "cpu":
            return False
        try:
            return not self.is_measured
        except RuntimeError:  # torch.func.vmap over heads, of which each has other buffers
            return False

    @torch.no_grad()
    def measure(self, batches: Iterable[Tokens]) -> None:
        """Set the buffers to the mean and the standard deviation of the patch tokens.

        Sums are kept in float64, on the device of the tokens.

        Raises:
            DataError: if they are not finite.
        """
        count = 0
        total: Tensor | float = 0.0
        total_square: Tensor | float = 0.0
        for tokens in batches:
            # one image at a time: float64 tokens of a batch would not fit in the cache
            for patches in tokens.last.patches[0]:
                x = patches.double()  # (N, C)
                count += len(x)
                total = total + x.sum(dim=0)
                total_square = total_square + x.square().sum(dim=0)
        mean = torch.as_tensor(total) / count
        variance = (total_square / count - mean.square()).clamp_min(0.0)
        std = variance.sqrt().clamp_min(STD_FLOOR)
        if not bool(mean.isfinite().all() & std.isfinite().all()):
            raise DataError("the tokens of the training images are not finite; extract them again")
        self.mean.copy_(mean)
        self.std.copy_(std)
