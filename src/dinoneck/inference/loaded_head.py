"""A head that is ready to predict, what its file records of its inputs, and which heads fit together."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import nn

from dinoneck.backbones.backbone import Backbone, plain_backbone
from dinoneck.checkpoint.compare import check_rebuilt, check_records, check_rotary
from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.checkpoint.schema import need
from dinoneck.checkpoint.training_images import NO_IMAGES, TrainingImages
from dinoneck.errors import CheckpointError
from dinoneck.grid import GridSize
from dinoneck.heads.ensemble import HeadEnsemble, scores_places
from dinoneck.heads.head import Head
from dinoneck.images.preprocessing import Preprocessing
from dinoneck.inference.alike import HeadFacts, check_facts_alike
from dinoneck.inference.tiles import TrainedBoxes
from dinoneck.inference.views import VIEWS
from dinoneck.tasks import Task
from dinoneck.tokens import Tokens

# from _warn_of_no_record over check_pairing, the predictor's grouping and Predictor(...) to the user
_LEVELS_TO_THE_USER = 5


class MaskRecord(NamedTuple):
    """How the training of a head read its class masks.

    Attributes:
        source: the file, as messages name it.
        class_values: the value of each class; empty = not recorded.
        nodata: values without a label; empty = not recorded.
        class_colors: the colour of each class; empty = not recorded.
    """

    source: str
    class_values: tuple[int, ...] = ()
    nodata: tuple[float, ...] = ()
    class_colors: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True)
class LoadedHead:
    """A head, and what its file records of its inputs.

    Attributes:
        head: several heads as one :class:`dinoneck.HeadEnsemble`; one that predicts objects as it
            is.
        layers: block indices; None = those of the backbone.
        norm: whether the final norm is applied; None = as by the backbone.
        backbone_record: the record of its backbone; None where it is not recorded.
        preprocess: how its images are prepared; None where it is not recorded.
        views: the name of the views that are averaged.
        checkpoint: its file; None for a module.
        mask_records: of the files of all its heads that record how masks were read.
        files: of all its heads, as they were named.
        auxiliary: the tasks that only helped its training, as far as files record it.
        target_weights: target -> its weight in the overall score of its training; empty where none
            is recorded.
        training_images: the images that it was trained on, as far as files record them.
        trained_boxes: what is known of the objects of its training, and the tiles that its images
            were cut into; None where nothing is recorded.
    """

    head: Head
    layers: tuple[int, ...] | None = None
    norm: bool | None = None
    backbone_record: Mapping[str, Any] | None = None
    preprocess: Preprocessing | None = None
    views: str = "none"
    checkpoint: HeadCheckpoint | None = None
    mask_records: tuple[MaskRecord, ...] = ()
    files: tuple[str, ...] = ()
    auxiliary: frozenset[str] = frozenset()
    target_weights: Mapping[str, float] = field(default_factory=dict)
    training_images: TrainingImages = NO_IMAGES
    trained_boxes: TrainedBoxes | None = None

    @classmethod
    def load(cls, source: HeadCheckpoint | nn.Module) -> LoadedHead:
        """Load a head from a checkpoint or a module.

        Raises:
            CheckpointError: if it has no tasks to predict.
        """
        if isinstance(source, HeadCheckpoint):
            return cls._from_checkpoint(source)
        head = _checked_head(source)
        return cls(head=head, layers=getattr(head, "layer_indices", None))

    @classmethod
    def _from_checkpoint(cls, checkpoint: HeadCheckpoint) -> LoadedHead:
        head = _checked_head(checkpoint.build(check_backbone=False))
        # as maps are; convolutions reorder other weights every call
        head.to(memory_format=torch.channels_last)
        record = checkpoint.meta["backbone"]
        if record is None:
            layers = getattr(head, "layer_indices", None)
            norm = None
        else:
            layers = record.get("layers")
            norm = record.get("norm")
        recorded_views = checkpoint.meta["tta"]
        training = checkpoint.meta["training"] or {}
        return cls(
            head=head,
            layers=layers,
            norm=norm,
            backbone_record=record,
            preprocess=checkpoint.preprocess,
            views="none" if recorded_views is None else recorded_views["ops"],
            checkpoint=checkpoint,
            mask_records=_mask_records(checkpoint),
            files=(checkpoint.source,) if checkpoint.source else (),
            auxiliary=frozenset(training.get("auxiliary") or ()),
            target_weights=dict(training.get("target_weights") or {}),
            training_images=checkpoint.training_images or NO_IMAGES,
            trained_boxes=TrainedBoxes.from_record(training),
        )

    @property
    def object_task(self) -> Task | None:
        """The task of the head that predicts objects, if any."""
        for task in self.head.tasks:
            if task.is_masks:
                return task
        return None

    def completed_from(self, backbone: Backbone) -> LoadedHead:
        """Return the head with ``layers`` and ``norm`` filled in: those of the file, else the backbone's.

        Raises:
            CheckpointError: if there is a record, which does not state the layers.
        """
        if self.backbone_record is None:
            layers = self.layers or backbone.layers
        else:
            layers = tuple(need(self.backbone_record, "layers"))
        norm = backbone.norm if self.norm is None else self.norm
        return replace(self, layers=layers, norm=norm)

    def select(self, tokens: Tokens, backbone: Backbone) -> Tokens:
        """Return the layers that the head reads, with or without the norm, in its dtype.

        A head without parameters gets them in the backbone's dtype.
        """
        if self.layers is not None and self.layers != tokens.layers:
            tokens = tokens.select(self.layers)
        if self.norm:
            tokens = backbone.normalised(tokens)
        parameter = next(self.head.parameters(), None)
        if parameter is None:
            return tokens
        return tokens.to(dtype=parameter.dtype)

    def check_grid(self, grid: GridSize, is_turned: bool) -> None:
        """Refuse a view whose patches have other places than those that the head scores.

        Args:
            grid: of the view.
            is_turned: whether the view is the image turned by a quarter.

        Raises:
            CheckpointError: naming both grids.
        """
        if not scores_places(self.head):
            return
        expected = None if self.preprocess is None else self.preprocess.grid()
        if expected is None:
            # the file names no grid, so it is that of the upright image
            expected = GridSize(grid.cols, grid.rows) if is_turned else grid
        if grid != expected:
            raise CheckpointError(
                f"a head with a gate of mode 'mlp' scores the places of one grid, {expected.rows} "
                f"rows x {expected.cols} cols; it is given {grid.rows} x {grid.cols}. Prepare "
                "images as in training (preprocess=), without views that turn them (tta=), or "
                "build the head with mode='resized' or 'query'",
                step="pairing",
            )


def _checked_head(module: nn.Module) -> Head:
    if isinstance(module, Head):
        return module
    hint = ""
    if getattr(module, "classes", ()):
        hint = "; load a detector with dinoneck.detection.Detector"
    raise CheckpointError(f"{type(module).__name__} has no tasks to predict{hint}", step="pairing")


def _mask_records(file: HeadCheckpoint) -> tuple[MaskRecord, ...]:
    """How the training of a file read its masks; empty where it is not recorded."""
    masks = (file.meta["training"] or {}).get("masks")
    if masks is None:
        return ()
    class_values = tuple(masks.get("class_values") or ())
    nodata = tuple(masks.get("nodata") or ())
    class_colors = tuple(tuple(colour) for colour in masks.get("class_colors") or ())
    return (MaskRecord(file.source or "the head", class_values, nodata, class_colors),)


def merge_heads(heads: Sequence[LoadedHead], weights: Sequence[float] | None) -> LoadedHead:
    """Return the heads of a list as one ensemble.

    One head alone that is an ensemble, or predicts objects, stays as it is.
    """
    first = heads[0]
    is_whole = first.object_task is not None or isinstance(first.head, HeadEnsemble)
    if is_whole and len(heads) == 1 and weights is None:
        return first
    preprocess = None
    mask_records: list[MaskRecord] = []
    files: list[str] = []
    auxiliary: set[str] = set()
    target_weights: Mapping[str, float] = {}
    images = NO_IMAGES
    for head in heads:
        if preprocess is None:
            preprocess = head.preprocess
        mask_records += head.mask_records
        files += head.files
        auxiliary |= head.auxiliary
        target_weights = target_weights or head.target_weights
        images |= head.training_images
    return replace(
        first,
        head=HeadEnsemble([head.head for head in heads], weights=weights),
        preprocess=preprocess,
        checkpoint=first.checkpoint if len(heads) == 1 else None,
        mask_records=tuple(mask_records),
        files=tuple(files),
        auxiliary=frozenset(auxiliary),
        target_weights=target_weights,
        training_images=images,
    )


def check_loaded_alike(
    heads: Sequence[LoadedHead], *, compare_inputs: bool, compare_views: bool
) -> None:
    """Refuse heads of a list that are not of one type, configuration and backbone.

    The numbers of fitted transforms may differ. What a file does not record is not compared.

    Args:
        heads: of the list.
        compare_inputs: whether images have to be prepared alike.
        compare_views: whether the recorded views have to be equal, and known here.

    Raises:
        CheckpointError: naming the first difference, or a head that is in the list twice.
    """
    if compare_views:
        _check_views_are_known(heads)
    facts = []
    for head in heads:
        facts.append(_facts(head, compare_inputs=compare_inputs, compare_views=compare_views))
    check_facts_alike(facts)
    _check_files_differ(heads)


def _check_views_are_known(heads: Sequence[LoadedHead]) -> None:
    unknown = sorted({head.views for head in heads} - VIEWS.keys())
    if unknown:
        raise CheckpointError(
            f"the heads record the views {unknown[0]!r}; expected one of {', '.join(VIEWS)}. "
            "Choose the views with tta= (--tta on the command line)",
            step="pairing",
        )


def _facts(head: LoadedHead, *, compare_inputs: bool, compare_views: bool) -> HeadFacts:
    """What the heads of a list have in common."""
    inputs = None
    if compare_inputs and head.preprocess is not None:
        inputs = head.preprocess.record()
    return HeadFacts(
        backbone=head.backbone_record,
        config=head.head.config,
        head_type=type(head.head).__name__,
        inputs=inputs,
        views=head.views if compare_views else None,
    )


def _check_files_differ(heads: Sequence[LoadedHead]) -> None:
    first_of_digest: dict[str, HeadCheckpoint] = {}
    for head in heads:
        file = head.checkpoint
        if file is None:
            continue
        first = first_of_digest.setdefault(file.meta["digest"], file)
        if first is not file:
            raise CheckpointError(
                f"{first.source!r} and {file.source!r} hold the same head (equal digests), which "
                "would count twice; give each head once",
                step="pairing",
            )


def check_pairing(heads: Sequence[LoadedHead], backbone: Backbone, *, probe: bool) -> None:
    """Refuse a backbone that is not the heads', see :meth:`dinoneck.HeadCheckpoint.check_backbone`.

    A file without a backbone record gives a warning: nothing can be compared.

    Args:
        heads: of one key.
        backbone: the backbone whose tokens they get.
        probe: compare what the backbones do in place of their records.

    Raises:
        CheckpointError: naming what differs.
    """
    record: dict[str, Any] = {}
    if any(head.backbone_record is not None for head in heads):
        record = backbone.record()
    for head in heads:
        if head.checkpoint is not None and probe:
            as_read = backbone.with_layers(head.layers, head.norm)
            head.checkpoint.check_backbone(as_read, probe=True)
        elif head.backbone_record is not None:
            _check_record(head, head.backbone_record, backbone, record)
        elif head.checkpoint is not None:
            _warn_of_no_record(head, backbone)


def _check_record(
    head: LoadedHead,
    head_record: Mapping[str, Any],
    backbone: Backbone,
    record: Mapping[str, Any],
) -> None:
    """Compare the backbone that a head's file records with one and its record."""
    # layers and norm are applied per head
    check_records(head_record, {**record, "norm": head.norm}, layers=False)
    check_rotary(head_record, backbone)
    if record["weights"]["kind"] == "object":
        # models of the user's own may be changed in ways that weights do not hold
        as_read = plain_backbone(backbone).with_layers(head.layers, head.norm)
        check_rebuilt(head_record, as_read)


def _warn_of_no_record(head: LoadedHead, backbone: Backbone) -> None:
    warnings.warn(
        f"the file of this {type(head.head).__name__} does not state its backbone, so "
        f"{backbone.name!r} is used unchecked; save the head again with backbone=",
        stacklevel=_LEVELS_TO_THE_USER,
    )
