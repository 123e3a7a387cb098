"""`unival data`: what a person sees and gets."""

import base64
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image
from typer.testing import CliRunner

from unival.data.command import app
from unival.data.manifest import ManifestRows
from unival.errors import UserError


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Hold three pictures, one of them damaged, and a sound."""
    (tmp_path / "sub").mkdir()
    for number, name in enumerate(("a.png", "sub/b.jpg", "sub/c.png")):
        Image.new("RGB", (30 + number, 20), (250, 40 * number, 0)).save(tmp_path / name)
    content = (tmp_path / "sub/c.png").read_bytes()
    (tmp_path / "sub/c.png").write_bytes(content[: len(content) // 2])
    soundfile.write(tmp_path / "d.wav", np.sin(np.arange(8000) / 9), 8000)
    (tmp_path / "a.txt").write_text("a red square\nein rotes Quadrat\n", encoding="utf-8")
    (tmp_path / "sub/b.json").write_text('{"captions": ["orange"], "question": "which colour?"}', encoding="utf-8")
    return tmp_path


def test_a_folder_becomes_a_manifest_and_its_bad_file_is_named(folder: Path) -> None:
    made = run("make", folder, "--from", "folder", "--json")
    assert json.loads(made.stdout) == {"manifest": str(folder / "manifest.jsonl"), "rows": 4}
    rows = ManifestRows(folder / "manifest.jsonl")
    assert [rows[i]["uid"] for i in range(4)] == ["a.png", "d.wav", "sub/b.jpg", "sub/c.png"]
    assert rows[0]["captions"] == ["a red square", "ein rotes Quadrat"]
    assert rows[2]["question"] == "which colour?"

    checked = run("check", folder / "manifest.jsonl", "--json", "--sheet", folder / "sheet.png")
    report = json.loads(checked.stdout)
    assert checked.exit_code == 1
    assert (report["rows"], report["good"], report["media"]) == (4, 3, {"image": 3, "audio": 1})
    assert (report["width"], report["height"], report["seconds"]) == ([30, 31, 31], [20, 20, 20], [1.0, 1.0, 1.0])
    problem = report["problems"][0]
    assert (problem["where"], problem["uid"]) == (f"{folder / 'manifest.jsonl'}:4", "sub/c.png")
    assert "damaged or cut off" in problem["what"]
    with Image.open(folder / "sheet.png") as sheet:
        assert sheet.size == (8 * 160, 160 + 52)
        assert sheet.getpixel((80, 80)) == (250, 0, 0)
        assert sheet.getpixel((3 * 160 + 1, 1)) == (255, 0, 0)  # the frame of the bad one

    again = run("check", folder / "manifest.jsonl", "--limit", 3, "--workers", 0)
    assert again.exit_code == 0
    assert "3 rows (2 image, 1 audio), 3 good" in again.stdout


def test_what_is_no_medium_is_counted_and_named(folder: Path) -> None:
    picture = Image.new("RGB", (8, 8), "red")
    for name in ("e.jp2", "f.jfif", "g.pgm", "h.ico"):
        picture.convert("L" if name == "g.pgm" else "RGB").save(folder / name, "JPEG" if name == "f.jfif" else None)
    for name in ("i.heic", "j.md", "alone.txt", ".hidden"):
        (folder / name).write_text("x")
    elsewhere = folder.parent / f"{folder.name}-elsewhere"
    elsewhere.mkdir()
    picture.save(elsewhere / "k.png")
    (folder / "linked").symlink_to(elsewhere)
    (folder / "sub/loop").symlink_to(folder)
    (folder / "broken.png").symlink_to(folder / "nothing.png")
    (folder / "self.png").symlink_to(folder / "self.png")
    left_out = ["alone.txt", "broken.png", "i.heic", "j.md", "linked/", "self.png", "sub/loop/"]
    for force in ([], ["--force"]):  # the manifest itself is not named the second time
        report = json.loads(run("make", folder, "--from", "folder", "--json", *force).stdout)
        assert (report["rows"], report["left_out"]) == (8, left_out)
    text = run("make", folder, "--from", "folder", "--force").stdout
    assert text.split("\n")[1] == (
        "7 left out, no known media or linked folders: alone.txt, broken.png, i.heic, j.md, linked/, ..."
    )
    rows = ManifestRows(folder / "manifest.jsonl")
    media = [Path(str(row["image"])).name for row in map(rows.__getitem__, range(len(rows))) if "image" in row]
    assert media == ["a.png", "e.jp2", "f.jfif", "g.pgm", "h.ico", "b.jpg", "c.png"]


def test_texts_beside_media_lose_their_byte_order_mark(folder: Path) -> None:
    (folder / "a.txt").write_text("a red square\n", encoding="utf-8-sig")
    (folder / "sub/b.json").write_text('{"question": "which colour?"}', encoding="utf-8-sig")
    run("make", folder, "--from", "folder")
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    assert (rows[0]["captions"], rows[2]["question"]) == (["a red square"], "which colour?")


def test_the_first_name_of_a_field_is_its_column_and_others_are_said(folder: Path) -> None:
    header, row = "uid,id,image,caption,title,answers,answer,split,x0", "7,8,a.png,a cat,Cat,no&&yes,no,val,3"
    text = run("make", write(folder, f"{header}\n{row}\n"), "--from", "csv").stdout
    assert text.split("\n")[1] == "5 left out, columns of no known field: id, title, answer, split, x0"
    row = json.loads((folder / "own.jsonl").read_text())
    assert row == {"uid": "7", "image": "a.png", "caption": "a cat", "answers": ["no", "yes"]}
    whole = write(folder, "image,x0,y0,x1,y1\na.png,1,2,3,4\n")
    report = json.loads(run("make", whole, "--from", "csv", "--force", "--json").stdout)
    assert "left_out" not in report


def test_texts_alone_need_a_word_of_their_own(folder: Path) -> None:
    table = write(folder, "question,answers,mood\nis it?,yes&&no,good\n")
    report = json.loads(run("make", table, "--from", "csv", "--no-media", "--json").stdout)
    assert (report["rows"], report["left_out"]) == (1, ["mood"])
    assert json.loads((folder / "own.jsonl").read_text()) == {"question": "is it?", "answers": ["yes", "no"]}
    with pytest.raises(UserError, match=r"no column holds the paths of media.*--no-media"):
        run("make", table, "--from", "csv", "--force")
    with pytest.raises(UserError, match=r"a column holds the paths of media.*leave --no-media out"):
        run("make", write(folder, "image,caption\na.png,x\n"), "--from", "csv", "--no-media", "--force")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ('"width": 640, "height": 480', "width and height say 640 x 480, the picture has 30 x 20"),
        ('"box": [0.1, 0.2, 0.5, 0.6]', "no larger than a pixel"),
        ('"box": [3, 4, 5, 6]', ""),
        ('"width": 30, "height": 20', ""),
    ],
)
def test_sizes_and_boxes_are_compared_with_the_picture(folder: Path, fields: str, message: str) -> None:
    (folder / "rows.jsonl").write_text(f'{{"uid": "1", "image": "a.png", {fields}}}\n')
    report = json.loads(run("check", folder / "rows.jsonl", "--workers", 0, "--json").stdout)
    assert message in (report["problems"][0]["what"] if message else "")
    assert report["good"] == (not message)


def test_an_empty_label_is_none_and_a_text_needs_no_medium(folder: Path) -> None:
    rows = [
        {"image": "a.png", "caption": " "},
        {"image": "a.png", "captions": [""]},
        {"image": "a.png", "caption": "x"},
    ]
    write(folder, "\n".join(map(json.dumps, rows))).rename(folder / "rows.jsonl")
    report = json.loads(run("check", folder / "rows.jsonl", "--task", "caption", "--workers", 0, "--json").stdout)
    assert (report["good"], report["unlabelled"]) == (3, 2)
    write(folder, '{"question": "is it?", "answers": ["yes"]}\n{"question": "is it?", "answers": [""]}').rename(
        folder / "texts.jsonl"
    )
    report = json.loads(run("check", folder / "texts.jsonl", "--task", "vqa", "--workers", 0, "--json").stdout)
    assert (report["good"], report["unlabelled"], report["media"]) == (2, 1, {"text": 2})


def test_a_table_may_repeat_a_question_with_its_picture_and_says_how_to_find_media(folder: Path) -> None:
    cell = base64.b64encode((folder / "a.png").read_bytes()).decode()
    lines = [f"79459\t{image}\twhich colour?\t1|!+{answer}\t\t{cell}\n" for image, answer in ("1r", "1o", "2b")]
    write(folder, "".join(lines)).rename(folder / "vqa.tsv")
    report = json.loads(run("check", folder / "vqa.tsv", "--columns", "vqa_gen", "--workers", 0, "--json").stdout)
    assert (report["good"], report["repeated"]) == (2, 1)
    assert "is also that of row 0" in report["problems"][0]["what"]
    write(folder, f"1\t{folder / 'a.png'}\n").rename(folder / "far.tsv")
    text = run("check", folder / "far.tsv", "--columns", "uid,image", "--workers", 0).stdout
    assert "set `media_root`" in text


def test_a_repeated_identity_of_a_manifest_is_a_problem_whatever_its_medium(folder: Path) -> None:
    row = {"uid": "7", "image": "a.png", "media_id": "m"}
    write(folder, f"{json.dumps(row)}\n{json.dumps(row)}\n").rename(folder / "rows.jsonl")
    report = json.loads(run("check", folder / "rows.jsonl", "--workers", 0, "--json").stdout)
    assert (report["good"], report["repeated"]) == (1, 0)
    assert "is also that of row 0" in report["problems"][0]["what"]


def write_beside(folder: Path, text: str) -> Path:
    (folder / "a.json").write_text(text)
    return folder


def name_in_latin_1(folder: Path) -> Path:
    (folder / "a.png").rename(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png"))
    return folder


def test_a_sheet_that_cannot_be_written_keeps_the_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "rows.jsonl").write_text('{"uid": "1", "image": "a.png"}\n')
    for sheet in ("sheet.gif", "a.png/sheet.png"):
        with pytest.raises(UserError, match=r"contact sheet.*\("):
            app(["check", str(folder / "rows.jsonl"), "--workers", "0", "--sheet", str(folder / sheet)])
        assert "1 rows (1 image), 1 good" in capsys.readouterr().out


def test_a_task_says_what_it_misses(folder: Path) -> None:
    (folder / "rows.jsonl").write_text(
        '{"uid": "1", "image": "a.png"}\n{"uid": "1", "image": "a.png", "question": "?"}\n'
    )
    report = json.loads(run("check", folder / "rows.jsonl", "--task", "vqa", "--json", "--workers", 0).stdout)
    assert "no column 'question'" in report["problems"][0]["what"]
    assert "the uid '1' is also that of" in report["problems"][1]["what"]
    assert report["media"] == {"image": 2}


def test_the_sheet_shows_boxes(folder: Path) -> None:
    Image.new("RGB", (308, 308), "white").save(folder / "large.png")  # twice the size of a tile
    (folder / "rows.jsonl").write_text(
        '{"uid": "1", "image": "large.png", "box": [100, 40, 200, 300], "caption": "x"}\n'
    )
    assert run("check", folder / "rows.jsonl", "--sheet", folder / "sheet.png", "--workers", 0).exit_code == 0
    with Image.open(folder / "sheet.png") as sheet:
        tile = np.asarray(sheet.convert("RGB"))[3:157, 3:157]
    red = (tile == (255, 0, 0)).all(axis=2)
    assert red[80, 49:52].any()  # left edge, then the right, the upper and the lower one
    assert red[80, 98:102].any()
    assert red[19:23, 75].any()
    assert red[148:152, 75].any()
    assert not red[80, 60:90].any()


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_csv_file_becomes_a_manifest(separator: str, folder: Path) -> None:
    lines = ["File,Caption,x0,y0,x1,y1,ID", 'a.png,"red, with ""quotes""",1,2,10,12,7', "sub/b.jpg,orange,0,0,5,5,8"]
    text = "\n".join(lines) if separator == "," else "\n".join(lines).replace(",", separator)
    (folder / "own.csv").write_text(text, encoding="utf-8-sig")
    result = run("make", folder / "own.csv", "--from", "csv")
    assert result.stdout == f"wrote {folder / 'own.jsonl'}: 2 rows\n"
    row = json.loads((folder / "own.jsonl").read_text().split("\n")[0])
    comma = separator if separator != "," else ","
    assert row == {
        "uid": "7",
        "image": "a.png",
        "caption": f'red{comma} with "quotes"',
        "box": [1.0, 2.0, 10.0, 12.0],
        "width": 30,
        "height": 20,
    }


