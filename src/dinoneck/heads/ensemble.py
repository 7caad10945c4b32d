"""Several heads as one: averaged in original units, per task name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Self, Unpack, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinoneck.configured import fields_of
from dinoneck.errors import ConfigError
from dinoneck.grid import PatchSize
from dinoneck.heads.cls_gating import CLSGatingHead
from dinoneck.heads.head import Head, Resample, resampled
from dinoneck.heads.linear import LinearHead
from dinoneck.heads.outputs import HeadOutputs, recompute_dependent_values
from dinoneck.heads.patch_mean import PatchMeanHead
from dinoneck.kinds import TTA
from dinoneck.layers.inputs import Origin, Plain, TokensLike
from dinoneck.losses.composition import Composed, Composition, outputs_of
from dinoneck.task_intervals import NO_VIEWS
from dinoneck.tasks import Interval, Task, constants
from dinoneck.text import counted
from dinoneck.tokens import Tokens

_SHARED_FIELDS = ("dim", "kind", "labels", "unit", "aggregate", "from_map", "parts_of")
# the sum of weights, beyond which their shares in float32 would be 0 or not finite
_SMALLEST_SUM = 1e-30
_LARGEST_SUM = 1e30


class _Member(NamedTuple):
    """A head of an ensemble.

    Attributes:
        head: the head.
        weight: 0 or more; the head does not run if it is 0.
        layers: block indices that it reads; None: it takes the tokens as they come.
    """

    head: Head
    weight: float
    layers: tuple[int, ...] | None

    def select(self, tokens: Tokens) -> Tokens:
        """Return the tokens of the layers that the head reads."""
        if self.layers is None or self.layers == tokens.layers:
            return tokens
        return tokens.select(self.layers)


class _Weighted(NamedTuple):
    """Values or maps of a member by task name, in original units, and how much they count."""

    head: Head
    weight: float
    tensors: Mapping[str, Tensor]


class _MemberOutputs(NamedTuple):
    """What a member predicts, with the compositions of the ensemble where it has their inputs."""

    head: Head
    weight: float
    outputs: HeadOutputs


class HeadEnsemble(Head):
    """An ensemble of heads: folds of one task, heads of several tasks, or both.

    Members with the same task are averaged in its original units (each through its own transform),
    so folds whose z-scores differ may be combined. The ensemble's own tasks have no transform: it
    returns original units, and for classes and ratios the logarithm of the averaged probabilities.

    Args:
        members: heads, which are used, not copied; or ``{"type": head_type, "config": {...}}``
            each.
        weights: one per member; None = equal. A member with weight 0 does not run.
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
        layers: Sequence[Sequence[int]] | None = None,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if not members:
            raise ConfigError("HeadEnsemble has no members")
        self._weights = weights
        self._layers = layers
        self.heads = nn.ModuleList(members)
        if device is not None or dtype is not None:
            self.heads.to(device=device, dtype=dtype)

        # members keep their modes, and the ensemble trains if one of them does
        is_training = any(head.training for head in members)
        self.training = is_training
        self.heads.training = is_training

        self.embed_dim = _shared_width(members)
        _check_no_objects(members)
        running = members
        if weights is not None:  # whether they fit is checked below
            running = [head for head, weight in zip(members, weights, strict=False) if weight]
        tasks, compositions = shared_tasks(members, running)
        self._set_outputs(tasks, compositions)
        if weights is not None:
            _check_weights(weights, members, self.predicted, compositions)
        self.num_layers = _shared_count(members, layers)

    @classmethod
    def from_heads(
        cls,
        heads: Sequence[Head],
        weights: Sequence[float] | None = None,
        layers: Sequence[Sequence[int]] | None = None,
    ) -> Self:
        """Return ``HeadEnsemble(heads, weights, layers)``."""
        return cls(heads, weights, layers)

    @classmethod
    def current_config(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return a configuration of dinoneck 0.3 without ``reduce``, which said how members are combined.

        Raises:
            ConfigError: if it is not the mean.
        """
        current = dict(config)
        if "reduce" in fields_of(cls):  # a subclass has an argument of this name
            return current
        reduce = current.pop("reduce", "mean")
        if reduce != "mean":
            raise ConfigError(
                f"reduce is {reduce!r}, and since dinoneck 0.4 an ensemble is the mean of its heads; "
                "open this one with dinoneck 0.3 and save "
                "HeadEnsemble.from_heads(list(ensemble.heads))"
            )
        return current

    @property
    def weights(self) -> Sequence[float] | None:
        """The members' weights, as constructed: a file holds those."""
        return self._weights

    @property
    def layers(self) -> Sequence[Sequence[int]] | None:
        """The block indices that each member reads, as constructed."""
        return self._layers

    @property
    def layer_indices(self) -> tuple[int, ...] | None:
        """All block indices that members read, shallow first; None if one takes the tokens as they come."""
        indices: set[int] = set()
        for member in self._members():
            member_layers = member.layers
            if member_layers is None:
                member_layers = getattr(member.head, "layer_indices", None)
            if member_layers is None:
                return None
            indices.update(member_layers)
        return tuple(sorted(indices))

    @property
    def trained_on(self) -> Origin | None:
        """Which tokens the members were trained on, see :class:`Head`."""
        return self._members()[0].head.trained_on

    @trained_on.setter
    def trained_on(self, origin: Origin | None) -> None:
        """Set the origin of every member, with the layers that the member reads."""
        for member in self._members():
            if origin is None or member.layers is None:
                member.head.trained_on = origin
            else:
                member.head.trained_on = replace(origin, layers=member.layers)

    def note_origin(self, origin: Origin) -> None:
        """Record what the members, with their current weights, were trained on.

        The layers of the origin are replaced by those that each member reads, if ``layers`` was
        passed.
        """
        for member in self._members():
            if member.layers is None:
                member.head.note_origin(origin)
            else:
                member.head.note_origin(replace(origin, layers=member.layers))

    def drop_calibration(self) -> list[str]:
        """Remove those of the members too, see :meth:`Head.drop_calibration`."""
        names = super().drop_calibration()
        for member in self._members():
            names += member.head.drop_calibration()
        return list(dict.fromkeys(names))

    def readers(
        self, layers: Sequence[int] | None = None
    ) -> list[tuple[Head, tuple[int, ...] | None]]:
        """Return the members, with nested ensembles replaced by theirs, see :meth:`Head.readers`."""
        readers = []
        for member in self._members():
            readers += member.head.readers(layers if member.layers is None else member.layers)
        return readers

    @property
    def _patch_size(self) -> PatchSize:
        return self._members()[0].head._patch_size

    def check_origin(self, tokens: Tokens) -> None:
        """Reject tokens of another backbone than the one in a member's file, see :meth:`Head.check_origin`."""
        for member in self._members():
            member.head.check_origin(member.select(tokens))

    def members_predict(self, tokens: TokensLike, **plain: Unpack[Plain]) -> dict[str, Tensor]:
        """Return ``{name: (K, B, dim)}`` in original units: the predictions of its K members.

        Maps are (K, B, dim, rows, cols), those of members with other strides resampled to the
        finest, as for their mean.
        """
        tokens = self._tokens(tokens, **plain)
        members = []
        for member in self._running():
            predictions = member.head.natural(member.select(tokens))
            members.append(with_composed(predictions, self.compositions))
        stacked = {}
        for task in self.predicted:
            tensors = [member[task.name] for member in members if task.name in member]
            stacked[task.name] = torch.stack(_at_finest_size(task, tensors))
        return stacked

    def forward(self, tokens: TokensLike, **plain: Unpack[Plain]) -> dict[str, Tensor]:
        """Return ``{task name: (B, dim)}``: original units, or log-probabilities for classes and ratios.

        Of labels it is the logits of their probabilities.
        """
        predictions = self.natural(tokens, **plain)
        outputs = {}
        for task in self.tasks:
            output = predictions[task.name]
            if task.is_probability:
                tiny = torch.finfo(output.dtype).tiny
                output = output.clamp_min(tiny).log()
            elif task.is_multilabel:
                output = torch.logit(output, eps=torch.finfo(output.dtype).eps)
            outputs[task.name] = output
        return outputs

    def natural(self, tokens: TokensLike, **plain: Unpack[Plain]) -> dict[str, Tensor]:
        """Return ``{name: (B, dim)}`` in original units, probabilities for classes and ratios.

        These are the averages over the members of :meth:`predict_outputs`, with ``from_map`` values
        and compositions recomputed from them: the final predictions of an image without views or
        tiles.
        """
        outputs = self.predict_outputs(self._tokens(tokens, **plain))
        values = recompute_dependent_values(self.predicted, outputs)
        predictions = {}
        for task in self.predicted:
            if task.is_map:
                predictions[task.name] = outputs.maps[task.name]
            else:
                predictions[task.name] = values[task.name]
        return predictions

    @torch.no_grad()
    def predict_maps(self, tokens: TokensLike, **plain: Unpack[Plain]) -> dict[str, Tensor]:
        """Return the members' maps, averaged, of the tasks that have maps."""
        tokens = self._tokens(tokens, **plain)
        maps = []
        for member in self._running():
            member_maps = member.head.predict_maps(member.select(tokens))
            maps.append(_Weighted(member.head, member.weight, member_maps))
        return self._average_maps(maps)

    def predict_outputs(self, tokens: Tokens, with_maps: bool = False) -> HeadOutputs:
        """Return the averages over the members, see :meth:`Head.predict_outputs`.

        ``from_map`` values and compositions are averages too; :meth:`natural` recomputes them.

        Args:
            tokens: of the images.
            with_maps: with the map of every task that has one, the gate, and
                :meth:`member_outputs`.
        """
        values = []
        maps = []
        shown_maps = []
        gates = []
        raw_outputs = []
        shows_other_maps = False
        for member_head, weight, outputs in self._predict_members(tokens, with_maps):
            values.append(_Weighted(member_head, weight, outputs.values))
            maps.append(_Weighted(member_head, weight, outputs.maps))
            shown_maps.append(_Weighted(member_head, weight, outputs.maps_to_show))
            shows_other_maps = shows_other_maps or outputs.shown_maps is not None
            if _has_maps(member_head):
                raw_outputs += outputs.raw_outputs
            if outputs.gate is not None:
                gates.append((weight, outputs.gate))
        return HeadOutputs(
            values=self._average_values(values),
            maps=self._average_maps(maps),
            shown_maps=self._average_maps(shown_maps) if shows_other_maps else None,
            gate=_mean_gate(gates),
            raw_outputs=raw_outputs if self.resamples_raw_outputs() else [],
        )

    def member_outputs(self, tokens: Tokens) -> list[dict[str, Tensor]]:
        """Return what each member with dense or segmentation tasks returns when it is called, in normalised units.

        Members of weight 0 do not run and are left out. A nested ensemble is replaced by its members.
        The list is empty unless all of them replace :meth:`Head.at_size`: otherwise the maps
        themselves are resampled.
        """
        return self.predict_outputs(tokens, with_maps=True).raw_outputs

    def members_at_size(
        self,
        outputs: Sequence[Mapping[str, Tensor]],
        size: Sequence[int],
        resample: Resample,
    ) -> list[dict[str, Tensor]]:
        """Return what :meth:`member_outputs` returns, with the maps among it resampled.

        Args:
            outputs: of :meth:`member_outputs`.
            size: as for :meth:`Head.at_size`.
            resample: as for :meth:`Head.at_size`.
        """
        resized = []
        for head, head_outputs in zip(_running_heads_with_maps(self), outputs, strict=True):
            resized.append(head.at_size(head_outputs, size, resample))
        return resized

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
        resized_maps = []
        begin = 0
        for member in self._running():
            if not _has_maps(member.head):
                continue
            end = begin + len(_running_heads_with_maps(member.head))
            maps = _maps_at_size(member.head, outputs[begin:end], size, resample)
            resized_maps.append(_Weighted(member.head, member.weight, maps))
            begin = end
        return self._average_maps(resized_maps)

    @torch.no_grad()
    def gate(self, tokens: Tokens) -> Tensor | None:
        """Return the weighted mean gate (B, rows, cols) of the members that have one; None without."""
        gates = []
        for member in self._running():
            if not isinstance(member.head, HeadEnsemble | CLSGatingHead):
                continue
            gate = member.head.gate(member.select(tokens))
            if gate is not None:
                gates.append((member.weight, gate))
        return _mean_gate(gates)

    def by_cells(self) -> set[str]:
        """Return the tasks whose value over any area is the sum or mean of their map there.

        For images in tiles this value replaces the mean over the tiles. Members of weight 0, which
        do not run, do not decide it.
        """
        return tasks_by_cells(self)

    def _members(self) -> list[_Member]:
        members = []
        for number, head in enumerate(self.heads):
            weight = 1.0 if self.weights is None else self.weights[number]
            layers = None if self.layers is None else tuple(self.layers[number])
            members.append(_Member(cast("Head", head), weight, layers))
        return members

    def _running(self) -> list[_Member]:
        """The members that count."""
        return [member for member in self._members() if member.weight]

    def resamples_raw_outputs(self) -> bool:
        """Whether all members that run and have maps, those of nested ensembles too, replace :meth:`Head.at_size`."""
        heads = _running_heads_with_maps(self)
        return bool(heads) and all(type(head).at_size is not Head.at_size for head in heads)

    def _predict_members(self, tokens: Tokens, with_maps: bool = False) -> list[_MemberOutputs]:
        """What each member that runs predicts, see :meth:`Head.predict_outputs`.

        What follows from other outputs is recomputed of the averages of the outermost ensemble
        alone, so nested ensembles leave it as it is.
        """
        predictions = []
        for member in self._running():
            outputs = member.head.predict_outputs(member.select(tokens), with_maps)
            completed = with_composed(outputs.values, self.compositions)
            outputs = replace(outputs, values=completed)
            predictions.append(_MemberOutputs(member.head, member.weight, outputs))
        return predictions

    def _average_values(self, members: Sequence[_Weighted]) -> dict[str, Tensor]:
        """The means of the tasks that are not maps, within the bounds that any member states."""
        tasks = [task for task in self.predicted if not task.is_map]
        averages = self._average(tasks, members)
        for task in tasks:
            averages[task.name] = task.clamp(averages[task.name])
        return averages

    def _average_maps(self, members: Sequence[_Weighted]) -> dict[str, Tensor]:
        """The means of maps; as in :meth:`dinoneck.Task.predict_map`, bounds hold for dense ones.

        That of a linear layer on the mean patch counts if all members that predict the task have a
        map of it: alone it would be shown as the map of another prediction.
        """
        counted_members = []
        for member in members:
            maps = {}
            for name, cells in member.tensors.items():
                if not _is_of_mean_patch(member.head, name) or self._all_have(name, members):
                    maps[name] = cells
            counted_members.append(member._replace(tensors=maps))
        averages = self._average(self.tasks, counted_members)
        for task in self.tasks:
            if task.kind == "dense" and task.name in averages:
                averages[task.name] = task.of_unit_length(task.clamp(averages[task.name]))
        return averages

    def _all_have(self, task_name: str, members: Sequence[_Weighted]) -> bool:
        """Whether all members that predict a task have a map of it."""
        num_predictions = 0
        for member in self._running():
            num_predictions += any(task.name == task_name for task in member.head.tasks)
        num_maps = sum(task_name in member.tensors for member in members)
        return num_maps == num_predictions

    def _average(self, tasks: Sequence[Task], members: Sequence[_Weighted]) -> dict[str, Tensor]:
        """The weighted means over the members that have a task, of the tasks that any of them has."""
        averages = {}
        for task in tasks:
            tensors = []
            weights = []
            for member in members:
                if task.name in member.tensors:
                    tensors.append(member.tensors[task.name])
                    weights.append(member.weight)
            if tensors:
                averages[task.name] = self._mean(_at_finest_size(task, tensors), weights)
        return averages

    def _mean(self, tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        stacked = torch.stack(list(tensors))
        if self.weights is None:
            return stacked.mean(dim=0)
        shares = constants(weights, stacked) / sum(weights)
        return torch.einsum("k,k...->...", shares, stacked)


def _at_finest_size(task: Task, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Maps of members with other strides, resampled to the finest; values (B, dim) as they are.

    Cells of a density that adds up are counts: a cell that becomes four is shared among them.
    """
    finest = max((tensor.shape[2:] for tensor in tensors), key=tuple)
    adds_up = task.kind == "density" and task.aggregate == "sum"
    resized = []
    for tensor in tensors:
        size = tensor.shape[2:]
        if size != finest:
            tensor = task.of_unit_length(F.interpolate(tensor, tuple(finest), mode="bilinear"))
            if adds_up:
                tensor = tensor * (size.numel() / finest.numel())
        resized.append(tensor)
    return resized


def _running_heads(head: Head) -> list[Head]:
    """The head itself; the single heads that run for an ensemble, those of nested ones too."""
    if not isinstance(head, HeadEnsemble):
        return [head]
    heads = []
    for member in head._running():
        heads += _running_heads(member.head)
    return heads


def tasks_by_cells(head: Head) -> set[str]:
    """Return what :meth:`HeadEnsemble.by_cells` does, of any head."""
    single_heads = _running_heads(head)
    names = set()
    for task in head.tasks:
        if (task.is_map and task.has_values) or task.kind == "density":
            names.add(task.name)
        elif task.kind == "regression":
            if all(_is_mean_of_map(single_head, task.name) for single_head in single_heads):
                names.add(task.name)
    return names


def _is_of_mean_patch(head: Head, task_name: str) -> bool:
    """Whether the heads that predict a task, of a head or a nested ensemble, are linear layers on the mean patch."""
    for single_head in _running_heads(head):
        has_task = any(task.name == task_name for task in single_head.tasks)
        is_of_mean = isinstance(single_head, LinearHead) and single_head.pool == "mean"
        if has_task and not is_of_mean:
            return False
    return True


def _running_heads_with_maps(head: Head) -> list[Head]:
    """Those of the single heads that run which have dense or segmentation tasks."""
    return [single_head for single_head in _running_heads(head) if _has_maps(single_head)]


def _has_maps(head: Head) -> bool:
    """Whether a head has dense or segmentation tasks."""
    return any(task.is_map for task in head.tasks)


def _maps_at_size(
    head: Head, outputs: Sequence[Mapping[str, Tensor]], size: Sequence[int], resample: Resample
) -> dict[str, Tensor]:
    """The maps of a head or a nested ensemble at another size in original units."""
    if isinstance(head, HeadEnsemble):
        return head.maps_at_size(outputs, size, resample)
    [head_outputs] = outputs
    resized = head.at_size(head_outputs, size, resample)
    maps = {}
    for task in head.tasks:
        if task.is_map:
            maps[task.name] = task.predict_map(resized[task.name])
    return maps


def _mean_gate(gates: Sequence[tuple[float, Tensor]]) -> Tensor | None:
    """The mean of gates (B, rows, cols) with their weights; None without gates."""
    if not gates:
        return None
    total = sum(weight for weight, _ in gates)
    return torch.stack([gate * (weight / total) for weight, gate in gates]).sum(dim=0)


def _single_heads(head: Head) -> Iterator[Head]:
    """The head itself; the single heads of the members of an ensemble."""
    if isinstance(head, HeadEnsemble):
        for member in head._members():
            yield from _single_heads(member.head)
    else:
        yield head


def _is_mean_of_map(head: Head, task_name: str) -> bool:
    """Whether the value of a task is the mean of the head's map of it, or the head does not know the task."""
    tasks = {task.name: task for task in head.predicted}
    task = tasks.get(task_name)
    if task is None:
        return True
    if task.transform is not None and task.transform.log1p:
        return False
    if isinstance(head, LinearHead) and head.pool == "mean":
        # its activation acts on the mean, in the map on every patch
        return task.activation is None
    return isinstance(head, PatchMeanHead)


def with_composed(
    values: Mapping[str, Tensor], compositions: Sequence[Composition]
) -> dict[str, Tensor]:
    """Return predictions in original units; add the compositions whose inputs are present."""
    completed = dict(values)
    for composition in compositions:
        has_inputs = set(composition.inputs) <= values.keys()
        if has_inputs and composition.name not in values:
            completed[composition.name] = composition.of(values)
    return completed


def _shared_width(heads: Sequence[Head]) -> int:
    widths = sorted({head.embed_dim for head in heads})
    if len(widths) > 1:
        raise ConfigError(
            f"the members were built for tokens of {widths} channels; they need one backbone"
        )
    return widths[0]


def _check_no_objects(heads: Sequence[Head]) -> None:
    for head in heads:
        for task in head.tasks:
            if task.is_masks:
                raise ConfigError(
                    f"task {task.name!r} predicts objects, which have no mean over heads; use "
                    "predict_instances or predict_panoptic of one head"
                )


def _check_weights(
    weights: Sequence[float],
    heads: Sequence[Head],
    predicted: Sequence[Task],
    compositions: Sequence[Composition],
) -> None:
    if len(weights) != len(heads):
        raise ConfigError(
            f"weights are {tuple(weights)}: {len(weights)} for {len(heads)} heads; give one per head"
        )
    if min(weights) < 0 or not _SMALLEST_SUM < sum(weights) < _LARGEST_SUM:
        raise ConfigError(
            f"weights are {tuple(weights)}; expected ordinary numbers of 0 or more, not all 0"
        )
    weighted_names: set[str] = set()
    for weight, head in zip(weights, heads, strict=True):
        if not weight:
            continue
        names = {task.name for task in head.predicted}
        weighted_names |= names
        for composition in compositions:
            if set(composition.inputs) <= names:
                weighted_names.add(composition.name)
    for task in predicted:
        if task.name not in weighted_names:
            raise ConfigError(f"every member that predicts {task.name!r} has weight 0")


def shared_tasks(
    heads: Sequence[Head], running: Sequence[Head]
) -> tuple[list[Task], list[Composition]]:
    """Return one task per name, and the compositions; without transform: they are in original units.

    A minimum or maximum that some of the heads state holds for their mean. So does an interval that
    all heads state which have a part in the predictions; the mean of heads with different ones has
    none. The same holds for the thresholds of labels, which are 0.5 then.

    Args:
        heads: all members.
        running: those that count, of a weight above 0, whose bounds hold.

    Raises:
        ConfigError: if two heads disagree about a task's outputs, kind, labels, unit, area,
            aggregate, cells, minimum or maximum, whether it is of surface normals, or about what is composed.
    """
    by_name: dict[str, Task] = {}
    meanings: dict[str, dict[str, Any]] = {}
    for head in heads:
        areas = areas_of(head)
        counts = any(head is other for other in running)
        for task in head.predicted:
            activation = task.activation if task.is_unit else None
            plain = replace(task, transform=None, activation=activation)
            plain = with_interval(plain, _shared_interval(task, running))
            if task.is_multilabel:
                plain = replace(plain, thresholds=_shared_thresholds(task.name, running))
            if not counts:
                plain = replace(plain, minimum=None, maximum=None)
            first_task = by_name.setdefault(task.name, plain)
            by_name[task.name] = _with_bounds(first_task, plain)

            meaning = {field: getattr(plain, field, None) for field in _SHARED_FIELDS}
            meaning["area"] = areas.get(task.name)
            meaning["activation"] = activation
            first_meaning = meanings.setdefault(task.name, meaning)
            _check_same_meaning(task.name, first_meaning, meaning)

    tasks = []
    compositions = []
    for task in by_name.values():
        if isinstance(task, Composed) and task.parts_of is not None:
            compositions.append(task.parts_of)
        else:
            tasks.append(task)
    outputs_of(tasks, compositions, "the members")  # raises where compositions do not fit
    return tasks, compositions


def _shared_interval(task: Task, heads: Sequence[Head]) -> Sequence[Interval]:
    """The interval of a task that all heads with a part in its predictions state; empty if they differ.

    A head that predicts only what the task follows from, such as the parts of a sum, states none.
    """
    sources = _sources_of(task, heads)
    intervals: list[Sequence[Interval]] = []
    for head in heads:
        stated = [other.interval for other in head.predicted if other.name == task.name]
        intervals += stated
        if not stated and any(other.name in sources for other in head.predicted):
            intervals.append(())
    if len(set(intervals)) != 1:
        return ()
    return intervals[0]


def _sources_of(task: Task, heads: Sequence[Head]) -> set[str]:
    """The names of the outputs, averaged over heads, that the values of a task are recomputed from."""
    names: set[str] = set()
    if task.from_map is not None:
        names.add(task.from_map)
    if isinstance(task, Composed) and task.parts_of is not None:
        names.update(task.parts_of.inputs)
    sources = set(names)
    for head in heads:
        for other in head.predicted:
            if other.name in names:
                sources |= _sources_of(other, heads)
    return sources


def _shared_thresholds(task_name: str, heads: Sequence[Head]) -> tuple[float, ...]:
    """The thresholds of a task that all heads that predict it state; empty if they differ."""
    thresholds = []
    for head in heads:
        thresholds += [task.thresholds for task in head.predicted if task.name == task_name]
    return thresholds[0] if len(set(thresholds)) == 1 else ()


def with_interval(task: Task, interval: Sequence[Interval]) -> Task:
    """Return the task with another interval, which a composition holds too."""
    if isinstance(task, Composed) and task.parts_of is not None:
        parts_of = replace(task.parts_of, interval=interval)
        return replace(task, interval=interval, parts_of=parts_of)
    return replace(task, interval=interval)


def _check_same_meaning(name: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    for field, value in second.items():
        if value != first[field]:
            raise ConfigError(
                f"members disagree about task {name!r}: its {field} is {first[field]!r} in one and "
                f"{value!r} in another; load heads of the same task, or rename it in one of them"
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
    areas: dict[str, float | None] = {}
    for single_head in _single_heads(head):
        for task in single_head.tasks:
            areas[task.name] = None if task.transform is None else task.transform.area
    return areas


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
    counts: set[int] = set()
    for head in members:
        num_layers = getattr(head, "num_layers", None)
        has_indices = getattr(head, "layer_indices", None) is not None
        if num_layers is not None and not has_indices:
            counts.add(num_layers)
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


def calibrated_views(task: Task) -> TTA:
    """Return the views that the intervals of a task were measured with: one of them for all outputs.

    Outputs without an interval, and tasks without any, have ``"none"``.
    """
    for interval in task.interval:
        if interval.views != NO_VIEWS:
            return interval.views
    return NO_VIEWS


def has_intervals_of_other_views(task: Task, views: str) -> bool:
    """Return whether the intervals of a task do not hold for predictions from some views.

    Those that were measured on the image alone hold for all views, whose mean is rarely farther off.

    Args:
        task: of a head.
        views: the name of the views that are averaged.
    """
    return calibrated_views(task) not in (NO_VIEWS, views)


def tasks_of_different_intervals(head: Head) -> list[str]:
    """Return the names of tasks whose intervals differ among the heads that an ensemble averages.

    Their mean has none. A single head has no such tasks.
    """
    if not isinstance(head, HeadEnsemble):
        return []
    tasks_with_intervals: set[str] = set()
    for member in cast("Iterable[Head]", head.heads):
        for task in member.predicted:
            if task.interval_levels:
                tasks_with_intervals.add(task.name)
    names = []
    for task in head.predicted:
        if task.name in tasks_with_intervals and not task.interval_levels:
            names.append(task.name)
    return names


def without_intervals_of_other_views(task: Task, views: str) -> Task:
    """Return the task, without intervals that do not hold for predictions from some views."""
    if has_intervals_of_other_views(task, views):
        return with_interval(task, ())
    return task
