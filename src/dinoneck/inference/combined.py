"""Several heads over one backbone pass: their predictions, averaged per task in original units."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from numbers import Real
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from dinoneck.checkpoint.pairing import need
from dinoneck.data.preprocessing import Preprocessing
from dinoneck.errors import CheckpointError, ConfigError, ShapeError
from dinoneck.grid import GridSize
from dinoneck.heads.ensemble import HeadEnsemble, gates_of, median_of, scores_places, shared_tasks, with_composed
from dinoneck.heads.head import Head, recompute_derived
from dinoneck.heads.patch_mean import PatchMeanHead
from dinoneck.inference.sources import LoadedHead
from dinoneck.losses.composition import Composed, Composition
from dinoneck.tokens import Tokens

Reduce = Literal["mean", "median"]


class _Member(NamedTuple):
    """One head that was given, the layers it reads and its weight."""

    layers: tuple[int, ...]
    head: Head
    weight: float


class _Group(NamedTuple):
    """A head, or plain heads of the same layers as one, and the weight that stands behind each task."""

    layers: tuple[int, ...]
    head: Head
    task_weights: dict[str, float]


class CombinedHeads:
    """Heads over one pass of the backbone.

    Plain heads of the same layers, such as the folds of an experiment, run as one HeadEnsemble.

    Args:
        loaded: the heads; an ensemble counts as the one head it is.
        default_layers: of heads that do not record theirs.
        weights: one per head; None = equal. For ``mean`` only.
        reduce: ``"mean"`` or ``"median"`` over the heads that know a task.

    Raises:
        ConfigError: if heads disagree about a task, or weights do not fit.
    """

    def __init__(
        self,
        loaded: Sequence[LoadedHead],
        default_layers: tuple[int, ...],
        weights: Sequence[float] | None = None,
        reduce: Reduce = "mean",
    ) -> None:
        self.tasks = shared_tasks([item.head for item in loaded])
        self._reduce = reduce
        shares = [1.0] * len(loaded) if weights is None else [float(weight) for weight in weights]
        members = [
            _Member(_layers_of(item, default_layers), item.head, w) for item, w in zip(loaded, shares, strict=True)
        ]
        self._members = [member for member in members if member.weight > 0]
        self._places = [
            grid_of(item.inputs)
            for item, weight in zip(loaded, shares, strict=True)
            if weight > 0 and scores_places(item.head)
        ]
        for task in self.tasks:
            if not any(_knows(member.head, task.name) for member in self._members):
                raise ConfigError(f"weights are {tuple(shares)}: every head that knows task {task.name!r} has weight 0")
        self._compositions = [task.parts_of for task in self.tasks if isinstance(task, Composed) and task.parts_of]
        self._groups = _groups(self._members, weights is not None, reduce, self._compositions)

    @property
    def heads(self) -> list[Head]:
        """The modules that run."""
        return [group.head for group in self._groups]

    @property
    def layers(self) -> tuple[int, ...]:
        """All layers that the heads read, shallow first."""
        return tuple(sorted({layer for group in self._groups for layer in group.layers}))

    def check_grid(self, seen: GridSize, turned: bool) -> None:
        """Refuse a view whose patches have other places than those that one of these heads scores.

        Args:
            seen: the grid of the view.
            turned: whether it is the image turned by a quarter.

        Raises:
            CheckpointError: naming both grids.
        """
        for trained in self._places:
            check_places(trained, seen, turned)

    def values(self, tokens: Tokens) -> dict[str, Tensor]:
        """Return ``{name: (B, dim)}``, or (B, dim, rows, cols) for the kinds that predict per cell."""
        return recompute_derived(
            self.tasks, self._reduced(tokens, lambda head, x: with_composed(head.predict(x), self._compositions))
        )

    def maps(self, tokens: Tokens) -> dict[str, Tensor]:
        """Return ``{task: (B, dim, rows, cols)}`` for the tasks that have maps."""
        return self._reduced(tokens, lambda head, x: head.predict_maps(x))

    def gate(self, tokens: Tokens) -> Tensor | None:
        """Return the weighted mean gate (B, 1, rows, cols) of the heads that have one; None without."""
        gates = [
            (member.weight, gate)
            for member in self._members
            for gate in gates_of([member.head], _fed(tokens, member.layers, member.head))
        ]
        return _mean(gates)[:, None] if gates else None

    def by_cells(self) -> set[str]:
        """Return the tasks whose value over any area is the sum or mean of their map there."""
        names = {task.name for task in self.tasks if task.is_map or task.kind == "density"}
        if self._reduce == "median":
            return names
        for task in self.tasks:
            known = [head for member in self._members for head in _leaves(member.head) if _knows(head, task.name)]
            if task.kind == "regression" and all(_is_mean_of_map(head, task.name) for head in known):
                names.add(task.name)
        return names

    def _reduced(self, tokens: Tokens, ask: Callable[[Head, Tokens], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The predictions of the heads, reduced per task over all heads that have it."""
        task_weights: dict[str, list[tuple[float, Tensor]]] = {}
        for group in self._groups:
            for name, output in ask(group.head, _fed(tokens, group.layers, group.head)).items():
                task_weights.setdefault(name, []).append((group.task_weights[name], output))
        reduced: dict[str, Tensor] = {}
        for task in self.tasks:
            outputs = task_weights.get(task.name, [])
            if any(output.shape[2:] != outputs[0][1].shape[2:] for _, output in outputs[1:]):  # may be symbolic
                sizes = sorted({tuple(output.shape[2:]) for _, output in outputs})
                raise ShapeError(
                    f"the heads' maps of {task.name!r} have {', '.join(f'{r}x{c}' for r, c in sizes)} cells; maps of "
                    "one task need one stride to be averaged. Predict with these heads one by one"
                )
            if outputs:
                median = self._reduce == "median"
                each = [output for _, output in outputs]
                reduced[task.name] = median_of(task, torch.stack(each)) if median else _mean(outputs)
        return reduced


