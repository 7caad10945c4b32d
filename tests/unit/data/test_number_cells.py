"""Numbers as spreadsheets write them: one notation per column, and no meaning is guessed."""

from __future__ import annotations

import pytest

from dinoneck.data.number_cells import NumberError, read_numbers

NBSP, FIGURE, THIN, NARROW = "\u00a0", "\u2007", "\u2009", "\u202f"
APOSTROPHE, MINUS = "\u2019", "\u2212"


def other_columns(*columns: list[str]) -> list[list[str]]:
    return list(columns)


ONE_MEANING = [
    pytest.param(["1.5", "-2e-3", "7"], ",", [1.5, -0.002, 7.0], id="decimal point"),
    pytest.param(["1.500", "2.250"], ",", [1.5, 2.25], id="three decimals, commas between cells"),
    pytest.param(["0.500", "2.250"], ";", [0.5, 2.25], id="a leading zero is no thousand"),
    pytest.param(["1.500", "2500.0"], "\t", [1.5, 2500.0], id="another cell has one decimal"),
    pytest.param(["1,5", "-2,25E-1", "7"], ";", [1.5, -0.225, 7.0], id="decimal comma"),
    pytest.param(["12,345", "1,500"], ";", [12.345, 1.5], id="three decimals, semicolons"),
    pytest.param(["1,5", "22,75"], ",", [1.5, 22.75], id="decimal commas in quotes (Sheets)"),
    pytest.param(["1.234,5", "300"], ";", [1234.5, 300.0], id="German thousands and decimals"),
    pytest.param(["1,234.5", "300"], ",", [1234.5, 300.0], id="English thousands and decimals"),
    pytest.param(["1.234.567", "8"], ";", [1234567.0, 8.0], id="German millions"),
    pytest.param(["1,234,567", "8.25"], "\t", [1234567.0, 8.25], id="English millions"),
    pytest.param([f"1{NARROW}234,5", "1,25"], ";", [1234.5, 1.25], id="French, narrow blanks"),
    pytest.param([f"12{NBSP}345", "6"], ";", [12345.0, 6.0], id="Polish, fixed blanks"),
    pytest.param([f"12{THIN}345.5", "6"], ",", [12345.5, 6.0], id="ISO 80000, thin blanks"),
    pytest.param([f"12{FIGURE}345.5", "6"], ",", [12345.5, 6.0], id="figure blanks"),
    pytest.param(["1'234.50", "9"], ";", [1234.5, 9.0], id="Swiss, apostrophes"),
    pytest.param([f"1{APOSTROPHE}234", "9"], ";", [1234.0, 9.0], id="Swiss, typographic ones"),
    pytest.param([f"{MINUS}1,5", "+2"], ";", [-1.5, 2.0], id="minus sign of Unicode"),
    pytest.param([f"1e{MINUS}3", "2"], ",", [0.001, 2.0], id="minus sign of an exponent"),
    pytest.param(["007", ".5", "5."], ",", [7.0, 0.5, 5.0], id="zeros and bare marks"),
    pytest.param(["1,5", "22,75"], None, [1.5, 22.75], id="texts of a DataFrame"),
]


@pytest.mark.parametrize(("texts", "separator", "expected"), ONE_MEANING)
def test_the_only_notation_that_fits_all_cells_is_read(
    texts: list[str], separator: str | None, expected: list[float]
) -> None:
    numbers = read_numbers(texts, separator)

    assert numbers.values == expected


TWO_MEANINGS = [
    pytest.param(["1.500", "12"], ";", id="point, semicolons"),
    pytest.param(["1.500", "12"], "\t", id="point, tabs"),
    pytest.param(["1,500", "2,250"], "\t", id="comma, tabs"),
    pytest.param(["1,500", "2,250"], ",", id="comma in quotes"),
    pytest.param(["-1.500", "750"], ";", id="negative"),
]


@pytest.mark.parametrize(("texts", "separator"), TWO_MEANINGS)
def test_numbers_with_two_meanings_are_refused_with_both(texts: list[str], separator: str) -> None:
    with pytest.raises(NumberError) as refused:
        read_numbers(texts, separator)

    assert "1.5" in refused.value.expected
    assert "1500" in refused.value.expected


