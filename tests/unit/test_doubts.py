"""What a run may do and hardly means to do is said when a stage begins."""

from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from unival.schema import RunConfig
from unival.training.doubts import doubts
from unival.training.optim import freeze

OPTIM = {"lr": 0.01, "warmup_steps": 5}


@pytest.mark.parametrize(
    ("stage", "run", "expected"),
    [
        ({}, {}, []),
        ({"optim": OPTIM}, {}, ["the learning rate never reaches 0.01: 3 steps, 5 of warm-up"]),
        ({"optim": OPTIM, "steps": 5}, {}, []),
        ({}, {"ema": {"start": 6}}, ["nothing is averaged: ema.start is 6, the run has 6 steps"]),
        ({}, {"ema": {"start": 5}}, []),
        ({"freeze": ["encoder.embed_images"]}, {}, ["encoder.embed_images is frozen, but its running statistics"]),
        ({"freeze": ["encoder.embed_images"], "freeze_batchnorm": True}, {}, []),
        ({"freeze": ["encoder.embed_images.conv1"]}, {}, []),
        ({"train_only": ["decoder"]}, {}, ["encoder.embed_images is frozen", "encoder.embed_videos is frozen"]),
    ],
)
def test_a_stage_is_doubted_for_what_it_hardly_means(
    stage: dict[str, Any], run: dict[str, Any], expected: list[str]
) -> None:
    settings = tiny.run_settings(Path("run"), (3, 3), **run)
    settings["stages"][0] |= stage | {"steps": stage.get("steps", 3)}
    config = RunConfig.model_validate(settings)
    model = tiny.build_model(audio_encoder=None)
    freeze(model, config.stages[0])
    found = doubts(config, 0, model)
    assert len(found) == len(expected), found
    assert all(part in line for part, line in zip(expected, found, strict=True))
    assert not [line for line in doubts(config, 1, tiny.build_model()) if "averaged" in line]
