"""Several heads as one: averaged in original units, per task name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Self, Unpack, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinoneck.errors import ConfigError
from dinoneck.grid import PatchSize
from dinoneck.heads.cls_gating import CLSGatingHead
from dinoneck.heads.head import Head, Resample, resampled
from dinoneck.heads.outputs import HeadOutputs, recompute_derived
from dinoneck.heads.patch_mean import PatchMeanHead
from dinoneck.layers.inputs import Origin, Plain, TokensLike
from dinoneck.losses.composition import Composed, Composition, outputs_of
from dinoneck.tasks import Task, constants
from dinoneck.text import counted
from dinoneck.tokens import Tokens

Reduce = Literal["mean", "median"]
_SHARED_FIELDS = ("dim", "kind", "labels", "unit", "aggregate", "from_map", "parts_of")


class HeadEnsemble(Head):
    """An ensemble of heads: folds of one task, heads of several tasks, or both.

    Members with the same task are averaged in its original units (each through its own transform),
    so folds whose z-scores differ may be combined. The ensemble's own tasks have no transform: it
    returns original units, and for classes and ratios the logarithm of the averaged probabilities.

    Args:
        members: heads, which are used, not copied; or ``{"type": head_type, "config": {...}}``
            each.
        weights: one per member; None = equal. For ``mean`` only. A member with weight 0 does not
            run.
        reduce: ``"mean"`` or ``"median"`` over the members with a task; of compositions always the
            mean.
        layers: block indices that each member reads; None = every member takes the tokens as they
            come.
        device: torch factory keyword.
        dtype: torch factory keyword.

    Shape:
        Tokens -> ``{task name: (B, dim)}`` as its own tasks define them, see above;
        (B, dim, rows, cols) for dense and segmentation tasks.

    Raises:
        ConfigError: if members are malformed, differ in ``embed_dim`` or in what a task's outputs
            mean (names, unit, area of the transform), or weights do not fit.

    Examples:
        >>> from dinoneck import PatchMeanHead
        >>> folds = [PatchMeanHead(64, [Task("total")]) for _ in range(5)]
        >>> ensemble = HeadEnsemble(folds)
        >>> tokens = Tokens.from_patches(torch.randn(2, 6, 64), grid=(2, 3), patch_size=16)
        >>> mean = torch.stack([head.predict(tokens)["total"] for head in folds]).mean(dim=0)
        >>> torch.allclose(ensemble.predict(tokens)["total"], mean, atol=1e-6)
        True
    """

    def __init__(
        self,
        members: Sequence[Head],
        weights: Sequence[float] | None = None,
        reduce: Reduce = "mean",
        layers: Sequence[Sequence[int]] | None = None,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if not members:
            raise ConfigError("HeadEnsemble has no members")
        self._weights, self._reduce, self._layers = weights, reduce, layers
        self.heads = nn.ModuleList(members)
        if (device, dtype) != (None, None):
            self.heads.to(device=device, dtype=dtype)
        self.training = self.heads.training = any(head.training for head in members)
        widths = sorted({head.embed_dim for head in self._members()})
        if len(widths) > 1:
            raise ConfigError(
                f"the members were built for tokens of {widths} channels; they need one backbone"
            )
        if objects := [
            task.name for head in self._members() for task in head.tasks if task.is_masks
        ]:
            raise ConfigError(
                f"task {objects[0]!r} predicts objects, which have no mean over heads; use "
                "predict_instances or predict_panoptic of one head"
            )
        self.embed_dim = widths[0]
        outputs = shared_tasks(self._members())
        composed = [task for task in outputs if isinstance(task, Composed)]
        self._set_outputs(
            tasks=[task for task in outputs if task not in composed],
            compositions=[task.parts_of for task in composed if task.parts_of],
        )
        if weights is not None:
            _check_weights(weights, members, reduce, self.tasks)
        self.num_layers = _shared_count(self._members(), layers)

    @classmethod
    def from_heads(
        cls,
        heads: Sequence[Head],
        weights: Sequence[float] | None = None,
        reduce: Reduce = "mean",
        layers: Sequence[Sequence[int]] | None = None,
    ) -> Self:
        """Return ``HeadEnsemble(heads, weights, reduce, layers)``."""
        return cls(heads, weights, reduce, layers)

    @property
    def weights(self) -> Sequence[float] | None:
        """The members' weights, as constructed: a file holds those."""
        return self._weights

    @property
    def reduce(self) -> Reduce:
        """How members with one task are combined, as constructed."""
        return self._reduce

    @property
    def layers(self) -> Sequence[Sequence[int]] | None:
        """The block indices that each member reads, as constructed."""
        return self._layers

    @property
    def layer_indices(self) -> tuple[int, ...] | None:
        """All block indices that members read, shallow first; None where one takes the tokens as they come."""
        each: Sequence[Any] = self.layers or [
            getattr(head, "layer_indices", None) for head in self._members()
        ]
        known = [own for own in each if own is not None]
        return (
            tuple(sorted({index for own in known for index in own}))
            if len(known) == len(each)
            else None
        )

    @property
    def trained_on(self) -> Origin | None:
        """Which tokens the members were trained on, see :class:`Head`."""
        return self._members()[0].trained_on

    @trained_on.setter
    def trained_on(self, origin: Origin | None) -> None:
        """Set the origin of every member, with the layers that the member reads."""
        for number, head in enumerate(self._members()):
            head_layers = self._layers_of(number)
            if origin is None or head_layers is None:
                head.trained_on = origin
            else:
                head.trained_on = replace(origin, layers=head_layers)

    def note_origin(self, origin: Origin) -> None:
        """Record what the members, with their current weights, were trained on.

        The layers of the origin are replaced by those that each member reads, if ``layers`` was
        passed.
        """
        for number, head in enumerate(self._members()):
            head_origin = origin
            if self.layers is not None:
                head_origin = replace(origin, layers=self._layers_of(number))
            head.note_origin(head_origin)

    def readers(
        self, layers: Sequence[int] | None = None
    ) -> list[tuple[Head, tuple[int, ...] | None]]:
        """Return the members, with nested ensembles replaced by theirs, see :meth:`Head.readers`."""
        readers = []
        for number, head in enumerate(self._members()):
            head_layers = layers if self.layers is None else self._layers_of(number)
            readers += head.readers(head_layers)
        return readers

    @property
    def _patch_size(self) -> PatchSize:
        return self._members()[0]._patch_size

    def check_origin(self, tokens: Tokens) -> None:
        """Refuse tokens of another backbone than the one in a member's file, see :meth:`Head.check_origin`."""
        for number, head in enumerate(self._members()):
            head.check_origin(self._fed(tokens, number))

    def members_predict(self, tokens: TokensLike, **plain: Unpack[Plain]) -> dict[str, Tensor]:
        """Return ``{name: (K, B, dim)}`` in original units: the predictions of its K members."""
        rows = [row for _, row in self._each(self._tokens(tokens, **plain))]
        return {
            task.name: torch.stack([row[task.name] for row in rows if task.name in row])
            for task in self.predicted
        }

    def forward(self, tokens: TokensLike, **plain: Unpack[Plain]) -> dict[str, Tensor]:
        """Return ``{task name: (B, dim)}``: original units, or log-probabilities for classes and ratios."""
        values = self.natural(tokens, **plain)
        found = {task.name: values[task.name] for task in self.tasks}
        for task in self.tasks:
            if task.is_categorical or task.kind == "ratio":
                tiny = torch.finfo(found[task.name].dtype).tiny
                found[task.name] = found[task.name].clamp_min(tiny).log()
        return found

    def natural(self, tokens: TokensLike, **plain: Unpack[Plain]) -> dict[str, Tensor]:
        """Return ``{name: (B, dim)}`` in original units, probabilities for classes and ratios."""
        averaged = self.averaged(self._tokens(tokens, **plain))
        outputs = HeadOutputs.of_predictions(self.predicted, averaged)
        values = recompute_derived(self.predicted, outputs.values, outputs.maps)
        return averaged | values

    def averaged(self, tokens: Tokens) -> dict[str, Tensor]:
        """Return :meth:`natural` before what follows from other outputs is recomputed; callers that average do that."""
        rows = self._each(tokens)
        return {task.name: self._reduced(task, rows) for task in self.predicted}

    @torch.no_grad()
    def predict_maps(self, tokens: TokensLike, **plain: Unpack[Plain]) -> dict[str, Tensor]:
        """Return the members' maps, reduced, for the tasks that have maps."""
        tokens = self._tokens(tokens, **plain)
        rows = [(weight, head.predict_maps(own)) for weight, head, own in self._running(tokens)]
        found = [task for task in self.tasks if any(task.name in row for _, row in rows)]
        return {task.name: self._reduced(task, rows) for task in found}

    def predict_outputs(self, tokens: Tokens, with_maps: bool = False) -> HeadOutputs:
        """Return the averages over the members, see :meth:`Head.predict_outputs`.

        Args:
            tokens: of the images.
            with_maps: with the map of every task that has one, the gate, and
                :meth:`member_outputs`.
        """
        outputs = HeadOutputs.of_predictions(self.predicted, self.averaged(tokens))
        if not with_maps:
            return outputs
        return HeadOutputs(
            values=outputs.values,
            maps=self.predict_maps(tokens),
            gate=self.gate(tokens),
            members=self.member_outputs(tokens),
        )

    def member_outputs(self, tokens: Tokens) -> list[dict[str, Tensor]]:
        """Return what each member that runs returns when it is called, in normalised units.

        It is empty unless all members replace :meth:`Head.at_size`: of the others the maps
        themselves are resampled.
        """
        if any(type(head).at_size is Head.at_size for head in self._members()):
            return []
        return [head(head_tokens) for _, head, head_tokens in self._running(tokens)]

    def maps_at_size(
        self,
        outputs: Sequence[Mapping[str, Tensor]],
        size: Sequence[int],
        resample: Resample = resampled,
    ) -> dict[str, Tensor]:
        """Return the members' maps at another size in original units, averaged.

        Args:
            outputs: of :meth:`member_outputs`.
            size: as for :meth:`Head.at_size`.
            resample: as for :meth:`Head.at_size`.
        """
        rows = []
        for (_, weight, head), head_outputs in zip(self._weighted(), outputs, strict=True):
            resized = head.at_size(head_outputs, size, resample)
            maps = {}
            for task in head.tasks:
                if task.is_map:
                    maps[task.name] = task.predict_map(resized[task.name])
            rows.append((weight, maps))
        return {task.name: self._reduced(task, rows) for task in self.tasks if task.is_map}

    @torch.no_grad()
    def gate(self, tokens: Tokens) -> Tensor | None:
        """Return the weighted mean gate (B, rows, cols) of the members that have one; None without."""
        running = [
            one for one in self._running(tokens) if isinstance(one[1], HeadEnsemble | CLSGatingHead)
        ]
        gates = [
            (weight, gate) for weight, head, own in running if (gate := head.gate(own)) is not None
        ]
        if not gates:
            return None
        total = sum(weight for weight, _ in gates)
        return torch.stack([gate * (weight / total) for weight, gate in gates]).sum(dim=0)

    def by_cells(self) -> set[str]:
        """Return the tasks whose value over any area is the sum or mean of their map there."""
        names = {task.name for task in self.tasks if task.is_map or task.kind == "density"}
        if self.reduce == "median":
            return names
        for task in self.tasks:
            if task.kind == "regression" and all(
                _is_mean_of_map(head, task.name) for head in _leaves(self)
            ):
                names.add(task.name)
        return names

    def _members(self) -> list[Head]:
        return [cast("Head", head) for head in self.heads]

    def _weighted(self) -> list[tuple[int, float, Any]]:
        """Number, weight and member, of the members whose weight is not 0."""
        weights = self.weights or [1.0] * len(self.heads)
        return [(i, weights[i], head) for i, head in enumerate(self.heads) if weights[i]]

    def _running(self, tokens: Tokens) -> Iterator[tuple[float, Any, Tokens]]:
        """Weight, member and its tokens, for the members whose weight is not 0."""
        for number, weight, head in self._weighted():
            yield weight, head, self._fed(tokens, number)

    def _fed(self, tokens: Tokens, number: int) -> Tokens:
        """Tokens of the layers that a member reads."""
        head_layers = self._layers_of(number)
        if head_layers is None or head_layers == tokens.layers:
            return tokens
        return tokens.select(head_layers)

    def _layers_of(self, number: int) -> tuple[int, ...] | None:
        """Return the block indices that a member reads; None: it takes the layers as they come."""
        return None if self.layers is None else tuple(self.layers[number])

    def _each(self, tokens: Tokens) -> list[tuple[float, dict[str, Tensor]]]:
        """Weight and predictions of every member in original units, composed wherever it has what that needs."""
        running = self._running(tokens)
        return [
            (weight, with_composed(head.natural(own), self.compositions))
            for weight, head, own in running
        ]

    def _reduced(self, task: Task, rows: Sequence[tuple[float, dict[str, Tensor]]]) -> Tensor:
        name, outputs = task.name, [row[task.name] for _, row in rows if task.name in row]
        finest = max((output.shape[2:] for output in outputs), key=tuple)
        outputs = [
            x if x.shape[2:] == finest else F.interpolate(x, tuple(finest), mode="bilinear")
            for x in outputs
        ]  # maps of members with other strides
        stacked = torch.stack(outputs)
        # medians of parts may all be 0
        if self.reduce == "median" and not isinstance(task, Composed):
            ordered = stacked.sort(dim=0).values
            return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
        if self.weights is None:
            return stacked.mean(dim=0)
        weights = [weight for weight, row in rows if name in row]
        shares = constants(weights, stacked) / sum(weights)
        return torch.einsum("k,k...->...", shares, stacked)


