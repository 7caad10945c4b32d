"""Predictor: images in, values in natural units out; several heads, views and tiles over a backbone, or a detector."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from dinoneck.backbones.adapter import evaluating
from dinoneck.backbones.backbone import Backbone, checked_backbone, plain_backbone
from dinoneck.backbones.weight_hashes import fingerprint_before_merge
from dinoneck.checkpoint.compare import check_patch
from dinoneck.checkpoint.format import spelling
from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.checkpoint.origins import (
    check_images_of,
    check_tokens_of,
    images_for,
    trained_heads,
)
from dinoneck.checks import check_minimum
from dinoneck.codec import normal
from dinoneck.devices import local_device
from dinoneck.dtypes import finer_dtype, float_dtype
from dinoneck.errors import CheckpointError, ConfigError
from dinoneck.heads.ensemble import (
    HeadEnsemble,
    calibrated_views,
    has_intervals_of_other_views,
    tasks_of_different_intervals,
)
from dinoneck.heads.head import Head
from dinoneck.images.bands import read_channels
from dinoneck.images.decoding import ImageInput, read_image_size
from dinoneck.images.pixels import in_threads
from dinoneck.images.preprocessing import Preprocessing
from dinoneck.images.recipe import Size
from dinoneck.images.views import Views
from dinoneck.inference.alike import without
from dinoneck.inference.detectors import (
    BoxDetector,
    check_detector_options,
    find_detector,
    open_detector,
)
from dinoneck.inference.images import CalledImages, check_one_image
from dinoneck.inference.loaded_head import (
    LoadedHead,
    check_loaded_alike,
    check_pairing,
    merge_heads,
)
from dinoneck.inference.passes import Pass, PassImage, grids_of
from dinoneck.inference.predictions import ImagePrediction, Prediction
from dinoneck.inference.resolution import objects_from_outputs
from dinoneck.inference.sources import NO_KEY, Heads, names_detector, open_heads
from dinoneck.inference.tile_merging import no_tiles_to_overlap, tiling_for_objects
from dinoneck.inference.tiles import Tiling, tiling_of
from dinoneck.inference.views import VIEWS
from dinoneck.kinds import TTA, AnyRuntime, Runtime, TileSize
from dinoneck.runtime.exported import open_alone
from dinoneck.runtime.intervals import check_level
from dinoneck.runtime.names import Maps, check_backbone_runtime, check_maps, is_exported
from dinoneck.tasks import Task, describe_tasks
from dinoneck.text import counted

if TYPE_CHECKING:
    from dinoneck.store.feature_store import FeatureStore

logger = logging.getLogger(__name__)
T = TypeVar("T")


class _PassKey(NamedTuple):
    """What the heads of one pass have in common.

    Attributes:
        backbone: the module whose tokens they read.
        preprocess: how their images are prepared.
        tta: the name of the views that are averaged.
        tile: (height, width) of the tiles that large images are cut into, or one number for both;
            None = they are not cut.
        overlap: by how much these overlap at least; None = by default.
    """

    backbone: Backbone
    preprocess: Preprocessing
    tta: str
    tile: int | tuple[int, int] | None
    overlap: int | float | None


class _FileOrHeads:
    """What a call of :class:`Predictor` makes; its own class, so that the signature is that of ``__init__``."""

    def __new__(
        cls, heads: Heads | Mapping[str, Heads] | None = None, *args: Any, **options: Any
    ) -> Any:
        """Return a predictor; of an exported file an :class:`dinoneck.runtime.ExportedPredictor`.

        Without ``heads`` it is a copy that is going to be filled.
        """
        if cls is Predictor and is_exported(heads):
            return open_alone(
                cast("str", heads), args, options, decode_objects=objects_from_outputs
            )
        return super().__new__(cls)


class Predictor(_FileOrHeads):
    """Predicts from images with one or several heads.

    A list of heads is an ensemble: its predictions are averaged in original units, as are the views
    of test-time augmentation. Its heads are alike: one type, one configuration (apart from fitted
    transforms) and one backbone record; :meth:`dinoneck.HeadEnsemble.from_heads` averages others. A
    mapping runs heads next to each other: those with the same backbone, preprocessing and views
    share one pass of the backbone, others get their own; a log line states how many passes run.
    Every image is decoded once.

    Views that keep the sides of an image go through the backbone as one batch, and those turned by
    a quarter as another one, also where images are square. On a CPU, where large batches cost more
    than they save, a batch holds as many views of its images as ``batch_size`` allows. Given modules
    are used, not copied: they are put into eval mode for the call and back after it.

    Threads may call one predictor at once, and several predictors that share a backbone or heads.
    Each call returns what it returns alone, bit for bit. The modules get their modes back when the
    last of the calls ends. Do not train, move or convert these modules meanwhile, or switch LoRA
    off. Threads that ask for single images share passes through a
    :class:`dinoneck.inference.MicroBatcher`.

    Images larger than ``tile`` are cut into tiles, which are predicted in batches, each as an image
    of the heads' size. Maps fade into each other where tiles overlap, with weights that add up to
    one at every cell. The value of a ``density`` task that adds up is the sum of the whole map: every cell
    counts exactly once, so it is the mass or count of the whole image. Tasks of kind ``dense``,
    ``segmentation`` and ``density`` with ``aggregate="mean"``, regressions with ``from_map`` and
    PatchMeanHead's regressions are the mean of the whole map. Composed parts add up to the total of
    the whole image. Pooled regressions, ratios and classes are the mean of the tiles' predictions,
    weighted by the area each stands for: a regression in grams per image gives **grams per tile**.
    A tile knows nothing of its neighbours.

    An object that two tiles see counts once, see
    :func:`dinoneck.inference.tile_merging.merge_tiles`; segments of stuff are joined by their class.

    ``minimum`` and ``maximum`` hold for every value and for the cells of ``dense`` maps. In tiles,
    a value that is the sum or mean of the whole map is clamped once. The map is the mean over views
    and members of an ensemble; its cells are clamped only if it is ``dense``. Pooled values are
    clamped for each view and member before they are averaged, and without tiles so are those of
    densities and PatchMeanHead's regressions. Two members that predict -5 and 1 of a density with
    ``minimum=0`` therefore give (0 + 1) / 2 without tiles, and in tiles 0, their mean of -2
    clamped.

    Args:
        heads: a head file, the folder of a training (its ``head.safetensors``), a folder of head
            files, a published head (``"dinov2_vits14_nyu_dpt"``), a hub repository
            (``"user/name"``), a HeadCheckpoint or a head module; a list of them; or a mapping of a
            key to any of these. Or one detector: its file, repository or HeadCheckpoint, or the
            name of a published one (``"rf_detr_small"``). The path of a file of ``dinoneck export``
            (``"cover.onnx"``) gives a :class:`dinoneck.runtime.ExportedPredictor` (of a detector an
            ``ExportedDetector``), which is called in the same way and takes ``batch_size``,
            ``bits``, ``runtime`` and ``interval``.
        backbone: the backbone; None rebuilds it from the record in the files. It is checked against
            them.
        tta: ``"none"`` (the image alone), ``"flip4"`` (original, left-right, up-down, both) or
            ``"d6"`` (those and two quarter turns). None = as the files of the heads record, which
            must agree; modules record none.
        device: where to run; None = where the backbone is.
        tile: (height, width) in pixels of the image, one number for both, None: no tiles, or
            ``"auto"``. Where the heads have a size of their own, a tile is brought to it: give the
            size of the training images at their own resolution, so that things look as large as
            they did. Else it is a multiple of the patch. With ``resize="keep"`` (the default
            without a size) the sides of every image must be multiples of the patch too: others
            raise an error when they are predicted. ``preprocess=`` with ``resize="stretch"``,
            ``"crop"`` or ``"pad"`` takes any image. An image that fits a tile is predicted as
            without tiles; one that is smaller on one side only is not cut along it and shows less
            than a tile there. Of a detector any size, see
            :meth:`dinoneck.detection.Detector.predict`. ``"auto"``: the tiles of the training, if
            the file says that it was one on tiles, as trainings of boxes and objects are; others
            are not cut.
        overlap: by how much tiles overlap at least: an int in the same pixels, or a float, the
            share of a tile (0.25). None = 0. For objects and boxes None = 0.2, and at least the
            longest box of their training, up to half a tile, if the files know it.
        weights: one number of 0 or more per head of a list, in the order given (files of a folder
            sorted by name); None = equal. Or the local file of the one published head, of a
            detector also its folder, see :func:`dinoneck.load_published`.
        blur: odd kernel of a Gaussian blur with fixed sigma, instead of that of the files; None
            keeps it.
        bits: how many bits images of 16 bits use, 8 ... 16, instead of that of the files, see
            :class:`dinoneck.data.Preprocessing`; None keeps it.
        preprocess: how images are prepared, instead of the records of the files.
        batch_size: images or tiles per call of the backbone; on a CPU, images or tiles times views.
            None = 8, on a CPU 4.
        probe: let what the backbone does decide whether it is the heads', in place of names and
            digests: for the same weights in another library or dtype, see
            :meth:`dinoneck.HeadCheckpoint.check_backbone`.
        revision: branch, tag or commit of the hub repositories among the heads.
        runtime: what computes the tokens: ``"torch"``, ``"openvino"`` or ``"auto"``, see
            :meth:`dinoneck.Backbone.with_runtime`; None = that of the backbone, torch for one that
            is rebuilt from the files. Of an exported file what runs it: ``"onnxruntime"`` (None) or
            ``"openvino"``.
        dtype: in which the backbone computes, after it is compared with the heads; None = its own,
            or that of the record. A backbone that is rebuilt from the files is loaded in it if it is
            finer than that of the record.
        interval: the level of the intervals that rows hold, such as 0.9, one that the heads' files
            store; None: rows hold none. An image of a new group (field, patient, site, day) like
            those of the training lies in its interval with this probability. The residuals behind
            it are those of one head for each fold. The average of heads or of views is rarely
            farther off, so intervals of an ensemble are wider than needed.

    Attributes:
        revisions: hub repository -> the commit its heads are of; empty for local heads.
        passes: the passes of the backbones; heads that are not in a mapping have one.
        tasks: what is predicted; of a mapping key -> tasks; none of a detector.
        detector: the :class:`dinoneck.detection.Detector`; None for heads.

    Raises:
        BackboneError: when called, if the backbone's weights changed meanwhile, or LoRA was
            switched off or on.
        CheckpointError: if the heads of a list are not alike, or hold one head twice; if heads do
            not fit the backbone, or no backbone can be rebuilt; when called, if a head that scores
            the places of one patch grid is given another.
        ConfigError: for an unknown ``tta``, one that does not fit the patch, tiles or weights that
            do not fit, heads that disagree about a task, or options of heads for a detector.
        DataError: when called, if a prediction is not finite.

    Examples:
        >>> from dinoneck import PatchMeanHead, Task, load_backbone
        >>> head = PatchMeanHead(64, [Task("total", unit="g")])
        >>> predictor = Predictor(head, load_backbone("dinoneck_tiny"), tile=32, overlap=16)
        >>> [result] = predictor(torch.rand(3, 32, 96), maps="patch")
        >>> result["maps"]["total"].shape
        (1, 2, 6)
        >>> predictor
        Predictor(1 head: total (regression, g); backbone='dinoneck_tiny', tile=(32, 32), overlap=16)
    """

    def __init__(
        self,
        heads: Heads | Mapping[str, Heads],
        backbone: Backbone | None = None,
        tta: TTA | None = None,
        device: torch.device | str | None = None,
        *,
        tile: TileSize = "auto",
        overlap: int | float | None = None,
        weights: Sequence[float] | str | os.PathLike[str] | None = None,
        blur: int | None = None,
        bits: int | None = None,
        preprocess: Preprocessing | None = None,
        batch_size: int | None = None,
        probe: bool = False,
        revision: str | None = None,
        runtime: AnyRuntime | None = None,
        dtype: torch.dtype | str | None = None,
        interval: float | None = None,
    ) -> None:
        backbone_runtime = None if runtime is None else check_backbone_runtime(runtime)
        if dtype is not None:
            dtype = float_dtype(dtype)
        _check_options(tta=tta, batch_size=batch_size, preprocess=preprocess)
        self._keyed = isinstance(heads, Mapping)
        weights_file: str | os.PathLike[str] | None = None
        shares: Sequence[float] | None = None
        if isinstance(weights, str | os.PathLike):
            weights_file = weights
        else:
            shares = weights
        if self._keyed and shares is not None:
            raise ConfigError(
                "weights are for a list of heads; heads of a mapping are not averaged: leave "
                "weights out"
            )
        keys = [*heads] if isinstance(heads, Mapping) else []
        options_of_heads = {
            "tta": None if tta == "none" else tta,
            "weights": shares,
            "blur": blur,
            "preprocess": preprocess,
            "probe": probe or None,
            "dtype": dtype,
            "interval": interval,
        }
        if names_detector(heads, has_weights=weights_file is not None):
            check_detector_options(keys, **options_of_heads)  # before its file is fetched

        # all heads are read before a backbone is loaded
        opened = open_heads(heads, revision, weights_file)
        self._passes: list[Pass] = []
        self.detector: BoxDetector | None = None
        detector_file = find_detector(opened)
        if detector_file is not None:
            check_detector_options(keys, **options_of_heads)
            self.detector = open_detector(
                detector_file,
                backbone,
                device=None if device is None else local_device(device),
                runtime=backbone_runtime,
                bits=bits,
            )
            self.detector.use_tiles(tile, overlap)
            self._detector_options = {} if batch_size is None else {"batch_size": batch_size}
            self.revisions = _revisions([detector_file])
            self.tasks: Any = ()
            return

        stated_tiling = None if tile == "auto" else tiling_of(tile, overlap)
        if stated_tiling is not None and interval is not None:
            raise _no_intervals_on_tiles(interval, stated_tiling)
        self._has_stated_tiles = stated_tiling is not None
        stated_tile = tile if stated_tiling is None else stated_tiling.tile
        loaded: dict[str, list[LoadedHead]] = {}
        for key, sources in opened.items():
            loaded[key] = [LoadedHead.load(source) for source in sources]
        self.revisions = _revisions(chain.from_iterable(opened.values()))
        if tile == "auto" and overlap:
            _check_trained_on_tiles(loaded, overlap)
        heads_of_passes = _group_into_passes(
            loaded,
            backbone=None if backbone is None else checked_backbone(backbone),
            weights=shares,
            preprocess=preprocess,
            blur=blur,
            bits=bits,
            tta=tta,
            tile=stated_tile,
            overlap=overlap,
            probe=probe,
            dtype=dtype,
        )

        for shared, heads_of_pass in heads_of_passes.items():
            pass_backbone = _placed_backbone(
                shared.backbone, device=device, dtype=dtype, runtime=backbone_runtime
            )
            backbone_pass = _make_pass(
                shared,
                heads_of_pass,
                backbone=pass_backbone,
                batch_size=batch_size,
                interval=interval,
            )
            self._passes.append(backbone_pass)

        tasks = {key: self._pass_of(key).tasks[key] for key in loaded}
        self.tasks = tasks if self._keyed else tasks[NO_KEY]
        if interval is not None:
            self._check_interval(interval, tasks)
        if self._keyed:
            logger.info(
                "%s: passes of the backbone: %d", counted(len(loaded), "key"), len(self.passes)
            )

    def __repr__(self) -> str:
        if self.detector is not None:
            labels = counted(len(self.detector.classes), "label")
            return f"Predictor(detector of {labels}; backbone={self.detector.backbone_name!r})"
        if not self._keyed:
            return f"Predictor({self._describe(NO_KEY)})"
        lines = [f"  {key}: {self._describe(key)}\n" for key in self.tasks]
        return f"Predictor(\n{''.join(lines)})"

    def _check_interval(self, interval: float, tasks: Mapping[str, Sequence[Task]]) -> None:
        """Check that all heads hold intervals of this level that hold for the predictions.

        Args:
            interval: the level.
            tasks: key -> what its heads predict.

        Raises:
            ConfigError: naming a task without them, or the levels that there are.
        """
        for key in tasks:
            its_pass = self._pass_of(key)
            head = its_pass.heads[key].head
            _check_views_of_intervals(head.predicted, its_pass.tta, interval)
            _check_intervals_are_shared(head, interval)
        check_level(list(chain.from_iterable(tasks.values())), interval, "the head")

    def _describe(self, key: str) -> str:
        """The heads of a key and the pass that they read, on one line."""
        its_pass = self._pass_of(key)
        head = its_pass.heads[key].head
        num_heads = len(head.heads) if isinstance(head, HeadEnsemble) else 1
        tasks = describe_tasks(head.predicted)

        settings = [f"backbone={its_pass.backbone.name!r}"]
        if its_pass.preprocess.size is not None:
            settings.append(f"size={its_pass.preprocess.size}")
        if its_pass.tta != "none":
            settings.append(f"tta={its_pass.tta!r}")
        tiling = its_pass.object_tiling if key in its_pass.object_tasks else its_pass.tiling
        if tiling is not None:
            settings.append(f"tile={tiling.tile}, overlap={tiling.stated_overlap}")
        return f"{counted(num_heads, 'head')}: {tasks}; {', '.join(settings)}"

    @property
    def passes(self) -> list[Pass]:
        """The passes of the backbones; heads that are not in a mapping have one.

        Raises:
            ConfigError: of a detector.
        """
        if self.detector is not None:
            raise ConfigError(
                "this predictor holds a detector, which predicts boxes when it is called; maps, "
                "views, tiles, stored tokens and batches of prepared images are of heads"
            )
        return self._passes

    @property
    def backbone(self) -> Backbone:
        """The backbone of the first pass, with the layers that its heads read."""
        return self.passes[0].backbone

    @property
    def preprocess(self) -> Preprocessing:
        """How the first pass prepares images that are not cut into tiles, or the detector all images."""
        if self.detector is not None:
            return self.detector.preprocess
        return self.passes[0].preprocess

    @property
    def tta(self) -> str:
        """The name of the views that the first pass averages."""
        return self.passes[0].tta

    @property
    def views(self) -> Views:
        """The views that the first pass averages."""
        return self.passes[0].views

    @property
    def tiling(self) -> Tiling | None:
        """How large images are cut into tiles; None = they are not."""
        return self.passes[0].tiling

    @property
    def batch_size(self) -> int:
        """Images or tiles per call of the backbone; on a CPU, images or tiles times views."""
        return self.passes[0].batch_size

    @property
    def device(self) -> torch.device:
        """Where the first pass, or the detector, runs."""
        if self.detector is not None:
            return self.detector.device
        return self.passes[0].device

    @property
    def modules(self) -> list[torch.nn.Module]:
        """The backbones and the heads of all passes."""
        modules: list[torch.nn.Module] = []
        for backbone_pass in self.passes:
            modules += backbone_pass.modules
        return modules

    @torch.no_grad()
    def __call__(
        self,
        images: ImageInput | Sequence[ImageInput],
        maps: Maps | None = None,
        probabilities: bool = False,
        min_score: float | None = None,
    ) -> list[dict[str, Any]]:
        """Predict.

        Args:
            images: paths, PIL images, arrays or tensors, see :class:`dinoneck.data.Preprocessing`;
                one, several, or a batch (B, 3, H, W). Or the path of a folder: all images in it and
                below, sorted, without masks that lie beside them. A folder in a list is refused,
                since rows could not be told apart.
            maps: ``"patch"`` adds ``"maps": {task: (dim, rows, cols)}``, the prediction of every
                patch, in the orientation of the image; and ``"gate": (rows, cols)``, where heads
                have one: what they looked at, adding up to one; its weights in the pixels of the
                image are those of :meth:`ImagePrediction.image_gate` (see :meth:`predictions`).
                ``"image"`` gives the maps in the
                pixels of the upright image: (dim, height, width) float32, NaN where the prepared
                image does not show them; for a segmentation (height, width) int64, class indices,
                there -1. Pixels up to one patch beyond what it shows, such as the remainder that
                ``crop`` cuts off, have the value of the nearest cell.
            probabilities: with ``maps="image"``, the probabilities of the classes instead of their
                indices.
            min_score: leave out objects or boxes of a lower score; None = as recorded in the heads,
                or of a detector in its file.

        Returns:
            Of a detector what :meth:`dinoneck.detection.Detector.predict` returns: per image
            ``boxes`` in its own pixels, ``scores``, ``labels``, ``names``, and ``masks`` of some.
            Else one dict per image: task name -> a float, or an array (dim,) for tasks of several
            outputs and compositions; for dense and segmentation tasks the mean of what ``maps``
            shows over the cells that hold image, not padding, of which a task with ``from_map`` is
            one. For tasks of instances and panoptic segments what ``predict_instances`` or
            ``predict_panoptic`` of the head returns, as arrays, in the pixels of the upright image;
            of a predictor with ``tile`` the masks are
            :class:`dinoneck.inference.CroppedMasks`, and the segments of an image
            that is cut int32.
            With an ``interval`` rows of heads also have ``"interval": {task: (low, high)}``, within
            ``minimum`` and ``maximum``, arrays (dim,) for tasks of several outputs (NaN for outputs
            without an interval), and ``"set": {task: labels}`` of classifications, the likeliest
            first.
            With a mapping of heads: key -> such a dict. The rows of a folder begin with
            ``"image"``, the path of the image, which begins with that of the folder.

        Raises:
            ConfigError: for other ``maps``, and for a folder if a task, or a key of the mapping, is
                called ``"image"``.
            DataError: if an image cannot be read, a folder holds none, or a prediction is not
                finite.
        """
        check_maps(maps, probabilities)
        if self.detector is not None:
            if maps is not None:
                raise ConfigError(f"maps is {maps!r}, and a detector has no maps; leave maps out")
            return self.detector.predict(images, min_score=min_score, **self._detector_options)
        called = self._list_images(images)
        called.check_names(self._names_in_rows())
        results = []
        for by_key in self._predict_list(called.images, maps is not None, min_score):
            rows = {key: of_key.row(maps, probabilities) for key, of_key in by_key.items()}
            results.append(self._in_shape_of_heads(rows))
        return called.named(results)

    def one(
        self,
        image: ImageInput,
        maps: Maps | None = None,
        probabilities: bool = False,
        min_score: float | None = None,
    ) -> dict[str, Any]:
        """Predict from one image.

        Args:
            image: a path, a PIL image, an array or a tensor.
            maps: as for calling.
            probabilities: as for calling.
            min_score: as for calling.

        Returns:
            The dict that calling returns in a list.

        Raises:
            DataError: for a folder, a list or a batch: calling takes them.

        Examples:
            >>> from dinoneck import PatchMeanHead, Task, load_backbone
            >>> head = PatchMeanHead(64, [Task("total", unit="g")])
            >>> predictor = Predictor(head, load_backbone("dinoneck_tiny"))
            >>> sorted(predictor.one(torch.rand(3, 32, 48)))
            ['total']
        """
        check_one_image(image)
        [row] = self([image], maps, probabilities, min_score)
        return row

    def predictions(
        self, images: ImageInput | Sequence[ImageInput], min_score: float | None = None
    ) -> list[Any]:
        """Predict, and make rows and maps in the pixels of images later, one image at a time.

        Args:
            images: as for calling.
            min_score: as for calling.

        Returns:
            One :class:`dinoneck.inference.ImagePrediction` per image; with a mapping of heads: key
            -> one.
        """
        called = self._list_images(images)
        predicted = self._predict_list(called.images, with_maps=True, min_score=min_score)
        results = []
        for path, by_key in zip(called.paths, predicted, strict=True):
            for of_key in by_key.values():
                of_key.image = path
            results.append(self._in_shape_of_heads(by_key))
        return results

    @torch.no_grad()
    def predict(
        self,
        store: FeatureStore,
        ids: Sequence[str] | None = None,
        maps: Literal["patch"] | None = None,
    ) -> list[dict[str, Any]]:
        """Predict from stored tokens: what the images give, to the rounding of the store.

        Args:
            store: made with the backbone and the preprocessing of the heads; it holds the views
                that are averaged.
            ids: of images, in the order of the rows; None = all of the store.
            maps: ``"patch"`` as for images; a store does not record the sizes of images.

        Returns:
            One dict per id, as for images.

        Raises:
            CheckpointError: if the tokens are of another backbone, or of images that were prepared
                differently.
            ConfigError: for tiles, for other maps, for ids that are a text, if it is not a store,
                or if a view is not stored.
            DataError: if an id is not in the store.
        """
        for backbone_pass in self.passes:
            if backbone_pass.tiling is None:
                continue
            if self._has_stated_tiles:
                raise ConfigError("stored tokens are of whole images; leave tile= out")
            height, width = backbone_pass.tiling.tile
            raise ConfigError(
                f"the head was trained on tiles of {height}x{width} px, and stored tokens are of "
                "whole images; predict from the images"
            )
        if not hasattr(store, "backbone_record"):
            raise ConfigError(
                f"the store is a {type(store).__name__}; expected a FeatureStore "
                "(FeatureStore.open): for images call the predictor, predictor(images)"
            )
        if isinstance(ids, str):
            raise ConfigError(f"ids are {ids!r}; expected a list of them: [{ids!r}]")
        if maps not in (None, "patch"):
            raise ConfigError(
                f"maps is {maps!r}; expected None or 'patch': a store does not record the sizes of "
                "images, for maps='image' call the predictor with the images"
            )
        self._check_weights()
        for backbone_pass in self.passes:
            backbone_pass.check_store(store)
        store_ids = store.ids if ids is None else list(ids)
        with_maps = maps == "patch"
        results: list[dict[str, Any]] = []
        with evaluating(*self.modules):
            for batch in grids_of(store, store_ids, self.batch_size):
                by_pass = []
                for backbone_pass in self.passes:
                    by_pass.append(backbone_pass.predict_stored(store, batch, with_maps))
                for by_key in _join_passes(by_pass):
                    rows = {key: of_key.to_row(with_maps) for key, of_key in by_key.items()}
                    results.append(self._in_shape_of_heads(rows))
        return results

    def prepare(self, image: ImageInput) -> list[PassImage]:
        """Decode an image and prepare it for every pass.

        For several images threads do this while the model predicts those before.
        """
        decoded: dict[tuple[int, int | None], Tensor] = {}
        prepared = []
        for backbone_pass in self.passes:
            channels = backbone_pass.preprocess.channels
            bits = backbone_pass.preprocess.bits
            if (channels, bits) not in decoded:
                decoded[channels, bits] = read_channels(image, channels=channels, bits=bits)
            prepared.append(backbone_pass.prepare(decoded[channels, bits]))
        return prepared

    def expect_images(self, count: int) -> None:
        """State how many images will be predicted in several calls; the runtime ``auto`` decides by that.

        A call states its own number where no larger one was stated. Images whose prepared size
        depends on the image are not counted.

        Args:
            count: of images.

        Raises:
            ConfigError: if it is negative.
        """
        check_minimum(0, count=count)
        if self.detector is not None:
            self.detector.expect_images(count)
            return
        backbones: dict[int, Backbone] = {}
        counts: dict[int, Counter[Size]] = {}
        for backbone_pass in self.passes:
            backbone_pass.num_expected = count
            backbone = plain_backbone(backbone_pass.backbone)
            # passes of the same weights share their programs
            weights = id(backbone.adapter)
            backbones[weights] = backbone
            counts.setdefault(weights, Counter()).update(backbone_pass.count_images(count))
        for weights, backbone in backbones.items():
            backbone.expect_images(counts[weights])

    def predict_prepared(
        self,
        images: Sequence[Sequence[PassImage]],
        with_maps: bool,
        min_score: float | None = None,
    ) -> list[dict[str, Any]]:
        """Return what calling returns for images of :meth:`prepare`, which may have different sizes.

        Args:
            images: each as it is prepared for all passes.
            with_maps: with maps per patch.
            min_score: as for calling.

        Raises:
            BackboneError: if the backbone's weights changed after construction.
        """
        self._check_weights()
        maps: Maps | None = "patch" if with_maps else None
        results = []
        for by_key in self._predict_batch(images, with_maps, min_score):
            rows = {key: of_key.row(maps) for key, of_key in by_key.items()}
            results.append(self._in_shape_of_heads(rows))
        return results

    def recipe(self, image: ImageInput, key: str = NO_KEY) -> Preprocessing:
        """Return how an image is prepared; for the heads of a key in a mapping."""
        return self._pass_of(key).recipe(read_image_size(image))

    def picture(self, image: ImageInput) -> Tensor:
        """Return an image as its maps lie on it: (3, H, W) RGB in 0 ... 1, sized, cropped or padded, but not cut."""
        return self.passes[0].recipe(read_image_size(image)).picture(image)

    def _list_images(self, images: ImageInput | Sequence[ImageInput]) -> CalledImages:
        """The images of a call, if the backbones still are those of the heads."""
        called = CalledImages.of_call(images)
        self._check_weights()
        return called

    def _check_weights(self) -> None:
        """Compare the backbones' weights with those at construction, see :meth:`Pass.check_weights`."""
        for backbone_pass in self.passes:
            backbone_pass.check_weights()

    def _names_in_rows(self) -> list[str]:
        """The names at the top of a row: keys of the user's mapping, or tasks and compositions."""
        if self._keyed:
            return [*self.tasks]
        return [task.name for task in self.tasks]

    def _predict_list(
        self, images: Sequence[ImageInput], with_maps: bool, min_score: float | None
    ) -> Iterator[dict[str, ImagePrediction]]:
        """Yield the predictions for every image by keys; threads prepare images ahead of the model."""
        if self.passes[0].num_expected < len(images):
            self.expect_images(len(images))
        prepared = in_threads(self.prepare, images)
        batch = list(islice(prepared, self.batch_size))
        while batch:
            predictions = self._predict_batch(batch, with_maps, min_score)
            for backbone_pass in self.passes:
                backbone_pass.num_expected -= len(batch)
            yield from predictions
            batch = list(islice(prepared, self.batch_size))

    @torch.no_grad()
    def _predict_batch(
        self, images: Sequence[Sequence[PassImage]], with_maps: bool, min_score: float | None
    ) -> list[dict[str, ImagePrediction]]:
        """The predictions for a batch of prepared images by keys."""
        by_pass = []
        for i, backbone_pass in enumerate(self.passes):
            pass_images = [image[i] for image in images]
            with evaluating(*backbone_pass.modules):
                predicted = backbone_pass.predict_images(pass_images, with_maps, min_score)
            of_pass = []
            for image, predictions in zip(pass_images, predicted, strict=True):
                of_pass.append(_image_predictions(backbone_pass, image.size, predictions))
            by_pass.append(of_pass)
        return _join_passes(by_pass)

    def _pass_of(self, key: str) -> Pass:
        """The pass that the heads of a key read."""
        return next(backbone_pass for backbone_pass in self.passes if key in backbone_pass.heads)

    def _in_shape_of_heads(self, by_key: Mapping[str, Any]) -> Any:
        """The results in the shape of the user's heads: key -> result for a mapping, else the only result."""
        if self._keyed:
            return {key: by_key[key] for key in self.tasks}  # in the order of the mapping
        return by_key[NO_KEY]


