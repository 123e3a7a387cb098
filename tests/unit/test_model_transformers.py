"""The model in the hands of `transformers` and PEFT: training, new tokens, caches, what is refused."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests import tiny

PROMPT = torch.tensor([[5, 6, 7], [8, 9, 1]])


class Targets(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Four prompts with targets of equal length, so that a mean of means is the mean."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        return {name: torch.randint(4, 100, (4,), generator=generator) for name in ("input_ids", "labels")}


def test_batches_that_a_trainer_accumulates_have_the_gradient_of_one_batch(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    def first_step(rows: int, batches: int) -> tuple[float, float]:
        model = tiny.build_model(image_encoder=None, video_encoder=None, audio_encoder=None)
        arguments = TrainingArguments(
            str(tmp_path),
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=batches,
            max_steps=1,
            logging_steps=1,
            report_to=[],
            use_cpu=True,
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = Trainer(model, arguments, train_dataset=Targets())
        trainer.train()
        log = trainer.state.log_history[0]
        return log["loss"], log["grad_norm"]

    assert first_step(1, 4) == pytest.approx(first_step(4, 1), rel=1e-3)
