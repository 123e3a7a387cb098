"""A data set in four forms gives the same rows and the same pictures; damaged files name row and column."""

import base64
import binascii
import gc
import importlib
import io
import json
import os
import random
import tarfile
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from unival.data import lines as lines_module
from unival.data import media as media_module
from unival.data.archive import EXTENSIONS, ArchiveRows, expand
from unival.data.image import FORMATS, load_image
from unival.data.lines import MAX_LINE_BYTES, Lines
from unival.data.manifest import ManifestRows
from unival.data.media import decode_base64
from unival.data.source import open_rows, open_source
from unival.data.table import TableRows
from unival.errors import UserError
from unival.schema import SourceConfig
from unival.tasks.base import get_task

NUM = 7


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("UNIVAL_CACHE", str(folder))
    return folder


def picture(index: int) -> bytes:
    pixels = np.random.default_rng(index).integers(0, 255, (8 + index, 12, 3)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def records() -> list[dict[str, Any]]:
    return [
        {
            "uid": f"r{i}",
            "captions": [f"caption {i}", "ein Bär 🐻"],
            "image_id": str(i // 2),
            "picture": picture(i // 2),
        }
        for i in range(NUM)
    ]


def write_manifest(folder: Path) -> dict[str, Any]:
    rows = []
    for row in records():
        (folder / f"{row['image_id']}.png").write_bytes(row["picture"])
        rows.append({k: row[k] for k in ("uid", "captions", "image_id")} | {"image": f"{row['image_id']}.png"})
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return {"manifest": str(folder / "rows.jsonl")}


def table_line(row: dict[str, Any], cell: str) -> str:
    return "\t".join([row["uid"], row["image_id"], "&&".join(row["captions"]), "dog&&cat", cell])


def write_base64(folder: Path) -> dict[str, Any]:
    rows = [table_line(row, base64.urlsafe_b64encode(row["picture"]).decode()) for row in records()]
    (folder / "rows.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return {"tsv": str(folder / "rows.tsv"), "columns": "caption"}


def write_paths(folder: Path) -> dict[str, Any]:
    rows = []
    for row in records():
        (folder / f"p{row['image_id']}.png").write_bytes(row["picture"])
        rows.append(table_line(row, f"p{row['image_id']}.png"))
    (folder / "paths.tsv").write_text("\r\n".join(rows), encoding="utf-8-sig")
    return {"tsv": str(folder / "paths.tsv"), "columns": ["uid", "image_id", "captions", "-", "image"]}


def test_rows_of_one_identity_keep_their_own_pictures(tmp_path: Path) -> None:
    cells = [base64.b64encode(picture(index)).decode() for index in range(2)]
    (tmp_path / "rows.tsv").write_text("".join(f"7\t{cell}\n" for cell in cells))
    rows = TableRows(tmp_path / "rows.tsv", ["uid", "image"])
    examples = [get_task("caption").example(rows[index] | {"caption": "x"}) for index in range(2)]
    assert examples[0].media_id != examples[1].media_id


def write_shards(folder: Path) -> dict[str, Any]:
    for shard in range(3):
        with tarfile.open(folder / f"shard-{shard:02d}.tar", "w") as archive:
            for row in records()[shard::3] if shard == 9 else records()[shard * 3 : shard * 3 + 3]:
                facts = {"captions": row["captions"], "image_id": row["image_id"]}
                add(archive, f"{row['uid']}.png", row["picture"])
                add(archive, f"{row['uid']}.json", json.dumps(facts).encode())
    return {"webdataset": str(folder / "shard-{00..02}.tar")}


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def write_huggingface(folder: Path) -> dict[str, Any]:
    datasets = pytest.importorskip("datasets")
    rows = [{**row, "picture": {"bytes": row["picture"], "path": None}} for row in records()]
    features = datasets.Features(
        {
            "uid": datasets.Value("string"),
            "captions": datasets.Sequence(datasets.Value("string")),
            "image_id": datasets.Value("string"),
            "picture": datasets.Image(),
        }
    )
    # A data set as hubs keep it; what `Dataset.from_list` hashes cannot be pickled with pyarrow 24.
    parquet = importlib.import_module("pyarrow.parquet")
    table = importlib.import_module("pyarrow").Table.from_pylist(rows, schema=features.arrow_schema)
    (folder / "hf").mkdir()
    parquet.write_table(table, folder / "hf" / "train.parquet")
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    columns = {"uid": "uid", "image": "picture", "captions": "captions", "image_id": "image_id"}
    return {"huggingface": str(folder / "hf"), "columns": columns}


FORMS = (write_manifest, write_base64, write_paths, write_shards, write_huggingface)


@pytest.mark.parametrize("write", FORMS)
def test_every_form_gives_the_same_examples(write: Any, tmp_path: Path) -> None:
    config = SourceConfig.model_validate(write(tmp_path))
    source = open_source(config, "caption", "image")
    assert len(source) == NUM
    task = get_task("caption")
    for index in (5, 0, 6, 3, 3):
        expected, row = records()[index], source[index]
        assert {key: row[key] for key in ("uid", "captions", "image_id")} == {
            key: expected[key] for key in ("uid", "captions", "image_id")
        }
        example = task.example(row)
        assert (example.uid, example.target) == (f"r{index}", f"caption {index}")
        assert np.array_equal(load_image(example.media), load_image(expected["picture"]))
    assert len(open_rows(config.model_copy(update={"limit": 2}))) == 2
    with pytest.raises(IndexError):
        source[NUM]


def test_rows_about_one_picture_share_it(tmp_path: Path) -> None:
    for write in (write_manifest, write_base64, write_paths):
        source = open_source(SourceConfig.model_validate(write(tmp_path)), "caption", "image")
        ids = [get_task("caption").example(source[i]).media_id for i in range(NUM)]
        assert [a == b for a, b in pairwise(ids)] == [True, False] * 3


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_webdataset_reader_finds_the_same_samples(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    pattern = write_shards(tmp_path)["webdataset"]
    theirs = list(webdataset.WebDataset(pattern, shardshuffle=False))
    gc.collect()  # it leaves its files open
    ours = ArchiveRows(pattern)
    assert [sample["__key__"] for sample in theirs] == [ours[i]["uid"] for i in range(len(ours))]
    assert [sample["png"] for sample in theirs] == [ours[i]["image"].read() for i in range(len(ours))]


def test_members_of_archives_become_fields(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "../../etc/7.jpg", b"picture")
        add(archive, "../../etc/7.question.txt", b"what?")
        add(archive, "../../etc/7.txt", "ein Bär\n".encode())
    row = ArchiveRows(str(tmp_path / "*.tar"), {"question": "question.txt", "caption": "txt"})[0]
    assert (row["uid"], row["question"], row["caption"]) == ("../../etc/7", "what?", "ein Bär")
    assert ArchiveRows(str(tmp_path / "*.tar"))[0]["captions"] == ["ein Bär"]
    with pytest.raises(
        UserError, match=r"the sample has no 'txxt' .*a\.tar, sample \.\./\.\./etc/7.*did you mean 'txt'"
    ):
        ArchiveRows(str(tmp_path / "*.tar"), {"caption": "txxt"})[0]
    with tarfile.open(tmp_path / "b.tar", "w") as archive:
        add(archive, "8.jpg", b"picture")
        add(archive, "8.seg.png", b"\x89PNG")
        add(archive, "8.npy", b"text, for once")
        add(archive, "8.cls", b"\xff\xfe")
        add(archive, "8.question", b"where?")
    named = ArchiveRows(str(tmp_path / "b.tar"), {"image": "jpg", "text": "question"})[0]
    assert (named["text"], named["image"].read()) == ("where?", b"picture")
    tarfile.open(tmp_path / "c.tar", "w").close()
    with pytest.raises(UserError, match=r"the archive holds no sample.*c\.tar"):
        ArchiveRows(str(tmp_path / "c.tar"))
    beside = ArchiveRows(str(tmp_path / "b.tar"))[0]
    assert (set(beside), beside["question"]) == ({"uid", "image", "media_id", "question"}, "where?")
    assert row["image"].file == str(tmp_path / "a.tar")  # the member's name is never a path
    assert row["image"].read() == b"picture"


def test_members_named_as_any_picture_are_media_and_byte_order_marks_are_no_text(tmp_path: Path) -> None:
    names = ("a.jp2", "b.jfif", "c.PGM", "d.ico", "e.ogv", "f.aiff")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in names:
            add(archive, name, name.encode())
            add(archive, f"{name[0]}.txt", "ein Bär".encode("utf-8-sig"))
            add(archive, f"{name[0]}.json", '{"question": "was?"}'.encode("utf-8-sig"))
    rows = ArchiveRows(str(tmp_path / "a.tar"))
    found = [
        (kind, rows[i][kind].read().decode())
        for i in range(6)
        for kind in ("image", "video", "audio")
        if kind in rows[i]
    ]
    assert found == list(zip(["image"] * 4 + ["video", "audio"], names, strict=True))
    assert all((rows[i]["captions"], rows[i]["question"]) == (["ein Bär"], "was?") for i in range(6))


def test_the_known_names_are_those_that_pillow_has_for_its_formats() -> None:
    Image.init()
    pillow = {name for name, kind in Image.registered_extensions().items() if kind in FORMATS}
    assert {f".{name}" for name, kind in EXTENSIONS.items() if kind == "image"} == pillow


def test_an_archive_with_odd_text_names_its_sample(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        add(archive, "caf\xe9.jpg", b"picture")
        add(archive, "caf\xe9.json", b'{"caption": "x \\ud83d"}')
        add(archive, "d.jpg", b"picture")
    rows = ArchiveRows(str(tmp_path / "a.tar"))
    with pytest.raises(UserError, match=r"caption must be valid Unicode.*a\.tar, sample caf\\udce9"):
        rows[0]
    assert rows[1]["uid"] == "d"
    with tarfile.open(tmp_path / "b.tar", "w") as archive:
        add(archive, "c.json", b'{"score": NaN}')
    with pytest.raises(UserError, match=r"NaN is no JSON number.*b\.tar, member c\.json"):
        ArchiveRows(str(tmp_path / "b.tar"))


def test_a_cut_archive_is_refused(tmp_path: Path, cache: Path) -> None:
    write_shards(tmp_path)
    whole = (tmp_path / "shard-00.tar").read_bytes()
    for size in (0, 100, 512, 1500, 3000, len(whole) // 2):
        (tmp_path / "cut.tar").write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"the archive is damaged|no rows.*"):
            ArchiveRows(str(tmp_path / "cut.tar"))
    assert not list(cache.glob(".*"))


def test_shard_patterns() -> None:
    assert [str(path) for path in expand("a/{8..11}-{00..01}.tar")][:3] == ["a/8-00.tar", "a/8-01.tar", "a/9-00.tar"]
    with pytest.raises(UserError, match="counts 0 files"):
        expand("{3..1}.tar")
    with pytest.raises(UserError, match="no file matches"):
        expand("nothing-*.tar")


@pytest.mark.parametrize("cached", [False, True])
def test_lines_are_those_of_the_file(
    cached: bool, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines_module, "MIN_CACHED_BYTES", 0 if cached else 10**9)
    monkeypatch.setattr(lines_module, "_CHUNK_BYTES", 5)  # lines cross the borders of what is read at once
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfone\r\n\n  \ntwo\xff\n three\tx")
    for _ in range(2):
        found = Lines(tmp_path / "a")
        assert [found[i] for i in (1, 0, 2)] == [b"two\xff", b"one", b" three\tx"]
        assert [found.where(i) for i in range(3)] == [f"{tmp_path / 'a'}:{number}" for number in (1, 4, 5)]
        with pytest.raises(UserError, match=r"2 columns, the first row has 1.*a:5"):
            found.check_columns()
    assert bool(list(cache.glob("*.lines"))) == cached


def test_an_index_of_another_file_or_a_damaged_one_is_not_used(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines_module, "MIN_CACHED_BYTES", 0)
    path = tmp_path / "a"
    path.write_bytes(b"one\ntwo\n")
    time = path.stat().st_mtime_ns
    Lines(path)
    path.write_bytes(b"on\ntree\n")  # the same size and time
    os.utime(path, ns=(time, time))
    assert [Lines(path)[i] for i in range(2)] == [b"on", b"tree"]
    index = next(cache.glob("*.lines"))
    for damage in (b"", b"x", index.read_bytes()[:-24], index.read_bytes()[:-7]):
        index.write_bytes(damage)
        assert [Lines(path)[i] for i in range(2)] == [b"on", b"tree"]


def test_a_file_that_is_replaced_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one\ntwo\nthree\n")
    rows = Lines(path)
    for content in (b"o\nnetwo\nthree\n", b"one\ntw", b"one two\nthree\n"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"the file changed while it was in use.*a:2"):
            rows[1]


GOOD = "1\t7\ta dog\tdog\tAAAA"
BAD_TABLES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "no rows"),
    "blank": (b"\n \n\r\n", "no rows"),
    "missing column": (f"{GOOD}\n1\t7\ta dog\tAAAA\n".encode(), r"row has 4 columns.*:2\]"),
    "extra column": (f"{GOOD}\n\n{GOOD}\tx\n".encode(), r"row has 6 columns.*:3\]"),
    "all short": (b"1\t2\n", r"column 2 for 'captions' does not exist: the rows have 2"),
    "cut last line": (f"{GOOD}\n{GOOD[:9]}".encode(), r"row has 3 columns.*:2\]"),
    "nul": (f"{GOOD}\n1\t7\ta\0\tdog\tAAAA\n".encode(), r"NUL byte.*:2\]"),
    "bad text": (b"1\t7\t\xff\tdog\tAAAA\n", r"not UTF-8 text at byte 0.*:1, column 2 \(captions\)"),
    "empty medium": (b"1\t7\ta dog\tdog\t\n", r"medium is empty.*:1, column 4 \(image\)"),
    "empty id": (b"\t7\ta dog\tdog\tAAAA\n", r"identity is empty.*:1\]"),
    "path outside": (b"1\t7\ta dog\tdog\t../../secret.png\n", r"path leaves the folder.*:1, column 4 \(image\)"),
    "absolute path": (b"1\t7\ta dog\tdog\t/secret.png\n", r"path leaves the folder.*:1, column 4 \(image\)"),
    "bad base64": (b"1\t7\ta dog\tdog\tAA*A\n", r"not base64.*:1, column 4 \(image\)"),
    "cut base64": (b"1\t7\ta dog\tdog\tAAAAA", r"not base64.*:1, column 4 \(image\)"),
    "no picture": (f"{GOOD}\n".encode(), r"not an image.*:1, column 4 \(image\)"),
    "no file": (b"1\t7\ta dog\tdog\tmissing.png\n", "does not exist.*missing.png"),
    "long line": (b"1\t7\t" + b"a" * (MAX_LINE_BYTES + 1) + b"\tdog\tAAAA\n", r"a line of 32,000,.* bytes.*:1\]"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_malformed_table_names_row_and_column(name: str, tmp_path: Path) -> None:
    content, message = BAD_TABLES[name]
    (tmp_path / "rows.tsv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        [load_image(row["image"]) for row in TableRows(tmp_path / "rows.tsv", "caption")]  # type: ignore[attr-defined]


def test_layouts_read_the_original_files(tmp_path: Path) -> None:
    image = base64.urlsafe_b64encode(picture(3)).decode()
    (tmp_path / "vqa.tsv").write_text(
        f"79459\t79459\tis this person wearing shorts?\t0.6|!+no&&1.0|!+yes\thouse\t{image}"
    )
    row = TableRows(tmp_path / "vqa.tsv", "vqa_gen")[0]
    assert (row["answers"], row["confidences"], row["question_id"]) == (["yes", "no"], [1.0, 0.6], "79459")
    (tmp_path / "refcoco.tsv").write_text(f"79_1\t237367\twho is wearing red?\t1,2.5,8.25,9\t{image}")
    row = TableRows(tmp_path / "refcoco.tsv", "refcoco")[0]
    assert (row["text"], row["box"]) == ("who is wearing red?", [1.0, 2.5, 8.25, 9.0])
    assert (row["width"], row["height"]) == (12, 11)
    (tmp_path / "snli.tsv").write_text(f"252244149.jpg#1r1n\t252244149\t{image}\tman in blue\tthe man\tcontradiction")
    assert TableRows(tmp_path / "snli.tsv", "snli_ve")[0]["label"] == "no"
    (tmp_path / "codes.tsv").write_text("45\t6674 4336 4532\tthe people are posing")
    assert TableRows(tmp_path / "codes.tsv", "image_gen")[0]["codes"] == [6674, 4336, 4532]
    (tmp_path / "mixed.tsv").write_text(
        f"1\t{image}\tred car\t\t0,1,2,3\t\tvg\tvisual_grounding\n2\ta.mp4\t\twhat?\t1.0|!+dog\t\twebvid\tvideo_qa\n"
        f"3\ta.wav\ta bell\t\t\tbell\taudiocaps\taudio_caption\n"
    )
    rows = TableRows(tmp_path / "mixed.tsv", "unify_task")
    assert (rows[0]["text"], rows[0]["box"]) == ("red car", [0.0, 1.0, 2.0, 3.0])
    assert (rows[1]["video"], rows[1]["answers"]) == (str(tmp_path / "a.mp4"), ["dog"])
    assert (rows[2]["audio"], rows[2]["captions"], rows[2]["objects"]) == (
        str(tmp_path / "a.wav"),
        ["a bell"],
        ["bell"],
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"captions": "a"}, "captions must be a list of texts"),
        ({"captions": ["a", 1]}, "captions must be a list of texts"),
        ({"box": [1, 2, 3]}, "box must be four numbers"),
        ({"label": "neutral"}, "label must be yes, no or maybe"),
        ({"answers": ["a"], "confidences": [1, 2]}, "1 answers have 2 confidences"),
        ({"uid": {}}, "uid must be text or a number"),
        ({"image": "../a.png"}, "path leaves the folder"),
        ({"image": ""}, "not a path"),
        ({"image": {"file": "a.tar"}}, "not a range of a file"),
        ({"image": {"file": "a.tar", "offset": -1, "bytes": 4}}, "not a range of a file"),
        ({"width": 0}, "width must be a positive number"),
        ({"captions": ["x \ud83d"]}, "captions must be valid Unicode"),
        ({"notes": {"x\ude00": 1}}, "notes must be valid Unicode"),
        ({"uid": 10**400}, "uid must be text or a number"),
        ({"box": [0, 0, 1, 10**400]}, "box must be four numbers"),
        ({"width": 10**400}, "width must be a positive number"),
        ({"image": {"file": "a.tar", "offset": 10**400, "bytes": 4}}, "not a range of a file"),
        ('{"width": NaN}', "NaN is no JSON number"),
        ("[" * 5000, "not a JSON line"),
    ],
)
def test_a_field_of_the_wrong_type_names_the_line(row: Any, message: str, tmp_path: Path) -> None:
    text = row if isinstance(row, str) else json.dumps(row)
    (tmp_path / "rows.jsonl").write_text('{"uid": "1"}\n' + text)
    with pytest.raises(UserError, match=rf"{message}.*rows\.jsonl:2"):
        ManifestRows(tmp_path / "rows.jsonl")


def test_ranges_and_a_root_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "all.bin").write_bytes(b"xx" + picture(1) + base64.b64encode(picture(2)))
    sizes = len(picture(1)), len(base64.b64encode(picture(2)))
    rows = [
        {"image": {"file": "all.bin", "offset": 2, "bytes": sizes[0]}},
        {"image": {"file": "all.bin", "offset": 2 + sizes[0], "bytes": sizes[1], "encoding": "base64"}},
        {"image": {"file": "all.bin", "offset": 2 + sizes[0], "bytes": sizes[1] + 1}},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = ManifestRows(tmp_path / "rows.jsonl", media_root=tmp_path / "media")
    assert [load_image(source[i]["image"]).size for i in range(2)] == [(12, 9), (12, 10)]
    with pytest.raises(UserError, match=r"the file ends before the medium.*rows\.jsonl:3"):
        load_image(source[2]["image"])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"tsv": "a.tsv"}, "`tsv` needs `columns`"),
        ({"tsv": "a.tsv", "manifest": "b.jsonl", "columns": "caption"}, "exactly one of"),
    ],
)
def test_a_source_has_one_form(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SourceConfig.model_validate(config)


def test_columns_must_fit_their_form(tmp_path: Path) -> None:
    config = write_base64(tmp_path)
    for columns, message in (
        ("captoin", "did you mean 'caption'"),
        ({"image": "png"}, "column numbers"),
        ({"image": 5}, "column 5"),
    ):
        with pytest.raises(UserError, match=message):
            open_rows(SourceConfig.model_validate(config | {"columns": columns}))
    with pytest.raises(UserError, match="must give the column of each field"):
        open_rows(SourceConfig.model_validate(write_shards(tmp_path) | {"columns": "caption"}))


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UserError, match=r'pip install "unival\[data\]"'):
        open_rows(SourceConfig(huggingface=str(tmp_path)))