def _check_options(
    *, tta: str | None, batch_size: int | None, preprocess: Preprocessing | None
) -> None:
    """Raise a ConfigError for views, a batch size or a preprocessing that are none."""
    if tta is not None and tta not in VIEWS:
        raise ConfigError(f"tta is {tta!r}; expected one of {', '.join(VIEWS)}, or None")
    if batch_size is not None:
        check_minimum(1, batch_size=normal(int, batch_size, "batch_size"))
    if preprocess is not None and not isinstance(preprocess, Preprocessing):
        raise ConfigError(
            f"preprocess is a {type(preprocess).__name__}; expected a dinoneck.data.Preprocessing, "
            "such as backbone.preprocess.changed(size=...)"
        )


def _no_intervals_on_tiles(interval: float, tiling: Tiling) -> ConfigError:
    return ConfigError(
        f"interval is {interval:g}, and tile is {tiling.tile}: intervals hold for images like "
        "those of the training, not for what tiles are joined to; leave one of them out"
    )


def _placed_backbone(
    backbone: Backbone,
    *,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
    runtime: Runtime | None,
) -> Backbone:
    """The backbone on a device, in a dtype and with a runtime; None leaves each as it is."""
    if device is not None:
        backbone = backbone.to(local_device(device))
    if dtype is not None:
        backbone = backbone.to(dtype=dtype)
    if runtime is not None:
        backbone = backbone.with_runtime(runtime)
    return backbone


