"""Names mean files: each its own, whatever machine wrote it, and never two of them one."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from dinoneck import DataError
from dinoneck.data.names import find_files
from dinoneck.data.pairs import Pairing, pair_files

parts = st.text("abé7", min_size=1, max_size=3)
# no file is a folder of another one: files end in .png, and folders do not
paths = st.lists(
    st.tuples(st.lists(parts, max_size=2), parts).map(lambda path: "/".join([*path[0], path[1]])),
    min_size=1,
    max_size=6,
    unique=True,
)
any_names = st.lists(
    st.text("aA/\\.%20~:", min_size=1, max_size=8), min_size=1, max_size=4, unique=True
)


def write(root: Path, stems: list[str], suffix: str = ".png") -> list[Path]:
    """Write a file of each path, and return them."""
    files = [root / f"{stem}{suffix}" for stem in stems]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return files


@given(paths, st.sampled_from(["", "/media/ann/photos/", "C:\\work\\photos\\"]), st.booleans())
def test_names_of_another_machine_find_their_files(
    stems: list[str], prefix: str, in_capitals: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "photos"
        files = write(root, stems)
        names = [f"{prefix}{stem}{'.PNG' if in_capitals else '.png'}" for stem in stems]
        assert find_files(names, root, "images") == files


@given(paths, any_names)
def test_whatever_names_are_no_two_of_them_mean_one_file(
    stems: list[str], names: list[str]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), stems)
        try:
            files = find_files(names, folder, "images")
        except DataError:
            return
        assert len({file.resolve() for file in files}) == len(names)


@given(paths, st.sampled_from(["", "_mask", "-gt", "Label"]), st.sampled_from(["", "_sat"]))
def test_masks_are_those_of_their_images_whatever_all_of_them_end_with(
    stems: list[str], mask_ending: str, image_ending: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        images = write(Path(folder) / "x", [stem + image_ending for stem in stems], ".jpg")
        masks = write(Path(folder) / "y", [stem + mask_ending for stem in stems])
        pairs = pair_files(Path(folder) / "x", Path(folder) / "y", Pairing())
        assert pairs.mask_of == dict(zip(images, masks, strict=True))
