"""What patterns fit, what edits change, and which mutants are refused."""

from __future__ import annotations

import ast
import textwrap
from typing import Any

import pytest

from tests.mutants import Mutant, MutantError
from tests.mutants.edits import Edit, always, drop, never, replace, set_keyword


def put(edit: Edit, source: str, where: str = "module:total") -> str:
    """Return the source with a fault, without comments and spare lines."""
    mutant = Mutant(sentence="The total is wrong.", where=where, edit=edit, tests=[])
    return mutant.apply(textwrap.dedent(source))


def plain(source: str) -> str:
    """Return code as :func:`put` returns it."""
    return ast.unparse(ast.parse(textwrap.dedent(source)))


def total(expression: str) -> str:
    """Return a function that returns the value of an expression."""
    return plain(f"def total(x, y):\n    return {expression}")


@pytest.mark.parametrize(
    ("pattern", "by", "before", "after"),
    [
        pytest.param("_a + 1", "_a", "len(x) + 1", "len(x)", id="any expression"),
        pytest.param("_a + _a", "2 * _a", "x[0] + x[0]", "2 * x[0]", id="the same code again"),
        pytest.param("_ + _", "0", "x + y", "0", id="anything, twice"),
        pytest.param("_a._size(x)", "_a._size(y)", "x.area(x)", "x.area(y)", id="any method"),
        pytest.param("_f(*_all)", "_f(*_all, 1)", "max(x, *y)", "max(x, *y, 1)", id="arguments"),
        pytest.param("[x, *_all]", "[*_all]", "[x, y, 1]", "[y, 1]", id="elements"),
        pytest.param("[x, *_all]", "[*_all]", "[x]", "[]", id="no elements"),
        pytest.param("_x - _y", "_y - _x", "x.a - (y or 1)", "(y or 1) - x.a", id="parentheses"),
        pytest.param(
            "_sort(x, key=_a, reverse=True)",
            "_sort(x, key=_a)",
            "sorted(x, reverse=True, key=y)",
            "sorted(x, key=y)",
            id="keyword arguments in any order",
        ),
        pytest.param(
            "_sort(x, key=_a, **_more)",
            "_sort(x, **_more)",
            "sorted(x, reverse=True, key=y, **y)",
            "sorted(x, reverse=True, **y)",
            id="further keyword arguments",
        ),
        pytest.param(
            "[_f(_each) for _each in x if _each]",
            "[_f(_each) for _each in x]",
            "[str(part) for part in x if part]",
            "[str(part) for part in x]",
            id="variables of a comprehension",
        ),
    ],
)
def test_a_wildcard_stands_for_the_code_that_it_fits(
    pattern: str, by: str, before: str, after: str
) -> None:
    assert put(replace(pattern, by=by), total(before)) == total(after)


@pytest.mark.parametrize(
    ("pattern", "expression"),
    [
        pytest.param("_a + _a", "x + y", id="other code for a repeated wildcard"),
        pytest.param("x + 1", "y + 1", id="another public name"),
        pytest.param("_a + 1", "x + 1.0", id="an equal number of another type"),
        pytest.param("_a == 1", "x == True", id="a boolean that equals the number"),
        pytest.param("_a.mean()", "x.sum()", id="another method"),
        pytest.param("sorted(x)", "sorted(x, reverse=True)", id="a keyword argument in addition"),
        pytest.param("sorted(x, key=_)", "sorted(x, reverse=True)", id="another keyword argument"),
        pytest.param("max(x, y, *_rest)", "max(x)", id="fewer arguments"),
        pytest.param("'_a'", "'text'", id="another text: a wildcard is a name"),
        pytest.param("_a or _b", "x or y or 1", id="another number of operands"),
    ],
)
def test_everything_else_is_literal(pattern: str, expression: str) -> None:
    with pytest.raises(MutantError, match="fits 0 times"):
        put(replace(pattern, by="0"), total(expression))


