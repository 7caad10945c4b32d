"""Faults of published heads: their table, their names and their arithmetic."""

from __future__ import annotations

from tests.mutants.edits import always, never, replace
from tests.mutants.mutant import Mutant

_OUTPUTS = "unit/published/test_published.py::test_a_file_gives_what_its_publisher_computes"
_TIPSV2 = "unit/published/test_tipsv2.py::test_a_narrow_head_gives_the_logits_of_transformers"
_BINS = "unit/heads/test_heads.py::test_upsampled_bins_are_those_of_the_upsampled_concatenation"

PUBLISHED = [
    Mutant(
        sentence="NYU's depths reach 80 m, as torch.hub builds them.",
        where="published.table:ROWS",
        edit=replace('("nyu", 10.0)', by='("nyu", 80.0)'),
        tests=[f"{_OUTPUTS}[dinov2_vits14_nyu_linear]"],
    ),
    Mutant(
        sentence="PMT's heads on ViT-L read the blocks of DINOv2's depth heads.",
        where="published.table:ROWS",
        edit=never("_backbone.depth == 24"),
        tests=["unit/published/test_published.py::test_the_table_settles_the_traps"],
    ),
    Mutant(
        sentence="Fusion blocks are numbered from the finest in the file too.",
        where="published.names:DINOV2",
        edit=replace("_count - 1 - _i", by="_i"),
        tests=[f"{_OUTPUTS}[dinov2_vits14_nyu_dpt]"],
    ),
    Mutant(
        sentence="The batch norm before a layer is folded without its mean.",
        where="published.loading:translate",
        edit=replace("_shift - _mean * _scale", by="_shift"),
        tests=[f"{_OUTPUTS}[dinov2_vits14_voc2012_linear]"],
    ),
    Mutant(
        sentence="Tensors of a file that the head does not have are passed over.",
        where="published.loading:translate",
        edit=replace(
            "_name is None",
            by='_name is None or (_name not in expected and ".norm." not in _name)',
        ),
        tests=["unit/published/test_published.py::test_files_that_do_not_fit_are_refused_by_name"],
    ),
    Mutant(
        sentence="The hash of a file is not compared with the publisher's.",
        where="published.loading:load_published",
        edit=always("_digest.startswith(_row.sha256)"),
        tests=["unit/published/test_published.py::test_files_that_are_not_the_head_are_refused"],
    ),
    Mutant(
        sentence="A head whose page states no licence is downloaded.",
        where="published.loading:load_published",
        edit=replace('_reason = "states no licence"', by="return"),
        tests=["unit/published/test_published.py::test_a_file_is_downloaded_once"],
    ),
    Mutant(
        sentence="A published head takes a backbone with any weights.",
        where="checkpoint.compare:check_records",
        edit=never('_kind != "file"'),
        tests=["unit/published/test_published_names.py::test_other_backbones_are_refused"],
    ),
    Mutant(
        sentence="The CLS token of the last layer is added to the patches of every layer.",
        where="heads.linear:LinearHead.forward",
        edit=replace(
            "zip(_tokens.sequence, _tokens.cls_token, strict=True)",
            by="zip(_tokens.sequence, _tokens.cls_token[-1:] * len(_tokens.sequence))",
        ),
        tests=[_BINS],
    ),
    Mutant(
        sentence="Bins weigh their values without the added constant.",
        where="heads.linear:Bins.forward",
        edit=replace("self.eps", by="1e-8"),
        tests=[_BINS],
    ),
    Mutant(
        sentence="A value is bounded after the map was resized.",
        where="heads.dpt:DPTHead.natural",
        edit=replace(
            "resampled(_task.predict_map(_cells), _size)",
            by="_task.predict_map(resampled(_cells, _size))",
        ),
        tests=["unit/heads/test_heads.py::test_values_are_bounded_before_they_are_resized"],
    ),
    Mutant(
        sentence="The readout of TIPSv2's heads has the exact GELU.",
        where="necks.dpt:DPTNeck",
        edit=never('_readout_activation == "gelu_tanh"'),
        tests=[_TIPSV2],
    ),
    Mutant(
        sentence="A projection without an activation has a ReLU.",
        where="heads.dpt:DPTHead.logits",
        edit=always('self.projection_activation == "relu"'),
        tests=[_TIPSV2],
    ),
    Mutant(
        sentence="A tensor of TIPSv2's file belongs to whichever head is read.",
        where="published.names:tipsv2_name",
        edit=replace("_other != _head", by="False"),
        tests=["unit/published/test_tipsv2.py::test_a_file_of_three_heads_holds_each_of_them"],
    ),
    Mutant(
        sentence="A doubled map keeps the size of the next level's own map.",
        where="necks.dpt:DPTNeck.forward",
        edit=always('self.upsample == "next"'),
        tests=["unit/necks/test_dpt.py::test_it_is_transformers_neck"],
    ),
    Mutant(
        sentence="Rotary positions of a mask head turn by the column first.",
        where="heads.mask:rotary_positions",
        edit=replace("[_down, _across, _down, _across]", by="[_across, _down, _across, _down]"),
        tests=[f"{_OUTPUTS}[dinov3_vits16_coco_panoptic_pmt640]"],
    ),
]
