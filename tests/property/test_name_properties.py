"""Names mean files: each its own, whatever machine wrote it, and never two of them one."""

from __future__ import annotations

from pathlib import Path

from hypothesis import assume, given
from hypothesis import strategies as st

from dinoneck.data.names import (
    Parts,
    Reading,
    contradicts,
    core_of,
    find_among,
    find_below,
    is_absolute,
    parts_of,
    spellings_of,
)

ROOT: Parts = ("/", "home", "ann", "photos")
parts = st.text("abé7", min_size=1, max_size=3)
# no file is a folder of another one: files end in .png, and folders do not
paths = st.lists(
    st.tuples(st.lists(parts, max_size=2), parts).map(lambda path: (*path[0], f"{path[1]}.png")),
    min_size=1,
    max_size=6,
    unique=True,
)
any_names = st.lists(
    st.text("aA/\\.%20~:", min_size=1, max_size=8), min_size=1, max_size=4, unique=True
)


def files_of(paths_below: list[Parts]) -> dict[Path, Parts]:
    """The files with these paths below the folder."""
    return {Path(*ROOT, *path): path for path in paths_below}


def find(names: list[str], paths_below: list[Parts]) -> Reading:
    """What names mean below the folder."""
    return find_below(names, files_of(paths_below), [ROOT])


def pairs(names: list[str], paths_below: list[Parts]) -> dict[str, Path]:
    """Names and the files of the paths in the same order."""
    return dict(zip(names, files_of(paths_below), strict=True))


# parts of names


@given(st.text("ab./", max_size=12))
def test_parts_of_a_name_are_those_of_the_name_that_they_make(name: str) -> None:
    assert parts_of("/".join(parts_of(name))) == parts_of(name)


@given(st.text("ab./", max_size=12))
def test_only_the_first_parts_go_up(name: str) -> None:
    found = parts_of(name)

    num_up = sum(part == ".." for part in found)
    assert found[:num_up] == ("..",) * num_up
    assert "." not in found
    assert "" not in found


@given(paths)
def test_a_folder_and_back_changes_no_name(paths_below: list[Parts]) -> None:
    path = paths_below[0]

    assert parts_of("/".join(("x", "..", *path))) == path


# names and the files that they mean


@given(paths)
def test_names_below_the_folder_mean_themselves(paths_below: list[Parts]) -> None:
    names = ["/".join(path) for path in paths_below]

    reading = find(names, paths_below)

    assert reading.files == pairs(names, paths_below)
    assert not reading.is_changed
    assert reading.missing == []


@given(paths)
def test_backslashes_separate_folders_where_no_file_has_them(paths_below: list[Parts]) -> None:
    names = ["\\".join(path) for path in paths_below]

    reading = find(names, paths_below)

    assert reading.files == pairs(names, paths_below)
    assert reading.is_changed == any(len(path) > 1 for path in paths_below)


@given(paths, st.sampled_from(["/media/ann/", "C:/", "~/", "s3://bucket/", "C:\\work\\"]))
def test_folders_of_another_machine_are_cut(paths_below: list[Parts], prefix: str) -> None:
    names = [prefix + "/".join(path) for path in paths_below]

    reading = find(names, paths_below)

    assert reading.files == pairs(names, paths_below)
    assert reading.is_changed


@given(paths)
def test_a_suffix_in_another_case_is_that_of_the_file(paths_below: list[Parts]) -> None:
    names = ["/".join(path).replace(".png", ".PNG") for path in paths_below]

    reading = find(names, paths_below)

    assert reading.files == pairs(names, paths_below)
    assert "another case of the suffix" in reading.text


@given(paths, st.randoms())
def test_the_order_of_names_and_files_changes_nothing(
    paths_below: list[Parts], random: object
) -> None:
    names = ["old/" + "/".join(path) for path in paths_below]
    shuffled_names = list(names)
    random.shuffle(shuffled_names)  # type: ignore[attr-defined]
    shuffled_paths = list(paths_below)
    random.shuffle(shuffled_paths)  # type: ignore[attr-defined]

    reading = find(names, paths_below)
    shuffled = find(shuffled_names, shuffled_paths)

    assert shuffled.files == reading.files
    assert shuffled.text == reading.text


@given(paths, any_names)
def test_whatever_names_are_no_two_of_them_mean_one_file(
    paths_below: list[Parts], names: list[str]
) -> None:
    reading = find(names, paths_below)

    assert len(set(reading.files.values())) == len(reading.files)


@given(paths, any_names)
def test_each_name_has_a_file_or_several_or_none_where_all_are_looked_for(
    paths_below: list[Parts], names: list[str]
) -> None:
    reading = find(names, paths_below)
    assume(reading.one_file is None)

    assert {*reading.files, *reading.several, *reading.missing} == set(names)
    assert len(reading.files) + len(reading.several) + len(reading.missing) == len(names)


@given(paths, st.data())
def test_some_files_are_found_among_more_names(
    paths_below: list[Parts], data: st.DataObject
) -> None:
    names = ["/".join((*ROOT[1:], *path)) for path in paths_below]
    files = [Path(*ROOT, *path) for path in paths_below]
    shown = data.draw(st.sets(st.integers(0, len(files) - 1), min_size=1))
    absolute = {files[i]: (*ROOT[1:], *paths_below[i]) for i in shown}

    reading = find_among(names, absolute)

    assert reading.files == {names[i]: files[i] for i in shown}
    assert set(reading.missing) == {names[i] for i in range(len(names)) if i not in shown}


# parts that names are compared by


@given(parts, st.sampled_from(["", "?w=640", "#top"]), st.sampled_from(["", "a/", "a\\b\\"]))
def test_the_core_of_a_name_has_no_folder_suffix_or_query(
    stem: str, query: str, folder: str
) -> None:
    assert core_of(f"{folder}{stem}.PNG{query}") == core_of(stem)


@given(st.lists(parts, max_size=3).map(tuple), st.booleans())
def test_a_folder_does_not_contradict_itself(folder: Parts, from_root: bool) -> None:
    assert not contradicts(folder, folder, from_root)


@given(st.lists(parts, max_size=3).map(tuple), st.lists(parts, max_size=3).map(tuple))
def test_an_absolute_folder_of_no_split_contradicts_nothing(prefix: Parts, folder: Parts) -> None:
    assert not contradicts(prefix, folder, from_root=True)


@given(any_names)
def test_the_first_spelling_is_the_literal_one(names: list[str]) -> None:
    literal = spellings_of(names)[0]

    assert [literal.decode(name) for name in names] == names
    assert literal.changes(names) == []


@given(st.text("ab/", min_size=1).filter(lambda name: not name.startswith("/")))
def test_a_relative_name_below_the_root_is_absolute(name: str) -> None:
    assert not is_absolute(name)
    assert is_absolute("/" + name)