SHOWN_ELSEWHERE = [
    pytest.param("1.500", ";", ["0,5", "12,25"], 1500.0, id="German file"),
    pytest.param("1.500", ";", ["0.5", "12.25"], 1.5, id="pandas with sep=';'"),
    pytest.param("1.500", "\t", ["0,5", ""], 1500.0, id="German text file with tabs"),
    pytest.param("1.500", "\t", ["0.5", ""], 1.5, id="English text file with tabs"),
    pytest.param("1,500", "\t", ["0.5", "3"], 1500.0, id="English thousands with tabs"),
    pytest.param("1,500", ",", ["0.5", "3"], 1500.0, id="English thousands in quotes"),
    pytest.param("1,500", ",", ["0,5", "3"], 1.5, id="German Sheets, decimals in quotes"),
    pytest.param("1.500", ";", ["1.234.567", "9"], 1500.0, id="German millions"),
    pytest.param("1.500", ";", ["1.234,5", "9"], 1500.0, id="German thousands and decimals"),
]


@pytest.mark.parametrize(("text", "separator", "other", "expected"), SHOWN_ELSEWHERE)
def test_other_columns_show_the_decimal_mark_of_the_file(
    text: str, separator: str, other: list[str], expected: float
) -> None:
    numbers = read_numbers([text, "2"], separator, lambda: other_columns(["a", "b"], other))

    assert numbers.values == [expected, 2.0]


@pytest.mark.parametrize(
    ("text", "separator", "other"), [("1.500", ",", "0,5"), ("1,500", ";", "0.5")]
)
def test_other_columns_that_contradict_the_separator_are_no_reason_to_choose(
    text: str, separator: str, other: str
) -> None:
    with pytest.raises(NumberError) as refused:
        read_numbers([text], separator, lambda: other_columns([other]))

    assert "1500" in refused.value.expected


@pytest.mark.parametrize("separator", [";", "\t"])
def test_points_in_all_numbers_may_be_decimals_next_to_decimal_commas(separator: str) -> None:
    with pytest.raises(NumberError) as refused:
        read_numbers(["1.500", "2.250"], separator, lambda: other_columns(["0,5", "3"]))

    assert "1.5" in refused.value.expected
    assert "1500" in refused.value.expected


@pytest.mark.parametrize("separator", [";", "\t"])
def test_points_in_all_numbers_are_decimals_where_nothing_shows_a_mark(separator: str) -> None:
    """As ``to_csv(sep=";", float_format="%.3f")`` writes them."""
    texts = ["1.500", "-22.250", "314.159"]

    numbers = read_numbers(texts, separator, lambda: other_columns(["a", "b"], ["3", "12"]))

    assert numbers.values == [1.5, -22.25, 314.159]
    assert numbers.repairs == [
        "'1.500' read as 1.5; if the mark is between thousands, write the numbers without it"
    ]


@pytest.mark.parametrize("other", ["01.05", "-00.5"])
def test_dates_without_a_year_and_codes_show_no_decimal_mark(other: str) -> None:
    with pytest.raises(NumberError) as refused:
        read_numbers(["1.500", "12"], ";", lambda: other_columns([other, "10.05"]))

    assert "1500" in refused.value.expected


@pytest.mark.parametrize(
    ("text", "separator", "other"), [("1.500", ";", "0.5"), ("1,500", "\t", "0,5")]
)
def test_a_meaning_that_other_columns_show_is_stated(text: str, separator: str, other: str) -> None:
    numbers = read_numbers([text], separator, lambda: other_columns([other]))

    assert numbers.repairs == [
        f"'{text}' read as 1.5; if the mark is between thousands, write the numbers without it"
    ]


def test_columns_with_both_decimal_marks_leave_the_usual_one_of_the_separator() -> None:
    numbers = read_numbers(["1.500"], ",", lambda: other_columns(["0.5"], ["0,5"]))

    assert numbers.values == [1.5]


DISAGREEING = [
    pytest.param(["3", "1.5", "2,25"], 1, 2, id="point and comma"),
    pytest.param(["2,25", "4", "1.5"], 0, 2, id="comma and point"),
    pytest.param(["1.234,5", "1,234.5"], 0, 1, id="German and English thousands"),
    pytest.param(["1,234", "1.5", "1 234"], 0, 2, id="each two share one, all three none"),
    pytest.param(["1.5", "1,234,567"], None, None, id="none: English millions have a point"),
]


@pytest.mark.parametrize(("texts", "first", "second"), DISAGREEING)
def test_two_cells_in_two_notations_are_both_named(
    texts: list[str], first: int | None, second: int | None
) -> None:
    if first is None:
        assert read_numbers(texts, ",").values == [1.5, 1234567.0]
        return

    with pytest.raises(NumberError) as refused:
        read_numbers(texts, ";")

    assert (refused.value.other, refused.value.place) == (first, second)


