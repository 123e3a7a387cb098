"""Lists of answers in a file: the closed set of a data set of questions, or what wrong answers are drawn from.

Text (one per line), JSON (a list, or an object whose keys are the answers) or the original's pickle
(`trainval_ans2label.pkl`, a dictionary from answer to number), which is read without running anything in it.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from unival.errors import UserError
from unival.pickles.machine import Machine


@lru_cache(maxsize=16)
def read_answers(path: str | Path) -> tuple[str, ...]:
    """Return the answers of a file in its order, each once; empty lines do not count.

    Raises:
        UserError: If the file is missing, unreadable, or holds no answer.
    """
    content = read_data(path)
    if isinstance(content, str):
        content = content.split("\n")
    if not isinstance(content, list | tuple | dict):
        raise UserError(f"expected a list of answers, got {type(content).__name__}", where=str(path))
    wrong = next((item for item in content if not isinstance(item, str)), None)
    if wrong is not None:
        raise UserError(f"an answer must be text, got {type(wrong).__name__}", where=str(path))
    answers = tuple(dict.fromkeys(item.strip() for item in content if item.strip()))
    if not answers:
        raise UserError("the file holds no answer", where=str(path), fix="write one answer per line")
    return answers


@lru_cache(maxsize=4)
def read_answer_types(path: str | Path) -> dict[str, tuple[str, ...]]:
    """Return the answers of each question type of a JSON file, as the original's `type2ans.json`.

    Raises:
        UserError: If it is no such file, or has no type "other", which every answer without a type belongs to.
    """
    content = read_data(path)
    fix = '{"how many": ["1", "2"], "other": ["cat"]}'
    groups = content.values() if isinstance(content, dict) else [None]
    if not all(
        isinstance(group, list) and all(isinstance(item, str | int | float) for item in group) for group in groups
    ):
        raise UserError("expected an object with a list of answers per question type", where=str(path), fix=fix)
    if not content.get("other"):
        raise UserError("no answers of type 'other'", where=str(path), fix=fix)
    return {kind: tuple(map(str, answers)) for kind, answers in content.items()}


def read_data(path: str | Path) -> Any:
    """Return what a file holds: text, or the value of a JSON file or a pickle."""
    path = Path(path)
    try:
        if path.suffix in {".pkl", ".pickle"}:
            with path.open("rb") as file:
                return Machine(str(path)).load(file)
        text = path.read_text(encoding="utf-8-sig")
        return json.loads(text) if path.suffix == ".json" else text
    except FileNotFoundError:
        raise UserError("no such file of answers", str(path), "one answer per line, or a JSON list") from None
    except UnicodeDecodeError:
        raise UserError("the file is not UTF-8 text", where=str(path)) from None
    except json.JSONDecodeError as error:
        raise UserError(f"not JSON: {error.msg}", where=f"{path}:{error.lineno}:{error.colno}") from None
    except OSError as error:
        raise UserError(f"cannot read the answers: {error.strerror}", where=str(path)) from None
