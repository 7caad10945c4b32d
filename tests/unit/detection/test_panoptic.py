"""Panoptic segments: reading COCO's PNG files, panoptic quality, training, and scores of a finished head."""

from __future__ import annotations

import json
from dataclasses import dataclass
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
CATEGORIES = {4: "disc", 9: "square", 2: "soil"}
STUFF = 2
IDS_IN_STEPS = 70000  # so that an id fills three colours of a PNG file
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Segment:
    """One entry of ``segments_info``: the id of its pixels, its category, whether it is a crowd region."""

    id: int
    category: int
    is_crowd: bool = False


@dataclass(frozen=True)
class PanopticFiles:
    """The folder of the PNG files with ids, and the COCO file."""

    folder: Path
    file: Path


def colours_of(ids: Array) -> Array:
    """Ids as COCO writes them: red, then green and blue for the larger ones."""
    return np.stack([ids % 256, ids // 256 % 256, ids // 256**2], axis=-1).astype(np.uint8)


def write_panoptic(
    folder: Path,
    maps: list[Array],
    segments: list[list[Segment]],
    pictures: list[Array] | None = None,
) -> PanopticFiles:
    """Write images (black ones, if none are given), their PNG files and their COCO file."""
    (folder / "png").mkdir(parents=True)
    images = []
    annotations = []
    for number, ids in enumerate(maps):
        height, width = ids.shape
        picture = np.zeros((height, width, 3), np.uint8)
        if pictures is not None:
            picture = pictures[number]
        image_id = number + 5
        Image.fromarray(picture).save(folder / f"{number}.png")
        Image.fromarray(colours_of(ids)).save(folder / "png" / f"s{number}.png")
        images.append(
            {"id": image_id, "file_name": f"{number}.png", "height": height, "width": width}
        )
        listed = []
        for segment in segments[number]:
            listed.append(
                {
                    "id": segment.id,
                    "category_id": segment.category,
                    "iscrowd": int(segment.is_crowd),
                }
            )
        annotations.append(
            {"image_id": image_id, "file_name": f"s{number}.png", "segments_info": listed}
        )
    categories = []
    for category, name in CATEGORIES.items():
        categories.append({"id": category, "name": name, "isthing": int(category != STUFF)})
    content = {"images": images, "annotations": annotations[::-1], "categories": categories}
    file = folder / "segments.json"
    file.write_text(json.dumps(content))
    return PanopticFiles(folder=folder / "png", file=file)


# Panoptic quality, by its definition on sets of pixels


@dataclass(frozen=True)
class DrawnImage:
    """Ids of known and of predicted pixels, and the segments of both; 0 = unknown, or nothing predicted."""

    truth: Array
    known: list[Segment]
    found: Array
    predicted: list[Segment]


def drawn_blocks(rng: np.random.Generator, rows: int, cols: int, side: int) -> Array:
    """Ids in square blocks."""
    numbers = rng.integers(0, 7, (rows, cols))
    return np.kron(numbers, np.ones((side, side), np.int64)) * IDS_IN_STEPS


def ids_in(ids: Array) -> list[int]:
    return [int(number) for number in np.unique(ids) if number]


def draw_image(rng: np.random.Generator) -> DrawnImage:
    """Random segments, and predictions that are them a little to the side, with gaps and noise."""
    truth = drawn_blocks(rng, 3, 4, side=6)
    known: list[Segment] = []
    for number in ids_in(truth):
        has_stuff = any(segment.category == STUFF for segment in known)
        choices = [4, 9] if has_stuff else [4, 9, 2, 2, 2]  # one segment of stuff at most
        category = int(rng.choice(choices))
        known.append(Segment(number, category, is_crowd=bool(rng.random() < 0.25)))
    category_of = {segment.id: segment.category for segment in known}
    noise = drawn_blocks(rng, 6, 8, side=3)
    shifted = np.roll(truth, int(rng.integers(1, 4)), 1)
    is_gap = rng.random(truth.shape) < 0.15
    found = np.where(is_gap, 0, np.where(shifted == 0, noise, shifted))
    predicted = []
    for number in ids_in(found):
        is_right = rng.random() < 0.7
        category = category_of.get(number, 4) if is_right else int(rng.choice([4, 9, 2]))
        predicted.append(Segment(number, category))
    return DrawnImage(truth=truth, known=known, found=found, predicted=predicted)


@dataclass
class Matches:
    """What is counted of a category: the IoU of its pairs in all, pairs, wrong and missed segments."""

    iou: float = 0.0
    pairs: int = 0
    wrong: int = 0
    missed: int = 0

    @property
    def quality(self) -> float:
        return self.iou / (self.pairs + self.wrong / 2 + self.missed / 2)

    @property
    def scores(self) -> dict[str, float]:
        return {
            "PQ": self.quality,
            "SQ": self.iou / self.pairs,
            "RQ": self.quality * self.pairs / self.iou,
        }


Places = set[tuple[int, int]]


def places_of(ids: Array, number: int) -> Places:
    """The pixels of a segment."""
    rows, cols = np.nonzero(ids == number)
    return set(zip(rows.tolist(), cols.tolist(), strict=True))


def count_image(image: DrawnImage, matches: dict[int, Matches]) -> None:
    """Add the segments of an image to the counts of their categories."""
    void = places_of(image.truth, 0)
    known = {segment.id: places_of(image.truth, segment.id) for segment in image.known}
    predicted = {segment.id: places_of(image.found, segment.id) for segment in image.predicted}
    matched_known = set()
    matched_predicted = set()
    for truth in image.known:
        for found in image.predicted:
            both = known[truth.id] & predicted[found.id]
            union = known[truth.id] | (predicted[found.id] - void)
            iou = len(both) / len(union)
            if not truth.is_crowd and truth.category == found.category and iou > 0.5:
                matches[truth.category].iou += iou
                matches[truth.category].pairs += 1
                matched_known.add(truth.id)
                matched_predicted.add(found.id)
    for found in image.predicted:
        ignored = set(void)
        for truth in image.known:
            if truth.is_crowd and truth.category == found.category:
                ignored |= known[truth.id]
        pixels = predicted[found.id]
        is_ignored = len(pixels & ignored) / len(pixels) > 0.5
        if found.id not in matched_predicted and not is_ignored:
            matches[found.category].wrong += 1
    for truth in image.known:
        if truth.id not in matched_known and not truth.is_crowd:
            matches[truth.category].missed += 1


def objects_of(
    found: Array, predicted: list[Segment], labels: dict[int, int]
) -> list[dict[str, Any]]:
    rows = []
    for segment in predicted:
        rows.append(
            {
                "id": segment.id,
                "category_id": labels[segment.category],
                "isthing": segment.category != STUFF,
                "score": 0.9,
            }
        )
    return coco_objects((found, rows))


@dataclass
class ScoredImages:
    """The scores of ten drawn images, and their counts by the definition."""

    scores: dict[str, Any]
    matches: dict[str, Matches]  # by the name of the category


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((0, None), id="classes of the file"),
        pytest.param((1, ("soil", "disc", "square")), id="classes in another order"),
        pytest.param((2, None), id="other images"),
        pytest.param((3, ("soil", "disc", "square")), id="other images in another order"),
    ],
)
def scored_images(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> ScoredImages:
    seed, classes = request.param
    rng = np.random.default_rng(seed)
    images = [draw_image(rng) for _ in range(10)]
    files = write_panoptic(
        tmp_path_factory.mktemp("scored"),
        [image.truth for image in images],
        [image.known for image in images],
    )
    data = PanopticImages(files.file, files.folder, classes=classes)
    labels = {category: label for label, category in enumerate(data.category_ids)}
    matches = {category: Matches() for category in CATEGORIES}
    predictions = {}
    for number, image in enumerate(images):
        count_image(image, matches)
        predictions[number + 5] = objects_of(image.found, image.predicted, labels)
    return ScoredImages(
        scores=score_segments(data, predictions),
        matches={CATEGORIES[category]: counts for category, counts in matches.items()},
    )


@pytest.mark.parametrize("name", CATEGORIES.values())
def test_the_drawn_images_try_everything(name: str, scored_images: ScoredImages) -> None:
    matches = scored_images.matches[name]

    assert matches.pairs > 0
    assert matches.wrong + matches.missed > 0


@pytest.mark.parametrize("name", CATEGORIES.values())
def test_panoptic_quality_is_its_definition(name: str, scored_images: ScoredImages) -> None:
    scores = scored_images.scores["per_class"][name]

    assert scores == pytest.approx(scored_images.matches[name].scores)


@pytest.mark.parametrize(
    ("score", "names"),
    [
        pytest.param("PQ", ["disc", "square", "soil"], id="all"),
        pytest.param("PQ_things", ["disc", "square"], id="things"),
        pytest.param("PQ_stuff", ["soil"], id="stuff"),
    ],
)
def test_panoptic_quality_of_several_classes_is_their_mean(
    score: str, names: list[str], scored_images: ScoredImages
) -> None:
    qualities = [scored_images.matches[name].quality for name in names]

    assert scored_images.scores[score] == pytest.approx(np.mean(qualities))


# One image, and what its segments score


def in_blocks(values: list[list[int]]) -> Array:
    """Each value in a block of 4 x 4 px."""
    return np.kron(np.array(values), np.ones((4, 4), np.int64))


IDS = in_blocks([[1, 2, 0], [3, 3, 4]])  # two discs, soil, and a crowd region of discs
CODES = in_blocks([[2000, 2001, -1], [1000, 1000, -2000]])  # category, number; below 0: unknown


@pytest.fixture
def panoptic_files(tmp_path: Path) -> PanopticFiles:
    segments = [
        Segment(1, 4),
        Segment(2, 4),
        Segment(3, 2),
        Segment(4, 4, is_crowd=True),
    ]
    return write_panoptic(tmp_path / "a", [IDS], [segments])


@pytest.fixture
def panoptic_images(panoptic_files: PanopticFiles) -> PanopticImages:
    return PanopticImages(panoptic_files.file, panoptic_files.folder)


@pytest.fixture
def true_segments() -> list[dict[str, Any]]:
    """All segments, with one more disc in the crowd region."""
    segments = [Segment(1, 4), Segment(2, 4), Segment(3, 2), Segment(4, 4)]
    return objects_of(IDS, segments, labels={2: 0, 4: 1})


def test_classes_are_sorted_and_stuff_is_known(panoptic_images: PanopticImages) -> None:
    assert panoptic_images.classes == ("soil", "disc", "square")
    assert panoptic_images.stuff == {0}


def test_neither_stuff_nor_crowds_count_as_objects(panoptic_images: PanopticImages) -> None:
    assert panoptic_images.numbers == {5: 2}


def test_pixels_hold_the_class_and_the_number_of_their_object(
    panoptic_images: PanopticImages,
) -> None:
    assert np.array_equal(panoptic_images.pixels(0), CODES)


def test_pixels_of_other_classes_are_unknown(panoptic_files: PanopticFiles) -> None:
    soil = PanopticImages(panoptic_files.file, panoptic_files.folder, classes=["soil"])

    pixels = soil.pixels(0)

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


# Runs


@dataclass
class PanopticRun:
    """A training on scenes of red discs and blue squares on soil."""

    folder: Path
    truth: PanopticFiles

    @property
    def scores(self) -> dict[str, Any]:
        """Those that the training reports."""
        report = json.loads((self.folder / "report.json").read_text())
        return report["segments"]["head"]

    def evaluate(self) -> dict[str, Any]:
        truth = (self.truth.folder, self.truth.file)
        return evaluate(self.folder, None, truth)["segments"]["head"]


def train_on_scenes(folder: Path, count: int, blocks: str, *flags: object) -> PanopticRun:
    truth = write_scenes(folder / "s", count)
    words: list[object] = ["train", "--panoptic", truth.folder, truth.file]
    words += ["--images", truth.file.parent, "--out", folder / "run"]
    words += ["--backbone", "dinoneck_tiny", "--layers", 1, 2, 4, 5, "--head", blocks, *flags]
    ran = cli(*words)
    assert ran.code == 0, ran.err
    return PanopticRun(folder=folder / "run", truth=truth)


HEIGHT, WIDTH = 64, 96
SOIL_ID = 300
RED = (220, 40, 40)
BLUE = (40, 60, 220)


def write_scenes(folder: Path, count: int) -> PanopticFiles:
    """One or two red discs and blue squares on soil; an edge of every image is unknown."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    maps = []
    segments = []
    pictures = []
    for number in range(count):
        ids = np.full((HEIGHT, WIDTH), SOIL_ID)
        of_image = [Segment(SOIL_ID, STUFF)]
        picture = rng.integers(90, 130, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        for place in range(1 + number % 2):
            is_square = bool(rng.integers(2))
            centre_x = 24 + 48 * place
            centre_y = int(rng.integers(20, 44))
            radius = int(rng.integers(10, 16))
            if is_square:
                inside = np.maximum(abs(x - centre_x), abs(y - centre_y)) < radius
            else:
                inside = (x - centre_x) ** 2 + (y - centre_y) ** 2 < radius**2
            ids[inside] = IDS_IN_STEPS + place
            picture[inside] = BLUE if is_square else RED
            of_image.append(Segment(IDS_IN_STEPS + place, 9 if is_square else 4))
        ids[:, 94:] = 0
        maps.append(ids)
        segments.append(of_image)
        pictures.append(picture)
    return write_panoptic(folder, maps, segments, pictures)


@pytest.fixture(scope="module")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> PanopticRun:
    flags = ("--folds", 2, "--epochs", 2, "--batch-size", 2, "--lr", 3e-3)
    folder = tmp_path_factory.mktemp("short")
    return train_on_scenes(folder, 4, "{num_blocks: 1, dim: 32}", *flags)


@pytest.mark.slow
def test_a_run_chooses_the_least_score_of_segments(short_run: PanopticRun) -> None:
    assert short_run.scores["images"] == 4
    assert 0.3 <= short_run.scores["min_score"] <= 0.9


@pytest.mark.slow
def test_the_task_of_a_run_holds_things_and_the_least_score(short_run: PanopticRun) -> None:
    [task] = HeadCheckpoint.load(short_run.folder).meta["tasks"]

    assert task["kind"] == "panoptic"
    assert task["things"] == ["disc", "square"]
    assert task["minimum"] == short_run.scores["min_score"]


@pytest.mark.slow
def test_a_run_on_few_objects_has_the_fewest_queries(short_run: PanopticRun) -> None:
    config = HeadCheckpoint.load(short_run.folder).meta["config"]

    assert config["num_queries"] == 20


@pytest.mark.slow
def test_the_table_of_a_run_counts_objects(short_run: PanopticRun) -> None:
    counts = {}
    for row in rows_of(short_run.folder / "out_of_fold.csv"):
        counts[row["image"]] = float(row["objects"])

    assert counts == {"0.png": 1, "1.png": 2, "2.png": 1, "3.png": 2}


@pytest.mark.slow
def test_evaluate_scores_a_run_by_panoptic_quality(short_run: PanopticRun) -> None:
    assert short_run.evaluate().keys() == short_run.scores.keys() - {"min_score"}


@pytest.mark.slow
def test_the_command_fails_below_a_panoptic_quality(short_run: PanopticRun) -> None:
    truth = short_run.truth
    words = ["--heads", short_run.folder, "--truth", truth.folder, truth.file]

    ran = cli("evaluate", truth.file.parent, *words, "--at-least", "PQ=1.1")

    assert ran.code == 1
    assert "segments" in ran.out
    assert "PQ is" in ran.out


@pytest.mark.slow
def test_a_truth_without_png_files_is_refused(short_run: PanopticRun) -> None:
    file = short_run.truth.file

    with pytest.raises(DataError, match="segments.json"):
        evaluate(short_run.folder, file.parent, file)


@pytest.mark.slow
def test_a_truth_of_three_paths_is_refused(short_run: PanopticRun) -> None:
    file = short_run.truth.file

    with pytest.raises(DataError, match="segments.json"):
        evaluate(short_run.folder, file.parent, (short_run.truth.folder, file, file))


@pytest.mark.slow
def test_six_scenes_are_learned_in_150_steps(tmp_path: Path) -> None:
    """One fold trains on all six images, and these are scored: every segment is found, and none more."""
    flags = ("--folds", 1, "--epochs", 150, "--batch-size", 6, "--lr", 2e-3, "--seed", 0)
    run = train_on_scenes(tmp_path, 6, "{num_blocks: 3, dim: 64}", *flags)

    scores = run.evaluate()

    assert scores["PQ"] > 0.85
    assert scores["RQ"] == 1.0
    assert scores["count_error"] == 0.0
