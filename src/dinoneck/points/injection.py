"""DINO features into the decoder of a 3D U-Net: a projection per stride, added where a camera saw the voxel."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from dinoneck.checks import check_minimum
from dinoneck.configured import Configured
from dinoneck.errors import ConfigError, ShapeError
from dinoneck.points.attachment import Attached, Pyramid, Slot, SparseAdapter, hook_blocks
from dinoneck.points.checks import check_dtype
from dinoneck.points.voxels import SparseFeatures, check_stride

Gate = Literal["scalar", "channel", "token"]


@dataclasses.dataclass(frozen=True)
class LevelStats:
    """What one level of an injection did in its last pass.

    Attributes:
        voxels: M, voxels of the decoder.
        channels: C, channels that were added to.
        hit_rate: share of the voxels that got something: they are in the pyramid and a camera saw
            them.
        ratio: norm of what was added over norm of what it was added to.
    """

    voxels: int
    channels: int
    hit_rate: float
    ratio: float


class _PassNorms(NamedTuple):
    """What :class:`LevelStats` are computed from, on the device until they are read.

    Attributes:
        voxels: voxels of the decoder.
        hits: those that got something.
        added: norm of what was added.
        before: norm of what it was added to.
    """

    voxels: int
    hits: Tensor
    added: Tensor
    before: Tensor


class LevelInjection(nn.Module):
    """One level of a :class:`DecoderInjection`: norm, projection and gate."""

    def __init__(
        self,
        c_dino: int,
        channels: int,
        norm: Literal["layer"] | None,
        zero_init: bool,
        gate: Gate | None,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.c_dino = c_dino
        self.channels = channels
        self.zero_init = zero_init
        self.gate = gate
        self.norm = nn.LayerNorm(c_dino, **factory) if norm else None
        # a bias would reach voxels by their batch norm
        self.proj = nn.Linear(c_dino, channels, bias=False, **factory)
        if gate == "token":
            self.token_gate = nn.Linear(c_dino, 1, **factory)
            self.voxel_gate = nn.Linear(channels, 1, bias=False, **factory)
        elif gate is not None:
            self.gains = nn.Parameter(torch.ones(1 if gate == "scalar" else channels, **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights; the projection is zero with ``zero_init``."""
        for layer in self.children():
            layer.reset_parameters()  # type: ignore[operator]
        if self.gate in ("scalar", "channel"):
            nn.init.ones_(self.gains)
        if self.zero_init:
            nn.init.zeros_(self.proj.weight)

    def project(self, features: Tensor) -> Tensor:
        """Return (..., C), and the token's part of its gate as one more column where there is one."""
        normed = features if self.norm is None else self.norm(features)
        projected: Tensor = self.proj(normed)
        if self.gate == "token":
            return torch.cat((projected, self.token_gate(normed)), dim=-1)
        return projected

    def gated(self, x: Tensor, projected: Tensor) -> Tensor:
        """Return what is to be added to x (..., C), before the mask."""
        if self.gate == "token":
            # a hook's x is a part of wider rows: same kernel, same bits
            of_voxel = self.voxel_gate(x.contiguous())
            of_token = projected[..., self.channels :]
            gate = torch.sigmoid(of_token + of_voxel)
            return projected[..., : self.channels] * gate
        if self.gate is None:
            return projected
        return projected * self.gains


