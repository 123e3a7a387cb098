"""Scripts for video and audio data sets on miniatures of the official files, and the compression of videos."""

import json
import pickle
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from preprocessing import activitynet, audiocaps, clotho, compress_videos, msrvtt, msvd_qa, webvid
from preprocessing.official import Row, write_manifests
from unival.data.manifest import ManifestRows
from unival.data.video import load_video
from unival.errors import UserError


def write(root: Path, name: str, value: Any) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def written(manifests: dict[str, Iterable[Row]], root: Path) -> dict[str, list[Row]]:
    entries = write_manifests(manifests, root, root)
    for entry in entries:
        assert len(ManifestRows(entry["manifest"])) == entry["rows"]
    return {"/".join(Path(e["manifest"]).with_suffix("").parts[-2:]): read(Path(e["manifest"])) for e in entries}


def read(manifest: Path) -> list[Row]:
    return [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]


def test_msrvtt_captions_and_questions(tmp_path: Path) -> None:
    def videos(*splits: str) -> list[dict[str, Any]]:
        return [{"video_id": f"video{number}", "split": split, "id": number} for number, split in enumerate(splits)]

    sentences = [{"caption": f"caption {i}", "video_id": f"video{i % 2}", "sen_id": i} for i in range(4)]
    train_val = {"videos": videos("train", "validate"), "sentences": sentences}
    write(tmp_path, "train_val_videodatainfo.json", train_val)
    question = {"answer": "couch", "category_id": 14, "id": 158581, "question": "what is it?", "video_id": 1}
    write(tmp_path, "val_qa.json", [question])
    for number in range(2):
        write(tmp_path, f"videos/video{number}.mp4", "x")
    rows = written(msrvtt.build(tmp_path), tmp_path)
    assert sorted(rows) == ["msrvtt/train", "msrvtt/train_videos", "msrvtt/val", "msrvtt_qa/val"]
    assert [(row["uid"], row["captions"]) for row in rows["msrvtt/train"]] == [
        ("video0-0", ["caption 0"]),
        ("video0-1", ["caption 2"]),
    ]
    assert rows["msrvtt/val"][0]["captions"] == ["caption 1", "caption 3"]
    qa = rows["msrvtt_qa/val"][0]
    assert (qa["video"], qa["video_id"], qa["question_id"]) == ("videos/video1.mp4", "video1", 158581)
    assert qa["answers"] == ["couch"]


def test_msvd_finds_clips_through_the_mapping(tmp_path: Path) -> None:
    write(tmp_path, "test_qa.json", [{"answer": "man", "id": 3, "question": "who?", "video_id": 1}])
    write(tmp_path, "youtube_mapping.txt", "-4wsuPCjDBc_5_15 vid1\nother vid2\n")
    write(tmp_path, "YouTubeClips/-4wsuPCjDBc_5_15.avi", "x")
    row = written(msvd_qa.build(tmp_path), tmp_path)["msvd_qa/test"][0]
    assert row["video"] == "YouTubeClips/-4wsuPCjDBc_5_15.avi"
    assert (row["uid"], row["question"], row["answers"]) == ("test-3", "who?", ["man"])
    write(tmp_path, "youtube_mapping.txt", "other vid2\n")
    with pytest.raises(UserError, match="no vid1"):
        written(msvd_qa.build(tmp_path), tmp_path)


def test_activitynet_has_a_row_per_segment(tmp_path: Path) -> None:
    video = {"duration": 82.73, "timestamps": [[0.83, 19.86], [60, 90.0], [5, 5]], "sentences": [" A man. ", "He", "x"]}
    write(tmp_path, "val_2.json", {"v_Q": video})
    rows = list(activitynet.build(tmp_path)["activitynet/test"])
    assert [(row["uid"], row["timestamp"]) for row in rows] == [("v_Q-0", [0.83, 19.86]), ("v_Q-1", [60, 82.73])]
    assert rows[0]["captions"] == ["A man."]
    assert (rows[0]["video"], rows[0]["source"]) == ("clips/v_Q-0.mp4", "videos/v_Q.mp4")


def test_webvid_joins_questions_by_video(tmp_path: Path) -> None:
    head = "videoid,contentUrl,duration,page_dir,name\n"
    write(tmp_path, "results_2M_train.csv", head + '11,http://a,PT00H00M10S,000001_000050,"A cat, sleeping"\n')
    write(tmp_path, "results_2M_val.csv", head + "12,http://b,PT00H00M10S,000051_000100,A dog\n")
    generated = {"11": {"question": ["what sleeps?", ["who?", "what?"]], "answer": ["cat", "a cat"]}}
    (tmp_path / "webvidvqa.pkl").write_bytes(pickle.dumps(generated))
    for name in ("000001_000050/11", "000051_000100/12"):
        write(tmp_path, f"videos/{name}.mp4", "x")
    manifests = webvid.build(tmp_path)
    rows = written({name: manifests[name] for name in ("webvid/train", "webvid/val", "webvid_qa/train")}, tmp_path)
    assert rows["webvid/train"][0]["captions"] == ["A cat, sleeping"]
    assert rows["webvid/val"][0]["video"] == "videos/000051_000100/12.mp4"
    assert [(r["uid"], r["question"], r["answers"]) for r in rows["webvid_qa/train"]] == [
        ("11-0", "what sleeps?", ["cat"]),
        ("11-1", "who?", ["a cat"]),
    ]


