"""Predictor: images in, values in natural units out; several heads, views and tiles over one backbone."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import torch
from torch import Tensor

from dinoneck.backbones.adapter import evaluating
from dinoneck.backbones.backbone import Backbone, checked_backbone, plain_backbone
from dinoneck.backbones.weight_hashes import fingerprint_before_merge
from dinoneck.checkpoint.compare import check_patch
from dinoneck.checkpoint.format import spelling
from dinoneck.checkpoint.origins import (
    check_images_of,
    check_tokens_of,
    images_for,
    trained_heads,
)
from dinoneck.checks import check_minimum
from dinoneck.codec import normal
from dinoneck.data.bands import read_channels
from dinoneck.data.decoding import ImageInput, as_list, in_threads, read_image_size
from dinoneck.data.preprocessing import Preprocessing, Size
from dinoneck.devices import local_device
from dinoneck.errors import CheckpointError, ConfigError, DataError
from dinoneck.heads.ensemble import HeadEnsemble
from dinoneck.inference.passes import Pass, PassImage, grids_of
from dinoneck.inference.predictions import ImagePrediction, Maps, Prediction, check_maps
from dinoneck.inference.sources import (
    Heads,
    Reading,
    check_alike,
    check_pairing,
    load,
    opened,
    without,
)
from dinoneck.inference.tiles import Tiling
from dinoneck.inference.views import TTA, VIEWS
from dinoneck.store.reading import StoredTokens
from dinoneck.tasks import describe_tasks
from dinoneck.text import counted

if TYPE_CHECKING:
    from dinoneck.store.feature_store import FeatureStore

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Predictor:
    """Predicts from images with one or several heads.

    A list of heads is an ensemble: its predictions are averaged in original units, as are the views
    of test-time augmentation. Its heads are alike: one type, one configuration (apart from fitted
    transforms) and one backbone record; :meth:`dinoneck.HeadEnsemble.from_heads` averages others. A
    mapping runs heads next to each other: those with the same backbone, preprocessing and views
    share one pass of the backbone, others get their own; a log line states how many passes run.
    Every image is decoded once.

    All views of equal size go through the backbone as one batch (on a CPU, where large passes cost
    more than they save, as many as ``batch_size`` allows). Given modules are used, not copied: they
    are put into eval mode for the call and back after it.

    Threads may call one predictor at once, and several predictors that share a backbone or heads:
    each call returns what it returns alone, bit for bit, and the modules get their modes back when
    the last of the calls ends. Do not train, move or convert these modules meanwhile, or switch
    LoRA off. Threads that ask for single images share passes through a
    :class:`dinoneck.inference.MicroBatcher`.

    Images larger than ``tile`` are cut into tiles, which are predicted one by one as images of the
    heads' size. Maps fade into each other where tiles overlap, with weights that add up to one at
    every cell. The value of a ``density`` task that adds up is the sum of the whole map: every cell
    counts exactly once, so it is the mass or count of the whole image. Tasks of kind ``dense``,
    ``segmentation`` and ``density`` with ``aggregate="mean"``, regressions with ``from_map`` and
    PatchMeanHead's regressions are the mean of the whole map. Composed parts add up to the total of
    the whole image. Pooled regressions, ratios and classes are the mean of the tiles' predictions,
    weighted by the area each stands for: a regression in grams per image gives **grams per tile**.
    ``minimum`` is applied to the whole image's value too. A tile knows nothing of its neighbours.

    Args:
        heads: a head file, the folder of a training (its ``head.safetensors``), a folder of head
            files, a published head (``"dinov2_vits14_nyu_dpt"``), a hub repository
            (``"user/name"``), a HeadCheckpoint or a head module; a list of them; or a mapping of a
            key to any of these.
        backbone: the backbone; None rebuilds it from the record in the files. It is checked against
            them.
        tta: ``"none"`` (the image alone), ``"flip4"`` (original, left-right, up-down, both) or
            ``"d6"`` (those and two quarter turns). None = as the files of the heads record, which
            must agree; modules record none.
        device: where to run; None = where the backbone is.
        tile: (height, width) in pixels of the image, one number for both, or None: no tiles. Where
            the heads have a size of their own, a tile is brought to it: give the size of the
            training images at their own resolution, so that things look as large as they did. Else
            it is a multiple of the patch. A image that fits a tile is predicted as without tiles;
            one that is smaller on one side only is not cut along it and shows less than a tile
            there.
        overlap: by how much tiles overlap at least: an int in the same pixels, or a float, the
            share of a tile (0.25).
        weights: one number of 0 or more per head of a list, in the order given (files of a folder
            sorted by name); None = equal.
        blur: odd kernel of a Gaussian blur with fixed sigma, instead of that of the files; None
            keeps it.
        bits: how many bits images of 16 bits use, 8 ... 16, instead of that of the files, see
            :class:`dinoneck.data.Preprocessing`; None keeps it.
        preprocess: how images are prepared, instead of the records of the files.
        batch_size: images or tiles per pass; on a CPU, views of images or tiles. None = 8, on a CPU
            4.
        probe: let what the backbone does decide whether it is the heads', in place of names and
            digests: for the same weights in another library or dtype, see
            :meth:`dinoneck.HeadCheckpoint.check_backbone`.
        revision: branch, tag or commit of the hub repositories among the heads.

    Attributes:
        revisions: hub repository -> the commit its heads are of; empty for local heads.
        passes: the passes of the backbone. ``backbone``, ``preprocess``, ``tta`` and ``views`` are
            those of the first.
        tasks: what is predicted; of a mapping key -> tasks.
        tta: the name of the views that are averaged.

    Raises:
        BackboneError: when called, if the backbone's weights changed meanwhile, or LoRA was
            switched off or on.
        CheckpointError: if the heads of a list are not alike, or hold one head twice; if heads do
            not fit the backbone, or no backbone can be rebuilt; when called, if a head that scores
            the places of one patch grid is given another.
        ConfigError: for an unknown ``tta``, one that does not fit the patch, tiles or weights that
            do not fit, or heads that disagree about a task.
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
        tile: int | tuple[int, int] | None = None,
        overlap: int | float = 0,
        weights: Sequence[float] | None = None,
        blur: int | None = None,
        bits: int | None = None,
        preprocess: Preprocessing | None = None,
        batch_size: int | None = None,
        probe: bool = False,
        revision: str | None = None,
    ) -> None:
        if tta is not None and tta not in VIEWS:
            raise ConfigError(f"tta is {tta!r}; expected one of {', '.join(VIEWS)}, or None")
        if batch_size is not None:
            check_minimum(1, batch_size=normal(int, batch_size, "batch_size"))
        if preprocess is not None and not isinstance(preprocess, Preprocessing):
            raise ConfigError(
                f"preprocess is a {type(preprocess).__name__}; expected a dinoneck.data.Preprocessing, "
                "such as backbone.preprocess.changed(size=...)"
            )
        if tile is None and overlap != 0:
            raise ConfigError(f"overlap is {overlap!r}, but tile is None; give the size of a tile")
        self.tiling = None if tile is None else Tiling(cast("tuple[int, int]", tile), overlap)
        self._keyed = isinstance(heads, Mapping)
        if self._keyed and weights is not None:
            raise ConfigError(
                "weights are for a list of heads; heads of a mapping are not averaged: leave "
                "weights out"
            )
        members = {key: [load(one) for one in own] for key, own in opened(heads, revision).items()}
        files = [
            item.checkpoint
            for own in members.values()
            for item in own
            if item.checkpoint is not None
        ]
        self.revisions = {file.source: file.revision for file in files if file.revision is not None}
        backbones: dict[str | None, Backbone] = (
            {} if backbone is None else {None: checked_backbone(backbone)}
        )
        # what heads of one pass have in common -> the heads
        groups: dict[Any, dict[str, Reading]] = {}
        for key, own in members.items():
            reading = _together(own, weights)
            check_alike(own, inputs=preprocess is None, views=tta is None)
            record = None
            if backbone is None:
                record = spelling(without(reading.backbone or {}, "layers", "norm", "probe"))
                backbones[record] = backbones.get(record) or _rebuilt(own[0])
            check_pairing(own, backbones[record], probe)
            images = preprocess or reading.inputs
            if any(trained_heads(reading.head)):
                plain = plain_backbone(backbones[record])
                check_tokens_of(
                    reading.head,
                    _record_for(reading, plain),
                    before_merge=fingerprint_before_merge(plain.adapter),
                )
                if preprocess is None:
                    images = images_for(reading.head, plain, reading.inputs)
                    check_images_of(reading.head, images)
            groups.setdefault((record, images, tta or reading.views), {})[key] = reading
        self.passes: list[Pass] = []
        for (record, recipe, views), readings in groups.items():
            base = (
                backbones[record] if device is None else backbones[record].to(local_device(device))
            )
            prepare = (recipe or base.preprocess).changed(blur=blur, bits=bits)
            check_patch(prepare.patch_size, base.adapter.patch_size)
            for reading in readings.values():
                reading.head.to(next(base.parameters()).device)
            self.passes.append(
                Pass(
                    heads=readings,
                    backbone=base,
                    preprocess=prepare,
                    tta=views,
                    tiling=self.tiling,
                    batch_size=batch_size,
                )
            )
        one = self.passes[0]
        self.backbone, self.preprocess, self.device = one.backbone, one.preprocess, one.device
        self.tta, self.views, self.batch_size = one.tta, one.views, one.batch_size
        predicted = {
            key: own.head.predicted for one in self.passes for key, own in one.heads.items()
        }
        self.tasks: Any = {key: predicted[key] for key in members} if self._keyed else predicted[""]
        if self._keyed:
            logger.info(
                "%s: passes of the backbone: %d", counted(len(members), "key"), len(self.passes)
            )

    def __repr__(self) -> str:
        if not self._keyed:
            return f"Predictor({self._describe('')})"
        lines = [f"  {key}: {self._describe(key)}\n" for key in self.tasks]
        return f"Predictor(\n{''.join(lines)})"

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
        if its_pass.tiling is not None:
            settings.append(f"tile={its_pass.tiling.tile}, overlap={its_pass.tiling.overlap}")
        return f"{counted(num_heads, 'head')}: {tasks}; {', '.join(settings)}"

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
            images: paths, PIL images, arrays or tensors, see :class:`dinoneck.data.Preprocessing`.
            maps: ``"patch"`` adds ``"maps": {task: (dim, rows, cols)}``, the prediction of every
                patch, in the orientation of the image; and ``"gate": (rows, cols)``, where heads
                have one: what they looked at, adding up to one. ``"image"`` gives the maps in the
                pixels of the upright image: (dim, height, width) float32, NaN where the prepared
                image does not show them; for a segmentation (height, width) int64, class indices,
                there -1.
            probabilities: with ``maps="image"``, the probabilities of the classes instead of their
                indices.
            min_score: leave out objects of a lower score; None = as recorded in the heads.

        Returns:
            One dict per image: task name -> a float, or an array (dim,) for tasks of several
            outputs and compositions; for dense and segmentation tasks the mean of what ``maps``
            shows over the cells that hold image, not padding, of which a task with ``from_map`` is
            one. For tasks of instances and panoptic segments what ``predict_instances`` or
            ``predict_panoptic`` of the head returns, as arrays, in the pixels of the upright image.
            With a mapping of heads: key -> such a dict.
        """
        check_maps(maps, probabilities)
        image_list = self._check_images(images)
        results = []
        for by_key in self._predict_list(image_list, maps is not None, min_score):
            rows = {key: of_key.row(maps, probabilities) for key, of_key in by_key.items()}
            results.append(self._of_user(rows))
        return results

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
        image_list = self._check_images(images)
        predicted = self._predict_list(image_list, with_maps=True, min_score=min_score)
        return [self._of_user(by_key) for by_key in predicted]

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
            ConfigError: for tiles, for other maps, for ids that are a text, if it is not a store, or if a view is
                not stored.
            DataError: if an id is not in the store.
        """
        if self.tiling is not None:
            raise ConfigError("stored tokens are of whole images; leave tile= out")
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
        for backbone_pass in self.passes:
            backbone_pass.check_weights()
            backbone_pass.check_store(store)
        store_ids = store.ids if ids is None else ids
        with_maps = maps == "patch"
        results: list[dict[str, Any]] = []
        with evaluating(*self.modules):
            for batch in grids_of(store, store_ids, self.batch_size):
                by_pass = []
                for backbone_pass in self.passes:
                    by_pass.append(backbone_pass.predict_stored(store, batch, with_maps))
                for by_key in _join_passes(by_pass):
                    rows = {key: of_key.row(with_maps) for key, of_key in by_key.items()}
                    results.append(self._of_user(rows))
        return results

    @property
    def modules(self) -> list[torch.nn.Module]:
        """The backbones and the heads of all passes."""
        modules: list[torch.nn.Module] = []
        for backbone_pass in self.passes:
            modules += backbone_pass.modules
        return modules

    def prepare(self, image: ImageInput) -> list[PassImage]:
        """Decode an image and prepare it for every pass; called by threads."""
        decoded: dict[tuple[int, int | None], Tensor] = {}
        prepared = []
        for backbone_pass in self.passes:
            channels = backbone_pass.preprocess.channels
            bits = backbone_pass.preprocess.bits
            if (channels, bits) not in decoded:
                decoded[channels, bits] = read_channels(image, channels=channels, bits=bits)
            prepared.append(backbone_pass.prepare(decoded[channels, bits]))
        return prepared

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
        """
        maps: Maps | None = "patch" if with_maps else None
        results = []
        for by_key in self._predict_batch(images, with_maps, min_score):
            rows = {key: of_key.row(maps) for key, of_key in by_key.items()}
            results.append(self._of_user(rows))
        return results

    def recipe(self, image: ImageInput, key: str = "") -> Preprocessing:
        """Return how an image is prepared; for the heads of a key in a mapping."""
        return self._pass_of(key).recipe(read_image_size(image))

    def picture(self, image: ImageInput) -> Tensor:
        """Return an image as its maps lie on it: (3, H, W) RGB in 0 ... 1, sized, cropped or padded, but not cut."""
        return self.passes[0].recipe(read_image_size(image)).picture(image)

    def _check_images(self, images: ImageInput | Sequence[ImageInput]) -> list[ImageInput]:
        """The images as a list, if the backbones still are those of the heads."""
        if isinstance(images, StoredTokens):
            raise DataError(
                "images are a store of tokens; predict from it with predictor.predict(store, ids)"
            )
        for backbone_pass in self.passes:
            backbone_pass.check_weights()
        return as_list(images)

    def _predict_list(
        self, images: Sequence[ImageInput], with_maps: bool, min_score: float | None
    ) -> Iterator[dict[str, ImagePrediction]]:
        """Yield the predictions for every image by keys; threads prepare images ahead of the model."""
        prepared = in_threads(self.prepare, images)
        batch = list(islice(prepared, self.batch_size))
        while batch:
            yield from self._predict_batch(batch, with_maps, min_score)
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

    def _of_user(self, by_key: Mapping[str, Any]) -> Any:
        """One entry per key, in the order of the user's mapping; without a mapping the only entry itself."""
        if self._keyed:
            return {key: by_key[key] for key in self.tasks}
        return by_key[""]


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


