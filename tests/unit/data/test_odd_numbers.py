"""Numbers that stand for "no data", for days or for names, which a column may hold among others."""

from __future__ import annotations

import pytest

from dinoneck.data.odd_numbers import (
    are_compact_days,
    begins_with_zero,
    days_among,
    is_end_of_float,
    sentinels_of,
)

SENTINELS = [
    pytest.param([0.5, 3.0, -9999.0, -9999.0], [-9999.0], id="no data"),
    pytest.param([0.5, 3.0, -3.402823e38], [-3.402823e38], id="float32's end as R rounds it"),
    pytest.param([0.5, 9.96921e36], [9.96921e36], id="netCDF's fill value as ncdump rounds it"),
    pytest.param([0.5, 3e30], [], id="a large number that is no code"),
    pytest.param([0.5, 3.0, -32767.0], [-32767.0], id="a fill value of int16"),
    pytest.param([12.5, 31.0, 999.9], [999.9], id="of weather stations"),
    pytest.param([12.5, 31.0, 6999.0], [6999.0], id="of loggers"),
    pytest.param([-120.5, -99.9, -80.0], [], id="-99.9 among such values"),
    pytest.param([-0.1, 0.5, 0.7, -9999.0, 0.3], [-9999.0], id="other negative values"),
    pytest.param([-120.0, -99.0, 40.0], [], id="-99 among values of both signs"),
    pytest.param([-12000.0, -9999.0, 40.0], [], id="-9999 above another value"),
    pytest.param([0.5, 3.0], [], id="none"),
    pytest.param([-9999.0], [], id="alone"),
    pytest.param([-99.0, -999.0, 1.0], [-999.0, -99.0], id="two codes"),
    pytest.param([1.0, 9.969209968386869e36], [9.969209968386869e36], id="netCDF"),
    pytest.param([-1.0, 2.0, -3.4028234663852886e38], [-3.4028234663852886e38], id="float32"),
    pytest.param([-1.0, 2.0, -1e30], [-1e30], id="-1e30"),
    pytest.param([-1.0, 2.0, 1e20], [1e20], id="1e20"),
    pytest.param([1.0, 2.0, 65535.0], [65535.0], id="uint16"),
    pytest.param([1.0, -2.0, 32767.0], [32767.0], id="int16"),
    pytest.param([1.0, -2.0, 2147483647.0], [2147483647.0], id="int32"),
    pytest.param([60000.0, 61000.0, 65535.0], [], id="uint16 among its like"),
    pytest.param([4.0, 9999.0, 70.0], [9999.0], id="positive, far above the others"),
    pytest.param([1000.0, 2400.0, 9999.0], [9999.0], id="positive, above thousands"),
    pytest.param([4.0, 999.0, 700.0], [], id="positive, near the others"),
    pytest.param([0.0, 2.5, 3.0, -1.0], [-1.0], id="-1 among numbers that are not negative"),
    pytest.param([0.0, 1.0, 2.0, -9.0], [-9.0], id="-9"),
    pytest.param([1.0, -1.0], [], id="-1 and 1"),
    pytest.param([0.0, 1.0, 2.0, 3.0, -1.0], [], id="-1 as the first step of a scale"),
    pytest.param(
        [0.0, 1.0, 4.0, -1.0], [], id="-1 as a step of a scale of which some do not occur"
    ),
    pytest.param([0.0, 3.0, 4.0, -1.0], [-1.0], id="-1 away from the other whole numbers"),
    pytest.param([-1.0, *map(float, range(12))], [-1.0], id="-1 among counts above ten"),
    pytest.param([0.1, 0.5, 0.9, -1.0], [], id="-1 among values from -1 to 1"),
    pytest.param([0.0, 2.5, 3.0, -1.0, -0.5], [], id="-1 next to another negative value"),
    pytest.param([0.5, 1.0, 2.0, 1.70141e38], [1.70141e38], id="of Surfer"),
    pytest.param([1.0, 2.0, 5.0, 99.0], [99.0], id="99 beside answers of one digit"),
    pytest.param([1.0, 2.0, 88.0, 99.0], [88.0, 99.0], id="two codes of a survey"),
    pytest.param([1.0, 12.0, 99.0], [], id="99 among its like"),
    pytest.param([0.5, 2.0, 99.0], [], id="99 among decimals"),
    pytest.param([0.0, 1.0, 9.0], [9.0], id="9 beside yes and no"),
    pytest.param([0.0, 1.0, 2.0, 9.0], [], id="9 among counts"),
    pytest.param([0.0, 1.0, 2.0, 4.0, -8.0, -9.0], [-9.0, -8.0], id="two small codes"),
    pytest.param([0.0, 1.0, 2.0, -8.0, -5.0], [], id="another negative value"),
    pytest.param([1.0, 2.0, -88.0, -99.0], [-99.0, -88.0], id="two negative codes"),
    pytest.param([0.5, 3.25, 99.99], [99.99], id="of weather stations"),
    pytest.param([0.5, 30.25, 99.99], [], id="99.99 among its like"),
    pytest.param([1.5, 2.25, -999.25], [-999.25], id="of well logs"),
]


@pytest.mark.parametrize(("values", "expected"), SENTINELS)
def test_values_for_no_data_are_noticed_where_they_are_unlike_all_others(
    values: list[float], expected: list[float]
) -> None:
    assert sentinels_of(values) == expected


ENDS = [
    pytest.param("-3.40282346638529e+38", True, id="float32, 15 digits"),
    pytest.param("3.4028235e+38", True, id="float32, rounded up"),
    pytest.param("-1.797693134862316e+308", True, id="float64, rounded up"),
    pytest.param("-1.7e+308", True, id="rasters of R"),
    pytest.param("-340282346638528860000000000000000000000", True, id="all digits"),
    pytest.param("1e300", False, id="another large number"),
    pytest.param("3.41e38", False, id="a little larger"),
    pytest.param("0.5", False, id="a usual number"),
    pytest.param("inf", False, id="infinity"),
]


@pytest.mark.parametrize(("text", "expected"), ENDS)
def test_the_ends_of_floats_are_known_in_all_spellings(text: str, expected: bool) -> None:
    assert is_end_of_float(text) == expected


DAYS = [
    pytest.param([1.5, 45413.0, 31.2], [45413.0], id="1.5 as the first of May 2024"),
    pytest.param([45413.0, 45414.0], [], id="days alone"),
    pytest.param([1.5, 45413.5], [], id="not whole"),
    pytest.param([1.5, 45413.0, 700.0], [], id="another large value"),
    pytest.param([1.5, 45413.0, 45444.0], [45413.0, 45444.0], id="two"),
]


@pytest.mark.parametrize(("values", "expected"), DAYS)
def test_numbers_of_days_among_small_values_are_noticed(
    values: list[float], expected: list[float]
) -> None:
    assert days_among(values) == expected


@pytest.mark.parametrize(
    ("texts", "expected"),
    [(["20240501", "20240602"], True), (["20240501"] * 2, False), (["20240501", "7"], False)],
    ids=["days", "one day", "a day and a number"],
)
def test_days_in_one_number_are_noticed(texts: list[str], expected: bool) -> None:
    assert are_compact_days(texts) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("007", True), ("01.05", True), ("01,5", True), ("0", False), ("0.5", False), ("10", False)],
)
def test_which_numbers_begin_as_codes_do(text: str, expected: bool) -> None:
    assert begins_with_zero(text) == expected
