"""Names of folders in messages."""

from __future__ import annotations

import pytest

from dinoneck.data.folder_texts import listed


@pytest.mark.parametrize(
    ("names", "text"),
    [
        pytest.param(["crop"], "crop", id="one"),
        pytest.param(["crop", "weed"], "crop and weed", id="two"),
        pytest.param(["crop", "soil", "weed"], "crop, soil and weed", id="three"),
    ],
)
def test_a_few_names_are_all_listed(names: list[str], text: str) -> None:
    assert listed(names) == text