def _make_pass(
    shared: _PassKey,
    heads: Mapping[str, LoadedHead],
    *,
    backbone: Backbone,
    batch_size: int | None,
    interval: float | None,
) -> Pass:
    """The pass of some heads, which move to the device of its backbone.

    Args:
        shared: what the heads have in common.
        heads: by their keys.
        backbone: on the device, in the dtype and with the runtime that are asked for.
        batch_size: as of :class:`Predictor`.
        interval: as there.
    """
    check_patch(shared.preprocess.patch_size, backbone.adapter.patch_size)
    device = next(backbone.parameters()).device
    for loaded_head in heads.values():
        loaded_head.head.to(device)
    object_tiling = tiling_for_objects(
        shared.tile, shared.overlap, longest_box=_longest_box(heads.values())
    )
    return Pass(
        heads=heads,
        backbone=backbone,
        preprocess=shared.preprocess,
        tta=shared.tta,
        tiling=tiling_of(shared.tile, shared.overlap),
        object_tiling=object_tiling,
        batch_size=batch_size,
        interval=interval,
    )


def _image_predictions(
    backbone_pass: Pass, size: Size, predictions: Mapping[str, Prediction]
) -> dict[str, ImagePrediction]:
    """The predictions of a pass for an image, with what their maps in its pixels are made of."""
    recipe = backbone_pass.recipe(size)
    of_image = {}
    for key, prediction in predictions.items():
        of_image[key] = ImagePrediction(
            prediction=prediction,
            head=backbone_pass.heads[key].head,
            views=backbone_pass.views,
            size=size,
            preprocess=recipe,
        )
    return of_image


