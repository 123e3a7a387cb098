"""Reading, merging, overriding, checking and writing configurations."""

import math
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from unival.config import dump_config, load_config
from unival.errors import UserError
from unival.yaml12 import parse_yaml, write_yaml


class Optim(BaseModel, frozen=True):
    lr: float = Field(1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Literal["linear", "cosine"] = "linear"


class Stage(BaseModel, frozen=True):
    num_steps: int
    mixture: dict[str, float] = {}
    optim: Optim | None = None


class Run(BaseModel, frozen=True):
    name: str = "run"
    seed: int = Field(0, ge=0)
    is_bf16: bool = False
    out_dir: Path | None = None
    optim: Optim = Optim()
    stages: list[Stage] = []
    limit: int | Literal["all"] = "all"
    note: Annotated[str, Field(max_length=5)] = ""


class Strict(BaseModel):
    required: int
    optim: Optim = Optim()


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_come_from_the_schema_alone() -> None:
    assert load_config(None, [], Run) == Run()


def test_a_number_in_scientific_notation_is_a_number(tmp_path: Path) -> None:
    assert load_config(write(tmp_path / "a.yaml", "optim: {lr: 1e-4}"), [], Run).optim.lr == 1e-4
    assert load_config(None, ["optim.lr=3e-5"], Run).optim.lr == 3e-5


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E4", 1e4),
        ("no", "no"),
        ("on", "on"),
        ("12:30", "12:30"),
        ("010", 10),
        ("1_000", 1000),
        (".5", 0.5),
        ("-.inf", -math.inf),
        ("'1e-4'", "1e-4"),
        ("2026-01-01", "2026-01-01"),
        ("~", None),
        ("", None),
        ("true", True),
        ("[1, a]", [1, "a"]),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    assert parse_yaml(text) == value


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(plain)
def test_written_yaml_reads_back_equal(value: object) -> None:
    assert parse_yaml(write_yaml({"value": value})) == {"value": value}


@pytest.mark.parametrize("word", ["1e-4", "on", "NO", "null", "~", "", "010", "12:30", "=", "<<", "- a", "a: b", "#"])
def test_a_text_that_looks_like_something_else_stays_text(word: str) -> None:
    assert parse_yaml(write_yaml({"value": word})) == {"value": word}


def test_extends_merges_sections_and_replaces_lists(tmp_path: Path) -> None:
    write(
        tmp_path / "configs/base.yaml",
        "optim: {lr: 0.1, schedule: cosine}\nstages: [{num_steps: 1}, {num_steps: 2}]",
    )
    write(tmp_path / "configs/model/big.yaml", "name: big\noptim: {lr: 0.2}")
    top = write(
        tmp_path / "configs/exp/a.yaml",
        "extends: [../base.yaml, ../model/big.yaml]\nseed: 3\nstages: [{num_steps: 9}]",
    )
    config = load_config(top, [], Run)
    assert config == Run(name="big", seed=3, optim=Optim(lr=0.2, schedule="cosine"), stages=[Stage(num_steps=9)])


def test_extends_may_be_one_name_and_two_levels_deep(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "seed: 1\nname: a")
    write(tmp_path / "b.yaml", "extends: a.yaml\nname: b")
    assert load_config(write(tmp_path / "c.yaml", "extends: b.yaml"), [], Run) == Run(seed=1, name="b")


def test_two_files_may_extend_the_same_base(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "seed: 1")
    write(tmp_path / "a.yaml", "extends: base.yaml\nname: a")
    write(tmp_path / "b.yaml", "extends: base.yaml\nlimit: 5")
    top = write(tmp_path / "c.yaml", "extends: [a.yaml, b.yaml]")
    assert load_config(top, [], Run) == Run(seed=1, name="a", limit=5)


def test_null_and_an_empty_file_are_allowed(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "out_dir: runs/a")
    assert load_config(write(tmp_path / "a.yaml", "extends: base.yaml\nout_dir: null"), [], Run).out_dir is None
    assert load_config(write(tmp_path / "empty.yaml", ""), [], Run) == Run()


def test_overrides_set_keys_list_items_and_whole_sections(tmp_path: Path) -> None:
    top = write(tmp_path / "a.yaml", "stages: [{num_steps: 1}, {num_steps: 2, mixture: {vqa: 1}}]\noptim: {lr: 0.5}")
    config = load_config(
        top,
        ["stages.1.num_steps=20", "stages.1.mixture.caption=0.5", "optim={schedule: cosine}", "name=x=y"],
        Run,
    )
    assert config.stages[1] == Stage(num_steps=20, mixture={"vqa": 1.0, "caption": 0.5})
    assert config.optim == Optim(schedule="cosine")
    assert config.name == "x=y"


def test_a_later_override_wins_and_creates_a_section() -> None:
    config = load_config(None, ["optim.lr=0.1", "optim.lr=0.2", "stages=[{num_steps: 1}]", "stages.0.optim.lr=9"], Run)
    assert config.optim.lr == 0.2
    assert config.stages[0].optim == Optim(lr=9)


def test_the_dumped_configuration_reloads_to_an_equal_object(tmp_path: Path) -> None:
    config = Run(
        name="1e-4",
        out_dir=Path("runs/x"),
        optim=Optim(lr=1e-7, betas=(0.1, 0.2)),
        stages=[Stage(num_steps=3, mixture={"on": 1e300}), Stage(num_steps=1, optim=Optim())],
        limit=7,
        note="on",
    )
    dump_config(config, tmp_path / "deep" / "config.yaml")
    assert load_config(tmp_path / "deep" / "config.yaml", [], Run) == config
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["config.yaml"]


def test_infinity_survives_a_dump(tmp_path: Path) -> None:
    dump_config(Optim(lr=math.inf), tmp_path / "c.yaml")
    assert load_config(tmp_path / "c.yaml", [], Optim).lr == math.inf


def test_a_failed_dump_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "config.yaml"
    dump_config(Run(name="old"), target)

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("unival.config.os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        dump_config(Run(name="new"), target)
    assert load_config(target, [], Run).name == "old"
    assert len(list(tmp_path.iterdir())) == 1


# One row per mistake: the file, the overrides, and the words that the one line must contain.
MISTAKES: dict[str, tuple[str, list[str], list[str]]] = {
    "unknown key": ("sede: 1", [], ["unknown key 'sede'", "did you mean 'seed'?", "main.yaml"]),
    "unknown nested key": ("optim: {lrr: 1}", [], ["unknown key 'optim.lrr'", "'lr'", "schedule"]),
    "unknown key in a list": (
        "stages: [{num_steps: 1, mixtur: {}}]",
        [],
        ["unknown key 'stages.0.mixtur'", "did you mean 'mixture'?"],
    ),
    "unknown key in an optional section": (
        "stages: [{num_steps: 1, optim: {sched: linear}}]",
        [],
        ["'stages.0.optim.sched'", "betas, lr, schedule"],
    ),
    "unknown key in an override": (
        "",
        ["optm.lr=1"],
        ["unknown key 'optm'", "'optim'", "override 'optm.lr=1'"],
    ),
    "text for a number": ("optim: {lr: fast}", [], ["optim.lr: expected a number, got 'fast'", "main.yaml"]),
    "fraction for a whole number": ("seed: 1.5", [], ["seed: expected a whole number, got 1.5"]),
    "text for a whole number": ("seed: many", [], ["seed: expected a whole number, got 'many'"]),
    "number for text": (
        "",
        ["name=2024"],
        ["name: expected text, got 2024", "in quotes: '2024'", "override"],
    ),
    "word for a switch": ("is_bf16: perhaps", [], ["is_bf16: expected true or false, got 'perhaps'"]),
    "bad choice": (
        "optim: {schedule: cosin}",
        [],
        ["'linear' or 'cosine', got 'cosin'", "did you mean 'cosine'?"],
    ),
    "out of range": ("optim: {lr: -1}", [], ["optim.lr: expected greater than 0, got -1"]),
    "out of range in an override": ("", ["seed=-1"], ["greater than or equal to 0", "override 'seed=-1'"]),
    "too long": ("note: abcdefgh", [], ["note:", "at most 5 characters", "'abcdefgh'"]),
    "scalar for a section": ("optim: 3", [], ["optim: expected a section, got 3"]),
    "section for a list": ("stages: {num_steps: 1}", [], ["stages: expected a list"]),
    "no member of a union": ("limit: some", [], ["limit: expected a whole number or 'all', got 'some'"]),
    "required in a list": ("stages: [{}]", [], ["'stages.0.num_steps' is required"]),
    "null for a number": ("seed: null", [], ["seed: expected a whole number, got null"]),
    "pair too short": ("optim: {betas: [0.9]}", [], ["optim.betas"]),
    "three at once": ("seed: x\nname: [1]\nis_bf16: z", [], ["seed:", "name:", "is_bf16:"]),
    "repeated key": ("seed: 1\nseed: 2", [], ["key 'seed' is given twice", "main.yaml:2:1"]),
    "no YAML": ("optim: {lr: [1}", [], ["not valid YAML", "main.yaml:1:"]),
    "tab": ("optim:\n\tlr: 1", [], ["not valid YAML", "main.yaml:2:1"]),
    "only a word": ("hello", [], ["expected 'key: value' lines", "str"]),
    "object tag": ("name: !!python/name:os.system ''", [], ["not valid YAML"]),
    "alias": ("name: &a x\nnote: *a", [], ["aliases are not allowed"]),
    "override without a value": ("", ["seed"], ["expected key.sub=value", "override 'seed'"]),
    "override with an empty key": ("", ["optim..lr=1"], ["expected key.sub=value"]),
    "override below a number": ("seed: 1", ["seed.x=1"], ["'seed' is 1, not a section"]),
    "override past a list": (
        "stages: [{num_steps: 1}]",
        ["stages.1.num_steps=2"],
        ["no item '1'", "valid items: 0 to 0"],
    ),
    "override of a list by name": (
        "stages: []",
        ["stages.first=2"],
        ["no item 'first'", "none, it is empty"],
    ),
    "override of extends": ("", ["extends=a.yaml"], ["'extends' can only be written in a file"]),
    "override with bad YAML": ("", ["name=[1"], ["not valid YAML", "override 'name=[1'"]),
    "extends a missing file": ("extends: bsae.yaml", [], ["no file", "did you mean 'base.yaml'?"]),
    "extends leaves the folder": ("extends: ../../secret.yaml", [], ["leaves the folder"]),
    "extends an absolute path": ("extends: /etc/passwd", [], ["leaves the folder"]),
    "extends no YAML file": ("extends: base.txt", [], ["is not a .yaml file"]),
    "extends a number": ("extends: [3]", [], ["extends: expected a file name", "3"]),
    "extends itself": ("extends: main.yaml", [], ["round in a circle"]),
    "extends in a circle": ("extends: circle.yaml", [], ["round in a circle", "circle.yaml"]),
    "extends too deep": ("extends: deep1.yaml", [], ["too deep", "at most 2 levels"]),
    "mistake in a base": (
        "extends: broken.yaml",
        [],
        ["seed: expected a whole number, got 'x'", "broken.yaml"],
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_that_says_what_and_where(mistake: str, tmp_path: Path) -> None:
    text, overrides, expected = MISTAKES[mistake]
    write(tmp_path / "secret.yaml", "seed: 1")
    folder = tmp_path / "x" / "configs"
    for name, base in {
        "base": "seed: 1",
        "circle": "extends: main.yaml",
        "deep1": "extends: deep2.yaml",
        "deep2": "extends: base.yaml",
        "broken": "seed: x",
    }.items():
        write(folder / f"{name}.yaml", base)
    if mistake == "extends too deep":
        write(folder / "deep2.yaml", "extends: deep3.yaml")
        write(folder / "deep3.yaml", "seed: 1")
    with pytest.raises(UserError) as info:
        load_config(write(folder / "main.yaml", text), overrides, Run)
    message = str(info.value)
    assert "\n" not in message
    for words in expected:
        assert words in message


def test_a_missing_required_key_says_how_to_give_it() -> None:
    with pytest.raises(UserError, match=r"'required' is required \[overrides\] \(write it in the file, or"):
        load_config(None, [], Strict)


def test_an_unknown_key_comes_before_the_missing_one_that_it_may_stand_for() -> None:
    with pytest.raises(UserError, match=r"^unknown key 'requird'; 'required' is required .*mean 'required'"):
        load_config(None, ["requird=1"], Strict)


def test_more_than_three_problems_are_counted() -> None:
    with pytest.raises(UserError, match="and 2 more"):
        load_config(None, ["a=1", "b=1", "c=1", "d=1", "e=1"], Run)


def test_a_missing_file_suggests_a_neighbour(tmp_path: Path) -> None:
    write(tmp_path / "caption.yaml", "")
    with pytest.raises(UserError, match=r"no such configuration file \(did you mean 'caption.yaml'\?"):
        load_config(tmp_path / "captoin.yaml", [], Run)


def test_a_folder_and_a_binary_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder"):
        load_config(tmp_path, [], Run)
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        load_config(tmp_path / "x.yaml", [], Run)


def test_a_link_cannot_lead_extends_out_of_the_folder(tmp_path: Path) -> None:
    write(tmp_path / "secret.yaml", "seed: 1")
    top = write(tmp_path / "in" / "main.yaml", "extends: link.yaml")
    (tmp_path / "in" / "link.yaml").symlink_to(tmp_path / "secret.yaml")
    with pytest.raises(UserError, match="leaves the folder"):
        load_config(top, [], Run)


def test_the_folder_may_be_widened_by_the_caller(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "seed: 4")
    top = write(tmp_path / "in" / "main.yaml", "extends: ../base.yaml")
    assert load_config(top, [], Run, root_dir=tmp_path).seed == 4


def test_a_union_of_sections_explains_the_member_that_fits_best() -> None:
    class Image(BaseModel):
        kind: Literal["image"]
        num_px: int

    class Video(BaseModel):
        kind: Literal["video"]
        num_frames: int

    class Both(BaseModel):
        media: Annotated[Image | Video, Field(discriminator="kind")]

    with pytest.raises(UserError, match=r"media.num_px: expected a whole number, got 'x'"):
        load_config(None, ["media={kind: image, num_px: x}"], Both)
    with pytest.raises(UserError, match=r"media: expected 'image', 'video'.*did you mean 'video'"):
        load_config(None, ["media={kind: vido}"], Both)


def test_a_section_of_numbers_changes_items_of_a_list(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "stages: [{num_steps: 1, optim: {lr: 0.1}}, {num_steps: 2}]")
    write(tmp_path / "part.yaml", "stages: {0: {optim: {schedule: cosine}}}")
    top = write(tmp_path / "a.yaml", "extends: [base.yaml, part.yaml]\nstages: {1: {num_steps: 5}}")
    stages = [Stage(num_steps=1, optim=Optim(lr=0.1, schedule="cosine")), Stage(num_steps=5)]
    assert load_config(top, [], Run).stages == stages
    with pytest.raises(UserError, match=r"'stages' is a list and has no item '2'.*b\.yaml.*valid items: 0 to 1"):
        load_config(write(tmp_path / "b.yaml", "extends: base.yaml\nstages: {2: {num_steps: 5}}"), [], Run)


def test_an_error_in_a_changed_item_names_the_file_that_changed_it(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "stages: [{num_steps: 1}]")
    top = write(tmp_path / "a.yaml", "extends: base.yaml\nstages: {0: {num_steps: many}}")
    with pytest.raises(UserError, match=r"stages\.0\.num_steps: expected a whole number, got 'many' \[.*a\.yaml\]"):
        load_config(top, [], Run)