def test_an_expression_fits_only_where_a_value_is_read() -> None:
    source = """
    class Total:
        def set(self, x):
            self.size = x
            return self.size
    """
    fault = put(replace("self.size", by="0"), source, where="module:Total")
    assert fault == plain(source.replace("return self.size", "return 0"))


def test_statements_are_replaced_by_statements() -> None:
    source = """
    def total(x):
        count = len(x)
        weight = 1 / count
        return weight * sum(x)
    """
    edit = replace(
        """
        _count = len(x)
        _weight = 1 / _count
        """,
        by="_weight = 1",
    )
    fault = """
    def total(x):
        weight = 1
        return weight * sum(x)
    """
    assert put(edit, source) == plain(fault)


def test_an_expression_can_be_a_statement() -> None:
    source = """
    def total(x):
        x.sort()
        return x[0]
    """
    fault = """
    def total(x):
        x.sort()
        x.reverse()
        return x[0]
    """
    edit = replace("x.sort()", by="x.sort()\nx.reverse()")
    assert put(edit, source) == plain(fault)


def test_a_wildcard_at_the_end_of_a_block_fits_all_its_statements() -> None:
    source = """
    def total(x):
        if not x:
            x = [0]
            print("empty")
        return sum(x)
    """
    fault = source.replace("if not x", "if x")
    edit = replace("if not x: _body", by="if x: _body")
    assert put(edit, source) == plain(fault)


def test_annotations_of_variables_count_for_nothing() -> None:
    source = """
    def total(x):
        count: int = len(x)
        return count
    """
    fault = put(replace("_count = len(x)", by="_count = 1"), source)
    assert fault == plain(source.replace(": int = len(x)", " = 1"))


CONDITION = """
def total(x):
    if len(x) > 1:
        print(*x, sep=", ", end="")
    return sum(x)
"""


@pytest.mark.parametrize(
    ("edit", "old", "new"),
    [
        pytest.param(replace("sum(x)", by="max(x)"), "sum(x)", "max(x)", id="replace"),
        pytest.param(always("len(x) > 1"), "len(x) > 1", "True", id="always"),
        pytest.param(never("len(x) > 1"), "len(x) > 1", "False", id="never"),
        pytest.param(drop("print(*_, **_)"), 'print(*x, sep=", ", end="")', "pass", id="drop"),
        pytest.param(set_keyword("print", "sep", ""), 'sep=", "', 'sep=""', id="set_keyword"),
    ],
)
def test_an_operation_does_what_its_name_says(edit: Edit, old: str, new: str) -> None:
    assert put(edit, CONDITION) == plain(CONDITION.replace(old, new))


MEAN = """
from math import prod

SCALE = 2

class Mean:
    def total(self, x):
        count = len(x)
        return self._scaled(sum(x) / count)

    def _scaled(self, value):
        return round(_times(value), 3)

    def other(self, x):
        return prod(x) + 1

def _times(value):
    return SCALE * value

_TABLE = {"a": SCALE + 1}
"""


@pytest.mark.parametrize(
    ("where", "pattern"),
    [
        pytest.param("module", "prod(_x)", id="a module"),
        pytest.param("module:Mean", "prod(_x)", id="a class"),
        pytest.param("module:Mean.total", "sum(x) / _count", id="a method"),
        pytest.param("module:Mean.total", "self._scaled(_mean)", id="a call of a private method"),
        pytest.param("module:Mean.total", "round(_value, 3)", id="a private method"),
        pytest.param("module:Mean.total", "SCALE * _value", id="a function that it calls"),
        pytest.param("module:SCALE", "2", id="a constant"),
    ],
)
def test_a_place_is_searched_with_the_private_code_that_it_uses(where: str, pattern: str) -> None:
    fault = put(replace(pattern, by="7"), MEAN, where)
    assert "7" in fault


