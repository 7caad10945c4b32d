"""The comparison with 0.3.0 finds every difference, and no entry of its list outlives one."""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dinoneck
from tests.against.canonical import LEFT_OUT, canonical, canonical_folder, raised
from tests.against.compare import LIST, Comparison, Difference, Entry, judge, read_list
from tests.against.environment import ROOT, this_side
from tests.against.groups import GROUPS
from tests.against.processes import compare_groups
from tests.house.source import imports, lazy_packages, tree_of

FOLDER = Path("/a/temporary/folder")
FLIP = """

_sound_inverse = TargetTransform.inverse
TargetTransform.inverse = lambda self, values: -_sound_inverse(self, values)
"""
"""Python text for the end of the file that defines TargetTransform: predictions change their sign."""


def differences(old: Any, here: Any) -> list[Difference]:
    """Compare two results as the command does, under the address ``group``."""
    comparison = Comparison()
    comparison.compare("group", canonical(old, FOLDER), canonical(here, FOLDER))
    return comparison.differences


def addresses(old: Any, here: Any) -> list[str]:
    return [difference.address for difference in differences(old, here)]


@pytest.mark.parametrize(
    "value",
    [
        pytest.param({"a": [1, 2.5, "text", None, True]}, id="plain values"),
        pytest.param(float("nan"), id="NaN"),
        pytest.param(np.array([1.0, np.nan]), id="array with NaN"),
        pytest.param(np.array(["a", 1], dtype=object), id="array of objects"),
        pytest.param(torch.ones(2, 3, dtype=torch.bfloat16), id="bfloat16 tensor"),
        pytest.param(torch.zeros(0, 4), id="empty tensor"),
        pytest.param({}, id="nothing"),
    ],
)
def test_equal_results_have_no_difference(value: Any) -> None:
    assert differences(value, value) == []


@pytest.mark.parametrize(
    ("old", "here"),
    [
        pytest.param(1, 1.0, id="int and float"),
        pytest.param(0.0, -0.0, id="sign of zero"),
        pytest.param(1.0, np.nextafter(1.0, 2.0).item(), id="last bit"),
        pytest.param(1.0, np.float64(1.0), id="number and NumPy scalar"),
        pytest.param(True, 1, id="bool and int"),
        pytest.param("a", "b", id="text"),
        pytest.param(np.ones(2), np.ones(2, np.float32), id="dtype"),
        pytest.param(np.ones((2, 1)), np.ones((1, 2)), id="shape"),
        pytest.param(np.ones(2), torch.ones(2, dtype=torch.float64), id="array and tensor"),
        pytest.param(torch.zeros(2), -torch.zeros(2), id="sign of zeros"),
    ],
)
def test_a_change_of_value_or_type_is_a_difference(old: Any, here: Any) -> None:
    assert addresses({"a": old}, {"a": here}) == ["group/a"]


def test_a_missing_key_and_a_new_one_are_differences() -> None:
    old = {"score": {"r2": 0.5, "mae": 2.0}}
    here = {"score": {"r2": 0.5, "rmse": 3.0}}
    assert addresses(old, here) == ["group/score/mae", "group/score/rmse"]


def test_another_order_of_keys_is_one_difference() -> None:
    found = differences({"score": {"r2": 0.5, "mae": 2.0}}, {"score": {"mae": 2.0, "r2": 0.5}})
    assert [difference.address for difference in found] == ["group/score"]
    assert found[0].note == "order of keys"


def test_a_longer_list_is_a_difference_where_it_is_longer() -> None:
    assert addresses([1, 2], [1, 2, 3]) == ["group/2"]


def test_an_error_in_place_of_a_result_is_a_difference_with_its_message() -> None:
    comparison = Comparison()
    error = raised(TypeError("no argument reduce"), FOLDER)
    comparison.compare("group/case", canonical({"mass": 1.0}, FOLDER), error)
    [difference] = comparison.differences
    assert difference.address == "group/case"
    assert difference.here == "raises TypeError: no argument reduce"


def test_the_report_says_how_far_arrays_are_apart() -> None:
    [difference] = differences(np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.25, 4.0]))
    assert "largest difference of all values 0.25" in difference.note


def test_the_report_of_a_large_array_says_that_it_knows_a_sample() -> None:
    [difference] = differences(torch.zeros(1000), torch.ones(1000))
    assert "largest difference of 32 of 1000 values 1," in difference.note


def test_the_report_shows_where_long_texts_differ() -> None:
    [difference] = differences("x" * 200 + "old", "x" * 200 + "here")
    assert difference.old.endswith("old'")
    assert difference.here.endswith("here'")


def test_times_versions_and_prose_are_left_out_but_their_keys_are_compared() -> None:
    old = {"seconds": 1.5, "dinoneck": "0.3.0", "message": "old words"}
    here = {"seconds": 2.5, "dinoneck": "0.4.0", "message": "new words"}
    assert canonical(old, FOLDER) == dict.fromkeys(old, LEFT_OUT)
    assert addresses(old, here) == []
    assert addresses(old, {"seconds": 2.5, "dinoneck": "0.4.0"}) == ["group/message"]


def test_why_an_image_was_left_out_is_prose_and_which_one_is_not() -> None:
    old = {"unusable": {"a.png": "it is broken"}}
    assert addresses(old, {"unusable": {"a.png": "cannot be decoded"}}) == []
    assert addresses(old, {"unusable": {}}) == ["group/unusable/a.png"]


