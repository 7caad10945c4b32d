"""Tokens of a backbone that runs at every step, and is trained along where it is trainable."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dinoneck.backbones.backbone import Backbone, checked_backbone
from dinoneck.data.decoding import ImageInput, read_pixels
from dinoneck.data.loading import in_threads
from dinoneck.data.preprocessing import Preprocessing
from dinoneck.devices import send
from dinoneck.errors import DataError
from dinoneck.tokens import Tokens
from dinoneck.training.sources import Transform, Views, apply_transform, looked_up


class LiveTokens:
    """A token source that runs the backbone for every batch; LoRA weights and unfrozen blocks get gradients.

    :func:`dinoneck.training.fit` trains what is trainable in the backbone along with the head. For a frozen backbone
    take :class:`dinoneck.training.MemoryTokens` or a feature store: the same tokens, computed once.

    Args:
        backbone: with ``add_lora`` or ``unfreeze_last`` called before.
        images: the images, one per id; all must come to one size.
        ids: one per image; None = their numbers.
        preprocess: how images are prepared; None = the backbone's own.
        transform: applied to every training image each time: a torchvision v2 transform, one of albumentations, or a
            function of a uint8 tensor (3, height, width); before the resize. What it draws depends on the seed and the
            epoch of the run. Tasks with maps are refused, as it may move pixels. Validation and predictions take the
            images as they are.

    Raises:
        DataError: if ids and images differ in number, or an id stands twice.
        ConfigError: if ``backbone`` is not a Backbone.

    Examples:
        >>> import torch
        >>> from dinoneck import load_backbone
        >>> backbone = load_backbone("dinoneck_tiny").unfreeze_last(1)
        >>> source = LiveTokens(backbone, torch.rand(3, 3, 32, 48), ["a", "b", "c"])
        >>> source.batch(["b", "a"]).sequence[0].requires_grad
        True
    """

    def __init__(
        self,
        backbone: Backbone,
        images: Sequence[ImageInput],
        ids: Sequence[str] | None = None,
        preprocess: Preprocessing | None = None,
        transform: Transform | None = None,
    ) -> None:
        self.backbone, self.transform = checked_backbone(backbone), transform
        self._inputs = images if isinstance(images, Sequence) else list(images)
        self.ids = tuple(str(i) for i in range(len(images))) if ids is None else tuple(ids)
        self.preprocess = preprocess or backbone.preprocess
        self._rows = {image_id: row for row, image_id in enumerate(self.ids)}
        if len(self._rows) != len(self.ids) or len(images) != len(self.ids) or not self.ids:
            raise DataError(
                f"{len(self.ids)} ids ({len(self._rows)} different) for {len(images)} images; expected one id each"
            )

    @property
    def views(self) -> Views | None:
        """With a transform its views, one per seed of its random numbers, the image as it is first; else None."""
        return None if self.transform is None else Views(2**32)

    def decoded(self, ids: Sequence[str], views: Sequence[int] | None = None) -> list[Tensor]:
        """Return the images as far as no random numbers are needed, so that threads may do it ahead of their step.

        Those that a transform will change are decoded, others prepared up to the normalisation.

        Raises:
            DataError: if an id or a view is unknown, or an image cannot be used.
        """
        rows, views = looked_up(self._rows, ids), [0] * len(ids) if views is None else views
        if self.transform is None and any(views):
            raise DataError(f"live tokens without a transform have view 0 only; asked for {sorted(set(views))}")

        def read(item: tuple[int, int]) -> Tensor:
            row, view = item
            return read_pixels(self._inputs[row]) if view else self.preprocess.fitted(self._inputs[row])

        return [*in_threads(read, [*zip(rows, views, strict=True)])]

    def prepared(self, decoded: Sequence[Tensor], views: Sequence[int] | None = None) -> Tensor:
        """Return images of :meth:`decoded`, transformed and prepared: (B, 3, H, W) float32 on the CPU.

        Raises:
            DataError: if the transform returns no image, or the images come to different sizes.
        """
        if views is not None and self.transform is not None:
            pairs = [*zip(decoded, views, strict=True)]
            # one after another, as they draw from the global generators
            drawn = [(apply_transform(self.transform, image, view) if view else image, view) for image, view in pairs]
            decoded = [*in_threads(lambda pair: self.preprocess.fitted(pair[0]) if pair[1] else pair[0], drawn)]
        return self.preprocess.finished(decoded).images

    def batch(self, ids: Sequence[str], views: Sequence[int] | None = None) -> Tokens:
        """Return the Tokens of these images, with a graph where the backbone is trainable and gradients are on.

        Raises:
            DataError: if an id or a view is unknown, or an image cannot be used.
        """
        prepared = self.prepared(self.decoded(ids, views), views)
        [images] = send([prepared], next(self.backbone.parameters()).device)
        tokens: Tokens = self.backbone(images)
        return tokens


def trained_backbone(source: object) -> Backbone | None:
    """Return the backbone that is trained along with a head on this source; None if there is none."""
    if isinstance(source, LiveTokens) and not source.backbone.frozen:
        return source.backbone
    return None
