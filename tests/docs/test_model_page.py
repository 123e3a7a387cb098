"""docs/model.md: its diagram and numbers are those of the model, and every test it names exists."""

import re
from pathlib import Path
from types import ModuleType

import pytest

from tests.scripts import load_script

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "model.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    return load_script(ROOT / "docs" / "make_model_diagram.py")


def test_diagram_and_sizes_are_up_to_date(maker: ModuleType) -> None:
    assert maker.insert(PAGE, maker.generated()) == PAGE, "run `python docs/make_model_diagram.py`"


def test_every_quirk_is_listed_once_in_order() -> None:
    numbers = [int(number) for number in re.findall(r"^\| (\d+) \|", PAGE, flags=re.M)]
    assert numbers == list(range(1, 69))


def test_every_file_that_the_page_names_exists() -> None:
    names = set(re.findall(r"`((?:unival|tests|configs|docs)/[\w./]+\.\w+)`", PAGE))
    assert len(names) > 5
    assert [name for name in sorted(names) if not (ROOT / name).exists()] == []