def test_temporary_names_become_fixed_words() -> None:
    text = f"{FOLDER}/run http://127.0.0.1:4711/me/one/{'ab' * 20} s/w-{'01' * 12}-000000"
    fixed = canonical(text, FOLDER)
    assert fixed == "FOLDER/run http://127.0.0.1:PORT/me/one/COMMIT s/w-WRITER-000000"


def test_an_object_without_a_plain_form_is_an_error() -> None:
    with pytest.raises(TypeError, match="object has no plain form"):
        canonical({"a": object()}, FOLDER)


def test_files_are_compared_by_content(tmp_path: Path) -> None:
    head = dinoneck.PatchMeanHead(64, [dinoneck.Task("mass")], hidden_dim=4)
    dinoneck.save_head(tmp_path / "head.safetensors", head)
    (tmp_path / "table.csv").write_text("image,mass\na.png,1.5\n")
    (tmp_path / "report.json").write_text('{"seconds": 3, "r2": NaN}')
    (tmp_path / "log.jsonl").write_text('{"epoch": 0}\n{"epoch": 1}\n')
    (tmp_path / "page.html").write_text("<p>prose</p>")
    contents = canonical_folder(tmp_path, tmp_path)
    assert list(contents) == [
        "head.safetensors",
        "log.jsonl",
        "page.html",
        "report.json",
        "table.csv",
    ]
    file = contents["head.safetensors"]
    assert file["metadata"]["dinoneck"]["created_by"] == LEFT_OUT
    assert file["metadata"]["dinoneck"]["head_type"] == "patch_mean"
    assert file["tensors"].keys() == head.state_dict().keys()
    assert contents["log.jsonl"] == [{"epoch": 0}, {"epoch": 1}]
    assert contents["page.html"] == LEFT_OUT
    assert repr(contents["report.json"]) == "{'seconds': '(left out)', 'r2': nan}"
    assert contents["table.csv"] == ["image,mass", "a.png,1.5"]


ONE = Difference("training/masks/report.json/scores", "1", "2")
OTHER = Difference("predictors/one_head/maps=None/0/mass", "1", "2")


def entry(address: str) -> Entry:
    return Entry(address=address, what="what", commit="1a2b3c4d", why="why")


def test_a_difference_without_an_entry_is_unlisted() -> None:
    judgement = judge([ONE, OTHER], [entry("training/masks")], GROUPS)
    assert judgement.listed == [ONE]
    assert judgement.unlisted == [OTHER]
    assert judgement.stale == []


@pytest.mark.parametrize(
    ("address", "covers"),
    [
        ("training/masks/report.json/scores", True),
        ("training/masks", True),
        ("training", True),
        ("training/*/scores", True),
        ("training/*/report.json", True),
        ("training/mask", False),
        ("training/masks/report.json/scores/soil", False),
        ("predictors/*", False),
    ],
)
def test_an_entry_covers_its_address_and_everything_below(address: str, covers: bool) -> None:
    assert entry(address).covers(ONE.address) is covers


def test_an_entry_without_a_difference_is_stale() -> None:
    unused = entry("training/two_heads")
    judgement = judge([ONE], [entry("training/masks"), unused], GROUPS)
    assert judgement.stale == [unused]


def test_an_entry_of_a_group_that_was_not_run_is_not_stale() -> None:
    judgement = judge([OTHER], [entry("training/masks"), entry("predictors/one_head")], ["objects"])
    assert judgement.stale == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[[difference]]\naddress = "training"\nwhat = ""\ncommit = ""\n', "entry 1 has address"),
        (
            '[[difference]]\naddress = "trainings/x"\nwhat = ""\ncommit = ""\nwhy = ""\n',
            "trainings/x of entry 1 begins with no group",
        ),
    ],
    ids=["a field is missing", "an unknown group"],
)
def test_a_wrong_entry_is_an_error(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "list.toml").write_text(text)
    with pytest.raises(ValueError, match=words):
        read_list(tmp_path / "list.toml", GROUPS)


def test_the_list_of_this_checkout_can_be_read() -> None:
    read_list(LIST, GROUPS)


def test_the_cases_use_public_names_only() -> None:
    """They run with 0.3.0 too, so a renamed module must not break them."""
    packages = lazy_packages()
    public = set(packages)
    for name, package in packages.items():
        public.update(f"{name}.{public_name}" for public_name in package.__all__)
    transcripts = ROOT / "tests" / "transcripts"
    files = [*Path(__file__).parent.glob("*.py")]
    files += [transcripts / "materials.py", transcripts / "scenes.py", ROOT / "tests/hub_server.py"]
    internal = []
    for file in files:
        for module, name in imports(tree_of(file)):
            if module.split(".")[0] == "dinoneck" and name not in public:
                internal.append(f"{file.name}: {name}")
    assert internal == []


@pytest.mark.slow
def test_this_checkout_is_equal_to_itself_and_a_flipped_sign_is_found(tmp_path: Path) -> None:
    source = tmp_path / "src"
    shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))

    # the files of a store have names, times and paths that differ from run to run
    assert compare_groups(this_side(), this_side(source), {"transcripts": ["stores"]}) == []

    defined_in = Path(str(inspect.getsourcefile(dinoneck.TargetTransform)))
    copied = source / defined_in.relative_to(ROOT / "src")
    copied.write_text(copied.read_text() + FLIP)
    # the target of the first has a transform, that of the second has none
    cases = {"predictors": ["one_head", "gate_d6"]}
    found = compare_groups(this_side(), this_side(source), cases)
    assert found
    assert {difference.case for difference in found} == {"one_head"}
