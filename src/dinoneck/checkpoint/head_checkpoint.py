"""HeadCheckpoint: the trained part of a model in one checked file, with the record of how it was made."""

from __future__ import annotations

import copy
import os
import tempfile
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, cast

import safetensors.torch
import torch
from torch import Tensor, nn

from dinoneck import registry
from dinoneck.atomic import write_whole
from dinoneck.backbones import weight_hashes
from dinoneck.backbones.backbone import Backbone, plain_backbone
from dinoneck.backbones.known import model_of
from dinoneck.checkpoint import compare, contents, hub, lora_weights, origins, rehearsal, schema
from dinoneck.checkpoint import format as files
from dinoneck.checkpoint.backbone_part import BackbonePart, part_for_head
from dinoneck.checkpoint.contents import TensorGroups
from dinoneck.checkpoint.format import HeadFile
from dinoneck.checkpoint.origins import is_head
from dinoneck.checkpoint.rebuild import rebuild
from dinoneck.checkpoint.training_images import TrainingImages
from dinoneck.checks import with_named_keywords
from dinoneck.codec import TAG, encode, normal
from dinoneck.devices import check_device
from dinoneck.dtypes import dtype_name, float_dtype
from dinoneck.errors import BackboneError, CheckpointError
from dinoneck.grid import PatchSize, patch_pair
from dinoneck.images.preprocessing import Preprocessing
from dinoneck.kinds import THRESHOLD_KINDS
from dinoneck.layers.inputs import Origin
from dinoneck.tasks import Interval, Task, describe_tasks
from dinoneck.text import did_you_mean, reason_of
from dinoneck.version import __version__

_SHORT_DIGEST = len("sha256:") + 12  # characters, as git shows the start of a commit
# of all checkpoints: a lock in each could not be pickled
_TAKING_SKELETON = threading.Lock()

# what of a configuration may hold prediction intervals
_HOLDING_INTERVALS = ("Task", "Composition")

RECORDS = (
    "backbone",
    "backbone_weights",
    "preprocess",
    "training",
    "training_images",
    "license",
    "tta",
    "extra",
)


@dataclass(frozen=True)
class ModuleRecords:
    """What a file states of a module next to its weights and its backbone, see :meth:`HeadCheckpoint.from_module`."""

    preprocess: Preprocessing | Mapping[str, Any] | None = None
    extra: Mapping[str, Any] | None = None
    training: Mapping[str, Any] | None = None
    training_images: TrainingImages | None = None
    license: str | None = None
    tta: str | None = None