def test_audiocaps_groups_the_captions_of_a_clip(tmp_path: Path) -> None:
    lines = [
        "audiocap_id,youtube_id,start_time,caption",
        "1,abc,30,Rain falls",
        '2,abc,30,"Rain, wind"',
        "3,xyz,0,A dog",
    ]
    write(tmp_path, "dataset/test.csv", "\n".join(lines))
    for name in ("abc", "xyz"):
        write(tmp_path, f"audio/test/{name}.wav", "x")
    rows = written(audiocaps.build(tmp_path), tmp_path)["audiocaps/test"]
    assert [(row["uid"], row["captions"]) for row in rows] == [
        ("abc_30", ["Rain falls", "Rain, wind"]),
        ("xyz_0", ["A dog"]),
    ]
    assert rows[0]["audio"] == "audio/test/abc.wav"
    named = list(audiocaps.build(tmp_path, "wav/Y{youtube_id}_{start_time}.flac")["audiocaps/test"])
    assert named[0]["audio"] == "wav/Yabc_30.flac"
    with pytest.raises(UserError, match="cannot name files"):
        list(audiocaps.build(tmp_path, "{id}.wav")["audiocaps/test"])


def test_clotho_trains_on_single_captions(tmp_path: Path) -> None:
    head = "file_name," + ",".join(f"caption_{number}" for number in range(1, 6))
    for split, name in (("development", "Rain, hail.wav"), ("evaluation", "b.wav")):
        write(tmp_path, f"clotho_captions_{split}.csv", f'{head}\n"{name}",' + ",".join(f"c{i}" for i in range(5)))
        write(tmp_path, f"{split}/{name}", "x")
    rows = written(clotho.build(tmp_path), tmp_path)
    assert [row["captions"] for row in rows["clotho/train"]] == [[f"c{i}"] for i in range(5)]
    assert rows["clotho/train_clips"][0]["captions"] == [f"c{i}" for i in range(5)]
    assert rows["clotho/test"][0]["audio"] == "evaluation/b.wav"
    assert rows["clotho/train"][0]["audio_id"] == "Rain, hail.wav"


def test_a_csv_without_its_columns_names_those_it_has(tmp_path: Path) -> None:
    write(tmp_path, "dataset/test.csv", "id,caption\n1,a\n")
    with pytest.raises(UserError, match=r"no column audiocap_id, youtube_id, start_time.*it has id, caption"):
        list(audiocaps.build(tmp_path)["audiocaps/test"])
    write(tmp_path, "dataset/test.csv", "audiocap_id,youtube_id,start_time,caption\n1,a\n")
    with pytest.raises(UserError, match="another number of cells"):
        list(audiocaps.build(tmp_path)["audiocaps/test"])


