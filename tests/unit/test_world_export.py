"""The exporter writes files that the manifest describes, and refuses to mix two exports."""

import json
from pathlib import Path

import pytest

from tests.scripts import load_script
from unival.errors import UserError

PATH = Path(__file__).parents[2] / "preprocessing/export_world.py"


@pytest.fixture(scope="module")
def export():
    return load_script(PATH).export


@pytest.mark.parametrize(("modality", "magic"), [("image", b"\x89PNG"), ("video", b"ftyp"), ("audio", b"RIFF")])
def test_every_record_has_its_file_and_questions(export, tmp_path, modality, magic):
    manifest = export(modality, "test", 3, tmp_path, ("noto",), 0)
    records = [json.loads(line) for line in manifest.read_text("utf-8").splitlines()]
    assert len({record["uid"] for record in records}) == 3
    for record in records:
        assert magic in (tmp_path / record[modality]).read_bytes()[:12]
        assert record["caption"]
        assert len(record["questions"]) >= 3


def test_an_existing_manifest_is_not_overwritten(export, tmp_path):
    export("image", "test", 1, tmp_path, ("noto",), 0)
    with pytest.raises(UserError, match="empty folder"):
        export("image", "train", 1, tmp_path, ("noto",), 0)
