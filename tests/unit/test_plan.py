"""The planner: its counts are those of the model, of torch's own counter, and of arithmetic by hand."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from tests import tiny
from unival.cli import app
from unival.config import dump_config, load_config
from unival.errors import UserError
from unival.planning.cost import GPUS, advice, cost, does_not_fit, find_gpu, report
from unival.planning.plan import FLOAT, SizesFile, StagePlan, estimate, examples_per_row, media_per_row, with_sizes
from unival.schema import GroupConfig, RunConfig
from unival.training.distributed import World
from unival.training.memory import warn_if_too_large
from unival.training.optim import freeze
from unival.training.sketch import sketch

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SOURCE = {"world": "train", "limit": 24}


def run(**changes: Any) -> RunConfig:
    """Return a small run; its vocabulary is that of the tests' model."""
    return RunConfig.model_validate(tiny.run_settings(Path("run"), **changes))


@pytest.fixture(scope="module")
def one_stage() -> RunConfig:
    return run(stages=[run().stages[0].model_dump()])


PlannedIn = Callable[[str], StagePlan]


@pytest.fixture(scope="module")
def planned_in(one_stage: RunConfig) -> PlannedIn:
    """Return the plan of the stage in a precision; each is made once."""

    @cache
    def find(precision: str) -> StagePlan:
        (found,) = estimate(one_stage.model_copy(update={"precision": precision}))
        return found

    return find


@pytest.fixture(scope="module")
def planned(one_stage: RunConfig, planned_in: PlannedIn) -> StagePlan:
    return planned_in(one_stage.precision)


def group(**fields: Any) -> GroupConfig:
    return GroupConfig.model_validate({"rows": 8, "tasks": [{"task": "caption", "source": SOURCE}]} | fields)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "changes", "parameters"),
    [
        # Measured on the reference implementation (specification 1.3).
        ("base.yaml", {"video_encoder": None}, 200_038_704),
        ("base.yaml", {}, 250_489_072),
        ("base_audio.yaml", {}, 329_979_120),
    ],
)
def test_the_parameters_of_the_full_model_are_those_measured(
    file: str, changes: dict[str, Any], parameters: int
) -> None:
    start = run(init="elsewhere", model=changes, processor={}, stages=[run().stages[0].model_dump()])
    (shape,) = sketch(with_sizes(start, CONFIGS / "model" / file))
    assert sum(parameter.numel() for parameter in shape.build().parameters()) == parameters


def test_parameters_and_trained_ones_are_those_of_the_model() -> None:
    config = run(init=None)
    stage = config.stages[0].model_copy(update={"freeze": ["encoder.embed_images"]})
    config = config.model_copy(update={"stages": [stage]})
    (found,) = estimate(config)
    vocabulary = 300 + tiny.NUM_CODES + tiny.NUM_BINS
    model = tiny.build_model(vocab_size=vocabulary, max_text_positions=160, video_encoder=None, audio_encoder=None)
    freeze(model, stage)
    assert found.total == sum(parameter.numel() for parameter in model.parameters())
    assert found.trained == sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert found.stored == found.total + sum(buffer.numel() for buffer in model.buffers())
    assert found.parameters["image encoder"] == sum(p.numel() for p in model.encoder.embed_images.parameters())


def test_arithmetic_is_that_of_torchs_counter_on_real_tensors() -> None:
    config = run(stages=[run().stages[0].model_dump() | {"groups": [group(rows=1).model_dump()]}])
    (found,) = estimate(config)
    vocabulary = 300 + tiny.NUM_CODES + tiny.NUM_BINS
    model = tiny.build_model(vocab_size=vocabulary, max_text_positions=160, video_encoder=None, audio_encoder=None)
    model.train()
    inputs = {"input_ids": torch.full((1, 8), 5), "pixel_values": torch.rand(1, 3, 24, 24)}
    # Fused attention exists on the CPU and not on the meta device, and torch does not count its products.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(**inputs, decoder_input_ids=torch.full((1, 14), 5)).logits.sum().backward()
    assert found.flops == counter.get_total_flops()