def _leaves(head: Head) -> Iterator[Head]:
    """The head, or the members of an ensemble that averages."""
    if isinstance(head, HeadEnsemble) and head.reduce == "mean":
        for member in head._members():
            yield from _leaves(member)
    else:
        yield head


def _is_mean_of_map(head: Head, name: str) -> bool:
    """Whether a head does not know a task, or its value is the mean of its map."""
    task = next((task for task in head.predicted if task.name == name), None)
    if task is None:
        return True
    affine = task.transform is None or not task.transform.log1p
    return isinstance(head, PatchMeanHead) and affine and not isinstance(task, Composed)


def with_composed(
    values: Mapping[str, Tensor], compositions: Sequence[Composition]
) -> dict[str, Tensor]:
    """Return predictions in original units, and what they lack of the compositions whose inputs they hold."""
    lacking = [
        own for own in compositions if own.name not in values and {*own.inputs} <= values.keys()
    ]
    return {**values, **{own.name: own.of(values) for own in lacking}}


def _check_weights(
    weights: Sequence[float], members: Sequence[Head], reduce: str, tasks: Sequence[Task]
) -> None:
    if len(weights) != len(members):
        raise ConfigError(
            f"weights are {tuple(weights)}: {len(weights)} for {len(members)} heads; give one per "
            "head"
        )
    if min(weights) < 0 or not 1e-30 < sum(weights) < 1e30:
        raise ConfigError(
            f"weights are {tuple(weights)}; expected ordinary numbers of 0 or more, not all 0"
        )
    if reduce == "median":
        raise ConfigError(
            f"weights are {tuple(weights)}; they have no meaning for reduce='median', leave them "
            "out"
        )
    used = {
        task.name
        for weight, head in zip(weights, members, strict=True)
        if weight
        for task in head.tasks
    }
    if unused := sorted({task.name for task in tasks} - used):
        raise ConfigError(f"every member that knows task {unused[0]!r} has weight 0")


