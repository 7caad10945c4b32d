"""Faults of data, store, head files, training, prediction, export, pictures and commands."""

from __future__ import annotations

from tests.mutants.edits import always, drop, never, replace
from tests.mutants.mutant import Mutant

_REFERENCE = (
    "unit/inference/test_against_reference.py::test_chosen_predictions_are_those_of_the_reference"
)

PIPELINES = [
    Mutant(
        sentence="A head file with changed weights is loaded.",
        where="checkpoint.contents:check",
        edit=never("file.digest != _record.digest"),
        tests=["unit/checkpoint/test_head_checkpoint.py::test_any_changed_bit_is_refused"],
    ),
    Mutant(
        sentence=(
            "A head file whose tensors have other shapes than its configuration needs is loaded."
        ),
        where="checkpoint.contents:check",
        edit=never("tuple(_tensor.shape) != _entry.shape"),
        tests=["unit/checkpoint/test_head_checkpoint.py::test_forged_files_are_refused"],
    ),
    Mutant(
        sentence="The intervals of a run take every image for a group.",
        where="training.evaluators:ValueEvaluator.report",
        edit=replace(
            "target_intervals(self.with_residuals, self.residuals, self.table.groups)",
            by="target_intervals(self.with_residuals, self.residuals, self.table.ids)",
        ),
        tests=[
            "unit/training/test_prediction_intervals.py::"
            "test_the_file_holds_quantiles_of_the_out_of_fold_residuals_by_group"
        ],
    ),
    Mutant(
        sentence="An ensemble has the intervals of its first member, whatever the others state.",
        where="heads.ensemble:shared_tasks",
        edit=never("len(set(_intervals)) != 1"),
        tests=["unit/test_task_intervals.py"],
    ),
    Mutant(
        sentence="A head is calibrated on the images of its training.",
        where="evaluation.intervals:Calibration.write",
        edit=never("num_trained_on > 0"),
        tests=["unit/test_evaluate_intervals.py::test_images_of_the_training_are_refused"],
    ),
    Mutant(
        sentence="Views that flip left and right flip top and bottom.",
        where="images.views:View.flipped",
        edit=replace("_axes.append(-1)", by="_axes.append(-2)"),
        tests=["unit/training/test_fit.py::test_labels_of_a_cell_follow_the_image"],
    ),
    Mutant(
        sentence="Every image draws the same changes of colour.",
        where="images.views:draws",
        edit=replace(r'f"{i}\0{image_id}"', by=r'f"{i}\0"'),
        tests=["unit/images/test_preparation.py::test_draws_depend_on_the_name_of_the_image"],
    ),
    Mutant(
        sentence="Storing tokens as int8 clips large negative values.",
        where="store.encoding:quantise",
        edit=replace("_tokens.abs().amax(dim=-1)", by="_tokens.amax(dim=-1)"),
        tests=[
            "unit/store/test_feature_store.py::"
            "test_int8_keeps_its_bound_and_beats_a_scale_per_token_alone"
        ],
    ),
    Mutant(
        sentence="A damaged record of a store is read without an error.",
        where="store.reading:Reader.columns",
        edit=never("_stored != checksum(*_record)"),
        tests=["unit/cli/test_predict.py::test_extract_and_verify"],
    ),
    Mutant(
        sentence="Images are scored by a head that was trained on them.",
        where="training.folds:group_folds",
        edit=replace(
            "np.flatnonzero(_fold_of_row != _fold)",
            by="np.flatnonzero(_fold_of_row >= 0)",
        ),
        tests=["unit/training/test_comparisons.py::test_folds_keep_groups_whole"],
    ),
    Mutant(
        sentence="The weighted R² is the mean of the targets' R².",
        where="metrics:r2_of_sums",
        edit=never("_weights is not None"),
        tests=["unit/training/test_scores.py::test_scores_take_the_truth_first_and_match_ids"],
    ),
    Mutant(
        sentence="The moving average of the weights is never updated.",
        where="training.optim:EMA.update",
        edit=replace("_average.lerp_(_value, _share)", by="_average.lerp_(_value, 0.0)"),
        tests=["unit/training/test_optim.py::test_it_follows_its_recursion"],
    ),
    Mutant(
        sentence=(
            "The moving average of the weights is computed, but the trained head does not get it."
        ),
        where="training.engine:Engine.finish",
        edit=drop("self.ema.copy_to(self.trained)"),
        tests=["unit/training/test_recipe.py::test_several_steps_are_the_plain_loop"],
    ),
    Mutant(
        sentence="A run resumes from the state of another head, source or recipe.",
        where="training.folder:check_same",
        edit=replace(
            'difference(earlier, present, "run")',
            by='difference(earlier.get("epochs"), present.get("epochs"), "run")',
        ),
        tests=[
            "unit/training/test_fit.py::test_a_changed_head_loss_recipe_or_sample_is_another_run"
        ],
    ),
    Mutant(
        sentence="A flipped image is trained with the labels of the image as it is.",
        where="training.batches:BatchReader.read",
        edit=replace("_views.place(_label, _view)", by="_label"),
        tests=["unit/training/test_fit.py::test_labels_of_a_cell_follow_the_image"],
    ),
    Mutant(
        sentence="The maps of turned views are turned further instead of back.",
        where="images.views:Views.undo",
        edit=replace("-self.views[i].turns", by="self.views[i].turns"),
        tests=["unit/inference/test_inference.py::test_maps_of_all_views_come_back_to_the_image"],
    ),
    Mutant(
        sentence="The maps of mirrored views stay mirrored.",
        where="images.views:Views.undo",
        edit=replace("_turned.flip(self.views[i].flipped)", by="_turned"),
        tests=[_REFERENCE],
    ),
    Mutant(
        sentence="Averaged parts of a composition do not add up to the averaged total.",
        where="losses.composition:Composition.rescaled_to",
        edit=replace("self._method(_parts * _factor)", by="self._method(_parts)"),
        tests=[_REFERENCE],
    ),
    Mutant(
        sentence="Patches that show a part of an image, and padding beside it, count as padding.",
        where="images.recipe:Placement.shown_cells",
        edit=replace("-(-_end * _cells // _canvas)", by="_end * _cells // _canvas"),
        tests=[_REFERENCE],
    ),
    Mutant(
        sentence="Overlapping tiles count twice at their seams.",
        where="inference.tiles:windows",
        edit=replace("_sums[_tile] += _weights", by="_sums[_tile] += 1.0"),
        tests=["unit/inference/test_inference.py::test_one_tile_fades_into_the_next"],
    ),
    Mutant(
        sentence=(
            "The strides of an encoder are pixels of the smaller image that its backbone sees."
        ),
        where="interop.encoder:strides_in_image",
        edit=replace("_stride / features_at", by="_stride"),
        tests=["unit/interop/test_encoder.py::test_strides_are_pixels_of_the_whole_images"],
    ),
    Mutant(
        sentence="Residuals have the opposite sign.",
        where="viz.drawing:agreement_charts",
        edit=replace("_predicted - _known", by="_known - _predicted"),
        tests=["unit/viz/test_report.py::test_points_are_the_values_and_residuals"],
    ),
    Mutant(
        sentence="False boxes are drawn like those that find an object.",
        where="viz.pictures:boxes_panel",
        edit=always("_box in _found or not _is_compared"),
        tests=[
            "unit/viz/test_panels.py::"
            "test_found_boxes_are_thick_false_ones_thin_and_missed_ones_dashed"
        ],
    ),
    Mutant(
        sentence="A command that failed reports success in its JSON.",
        where="cli.main:main",
        edit=replace(
            '{"verb": _verb, "ok": _is_ok, "dinoneck": _version, **_document}',
            by='{"verb": _verb, "ok": True, "dinoneck": _version, **_document}',
        ),
        tests=["unit/cli/test_viz_verb.py"],
    ),
    Mutant(
        sentence="A missing number of a table is read as 0.",
        where="data.columns:read_numbers",
        edit=replace("_numbers.append(math.nan)", by="_numbers.append(0.0)"),
        tests=["unit/data/test_tables.py::test_the_columns_of_a_table"],
    ),
    Mutant(
        sentence="An id of digits loses its leading zeros: 007 becomes 7.",
        where="data.tables:read_table",
        edit=replace(
            "pd.Index(_sheet.ids, dtype=object)",
            by='pd.Index([text.lstrip("0") or text for text in _sheet.ids], dtype=object)',
        ),
        tests=["unit/data/test_tables.py::test_ids_stay_text"],
    ),
    Mutant(
        sentence="Codes such as 007 are read as the numbers 7.",
        where="data.tables:read_table",
        edit=never("_column.has_codes()"),
        tests=["unit/data/test_tables.py::test_codes_are_classes"],
    ),
    Mutant(
        sentence="1.500 of a German spreadsheet, which means 1500, is read as 1.5 beside 2,5.",
        where="data.columns:decimal_mark",
        edit=replace("raise _column.error(_row, _expected)", by="return '.'"),
        tests=[
            "unit/data/test_columns.py::test_two_decimal_marks_in_one_file_are_refused_with_both_cells"
        ],
    ),
    Mutant(
        sentence="The EXIF orientation of a file that Pillow decodes is ignored.",
        where="images.orientation:upright",
        edit=always("read_orientation(image) == UPRIGHT"),
        tests=["unit/images/test_decoding.py::test_eight_orientations_of_one_scene_are_one_image"],
    ),
    Mutant(
        sentence="Pixels without a label count as 0 in the mean of their cell.",
        where="data.labels:DenseLabels.cells",
        edit=replace(
            "_weight = cell_sums(_valid, _recipe)",
            by="_weight = cell_sums(torch.ones_like(_valid), _recipe)",
        ),
        tests=["unit/data/test_labels.py::test_nodata_weighs_nothing_through_an_area_resize"],
    ),
    Mutant(
        sentence="Pixels that a GeoTIFF marks as nodata count with the value that marks them.",
        where="images.rasters:LabelRaster.unlabelled",
        edit=never("self.nodata is not None and self.nodata not in _numbers"),
        tests=["unit/images/test_rasters.py::test_the_nodata_tag_of_gdal_marks_pixels"],
    ),
    Mutant(
        sentence="Two masks may give one index of their palettes two colours.",
        where="data.masks:mask_classes",
        edit=replace(
            "_first.setdefault(_index, (_colour, _file.name))", by="(_colour, _file.name)"
        ),
        tests=["unit/data/test_mask_classes.py::test_an_index_with_two_colours_is_refused"],
    ),
    Mutant(
        sentence="An image without a labelled pixel is trained on.",
        where="training.run:prepare",
        edit=never("len(_labelled) < len(_images)"),
        tests=[
            "unit/training/test_masks.py"
            "::test_an_image_without_a_labelled_pixel_is_left_out_and_counted"
        ],
    ),
    Mutant(
        sentence="A TIFF of which a strip is not stored gives the bytes of its header.",
        where="images.storage:storage_of",
        edit=replace("0 in _offsets", by="False"),
        tests=["unit/images/test_storage.py::test_tiles_that_are_not_stored_are_zero"],
    ),
    Mutant(
        sentence="Cropping to a size keeps the upper left corner of an image, not its centre.",
        where="images.recipe:ImageRecipe.placement",
        edit=replace("int((_canvas[0] - _resized[0]) / 2)", by="0"),
        tests=["unit/images/test_preparation.py::test_a_tall_image_is_cropped_to_its_middle"],
    ),
    Mutant(
        sentence="A flipped training image keeps the boxes of the image before the flip.",
        where="data.boxes:box_transforms",
        edit=replace(
            "v2.RandomHorizontalFlip()",
            by="v2.RandomApply([v2.Lambda(lambda image: image.flip(-1), tv_tensors.Image)])",
        ),
        tests=["unit/data/test_boxes.py::test_boxes_follow_their_pixels"],
    ),
    Mutant(
        sentence=(
            "A store gives the tokens of other images when ids are asked in another order than "
            "they are stored in."
        ),
        where="store.reading:Reader.columns",
        edit=replace("_index.find(_ids)", by="_index.find(sorted(_ids))"),
        tests=["unit/store/test_feature_store.py::test_a_batch_keeps_order_repeats_and_patterns"],
    ),
    Mutant(
        sentence="The channel scale of the first layer restores the int8 values of every layer.",
        where="store.encoding:QuantisedTokens.dequantise",
        edit=replace("self.channel_scale", by="self.channel_scale[:1] * len(self.q)"),
        tests=["unit/store/test_feature_store.py::test_an_int8_store"],
    ),
    Mutant(
        sentence=(
            "An image that was replaced by another one of the same file size keeps the tokens of "
            "the old one."
        ),
        where="store.images:check_unchanged",
        edit=always("_hash == _entry.blake2b"),
        tests=["unit/store/test_feature_store.py::test_another_image_of_the_same_name_is_refused"],
    ),
    Mutant(
        sentence="A head from a file accepts the tokens of a backbone with other weights.",
        where="layers.inputs:Origin.check",
        edit=replace(
            "('source (fingerprint of the weights)', self.source, tokens.source)",
            by="('source (fingerprint of the weights)', None, tokens.source)",
        ),
        tests=["faults/test_faults.py::test_foreign_files_and_tokens_are_refused"],
    ),
    Mutant(
        sentence=(
            "Images are normalised by the backbone's mean and std, not by those that the head's "
            "file records."
        ),
        where="inference.predictor:Predictor",
        edit=replace(
            "_recorded or _backbone.preprocess",
            by="""(_recorded or _backbone.preprocess).changed(
                mean=_backbone.preprocess.mean,
                std=_backbone.preprocess.std,
            )""",
        ),
        tests=["unit/inference/test_inference.py::test_images_are_normalised_as_the_file_records"],
    ),
    Mutant(
        sentence="Targets are given to images by their position in the table, not by id.",
        where="training.samples:match_samples",
        edit=replace(
            "[as_array(_column[_id], _what) for _id in _ids]",
            by="[as_array(value, _what) for value in [*_column.values()][: len(_ids)]]",
        ),
        tests=[
            "unit/training/test_run_tokens.py::"
            "test_a_shuffled_table_trains_the_same_weights_bit_for_bit"
        ],
    ),
    Mutant(
        sentence="A resumed run trains the last finished epoch again.",
        where="training.engine:Engine.open_state",
        edit=replace(
            'self._load_weights(_state["weights"])',
            by="""
            self._load_weights(_state["weights"])
            self.epoch = max(0, self.epoch - 1)
            """,
        ),
        tests=[
            "unit/training/test_live_tokens.py::"
            "test_training_transforms_images_and_resumes_bit_for_bit"
        ],
    ),
    Mutant(
        sentence="A group is split over two folds where its rows do not follow each other.",
        where="training.folds:group_folds",
        edit=replace(
            '_group_of_row = _numbered(groups, "group")',
            by="""
            _group_of_row = _numbered(groups, "group")
            begins = np.diff(_group_of_row, prepend=_group_of_row[:1]) != 0
            _group_of_row = np.cumsum(begins)
            """,
        ),
        tests=["unit/training/test_comparisons.py::test_folds_keep_groups_whole"],
    ),
    Mutant(
        sentence="The transforms of targets are fitted on the held-out rows too.",
        where="training.problem:fitted",
        edit=replace(
            "problem.targets[_name][torch.as_tensor(rows)]",
            by="problem.targets[_name]",
        ),
        tests=["unit/training/test_train.py::test_numbers_in_groups"],
    ),
    Mutant(
        sentence=(
            "Sharpness-aware minimisation steps from the perturbed weights and does not restore "
            "them."
        ),
        where="training.optim:SAM.gradient",
        edit=replace(
            "[*_moved, *_statistics]",
            by="[*_statistics]",
        ),
        tests=["unit/training/test_optim.py::test_it_follows_the_published_rule_over_many_steps"],
    ),
    Mutant(
        sentence="Mixup counts the loss of a sample's own target with the partner's share.",
        where="training.objective:Objective.micro_batches",
        edit=replace(
            "_class(_share * _weighted.share, _weighted.targets)",
            by="_class((1 - _share) * _weighted.share, _weighted.targets)",
        ),
        tests=["unit/training/test_optim.py::test_mixed_losses_follow_the_targets_of_both_samples"],
    ),
    Mutant(
        sentence="Maps are trained as they are where CutMix has pasted another image.",
        where="training.objective:Objective.micro_batches",
        edit=replace("targets.with_maps(self.maps, _change)", by="targets"),
        tests=["unit/training/test_live_tokens.py::test_cutmix_pastes_maps_as_the_images"],
    ),
    Mutant(
        sentence="Early stopping keeps the weights of the last epoch, not those of the best.",
        where="training.engine:Engine.add_scores",
        edit=replace("_weights.clone()", by="_weights"),
        tests=["unit/training/test_recipe.py::test_patience_keeps_the_best_weights"],
    ),
    Mutant(
        sentence="The patches of padding count in the mean over an image.",
        where="inference.views:ViewAverage",
        edit=replace(
            "(_maps * _counts).sum(dim=(2, 3)) / _counts.sum(dim=(2, 3))",
            by="_maps.mean(dim=(2, 3))",
        ),
        tests=["unit/inference/test_inference.py::test_padding_is_left_out_of_the_mean_of_a_map"],
    ),
    Mutant(
        sentence=(
            "Predictions of images of several sizes come back in another order than the images."
        ),
        where="inference.passes:Pass.predict_images",
        edit=replace(
            "[_predictions[_i] for _i in range(len(images))]", by="[*_predictions.values()]"
        ),
        tests=["unit/inference/test_inference.py::test_images_of_different_sizes_keep_their_order"],
    ),
    Mutant(
        sentence=(
            "Average precision leaves out the boxes below the score threshold of predictions."
        ),
        where="detection.evaluation:predict_boxes",
        edit=replace(
            "detector.predict(_images, min_score=0.0, **_options)",
            by="detector.predict(_images, **_options)",
        ),
        tests=["unit/detection/test_evaluation.py::test_boxes_of_all_scores_are_evaluated"],
    ),
    Mutant(
        sentence="The file of a detector holds the last weights in the place of the best ones.",
        where="detection.training:DetectorTrainer",
        edit=always('_scores["AP"] > _self._best_earlier_precision()'),
        tests=[
            "unit/detection/test_train_detector.py::"
            "test_the_file_holds_the_weights_of_the_epoch_with_the_best_precision"
        ],
    ),
    Mutant(
        sentence="A detector sees the images in the same order in each epoch.",
        where="detection.training:DetectorTrainer",
        edit=replace(
            "np.random.default_rng([self.config.optim.seed, _epoch])",
            by="np.random.default_rng(self.config.optim.seed)",
        ),
        tests=[
            "unit/detection/test_train_detector.py::"
            "test_every_epoch_shows_the_images_in_another_order"
        ],
    ),
    Mutant(
        sentence="Predicted boxes reach over the edge of the image.",
        where="detection.detector:Detector.predict",
        edit=replace(
            "to_original(_boxes, _seen, _size).clamp(min=0)", by="to_original(_boxes, _seen, _size)"
        ),
        tests=["unit/detection/test_detector.py::test_boxes_over_the_edge_are_cut_there"],
    ),
    Mutant(
        sentence="Boxes of different classes suppress each other in the ONNX file of a detector.",
        where="detection.plain_operators:Suppression.take_best",
        edit=replace('self._node("And", _overlaps, _is_of_class)', by="_overlaps"),
        tests=[
            "unit/detection/test_plain_operators.py::"
            "test_the_best_box_suppresses_those_of_its_class_alone"
        ],
    ),
    Mutant(
        sentence="An exported decoder reads maps in float16 at places that float16 does not hold.",
        where="detection.plain_operators:sample_by_gathers",
        edit=replace("torch.promote_types(points.dtype, torch.float32)", by="points.dtype"),
        tests=[
            "unit/detection/test_plain_operators.py::"
            "test_places_are_computed_in_float32_on_maps_in_float16"
        ],
    ),
    Mutant(
        sentence="A draw of images counts the boxes of all images with those of the first one.",
        where="detection.paired:class_results",
        edit=replace("np.full(_count, _index)", by="np.zeros(_count, np.int64)"),
        tests=["unit/detection/test_paired.py::test_a_draw_has_the_ap_of_its_images"],
    ),
    Mutant(
        sentence="An exported model that differs from the eager model is written without an error.",
        where="export.program:check_parity",
        edit=always("_parity.largest <= _tolerance"),
        tests=["unit/export/test_export_model.py::test_a_model_that_differs_is_not_written"],
    ),
    Mutant(
        sentence=(
            "The colours of principal components are fitted for each image of a batch alone."
        ),
        where="viz.pca:pca_rgb",
        edit=replace(
            "if basis is None: basis = PCABasis.fit(features, foreground=foreground)",
            by="""
            if basis is None and isinstance(features, Tokens) and len(features) > 1:
                images = [features[i : i + 1] for i in range(len(features))]
                return np.concatenate([pca_rgb(x, foreground=foreground) for x in images])
            if basis is None:
                basis = PCABasis.fit(features, foreground=foreground)
            """,
        ),
        tests=["unit/viz/test_pca.py::test_two_planted_directions_come_out_as_red_and_green"],
    ),
    Mutant(
        sentence=(
            "The service accepts a body above the limit that arrives in chunks without a "
            "Content-Length."
        ),
        where="serve.uploads:received_files",
        edit=replace("_size += len(_content)", by="_size = len(_content)"),
        tests=["unit/serve/test_serve.py::test_every_bad_request_is_refused_with_its_reason"],
    ),
]
