"""The comparison with 0.3.0 finds every difference, and no entry of its list outlives one."""

from __future__ import annotations

import inspect
import shutil
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

import dinoneck
from tests.against.canonical import (
    canonical,
    canonical_file,
    canonical_folder,
    canonical_json,
    raised,
)
from tests.against.compare import (
    LIST,
    Comparison,
    Difference,
    Entry,
    judge,
    read_list,
    without_type,
)
from tests.against.environment import ROOT, this_side
from tests.against.groups import GROUPS
from tests.against.left_out import LEFT_OUT, REPORT, of_verb
from tests.against.processes import compare_groups
from tests.against.this_version import run_command, warning_categories
from tests.house.source import imports, lazy_packages, tree_of

FOLDER = Path("/a/temporary/folder")
FLIP = """

_sound_inverse = TargetTransform.inverse
TargetTransform.inverse = lambda self, values: -_sound_inverse(self, values)
"""
"""Python text for the end of the file that defines TargetTransform: predictions change their sign."""

OTHER_FORMS = """

_sound_call = Predictor.__call__
_sound_predict = Predictor.predict


def _call(self, images, maps=None, probabilities=False, min_score=None):
    rows = _sound_call(self, images, maps, probabilities, min_score)
    for row in rows:
        if probabilities:
            row["maps"] = {name: cells.astype("float64") for name, cells in row["maps"].items()}
    return rows


def _predict(self, *arguments, **options):
    rows = _sound_predict(self, *arguments, **options)
    return [dict(reversed(row.items())) for row in rows]


Predictor.__call__ = _call
Predictor.predict = _predict
"""
"""Python text for the end of the file that defines Predictor: numbers are the same, their form is not."""


def differences(old: Any, here: Any) -> list[Difference]:
    """Compare two results as the command does, under the address ``group``."""
    comparison = Comparison()
    comparison.compare("group", canonical(old, FOLDER), canonical(here, FOLDER))
    return comparison.differences


def addresses(old: Any, here: Any) -> list[str]:
    return [difference.address for difference in differences(old, here)]


def file_differences(tmp_path: Path, name: str, old: bytes, here: bytes) -> list[str]:
    """Compare two contents of a file of a name; return the addresses of what differs."""
    forms = []
    for number, content in enumerate((old, here)):
        folder = tmp_path / str(number)
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
        forms.append(canonical_file(folder / name, folder))
    comparison = Comparison()
    comparison.compare("file", *forms)
    return [difference.address for difference in comparison.differences]


class Pair(NamedTuple):
    a: int
    b: int


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
        pytest.param([1, 2], (1, 2), id="list and tuple"),
        pytest.param((1, 2), Pair(1, 2), id="tuple and namedtuple"),
        pytest.param({"b": 1}, OrderedDict(b=1), id="dict and another mapping"),
        pytest.param(np.array(1.0), np.float64(1.0), id="0-d array and NumPy scalar"),
        pytest.param(np.array([1, "a"], object), [1, "a"], id="object array and list"),
        pytest.param(Path("a"), "a", id="path and text"),
        pytest.param(np.str_("a"), "a", id="NumPy text and text"),
        pytest.param(b"a", b"b", id="bytes"),
        pytest.param(
            torch.ones(1, 2, 3, 4),
            torch.ones(1, 2, 3, 4).to(memory_format=torch.channels_last),
            id="channels_last",
        ),
        pytest.param(np.ones((2, 3)), np.ones((2, 3), order="F"), id="order of axes in memory"),
        pytest.param(torch.ones(2), torch.ones(2, requires_grad=True), id="requires_grad"),
        pytest.param(torch.ones(2), torch.nn.Parameter(torch.ones(2), False), id="parameter"),
    ],
)
def test_a_change_of_value_or_type_is_a_difference(old: Any, here: Any) -> None:
    assert set(addresses({"a": old}, {"a": here})) == {"group/a"}


def test_an_array_of_one_row_has_the_same_order_however_it_was_made() -> None:
    row = torch.ones(1, 3)
    assert addresses(row, torch.ones(3, 1).T) == []


def test_keys_of_other_types_are_other_keys() -> None:
    assert addresses({1: "a"}, {"1": "a"}) == ["group/1 (int)", "group/1"]


def test_values_in_a_container_of_another_type_are_compared_too() -> None:
    assert addresses({"a": [1, 2]}, {"a": (1, 3)}) == ["group/a", "group/a/1"]


def test_a_missing_key_and_a_new_one_are_differences() -> None:
    old = {"score": {"r2": 0.5, "mae": 2.0}}
    here = {"score": {"r2": 0.5, "rmse": 3.0}}
    assert addresses(old, here) == ["group/score/mae", "group/score/rmse"]


def test_another_order_of_keys_is_one_difference() -> None:
    found = differences({"score": {"r2": 0.5, "mae": 2.0}}, {"score": {"mae": 2.0, "r2": 0.5}})
    assert [difference.address for difference in found] == ["group/score/order of keys"]


