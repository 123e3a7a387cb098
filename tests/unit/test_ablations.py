"""The ablations' runs are runs, and their table says what the values show."""

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.scripts import load_script
from unival.schema import RunConfig
from unival.training.check import check_run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def ablations() -> ModuleType:
    return load_script(ROOT / "benchmarks" / "ablations.py")


def runs_of(ablations: ModuleType, suite: str, out: Path, data: str | None = None) -> dict[str, RunConfig]:
    chosen = ablations.SUITES[suite]
    runs = {arm.name: ablations.run_of(chosen, arm, 2, out, "unival-tiny", data) for arm in chosen.arms}
    for name, config in runs.items():
        assert (config.seed, config.out) == (2, str(out / f"{name}-2"))
    for question in chosen.questions:
        names = [{evaluation.name for evaluation in runs[arm].evaluations} for arm in question.arms]
        assert {metric.partition("/")[0] for metric in question.metrics.values()} <= names[0] & names[1]
    curriculum, balanced = runs["curriculum"], runs["balanced"]
    assert curriculum.stages[0] == balanced.stages[0]  # so one may take over the other's checkpoint
    assert Path(curriculum.resume) == out / "balanced-2" / f"step-{balanced.stages[0].steps:07d}"
    assert runs["one_stage"].stages[0].steps == sum(stage.steps or 0 for stage in curriculum.stages)
    assert runs["proportional"].stages[0].steps == balanced.stages[0].steps
    return runs


def test_every_run_is_possible_and_says_where_it_goes_on(ablations: ModuleType, tmp_path: Path) -> None:
    runs = runs_of(ablations, "world", tmp_path)
    for name, config in runs.items():
        if name not in ("curriculum", "audio_image_video"):  # these begin with runs that are not there yet
            check_run(config)
    assert runs["audio_image_video"].init == str(tmp_path / "curriculum-2" / "model")
    shares = [sum(entry.size or 0 for entry in stage.groups[0].tasks) for stage in runs["proportional"].stages]
    assert shares == [21_600]  # thousand rows of the paper's sets


def test_runs_on_real_data_differ_in_one_thing(ablations: ModuleType, tmp_path: Path) -> None:
    runs = runs_of(ablations, "real", tmp_path, "DATA")
    assert {name: config.data.root for name, config in runs.items()} == dict.fromkeys(runs, "DATA")
    assert (runs["audio_none"].init, runs["audio_image_video"].init) == (None, "unival-tiny")
    none, after = runs["audio_none"].stages[0], runs["audio_image_video"].stages[0]
    assert none.model_copy(update={"freeze": after.freeze}) == after


def evaluated(folder: Path, evaluation: str, **means: float) -> None:
    folder.mkdir()
    metrics: dict[str, Any] = {name: {"mean": mean} for name, mean in means.items()}
    (folder / "evaluation.json").write_text(json.dumps({evaluation: {"metrics": metrics}}), encoding="utf-8")


def test_the_table_holds_pairs_of_finished_runs_and_their_difference(ablations: ModuleType, tmp_path: Path) -> None:
    for seed, (words, media) in enumerate([(0.5, 0.7), (0.4, 0.7), (0.6, 0.9)], start=1):
        evaluated(tmp_path / f"audio_words-{seed}", "audio-caption", cider_d=words, exact=0.1)
        evaluated(tmp_path / f"audio_image_video-{seed}", "audio-caption", cider_d=media, exact=0.1)
    (tmp_path / "audio_words-4").mkdir()  # begun
    table = ablations.report(ablations.SUITES["world"], tmp_path, 4, {"audio_words": 2e12, "audio_image_video": 1e12})
    # Differences 0.2, 0.3, 0.3: mean 0.2667, deviation 0.0577, Student's t of 95 % with 2 degrees 4.303.
    values = "0.500 (0.500, 0.400, 0.600) | 0.767 (0.700, 0.700, 0.900)"
    assert f"| audio caption, CIDEr-D | {values} | +0.267 ± 0.143 | better |" in table
    assert re.search(r"\| audio caption, exact \|.*\| \+0\.000 ± 0\.000 \| not shown \|", table)
    assert "| TFLOP of a run | 2.0 | 1.0 | -50% | |" in table
    assert "Task balancing" not in table
    assert (tmp_path / "ablations.png").stat().st_size > 1000
    assert json.loads((tmp_path / "results.json").read_text())["questions"][2]["seeds"] == [1, 2, 3]


def test_one_pair_shows_nothing(ablations: ModuleType) -> None:
    assert ablations.difference([0.1], [0.3]) == (pytest.approx(0.2), None)
    assert ablations.verdict(0.2, None) == "one seed"
    assert ablations.verdict(-0.2, 0.1) == "worse"
    assert ablations.verdict(-0.2, 0.3) == "not shown"
