"""Run a study: train, mix, score, report. What is done is kept, so that the same command finishes a killed run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from soups.state import write_text
from soups.study.collect import Collector
from soups.study.figures import save_figures
from soups.study.page import page
from soups.study.parts import Models, locked
from soups.study.plan import make_plan
from soups.study.schema import Study
from soups.study.scores import check_evaluation, score_all, score_start
from soups.study.workers import works_done

JSON_NAME, PAGE_NAME = "report.json", "report.html"


def run_study(
    study: Study, root: Path, report: Callable[[str], None] = lambda line: None, num_workers: int = 1
) -> dict[str, Any]:
    """Do everything that is not done, write the report, return its content.

    Args:
        study: what to do.
        root: the folder of the study; it may hold parts of other versions of it, which are used where they fit.
        report: called with a line about everything that is begun.
        num_workers: trainings, and then processes that score, at the same time.

    Raises:
        UserError: something does not fit, or a command failed.
        RuntimeError: a process that scores died.
        KeyboardInterrupt: interrupted; the same call continues.
    """
    plan = make_plan(study)
    with locked(root):
        models = Models(plan, root, report)
        check_evaluation(plan)
        if models.is_done(plan.nodes[plan.start]):
            with works_done(plan, models, root, 1) as do:
                report("score of the start")
                score_start(plan, do)
        models.make_all(num_workers)
        with works_done(plan, models, root, num_workers) as do:
            score_start(plan, do)
            table = score_all(plan, do, report)
        report("report")
        collector = Collector(plan, table, models)
        content = collector.report()
        content["figures"] = save_figures(content, collector.curves, root)
        content["timing"] = {
            "training_seconds": models.seconds(),
            "scoring_seconds": round(sum(r.seconds for results in table.results.values() for r in results), 1),
        }
        write_text(root / JSON_NAME, json.dumps(content, indent=1, allow_nan=False) + "\n")
        write_text(root / PAGE_NAME, page(content, root))
    return content


def describe(study: Study, root: Path) -> list[dict[str, Any]]:
    """Return every training with its command, and whether it is done; nothing is run or written."""
    plan = make_plan(study)
    check_evaluation(plan)
    models = Models(plan, root, lambda line: None)
    return [{"id": node.id, "done": models.is_done(node), "command": models.command(node)} for node in plan.trainings()]