class HeadCheckpoint:
    """A head (or any registered module) with its configuration, weights and the record of its making.

    Attributes:
        head_type: the registered name.
        config: the constructor arguments in JSON-able form.
        meta: everything in the file's header, digest included.
        state_dict: the weights of the head, on the CPU.
        adapter_state: LoRA weights of its backbone that travel with it, by the backbone's names;
            usually none.
        backbone_weights: the weights of a backbone that was tuned along, by the names of its model;
            None = they are not in the file.
        backbone_file: a file with the weights of the backbone that the record names, as some files
            of published heads are; None = they are found by name. It is not part of a saved file.
        preprocess: how images are prepared; None where it is not recorded.
        tasks: what the head predicts, compositions among it; none of a neck or a detector.
        source: the file or hub repository it was read from; empty for a head that was read from
            none.
        revision: the commit a hub file came from; None for a local file.

    Examples:
        >>> import tempfile, pathlib
        >>> from dinoneck import PatchMeanHead, Task
        >>> head = PatchMeanHead(64, [Task("total", unit="g")])
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "head.safetensors"
        >>> HeadCheckpoint.from_module(head).save(path)
        >>> HeadCheckpoint.load(path).head_type
        'patch_mean'
    """

    def __init__(self, file: HeadFile, source: str = "", revision: str | None = None) -> None:
        skeleton = contents.check(file)
        tensors = contents.group_tensors(contents.tensors_of(file))
        self.meta = file.header.meta
        self.head_type: str = self.meta["head_type"]
        self.config: dict[str, Any] = self.meta["config"]
        self.preprocess = contents.preprocess_of(file)
        self.state_dict = tensors.head
        self.adapter_state = tensors.adapter
        self.backbone_weights = tensors.backbone or None
        self.backbone_file: Path | None = None
        self.source = source
        self.revision = revision
        # the module without weights (on the meta device) that the file was checked with; the first
        # build() fills it with weights, later ones make another one
        self._skeleton: nn.Module | None = skeleton
        self._skeleton_config = copy.deepcopy(self.config)
        self._num_parameters = sum(parameter.numel() for parameter in skeleton.parameters())
        self.tasks: Sequence[Task] = getattr(skeleton, "predicted", ())

    def __repr__(self) -> str:
        what = repr(self.head_type)
        if self.tasks:
            what += f": {describe_tasks(self.tasks)}"
        backbone = self.meta["backbone"] or {}
        facts = [f"{self._num_parameters} parameters", f"backbone={backbone.get('name')!r}"]
        if self.preprocess is not None and self.preprocess.size is not None:
            facts.append(f"size={self.preprocess.size}")
        if self.meta["tta"] is not None:
            facts.append(f"tta={self.meta['tta']['ops']!r}")
        facts.append(self.meta["digest"][:_SHORT_DIGEST])
        return f"HeadCheckpoint({what}; {', '.join(facts)})"

    @classmethod
    @with_named_keywords
    def from_module(
        cls,
        module: nn.Module,
        *,
        backbone: Backbone | Mapping[str, Any] | None = None,
        backbone_weights: Mapping[str, Tensor] | None = None,
        preprocess: Preprocessing | Mapping[str, Any] | None = None,
        extra: Mapping[str, Any] | None = None,
        training: Mapping[str, Any] | None = None,
        training_images: TrainingImages | None = None,
        license: str | None = None,  # noqa: A002
        tta: str | None = None,
    ) -> Self:
        """Take a snapshot of a registered module. Its weights are copied.

        Args:
            module: a registered building block, neck or head.
            backbone: the backbone it was trained on, or its record. Given itself, its functional
                probe and its LoRA weights go into the file too. A licence of its weights that is
                known goes into ``licences``.
            backbone_weights: ``backbone.state_dict()``, or that of its model. The file then holds
                these weights. Required where the backbone was changed since it was loaded (blocks
                were trained, LoRA was merged): its present weights are hashed and compared with
                those that its record names.
            preprocess: how its images were prepared, or the record; None = as for the tokens that
                the head was fitted on or its file names, else as ``backbone.preprocess`` was set.
            extra: anything else to keep, JSON-able, at most 16 KiB; never interpreted.
            training: facts of its training: ``seed``, ``folds``, ``fold``, ``epochs``, ``data``
                (``name`` and ``revision``), ``masks`` (``class_values``, ``class_colors`` and
                ``nodata``, which :func:`dinoneck.evaluate` reads masks with) and ``metrics`` (name -> a number, or
                ``{"mean": ..., "sd": ...}``); at most 16 KiB.
            training_images: short hashes of the images that it was trained on, which a training
                keeps; None = nothing of them is kept.
            license: the head's own licence, preferably an SPDX identifier.
            tta: the views its predictions are meant to be averaged over, ``"none"``, ``"flip4"`` or
                ``"d6"``.

        Raises:
            CheckpointError: if the module is not registered, its weights are shared, not finite or
                on meta, or the backbone's weights were changed and are not given; if the head was
                trained on tokens of another backbone, other layers or other images, as far as its
                ``trained_on`` states them.
        """
        contents.registered_name(module)
        if backbone_weights is not None and not isinstance(backbone_weights, Mapping):
            raise CheckpointError(
                f"backbone_weights is a {type(backbone_weights).__name__}; expected the state dict "
                "of the backbone",
                step="write",
            )
        unwrapped = plain_backbone(backbone)
        if not isinstance(unwrapped, Backbone):
            unwrapped = _json_copy(unwrapped, "backbone")
        part = part_for_head(unwrapped, backbone_weights)
        origins.check_tokens_of(module, part.record, before_merge=_before_merge(unwrapped))
        if preprocess is None:
            preprocess = origins.images_for(module, unwrapped)
        records = ModuleRecords(
            preprocess=preprocess,
            extra=extra,
            training=training,
            training_images=training_images,
            license=license,
            tta=tta,
        )
        checkpoint = cls._with_records(module, part, records)
        origins.check_images_of(module, checkpoint.preprocess)
        return checkpoint

    @property
    def training_images(self) -> TrainingImages | None:
        """Short hashes of the images that it was trained on; None if the file has none."""
        record = self.meta.get("training_images")
        return None if record is None else TrainingImages.from_record(record)

    @property
    def configured_tasks(self) -> set[str]:
        """The names of the tasks and compositions in :attr:`config`; a head may have others, which it states itself."""
        return _names_of_tasks(self.config)

    def with_intervals(self, intervals: Mapping[str, Sequence[Interval]]) -> Self:
        """Return the checkpoint with other prediction intervals; everything else is the same.

        Args:
            intervals: task or composition -> one for each of its outputs, of a classification a
                single one, see :class:`dinoneck.Task`. Others keep theirs.

        Raises:
            CheckpointError: if the head has no such task in its configuration.
            ConfigError: if the intervals do not fit a task, or a task is called as a column of an
                interval.
        """
        module = self._module_of(_config_with_intervals(self.config, intervals))
        stated = {task.name: task.interval for task in module.predicted}
        for name, intervals_of_task in intervals.items():
            if stated.get(name) != tuple(intervals_of_task):
                raise CheckpointError(
                    f"the configuration of {self.head_type!r} has no task {name!r} that could hold "
                    f"intervals; it predicts {', '.join(stated)}",
                    step="config",
                )
        return self._with_tasks_of(module)

    def with_thresholds(self, thresholds: Mapping[str, Sequence[float]]) -> Self:
        """Return the checkpoint with other thresholds of labels; everything else is the same.

        Those of a detector are set by :attr:`dinoneck.detection.Detector.thresholds`.

        Args:
            thresholds: multilabel task, or task of instances -> a probability, or a score, for each
                of its labels. Others keep theirs.

        Raises:
            CheckpointError: if the head has no such task in its configuration.
            ConfigError: if the thresholds do not fit a task.
        """
        module = self._module_of(_config_with_thresholds(self.config, thresholds))
        names = [task.name for task in module.predicted if task.kind in THRESHOLD_KINDS]
        for name in thresholds:
            if name not in names:
                raise CheckpointError(
                    f"the configuration of {self.head_type!r} has no multilabel task {name!r} and "
                    f"none of instances that could hold thresholds; there are "
                    f"{', '.join(names) or 'none'}",
                    step="config",
                )
        return self._with_tasks_of(module)

    def _module_of(self, config: Mapping[str, Any]) -> Any:
        """A module of another configuration, without weights."""
        with torch.device("meta"):
            return registry.resolve(self.head_type).from_config(config)

    def _with_tasks_of(self, module: Any) -> Self:
        """The checkpoint with the configuration and the tasks of a module, and the weights that it has."""
        meta = copy.deepcopy(self.meta)
        meta["config"] = module.config
        meta["tasks"] = encode(module.predicted)
        meta["created_by"]["dinoneck"] = __version__
        tensors = self._tensors()
        file = files.packed(meta, contents.chunks_of(meta, tensors), self.head_type)
        return type(self)(file)

    def _tensors(self) -> dict[str, Tensor]:
        """All tensors by their names in the file."""
        groups = TensorGroups(
            head=self.state_dict,
            adapter=self.adapter_state,
            backbone=self.backbone_weights or {},
        )
        return contents.join_tensors(groups)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one file: whole or not at all.

        What was written is read back and checked before an existing file is replaced by a rename; a
        failure leaves that one as it was.

        Raises:
            CheckpointError: if the file cannot be written.
        """
        tensors = self._tensors()
        if contents.listing_of(tensors) != self.meta["tensors"]:
            raise CheckpointError(
                "the names, shapes or dtypes of the weights are not those that meta lists: they "
                "were changed after from_module or load; build it again with from_module",
                step="write",
            )
        start = files.header_of(self.meta, "this checkpoint").start()
        files.check_path(path)
        chunks = contents.chunks_of(self.meta, tensors)

        def check(file: Path) -> None:
            # messages name the target, not the temporary file
            contents.check(replace(files.read(file), name=str(path)))

        try:
            write_whole(path, [start, *chunks], check)
        except (OSError, ValueError) as error:
            was_refused = isinstance(error, CheckpointError)
            if was_refused and files.digest(self.meta, chunks) != self.meta["digest"]:
                raise CheckpointError(
                    f"{path} cannot be written: the weights or meta were changed after from_module "
                    "or load, and do not match their digest; build it again with from_module",
                    step="write",
                ) from error
            problem = f"{path} cannot be written: {reason_of(error)}"
            raise CheckpointError(problem, step="write") from error

    def push_to_hub(self, repo_id: str, **options: Any) -> hub.CommitInfo:
        """Publish this head with its page in one commit, see :func:`dinoneck.checkpoint.push_to_hub`.

        Args:
            repo_id: ``user/name``.
            **options: as there.

        Raises:
            CheckpointError: as there.
        """
        with tempfile.TemporaryDirectory(prefix="dinoneck-push-") as folder:
            file = Path(folder, files.HEAD_NAME)
            self.save(file)
            return hub.push_to_hub(file, repo_id, **options)

    @classmethod
    def load(cls, path_or_repo: str | os.PathLike[str], *, revision: str | None = None) -> Self:
        """Read a head file and check everything in it.

        Args:
            path_or_repo: a local file; a folder with one head file; or a hub repository
                ``user/name`` with one.
            revision: branch, tag or commit of a hub repository; has no meaning for a local path.

        Raises:
            CheckpointError: if the file is damaged, was made by a newer version, does not fit its
                own description, or a folder or repository holds none or several; ``error.step``
                names the check.
        """
        path, commit = hub.resolve(path_or_repo, revision)
        source = path if commit is None else path_or_repo
        try:
            return cls(files.read(path), source=str(source), revision=commit)
        except CheckpointError as error:
            if commit is None:
                raise
            raise hub.blamed(error, path_or_repo, path) from None

    def build(
        self,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        *,
        check_backbone: bool = True,
    ) -> nn.Module:
        """Return the module in eval mode; its outputs are bit-identical to the saved one's.

        Args:
            device: where to; None = CPU.
            dtype: converted to this, of torch or by name; None keeps the file's.
            check_backbone: a head refuses tokens of another backbone than its record names, see
                :func:`load_head`.

        Raises:
            CheckpointError: if ``state_dict`` or ``meta`` were changed and do not fit each other.
            ConfigError: if the device does not exist here, or the dtype holds no real numbers.
        """
        if device is not None:
            check_device(device)
        if dtype is not None:
            dtype = float_dtype(dtype)
        with torch.inference_mode(False):  # what is built can be trained
            copies = {name: value.clone() for name, value in self.state_dict.items()}
            module = self._build_with(copies, check_backbone)
            if device is None and dtype is None:
                return module
            return module.to(device=device, dtype=dtype)

    def check_backbone(self, backbone: Backbone | Mapping[str, Any], probe: bool = False) -> None:
        """Refuse a backbone that is not the one this head was trained on.

        Width, patch size, prefix tokens, depth, layers, norm, position embeddings, architecture,
        LoRA weights and the digest of the weights are compared. If the rotary frequencies of the
        backbone are not those of published models, its outputs are compared too.

        Args:
            backbone: the backbone, or its record.
            probe: run the backbone on one small fixed image and compare its outputs with the
                file's, in place of names and digests. The same weights in another library or dtype
                pass, others do not.

        Raises:
            CheckpointError: naming what differs; also if the file has no backbone record, or
                ``probe`` is asked for and the file has none.
        """
        trained = self.meta["backbone"]
        if trained is None:
            raise CheckpointError(
                "this head file does not name the backbone it was trained on; save it with "
                "backbone=",
                step="pairing",
            )
        unwrapped = plain_backbone(backbone)
        record: Any
        if isinstance(unwrapped, Backbone):
            record = unwrapped.record()
        else:
            record = _json_copy(unwrapped, "backbone")
        schema.check_backbone_record(record, "the record")
        compare.check_records(trained, record, weights=not probe)
        if probe:
            if not isinstance(unwrapped, Backbone):
                raise CheckpointError(
                    "a probe needs the backbone itself, not its record", step="pairing"
                )
            compare.check_probe(trained, {**record, "probe": unwrapped.probe()})
        elif isinstance(unwrapped, Backbone):
            compare.check_rotary(trained, unwrapped)

    def load_backbone(
        self,
        file: str | os.PathLike[str] | None = None,
        *,
        random: bool = False,
        dtype: torch.dtype | None = None,
    ) -> Backbone:
        """Load the backbone that this file names, with what travels with the head: LoRA weights, or all its weights.

        Args:
            file: its weights, in the place of those that the file names or ``backbone_file`` has.
            random: seeded random weights in their place.
            dtype: of the weights and tokens; None = as in training.

        Raises:
            CheckpointError: if the file names none, or its record cannot be followed.
            BackboneError: if the weights cannot be had.
        """
        record = self.meta["backbone"]
        if record is None:
            raise CheckpointError(
                "this head file does not name its backbone; load it yourself, or save the head "
                "with backbone=",
                step="pairing",
            )
        if dtype is not None:
            record = {**record, "dtype": dtype_name(dtype)}
        if file is None and self.backbone_file is not None and not random:
            backbone = rebuild(record, self.backbone_file)
            weight_hashes.note_published(
                backbone.adapter, record["weights"], self.meta["licences"].get("backbone")
            )
        elif self.backbone_weights is None or file is not None or random:
            backbone = rebuild(record, file, random=random)
        else:
            with tempfile.TemporaryDirectory(prefix="dinoneck-backbone-") as folder:
                file = Path(folder, "model.safetensors")
                safetensors.torch.save_file(self.backbone_weights, file)
                backbone = self._backbone_of_weights(record, file)
        if self.adapter_state:
            self.apply_adapter(backbone)
        if not random:
            compare.check_rebuilt(record, backbone)
        return backbone

    def _backbone_of_weights(self, record: Mapping[str, Any], file: Path) -> Backbone:
        """Build the backbone of the weights in this file.

        Raises:
            CheckpointError: for a model that is not built by name, with the way to build it.
        """
        name = str(record.get("name"))
        if record.get("source") == "transformers" and _is_unpublished(name):
            raise CheckpointError(
                f"the backbone {name!r} is a model of the library transformers that is not published "
                "by this name, and a head file names no folder: build it as for the training (model "
                "= transformers.AutoModel.from_pretrained(folder)), load the weights of the head "
                "file into it (model.load_state_dict(HeadCheckpoint.load(file).backbone_weights)), "
                "and pass backbone=wrap_backbone(model)",
                step="pairing",
            )
        try:
            return rebuild(record, file)
        except BackboneError as error:
            reason = str(error).replace(str(file), "the file")
            raise CheckpointError(
                f"the backbone {record.get('name')!r} cannot be built by its name for the weights in "
                f"the file: {reason}. Build the model yourself, load the weights into it "
                "(model.load_state_dict(HeadCheckpoint.load(file).backbone_weights)), and pass "
                "backbone=wrap_backbone(model)",
                step="pairing",
            ) from error

    def apply_adapter(self, backbone: Backbone, *, trainable: bool = False) -> None:
        """Put the LoRA weights that travel with this head into the backbone they were trained on.

        Args:
            backbone: the base, with the same weights as in training and without LoRA.
            trainable: train them further; else they are frozen.

        Raises:
            CheckpointError: if the file holds none, or the backbone is another one; it stays as it
                was.
        """
        record = self.meta["backbone"]
        if not self.adapter_state:
            raise CheckpointError("this head file holds no LoRA weights", step="pairing")
        lora_weights.apply_lora(backbone, record, self.adapter_state, trainable=trainable)

    def _build_with(self, weights: Mapping[str, Tensor], check_backbone: bool) -> nn.Module:
        """Build the module in eval mode, which keeps these tensors."""
        module = self._take_skeleton()
        try:
            module.load_state_dict(weights, strict=True, assign=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())  # torch writes a line for each name
            raise CheckpointError(
                f"the weights are not those that the file held: {reason} Load it again",
                step="tensors",
            ) from None
        if check_backbone:
            self._note_origin(module)
        return module.eval().requires_grad_(True)

    def _take_skeleton(self) -> nn.Module:
        """Return a module without weights, on the meta device, that no other caller has."""
        with _TAKING_SKELETON:  # two threads may build from one checkpoint
            module: Any = self._skeleton
            self._skeleton = None
        # meta may have been changed
        if module is None or self.meta["config"] != self._skeleton_config:
            module = contents.build_on_meta(self.meta, "this checkpoint")
        return cast("nn.Module", module)

    def _note_origin(self, module: nn.Module) -> None:
        """Have the heads in a module compare the tokens of every call with the records of this file."""
        parts: list[Any] = list(module.modules())
        for part in reversed(parts):  # members, then ensembles
            if not is_head(part):
                continue
            origin = _origin_of(self.meta["backbone"], self.meta["inputs"])
            if origin is not None:
                part.note_origin(origin)

    @classmethod
    def _with_records(cls, module: nn.Module, part: BackbonePart, records: ModuleRecords) -> Self:
        """Take a snapshot of a module and of the part of its backbone, see :meth:`from_module`."""
        name = type(module).__name__
        file = _pack(module, part, records)
        meta = file.header.meta
        compare.check_fits(module, backbone=meta["backbone"], inputs=meta["inputs"], name=name)
        checkpoint = cls(file)
        skeleton = checkpoint._take_skeleton()
        rehearsal.check_takes_tokens(skeleton, meta["backbone"], checkpoint.preprocess, name)
        checkpoint._skeleton = skeleton  # given back, for the first build()
        rehearsal.check_views(module, meta["backbone"], checkpoint.preprocess, records.tta)
        return checkpoint


def _names_of_tasks(config: Any) -> set[str]:
    """The names of the tasks and compositions in the JSON of a configuration."""
    names: set[str] = set()
    if isinstance(config, list):
        for value in config:
            names |= _names_of_tasks(value)
    elif isinstance(config, Mapping):
        if config.get(TAG) in _HOLDING_INTERVALS:
            names.add(config["name"])
        for value in config.values():
            names |= _names_of_tasks(value)
    return names


def _config_with_intervals(config: Any, intervals: Mapping[str, Sequence[Interval]]) -> Any:
    """The JSON of a configuration, in which tasks and compositions of these names have other intervals."""
    if isinstance(config, list):
        return [_config_with_intervals(value, intervals) for value in config]
    if not isinstance(config, Mapping):
        return config
    changed = {key: _config_with_intervals(value, intervals) for key, value in config.items()}
    if config.get(TAG) in _HOLDING_INTERVALS and config["name"] in intervals:
        changed["interval"] = encode(tuple(intervals[config["name"]]))
    return changed


def _config_with_thresholds(config: Any, thresholds: Mapping[str, Sequence[float]]) -> Any:
    """The JSON of a configuration, in which tasks of labels and instances of these names have other thresholds."""
    if isinstance(config, list):
        return [_config_with_thresholds(value, thresholds) for value in config]
    if not isinstance(config, Mapping):
        return config
    changed = {key: _config_with_thresholds(value, thresholds) for key, value in config.items()}
    if config.get(TAG) == Task.__name__ and config["kind"] in THRESHOLD_KINDS:
        if config["name"] in thresholds:
            changed["thresholds"] = [float(x) for x in thresholds[config["name"]]]
    return changed


def checkpoint_of_detector(module: nn.Module, part: BackbonePart, **record: Any) -> HeadCheckpoint:
    """Return the checkpoint of a detection head.

    Args:
        module: the head, with the weights of the backbone that were tuned.
        part: what else of the backbone goes into the file.
        **record: the fields of :class:`ModuleRecords`.

    Raises:
        CheckpointError: as :meth:`HeadCheckpoint.from_module`.
    """
    return HeadCheckpoint._with_records(module, part, ModuleRecords(**record))


def _pack(module: nn.Module, part: BackbonePart, records: ModuleRecords) -> HeadFile:
    """Return the file of a module with copies of its tensors; its records are checked."""
    name = type(module).__name__
    head_type = contents.registered_name(module)
    backbone = _json_copy(part.record, "backbone")
    licences = {}
    if backbone is not None:
        backbone_licence = backbone.pop("license", None)
        if backbone_licence is not None:
            licences["backbone"] = backbone_licence
    tensors = contents.copy_tensors(
        TensorGroups(head=module.state_dict(), adapter=part.lora, backbone=part.weights), name
    )
    if isinstance(records.preprocess, Preprocessing):
        inputs: dict[str, Any] | None = records.preprocess.record()
    else:
        inputs = _json_copy(records.preprocess, "preprocess")
    meta: dict[str, Any] = {
        "format": schema.FORMAT,
        "schema": schema.SCHEMA,
        "created_by": {"dinoneck": __version__, "torch": str(torch.__version__)},
        "head_type": head_type,
        "config": module.config,
        "tensors": contents.listing_of(tensors),
        "backbone": backbone,
        "inputs": inputs,
        "tasks": encode(getattr(module, "predicted", ())),
        "training": _json_copy(records.training, "training"),
        "license": records.license,
        "licences": licences,
        "tta": _views_of(records.tta),
        "extra": _json_copy(records.extra or {}, "extra"),
        "digest": schema.UNSIGNED,
    }
    if records.training_images is not None and records.training_images.hashes:
        meta["training_images"] = records.training_images.record()
    return files.packed(meta, contents.chunks_of(meta, tensors), name)


@with_named_keywords
def save_head(
    path: str | os.PathLike[str],
    module: nn.Module,
    *,
    backbone: Backbone | Mapping[str, Any] | None = None,
    backbone_weights: Mapping[str, Tensor] | None = None,
    preprocess: Preprocessing | Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    license: str | None = None,  # noqa: A002
    tta: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Save a registered module in one line.

    A head saved without ``backbone=`` warns: its use with another backbone cannot be noticed.

    Args:
        path: the file.
        module: a registered module.
        backbone: as all that follow, see :meth:`HeadCheckpoint.from_module`.
        backbone_weights: the state dict of a backbone that was changed.
        preprocess: how the images were prepared.
        training: facts of the training.
        license: the head's own licence.
        tta: the views that predictions average.
        extra: anything else to keep.

    Raises:
        CheckpointError: as :meth:`HeadCheckpoint.from_module` and :meth:`HeadCheckpoint.save`.
        TypeError: for an unknown keyword, with the nearest known one.
    """
    warn_without_backbone(module, backbone, stacklevel=4)
    checkpoint = HeadCheckpoint.from_module(
        module,
        backbone=backbone,
        backbone_weights=backbone_weights,
        preprocess=preprocess,
        extra=extra,
        training=training,
        license=license,
        tta=tta,
    )
    checkpoint.save(path)


