"""Lists of answers from text, JSON and the original's pickle."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from unival.data.answers import read_answer_types, read_answers
from unival.errors import UserError
from unival.tasks.base import get_task


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "yes\nno\n\n two dogs \nyes\n"),
        ("b.json", json.dumps(["yes", "no", "two dogs", "yes"])),
        ("c.json", json.dumps({"yes": 0, "no": 1, "two dogs": 2})),
        ("d.txt", "\ufeffyes\r\nno\r\ntwo dogs"),
    ],
)
def test_answers_are_read_once_each_in_order(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    assert read_answers(tmp_path / name) == ("yes", "no", "two dogs")


def test_the_originals_pickle_is_read_without_running_it(tmp_path: Path) -> None:
    path = tmp_path / "trainval_ans2label.pkl"
    path.write_bytes(pickle.dumps({"yes": 0, "no": 1}))
    assert read_answers(path) == ("yes", "no")
    hostile = tmp_path / "hostile.pkl"
    hostile.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(UserError, match="refused"):
        read_answers(hostile)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "\n \n", "holds no answer"),
        ("a.json", "[1, 2]", "must be text, got int"),
        ("a.json", "3", "expected a list of answers"),
        ("a.json", "[", "not JSON.*a.json:1"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_answers(tmp_path / name)


def test_missing_and_binary_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file of answers"):
        read_answers(tmp_path / "none.txt")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        read_answers(tmp_path / "b.txt")


def test_answer_types_need_a_type_for_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "types.json"
    path.write_text(json.dumps({"how many": [1, 2], "other": ["cat"]}))
    assert read_answer_types(path) == {"how many": ("1", "2"), "other": ("cat",)}
    for wrong in ({"how many": ["1"]}, ["cat"], {"other": "cat"}):
        other = tmp_path / "wrong.json"
        other.write_text(json.dumps(wrong))
        read_answer_types.cache_clear()
        with pytest.raises(UserError, match=r"other|expected an object"):
            read_answer_types(other)


def test_a_task_takes_its_answers_from_a_list_or_a_file(tmp_path: Path) -> None:
    path = tmp_path / "answers.txt"
    path.write_text("cat\ndog\n")
    assert get_task("vqa", {"candidates_file": str(path)}).answer_set() == ("cat", "dog")
    assert get_task("vqa", {"candidates": ["cat"]}).answer_set() == ("cat",)
    assert get_task("vqa").answer_set() is None
    both: dict[str, Any] = {"candidates": ["cat"], "candidates_file": str(path)}
    with pytest.raises(UserError, match="not both"):
        get_task("vqa", both)


def test_no_text_is_made_of_nested_values_in_a_pickle(tmp_path: Path) -> None:
    nested = b"](" + b")" + b"2\x86" * 60 + b"e"  # a list of one tuple, whose text has 2 ** 60 parts
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02" + nested + b".")
    with pytest.raises(UserError, match="must be text, got tuple"):
        read_answers(tmp_path / "a.pkl")
    (tmp_path / "types.pkl").write_bytes(b"\x80\x02}(X\x05\x00\x00\x00other" + nested + b"u.")
    with pytest.raises(UserError, match="expected an object"):
        read_answer_types(tmp_path / "types.pkl")