class DecoderInjection(Configured, nn.Module):
    """Adds DINO features to a 3D U-Net's decoder at several strides: x + valid * gate * W norm(f).

    With ``zero_init`` a pre-trained network gives the numbers it gave before, bit for bit, until
    the first step; a voxel that no camera saw keeps its features, bit for bit, for ever. The
    network's code is not touched: :meth:`wrap` is the form to train, :meth:`attach` the one for
    inference. In a decoder of your own call the module (or :meth:`inject`) before the
    concatenation.

    Prefer :class:`GatedFusion` where features enter once, next to the points' own, and not at every
    stride.

    Args:
        c_dino: channels of the pyramid's features.
        levels: stride -> channels C of the branch that is added to (Res16UNet34C, ``target="up"``:
            {8: 256, 4: 128, 2: 96, 1: 96}; ``"skip"``: {8: 128, 4: 64, 2: 32, 1: 32}).
        norm: ``"layer"`` (LayerNorm of the features, per level) or None.
        zero_init: start with W = 0.
        gate: None; ``"scalar"`` and ``"channel"``: learned factors of a level or of its channels, 1
            at the start; ``"token"``: a number in (0, 1) per voxel, read off the feature and off x.
        target: which part of the concatenation a hook adds to: ``"up"`` the first C channels,
            ``"skip"`` the last C.
        device: torch factory keyword.
        dtype: torch factory keyword.

    Shape:
        x (..., C), features (..., c_dino), valid (...) bool -> (..., C).

    Raises:
        ConfigError: if there are no levels, or a size is not positive.
        ShapeError: if channels or shapes do not fit.

    Examples:
        >>> injection = DecoderInjection(384, levels={2: 96, 1: 96})
        >>> x, features, valid = torch.randn(7, 96), torch.randn(7, 384), torch.arange(7) < 5
        >>> torch.equal(injection(x, features, valid, stride=2), x)
        True

    Reference: DITR (arXiv 2503.18944) adds to the skip connection; ``target="up"`` adds to the
    upsampled branch. Deviations: masked, no bias, zero-initialised, gates.
    """

    def __init__(
        self,
        c_dino: int,
        levels: dict[int, int],
        norm: Literal["layer"] | None = "layer",
        zero_init: bool = True,
        gate: Gate | None = None,
        target: Literal["up", "skip"] = "up",
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_minimum(1, c_dino=c_dino)
        if not levels:
            raise ConfigError(
                "levels is empty; expected {stride: channels}, such as {8: 256, 4: 128, 2: 96, 1: "
                "96}"
            )
        for stride, channels in levels.items():
            check_stride("a stride in levels", stride)
            check_minimum(1, **{f"levels[{stride}]": channels})
        self.embed_dim = c_dino
        self.c_dino = c_dino
        self.channels = dict(levels)
        self.target = target
        self.levels = nn.ModuleDict()
        for stride, channels in levels.items():
            self.levels[str(stride)] = LevelInjection(
                c_dino, channels, norm, zero_init, gate, device=device, dtype=dtype
            )
        self._slot = Slot()
        self._last: dict[int, _PassNorms] = {}

    def reset_parameters(self) -> None:
        """Re-initialise the weights."""
        for level in self.levels.values():
            level.reset_parameters()  # type: ignore[operator]

    @property
    def strides(self) -> tuple[int, ...]:
        """The strides of the levels, in the order given."""
        return tuple(self.channels)

    @property
    def stats(self) -> dict[int, LevelStats]:
        """What every level did in its last pass, by stride; reading it waits for the device."""
        stats = {}
        for stride, norms in self._last.items():
            before = float(norms.before)
            stats[stride] = LevelStats(
                voxels=norms.voxels,
                channels=self.channels[stride],
                hit_rate=float(norms.hits) / max(norms.voxels, 1),
                ratio=float(norms.added) / before if before else 0.0,
            )
        return stats

    def forward(
        self, x: Tensor, features: Tensor, valid: Tensor, stride: int | None = None
    ) -> Tensor:
        """Return x with the features added where ``valid``.

        Args:
            x: (..., C) features of the decoder.
            features: (..., c_dino), one row per row of x; finite also where not valid.
            valid: (...) bool.
            stride: which level; may be left out where there is one.
        """
        if stride is None:
            if len(self.channels) > 1:
                raise ConfigError(f"there are levels at strides {self.strides}; pass stride=")
            (stride,) = self.strides
        level = self._level(stride, x, features)
        if valid.dtype != torch.bool or not x.shape[:-1] == features.shape[:-1] == valid.shape:
            raise ShapeError(
                f"x is {tuple(x.shape)}, features {tuple(features.shape)}, valid "
                f"{tuple(valid.shape)} {valid.dtype}; expected one row of features and one bool "
                "for every row of x"
            )
        return self._added(x, level.project(features), valid, level, stride)

    def inject(self, x: Tensor, features: SparseFeatures, coords: Tensor, batch: Tensor) -> Tensor:
        """Return x (M, C) with the features that are at its voxels added: what the hooks do.

        Args:
            x: (M, C), before the concatenation.
            features: the pyramid's level; its ``stride`` selects one of the levels here.
            coords: (M, 3) int64, base voxel units.
            batch: (M,) int64.
        """
        level = self._level(features.stride, x, features.feats)
        if x.shape[:-1] != coords.shape[:1]:
            raise ShapeError(
                f"x is {tuple(x.shape)} and coords {tuple(coords.shape)}; expected (M, C) and (M, "
                "3), a row per voxel"
            )
        # projected first: rows of C channels are looked up, not of c_dino, and the projection is
        # never kept twice
        projected = dataclasses.replace(features, feats=level.project(features.feats))
        at_voxels, is_hit = projected.at(coords, batch)
        return self._added(x, at_voxels, is_hit, level, features.stride)

    def attach(
        self, model: nn.Module, names: Mapping[int, str], *, adapter: SparseAdapter | None = None
    ) -> Attached:
        """Hook an unmodified network for inference; run it inside :meth:`using`.

        Args:
            model: the U-Net.
            names: stride -> name of the module behind the concatenation (``model.get_submodule``),
                whose first argument is the concatenated tensor.
            adapter: of an engine that is not known here.

        Returns:
            A handle; ``.remove()`` gives the network back as it was.

        Raises:
            ConfigError: if a module does not exist, or strides and levels differ.
        """
        return hook_blocks(self, self._slot, model, names, adapter)

    @contextmanager
    def using(self, pyramid: Pyramid | None) -> Iterator[None]:
        """Give attached networks a pyramid while the context is open; None = the 3D network alone, without images.

        It holds for the thread that opens it.

        Raises:
            ConfigError: if the pyramid lacks a stride.
        """
        self.check_pyramid(pyramid)
        with self._slot.running(pyramid, keep_for_backward=False):
            yield

    def wrap(
        self, unet: nn.Module, names: Mapping[int, str], *, adapter: SparseAdapter | None = None
    ) -> InjectedUNet:
        """Return network and injection as one module, called ``(x, pyramid=...)``: the form to train.

        Its ``parameters()`` and ``state_dict()`` hold both, so optimizers, DDP and EMA see all of
        it, and it keeps the pyramid of a pass for activation checkpointing.

        Args:
            unet: the U-Net; it is hooked, not copied.
            names: as in :meth:`attach`.
            adapter: as in :meth:`attach`.
        """
        return InjectedUNet(unet, self, names, adapter)

    def check_pyramid(self, pyramid: Pyramid | None) -> None:
        """Reject a pyramid that lacks a stride."""
        if pyramid is None:
            return
        for stride in self.strides:
            if stride not in pyramid:
                raise ConfigError(
                    f"the pyramid has no stride {stride}, which is injected; it has "
                    f"{', '.join(map(str, pyramid))}. Build it with "
                    f"SparsePyramid(strides={tuple(sorted(self.strides))})"
                )
            if pyramid[stride].stride != stride:
                raise ConfigError(
                    f"the pyramid's entry {stride} holds features of stride "
                    f"{pyramid[stride].stride}"
                )

    def _added(
        self, x: Tensor, projected: Tensor, valid: Tensor, level: LevelInjection, stride: int
    ) -> Tensor:
        added = level.gated(x, projected).to(x.dtype)
        if not torch.compiler.is_compiling():
            wide = torch.promote_types(x.dtype, torch.float32)
            added_rows = torch.linalg.vector_norm(added.detach(), dim=-1, dtype=wide)
            x_rows = torch.linalg.vector_norm(x.detach(), dim=-1, dtype=wide)
            self._last[stride] = _PassNorms(
                voxels=valid.numel(),
                hits=valid.sum(),
                added=torch.linalg.vector_norm(added_rows * valid),
                before=torch.linalg.vector_norm(x_rows),
            )
        return torch.where(valid[..., None], x + added, x)

    def _level(self, stride: int, x: Tensor, features: Tensor) -> LevelInjection:
        """The level of a stride, which fits the channels of x and of the features."""
        if stride not in self.channels:
            raise ConfigError(f"stride {stride} is not injected; levels has {self.strides}")
        if x.shape[-1] != self.channels[stride]:
            raise ShapeError(
                f"x has {x.shape[-1]} channels; this level adds {self.channels[stride]}"
            )
        if features.shape[-1] != self.c_dino:
            raise ShapeError(
                f"the features have {features.shape[-1]} channels; c_dino is {self.c_dino}"
            )
        weight = next(self.levels[str(stride)].parameters())
        check_dtype("the features", features, "the injection", weight)
        return cast(LevelInjection, self.levels[str(stride)])


class InjectedUNet(nn.Module):
    """A network and its injection as one module; made by :meth:`DecoderInjection.wrap`.

    Under activation checkpointing call backward before the next forward: only the pyramid of the
    last pass is kept, and another order is refused. Take ``use_reentrant=False``: with True torch
    loses the gradients of tensors inside sparse objects.

    Weights: ``state_dict()`` has ``unet.*`` and ``injection.*``; a head file holds
    ``wrapped.injection``.

    Args:
        unet: the network; hooked, not copied.
        injection: what is added.
        names: stride -> name of the block behind the concatenation.
        adapter: of an engine that is not known here.
    """

    def __init__(
        self,
        unet: nn.Module,
        injection: DecoderInjection,
        names: Mapping[int, str],
        adapter: SparseAdapter | None = None,
    ) -> None:
        super().__init__()
        self._slot = Slot()
        self._attached = hook_blocks(injection, self._slot, unet, names, adapter)
        self.unet = unet
        self.injection = injection

    def forward(self, x: Any, *args: Any, pyramid: Pyramid | None, **kwargs: Any) -> Any:
        """Return the network's output for x with the pyramid's features.

        Args:
            x: what the network takes.
            *args: passed on.
            pyramid: stride -> features; None = the 3D network alone. Its parameters then get no
                gradient: for samples without images under DDP give features that are nowhere valid
                instead.
            **kwargs: passed on.
        """
        self.injection.check_pyramid(pyramid)
        with self._slot.running(pyramid, keep_for_backward=torch.is_grad_enabled()):
            return self.unet(x, *args, **kwargs)

    def remove(self) -> None:
        """Take the hooks off: ``unet`` is what it was before."""
        self._attached.remove()
