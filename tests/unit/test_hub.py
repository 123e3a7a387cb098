"""A model folder is used through `transformers`' own classes: auto classes, `save_pretrained`, `push_to_hub`."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoProcessor, AutoTokenizer

from tests import tiny
from unival.checkpoint import load_model
from unival.model.configuration import UnivalConfig
from unival.model.modeling import UnivalForConditionalGeneration
from unival.model.processing import UnivalProcessor

PROMPT = torch.tensor([[5, 6, 7], [8, 9, 1]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "model"
    tiny.model().save_pretrained(folder)
    tiny.processor().save_pretrained(folder)
    return folder


def assert_same_use(model: Any, processor: Any) -> None:
    """Assert that a loaded pair writes what the pair in memory writes."""
    batch = tiny.image_batch(["what does the image describe?"] * 2, ["a cat"] * 2)
    options = {"num_beams": 2, "max_new_tokens": 6, "do_sample": False}
    found = model.eval().generate(**batch.inputs, **options)
    assert torch.equal(found, tiny.model().generate(**batch.inputs, **options))
    assert processor.decode(found) == tiny.processor().decode(found)
    assert processor.encode(tiny.TEXTS) == tiny.processor().encode(tiny.TEXTS)


def test_auto_classes_load_a_folder(folder: Path) -> None:
    assert isinstance(AutoConfig.from_pretrained(folder), UnivalConfig)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    assert type(model) is UnivalForConditionalGeneration
    assert type(processor) is UnivalProcessor
    assert {name: getattr(processor, name) for name in tiny.PROCESSOR} == tiny.PROCESSOR
    assert_same_use(model, processor)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer(" a cat")["input_ids"] == tiny.processor().tokenizer(" a cat")["input_ids"]


def test_what_transformers_saves_is_a_model_folder_of_ours(folder: Path) -> None:
    assert_same_use(*load_model(folder))


def test_a_model_saved_in_shards_loads(tmp_path: Path) -> None:
    tiny.model().save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in tiny.model().state_dict().items())


def test_pushing_to_the_hub_uploads_a_folder_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing goes over the network: the upload copies files."""
    api = SimpleNamespace(create_repo=lambda repo_id, **_: SimpleNamespace(repo_id=repo_id))
    card = SimpleNamespace(save=lambda path: Path(path).write_text("# A model\n", encoding="utf-8"))
    monkeypatch.setattr("transformers.utils.hub.hf_api", lambda: api)
    monkeypatch.setattr("transformers.utils.hub.create_and_tag_model_card", lambda *_, **__: card)

    def upload(self: object, working_dir: str, repo_id: str, **_: Any) -> None:
        shutil.copytree(working_dir, tmp_path / repo_id, dirs_exist_ok=True)

    for part in (UnivalForConditionalGeneration, UnivalProcessor):
        monkeypatch.setattr(part, "_upload_modified_files", upload)
    tiny.model().push_to_hub("somebody/model")
    tiny.processor().push_to_hub("somebody/model")
    assert (tmp_path / "somebody" / "model" / "README.md").is_file()
    assert_same_use(*load_model(tmp_path / "somebody" / "model"))