def shared_tasks(members: Sequence[Head]) -> tuple[Task, ...]:
    """Return one task per name, then one output per composition; without transform: they are in original units.

    A minimum or maximum that some of the heads state holds for their mean.

    Raises:
        ConfigError: if two heads disagree about a task's outputs, kind, labels, unit, area,
            aggregate, cells, minimum or maximum, or about what is composed.
    """
    tasks: dict[str, Task] = {}
    meanings: dict[str, dict[str, Any]] = {}
    for head in members:
        areas = areas_of(head)
        for task in head.predicted:
            plain = replace(task, transform=None, activation=None)
            first_task = tasks.setdefault(task.name, plain)
            tasks[task.name] = _with_bounds(first_task, plain)
            own = {field: getattr(task, field, None) for field in _SHARED_FIELDS} | {
                "area": areas.get(task.name)
            }
            first = meanings.setdefault(task.name, own)
            for field, value in own.items():
                if value != first[field]:
                    raise ConfigError(
                        f"members disagree about task {task.name!r}: its {field} is "
                        f"{first[field]!r} in one and {value!r} in another; load heads of the "
                        "same task, or rename it in one of them"
                    )
    composed = [
        task.parts_of for task in tasks.values() if isinstance(task, Composed) and task.parts_of
    ]
    return outputs_of(
        [task for task in tasks.values() if not isinstance(task, Composed)], composed, "the members"
    )


