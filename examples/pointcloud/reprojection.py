"""Colour re-projection error: do a frame's points have the colour of the pixels that they land on in another image?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dinoneck.points import Links, PointProjector
from dinoneck.points.camera_check import Reading, read_as
from examples.pointcloud.frames import Frames, cloud_of


@dataclass(frozen=True)
class PairError:
    """What becomes of one frame's points in another's image.

    Attributes:
        source: name of the frame whose points they are.
        target: name of the frame they are projected into.
        reading: of the poses of both.
        in_bounds: share of the points that land in the image.
        agree: share of those, where depth is known, that lie at the depth measured there.
        links: how many do.
        grey_levels: median over those of the difference of colour, mean of R, G, B, 0 ... 255; None without any.
    """

    source: str
    target: str
    reading: Reading
    in_bounds: float
    agree: float
    links: int
    grey_levels: float | None


def pair_error(
    frames: Frames,
    source: int,
    target: int,
    reading: Reading = "camera_to_world",
    projector: PointProjector | None = None,
) -> PairError:
    """Project all points of one frame into another; only those at the depth measured there count.

    Both poses are read the same way, so a wrong reading moves points and camera alike: some land in the image, often
    more than with the right one, but hardly any at the right depth, and those on another colour.

    Args:
        frames: of one scene.
        source: index of the frame whose depth and colours the points have.
        target: index of the frame they are projected into.
        reading: of the poses.
        projector: finds what is visible; None = 5 cm or 2 %.
    """
    other = replace(frames, cameras=read_as(frames.cameras, reading))
    points, colours, _ = cloud_of(other, source)
    at = slice(target, target + 1)
    links = (projector or PointProjector()).link(points, other.cameras[at], frames.depth[at], None)
    stats = links.stats()
    return PairError(
        source=frames.names[source],
        target=frames.names[target],
        reading=reading,
        in_bounds=float(stats["in_bounds"]),
        agree=float(stats["agree"]),
        links=len(links),
        grey_levels=grey_levels(links, colours, frames.images[at]),
    )


def grey_levels(links: Links, colours: Tensor, images: Tensor) -> float | None:
    """Return the median difference, in grey levels, between points' colours and the pixels they are linked with.

    Args:
        links: of the points with V views.
        colours: (N, 3), 0 ... 255.
        images: uint8 (V, 3, height, width).

    Returns:
        None without links.
    """
    if not len(links):
        return None
    height, width = links.image_size
    found = torch.zeros(len(links), 3)
    for view in range(links.num_views):
        own = links.view == view
        place = (links.uv[own].float() + 0.5) / torch.tensor([width, height]) * 2 - 1
        image = images[view : view + 1].float()
        sampled = F.grid_sample(image, place[None, None], align_corners=False, padding_mode="border")
        found[own] = sampled[0, :, 0].mT
    difference = (found - colours[links.point].float()).abs().mean(1)
    return float(difference.median())