def test_a_longer_list_is_a_difference_where_it_is_longer() -> None:
    assert addresses([1, 2], [1, 2, 3]) == ["group/2"]


def test_items_with_names_are_compared_by_name() -> None:
    old = [{"name": "torch", "state": "ok"}, {"name": "timm", "state": "ok"}]
    here = [{"name": "python"}, {"name": "torch", "state": "ok"}, {"name": "timm", "state": "no"}]
    assert addresses(old, here) == ["group/timm/state", "group/python"]


def test_another_order_of_items_with_names_is_a_difference() -> None:
    [difference] = differences([{"name": "a"}, {"name": "b"}], [{"name": "b"}, {"name": "a"}])
    assert (difference.old, difference.here) == ("a, b", "b, a")


def test_items_that_share_a_name_are_compared_by_position() -> None:
    old = [{"name": "a", "x": 1}, {"name": "a", "x": 2}]
    here = [{"name": "a", "x": 2}, {"name": "a", "x": 2}]
    assert addresses(old, here) == ["group/0/x"]


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
    old = {"minutes": 1.5, "verdict": "old words"}
    here = {"minutes": 2.5, "verdict": "new words"}
    plain = canonical(old, FOLDER, left_out=REPORT)
    assert plain == dict.fromkeys(old, LEFT_OUT)
    assert plain == canonical(here, FOLDER, left_out=REPORT)


@pytest.mark.parametrize("name", ["text", "bytes", "message", "verdict", "seconds", "digest"])
def test_a_task_with_the_name_of_something_left_out_is_compared(name: str) -> None:
    assert addresses([{name: 1.0}], [{name: 2.0}]) == [f"group/0/{name}"]
    old = {"scores": {name: 1.0}, "seconds": 1}
    assert canonical(old, FOLDER, left_out=REPORT) == old


def test_why_an_image_was_left_out_is_prose_and_which_one_is_not(tmp_path: Path) -> None:
    def form(text: str) -> Any:
        return canonical_json(text, tmp_path, of_verb("predict"))

    broken = form('{"unusable": {"a.png": "it is broken"}}')
    assert broken == form('{"unusable": {"a.png": "cannot be decoded"}}')
    assert broken != form('{"unusable": {"b.png": "it is broken"}}')


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
    (tmp_path / "report.json").write_text('{"minutes": 3, "r2": NaN}')
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
    header = without_type(file["header"])
    meta = without_type(without_type(header["__metadata__"])["dinoneck"])
    assert meta["created_by"] == LEFT_OUT
    assert meta["head_type"] == "patch_mean"
    assert file["tensors"].keys() == head.state_dict().keys()
    assert [without_type(line) for line in contents["log.jsonl"]] == [
        {"epoch": 0},
        {"epoch": 1},
        "",
    ]
    assert contents["page.html"] == LEFT_OUT
    report = without_type(contents["report.json"])
    assert repr(report) == "{'minutes': '(left out)', 'r2': nan}"
    assert contents["table.csv"] == ["image,mass", "a.png,1.5", ""]


REPORT_TEXT = b'{\n  "minutes": 1,\n  "r2": [0.5, 1e-05]\n}\n'


@pytest.mark.parametrize(
    ("name", "old", "here"),
    [
        pytest.param("a.csv", b"a,b\n1,2\n", b"a,b\r\n1,2\r\n", id="CRLF in a table"),
        pytest.param("a.csv", b"a\n1\n", b"a\n1", id="no final newline in a table"),
        pytest.param("a.yaml", b"a: 1\n", b"a:  1\n", id="spaces in YAML"),
        pytest.param("a.txt", b"text\n", b"other\n", id="words of a text"),
        pytest.param("a.jsonl", b"{}\n", b"{}", id="no final newline in a log"),
        pytest.param("a.jsonl", b"{}\n", b"{}\r\n", id="CRLF in a log"),
    ],
)
def test_the_raw_text_of_files_is_compared(
    tmp_path: Path, name: str, old: bytes, here: bytes
) -> None:
    assert file_differences(tmp_path, name, old, old) == []
    assert file_differences(tmp_path, name, old, here) != []


