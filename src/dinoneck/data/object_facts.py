"""What is read of boxes, masks of objects and panoptic segments; and how they are drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import ImageColor

from dinoneck.data.boxes import BoxImages
from dinoneck.data.fact_words import counts_in_words, in_digits, quartiles, quartiles_in_words
from dinoneck.data.listed_images import ListedImages, object_map_of
from dinoneck.data.sheet import Box, Colour, Regions, Sample
from dinoneck.images.colours import box_colours
from dinoneck.text import counted

Array = np.ndarray[Any, Any]
_CROWD = "#808080"  # colour of crowd regions


def object_facts(parts: Sequence[ListedImages]) -> dict[str, Any]:
    """Return the facts of the objects in the parts of a data set, of the same classes."""
    first = parts[0]
    numbers = np.array([number for images in parts for number in images.numbers.values()])
    counts = Counter[str](dict.fromkeys(first.classes, 0))
    for images in parts:
        counts.update(images.class_counts)
    facts: dict[str, Any] = {
        "kind": _kind_of(first),
        "count": int(numbers.sum()),
        "per_image": quartiles(numbers),
        "images_without": int((numbers == 0).sum()),
        "classes": {name: counts[name] for name in first.classes},
        "stuff": [first.classes[label] for label in sorted(first.stuff)],
        "crowds": sum(images.num_crowds for images in parts),
    }
    if isinstance(first, BoxImages):
        boxes = [images for images in parts if isinstance(images, BoxImages)]
        corners = np.concatenate(
            [images.corners(i).numpy() for images in boxes for i in range(len(images))]
        )
        facts["width"] = quartiles(corners[:, 2] - corners[:, 0])
        facts["height"] = quartiles(corners[:, 3] - corners[:, 1])
        # parts of one file have its counts each
        of_files = {images.file: images for images in boxes}.values()
        facts["cut"] = sum(images.clipped for images in of_files)
        facts["masks_beyond_boxes"] = sum(images.masks_beyond_boxes for images in of_files)
        facts["rectangles"] = sum(images.rectangles for images in of_files)
    return facts


def left_out_of(parts: Sequence[ListedImages]) -> dict[str, int]:
    """Return what was left out of the files of a data set, in words with the first one -> how many."""
    left_out = Counter[str]()
    for images in {images.file: images for images in parts}.values():
        for reason, count in images.skipped.items():
            first = images.first_skipped.get(reason, "").removeprefix(f"{images.file}: ")
            left_out[f"{reason} (the first: {first})" if first else reason] += count
        left_out.update(images.left_out)
    return dict(left_out)


def _kind_of(images: ListedImages) -> str:
    if not isinstance(images, BoxImages):
        return "segments"
    return "objects with masks" if images.masks else "boxes"


def object_lines(facts: Mapping[str, Any]) -> list[str]:
    """Return the lines of objects: how many, of which classes, how large, and what is cut."""
    noun = facts["kind"]
    per_image = facts["per_image"]
    number = ", ".join(f"{name} {in_digits(per_image[name])}" for name in ("min", "median", "max"))
    things = {name: n for name, n in facts["classes"].items() if name not in facts["stuff"]}
    stuff = {name: n for name, n in facts["classes"].items() if name in facts["stuff"]}
    lines = [
        f"{noun}: {facts['count']}, per image {number}; {counted(facts['images_without'], 'image')} "
        "without",
        f"{'1 class' if len(things) == 1 else f'{len(things)} classes'}: {counts_in_words(things)}",
    ]
    if stuff:
        lines.append(f"stuff: {counts_in_words(stuff)}")
    if "width" in facts:
        lines.append(f"width of boxes in px: {quartiles_in_words(facts['width'])}")
        lines.append(f"height of boxes in px: {quartiles_in_words(facts['height'])}")
    line = counted(facts["crowds"], "crowd region")
    if "cut" in facts:
        cut = "1 box" if facts["cut"] == 1 else f"{facts['cut']} boxes"
        line += f", {cut} cut at the edge of the image"
        if facts["masks_beyond_boxes"]:
            line += f", {counted(facts['masks_beyond_boxes'], 'mask')} beyond its box by over 2 px"
        if facts["rectangles"]:
            line += f", {counted(facts['rectangles'], 'mask')} that is the box"
    return [*lines, line]


def object_samples(
    parts: Mapping[str, ListedImages], places: Sequence[tuple[str, int]]
) -> tuple[list[Sample], dict[str, Colour]]:
    """Return images with what is drawn of their objects, and class -> its colour.

    Args:
        parts: name of a part -> its images.
        places: of the images: the part, and the number in it.
    """
    classes = next(iter(parts.values())).classes
    colours = box_colours(classes)
    samples = []
    for part, i in places:
        images = parts[part]
        counts = Counter(classes[label] for label in images.labels_of(i))
        text = ", ".join(f"{name} {count}" for name, count in counts.items()) or "no objects"
        samples.append(_sample(images, i, [part, text] if part else [text], colours))
    legend: dict[str, Colour] = {
        name: ImageColor.getrgb(colour)[:3] for name, colour in colours.items()
    }
    return samples, legend


def _sample(
    images: ListedImages, i: int, texts: Sequence[str], colours: Mapping[str, str]
) -> Sample:
    path = images.paths[i]
    if isinstance(images, BoxImages) and not images.masks:
        boxes = []
        for corners, label in zip(images.corners(i).tolist(), images.labels_of(i), strict=True):
            name = images.classes[label]
            boxes.append(Box(corners, name, colours[name]))
        boxes += [Box(corners, "crowd", _CROWD) for corners in images.crowd_corners(i)]
        return Sample(path, path.name, texts, size=images.sizes[i], boxes=boxes)

    def overlay() -> Regions:
        drawn = object_map_of(images, i)
        rgb = [ImageColor.getrgb(colours[name])[:3] for name in images.classes]
        of_objects: list[Colour] = [rgb[entry.label] for entry in drawn.objects]
        return Regions(drawn.rows, of_objects, hatched=not isinstance(images, BoxImages))

    return Sample(path, path.name, texts, overlay=overlay)
