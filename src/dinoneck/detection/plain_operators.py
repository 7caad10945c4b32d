"""What runtimes of ONNX files compute differently from torch, in operators that they compute alike.

Bilinear reading of maps (``GridSample``) as gathers, and non-maximum suppression as comparisons.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dinoneck.errors import CheckpointError

# of torch's grid_sampler: bilinear, zeros outside of the map, corners of the map at the outer edges
# of its cells
_DEFORMABLE_ATTENTION = (0, 0, False)
_PREFIX = "suppression:"  # of the names of nodes and their values


def sample_by_gathers(
    maps: Tensor, points: Tensor, mode: int, padding: int, align_corners: bool
) -> Tensor:
    """Return what ``grid_sample`` reads bilinearly, with zeros outside, from the rows of a table of cells.

    A decomposition of ``aten.grid_sampler`` for :meth:`torch.export.ExportedProgram.run_decompositions`.
    Positions and shares are computed in float32 or wider: float16 has no position between the cells
    of a map of 100 cells a side to a hundredth.

    Args:
        maps: (B, C, rows, cols).
        points: (B, h, w, 2), x and y, from -1 at the left and upper edge to 1 at the other edges.
        mode: 0, bilinear.
        padding: 0, zeros.
        align_corners: False.

    Shape:
        (B, C, h, w).

    Raises:
        CheckpointError: for another mode, padding or place of the corners.
    """
    settings = (mode, padding, align_corners)
    if settings != _DEFORMABLE_ATTENTION:
        raise CheckpointError(
            f"this detector calls grid_sample with mode, padding, align_corners = {settings}; "
            f"expected {_DEFORMABLE_ATTENTION}, bilinear with zeros outside: others have no "
            "export",
            step="config",
        )
    batch, channels, rows, cols = maps.shape
    _, height, width, _ = points.shape
    wide = points.to(torch.promote_types(points.dtype, torch.float32))
    # where the points lie, in cells; the centre of the first cell is 0: (B, h, w)
    x = ((wide[..., 0] + 1) * cols - 1) / 2
    y = ((wide[..., 1] + 1) * rows - 1) / 2
    left = x.floor()
    top = y.floor()
    right_share = x - left
    lower_share = y - top
    # a border of zeros around the map, one cell wide, is what lies outside; its first cell is -1
    padded = F.pad(maps, (1, 1, 1, 1))
    cells = padded.permute(0, 2, 3, 1).reshape(-1, channels)  # (B (rows + 2) (cols + 2), C)
    images = torch.arange(batch, device=maps.device)
    first_cells = (images * ((rows + 2) * (cols + 2)))[:, None, None]
    # integers are clamped, not positions, so that NaN reads a cell as well
    left_cols = (left.long() + 1).clamp(0, cols + 1)
    right_cols = (left.long() + 2).clamp(0, cols + 1)
    upper_rows = (top.long() + 1).clamp(0, rows + 1)
    lower_rows = (top.long() + 2).clamp(0, rows + 1)
    corners = (
        (upper_rows, left_cols, (1 - lower_share) * (1 - right_share)),
        (upper_rows, right_cols, (1 - lower_share) * right_share),
        (lower_rows, left_cols, lower_share * (1 - right_share)),
        (lower_rows, right_cols, lower_share * right_share),
    )
    values = torch.zeros((), dtype=wide.dtype, device=maps.device)
    for corner_rows, corner_cols, share in corners:
        numbers = first_cells + corner_rows * (cols + 2) + corner_cols  # (B, h, w)
        read = cells.index_select(0, numbers.flatten())  # (B h w, C)
        values = values + read * share.flatten()[:, None]
    return values.to(maps.dtype).reshape(batch, height, width, channels).permute(0, 3, 1, 2)


def add_suppression(
    proto: Any, outputs: Sequence[str], *, iou_threshold: float, num_detections: int
) -> None:
    """Replace the outputs of an ONNX model, candidates, by the detections that are left of them.

    Greedy, as in torchvision: the candidate with the highest score is taken, those of its class
    that overlap it by more than the threshold fall out, and so on. Every detection adds 20 nodes of
    plain operators. All shapes are fixed and nothing loops, unlike in ``NonMaxSuppression``, whose
    number of results varies.

    Args:
        proto: with the outputs boxes (n, 4) XYXY, scores (n,) and labels (n,); it is changed.
        outputs: names of the new boxes, scores and labels.
        iou_threshold: intersection over union of boxes.
        num_detections: how many are taken, at most n. Rows after the last candidate have score 0.
    """
    from onnx import helper

    suppression = Suppression(proto.graph, iou_threshold)
    best_scores = []
    best_candidates = []
    for _ in range(num_detections):
        score, best = suppression.take_best()
        best_scores.append(score)
        best_candidates.append(best)
    detections = suppression.gather(best_scores, best_candidates, outputs)

    _, score_values, label_values = proto.graph.output
    dtype = score_values.type.tensor_type.elem_type
    label_dtype = label_values.type.tensor_type.elem_type
    boxes, scores, labels = detections
    del proto.graph.output[:]
    proto.graph.output.extend(
        [
            helper.make_tensor_value_info(boxes, dtype, [num_detections, 4]),
            helper.make_tensor_value_info(scores, dtype, [num_detections]),
            helper.make_tensor_value_info(labels, label_dtype, [num_detections]),
        ]
    )


class Suppression:
    """The nodes of a graph that take one candidate after the other.

    Args:
        graph: with the outputs boxes (n, 4) XYXY, scores (n,) and labels (n,); nodes are added.
        iou_threshold: intersection over union above which a candidate falls out.
    """

    def __init__(self, graph: Any, iou_threshold: float) -> None:
        from onnx import helper

        self._graph = graph
        self._boxes, self._scores, self._labels = (output.name for output in graph.output)
        score_type = graph.output[1].type.tensor_type
        num_candidates = score_type.shape.dim[0].dim_value
        dtype = helper.tensor_dtype_to_np_dtype(score_type.elem_type)
        self._one = self._constant("one", np.array([1]))
        self._zero = self._constant("zero", np.array(0.0, dtype))
        smallest = np.array(np.finfo(dtype).tiny, dtype)
        self._smallest = self._constant("smallest", smallest)
        self._threshold = self._constant("threshold", np.array(iou_threshold, dtype))
        self._numbers = self._constant("numbers", np.arange(num_candidates))
        self._first_axis = self._constant("first_axis", np.array([0]))
        # upper left and lower right corners (2, n), and areas (n,)
        columns = self._node("Transpose", self._boxes, perm=[1, 0])
        self._low, self._high = self._nodes("Split", columns, num_results=2, num_outputs=2)
        sides = self._node("Sub", self._high, self._low)
        self._areas = self._node("ReduceProd", sides, self._first_axis, keepdims=0)
        # (n,); 0 of those that were taken or have fallen out
        self._remaining = self._scores

    def take_best(self) -> tuple[str, str]:
        """Add the nodes that take the best candidate, and return the names of its score and number, (1,) each."""
        score, best = self._nodes("TopK", self._remaining, self._one, num_results=2, axis=0)

        # intersection over union of all candidates with it
        best_low = self._node("Gather", self._low, best, axis=1)
        best_high = self._node("Gather", self._high, best, axis=1)
        best_area = self._node("Gather", self._areas, best, axis=0)
        shared_low = self._node("Max", self._low, best_low)
        shared_high = self._node("Min", self._high, best_high)
        shared_extents = self._node("Sub", shared_high, shared_low)
        shared_sides = self._node("Relu", shared_extents)
        intersections = self._node("ReduceProd", shared_sides, self._first_axis, keepdims=0)
        both_areas = self._node("Add", self._areas, best_area)
        unions = self._node("Sub", both_areas, intersections)
        # two boxes without area share 0 of 0, and runtimes compare what is no number differently
        divisors = self._node("Max", unions, self._smallest)
        ious = self._node("Div", intersections, divisors)

        # it falls out by its number: a box without area does not overlap itself
        best_label = self._node("Gather", self._labels, best, axis=0)
        overlaps = self._node("Greater", ious, self._threshold)
        is_of_class = self._node("Equal", self._labels, best_label)
        is_suppressed = self._node("And", overlaps, is_of_class)
        is_best = self._node("Equal", self._numbers, best)
        falls_out = self._node("Or", is_suppressed, is_best)
        self._remaining = self._node("Where", falls_out, self._zero, self._remaining)
        return score, best

    def gather(
        self, scores: Sequence[str], candidates: Sequence[str], outputs: Sequence[str]
    ) -> Sequence[str]:
        """Add the nodes that gather boxes, scores and labels of the taken candidates, and return their names."""
        boxes, all_scores, labels = outputs
        rows = self._node("Concat", *candidates, axis=0)
        self._add("Gather", [self._boxes, rows], [boxes], axis=0)
        self._add("Concat", scores, [all_scores], axis=0)
        self._add("Gather", [self._labels, rows], [labels], axis=0)
        return outputs

    def _constant(self, name: str, values: np.ndarray[Any, Any]) -> str:
        from onnx import numpy_helper

        full_name = f"{_PREFIX}{name}"
        self._graph.initializer.append(numpy_helper.from_array(values, full_name))
        return full_name

    def _node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        [result] = self._nodes(operator, *inputs, num_results=1, **attributes)
        return result

    def _nodes(self, operator: str, *inputs: str, num_results: int, **attributes: Any) -> list[str]:
        number = len(self._graph.node)
        results = [f"{_PREFIX}{operator}_{number}_{i}" for i in range(num_results)]
        self._add(operator, inputs, results, **attributes)
        return results

    def _add(
        self, operator: str, inputs: Sequence[str], results: Sequence[str], **attributes: Any
    ) -> None:
        from onnx import helper

        name = f"{_PREFIX}{operator}_{len(self._graph.node)}"
        self._graph.node.append(helper.make_node(operator, inputs, results, name, **attributes))