def _with_bounds(task: Task, other: Task) -> Task:
    """A task with the minimum and maximum that another one of its name states.

    Raises:
        ConfigError: if both state one, and these differ.
    """
    for bound in ("minimum", "maximum"):
        stated = getattr(task, bound)
        of_other = getattr(other, bound)
        if stated is not None and of_other is not None and stated != of_other:
            raise ConfigError(
                f"members disagree about task {task.name!r}: its {bound} is {stated:g} in one and "
                f"{of_other:g} in another; load heads of the same task"
            )
        if stated is None and of_other is not None:
            task = replace(task, **{bound: of_other})
    return task


def areas_of(head: Head) -> dict[str, float | None]:
    """Return task name -> area of its transform; an ensemble has the areas of its members."""
    if isinstance(head, HeadEnsemble):
        return {name: area for member in head._members() for name, area in areas_of(member).items()}
    return {
        task.name: None if task.transform is None else task.transform.area for task in head.tasks
    }


def _shared_count(members: Sequence[Head], layers: Sequence[Sequence[int]] | None) -> int | None:
    """Return the number of layers of the tokens that all members can read; None = any, or block indices decide.

    Raises:
        ConfigError: if no tokens suit every member, or ``layers`` are not those of every member.
    """
    if layers is not None:
        if len(layers) != len(members):
            raise ConfigError(
                f"layers hold {counted(len(layers), 'list')} of block indices for {len(members)} "
                "members; give one list for each"
            )
        for number, blocks in enumerate(layers):
            if not blocks:
                raise ConfigError(
                    f"layers name no blocks for member {number}; give one or more block indices"
                )
        return None
    named = [getattr(head, "layer_indices", None) for head in members]
    free = (head for head, own in zip(members, named, strict=True) if own is None)
    counts: set[Any] = {getattr(head, "num_layers", None) for head in free} - {None}
    if len(counts) > 1:
        raise ConfigError(
            f"the members read {' and '.join(map(str, sorted(counts)))} layers, and no tokens "
            "suit all of them; give each its block indices, such as "
            "HeadEnsemble.from_heads(heads, layers=[(2, 5, 8, 11), (11,)])"
        )
    return counts.pop() if counts else None


def scores_places(head: nn.Module) -> bool:
    """Whether it holds a gate over the cells of one grid, of which it records only the number."""
    return any(
        isinstance(part, CLSGatingHead) and part.gating.mode == "mlp" for part in head.modules()
    )