def make_video(path: Path, num_frames: int, fps: int = 12, size: tuple[int, int] = (64, 48)) -> None:
    """Write a video whose frame n is grey of value 8 n."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "1", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for number in range(num_frames):
            picture = np.full((size[1], size[0], 3), 8 * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def read_video(path: Path) -> tuple[list[float], tuple[int, int], float]:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        greys = [float(frame.to_ndarray(format="gray").mean()) for frame in frames]
        return greys, (frames[0].width, frames[0].height), float(container.streams.video[0].average_rate or 0)


def test_a_small_copy_has_three_frames_per_second_and_the_aspect_ratio(tmp_path: Path) -> None:
    make_video(tmp_path / "in/a.mp4", 24)
    job = compress_videos.Job(tmp_path / "in/a.mp4", tmp_path / "out/a.mp4")
    compress_videos.compress(job, compress_videos.Settings(short_side=24, fps=3))
    greys, size, fps = read_video(job.target)
    assert size == (32, 24)
    assert fps == 3
    assert greys == pytest.approx([8 * n for n in (0, 4, 8, 12, 16, 20)], abs=4)  # coding loss
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.mp4"]


def test_a_segment_starts_and_ends_where_it_should(tmp_path: Path) -> None:
    make_video(tmp_path / "videos/v.mp4", 30)
    row = {"uid": "v-0", "video": "clips/v-0.mp4", "source": "videos/v.mp4", "timestamp": [0.5, 1.5]}
    write(tmp_path, "rows.jsonl", json.dumps(row))
    (job,) = compress_videos.jobs_of_segments(tmp_path, tmp_path, tmp_path / "rows.jsonl")
    compress_videos.compress(job, compress_videos.Settings(short_side=48, fps=3))
    greys, size, _ = read_video(tmp_path / "clips/v-0.mp4")
    assert size == (64, 48)
    assert greys == pytest.approx([8 * n for n in (6, 10, 14)], abs=4)


def test_a_segment_may_not_leave_the_folder(tmp_path: Path) -> None:
    row = {"uid": "v-0", "video": "../x.mp4", "source": "v.mp4", "timestamp": [0, 1]}
    write(tmp_path, "rows.jsonl", json.dumps(row))
    with pytest.raises(UserError, match="leaves the folder"):
        compress_videos.jobs_of_segments(tmp_path, tmp_path, tmp_path / "rows.jsonl")


def test_an_unreadable_video_leaves_nothing(tmp_path: Path) -> None:
    write(tmp_path, "in/bad.mp4", "this is no video")
    job = compress_videos.Job(tmp_path / "in/bad.mp4", tmp_path / "out/bad.mp4")
    with pytest.raises((OSError, ValueError), match=r"bad\.mp4"):
        compress_videos.compress(job, compress_videos.Settings())
    assert list((tmp_path / "out").iterdir()) == []


# A white square at the upper left of what is stored, and where a player shows it: row and column.
@pytest.mark.parametrize(
    ("rotation", "hflip", "corner"),
    [(90, False, (-4, 3)), (-90, False, (3, -4)), (180, False, (-4, -4)), (0, True, (3, -4)), (90, True, (-4, -4))],
)
def test_a_copy_is_upright(rotation: int, hflip: bool, corner: tuple[int, int], tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mov"), "w") as container:
        stream = container.add_stream("libx264", rate=3, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.set_display_rotation(rotation, hflip=hflip)
        picture = np.zeros((48, 64, 3), np.uint8)
        picture[:16, :16] = 255
        for _ in range(2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    job = compress_videos.Job(tmp_path / "a.mov", tmp_path / "a.mp4")
    compress_videos.compress(job, compress_videos.Settings(short_side=24, fps=3))
    frames = load_video(job.target, 2)
    assert frames.shape == ((2, 32, 24, 3) if abs(rotation) == 90 else (2, 24, 32, 3))
    with av.open(str(job.target)) as container:
        stored = next(container.decode(video=0)).to_ndarray(format="rgb24")
    for pixels in (frames[1], stored):  # the copy needs nobody to turn it
        bright = [(row, column) for row in (3, -4) for column in (3, -4) if pixels[row, column].min() > 200]
        assert bright == [corner]


def test_videos_that_would_become_one_copy_are_refused(tmp_path: Path) -> None:
    for name in ("in/a.mp4", "in/a.avi", "in/sub/a.mp4"):
        write(tmp_path, name, "x")
    with pytest.raises(UserError, match=r"a\.avi and a\.mp4 would both become a\.mp4 .*in\] \(rename"):
        compress_videos.main([str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_all_that_the_loader_reads_is_found(tmp_path: Path) -> None:
    for name in ("a.gif", "b.ogv", "c.3gp", "d.MPG", "e.txt", "f.png"):
        write(tmp_path, name, "x")
    jobs = compress_videos.jobs_of_folder(tmp_path, tmp_path / "out")
    assert [(job.source.name, job.target.name) for job in jobs] == [
        ("a.gif", "a.mp4"),
        ("b.ogv", "b.mp4"),
        ("c.3gp", "c.mp4"),
        ("d.MPG", "d.mp4"),
    ]


def test_a_sound_without_pictures_is_one_line(tmp_path: Path, sound_in_mp4: Path) -> None:
    job = compress_videos.Job(sound_in_mp4, tmp_path / "out/a.mp4")
    with pytest.raises(SystemExit, match=r"a\.mp4: the file has no picture track"):
        compress_videos._quietly(job, compress_videos.Settings())  # what its process does
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
def test_a_folder_is_compressed_once_and_bad_files_are_counted(tmp_path: Path, capsys: Any) -> None:
    make_video(tmp_path / "in/sub/a.avi", 6)
    write(tmp_path, "in/bad.mp4", "this is no video")
    command = [str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--short-side", "24", "--processes", "1", "--json"]
    for _ in range(2):
        with pytest.raises(SystemExit) as stop:
            compress_videos.main(command)
        assert stop.value.code == 1
        captured = capsys.readouterr()
        assert json.loads(captured.out) == {"videos": 2, "failed": 1}
        assert "bad.mp4: cannot be read" in captured.err
    assert (tmp_path / "out/sub/a.mp4").is_file()