@pytest.mark.parametrize(
    "pattern",
    [
        pytest.param("prod(_x)", id="a public method"),
        pytest.param("SCALE + 1", id="a private constant that is not used"),
    ],
)
def test_other_code_of_the_module_is_not_searched(pattern: str) -> None:
    with pytest.raises(MutantError, match="fits 0 times"):
        put(replace(pattern, by="7"), MEAN, "module:Mean.total")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("count", "length", id="another name of a variable"),
        pytest.param("_scaled", "_in_units", id="another name of a private method"),
        pytest.param("_times", "_product", id="another name of a private function"),
        pytest.param("sum(x) / count", "(\n            sum(x)\n            / count)", id="layout"),
        pytest.param(
            "        return self._scaled(sum(x) / count)",
            "        return self._mean(x, count)\n\n"
            "    def _mean(self, x, count):\n"
            "        return self._scaled(sum(x) / count)",
            id="moved into a private method",
        ),
    ],
)
def test_a_mutant_outlives_a_rewrite(old: str, new: str) -> None:
    rewritten = MEAN.replace(old, new)
    assert rewritten != MEAN
    not_divided = replace("self._scaled(sum(_x) / _count)", by="self._scaled(sum(_x))")
    assert mean_of_three(put(not_divided, rewritten, "module:Mean.total")) == 12.0
    not_scaled = replace("SCALE * _value", by="_value")
    assert mean_of_three(put(not_scaled, rewritten, "module:Mean.total")) == 2.0


def mean_of_three(source: str) -> float:
    """Run the source of ``MEAN``, whose sound result is 4."""
    names: dict[str, Any] = {}
    exec(source, names)
    return float(names["Mean"]().total([1.0, 2.0, 3.0]))


def test_a_pattern_that_fits_twice_is_refused_with_its_lines() -> None:
    source = """
    def total(x):
        if not x:
            return len(x) + 1
        return len(x) + 2
    """
    with pytest.raises(MutantError) as refused:
        put(replace("len(x)", by="0"), source)
    for part in ("The total is wrong", "len(x)", "2 times", "lines 4, 5", "module:total"):
        assert part in str(refused.value)


def test_a_place_that_is_not_there_is_refused() -> None:
    with pytest.raises(MutantError, match="no module:Mean.median"):
        put(replace("sum(x)", by="0"), MEAN, "module:Mean.median")


@pytest.mark.parametrize(
    ("where", "name"),
    [
        ("_module:total", "_module"),
        ("package._module:total", "_module"),
        ("module:_total", "_total"),
        ("module:Mean._scaled", "_scaled"),
        ("module:_Mean.total", "_Mean"),
    ],
)
def test_a_private_place_is_refused(where: str, name: str) -> None:
    with pytest.raises(MutantError, match=f"{name} is private"):
        Mutant(sentence="The total is wrong.", where=where, edit=drop("print()"), tests=[])


def test_a_method_of_python_is_no_private_place() -> None:
    Mutant(sentence="It is wrong.", where="module:Mean.__len__", edit=drop("print()"), tests=[])


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        pytest.param("sum(x) / count", "count", id="a variable"),
        pytest.param("SCALE * value", "value", id="a parameter of a private function"),
    ],
)
def test_a_pattern_that_spells_out_a_name_that_may_change_is_refused(
    pattern: str, name: str
) -> None:
    with pytest.raises(MutantError, match=f"write the wildcard _{name}"):
        put(replace(pattern, by="0"), MEAN, "module:Mean.total")


def test_a_wildcard_of_the_replacement_alone_is_refused() -> None:
    with pytest.raises(MutantError, match="'_b'"):
        put(replace("_a + 1", by="_b"), total("x + 1"))


def test_a_fault_that_changes_nothing_is_refused() -> None:
    with pytest.raises(MutantError, match="the same as before"):
        put(replace("_a + 1", by="(_a) + 1"), total("x + 1"))


def test_a_fault_that_is_no_python_is_refused() -> None:
    with pytest.raises(MutantError, match="no Python"):
        put(replace("return x", by="break"), total("x"))