def test_frozen_encoders_cost_no_backward_pass_and_keep_nothing() -> None:
    image = group(rows=4)
    free = run(stages=[run().stages[0].model_dump() | {"groups": [image.model_dump()]}])
    stage = free.stages[0].model_copy(update={"freeze": ["encoder.embed_images", "encoder.image_proj"]})
    (one,), (two,) = estimate(free), estimate(free.model_copy(update={"stages": [stage]}))
    assert two.flops < one.flops
    assert two.groups[0].activations < one.groups[0].activations
    assert two.trained < one.trained
    assert two.total == one.total


def test_layers_that_are_computed_again_keep_less_and_cost_more(one_stage: RunConfig, planned: StagePlan) -> None:
    (again,) = estimate(one_stage.model_copy(update={"checkpoint_activations": True}))
    assert again.groups[0].activations < planned.groups[0].activations
    assert planned.flops < again.flops < 4 / 3 * planned.flops


def planned_with(objective: str, args: dict[str, Any], task: str = "caption", **changes: Any) -> StagePlan:
    (stage,) = (run().stages[0].model_dump(),)
    stage |= {
        "objective": {"name": objective, "args": args},
        "groups": [{"rows": 2, "tasks": [{"task": task, "source": SOURCE}]}],
    }
    (found,) = estimate(run(stages=[stage], precision="fp32", **changes))
    return found


def test_the_passes_of_an_objective_are_counted() -> None:
    rewarded = {"rewards": {"cider_d": 1.0}, "max_new_tokens": 14}  # as long as the planner takes a caption for
    plain, twice = planned_with("cross_entropy", {}), planned_with("cross_entropy", {"rdrop": 1.0})
    once = planned_with("reward_weighted", rewarded | {"samples": 1})
    few, many = (planned_with("self_critical", rewarded | {"samples": number}) for number in (2, 16))
    media = plain.groups[0].flops - (twice.groups[0].flops - plain.groups[0].flops)  # which R-Drop encodes once
    text = plain.flops - media
    assert once.flops == pytest.approx(media + text * 4 / 3)  # drawn, then forward and backward
    assert plain.flops < twice.flops < few.flops < many.flops
    kept = [plan.groups[0].activations for plan in (plain, twice, many)]
    assert kept[0] < kept[1] < kept[2]
    assert many.groups[0].tokens - few.groups[0].tokens == 2 * 14 * 14
    greedy = planned_with("self_critical", rewarded | {"samples": 2, "baseline": "greedy"})
    supervised = planned_with("self_critical", rewarded | {"samples": 2, "supervised": 0.5})
    compared = planned_with("self_critical", rewarded | {"samples": 2, "kl": 0.1, "start": "unival-tiny"})
    assert few.flops < min(greedy.flops, supervised.flops, compared.flops)
    assert supervised.groups[0].activations > few.groups[0].activations == greedy.groups[0].activations
    assert few.start == 0
    assert compared.memory("fsdp", 2, False)["start model"] == FLOAT * compared.stored


def test_codes_have_positions_of_their_own_and_their_own_columns() -> None:
    sizes = tiny.SIZES | {"max_text_positions": 20, "code_image_size": 40}  # 25 codes, more than texts have tokens
    codes = {"constraint_range": [300, 316]}
    whole, few = (planned_with("cross_entropy", args, "text_to_image", model=sizes) for args in ({}, codes))
    assert few.groups[0].activations < whole.groups[0].activations
    assert whole.groups[0].modality == "text"


def test_rows_are_shared_by_processes_and_passes() -> None:
    stage = run().stages[0].model_dump() | {"groups": [group().model_dump()]}
    one = estimate(run(stages=[stage]))[0]
    four = estimate(run(stages=[stage], accumulation=2), world=2)[0]
    assert four.examples == one.examples == 8
    assert four.flops == one.flops
    assert four.groups[0].activations == pytest.approx(one.groups[0].activations / 4)
    with pytest.raises(UserError, match=r"8 rows a step cannot be cut into 3 processes x 1 passes"):
        estimate(run(stages=[stage]), world=3)