def test_columns_are_named_by_hand(folder: Path) -> None:
    (folder / "own.csv").write_text("bild,antwort,frage\na.png,1.0|!+red&&0.3|!+orange,what?\n")
    fields = ["--field", "image=bild", "--field", "answers=antwort", "--field", "question=frage"]
    run("make", folder / "own.csv", "--from", "csv", *fields, "--out", folder / "x" / "m.jsonl")
    rows = ManifestRows(folder / "x" / "m.jsonl", media_root=folder)
    assert (rows[0]["answers"], rows[0]["confidences"], rows[0]["question"]) == (["red", "orange"], [1.0, 0.3], "what?")


def test_a_field_has_the_names_that_headers_have(folder: Path) -> None:
    (folder / "own.csv").write_text("bild,antwort\na.png,red\n")
    run("make", folder / "own.csv", "--from", "csv", "--field", "file=bild", "--field", "answer=antwort")
    row = json.loads((folder / "own.jsonl").read_text())
    assert (row["image"], row["answers"]) == ("a.png", ["red"])


def test_rows_that_can_only_be_predicted_are_counted(folder: Path) -> None:
    row = {"image": "a.png", "text": "the red one", "width": 30, "height": 20}
    rows = [{"uid": "1"} | row, {"uid": "2", "box": [1, 2, 10, 12]} | row]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    check = ("check", folder / "rows.jsonl", "--task", "grounding", "--workers", 0)
    assert "1 have no label for this task" in run(*check).stdout
    assert json.loads(run(*check, "--json").stdout)["unlabelled"] == 1
    assert json.loads(run("check", folder / "rows.jsonl", "--workers", 0, "--json").stdout)["unlabelled"] == 0


