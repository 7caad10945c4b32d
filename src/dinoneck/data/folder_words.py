"""What the names of folders and files say: images, masks, or a part of a data set such as train.

All words are in lower case.
"""

from __future__ import annotations

import re

_IMAGES = {"image", "images", "img", "imgs", "jpegimages"}
_PHOTOS = {"photo", "photos", "picture", "pictures", "pics"}

IMAGE_FOLDERS = _IMAGES | {"leftimg8bit"}
"""Names of folders that are never a class, next to another folder."""
IMAGE_WORDS = _IMAGES | {"leftimg"}
"""Words in the names of folders of images, see :func:`words_of`."""
VAGUE_WORDS = _PHOTOS | {"rgb", "input", "inputs", "raw", "data"}
"""Words in the names of folders that hold images, or are a class of them."""
VAGUE_WORDS |= {"original", "originals", "orig", "frame", "frames"}
MASK_WORDS = {"mask", "masks", "label", "labels", "annotation", "annotations", "annot", "annots"}
"""Words in the names of folders, and at the end of the names of files, of masks."""
MASK_WORDS |= {"anno", "gt", "gtfine", "gtcoarse", "groundtruth", "truth", "seg", "segs", "segm"}
MASK_WORDS |= {"segmentation", "segmentations", "semantic", "trimap", "trimaps", "target"}
MASK_WORDS |= {"targets", "labelids", "labeltrainids"}
MASK_KINDS = {"color", "colors", "colour", "colours", "rgb", "viz", "vis", "instanceids", "ids"}
"""Words after one for masks at the end of the names of files: ``0_gtFine_color.png``."""
GENERIC_FOLDERS = _IMAGES | _PHOTOS | {"data", "dataset", "datasets", "upload", "uploads"}
"""Folders that say nothing about which images they hold, as annotation tools and exports have them."""
GENERIC_FOLDERS |= {"file", "files", "media", "default", "obj_train_data", ".."}

_PART_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
PARTS = frozenset(_PART_NAMES)
"""The parts of a data set: train, val and test."""
PART_WORDS = {"dev", "eval", "evaluation", "holdout", "heldout", "unlabeled", "unlabelled"}
"""Words in the names of folders that are parts of a data set, not classes of it."""
PART_WORDS |= {"trainval", "fold", "folds", "split", "part", "cv"}
PART_WORDS |= {name for names in _PART_NAMES.values() for name in names}
OUTPUT_WORDS = {"prediction", "predictions", "pred", "preds", "overlay", "overlays", "output"}
"""Words in the names of folders that programs write, which are no class beside class folders."""
OUTPUT_WORDS |= {"outputs", "result", "results", "thumb", "thumbs", "thumbnail", "thumbnails"}


def part_of(name: str) -> str | None:
    """Return the part of a data set that a folder is named after, in any case; None = it is not."""
    for part, names in _PART_NAMES.items():
        if name.lower() in names:
            return part
    return None


def words_of(name: str) -> set[str]:
    """Return the words of a name: ``SegmentationClass_png`` -> segmentation, class, png."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)}
