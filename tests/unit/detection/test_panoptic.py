"""Panoptic segments: reading COCO's PNG files, panoptic quality, training, and scores of a finished head."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.kit import cli
from tests.unit.training.meadow import rows_of

from dinoneck import DataError, HeadCheckpoint, evaluate
from dinoneck.data import PanopticImages
from dinoneck.detection import score_segments
from dinoneck.inference import coco_objects

pytest.importorskip("pycocotools", reason="masks need pycocotools, the extra [masks]")
# pycocotools with NumPy 2
NAMES = ("disc", "square", "soil")  # of the categories 4, 9 and 2; the last one is stuff
Segment = tuple[int, int, bool]  # id in the PNG, category, whether it is a crowd region
Array = np.ndarray[Any, Any]


def written(
    folder: Path,
    maps: list[Array],
    segments: list[list[Segment]],
    pictures: list[Array] | None = None,
) -> Any:
    """Write images, their PNG files and their COCO file; return the folder of the PNG files and the COCO file."""
    (folder / "png").mkdir(parents=True)
    images, entries = [], []
    for i, (ids, own) in enumerate(zip(maps, segments, strict=True)):
        picture = np.zeros((*ids.shape, 3), np.uint8) if pictures is None else pictures[i]
        Image.fromarray(picture).save(folder / f"{i}.png")
        colours = np.stack([ids % 256, ids // 256 % 256, ids // 256**2], axis=-1).astype(np.uint8)
        Image.fromarray(colours).save(folder / "png" / f"s{i}.png")
        images.append(
            {"id": i + 5, "file_name": f"{i}.png", "height": ids.shape[0], "width": ids.shape[1]}
        )
        listed = [{"id": a, "category_id": b, "iscrowd": int(c)} for a, b, c in own]
        entries.append({"image_id": i + 5, "file_name": f"s{i}.png", "segments_info": listed})
    names = [
        {"id": number, "name": name, "isthing": int(name != "soil")}
        for number, name in zip((4, 9, 2), NAMES, strict=True)
    ]
    file = folder / "segments.json"
    file.write_text(
        json.dumps({"images": images, "annotations": entries[::-1], "categories": names})
    )
    return folder / "png", file


def random_case(
    rng: np.random.Generator,
) -> tuple[Array, list[Segment], Array, list[tuple[int, int]]]:
    """Ids of known and of predicted pixels, and the segments of both; 0 = unknown, or nothing predicted."""
    truth = np.kron(rng.integers(0, 7, (3, 4)), np.ones((6, 6), np.int64)) * 70000
    own, ids = list[Segment](), [int(a) for a in np.unique(truth) if a]
    for a in ids:  # an image has one segment of stuff at most
        kinds = [4, 9] if any(category == 2 for _, category, _ in own) else [4, 9, 2, 2, 2]
        own.append((a, int(rng.choice(kinds)), bool(rng.random() < 0.25)))
    category = {a: b for a, b, _ in own}
    noise = np.kron(rng.integers(0, 7, (6, 8)), np.ones((3, 3), np.int64)) * 70000
    shifted = np.roll(truth, int(rng.integers(1, 4)), 1)
    found = np.where(rng.random(truth.shape) < 0.15, 0, np.where(shifted == 0, noise, shifted))
    pairs = [
        (int(a), category.get(int(a), 4) if rng.random() < 0.7 else int(rng.choice([4, 9, 2])))
        for a in np.unique(found)
        if a
    ]
    return truth, own, found, pairs


def plain(cases: list[Any]) -> dict[int, tuple[float, int, int, int]]:
    """Sum of IoU, pairs, wrong and missed segments by category, by the definition on sets of pixels."""
    sums = {category: [0.0, 0, 0, 0] for category in (4, 9, 2)}
    for truth, own, found, pairs in cases:
        places = [*itertools.product(*map(range, truth.shape))]
        void = {p for p in places if truth[p] == 0}
        known = {a: {p for p in places if truth[p] == a} for a, _, _ in own}
        predicted = {a: {p for p in places if found[p] == a} for a, _ in pairs}
        taken = set()
        for (a, category, crowd), (b, other) in itertools.product(own, pairs):
            both = known[a] & predicted[b]
            iou = len(both) / len(known[a] | (predicted[b] - void))
            if not crowd and category == other and iou > 0.5:
                sums[category][0] += iou
                sums[category][1] += 1
                taken |= {("known", a), ("predicted", b)}
        for b, other in pairs:
            crowds = set().union(
                *(known[a] for a, category, crowd in own if crowd and category == other)
            )
            is_ignored = len(predicted[b] & (void | crowds)) / len(predicted[b]) > 0.5
            sums[other][2] += ("predicted", b) not in taken and not is_ignored
        for a, category, crowd in own:
            sums[category][3] += not crowd and ("known", a) not in taken
    return {category: tuple(own) for category, own in sums.items()}  # type: ignore[misc]


def objects_of(
    found: Array, pairs: list[tuple[int, int]], labels: dict[int, int]
) -> list[dict[str, Any]]:
    rows = [{"id": a, "category_id": labels[b], "isthing": b != 2, "score": 0.9} for a, b in pairs]
    return coco_objects((found, rows))


def test_panoptic_quality_is_its_definition(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number, classes in enumerate([None, ("soil", "disc", "square")] * 2):
        cases = [random_case(rng) for _ in range(10)]
        folder, file = written(
            tmp_path / str(number), [case[0] for case in cases], [case[1] for case in cases]
        )
        data = PanopticImages(file, folder, classes=classes)
        labels = {category: label for label, category in enumerate(data.category_ids)}
        found = score_segments(
            data, {i + 5: objects_of(*case[2:], labels) for i, case in enumerate(cases)}
        )
        sums, quality = plain(cases), {}
        for name, category in zip(NAMES, (4, 9, 2), strict=True):
            iou, pairs, wrong, missed = sums[category]
            assert pairs and wrong + missed, "the case tries everything"
            quality[name] = iou / (pairs + wrong / 2 + missed / 2)
            own = found["per_class"][name]
            expected = {"PQ": quality[name], "SQ": iou / pairs, "RQ": quality[name] * pairs / iou}
            assert own == pytest.approx(expected)
        assert found["PQ"] == pytest.approx(np.mean([*quality.values()]))
        assert found["PQ_things"] == pytest.approx((quality["disc"] + quality["square"]) / 2)
        assert found["PQ_stuff"] == pytest.approx(quality["soil"])


def in_blocks(values: list[list[int]]) -> Array:
    """Each value in a block of 4 x 4 px."""
    return np.kron(np.array(values), np.ones((4, 4), np.int64))


IDS = in_blocks([[1, 2, 0], [3, 3, 4]])  # two discs, soil, and a crowd region of discs
CODES = in_blocks([[2000, 2001, -1], [1000, 1000, -2000]])  # category, number; below 0: unknown


@pytest.fixture
def panoptic_files(tmp_path: Path) -> tuple[Path, Path]:
    """The folder of the PNG files, and the COCO file."""
    segments = [(1, 4, False), (2, 4, False), (3, 2, False), (4, 4, True)]
    folder, file = written(tmp_path / "a", [IDS], [segments])
    return folder, file


@pytest.fixture
def panoptic_images(panoptic_files: tuple[Path, Path]) -> PanopticImages:
    folder, file = panoptic_files
    return PanopticImages(file, folder)


@pytest.fixture
def true_segments() -> list[dict[str, Any]]:
    """All segments, with one more disc in the crowd region."""
    return objects_of(IDS, [(1, 4), (2, 4), (3, 2), (4, 4)], {2: 0, 4: 1})


def test_classes_are_sorted_and_stuff_is_known(panoptic_images: PanopticImages) -> None:
    assert panoptic_images.classes == ("soil", "disc", "square")
    assert panoptic_images.stuff == {0}


def test_neither_stuff_nor_crowds_count_as_objects(panoptic_images: PanopticImages) -> None:
    assert panoptic_images.numbers == {5: 2}


def test_pixels_hold_the_class_and_the_number_of_their_object(
    panoptic_images: PanopticImages,
) -> None:
    assert np.array_equal(panoptic_images.pixels(0), CODES)


def test_pixels_of_other_classes_are_unknown(panoptic_files: tuple[Path, Path]) -> None:
    folder, file = panoptic_files

    pixels = PanopticImages(file, folder, classes=["soil"]).pixels(0)

    assert np.array_equal(pixels, np.where(CODES == 1000, 1000, -1))


def test_true_segments_are_perfect(
    panoptic_images: PanopticImages, true_segments: list[dict[str, Any]]
) -> None:
    scores = score_segments(panoptic_images, {5: true_segments})

    assert scores["PQ"] == 1.0
    assert scores["SQ"] == 1.0
    assert scores["RQ"] == 1.0
    assert scores["PQ_stuff"] == 1.0


def test_a_class_without_segments_has_no_score(
    panoptic_images: PanopticImages, true_segments: list[dict[str, Any]]
) -> None:
    scores = score_segments(panoptic_images, {5: true_segments})

    assert scores["per_class"]["square"] == {"PQ": None, "SQ": None, "RQ": None}


def test_a_segment_in_a_crowd_region_is_one_object_too_many(
    panoptic_images: PanopticImages, true_segments: list[dict[str, Any]]
) -> None:
    scores = score_segments(panoptic_images, {5: true_segments})

    assert scores["count_error"] == 1.0


def test_an_image_without_predictions_scores_0(panoptic_images: PanopticImages) -> None:
    assert score_segments(panoptic_images, {})["PQ"] == 0.0


def test_segments_of_an_unknown_image_are_refused(
    panoptic_images: PanopticImages, true_segments: list[dict[str, Any]]
) -> None:
    with pytest.raises(DataError, match="99"):
        score_segments(panoptic_images, {99: true_segments})


def trained(
    folder: Path, count: int, blocks: str, *flags: object
) -> tuple[Path, tuple[Path, Path]]:
    """Train on scenes; return the folder of the run, and that of the PNG files with the COCO file."""
    segments, file = scenes(folder / "s", count)
    words: list[object] = [
        "train",
        "--panoptic",
        segments,
        file,
        "--images",
        file.parent,
        "--out",
        folder / "run",
    ]
    words += ["--backbone", "dinoneck_tiny", "--layers", *"1245", "--head", blocks, *flags]
    assert cli(*words).code == 0
    return folder / "run", (segments, file)


def scenes(folder: Path, count: int) -> Any:
    """Red discs and blue squares on soil; an edge of every image is unknown."""
    rng, maps, listed, pictures = np.random.default_rng(0), [], [], []
    y, x = np.mgrid[:64, :96]
    for i in range(count):
        ids, own = np.full((64, 96), 300), [(300, 2, False)]
        picture = rng.integers(90, 130, (64, 96, 3), dtype=np.uint8)
        for k in range(1 + i % 2):
            square, cx, cy, r = (
                bool(rng.integers(2)),
                24 + 48 * k,
                int(rng.integers(20, 44)),
                int(rng.integers(10, 16)),
            )
            inside = (
                np.maximum(abs(x - cx), abs(y - cy)) < r
                if square
                else (x - cx) ** 2 + (y - cy) ** 2 < r * r
            )
            ids[inside], picture[inside] = 70000 + k, (40, 60, 220) if square else (220, 40, 40)
            own.append((70000 + k, 9 if square else 4, False))
        ids[:, 94:] = 0
        maps.append(ids), listed.append(own), pictures.append(picture)
    return written(folder, maps, listed, pictures)


@pytest.mark.slow
def test_a_run_is_scored_by_panoptic_quality_and_evaluate_gives_the_same(tmp_path: Path) -> None:
    flags = ("--folds", 2, "--epochs", 2, "--batch-size", 2, "--lr", 3e-3)
    run, (folder, file) = trained(tmp_path, 4, "{num_blocks: 1, dim: 32}", *flags)
    scores = json.loads((run / "report.json").read_text())["segments"]["head"]
    assert scores["images"] == 4 and 0.3 <= scores["min_score"] <= 0.9
    meta = HeadCheckpoint.load(run).meta
    [task], head = meta["tasks"], meta["config"]
    assert (task["kind"], task["things"], task["minimum"]) == (
        "panoptic",
        ["disc", "square"],
        scores["min_score"],
    )
    assert head["num_queries"] == 20, "the fewest"
    counts = {row["image"]: int(float(row["objects"])) for row in rows_of(run / "out_of_fold.csv")}
    assert counts == {f"{i}.png": 1 + i % 2 for i in range(4)}
    found = evaluate(run, None, (folder, file))["segments"]["head"]
    assert found.keys() == scores.keys() - {"min_score"}
    shown = cli(
        "evaluate", file.parent, "--heads", run, "--truth", folder, file, "--at-least", "PQ=1.1"
    )
    assert shown.code == 1 and "segments" in shown.out and "PQ is" in shown.out
    for truth in (file, (folder, file, file)):
        with pytest.raises(DataError, match="segments.json"):
            evaluate(run, file.parent, truth)


@pytest.mark.slow
def test_six_scenes_are_learned_in_150_steps(tmp_path: Path) -> None:
    flags = ("--folds", 1, "--epochs", 150, "--batch-size", 6, "--lr", 2e-3, "--seed", 0)
    run, truth = trained(tmp_path, 6, "{num_blocks: 3, dim: 64}", *flags)
    scores = evaluate(run, None, truth)["segments"]["head"]
    assert scores["PQ"] > 0.85 and scores["RQ"] == 1.0 and scores["count_error"] == 0.0