NO_NUMBERS = [
    pytest.param("50 %", "write 10 in a column of percent, and 0.1 in one of shares", id="percent"),
    pytest.param("10:30", "not a time", id="time"),
    pytest.param("-1.#IND", "Windows", id="NaN of Windows"),
    pytest.param("-3.40282346638529e+38", "for 'no data'", id="end of float32"),
    pytest.param("-1.797693134862316e+308", "for 'no data'", id="end of float64"),
    pytest.param("1,5 kg", "'kg'", id="unit"),
    pytest.param("20°", "'°'", id="degrees"),
    pytest.param("1 \u20ac", "without '\u20ac', a unit", id="euros"),
    pytest.param("3$", "without '$', a unit", id="dollars"),
    pytest.param("#DIV/0!", "error value", id="error of Excel"),
    pytest.param("#WERT!", "error value", id="error of German Excel"),
    pytest.param("#NOM?", "error value", id="error of French Excel"),
    pytest.param("#N/A", "error value", id="not available"),
    pytest.param("#NV", "error value", id="not available in German"),
    pytest.param("Err:502", "error value", id="error of LibreOffice"),
    pytest.param("########", "error value", id="a column that was too narrow"),
    pytest.param("=SUM(B2:B9)", "formula", id="formula"),
    pytest.param("01. Mai", "date", id="1.5 in German Excel"),
    pytest.param("05-Jan", "date", id="1-5 in English Excel"),
    pytest.param("1月5日", "date", id="1-5 in Japanese Excel"),
    pytest.param("2024-03-01", "date", id="ISO date"),
    pytest.param("01/03/2024", "date", id="date with slashes"),
    pytest.param("2024-03-01T10:30:00Z", "date", id="ISO date with a time"),
    pytest.param("May 3, 2024", "date", id="American date in words"),
    pytest.param("1/2", "fraction", id="fraction"),
    pytest.param("-", "0", id="dash"),
    pytest.param("\u20131.5", "minus sign '-'", id="dash for a minus sign"),
    pytest.param("0x1F", "hexadecimal", id="hexadecimal"),
    pytest.param("1.5D-03", "Fortran", id="exponent of Fortran"),
    pytest.param(".5d2", "Fortran", id="exponent of Fortran without a sign"),
    pytest.param("1.5 x 10^-3", "1.5e-3", id="power of ten in words"),
    pytest.param("tensor(1.5, device='cuda:0')", "float()", id="tensor"),
    pytest.param("np.float64(1.5)", "float()", id="number of NumPy"),
    pytest.param("~3", "'~'", id="about"),
    pytest.param("ca. 3", "'ca.'", id="about in a word"),
    pytest.param("\u20ac 3,50", "'\u20ac'", id="sign of a currency"),
    pytest.param("1.5 \u00b1 0.2", "'\u00b1'", id="tolerance"),
    pytest.param("3 g/m2", "'g/m2'", id="unit with a power"),
    pytest.param("'1", "spreadsheets keep a number as text", id="apostrophe of Excel"),
    pytest.param('"1', "no blank between a separator and a quote", id="a quote"),
    pytest.param("01.Mai", "date", id="1.5 in German Excel without a blank"),
    pytest.param("1O", "'O' is a letter; write 0", id="O for a zero"),
    pytest.param("1.o5", "'o' is a letter; write 0", id="o for a zero"),
    pytest.param("I5", "'I' is a letter; write 1", id="I for a one"),
    pytest.param("l5", "'l' is a letter; write 1", id="l for a one"),
    pytest.param("15l", "without 'l', a unit", id="litres"),
    pytest.param("10\u00b2", "without '\u00b2': of a power write the value", id="a power"),
    pytest.param("3 m\u00b2", "without 'm\u00b2', a unit", id="square metres"),
    pytest.param("47\u00b030'", "degrees with decimals", id="degrees and minutes"),
    pytest.param("1.5 ab", "without 'ab'; if it is a unit", id="letters of significance"),
    pytest.param("inf", "finite", id="infinity"),
    pytest.param("1e39", "3.4e38", id="more than float32 holds"),
    pytest.param("9007199254740993", "exactly", id="more digits than float64 holds"),
    pytest.param("１２", "0-9", id="digits of full width"),
    pytest.param("1_000", "number", id="underscore"),
    pytest.param("1,23,456", "number", id="Indian thousands"),
    pytest.param("12.34.567", "number", id="groups of two digits"),
    pytest.param("(1.5)", "number", id="accountant's minus"),
    pytest.param("<0.1", "'<'", id="below the limit of detection"),
]


@pytest.mark.parametrize(("text", "word"), NO_NUMBERS)
def test_what_is_no_number_is_refused_with_its_cause(text: str, word: str) -> None:
    with pytest.raises(NumberError) as refused:
        read_numbers(["1", text, "3"], ",")

    assert refused.value.place == 1
    assert word in refused.value.expected