def warn_without_backbone(module: nn.Module, backbone: Any, stacklevel: int) -> None:
    """Warn of a head whose file cannot refuse the tokens of another backbone; necks and building blocks need none."""
    if backbone is None and is_head(module):
        warnings.warn(
            f"this {type(module).__name__} is saved without backbone=, so its file cannot refuse "
            "the tokens of another backbone; pass the backbone that it was trained on, or its "
            "record (FeatureStore.backbone_record)",
            stacklevel=stacklevel,
        )


def load_head(
    path_or_repo: str | os.PathLike[str],
    *,
    revision: str | None = None,
    check_backbone: bool = True,
) -> nn.Module:
    """Load a module in one line, in eval mode on the CPU.

    A head whose file has a backbone record compares it with the Tokens of every call: weights
    fingerprint, layers, norm and patch size, as far as both sides know them. It raises a
    BackboneError where they differ.

    Args:
        path_or_repo: as for :meth:`HeadCheckpoint.load`.
        revision: as for :meth:`HeadCheckpoint.load`.
        check_backbone: False takes any tokens, as in a loop of your own that trains the backbone
            along; not for fit.

    Raises:
        CheckpointError: as :meth:`HeadCheckpoint.load`.
    """
    checkpoint = HeadCheckpoint.load(path_or_repo, revision=revision)
    with torch.inference_mode(False):
        # no one else has them: no copy
        return checkpoint._build_with(checkpoint.state_dict, check_backbone)