def write(folder: Path, text: str | bytes) -> Path:
    (folder / "own.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder / "own.csv"


MISTAKES: dict[str, tuple[Callable[[Path], list[Any]], str]] = {
    "no folder": (lambda f: ["make", f / "nothing", "--from", "folder"], "no such folder"),
    "no media": (lambda f: ["make", f / "x", "--from", "folder"], "no such folder"),
    "no csv": (lambda f: ["make", f / "nothing.csv", "--from", "csv"], "no such file"),
    "no column": (
        lambda f: ["make", write(f, "a,b\n1,2\n"), "--from", "csv"],
        r"paths of media.*columns are a, b",
    ),
    "typo": (
        lambda f: ["make", write(f, "bild\na.png\n"), "--from", "csv", "--field", "image=bidl"],
        "did you mean",
    ),
    "field twice": (
        lambda f: ["make", write(f, "a,b\n1,2\n"), "--from", "csv", "--field", "answer=a", "--field", "answers=b"],
        "given twice: answer, answers",
    ),
    "no pair": (lambda f: ["make", write(f, "bild\n"), "--from", "csv", "--field", "bild"], "is not FIELD=COLUMN"),
    "short row": (
        lambda f: ["make", write(f, "image,caption\na.png\n"), "--from", "csv"],
        r"fewer cells than the header \(2\).*csv:2",
    ),
    "long row": (
        lambda f: ["make", write(f, "image,caption\na.png,red, and green\n"), "--from", "csv"],
        r"more cells than the header \(2\).*csv:2.*double quotes",
    ),
    "box of COCO": (
        lambda f: ["make", write(f, 'image,bbox\na.png,"1,2,3,4"\n'), "--from", "csv"],
        r"may be x, y, width, height.*--field box=bbox",
    ),
    "packed": (lambda f: ["check", write(f, gzip.compress(b'{"uid": "1"}'))], "not a manifest"),
    "packed rows": (
        lambda f: ["check", write(f, gzip.compress(b'{"uid": "1"}')).rename(f / "rows.jsonl.gz")],
        r"packed with gzip.*gunzip rows.jsonl.gz",
    ),
    "numbers of columns": (
        lambda f: ["check", write(f, "1\ta.png\n").rename(f / "a.tsv"), "--columns", "0,1"],
        "'0' is a number, not the name of a field.*uid,-,captions",
    ),
    "another layout": (
        lambda f: ["check", write(f, "1\t2\ta cat\t3 4\n").rename(f / "a.tsv"), "--columns", "image_gen"],
        "the rows have 4 columns, the layout 'image_gen' has 3",
    ),
    "bad box": (lambda f: ["make", write(f, 'image,box\na.png,"1,2"\n'), "--from", "csv"], r"box must be four.*csv:2"),
    "outside": (lambda f: ["make", write(f, "image\n../a.png\n"), "--from", "csv"], r"leaves the folder.*csv:2"),
    "bytes": (lambda f: ["make", write(f, b"image\n\xff\xfe\n"), "--from", "csv"], "not UTF-8"),
    "empty": (lambda f: ["make", write(f, "image\n"), "--from", "csv"], "no rows were found"),
    "unknown kind": (lambda f: ["make", write(f, "file\na.xyz\n"), "--from", "csv"], r"neither picture.*csv:2"),
    "not a number": (
        lambda f: ["make", write_beside(f, '{"score": NaN}'), "--from", "folder", "--force"],
        r"NaN is no JSON number.*a\.png",
    ),
    "half a character": (
        lambda f: ["make", write_beside(f, '{"caption": "x \\ud83d"}'), "--from", "folder", "--force"],
        r"caption must be valid Unicode.*a\.png",
    ),
    "odd name": (
        lambda f: ["make", name_in_latin_1(f), "--from", "folder", "--force"],
        r"name of the file is not valid Unicode.*caf\\udce9\.png.*rename",
    ),
    "no layout": (lambda f: ["check", f / "a.tsv"], "a table needs --columns"),
    "no manifest": (lambda f: ["check", f / "a.jsonl"], "no such manifest"),
    "folder as csv": (lambda f: ["make", f, "--from", "csv"], r"a folder, not a CSV file.*--from folder"),
    "csv as folder": (lambda f: ["make", write(f, "image\n"), "--from", "folder"], r"no such folder.*--from csv"),
    "columns twice": (
        lambda f: ["make", write(f, "image,caption,Caption ,,\na.png,x,y,,\n"), "--from", "csv"],
        r"two columns are called 'caption'",
    ),
    "address": (lambda f: ["make", write(f, "image\nhttp://b.c/a.png\n"), "--from", "csv"], r"an address.*csv:2"),
    "csv checked": (lambda f: ["check", write(f, "image\na.png\n")], r"not a manifest.*make .*--from csv"),
    "folder checked": (lambda f: ["check", f], r"not a manifest.*make .*--from folder"),
    "no task": (lambda f: ["check", f / "manifest.jsonl", "--task", "capton"], "did you mean 'caption'"),
    "sheet": (lambda f: ["check", f / "manifest.jsonl", "--sheet", f / "sheet.xyz"], "must be a .png"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_explained_and_leave_nothing(name: str, folder: Path) -> None:
    run("make", folder, "--from", "folder")
    arguments, message = MISTAKES[name]
    command = arguments(folder)
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError, match=message):
        run(*command)
    assert sorted(folder.rglob("*")) == before


def test_an_existing_manifest_is_kept(folder: Path) -> None:
    run("make", folder, "--from", "folder")
    with pytest.raises(UserError, match=r"exists.*--force"):
        run("make", folder, "--from", "folder")
    assert run("make", folder, "--from", "folder", "--force").exit_code == 0
