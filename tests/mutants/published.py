"""Faults of published heads: their table, their names and their arithmetic."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_EVERY = "unit/published/test_published.py::test_a_file_gives_what_its_publisher_computes"
_SMALL = f"{_EVERY}[dinov2_vits14_nyu_dpt]"
PUBLISHED = (
    Mutant(
        "NYU's depths reach 80 m, as torch.hub builds them.",
        "published/table.py",
        '("nyu", 10.0)',
        '("nyu", 80.0)',
        f"{_EVERY}[dinov2_vits14_nyu_linear]",
    ),
    Mutant(
        "Fusion blocks are numbered from the finest in the file too.",
        "published/loading.py",
        "{3 - int(found[2])}",
        "{int(found[2])}",
        _SMALL,
    ),
    Mutant(
        "The batch norm before a layer is folded without its mean.",
        "published/loading.py",
        "(shift - mean * scale)",
        "shift",
        f"{_EVERY}[dinov2_vits14_voc2012_linear]",
    ),
    Mutant(
        "Tensors of a file that the head does not have are passed over.",
        "published/loading.py",
        "    if missing or unknown:",
        "    if missing:",
        "unit/published/test_published.py::test_files_that_do_not_fit_are_refused_by_name",
    ),
    Mutant(
        "The hash of a file is not compared with the publisher's.",
        "published/loading.py",
        "if not seen.startswith(row.sha256):",
        "if False:",
        "unit/published/test_published.py::test_files_that_are_not_the_head_are_refused",
    ),
    Mutant(
        "The CLS token of the last layer is added to the patches of every layer.",
        "heads/linear.py",
        "(patches, cls[:, None])]",
        "(patches, tokens.cls_token[-1][:, None])]",
        "unit/heads/test_heads.py::test_upsampled_bins_are_those_of_the_upsampled_concatenation",
    ),
    Mutant(
        "Bins weigh their values without the added constant.",
        "heads/linear.py",
        ".relu() + self.eps",
        ".relu() + 1e-8",
        "unit/heads/test_heads.py::test_upsampled_bins_are_those_of_the_upsampled_concatenation",
    ),
    Mutant(
        "A value is bounded after the map was resized.",
        "heads/dpt.py",
        "resampled(task.predict_map(cells), tokens.image_size)",
        "task.predict_map(resampled(cells, tokens.image_size))",
        "unit/heads/test_heads.py::test_values_are_bounded_before_and_classes_resized_before_they_are_shares",
    ),
    Mutant(
        "A doubled map keeps the size of the next level's own map.",
        "necks/dpt.py",
        'if self.upsample == "next" else {"scale_factor": 2.0}',
        "if True else {}",
        "unit/necks/test_dpt.py::test_it_is_transformers_neck",
    ),
    Mutant(
        "A published head takes a backbone with any weights.",
        "checkpoint/pairing.py",
        'if kind != "file":',
        "if False:",
        "unit/published/test_published_names.py::test_other_backbones_are_refused",
    ),
    Mutant(
        "PMT's heads on ViT-L read the blocks of DINOv2's depth heads.",
        "published/table.py",
        "_SPREAD[depth] if depth == 12 else (5, 11, 17, 23)",
        "_SPREAD[depth]",
        "unit/published/test_published.py::test_the_table_settles_the_traps",
    ),
    Mutant(
        "A head whose page states no licence is downloaded.",
        "published/loading.py",
        "row.licence == NOT_STATED or (",
        "(",
        "unit/published/test_published.py::test_a_file_is_downloaded_once",
    ),
    Mutant(
        "Rotary positions of a mask head turn by the column first.",
        "heads/mask.py",
        "[down, across, down, across]",
        "[across, down, across, down]",
        f"{_EVERY}[dinov3_vits16_coco_panoptic_pmt640]",
    ),
)