def _origin_of(record: Mapping[str, Any] | None, inputs: Mapping[str, Any] | None) -> Origin | None:
    """Return the origin that a head expects of its tokens, or None if its file has no backbone record."""
    if record is None:
        return None
    layers = record.get("layers")
    patch_size: PatchSize | None = record.get("patch_size")
    if patch_size is not None:
        height, width = patch_pair(patch_size)
        patch_size = height if height == width else (height, width)
    return Origin(
        name=str(record.get("name")),
        source=weight_hashes.fingerprint_from_record(record),
        layers=None if layers is None else tuple(layers),
        normed=record.get("norm"),
        patch_size=patch_size,
        images=None if inputs is None else dict(inputs),
    )


def _json_copy(record: Mapping[str, Any] | None, name: str) -> dict[str, Any] | None:
    """Return a deep copy of the record ``name`` in JSON form."""
    if record is None:
        return None
    try:
        if not isinstance(record, Mapping):
            raise TypeError(f"expected a dict, got {type(record).__name__}")
        text = files.canonical(normal(Any, dict(record), name))
        copied, _ = files.strict_json(text, name, name)
    except (CheckpointError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{name} is not a plain record of JSON values: {error}", step="write"
        ) from None
    return cast("dict[str, Any]", copied)


def _views_of(tta: str | None) -> dict[str, Any] | None:
    """The record of views at prediction, a set of those known here."""
    if tta is not None and tta not in schema.VIEWS:
        hint = did_you_mean(tta, schema.VIEWS)
        raise CheckpointError(
            f"tta is {tta!r}; expected one of {', '.join(schema.VIEWS)}.{hint}", step="write"
        )
    if tta is None:
        return None
    return {"ops": tta, "reduce": "mean"}


def _before_merge(backbone: object) -> str | None:
    """The fingerprint of a backbone before LoRA was merged into it; None for a mere record."""
    if not isinstance(backbone, Backbone):
        return None
    return weight_hashes.fingerprint_before_merge(backbone.adapter)


def _is_unpublished(name: str) -> bool:
    """Whether this name of a model of transformers is neither a repository's nor a published model's."""
    is_published = "/" in name or model_of(name) is not None
    return not is_published or Path(name).is_dir()
