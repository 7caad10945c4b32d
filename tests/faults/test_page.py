"""``docs/reliability.md`` shows the stored report, which is without a fault."""

from __future__ import annotations

import json

from tests.faults.__main__ import KILLS, MUTATIONS, PARTS
from tests.faults.page import PAGE, REPORT, written

FORGED = 20_000


def test_the_page_is_written_from_the_report() -> None:
    assert PAGE.read_text() == written(json.loads(REPORT.read_text())), "python -m tests.faults --parts"


def test_the_report_is_of_the_share_that_it_states_and_without_a_fault() -> None:
    report = json.loads(REPORT.read_text())
    assert report.keys() == PARTS.keys()
    for name, part in report.items():
        assert not part["result"]["bad"], name
    assert report["forge"]["result"]["tried"] >= report["forge"]["share"] * FORGED
    assert report["mutate"]["result"]["tried"] >= report["mutate"]["share"] * MUTATIONS
    for job in report["kill"]["result"]["jobs"].values():
        assert job["identical"] == job["runs"] == sum(job["kills"].values()) >= report["kill"]["share"] * KILLS
    modes = [mode for name in ("store", "fit", "load_head") for mode in report[name]["result"]["modes"].values()]
    assert all(mode["cases"] == mode["refused"] + mode["noticed"] + mode["harmless"] for mode in modes)
