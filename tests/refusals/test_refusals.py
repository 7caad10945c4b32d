"""Every row of every table: the call raises the error class, and the message names the value."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import kit
from tests.refusals import Row, rows_by_id, run


@pytest.mark.parametrize("row", [pytest.param(row, id=name) for name, row in rows_by_id().items()])
def test_the_call_is_refused_and_the_value_is_named(row: Row, tmp_path: Path) -> None:
    call, error, named = row

    with kit.skip_without_extras(), pytest.raises(error) as refused:
        run(call, tmp_path)

    for word in (named,) if isinstance(named, str) else named:
        assert word in str(refused.value)
