"""2D and 3D features of the same points, mixed once: the baseline of injection at every stride."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinoneck.checks import check_minimum
from dinoneck.configured import Configured
from dinoneck.errors import ConfigError, ShapeError
from dinoneck.points.checks import check_dtype


class _GateSums(NamedTuple):
    """Sums over the points of a pass.

    Attributes:
        gate: sum of the gates of the points that a camera saw.
        seen: number of these points.
        total: number of all points.
    """

    gate: Tensor
    seen: Tensor
    total: int


class GatedFusion(Configured, nn.Module):
    """A gate per point between its 3D features and its projected DINO features, at one scale.

    out = (1 - g) x3 + g V h, with h = GELU(W x2) and g = sigmoid(MLP[x3, h]); a point that no
    camera saw keeps x3, bit for bit. Prefer :class:`DecoderInjection` for a U-Net that is trained
    already: this one changes its features from the first step, at one scale only, and its gate may
    close for good before its layers have learned: see ``stats``.

    Args:
        c2d: channels of the DINO features.
        c3d: channels of the 3D features.
        c_out: must be c3d: what no camera saw passes through.
        hidden: width of h and of the gate's hidden layer.
        device: torch factory keyword.
        dtype: torch factory keyword.

    Shape:
        x3 (..., c3d), x2 (..., c2d), valid (...) bool -> (..., c3d).

    Raises:
        ConfigError: if c_out is not c3d or a size is not positive.
        ShapeError: if shapes do not fit.

    Examples:
        >>> fusion = GatedFusion(c2d=384, c3d=96, c_out=96)
        >>> x3, x2 = torch.randn(5, 96), torch.randn(5, 384)
        >>> valid = torch.tensor([True, True, True, False, False])
        >>> out = fusion(x3, x2, valid)
        >>> torch.equal(out[3:], x3[3:]), fusion.stats["coverage"]
        (True, 0.6)

    Reference: the gated fusion of BiFusion networks. Deviation: ``valid`` is not fed to the gate,
    because the gate only counts where it is true.
    """

    def __init__(
        self,
        c2d: int,
        c3d: int,
        c_out: int,
        hidden: int = 256,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_minimum(1, c2d=c2d, c3d=c3d, hidden=hidden)
        if c_out != c3d:
            raise ConfigError(
                f"c_out is {c_out} and c3d {c3d}; they must be equal, because points that no "
                "camera saw pass x3 through. Put a linear layer behind for another width"
            )
        factory = {"device": device, "dtype": dtype}
        self.embed_dim = c2d
        self.c2d = c2d
        self.c3d = c3d
        self.project = nn.Linear(c2d, hidden, **factory)
        self.read = nn.Linear(hidden, c3d, **factory)
        self.gate_hidden = nn.Linear(c3d + hidden, hidden, **factory)
        self.gate_out = nn.Linear(hidden, 1, **factory)
        self._last_sums: _GateSums | None = None

    def reset_parameters(self) -> None:
        """Re-initialise the weights."""
        for layer in self.children():
            layer.reset_parameters()  # type: ignore[operator]

    def forward(self, x3: Tensor, x2: Tensor, valid: Tensor) -> Tensor:
        """Return the mixed features; x2 is finite also where not valid."""
        for name, values, channels in (("x3", x3, self.c3d), ("x2", x2, self.c2d)):
            if values.shape[-1] != channels:
                raise ShapeError(
                    f"{name} has {values.shape[-1]} channels; this fusion was built for {channels}"
                )
        if x2.shape[:-1] != x3.shape[:-1]:
            raise ShapeError(
                f"x2 has rows {tuple(x2.shape[:-1])} and x3 {tuple(x3.shape[:-1])}; expected one row "
                "of x2 for every row of x3"
            )
        if valid.dtype != torch.bool:
            raise ShapeError(f"valid is {valid.dtype}; expected torch.bool")
        if valid.shape != x3.shape[:-1]:
            raise ShapeError(
                f"valid has shape {tuple(valid.shape)}; expected {tuple(x3.shape[:-1])}, one bool "
                "for every row of x3"
            )
        check_dtype("x2", x2, "the fusion", self.project.weight)
        check_dtype("x3", x3, "the fusion", self.project.weight)
        h = F.gelu(self.project(x2))  # (..., hidden)
        both = torch.cat((x3, h.to(x3.dtype)), dim=-1)  # (..., c3d + hidden)
        gate_hidden = F.gelu(self.gate_hidden(both))  # (..., hidden)
        gate = torch.sigmoid(self.gate_out(gate_hidden))  # (..., 1)
        if not torch.compiler.is_compiling():
            seen_gates = gate.detach()[..., 0].float() * valid
            self._last_sums = _GateSums(
                gate=seen_gates.sum(), seen=valid.sum(), total=valid.numel()
            )
        mixed = torch.lerp(x3, self.read(h).to(x3.dtype), gate.to(x3.dtype))
        return torch.where(valid[..., None], mixed, x3)

    @property
    def stats(self) -> dict[str, float]:
        """``coverage``, the share of points seen in the last pass, and ``fusion_2d_ratio``, their mean gate."""
        sums = self._last_sums
        if sums is None:
            return {}
        seen = int(sums.seen)
        return {
            "coverage": seen / max(sums.total, 1),
            "fusion_2d_ratio": float(sums.gate) / max(seen, 1),
        }
