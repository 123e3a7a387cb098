"""A pipeline opens the rows of its task and scores what it says about them."""

from pathlib import Path

import pytest

from tests import tiny
from unival import predict
from unival.errors import UserError
from unival.tasks.caption import without_punctuation


@pytest.fixture
def describe(monkeypatch: pytest.MonkeyPatch) -> predict.Pipeline:
    monkeypatch.setattr(predict, "load", lambda path: (tiny.model(), tiny.processor()))
    return predict.pipeline("caption", Path("anywhere"))


def test_rows_are_those_of_the_task_and_are_predicted_as_single_media_are(describe: predict.Pipeline) -> None:
    rows = describe.rows(world="test", limit=3)
    result = describe.evaluate(rows, batch_size=2)
    assert [record["caption"] for record in result.records] == [rows[index]["caption"] for index in range(3)]
    alone = [describe(rows[index]["image"])["prediction"] for index in range(3)]  # of one's own pictures: cleaned
    assert [without_punctuation(text) for text in result.predictions] == alone
    assert set(result.scores) == {"cider_d", "exact", "names"}
    assert all(len(scores) == 3 for scores in result.scores.values())


def test_a_wrong_argument_of_rows_is_explained(describe: predict.Pipeline) -> None:
    with pytest.raises(UserError, match="limitt") as error:
        describe.rows(world="test", limitt=3)
    assert "limit" in str(error.value.fix)
    with pytest.raises(UserError, match="no image rows for 'captoin'"):
        describe.rows(world="test", content="captoin")
