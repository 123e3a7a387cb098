"""Values of another kind than a parameter's default are refused, unless its annotation permits them."""

from typing import Any

import pytest

from unival.config_problem import check_kinds
from unival.errors import UserError


def function(
    rate: float = 0.5,
    count: int = 3,
    is_kept: bool = False,
    name: str = "a",
    free: float | None = 0.5,
    listed: "float | list[float]" = 1.0,
    unsaid=3,  # type: ignore[no-untyped-def]
    nothing: Any = None,
    *,
    quoted: "int" = 1,
) -> None:
    """Do nothing."""


@pytest.mark.parametrize(
    "given",
    [{"rate": 1}, {"count": 0}, {"is_kept": True}, {"free": None}, {"listed": [1, 2]}, {"nothing": "x"}, {"other": 1}],
)
def test_what_fits_passes(given: dict[str, Any]) -> None:
    check_kinds(function, given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rate": "0.5"}, "args.rate is '0.5'"),
        ({"rate": True}, "args.rate is True"),
        ({"count": 1.5}, "args.count is 1.5"),
        ({"is_kept": "false"}, "args.is_kept is 'false'"),
        ({"name": None}, "args.name is None"),
        ({"unsaid": "x"}, "args.unsaid is 'x'"),
        ({"quoted": "x"}, "args.quoted is 'x'"),
    ],
)
def test_what_does_not_fit_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_kinds(function, given, "args.")
    assert caught.value.what == message