def test_examples_and_media_of_a_row() -> None:
    tasks = [
        {"task": "caption", "source": SOURCE},
        {"task": "matching", "source": SOURCE, "share": 2},
        {"task": "vqa", "source": SOURCE | {"limit": 9}, "every": 4},
    ]
    apart = group(tasks=tasks, aligned=False)
    assert examples_per_row(apart) == [1, 2, 0.25]
    assert media_per_row(apart) == 1.25
    assert media_per_row(group(tasks=tasks)) == 1
    pool = group(tasks=[tasks[0] | {"size": 3}, tasks[1] | {"size": 1, "share": 1}], mixing="proportional")
    assert examples_per_row(pool) == [0.75, 0.25]
    assert media_per_row(pool) == 1


def test_memory_by_hand(planned: StagePlan) -> None:
    found = planned
    alone, ddp, fsdp = (found.memory(kind, 4, has_average=True) for kind in ("none", "ddp", "fsdp"))
    assert alone["optimizer"] == 2 * FLOAT * found.trained
    assert alone["gradients"] == FLOAT * found.trained
    assert alone["average"] == alone["parameters"] == FLOAT * found.stored
    assert ddp["gradients"] == 2 * alone["gradients"]
    assert {name: 4 * fsdp[name] for name in ("parameters", "gradients", "optimizer", "average")} == {
        name: alone[name] for name in ("parameters", "gradients", "optimizer", "average")
    }
    assert found.memory("none", 1, has_average=False)["average"] == 0
    # All four layers of the tests' model are in two pairs: half of their parameters are there at a time.
    assert found.num_layers == 4
    assert fsdp["gathered"] == 2 * FLOAT * (found.outside + (found.total - found.outside) / 2)


def test_time_follows_from_arithmetic_traffic_and_the_data_sheet(one_stage: RunConfig, planned: StagePlan) -> None:
    config, found, gpu = one_stage, planned, GPUS["h100"]
    one = cost(config, found, gpu, "none", 1, 0.5)
    update = 7 * FLOAT * found.trained / 3350e9
    assert one.compute_seconds == pytest.approx(found.flops / (67e12 * 0.5) + update)  # the tests' runs are fp32
    assert one.communication_seconds == 0
    eight = cost(config, found, gpu, "ddp", 8, 0.5)
    assert eight.communication_seconds == pytest.approx(2 * FLOAT * found.trained * 7 / 8 / 450e9)
    assert eight.compute_seconds == pytest.approx(found.flops / 8 / (67e12 * 0.5) + update)
    assert eight.seconds >= eight.compute_seconds
    with pytest.raises(UserError, match=r"unknown GPU 'h1000'.*did you mean 'h100'\?"):
        find_gpu("h1000")


@pytest.mark.parametrize(
    ("name", "precision", "expected", "peak"),
    [
        ("h100", "auto", "bf16", 989),
        ("v100", "auto", "fp32", 15.7),  # as `autocast_dtype` chooses there
        ("t4", "bf16", "bf16", 8),  # computed without matrix units
        ("t4", "fp16", "fp16", 65),
        ("h100", "fp32", "fp32", 67),
    ],
)
def test_the_peak_is_that_of_the_precision_a_gpu_has(
    one_stage: RunConfig,
    planned_in: PlannedIn,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    precision: str,
    expected: str,
    peak: float,
) -> None:
    monkeypatch.setattr("unival.planning.cost.estimate", lambda config, world: [planned_in(config.precision)])
    config = one_stage.model_copy(update={"precision": precision})
    found = report(config, name, 1, 0.5)
    assert (found["precision"], found["peak"]) == (expected, peak)
    planned = planned_in(expected)
    (shown,) = found["stages"]
    assert shown["groups"][0]["activations"] == planned.groups[0].activations
    assert shown["costs"][0]["seconds"] == pytest.approx(
        cost(config, planned, GPUS[name], "none", 1, 0.5).seconds, rel=1e-9
    )
    update = 7 * FLOAT * planned.trained / (GPUS[name].bandwidth * 1e9)
    assert shown["costs"][0]["seconds"] - update == pytest.approx(planned.flops / (peak * 1e12 * 0.5))


