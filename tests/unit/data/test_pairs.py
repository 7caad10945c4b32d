"""Images and masks pair by their paths, once what all names share is taken off."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.data.test_folders import touched

from dinoneck import DataError
from dinoneck.data import read_masks
from dinoneck.data.pairs import DEFAULT_PAIRING, Pairing, pair_files


def paired(root: Path, pairing: Pairing = DEFAULT_PAIRING) -> dict[str, str]:
    """The names of images and masks below x/ and y/."""
    mask_of = pair_files(root / "x", root / "y", pairing).mask_of
    return {
        image.relative_to(root / "x").as_posix(): mask.relative_to(root / "y").as_posix()
        for image, mask in mask_of.items()
    }


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        pytest.param(["0.jpg", "1.jpg"], ["0.png", "1.png"], id="the same names"),
        pytest.param(["0.jpg", "1.jpg"], ["0_mask.png", "1_mask.png"], id="an ending of masks"),
        pytest.param(["0_sat.jpg", "1_sat.jpg"], ["0_mask.png", "1_mask.png"], id="endings of both"),
        pytest.param(["0Image.jpg", "1Image.jpg"], ["0GT.png", "1GT.png"], id="endings without a separator"),
        pytest.param(["img_0.jpg", "img_1.jpg"], ["mask_0.png", "mask_1.png"], id="beginnings"),
        pytest.param(["0.jpg", "1.jpg"], ["trimaps/0.png", "trimaps/1.png"], id="a folder of all masks"),
        pytest.param(["a/0.jpg", "b/0.jpg"], ["a/0_m.png", "b/0_m.png"], id="folders of both"),
        pytest.param(["d1_0.jpg", "d2_0.jpg"], ["d1_0.png", "d2_0.png"], id="a shared number is kept"),
    ],
)  # fmt: skip
def test_what_all_names_share_is_taken_off(
    images: list[str], masks: list[str], tmp_path: Path
) -> None:
    touched(tmp_path / "x", *images)
    touched(tmp_path / "y", *masks)
    assert paired(tmp_path) == dict(zip(images, masks, strict=True))


@pytest.mark.parametrize(
    ("images", "masks", "named"),
    [
        pytest.param(["1.jpg", "2.jpg", "3.jpg"], ["1.png"], ["2 images", "2.jpg, 3.jpg"], id="no mask"),
        pytest.param(["1.jpg"], ["1.png", "4.png"], ["1 mask", "4.png"], id="no image"),
        pytest.param(["1.jpg", "2.jpg"], ["1_m.png"], ["1 image", "2.jpg"], id="no mask once an ending is off"),
        pytest.param(["day1_0.jpg"], ["day2_0.png"], ["day1_0.jpg", "day2_0.png"], id="numbers tell names apart"),
        pytest.param(["a_2019.jpg", "b_2019.jpg"], ["a_2020.png", "b_2020.png"], ["a_2019.jpg"], id="years"),
        pytest.param(["7.jpg"], ["7_color.png", "7_ids.png"], ["7_color.png", "--mask-suffix"], id="two masks"),
        pytest.param(["1.jpg", "1.png"], ["1.png"], ["1.jpg", "1.png"], id="two images of a name"),
        pytest.param(["1.jpg"], ["a.txt"], ["no masks"], id="no masks at all"),
        pytest.param([], ["1.png"], ["no images"], id="no images at all"),
    ],
)  # fmt: skip
def test_what_has_no_partner_is_refused(
    images: list[str], masks: list[str], named: list[str], tmp_path: Path
) -> None:
    touched(tmp_path / "x", *images, ".keep")
    touched(tmp_path / "y", *masks)
    with pytest.raises(DataError) as error:
        paired(tmp_path)
    assert all(text in str(error.value) for text in named)


def test_what_has_no_partner_is_left_out_on_request(tmp_path: Path) -> None:
    touched(tmp_path / "x", "1.jpg", "2.jpg", "3.jpg")
    touched(tmp_path / "y", "3.png", "4.png")

    pairs = pair_files(tmp_path / "x", tmp_path / "y", Pairing(skip_unpaired=True))

    assert pairs.mask_of == {tmp_path / "x/3.jpg": tmp_path / "y/3.png"}
    assert pairs.left_out == {"images without a mask": 2, "masks without an image": 1}


def test_a_suffix_chooses_among_several_masks(tmp_path: Path) -> None:
    touched(tmp_path / "x", "7_photo.jpg", "8_photo.jpg")
    touched(tmp_path / "y", *(f"{name}_{kind}.png" for name in "78" for kind in ("color", "ids")))

    pairing = Pairing(mask_suffix="_ids")

    assert paired(tmp_path, pairing) == {"7_photo.jpg": "7_ids.png", "8_photo.jpg": "8_ids.png"}
    assert pair_files(tmp_path / "x", tmp_path / "y", pairing).left_out == {"masks without _ids": 2}


def test_a_suffix_that_no_mask_has_is_refused(tmp_path: Path) -> None:
    touched(tmp_path, "x/7.jpg", "y/7_ids.png")
    with pytest.raises(DataError, match=r"'_id', .*7_ids.png"):
        paired(tmp_path, Pairing(mask_suffix="_id"))


def test_masks_beside_their_images_are_told_apart_by_a_suffix(tmp_path: Path) -> None:
    touched(tmp_path, "0.jpg", "0_mask.png", "a/1.png", "a/1_mask.png", "0.txt")

    table = read_masks(tmp_path, tmp_path, mask_suffix="_mask")

    assert list(table.index) == ["0.jpg", "a/1.png"]
    assert list(table["labels"]) == [tmp_path / "0_mask.png", tmp_path / "a/1_mask.png"]
    assert table.attrs["left_out"] == {"files of other formats (.txt)": 1}
    with pytest.raises(DataError, match="--mask-suffix"):
        read_masks(tmp_path, tmp_path)


def test_masks_may_lie_in_the_folder_of_images(tmp_path: Path) -> None:
    touched(tmp_path, "0.jpg", "truth/0.npy")
    table = read_masks(tmp_path, tmp_path / "truth")
    assert list(table.index) == ["0.jpg"]
    assert table.attrs["left_out"] == {}