def _join_passes(by_pass: Sequence[Sequence[Mapping[str, T]]]) -> list[dict[str, T]]:
    """What all passes give for every image, by the keys of the heads."""
    joined = []
    for of_image in zip(*by_pass, strict=True):
        by_key: dict[str, T] = {}
        for of_pass in of_image:
            by_key.update(of_pass)
        joined.append(by_key)
    return joined


def _longest_box(heads: Iterable[LoadedHead]) -> float | None:
    """The longest side of an object in the trainings of heads; None if no file states it."""
    stated = []
    for head in heads:
        boxes = head.trained_boxes
        if boxes is not None and boxes.longest_box is not None:
            stated.append(boxes.longest_box)
    return max(stated, default=None)


def _revisions(sources: Iterable[HeadCheckpoint | torch.nn.Module]) -> dict[str, str]:
    """Hub repository -> the commit that its heads are of."""
    revisions = {}
    for source in sources:
        if isinstance(source, HeadCheckpoint) and source.revision is not None:
            revisions[source.source] = source.revision
    return revisions


def _group_into_passes(
    loaded: Mapping[str, Sequence[LoadedHead]],
    *,
    backbone: Backbone | None,
    weights: Sequence[float] | None,
    preprocess: Preprocessing | None,
    blur: int | None,
    bits: int | None,
    tta: str | None,
    tile: TileSize,
    overlap: int | float | None,
    probe: bool,
    dtype: torch.dtype | None,
) -> dict[_PassKey, dict[str, LoadedHead]]:
    """Merge and check the heads of every key, and put those together that can share a pass.

    Without a backbone, heads with one record share the backbone that is rebuilt from it, for the
    dtype.
    """
    rebuilt: dict[str, Backbone] = {}
    groups: dict[_PassKey, dict[str, LoadedHead]] = {}
    for key, heads in loaded.items():
        head = merge_heads(heads, weights)
        check_loaded_alike(heads, compare_inputs=preprocess is None, compare_views=tta is None)
        head_backbone = backbone
        if head_backbone is None:
            # layers and norm are applied per head
            record = without(head.backbone_record or {}, "layers", "norm", "probe", "runtime")
            record_text = spelling(record)
            if record_text not in rebuilt:
                rebuilt[record_text] = _rebuild_backbone(heads[0], dtype)
            head_backbone = rebuilt[record_text]
        check_pairing(heads, head_backbone, probe=probe)
        recipe = head.preprocess if preprocess is None else preprocess
        if any(trained_heads(head.head)):
            unwrapped = plain_backbone(head_backbone)
            _check_trained_on(head, unwrapped)
            if preprocess is None:
                recipe = _images_of(head, unwrapped)
        # a head without a recipe shares the pass of one that records the backbone's
        recipe = recipe or head_backbone.preprocess
        head_tile, head_overlap = _tile_of(head, tile, overlap)
        shared = _PassKey(
            backbone=head_backbone,
            preprocess=recipe.changed(blur=blur, bits=bits),
            tta=head.views if tta is None else tta,
            tile=head_tile,
            overlap=head_overlap,
        )
        groups.setdefault(shared, {})[key] = head
    return groups