def test_a_notation_that_the_separator_does_not_let_expect_is_stated() -> None:
    numbers = read_numbers(["12", "1.234,5"], ";")

    assert numbers.repairs == ["'1.234,5' read as 1234.5"]


@pytest.mark.parametrize(("text", "separator"), [("1,5", ";"), ("1,5", "\t"), ("1.5", ",")])
def test_the_usual_notation_is_not_stated(text: str, separator: str) -> None:
    numbers = read_numbers([text], separator)

    assert numbers.repairs == []


TWO_UNITS = [
    pytest.param(["0.2", "10%"], (0, 1), "percent in all cells", id="percent and a share"),
    pytest.param(["10 %", "7 %", "0,25"], (2, 0), "percent in all cells", id="a decimal comma"),
    pytest.param(["3", "1 kg", "500 g"], (2, 1), "one unit", id="kg and g"),
]


@pytest.mark.parametrize(("texts", "places", "expected"), TWO_UNITS)
def test_numbers_in_two_units_are_both_named(
    texts: list[str], places: tuple[int, int], expected: str
) -> None:
    with pytest.raises(NumberError) as refused:
        read_numbers(texts, ";")

    assert (refused.value.other, refused.value.place) == places
    assert expected in refused.value.expected


def test_the_digits_of_the_end_of_float32_are_that_number() -> None:
    numbers = read_numbers(["-340282346638528860000000000000000000000", "1"])

    assert numbers.values == [-3.4028234663852886e38, 1.0]


DOUBTS = [
    pytest.param("1.250 999 1.100", ",", "'1.250' read as 1.25 (and 1 more", id="last zero, point"),
    pytest.param("1,250 850", ";", "'1,250' read as 1.25, next to '850'", id="last zero, comma"),
    pytest.param(
        "1.234 2.345 987 640 3.411 512 433 1.043 799 999 1.001 712",
        ",",
        "'1.234' read as 1.234 (and 4 more with three decimals), next to '987'",
        id="European thousands between commas",
    ),
    pytest.param(
        "1,234 987 2,345",
        ";",
        "'1,234' read as 1.234 (and 1 more with three decimals), next to '987'",
        id="English thousands between semicolons",
    ),
    pytest.param(
        "1.251 985 1040 870", ",", "'1.251' read as 1.251, next to '985'", id="one mistyped cell"
    ),
    pytest.param("2.345 0 987 56 640", ",", "'2.345' read as 2.345, next to '987'", id="zeros"),
    pytest.param("-1.234 -987 -640", ",", "'-1.234' read as -1.234, next to '-987'", id="negative"),
    pytest.param(
        "12.345 23.456 987 812", ",", "'12.345' read as 12.345 (and 1", id="ten thousands"
    ),
    pytest.param("1.234 987", None, "'1.234' read as 1.234, next to '987'", id="of a DataFrame"),
]


@pytest.mark.parametrize(("column", "separator", "stated"), DOUBTS)
def test_three_decimals_far_below_whole_numbers_are_stated(
    column: str, separator: str | None, stated: str
) -> None:
    texts = column.split()

    numbers = read_numbers(texts, separator)

    assert numbers.values == [float(text.replace(",", ".")) for text in texts]
    assert len(numbers.repairs) == 1
    assert stated in numbers.repairs[0]
    assert "if the mark is between thousands, write the numbers without it" in numbers.repairs[0]


SOUND = [
    pytest.param("1.250 999.000", id="all with decimals"),
    pytest.param("1.255 999", id="a code for no data, which has a message of its own"),
    pytest.param("1.255 2.345 -9999", id="a negative code"),
    pytest.param("1.255 2.345 45415", id="a day, which has a message of its own"),
    pytest.param("1.250 12", id="whole numbers of the same size"),
    pytest.param("1.234 2.345 100 100", id="a share of 100 %"),
    pytest.param("1.953 15.625 125 1000", id="a series of dilutions"),
    pytest.param("123.456 234.567 987 640", id="decimals that are hundreds"),
    pytest.param("1.234 12.5 640 987", id="another number of decimals"),
    pytest.param("0.234 1.234 640 987", id="a decimal below 1"),
    pytest.param("1.234 2.345 3.456", id="decimals alone"),
]


@pytest.mark.parametrize("column", SOUND)
def test_other_decimals_are_read_without_a_word(column: str) -> None:
    texts = column.split()

    numbers = read_numbers(texts, ",")

    assert numbers.values == [float(text) for text in texts]
    assert numbers.repairs == []