@pytest.mark.parametrize(
    ("rows", "accumulation", "share", "expected"),
    [
        ((16, 24), 1, 3, "raise `accumulation` to 4, or set"),  # 3 passes do not divide 16 rows
        ((16, 24), 2, 1.5, "raise `accumulation` to 4, or set"),
        ((6, 6), 1, 2.5, "raise `accumulation` to 3, or set"),
        ((5, 7), 1, 2, "set `checkpoint_activations=true`"),  # no number but 1 divides both
    ],
)
def test_advised_passes_divide_the_rows_of_every_group(
    one_stage: RunConfig, planned: StagePlan, rows: tuple[int, ...], accumulation: int, share: float, expected: str
) -> None:
    stage = replace(planned, groups=tuple(replace(planned.groups[0], rows=number) for number in rows))
    memory = stage.memory("none", 1, has_average=False)
    available = sum(memory.values()) - memory["activations"] + memory["activations"] / share
    config = one_stage.model_copy(update={"accumulation": accumulation})
    assert advice(config, stage, "none", 1, available).startswith(expected)
    if rows == (5, 7):
        again = config.model_copy(update={"checkpoint_activations": True})
        assert "smaller media" in advice(again, stage, "none", 1, available)


def test_a_run_that_does_not_fit_is_told_what_helps(
    one_stage: RunConfig, planned: StagePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unival.planning.cost.estimate", lambda config, world: [planned])
    config, memory = one_stage, planned.memory("none", 1, has_average=False)
    needed = int(sum(memory.values()))
    assert does_not_fit(config, 1, "none", needed + 1) is None
    assert "raise `accumulation` to 2" in str(does_not_fit(config, 1, "none", int(needed - memory["activations"] / 2)))
    assert "more processes" in str(does_not_fit(config, 1, "none", needed // 10))
    assert "parallel.kind=fsdp" in str(does_not_fit(config, 2, "ddp", needed // 10))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_warning_of_a_run_plans_with_the_precision_of_its_device(
    one_stage: RunConfig, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype | None
) -> None:
    planned: list[str] = []
    monkeypatch.setattr("unival.training.memory.autocast_dtype", lambda precision, device: dtype)
    monkeypatch.setattr("unival.training.memory.device_bytes", lambda world: 1)
    monkeypatch.setattr("unival.training.memory.does_not_fit", lambda config, *_: planned.append(config.precision))
    warn_if_too_large(tiny.model(), one_stage.model_copy(update={"precision": "auto"}), World())
    assert planned == ["fp32" if dtype is None else "bf16"]


def test_the_sizes_of_a_file_replace_weights_that_are_not_here() -> None:
    config = run(init="models/elsewhere", model={"dropout": 0.2}, processor={"image_px": 64})
    sized = with_sizes(config, CONFIGS / "model" / "tiny.yaml")
    tiny_sizes = load_config(CONFIGS / "model" / "tiny.yaml", [], SizesFile)
    assert sized.init is None
    assert sized.model["d_model"] == tiny_sizes.model["d_model"]
    assert sized.model["dropout"] == 0.2
    assert "video_encoder" not in sized.model  # a stage adds it
    assert sized.processor["image_px"] == 64
    assert with_sizes(config, CONFIGS / "model" / "base.yaml").tokenizer.bpe == "BART"


def test_weights_that_are_not_here_have_sizes(tmp_path: Path) -> None:
    dump_config(run(init="models/elsewhere", model={}), tmp_path / "run.yaml")
    with pytest.raises(UserError, match=r"no such model folder: models/elsewhere.*--sizes configs/model/base\.yaml"):
        CliRunner().invoke(app, ["plan", str(tmp_path / "run.yaml")], catch_exceptions=False)


def test_the_command_prints_one_json_document_or_tables(
    one_stage: RunConfig, planned: StagePlan, tmp_path: Path
) -> None:
    dump_config(one_stage, tmp_path / "run.yaml")
    found = CliRunner().invoke(app, ["plan", str(tmp_path / "run.yaml"), "--gpu", "l4", "--json"])
    document = json.loads(found.stdout)
    assert [stage["name"] for stage in document["stages"]] == ["image"]
    assert document["stages"][0]["total"] == planned.total
    assert document["stages"][0]["costs"][0]["kind"] == "none"
    assert document["stages"][0]["costs"][0]["hours"] > 0
    text = CliRunner().invoke(app, ["plan", str(tmp_path / "run.yaml"), "--world", "2"]).stdout
    assert "stage image" in text
    assert "fsdp" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.yaml"]