@pytest.mark.parametrize(
    ("here", "found"),
    [
        pytest.param(REPORT_TEXT, [], id="the same"),
        pytest.param(REPORT_TEXT.replace(b": 1,", b": 22.5,"), [], id="another time"),
        pytest.param(REPORT_TEXT.replace(b"0.5", b"0.6"), ["file/r2/0"], id="number"),
        pytest.param(REPORT_TEXT.replace(b"0.5", b"0.50"), ["file/r2/0"], id="form of a number"),
        pytest.param(REPORT_TEXT.replace(b"1e-05", b"1E-5"), ["file/r2/1"], id="exponent"),
        pytest.param(
            REPORT_TEXT.replace(b"\n", b"").replace(b"  ", b""), ["file", "file"], id="compact"
        ),
        pytest.param(REPORT_TEXT.replace(b"  ", b" "), ["file"], id="indent"),
        pytest.param(REPORT_TEXT.replace(b", 1e", b",1e"), ["file/r2"], id="spaces of a list"),
        pytest.param(REPORT_TEXT[:-1], ["file"], id="no final newline"),
        pytest.param(REPORT_TEXT.replace(b"\n", b"\r\n"), ["file", "file"], id="CRLF"),
        pytest.param(
            REPORT_TEXT.replace(b'"r2"', b'"r\\u0032"'),
            ["file/r2", 'file/r2 (written "r\\u0032")'],
            id="escape",
        ),
        pytest.param(
            REPORT_TEXT.replace(b"1,\n", b'1,\n  "minutes": 2,\n'),
            ["file/minutes (time 2)"],
            id="key that is there twice",
        ),
    ],
)
def test_how_a_json_file_is_written_is_compared(
    tmp_path: Path, here: bytes, found: list[str]
) -> None:
    assert file_differences(tmp_path, "report.json", REPORT_TEXT, here) == found


def test_escaped_letters_and_plain_ones_differ(tmp_path: Path) -> None:
    plain = '{"a": "Grün"}'.encode()
    escaped = b'{"a": "Gr\\u00fcn"}'
    assert file_differences(tmp_path, "a.json", plain, escaped) == ["file/a"]


def test_the_digest_of_a_store_is_compared_and_that_of_a_head_is_not(tmp_path: Path) -> None:
    old = b'{"created_by": "dinoneck 0.3.0", "digest": "a"}'
    here = b'{"created_by": "dinoneck 0.4.0", "digest": "b"}'
    assert file_differences(tmp_path, "store.json", old, here) == ["file/digest"]

    def form(text: bytes) -> Any:
        return canonical_json(text.decode(), tmp_path, of_verb("inspect"))

    assert form(old) == form(here)


def write_picture(path: Path, **options: Any) -> Any:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (4, 2), "green").save(path, **options)
    return canonical_file(path, path.parent)


def test_metadata_of_a_picture_is_compared_and_its_compression_is_not(tmp_path: Path) -> None:
    picture = write_picture(tmp_path / "a.png")
    assert picture == write_picture(tmp_path / "b.png", compress_level=0)
    assert picture != write_picture(tmp_path / "c.png", dpi=(150, 150))


def test_categories_of_warnings_are_told_once_and_sorted() -> None:
    with warning_categories() as categories:
        for _ in range(2):
            warnings.warn("words", UserWarning, stacklevel=1)
        warnings.warn("words", DeprecationWarning, stacklevel=1)
    assert categories == ["DeprecationWarning", "UserWarning"]


@pytest.mark.parametrize(
    ("words", "kinds"),
    [
        pytest.param(["list", "heads"], [], id="nothing"),
        pytest.param(["list", "heads", "--json"], ["text"], id="what is on stdout without --json"),
        pytest.param(["inspect", "none.safetensors"], ["error:"], id="an error"),
        pytest.param(["viz"], ["text"], id="wrong usage"),
    ],
)
def test_a_command_tells_what_kinds_of_lines_it_wrote_on_stderr(
    words: list[str], kinds: list[str]
) -> None:
    assert run_command(words).stderr == kinds


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


def append(source: Path, defined: type, text: str) -> None:
    """Append a text to the copy, in a folder of sources, of the file that defines a class."""
    defined_in = Path(str(inspect.getsourcefile(defined)))
    copied = source / defined_in.relative_to(ROOT / "src")
    copied.write_text(copied.read_text() + text)


@pytest.mark.campaign
def test_this_checkout_is_equal_to_itself_and_a_flipped_sign_is_found(tmp_path: Path) -> None:
    source = tmp_path / "src"
    shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))

    # the files of a store have names, times and paths that differ from run to run
    assert compare_groups(this_side(), this_side(source), {"transcripts": ["stores"]}) == []

    append(source, dinoneck.TargetTransform, FLIP)
    # the target of the first has a transform, that of the second has none
    cases = {"predictors": ["one_head", "gate_d6"]}
    found = compare_groups(this_side(), this_side(source), cases)
    assert found
    assert {difference.case for difference in found} == {"one_head"}


@pytest.mark.campaign
def test_the_dtype_of_probabilities_and_the_order_of_stored_rows_are_compared(
    tmp_path: Path,
) -> None:
    source = tmp_path / "src"
    shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
    append(source, dinoneck.Predictor, OTHER_FORMS)
    found = compare_groups(this_side(), this_side(source), {"predictors": ["dense_crop"]})
    results = {difference.address.split("/")[2] for difference in found}
    assert results == {"probabilities", "store"}
