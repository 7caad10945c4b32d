"""Faults of masks: the mask head, its loss, objects, and maps in the pixels of the image."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_HEAD = "unit/heads/test_mask.py::"
_SIZE = "unit/inference/test_image_resolution.py::"
_OBJECTS = "unit/detection/test_train_instances.py::test_small_objects_lie_on_top_and_crowd_regions_are_unknown"
_QUALITY = "unit/detection/test_panoptic.py::test_panoptic_quality_is_its_definition"
_TRUE = "unit/detection/test_panoptic.py::test_true_segments_are_perfect_and_missing_classes_count_for_nothing"
_PLACES = f"{_SIZE}test_a_map_of_places_gives_every_pixel_its_own_place"
MASKS = (
    Mutant(
        "Columns of patches get the positions of rows.",
        "heads/mask.py",
        "    across = x[None, :, None].expand",
        "    across = x.flip(0)[None, :, None].expand",
        f"{_HEAD}test_positions_are_those_of_dinov3",
    ),
    Mutant(
        "Queries are turned like the first patch.",
        "heads/mask.py",
        "nn.functional.pad(angle, (0, 0, prefix, 0))",
        "torch.cat([angle[:1].expand(prefix, -1), angle])",
        f"{_HEAD}test_the_head_is_its_formula",
    ),
    Mutant(
        "The shares of classes do not add up to one.",
        "heads/mask.py",
        "(sums / sums.sum(dim=1, keepdim=True)).log()",
        "sums.log()",
        f"{_HEAD}test_the_head_is_its_formula",
    ),
    Mutant(
        "The shares of classes are resampled in the place of masks.",
        "heads/mask.py",
        "return self._outputs(classes, resample(masks, size))",
        "return super().at_size(outputs, size)",
        f"{_HEAD}test_masks_are_resampled_before_they_are_shares",
    ),
    Mutant(
        "Prefix tokens are taken for patches.",
        "heads/mask.py",
        "x[:, count + tokens.num_prefix_tokens :]",
        "x[:, count : count + tokens.grid.count]",
        f"{_HEAD}test_the_head_is_its_formula",
    ),
    Mutant(
        "Queries without a mask count as much as the others.",
        "losses/mask.py",
        "NO_OBJECT = 0.1",
        "NO_OBJECT = 1.0",
        f"{_HEAD}test_the_loss_is_that_of_mask2former_over_all_cells",
    ),
    Mutant(
        "Queries and masks are paired in their order.",
        "losses/mask.py",
        "queries, order = (torch.as_tensor(own, device=costs.device) for own in found)",
        "queries, order = (torch.arange(len(own), device=costs.device) for own in found)",
        f"{_HEAD}test_the_loss_is_that_of_mask2former_over_all_cells",
    ),
    Mutant(
        "Ignored cells take part in the dice loss.",
        "losses/mask.py",
        "    shares = logits.sigmoid() * weight\n",
        "    shares = logits.sigmoid()\n",
        f"{_HEAD}test_cells_without_weight_count_for_nothing",
    ),
    Mutant(
        "Two queries of one object are two instances.",
        "heads/instances.py",
        "        if not same[i, kept].any():",
        "        if True:",
        f"{_HEAD}test_duplicates_and_empty_queries_are_no_instances",
    ),
    Mutant(
        "Things of one class are one segment.",
        "heads/instances.py",
        "                if label in things or label not in ids:",
        "                if label not in ids:",
        f"{_HEAD}test_stuff_is_one_segment_and_things_are_several",
    ),
    Mutant(
        "Masks of mirrored views stay mirrored.",
        "inference/passes.py",
        '(":" in name and output.ndim == 4)',
        "False",
        f"{_SIZE}test_masks_are_resampled_before_they_are_shares",
    ),
    Mutant(
        "Shares of masks are resampled to the image, not masks.",
        "inference/predictor.py",
        " if RAW in row else None",
        " if False else None",
        f"{_SIZE}test_masks_are_resampled_before_they_are_shares",
    ),
    Mutant(
        "Pixels are looked up at their corners.",
        "inference/resolution.py",
        "(torch.arange(pixels, dtype=torch.float64) + 0.5) * resized",
        "torch.arange(pixels, dtype=torch.float64) * resized",
        _PLACES,
    ),
    Mutant(
        "Objects keep the places of the prepared image, padding included.",
        "inference/resolution.py",
        "round(side * scale) for side, scale in zip(placement.corner",
        "0 * round(side * scale) for side, scale in zip(placement.corner",
        "unit/inference/test_image_resolution.py::test_objects_lie_where_the_image_lies",
    ),
    Mutant(
        "The padding around an image is forgotten.",
        "inference/resolution.py",
        "* resized / pixels + corner",
        "* resized / pixels",
        _PLACES,
    ),
    Mutant(
        "Probabilities are resampled in the place of logits.",
        "inference/resolution.py",
        "        grid = grid.clamp_min(torch.finfo(torch.float32).tiny).log()\n",
        "        grid = grid + 0.0\n",
        f"{_SIZE}test_classes_are_resampled_as_logits",
    ),
    Mutant(
        "Crowd regions are background.",
        "data/coco.py",
        "ids.append(-first if own.crowd else",
        "ids.append(0 if own.crowd else",
        _OBJECTS,
    ),
    Mutant(
        "Large objects hide small ones.",
        "data/boxes.py",
        "-masks[k].sum()",
        "masks[k].sum()",
        _OBJECTS,
    ),
    Mutant(
        "What is found in a crowd region is wrong.",
        "data/boxes.py",
        '"iscrowd": int(crowd)}',
        '"iscrowd": 0}',
        _OBJECTS,
    ),
    Mutant(
        "Stuff is counted as objects.",
        "data/coco.py",
        "(x.crowd or x.label in self.stuff)",
        "x.crowd",
        _TRUE,
    ),
    Mutant(
        "All things of a class are one.",
        "data/coco.py",
        "counts[own.label] += not (own.crowd or",
        "counts[own.label] *= not (own.crowd or",
        _TRUE,
    ),
    Mutant(
        "Colours of segments are read from blue to red.",
        "data/coco.py",
        "np.array([1, 256, 256**2])",
        "np.array([256**2, 256, 1])",
        _QUALITY,
    ),
    Mutant(
        "Segments that hardly overlap are pairs.",
        "detection/evaluation.py",
        "(iou > 0.5)",
        "(iou > 0.3)",
        _QUALITY,
    ),
    Mutant(
        "Unknown pixels make segments worse.",
        "detection/evaluation.py",
        "- shared - unknown[:, None])",
        "- shared)",
        _QUALITY,
    ),
    Mutant(
        "Crowd regions of any class hide wrong segments.",
        "detection/evaluation.py",
        "(shared * same) @ (ids < UNKNOWN)",
        "shared @ (ids < UNKNOWN)",
        _QUALITY,
    ),
    Mutant(
        "A segment that is partly unknown is never wrong.",
        "detection/evaluation.py",
        "2 * (unknown + crowd) <= areas",
        "unknown + crowd == 0",
        _QUALITY,
    ),
    Mutant(
        "Panoptic segments of low scores are kept.",
        "heads/instances.py",
        "(scores >= least)",
        "(scores >= 0.0)",
        f"{_HEAD}test_stuff_is_one_segment_and_things_are_several",
    ),
    Mutant(
        "The offset to the centre counts outside objects.",
        "losses/mask.py",
        "inside = (owner > 0) * cells",
        "inside = cells",
        f"{_HEAD}test_the_loss_of_centres_is_least_where_the_maps_are_true",
    ),
)
