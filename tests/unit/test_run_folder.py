"""What a run folder is trusted with: nothing that is no run is deleted, continued or shared."""

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from unival.config import load_config
from unival.data.mixture import rows_of_files
from unival.demo import run_demo
from unival.errors import UserError
from unival.log import cut_back
from unival.schema import RunConfig, SourceConfig, TaskEntry
from unival.training import run_folder
from unival.training.run_folder import LOCK, check_data, prepare_run_dir
from unival.training.saving import TrainState

ROOT = Path(__file__).parents[2]
HOLD = """
import sys
from contextlib import ExitStack
from pathlib import Path
from unival.training.run_folder import hold
with ExitStack() as held:
    hold(Path(sys.argv[1]), held)
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def checked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Leave the checks of configurations out, and list them."""
    calls: list[str] = []
    monkeypatch.setattr(run_folder, "check_run", lambda *_: calls.append("run"))
    monkeypatch.setattr(run_folder, "check_execution", lambda *_: calls.append("execution"))
    return calls


def configuration(out: Path, **changes: Any) -> RunConfig:
    groups = [{"rows": 2, "tasks": [{"task": "caption", "source": {"world": "train"}}]}]
    return RunConfig.model_validate(
        {"out": str(out), "stages": [{"name": "a", "steps": 1, "groups": groups}], **changes}
    )


def prepare(config: RunConfig, fresh: bool = False) -> None:
    with ExitStack() as held:
        prepare_run_dir(Path(config.out), config, fresh, 1, held)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def begun(config: RunConfig) -> Path:
    """Return the folder of a run with weights and a result."""
    prepare(config)
    folder = Path(config.out)
    (folder / "model").mkdir()
    (folder / "model" / "model.safetensors").write_bytes(b"weights")
    (folder / "evaluation.json").write_text("{}")
    return folder


def test_fresh_deletes_a_run_and_begins_another(tmp_path: Path) -> None:
    folder = begun(configuration(tmp_path / "run"))
    prepare(configuration(folder, seed=7), fresh=True)
    assert {path.name for path in folder.iterdir()} == {"config.yaml", "versions.json"}
    assert load_config(folder / "config.yaml", [], RunConfig).seed == 7


@pytest.mark.parametrize("names", [["thesis.txt"], ["config.yaml", "thesis.txt"], ["versions.json"], ["model/weights"]])
def test_fresh_does_not_delete_what_is_no_run(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text("precious")
    before = files(tmp_path)
    with pytest.raises(UserError, match="this is none"):
        prepare(configuration(tmp_path / "run"), fresh=True)
    assert files(tmp_path) == before


@pytest.mark.parametrize("key", ["init", "resume", "bart_weights"])
def test_fresh_does_not_delete_what_the_run_reads(tmp_path: Path, key: str) -> None:
    folder = begun(configuration(tmp_path / "run"))
    before = files(tmp_path)
    with pytest.raises(UserError, match=f"would delete .*model, which `{key}` names"):
        prepare(configuration(folder, **{key: str(folder / "model")}), fresh=True)
    assert files(tmp_path) == before


def test_fresh_does_not_delete_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = begun(configuration(tmp_path / "run"))
    before = files(tmp_path)
    monkeypatch.chdir(folder / "model")
    with pytest.raises(UserError, match="working folder"):
        prepare(configuration(folder), fresh=True)
    assert files(tmp_path) == before


def test_fresh_does_not_delete_what_is_no_demo(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match=r"the folder of a demo, and this is none: it has no versions\.json"):
        run_demo(tmp_path, ROOT / "configs" / "demo", fresh=True)
    assert files(tmp_path) == {"thesis.txt": b"precious"}


def test_a_complete_run_that_cannot_be_locked_is_left_alone(tmp_path: Path) -> None:
    folder = begun(configuration(tmp_path / "run"))
    (folder / LOCK).mkdir()  # stands for a folder that may only be read, which root may not meet
    before = files(tmp_path)
    prepare(configuration(folder))
    assert files(tmp_path) == before


def test_weights_of_an_unknown_run_are_not_continued(tmp_path: Path) -> None:
    folder = begun(configuration(tmp_path / "run"))
    (folder / "config.yaml").unlink()
    before = files(tmp_path)
    with pytest.raises(UserError, match=r"no config\.yaml that says of which run"):
        prepare(configuration(folder))
    assert files(tmp_path) == before


def test_other_evaluations_are_run_after_the_same_training(tmp_path: Path, checked: list[str]) -> None:
    folder = begun(configuration(tmp_path / "run"))
    prepare(configuration(folder, log_every=3))
    assert (folder / "evaluation.json").is_file()
    evaluation = {"name": "test", "task": "caption", "source": {"world": "test"}}
    prepare(configuration(folder, evaluations=[evaluation]))
    assert not (folder / "evaluation.json").exists()
    assert (folder / "model" / "model.safetensors").is_file()
    assert load_config(folder / "config.yaml", [], RunConfig).evaluations[0].name == "test"
    assert checked == ["run", "execution", "run"]


def test_a_checkpoint_behind_the_end_of_its_stage_is_refused(tmp_path: Path) -> None:
    config = configuration(tmp_path / "run")
    check_data(config, TrainState(0, 1, 0.0), tmp_path)
    check_data(config, TrainState(1, 0, 0.0), tmp_path)  # all stages are over
    with pytest.raises(UserError, match="stands at step 2, and stage 'a' has 1 steps: its data have fewer rows"):
        check_data(config, TrainState(0, 2, 0.0), tmp_path)


def test_a_stage_goes_on_with_the_rows_that_it_began_with(tmp_path: Path) -> None:
    manifest = tmp_path / "rows.jsonl"
    manifest.write_text('{"uid": "1", "caption": "a cat", "image": "a.png"}\n')
    config = configuration(tmp_path / "run")
    config.stages[0].groups[0].tasks[0] = TaskEntry(task="caption", source=SourceConfig(manifest=str(manifest)))
    state = TrainState(0, 1, 0.0, rows=rows_of_files(config.stages[0]))
    assert state.rows == {"groups.0.tasks.0": 1}
    own, foreign = tmp_path / "run" / "step-1", tmp_path / "other" / "step-1"
    check_data(config, state, own)
    manifest.write_text(manifest.read_text() * 2)
    check_data(config, state, foreign)
    check_data(config, TrainState(0, 0, 0.0, rows=state.rows), own)  # a stage that begins takes what there is
    with pytest.raises(UserError, match=r"stages\.0\.groups\.0\.tasks\.0 had 1 rows when the stage began, and have 2"):
        check_data(config, state, own)


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    config = configuration(tmp_path / "run")
    folder = begun(config)
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        before = files(folder)
        for fresh in (False, True):
            with pytest.raises(UserError, match=f"another process is training in this folder: process {other.pid} on"):
                prepare(config, fresh)
        assert files(folder) == before
        other.kill()  # a killed process holds nothing
        other.wait()
    prepare(config)


@pytest.mark.parametrize(
    "damage", [b"\xff\xfe\x80garb", b"1", b'{"loss": 1}', b'{"step": "x"}', b"[" * 100_000, b'{"st']
)
def test_damaged_lines_of_a_log_are_dropped(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0}\n' + damage + b'\n{"step": 1}\n{"step": 2}\n' + damage)
    cut_back(path, 2)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1]