def test_a_long_cell_stays_where_it_is(tmp_path: Path) -> None:
    """Lines of 65,536 bytes and more are read at both ends only, wherever the long cell stands."""
    long = b"QUJD" * 20_000
    path, rows = tmp_path / "rows.tsv", []
    for place in range(4):
        for others in ((b"a", b"", b"ccc"), (b"x" * 4000, b"y", b"z")):
            rows.append([*others[:place], long, *others[place:]])
    rows.append([long, b"b", long, b"d"])  # two of them: the whole line is read
    for newline in (b"\n", b"\r\n"):
        content = b"\xef\xbb\xbf" + newline.join(b"\t".join(row) for row in rows)
        path.write_bytes(content)
        lines = Lines(path)
        for index, row in enumerate(rows):
            cells = lines.cells(index)
            assert [content[offset : offset + length] for offset, length, _ in cells] == row
            left_out = [number for number, (_, _, part) in enumerate(cells) if part is None]
            assert left_out == ([row.index(long)] if row.count(long) == 1 else [])
            assert [part for _, _, part in cells if part is not None] == [
                cell for number, cell in enumerate(row) if number not in left_out
            ]
    path.write_bytes(content.replace(b"ccc", b"c\nc"))
    with pytest.raises(UserError, match="changed while it was in use"):
        lines.cells(0)


def test_the_fast_base64_takes_and_refuses_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(1)
    for _ in range(500):
        encode = rng.choice([base64.b64encode, base64.urlsafe_b64encode])
        text = bytearray(encode(rng.randbytes(rng.randrange(40))).rstrip(rng.choice([b"=", b""])))
        for _ in range(rng.randrange(3)):
            text.insert(rng.randrange(len(text) + 1), rng.choice(b"AB+-_=\n \xff"))
        found = []
        for fast in (media_module.b64decode, Mock(side_effect=binascii.Error)):  # without the fast one, the exact one
            with monkeypatch.context() as patch:
                patch.setattr(media_module, "b64decode", fast)
                try:
                    found.append(decode_base64(bytes(text), "here"))
                except UserError as error:
                    found.append(str(error))
        assert found[0] == found[1], bytes(text)