def _check_trained_on_tiles(
    loaded: Mapping[str, Sequence[LoadedHead]], overlap: int | float
) -> None:
    """Raise a ConfigError for the overlap of tiles where no head was trained on tiles."""
    for head in chain.from_iterable(loaded.values()):
        if head.trained_boxes is not None and head.trained_boxes.tile is not None:
            return
    raise no_tiles_to_overlap(overlap)


def _check_views_of_intervals(tasks: Sequence[Task], views: str, interval: float) -> None:
    """Raise a ConfigError for intervals that were measured with other views than these."""
    for task in tasks:
        if has_intervals_of_other_views(task, views):
            measured = calibrated_views(task)
            raise ConfigError(
                f"interval is {interval:g}, and the intervals of {task.name!r} are of predictions from "
                f"the views {measured!r}, not from {views!r}: pass tta={measured!r} (--tta {measured}), "
                "or leave interval out (--interval)"
            )


def _check_intervals_are_shared(head: Head, interval: float) -> None:
    """Raise a ConfigError for an ensemble without intervals, as those of its heads differ."""
    has_intervals = any(task.interval_levels for task in head.predicted)
    names = tasks_of_different_intervals(head)
    if names and not has_intervals:
        raise ConfigError(
            f"interval is {interval:g}, and the heads that are averaged for {names[0]!r} hold different "
            "intervals, which do not hold for the mean: predict with one of the heads, or leave "
            "interval out (--interval)"
        )