def _together(loaded: Sequence[Reading], weights: Sequence[float] | None) -> Reading:
    """The heads of a key as one ensemble; one ensemble, or a head that predicts objects, stays as it is."""
    first = loaded[0]
    if (
        len(loaded) == 1
        and weights is None
        and (first.objects or isinstance(first.head, HeadEnsemble))
    ):
        return first
    inputs = next((item.inputs for item in loaded if item.inputs is not None), None)
    return first._replace(
        head=HeadEnsemble.from_heads([item.head for item in loaded], weights),
        inputs=inputs,
        mask_records=tuple(record for item in loaded for record in item.mask_records),
        files=tuple(file for item in loaded for file in item.files),
    )


def _record_for(reading: Reading, backbone: Backbone) -> dict[str, Any]:
    """The record of a backbone, with the layers and the norm that the heads of a key are given."""
    own = reading.on(backbone)
    return {**backbone.record(), "layers": own.layers, "norm": own.norm}


def _rebuilt(item: Reading) -> Backbone:
    """The backbone that a head's file names, with the LoRA weights that travel with it."""
    if item.checkpoint is None:
        raise CheckpointError(
            f"backbone is None, and a {type(item.head).__name__} does not name the one that it "
            "needs; pass it, or save the head with it",
            step="pairing",
        )
    return item.checkpoint.load_backbone()
