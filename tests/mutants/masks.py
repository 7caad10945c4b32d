"""Faults of masks: the mask head, its loss, objects, and maps in the pixels of the image."""

from __future__ import annotations

from tests.mutants.edits import always, never, replace
from tests.mutants.mutant import Mutant

_HEAD = "unit/heads/test_mask.py::"
_RESOLUTION = "unit/inference/test_image_resolution.py::"
_OBJECTS = (
    "unit/detection/test_train_instances.py::"
    "test_small_objects_lie_on_top_and_crowd_regions_are_unknown"
)
_QUALITY = "unit/detection/test_panoptic.py::test_panoptic_quality_is_its_definition"
_OBJECTS_OF_STUFF = (
    "unit/detection/test_panoptic.py::test_neither_stuff_nor_crowds_count_as_objects"
)
_OBJECTS_OF_A_CLASS = (
    "unit/detection/test_panoptic.py::test_pixels_hold_the_class_and_the_number_of_their_object"
)

_CLASSES = "unit/data/test_mask_classes.py::"

MASKS = [
    Mutant(
        sentence="255 beside other classes is a class.",
        where="data.masks:mask_classes",
        edit=replace("(WHITE,)", by="()"),
        tests=[f"{_CLASSES}test_classes_are_decided_over_all_masks"],
    ),
    Mutant(
        sentence="Pixels of 255 weigh in patches though they are unlabelled.",
        where="data.labels:read_class_cells",
        edit=never("_classes.unlabelled_values and self.weight_without_white is not None"),
        tests=[f"{_CLASSES}test_cells_of_one_reading_are_those_of_the_decided_classes"],
    ),
    Mutant(
        sentence="Red and blue of class colours are exchanged.",
        where="data.masks:color_number",
        edit=replace(
            "(_red << 16) + (_green << 8) + _blue", by="(_blue << 16) + (_green << 8) + _red"
        ),
        tests=[f"{_CLASSES}test_nodata_of_masks_of_colours_is_a_grey_level"],
    ),
    Mutant(
        sentence="Every method reads the truth of a map again.",
        where="training.scored:MapTarget.compare",
        edit=replace(
            "self.terms(_truth, _of_method)", by="self.terms(self.read_pixels(row), _of_method)"
        ),
        tests=[
            "unit/training/test_masks.py::"
            "test_every_mask_is_decoded_at_most_twice_in_a_run_and_in_an_evaluation"
        ],
    ),
    Mutant(
        sentence="Columns of patches get the positions of rows.",
        where="heads.mask:rotary_positions",
        edit=replace("_x[None, :, None]", by="_x.flip(0)[None, :, None]"),
        tests=[f"{_HEAD}test_positions_are_those_of_dinov3"],
    ),
    Mutant(
        sentence="Queries are turned like the first patch.",
        where="heads.mask:rotary_positions",
        edit=replace(
            "nn.functional.pad(_angles, (0, 0, prefix, 0))",
            by="torch.cat([_angles[:1].expand(prefix, -1), _angles])",
        ),
        tests=[f"{_HEAD}test_the_head_is_its_formula"],
    ),
    Mutant(
        sentence="The shares of classes do not add up to one.",
        where="heads.mask:MaskHead.forward",
        edit=replace("(_sums / _sums.sum(dim=1, keepdim=True)).log()", by="_sums.log()"),
        tests=[f"{_HEAD}test_the_map_holds_logarithms_of_the_shares_of_classes"],
    ),
    Mutant(
        sentence="The shares of classes are resampled in the place of masks.",
        where="heads.mask:MaskHead.at_size",
        edit=replace(
            "return self._outputs(_classes, resample(_masks, size))",
            by="return super().at_size(outputs, size)",
        ),
        tests=[f"{_HEAD}test_masks_are_resampled_before_they_are_shares"],
    ),
    Mutant(
        sentence="Prefix tokens are taken for patches.",
        where="heads.mask:MaskHead.forward",
        edit=replace(
            "_x[:, _queries + tokens.num_prefix_tokens :]",
            by="_x[:, _queries : _queries + tokens.grid.count]",
        ),
        tests=[f"{_HEAD}test_the_head_is_its_formula"],
    ),
    Mutant(
        sentence="Queries without a mask count as much as the others.",
        where="losses.mask:mask_loss",
        edit=replace(
            "torch.where(_target == _no_object, NO_OBJECT_WEIGHT, 1.0)",
            by="torch.where(_target == _no_object, 1.0, 1.0)",
        ),
        tests=[f"{_HEAD}test_the_loss_is_that_of_mask2former_over_all_cells"],
    ),
    Mutant(
        sentence="Queries and masks are paired in their order.",
        where="losses.mask:mask_loss",
        edit=replace(
            "torch.as_tensor(_indices, device=_costs.device)",
            by="torch.arange(len(_indices), device=_costs.device)",
        ),
        tests=[f"{_HEAD}test_the_loss_is_that_of_mask2former_over_all_cells"],
    ),
    Mutant(
        sentence="Ignored cells take part in the dice loss.",
        where="losses.mask:mask_loss",
        edit=replace("_logits.sigmoid() * _weight", by="_logits.sigmoid()"),
        tests=[f"{_HEAD}test_cells_without_weight_count_for_nothing"],
    ),
    Mutant(
        sentence="The offset to the centre counts outside objects.",
        where="losses.mask:centre_loss",
        edit=replace("(_target.owner > 0) * _weight", by="_weight"),
        tests=[f"{_HEAD}test_offsets_outside_objects_do_not_count"],
    ),
    Mutant(
        sentence="Two queries of one object are two instances.",
        where="heads.instances:decode_instances",
        edit=never("_is_same[_query, _kept].any()"),
        tests=[f"{_HEAD}test_duplicates_and_empty_queries_are_no_instances"],
    ),
    Mutant(
        sentence="Things of one class are one segment.",
        where="heads.instances:decode_panoptic",
        edit=replace("_label in things or _label not in _ids", by="_label not in _ids"),
        tests=[f"{_HEAD}test_stuff_is_one_segment_and_things_are_several"],
    ),
    Mutant(
        sentence="Panoptic segments of low scores are kept.",
        where="heads.instances:decode_panoptic",
        edit=replace("(_labels < _none) & (_scores >= _least)", by="_labels < _none"),
        tests=[f"{_HEAD}test_segments_of_low_scores_are_left_out"],
    ),
    Mutant(
        sentence="Masks of mirrored views stay mirrored.",
        where="inference.resolution:members_at_image_size",
        edit=replace("_views.undo(_maps, _view)", by="_maps"),
        tests=[f"{_RESOLUTION}test_masks_are_resampled_before_they_are_shares"],
    ),
    Mutant(
        sentence="Shares of masks are resampled to the image, not masks.",
        where="inference.predictions:ImagePrediction.image_maps",
        edit=never("_prediction.raw_outputs and _task.is_map and not _task.is_unit"),
        tests=[f"{_RESOLUTION}test_masks_are_resampled_before_they_are_shares"],
    ),
    Mutant(
        sentence="Pixels are looked up at their corners.",
        where="runtime.pixel_grid:PixelAxis.of",
        edit=replace(
            "np.arange(_pixels, dtype=np.float64) + 0.5",
            by="np.arange(_pixels, dtype=np.float64)",
        ),
        tests=[f"{_RESOLUTION}test_a_map_of_places_gives_every_pixel_its_own_place"],
    ),
    Mutant(
        sentence="The padding around an image is forgotten.",
        where="runtime.pixel_grid:PixelAxis.of",
        edit=replace("_x * _resized / _pixels + _corner", by="_x * _resized / _pixels"),
        tests=[f"{_RESOLUTION}test_a_map_of_places_gives_every_pixel_its_own_place"],
    ),
    Mutant(
        sentence="Probabilities are resampled in the place of logits.",
        where="inference.resolution:at_image_size",
        edit=replace("_maps.clamp_min(torch.finfo(torch.float32).tiny).log()", by="_maps"),
        tests=[f"{_RESOLUTION}test_classes_are_resampled_as_logits"],
    ),
    Mutant(
        sentence="Objects keep the places of the prepared image, padding included.",
        where="inference.resolution:objects_at_image_size",
        edit=replace("_placement.corner[0]", by="0"),
        tests=[f"{_RESOLUTION}test_objects_lie_where_the_image_lies"],
    ),
    Mutant(
        sentence="Crowd regions are background.",
        where="data.listed_images:ObjectMap.ids_of_objects",
        edit=replace("_ids[_row] = -_first", by="_ids[_row] = 0"),
        tests=[_OBJECTS],
    ),
    Mutant(
        sentence="Large objects hide small ones.",
        where="data.boxes:BoxImages.pixels",
        edit=replace("-_crops[_row].pixels.sum()", by="_crops[_row].pixels.sum()"),
        tests=[_OBJECTS],
    ),
    Mutant(
        sentence="What is found in a crowd region is wrong.",
        where="data.boxes:BoxImages.ground_truth",
        edit=replace(
            "int(_entry.is_crowd)",
            by="0",
        ),
        tests=[_OBJECTS],
    ),
    Mutant(
        sentence="Stuff is counted as objects.",
        where="data.listed_images:ListedImages.numbers",
        edit=replace("_entry.is_crowd or _entry.label in self.stuff", by="_entry.is_crowd"),
        tests=[_OBJECTS_OF_STUFF],
    ),
    Mutant(
        sentence="All things of a class are one.",
        where="data.listed_images:ObjectMap.ids_of_objects",
        edit=replace("_counts[_entry.label] += 1", by="_counts[_entry.label] *= 1"),
        tests=[_OBJECTS_OF_A_CLASS],
    ),
    Mutant(
        sentence="Colours of segments are read from blue to red.",
        where="data.panoptic:PanopticImages.pixels",
        edit=replace("[1, 256, 256**2]", by="[256**2, 256, 1]"),
        tests=[_QUALITY],
    ),
    Mutant(
        sentence="Run lengths that end early are decoded as memory that nobody wrote.",
        where="data.segmentations:read_mask",
        edit=never("_total != _size[0] * _size[1]"),
        tests=["unit/data/test_segmentations.py::test_what_pycocotools_would_misread_is_refused"],
    ),
    Mutant(
        sentence="A mask that lies elsewhere than its box is trained on.",
        where="data.segmentations:reaches_beyond",
        edit=always("_pycocotools.area(_shared)"),
        tests=["unit/data/test_coco_checks.py::test_a_mask_without_a_pixel_in_its_box_is_refused"],
    ),
    Mutant(
        sentence="YOLO's boxes begin at their centres.",
        where="data.yolo:read_yolo",
        edit=replace(
            "[(_x - _w / 2) * _width, (_y - _h / 2) * _height, _sides, _rest]",
            by="[_x * _width, _y * _height, _sides, _rest]",
        ),
        tests=["unit/data/test_yolo.py::test_boxes_and_polygons_are_read_in_pixels"],
    ),
    Mutant(
        sentence="VOC's corners count from 0.",
        where="data.voc:read_voc",
        edit=replace("[_left - 1, _top - 1, _w, _h]", by="[_left, _top, _w, _h]"),
        tests=["unit/data/test_voc.py::test_boxes_are_read_in_pixels"],
    ),
    Mutant(
        sentence="XML files expand entities.",
        where="data.voc:read_voc",
        edit=never("_word in _text"),
        tests=["unit/data/test_voc.py::test_a_file_that_cannot_be_read_is_refused"],
    ),
    Mutant(
        sentence="Segments that hardly overlap are pairs.",
        where="metrics:segment_terms",
        edit=replace("_iou > PAIR_IOU", by="_iou > 0.3"),
        tests=[_QUALITY],
    ),
    Mutant(
        sentence="Unknown pixels make segments worse.",
        where="metrics:segment_terms",
        edit=replace("_areas - _shared - _unknown[:, None]", by="_areas - _shared"),
        tests=[_QUALITY],
    ),
    Mutant(
        sentence="Crowd regions of any class hide wrong segments.",
        where="metrics:segment_terms",
        edit=replace("(_shared * _is_same_class) @ _is_crowd", by="_shared @ _is_crowd"),
        tests=[_QUALITY],
    ),
    Mutant(
        sentence="A segment that is partly unknown is never wrong.",
        where="metrics:segment_terms",
        edit=replace("2 * (_unknown + _crowd) > _areas", by="_unknown + _crowd > 0"),
        tests=[_QUALITY],
    ),
]