def _tile_of(
    head: LoadedHead, tile: TileSize, overlap: int | float | None
) -> tuple[int | tuple[int, int] | None, int | float | None]:
    """The size of the tiles of a head and their overlap; of ``"auto"`` those of its training.

    An overlap is one of tiles: a head that was not trained on tiles has none.
    """
    if tile != "auto":
        return tile, overlap
    boxes = head.trained_boxes
    if boxes is None or boxes.tile is None:
        return None, None
    if overlap is None:
        overlap = boxes.overlap
    return boxes.tile, overlap


def _rebuild_backbone(head: LoadedHead, dtype: torch.dtype | None) -> Backbone:
    """The backbone that a head's file names, with the LoRA weights that travel with it.

    It is in the recorded dtype, or in ``dtype`` where that is finer.
    """
    if head.checkpoint is None:
        raise CheckpointError(
            f"backbone is None, and a {type(head.head).__name__} does not name the one that it "
            "needs; pass it, or save the head with it",
            step="pairing",
        )
    record = head.checkpoint.meta["backbone"]
    return head.checkpoint.load_backbone(dtype=finer_dtype(dtype, record))


def _check_trained_on(head: LoadedHead, backbone: Backbone) -> None:
    """Compare the tokens that the heads of a key were trained on with those that they get."""
    as_read = head.completed_from(backbone)
    record = {**backbone.record(), "layers": as_read.layers, "norm": as_read.norm}
    before_merge = fingerprint_before_merge(backbone.adapter)
    check_tokens_of(head.head, record, before_merge=before_merge)


def _images_of(head: LoadedHead, backbone: Backbone) -> Preprocessing | None:
    """How the images of the heads of a key were prepared in training; None = as the backbone's are."""
    images = images_for(head.head, backbone, head.preprocess)
    check_images_of(head.head, images)
    return images