def check_weights(weights: Sequence[float] | None, count: int, reduce: str) -> None:
    """Refuse weights that do not fit ``count`` heads.

    Raises:
        ConfigError: naming the values.
    """
    if reduce not in get_args(Reduce):
        raise ConfigError(f"reduce is {reduce!r}; expected one of {', '.join(get_args(Reduce))}")
    if weights is None:
        return
    given = list(weights) if isinstance(weights, tuple | list) else None
    if given is None or any(isinstance(weight, bool) or not isinstance(weight, Real) for weight in given):
        raise ConfigError(f"weights are {weights!r}; expected a list of one number per head")
    if len(given) != count:
        raise ConfigError(f"weights are {tuple(given)}: {len(given)} for {count} heads; give one per head, in order")
    if not all(math.isfinite(weight) for weight in given) or min(given) < 0 or not 1e-30 < sum(given) < 1e30:
        raise ConfigError(f"weights are {tuple(given)}; expected ordinary numbers of 0 or more, not all 0")
    if reduce == "median":
        raise ConfigError(f"weights are {tuple(given)}; they have no meaning for reduce='median', leave them out")


def _groups(
    members: Sequence[_Member], weighted: bool, reduce: Reduce, compositions: Sequence[Composition]
) -> list[_Group]:
    """Plain heads of the same layers and dtype run together; an ensemble runs as it is."""
    plain: dict[tuple[tuple[int, ...], torch.dtype], list[_Member]] = {}
    groups = []
    for member in members:
        if isinstance(member.head, HeadEnsemble):
            groups.append(
                _Group(member.layers, member.head, dict.fromkeys(_names(member.head, compositions), member.weight))
            )
        else:
            plain.setdefault((member.layers, next(member.head.parameters()).dtype), []).append(member)
    alike = list(plain.values())
    if reduce == "median" and (groups or len(alike) > 1):  # the median of medians is not the median
        alike = [[member] for together in alike for member in together]
    for together in alike:
        heads, weights = (
            [member.head for member in together],
            [member.weight for member in together] if weighted else None,
        )
        task_weights: dict[str, float] = {}
        for member in together:
            for name in _names(member.head, compositions):
                task_weights[name] = task_weights.get(name, 0.0) + member.weight
        groups.append(_Group(together[0].layers, HeadEnsemble.from_heads(heads, weights, reduce), task_weights))
    return groups


def _layers_of(item: LoadedHead, default: tuple[int, ...]) -> tuple[int, ...]:
    own = getattr(item.head, "layer_indices", None) or default
    return own if item.backbone is None else tuple(need(item.backbone, "layers"))


def _fed(tokens: Tokens, layers: tuple[int, ...], head: Head) -> Tokens:
    """Tokens of the head's layers in its dtype."""
    chosen = tokens if tokens.layers == layers else tokens.select(layers)
    return chosen.to(dtype=next(head.parameters()).dtype)


def _names(head: Head, compositions: Sequence[Composition]) -> set[str]:
    """What a head predicts, and what can be composed of that."""
    names = {task.name for task in head.predicted}
    return names | {own.name for own in compositions if {*own.inputs} <= names}


def _knows(head: Head, name: str) -> bool:
    return any(task.name == name for task in head.predicted)


def _leaves(head: Head) -> Iterator[Head]:
    """The head, or the members of an ensemble that averages."""
    if isinstance(head, HeadEnsemble) and head.reduce == "mean":
        for member in head.heads:
            if isinstance(member, Head):
                yield from _leaves(member)
    else:
        yield head


def _is_mean_of_map(head: Head, name: str) -> bool:
    task = next(task for task in head.predicted if task.name == name)
    affine = task.transform is None or task.transform.is_affine
    return isinstance(head, PatchMeanHead) and affine and not isinstance(task, Composed)


def _mean(outputs: Sequence[tuple[float, Tensor]]) -> Tensor:
    if len(outputs) == 1:
        return outputs[0][1]
    total = sum(weight for weight, _ in outputs)
    sums = outputs[0][0] * outputs[0][1]
    for weight, output in outputs[1:]:
        sums = sums + weight * output
    return sums / total


def grid_of(inputs: Preprocessing | None) -> GridSize | None:
    """Return the patch grid of images prepared like this; None if it depends on the image or is not recorded."""
    return None if inputs is None else inputs.grid()


def check_places(trained: GridSize | None, seen: GridSize, turned: bool) -> None:
    """Refuse a view on another grid than a gate over places was trained on.

    Args:
        trained: the grid its file tells of; None if it does not: then a view has to have the grid of its image.
        seen: the grid of the view.
        turned: whether it is the image turned by a quarter.

    Raises:
        CheckpointError: naming both grids.
    """
    wanted = trained or (GridSize(seen.cols, seen.rows) if turned else seen)
    if seen != wanted:
        raise CheckpointError(
            f"a head with a gate of mode 'mlp' scores the places of one grid, {wanted.rows} rows x {wanted.cols} cols; "
            f"it is given {seen.rows} x {seen.cols}. Prepare images as in training (preprocess=), without views that "
            "turn them (tta=), or build the head with mode='resized' or 'query'",
            step="pairing",
        )
