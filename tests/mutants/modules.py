"""Faults of the modules: grids, tokens, layers, necks, heads, losses, backbones and points."""

from __future__ import annotations

from tests.mutants.edits import always, never, replace, set_keyword
from tests.mutants.mutant import GOLDEN, Mutant

MODULES = [
    Mutant(
        sentence="The grid is transposed: patch (r, c) lands at (c, r).",
        where="grid:as_maps",
        edit=replace("_grid.permute(0, 3, 1, 2)", by="_grid.permute(0, 3, 2, 1)"),
        tests=["unit/test_grid.py::test_patch_r_c_lands_at_r_c"],
    ),
    Mutant(
        sentence=(
            "Points are sampled with align_corners=True, so they read between the wrong cells."
        ),
        where="grid:TokenGrid.sample",
        edit=set_keyword("F.grid_sample", "align_corners", True),
        tests=["unit/test_grid.py"],
    ),
    Mutant(
        sentence="A patch that the image's edge cuts counts as a whole patch.",
        where="patches:axes_of",
        edit=replace(
            "Axis(_cells, 1.0, -float((_length - _cells * _patch) // 2))",
            by="Axis(-(-_length // _patch), 1.0, -float((_length - _cells * _patch) // 2))",
        ),
        tests=["unit/test_grid.py"],
    ),
    Mutant(
        sentence="The CLS token or a register is taken for a patch.",
        where="tokens:Tokens.patches",
        edit=replace(
            "_layer[:, self.num_prefix_tokens :]",
            by="_layer[:, self.num_prefix_tokens - 1 : -1]",
        ),
        tests=["unit/test_grid.py::test_views_hold_what_their_names_say"],
    ),
    Mutant(
        sentence="An interval leaves no mass for the group that nobody has seen.",
        where="intervals:group_quantile",
        edit=replace("level * (len(_images) + 1)", by="level * len(_images)"),
        tests=["unit/test_intervals.py"],
    ),
    Mutant(
        sentence="In an interval every image counts the same, and large groups count more.",
        where="intervals:group_quantile",
        edit=replace(
            "1 / _images[_group[_order]]",
            by="np.full(len(_group), len(_images) / len(_group))",
        ),
        tests=["unit/test_intervals.py::test_every_group_counts_the_same"],
    ),
    Mutant(
        sentence="A set of labels may be empty, and then never holds the true one.",
        where="intervals:prediction_set",
        edit=replace(
            "[_order[0], *(_label for _label in _order[1:] if _residuals[_label] <= quantile)]",
            by="[_label for _label in _order if _residuals[_label] <= quantile]",
        ),
        tests=["unit/test_intervals.py"],
    ),
    Mutant(
        sentence=(
            "A target's transform divides by the sample's standard deviation instead of the "
            "population's."
        ),
        where="transforms:TargetTransform.fit",
        edit=replace(
            "_deviation.square().nanmean(dim=0)",
            by="_deviation.square().nansum(dim=0).div(len(_deviation) - 1)",
        ),
        tests=["unit/test_tasks.py::test_fit_takes_population_statistics_and_skips_nan"],
    ),
    Mutant(
        sentence="A predicted map stays in normalised units.",
        where="tasks:Task.natural_map",
        edit=replace("self.transform.inverse(_values, _parts)", by="_values"),
        tests=[
            "unit/test_tasks.py::test_a_dense_map_is_inverted_cell_by_cell_and_bounded_when_predicted"
        ],
    ),
    Mutant(
        sentence="Maps that are read at a stride are half a cell off.",
        where="layers.resampling:at_stride",
        edit=replace(
            "2 * torch.arange(_cells, device=_device) + 1",
            by="2 * torch.arange(_cells, device=_device)",
        ),
        tests=["unit/necks/test_pyramids.py::test_reading_at_a_stride_is_grid_sample"],
    ),
    Mutant(
        sentence="The DPT neck enlarges its maps with align_corners=True.",
        where="necks.dpt:DPTNeck.forward",
        edit=replace("self.align_corners", by="True"),
        tests=["unit/necks/test_dpt.py::test_it_is_transformers_neck"],
    ),
    Mutant(
        sentence="Extra maps are lost in the pyramid's top-down path.",
        where="necks.vit_fpn:TopDown.merged",
        edit=replace("_level + extra[_index]", by="_level + 0 * extra[_index]"),
        tests=[f"{GOLDEN}[vit_fpn-everything]"],
    ),
    Mutant(
        sentence="The gradient of tokens behind a norm uses the sample's variance.",
        where="layers.fused:norm_linear",
        edit=set_keyword("_tokens.var", "correction", 1),
        tests=[
            "unit/necks/test_layer_grouper.py::test_values_and_gradients_are_those_of_the_modules"
        ],
    ),
    Mutant(
        sentence="Density maps start a thousand times too large.",
        where="heads.outputs:scale_cells",
        edit=replace("_cells / DENSITY_CELLS", by="_cells"),
        tests=[f"{GOLDEN}[dense]"],
    ),
    Mutant(
        sentence="The members of an ensemble count equally, whatever their weights are.",
        where="heads.ensemble:HeadEnsemble.predict_outputs",
        edit=replace(
            'torch.einsum("k,k...->...", _weights, _outputs)',
            by="torch.mean(_outputs, dim=0)",
        ),
        tests=["unit/heads/test_heads.py::test_members_are_averaged_with_their_weights"],
    ),
    Mutant(
        sentence=(
            "An ensemble averages what its members return in normalised units, as if it were grams."
        ),
        where="heads.ensemble:HeadEnsemble.predict_outputs",
        edit=replace(
            "_member.head.predict_outputs(_tokens, _with_maps)",
            by="HeadOutputs.of_predictions(_member.head.tasks, _member.head(_tokens))",
        ),
        tests=["unit/heads/test_heads.py::test_members_are_averaged_in_natural_units"],
    ),
    Mutant(
        sentence="An ensemble of medians that 0.3 wrote is read as one of means.",
        where="heads.ensemble:HeadEnsemble.current_config",
        edit=never("_reduce != 'mean'"),
        tests=[
            "frozen/test_frozen_heads.py::"
            "test_a_file_that_is_no_longer_read_is_refused_with_the_reason"
        ],
    ),
    Mutant(
        sentence="The maps of a user's head are those of the class that it is derived from.",
        where="heads.head:Head.predict_outputs",
        edit=replace("type(self).predict_maps is not Head.predict_maps", by="False"),
        tests=["unit/heads/test_outputs.py::test_what_a_subclass_replaces_is_used_with_maps_too"],
    ),
    Mutant(
        sentence="A number that is the mean of an averaged map is not kept within its bounds.",
        where="heads.outputs:recompute_averaged_values",
        edit=replace(
            "_task.clamp(values[_map.name][:, _channel : _channel + 1])",
            by="values[_map.name][:, _channel : _channel + 1]",
        ),
        tests=[
            "unit/heads/test_outputs.py::"
            "test_after_averaging_a_value_with_from_map_is_the_value_of_the_map"
        ],
    ),
    Mutant(
        sentence="A masked value counts in the mean of a loss.",
        where="losses.masked:masked_mean",
        edit=replace("keep.sum()", by="torch.tensor(keep.numel())"),
        tests=["unit/losses/test_losses.py::test_masked_values_count_for_nothing"],
    ),
    Mutant(
        sentence="The unknown pixels of a mask are trained as class 0.",
        where="losses.masked:counted_classes",
        edit=replace(
            "_keep = _keep & (target != ignore_index)",
            by="pass",
        ),
        tests=["unit/losses/test_task_loss.py::test_every_kind_has_its_loss"],
    ),
    Mutant(
        sentence="The weights of cells are left out of the loss of maps.",
        where="losses.task_loss:TaskLoss.forward",
        edit=replace(
            "_sums = _sum_outputs(_errors * _keep)",
            by="_sums = _sum_outputs(_errors)",
        ),
        tests=["unit/training/test_fit.py::test_weights_pull_towards_heavy_cells"],
    ),
    Mutant(
        sentence="A backbone gives its layers without the final norm.",
        where="backbones.adapter:Adapter.forward",
        edit=replace("self.final_norm(_tokens)", by="_tokens"),
        tests=[
            "unit/backbones/test_weights.py::"
            "test_other_weights_norms_layers_and_recipes_are_noticed"
        ],
    ),
    Mutant(
        sentence="A backbone gives its layers in ascending order, not in the order asked.",
        where="backbones.adapter:Adapter.forward",
        edit=replace(
            "[_outputs[_number] for _number in layers]",
            by="[_outputs[_number] for _number in sorted(layers)]",
        ),
        tests=[
            "unit/backbones/test_backbone.py::test_layers_are_block_outputs_in_the_callers_order"
        ],
    ),
    Mutant(
        sentence="The positions of TIPSv2 are resampled bicubically, as timm does, not bilinearly.",
        where="backbones.adapter:tipsv2_positions",
        edit=replace("'bilinear'", by="'bicubic'"),
        tests=["unit/backbones/test_open_backbones.py::test_tipsv2s_positions_are_the_formula"],
    ),
    Mutant(
        sentence="Features of TIPSv2 from elsewhere are recorded with ImageNet's mean and std.",
        where="backbones.known:normalisation_of",
        edit=replace("family_of(_name) == 'tipsv2'", by="False"),
        tests=["unit/training/test_stated.py::test_tipsv2_takes_images_without_normalisation"],
    ),
    Mutant(
        sentence="A model whose forward adds something between its blocks is wrapped without it.",
        where="backbones.forward_check:check_forward",
        edit=replace("_table.get(_dtype, _others)", by="float('inf')"),
        tests=[
            "unit/backbones/test_forward_check.py::"
            "test_changes_that_the_parts_do_not_have_are_refused"
        ],
    ),
    Mutant(
        sentence="A model that rounds a little before its blocks is refused.",
        where="backbones.forward_check:check_forward",
        edit=always("_difference(_parts[_number], _tokens) == 0"),
        tests=[
            "unit/backbones/test_forward_check.py::"
            "test_rounding_before_a_block_does_not_grow_to_a_difference_behind_it"
        ],
    ),
    Mutant(
        sentence="A backbone of other weights passes the functional probe.",
        where="backbones.weight_hashes:differs",
        edit=never("not _difference <= _tolerance"),
        tests=[
            "unit/backbones/test_weights.py::"
            "test_other_weights_norms_layers_and_recipes_are_noticed"
        ],
    ),
    Mutant(
        sentence="The weights of a CLS gate do not sum to one over an image.",
        where="heads.cls_gating:CLSGating.forward",
        edit=replace("_logits.softmax(dim=-1)", by="_logits.sigmoid()"),
        tests=["unit/heads/test_heads.py::test_the_gate_is_the_formula"],
    ),
    Mutant(
        sentence="The finest level of a pyramid reads the deepest layers.",
        where="necks.layer_grouper:auto_groups",
        edit=replace("pairwise(_begins)", by="reversed([*pairwise(_begins)])"),
        tests=[
            "unit/necks/test_layer_grouper.py::"
            "test_auto_groups_are_contiguous_even_and_shallow_first"
        ],
    ),
    Mutant(
        sentence="A point reads the depth of the next pixel.",
        where="points.projection:PointProjector",
        edit=replace("_place.floor().long()", by="_place.round().long()"),
        tests=[
            "unit/points/test_projection.py::"
            "test_depth_of_another_size_is_read_half_pixels_considered"
        ],
    ),
    Mutant(
        sentence=(
            "The voxels of one sample of a batch are found with the coordinates of another sample."
        ),
        where="points.voxels:SparseFeatures.at",
        edit=replace("encode(coords, batch)", by="encode(coords)"),
        tests=["unit/points/test_voxel_grids.py::test_looking_up_is_a_dictionary"],
    ),
]
