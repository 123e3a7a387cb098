"""Two prediction files of one split, sample by sample: is the one better than the other, and where?

A file has a JSON object per line with `uid`, `prediction` and `scores`, as `unival evaluate` writes it.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unival.errors import UserError
from unival.metrics.bootstrap import bootstrap_difference

NUM_EXAMPLES = 5
_FIX = "give predictions-*.jsonl files of `unival evaluate`"


class _File(NamedTuple):
    path: Path
    rows: dict[str, Mapping[str, Any]]
    metrics: list[str]


def compare_predictions(
    first: str | Path, second: str | Path, *, confidence: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Compare the per-sample scores of two files; samples are matched by uid, whatever their order.

    The interval is of mean(first) - mean(second), by a bootstrap that draws samples of both together. Corpus scores
    that are no mean over samples (BLEU) are compared by the mean of their sentence scores.

    Args:
        first, second: The files.
        confidence, num_resamples, seed: as `bootstrap_difference`.

    Returns:
        `samples`, `same_predictions` (how many are equal), and for each metric in both files: means, `difference`
        with `low` and `high`, `better`, `worse` and `equal` (numbers of samples), and the uids of the samples where
        the first gains and loses the most.

    Raises:
        UserError: A file is malformed or has a uid twice, the two are not about the same samples, or they have no
            metric in common.
    """
    a, b = _read(Path(first)), _read(Path(second))
    _check_same_samples(a, b)
    metrics = [name for name in a.metrics if name in b.metrics]
    if not metrics:
        what = f"no metric in common: {', '.join(a.metrics)} against {', '.join(b.metrics)}"
        raise UserError(what, where=str(second), fix="evaluate both with the same task")
    uids = list(a.rows)
    same = sum(a.rows[uid].get("prediction") == b.rows[uid].get("prediction") for uid in uids)
    result: dict[str, Any] = {"samples": len(uids), "same_predictions": same, "metrics": {}}
    for name in metrics:
        scores = np.array([[file.rows[uid]["scores"][name] for uid in uids] for file in (a, b)], dtype=np.float64)
        settings = {"confidence": confidence, "num_resamples": num_resamples, "seed": seed}
        interval = bootstrap_difference(scores[0], scores[1], **settings)
        gain = scores[0] - scores[1]
        order = np.argsort(-gain, kind="stable")
        result["metrics"][name] = {
            "first": float(scores[0].mean()),
            "second": float(scores[1].mean()),
            "difference": interval.mean,
            "low": interval.low,
            "high": interval.high,
            "better": int((gain > 0).sum()),
            "worse": int((gain < 0).sum()),
            "equal": int((gain == 0).sum()),
            "largest_gains": [uids[i] for i in order[:NUM_EXAMPLES] if gain[i] > 0],
            "largest_losses": [uids[i] for i in order[::-1][:NUM_EXAMPLES] if gain[i] < 0],
        }
    return result


def _read(path: Path) -> _File:
    rows: dict[str, Mapping[str, Any]] = {}
    metrics: list[str] | None = None
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise UserError(f"no such file: {path}", fix=_FIX) from None
    except OSError as error:
        raise UserError(f"the file cannot be read: {error.strerror}", where=str(path), fix=_FIX) from None
    except UnicodeDecodeError:
        raise UserError("not a text file", where=str(path), fix=_FIX) from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        row = _parse(line, where)
        names = list(row["scores"])
        metrics = names if metrics is None else metrics
        if set(names) != set(metrics):
            raise UserError(
                f"the row has {', '.join(names)}, the first one {', '.join(metrics)}", where=where, fix=_FIX
            )
        if str(row["uid"]) in rows:
            raise UserError(f"uid {row['uid']} occurs twice", where=where, fix=_FIX)
        rows[str(row["uid"])] = row
    if not metrics:
        raise UserError("the file has no scores", where=str(path), fix=_FIX)
    return _File(path, rows, metrics)


def _parse(line: str, where: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"not a JSON line: {error.msg}", where=f"{where}:{error.colno}", fix=_FIX) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets in brackets
        raise UserError(f"not a JSON line: {error}", where=where, fix=_FIX) from None
    scores = row.get("scores") if isinstance(row, dict) else None
    if not isinstance(scores, dict) or "uid" not in row:
        raise UserError("a row needs `uid` and `scores`", where=where, fix=_FIX)
    if not all(isinstance(value, int | float) and abs(value) <= sys.float_info.max for value in scores.values()):
        raise UserError("a score is no finite number", where=where, fix=_FIX)
    return row


def _check_same_samples(first: _File, second: _File) -> None:
    for one, other in ((first, second), (second, first)):
        lonely = [uid for uid in one.rows if uid not in other.rows]
        if lonely:
            what = (
                f"{len(lonely)} of {len(one.rows)} samples of {one.path} are not in {other.path}, such as {lonely[0]}"
            )
            raise UserError(what, fix="evaluate both models on the same rows")
