"""A small MLP asked of every patch, and the mean of its answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinoneck.configured import Configured, at_least
from dinoneck.errors import ConfigError, ShapeError
from dinoneck.grid import as_maps
from dinoneck.heads.head import Head
from dinoneck.layers.absorb import absorb
from dinoneck.layers.inputs import Plain, TokensLike
from dinoneck.losses.composition import Composition, outputs_of
from dinoneck.tasks import Activation, Task, activate, check_tasks

LEAKY_SLOPE = 0.01
CPU_GROUP_WIDTH = 656  # five MLPs of 128 hidden units and a few for a linear map
LinearMap = tuple[Tensor, Tensor, Tensor]


class PatchMeanMLP(Configured, nn.Module):
    """Linear -> LeakyReLU -> Linear -> activation on every patch, then the mean over patches.

    Because the activation stands before the mean, every patch contributes an answer of its own, and
    :meth:`per_patch` shows where the prediction comes from. Patches do not see each other.

    Args:
        embed_dim: channels C of the tokens.
        hidden_dim: hidden units per patch.
        out_dim: outputs per patch.
        activation: ``relu``, ``softplus``, ``sigmoid`` or None.
        device: torch factory keyword.
        dtype: torch factory keyword.

    Shape:
        (B, N, C) -> (B, out_dim); ``per_patch``: (B, N, C) -> (B, N, out_dim).

    Raises:
        ConfigError: if a size is not positive or the activation is unknown.
        ShapeError: if the input is not (B, N, embed_dim).

    Examples:
        >>> mlp = PatchMeanMLP(embed_dim=1536)
        >>> mlp(torch.randn(6, 256, 1536)).shape
        torch.Size([6, 1])

    Reference: design source "DINOv2 dense features" (1536 -> 128 -> LeakyReLU -> 1 -> ReLU -> mean). Deviation:
    a ReLU head starts with second-layer weights of one sign, so that no patch and no head is dead at the start.
    """

    def __init__(
        self,
        embed_dim: int,
        hidden_dim: int = 128,
        out_dim: int = 1,
        activation: Activation | None = "relu",
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        at_least(1, embed_dim=embed_dim, hidden_dim=hidden_dim, out_dim=out_dim)
        self.embed_dim, self.hidden_dim, self.out_dim, self.activation = (
            embed_dim,
            hidden_dim,
            out_dim,
            activation,
        )
        self.hidden = nn.Linear(embed_dim, hidden_dim, device=device, dtype=dtype)
        self.out = nn.Linear(hidden_dim, out_dim, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Re-initialise the weights."""
        self.hidden.reset_parameters()
        self.out.reset_parameters()
        if self.activation == "relu":
            with torch.no_grad():
                self.out.weight.abs_()
                self.out.bias.abs_()

    def absorb_scale(self, mean: Tensor, std: Tensor) -> None:
        """Change the weights so that the new MLP says of x what the old one said of (x - mean) / std, both (C,)."""
        absorb(self.hidden, mean, std)

    def blend_linear(self, weight: Tensor, bias: Tensor, share: Tensor, units: int) -> None:
        """Blend a linear map into the outputs, exactly: LeakyReLU(u) - LeakyReLU(-u) = (1 + slope) u.

        Afterwards ``new(x) == (1 - share) * old(x) + share * (x @ weight.T + bias)``, before the activation.

        Args:
            weight: (out_dim, embed_dim), float64 on the CPU as the others.
            bias: (out_dim,).
            share: (out_dim,) of the linear map, 0 ... 1.
            units: hidden units to add, at least 2 * out_dim; those that are not needed are zero.
        """
        spare = units - 2 * self.out_dim
        old = [
            x.detach().cpu().double() for x in (self.hidden.weight, self.hidden.bias, self.out.weight, self.out.bias)
        ]
        gain = torch.diag(share / (1.0 + LEAKY_SLOPE))
        self._replace_weights(
            torch.cat([old[0], F.pad(torch.cat([weight, -weight]), (0, 0, 0, spare))]),  # u and -u
            torch.cat([old[1], F.pad(torch.cat([bias, -bias]), (0, spare))]),
            torch.cat([old[2] * (1.0 - share)[:, None], F.pad(torch.cat([gain, -gain], dim=1), (0, spare))], dim=1),
            old[3] * (1.0 - share),
        )

    def _replace_weights(self, *weights: Tensor) -> None:
        """Take these weights, (hidden, C), (hidden,), (out, hidden) and (out,), and record their width."""
        places = [(layer, name) for layer in (self.hidden, self.out) for name in ("weight", "bias")]
        for (layer, name), value in zip(places, weights, strict=True):
            old = getattr(layer, name)
            setattr(layer, name, nn.Parameter(value.to(old).contiguous(), requires_grad=old.requires_grad))
        self.hidden_dim = self.hidden.out_features = self.out.in_features = len(weights[1])
        self._config["hidden_dim"] = self.hidden_dim

    def per_patch(self, x: Tensor) -> Tensor:
        """Return the prediction of every patch: (B, N, C) -> (B, N, out_dim)."""
        if x.ndim != 3 or x.shape[-1] != self.embed_dim:
            raise ShapeError(f"patches have shape {tuple(x.shape)}; expected (batch, N, {self.embed_dim})")
        return activate(self.out(F.leaky_relu(self.hidden(x), LEAKY_SLOPE)), self.activation)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean of :meth:`per_patch`, (B, out_dim)."""
        return self.per_patch(x).mean(dim=1)


class PatchMeanHead(Head):
    """One :class:`PatchMeanMLP` per task on the patch tokens of the last layer listed.

    Prefer it as the first head on few photos: it cannot overfit to places, and its maps show where a
    prediction comes from. Where the arrangement of patches matters, take a head with a neck.

    Args:
        embed_dim: channels of the tokens.
        tasks: regression, ratio or classification tasks. A task's activation acts on every patch.
        hidden_dim: hidden units of each MLP.
        compositions: outputs composed of a total and a ratio among the tasks, see :class:`dinoneck.Composition`.
        device: torch factory keyword.
        dtype: torch factory keyword.

    Shape:
        Tokens -> ``{task name: (B, dim)}``; maps (B, dim, rows, cols).

    Raises:
        ConfigError: if tasks repeat a name or are of another kind.
        ShapeError: if the tokens have another width.

    Examples:
        >>> head = PatchMeanHead(64, [Task("Dry_Total_g", unit="g", activation="relu")])
        >>> x = torch.randn(2, 6, 64)
        >>> head(x, grid=(2, 3))["Dry_Total_g"].shape, head.predict_maps(x, grid=(2, 3))["Dry_Total_g"].shape
        (torch.Size([2, 1]), torch.Size([2, 1, 2, 3]))
    """

    _blend: tuple[list[list[Tensor]], list[list[Tensor]]] | None = None  # weights before and after the last blend

    def __init__(
        self,
        embed_dim: int,
        tasks: Sequence[Task],
        hidden_dim: int = 128,
        compositions: Sequence[Composition] = (),
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.tasks = check_tasks(tasks, kinds=("regression", "ratio", "classification"), owner="PatchMeanHead")
        self.compositions = tuple(compositions)
        outputs_of(self.tasks, self.compositions, "PatchMeanHead")  # refuses those that do not fit
        self.mlps = nn.ModuleList(
            PatchMeanMLP(embed_dim, hidden_dim, task.dim, task.activation, device=device, dtype=dtype)
            for task in self.tasks
        )

    def reset_parameters(self) -> None:
        """Re-initialise the weights."""
        for mlp in self.mlps:
            mlp.reset_parameters()  # type: ignore[operator]

    def absorb_scale(self, mean: Tensor, std: Tensor) -> None:
        """Change the weights so that the new head says of tokens x what the old one said of (x - mean) / std."""
        for mlp in self.mlps:
            mlp.absorb_scale(mean, std)  # type: ignore[operator]

    def blend_linear(self, maps: Mapping[str, LinearMap]) -> None:
        """Blend linear maps of the patches into the outputs of some tasks; the head's ``hidden_dim`` grows.

        Every MLP gets two more hidden units per output (of the task with most outputs): a head has one
        ``hidden_dim``. Tasks that are not named keep their outputs. All parameters are replaced by new ones: make
        an optimizer or a moving average of the weights again. Use :meth:`unblend_linear` to undo it.

        Args:
            maps: task name -> weight (dim, C), bias (dim,) and share (dim,), see :meth:`PatchMeanMLP.blend_linear`.

        Raises:
            ConfigError: if a task is unknown.
        """
        if unknown := set(maps) - {task.name for task in self.tasks}:
            known = ", ".join(task.name for task in self.tasks)
            raise ConfigError(f"linear maps are given for {', '.join(sorted(unknown))}; the head's tasks are {known}")
        units, before = 2 * max(task.dim for task in self.tasks), self._copied_weights()
        for task, mlp in zip(self.tasks, self.mlps, strict=True):
            zero = torch.zeros(task.dim, dtype=torch.float64)
            weight, bias, share = maps.get(task.name, (torch.zeros(task.dim, self.embed_dim).double(), zero, zero))
            mlp.blend_linear(weight, bias, share, units)  # type: ignore[operator]
        self._config["hidden_dim"] += units
        self._blend = (before, self._copied_weights())

    def unblend_linear(self) -> None:
        """Restore the weights from before the last :meth:`blend_linear` of this object.

        Nothing happens to weights that differ from those that it left, for example after more training or
        ``load_state_dict``, and to a head read from a file.
        """
        blend, self._blend = self._blend, None
        if blend is None or not _are_equal(blend[1], self._copied_weights()):
            return
        for mlp, weights in zip(self.mlps, blend[0], strict=True):
            mlp._replace_weights(*weights)  # type: ignore[operator]
        self._config["hidden_dim"] = self.mlps[0].hidden_dim

    def _copied_weights(self) -> list[list[Tensor]]:
        return [[weight.detach().cpu().clone() for weight in mlp.parameters()] for mlp in self.mlps]

    def per_patch(self, tokens: TokensLike, **plain: Unpack[Plain]) -> dict[str, Tensor]:
        """Return the prediction of each patch, ``{task name: (B, N, dim)}``, in model space."""
        tokens = self._tokens(tokens, **plain)
        sequence, prefix = tokens.sequence[-1], tokens.num_prefix_tokens  # (B, P + N, C)
        # CLS and registers are sliced off the outputs: slicing them off the tokens would copy these
        each = [cast("PatchMeanMLP", mlp).per_patch(sequence)[:, prefix:] for mlp in self.mlps]  # (B, N, dim)
        return {task.name: output for task, output in zip(self.tasks, each, strict=True)}

    def forward(
        self,
        tokens: TokensLike,
        *,
        grid: Sequence[int] | None = None,
        num_prefix_tokens: int = 0,
        cls_token: Tensor | Sequence[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Return ``{task name: (B, dim)}`` in model space."""
        per_patch = self.per_patch(tokens, grid=grid, num_prefix_tokens=num_prefix_tokens, cls_token=cls_token)
        return {name: output.mean(dim=1) for name, output in per_patch.items()}  # (B, N, dim) -> (B, dim)

    @torch.no_grad()
    def predict_maps(self, tokens: TokensLike, **plain: Unpack[Plain]) -> dict[str, Tensor]:
        """Return the prediction of each patch, ``{task name: (B, dim, rows, cols)}``, in original units.

        ``minimum`` is not applied to maps: with an affine transform a map's mean is the prediction before it.
        """
        tokens = self._tokens(tokens, **plain)
        answers = self.per_patch(tokens)
        return {task.name: as_maps(task.natural(answers[task.name]), tokens.grid) for task in self.tasks}


def _are_equal(first: Sequence[Sequence[Tensor]], second: Sequence[Sequence[Tensor]]) -> bool:
    one, other = ([weight for weights in each for weight in weights] for each in (first, second))
    return len(one) == len(other) and all(
        x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(one, other, strict=True)
    )
