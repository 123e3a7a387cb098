"""What can be known of evaluations before anything is predicted."""

from collections import Counter
from collections.abc import Sequence

from unival.data.source import open_source, row_name
from unival.errors import UserError
from unival.evaluation.submission import check_kind, check_row
from unival.schema import EvaluationConfig
from unival.tasks.base import get_task


def check_suite(configs: Sequence[EvaluationConfig]) -> None:
    """Refuse, before anything is predicted, evaluations of one name and submissions that cannot be written.

    Raises:
        UserError: Then; of a submission the format is unknown, or the first row lacks what it needs.
    """
    twice = [name for name, number in Counter(config.name for config in configs).items() if number > 1]
    if twice:
        raise UserError(f"two evaluations are called {twice[0]!r}", fix="give each its own name")
    for config in configs:
        if config.submission is not None:
            check_kind(config.submission)
            source = open_source(config.source, config.task, get_task(config.task, config.task_args).modality)
            check_row(config.submission, source[0], row_name(source, 0))


def metric_names(config: EvaluationConfig) -> list[str]:
    """Return the metrics of an evaluation, by its first row alone; none of rows without labels.

    Raises:
        UserError: If the rows cannot be opened, or the first one lacks a column.
    """
    task = get_task(config.task, config.task_args)
    source = open_source(config.source, config.task, task.modality)
    names = [] if config.rerank is None else ["reward"]
    records = [source[0]] if len(source) else []
    if not any(map(task.is_labelled, records)):
        return names
    predictions = [task.parse("", record) for record in records]
    return [*names, *task.score(predictions, records), *task.corpus(predictions, records)]
