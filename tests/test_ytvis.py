"""YouTube-VIS and OVIS read from small files in their layout, with masks written by hand."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from slotmatch import data
from slotmatch.__main__ import main
from slotmatch.data import ytvis

H, W = 3, 4
SQUARE = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]])
SQUARE_RUNS = [0, 2, 1, 2, 7]  # down the columns: no zero, two ones, a zero, two ones, seven zeros
COLUMN = np.array([[0, 1, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0]])
COLUMN_RUNS = [3, 3, 6]


def runs(counts, size=(H, W)):
    return {"size": list(size), "counts": counts}


def coco_string(mask):
    rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return runs(rle["counts"].decode(), mask.shape)


def video(number, n_frames=2, **changes):
    names = [f"v{number:03d}/{t:05d}.jpg" for t in range(n_frames)]
    sizes = {"height": H, "width": W, "length": n_frames}
    return {"id": number, "file_names": names, **sizes, **changes}


def annotation(number, video_id, *segmentations, crowd=0):
    return {
        "id": number,
        "video_id": video_id,
        "category_id": 40,
        "iscrowd": crowd,
        "segmentations": list(segmentations),
    }


def write(path, videos, annotations) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"info": {}, "videos": videos, "categories": [], "annotations": annotations}
    path.write_text(json.dumps(content))
    return path


def write_frames(folder, videos, size=(H, W)):
    for entry in videos:
        for t, name in enumerate(entry["file_names"]):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            grey = np.full((*size, 3), 40 * t + entry["id"], np.uint8)
            Image.fromarray(grey).save(folder / name, quality=95)


@pytest.fixture
def small(monkeypatch):
    """One video is held out, so that a file of two or three has both splits."""
    monkeypatch.setitem(ytvis.HOLD_OUT, "ytvis2021", 1)
    monkeypatch.setitem(ytvis.HOLD_OUT, "ovis", 1)


def one_video(tmp_path, *annotations, n_frames=1):
    path = write(tmp_path / "a.json", [video(1, n_frames)], list(annotations))
    (found,) = ytvis.read_annotations(path)
    return found


# Masks


@pytest.mark.parametrize(
    "segmentation",
    [
        runs(SQUARE_RUNS),
        coco_string(SQUARE),
        runs("02106"),  # as a string: 0 2 1, then 2 - 2 and 7 - 1, each from two places before
        [[0, 0, 2, 0, 2, 2, 0, 2]],
    ],
    ids=["list of runs", "COCO string", "COCO string by hand", "polygon"],
)
def test_every_form_of_a_mask_gives_the_same_labels(tmp_path, segmentation):
    found = one_video(tmp_path, annotation(1, 1, segmentation))
    labels = ytvis.label_map(found, 0)
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, SQUARE)


def test_null_frames_hold_no_object_and_numbers_follow_the_file(tmp_path):
    found = one_video(
        tmp_path,
        annotation(7, 1, None, runs(SQUARE_RUNS)),
        annotation(5, 1, runs(COLUMN_RUNS), None),
        annotation(6, 1, [], None),
        n_frames=2,
    )
    np.testing.assert_array_equal(ytvis.label_map(found, 0), 2 * COLUMN)
    np.testing.assert_array_equal(ytvis.label_map(found, 1), SQUARE)


def test_crowds_are_left_out_and_take_no_number(tmp_path):
    crowd = annotation(1, 1, runs(SQUARE_RUNS), crowd=1)
    found = one_video(tmp_path, crowd, annotation(2, 1, runs(COLUMN_RUNS)))
    np.testing.assert_array_equal(ytvis.label_map(found, 0), COLUMN)


def test_a_file_without_annotations_gives_videos_without_objects(tmp_path):
    path = write(tmp_path / "valid.json", [video(1), video(2)], None)
    videos = ytvis.read_annotations(path)
    assert [found.objects for found in videos] == [(), ()]
    assert not ytvis.label_map(videos[0], 0).any()


def test_where_masks_overlap_the_first_object_has_the_pixel(tmp_path):
    pair = annotation(1, 1, runs(SQUARE_RUNS)), annotation(2, 1, runs(COLUMN_RUNS))
    expected = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 2, 0, 0]]
    np.testing.assert_array_equal(ytvis.label_map(one_video(tmp_path, *pair), 0), expected)


def test_run_lengths_of_a_string_are_those_it_was_made_from():
    rng = np.random.default_rng(1)
    for top in (3, 40, 2000, 500_000):
        counts = rng.integers(1, top, 41)
        size = (int(counts.sum()), 1)
        string = coco.frPyObjects(runs(counts.tolist(), size), *size)["counts"]
        np.testing.assert_array_equal(ytvis.run_lengths(string), counts)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (runs([0, 2, 1]), "runs of 3 pixels, the frame has 12"),
        (runs([0, 2, 20]), "runs of 22 pixels"),
        (runs([-1, 13]), "runs of 0 pixels"),
        (runs("12"), "runs of 3 pixels"),
        (runs(""), "runs of 0 pixels"),
        (runs("1P"), "runs of 0 pixels"),
        (runs(SQUARE_RUNS, (W, H)), r"has a mask of size \[4, 3\], the video is \[3, 4\]"),
        ([[0, 0, 2, 2]], "neither run lengths nor polygons"),
        ([["0", 0, 2, 2, 0, 2]], "neither run lengths nor polygons"),
        ([[0, 0, 2, float("nan"), 0, 2]], "neither run lengths nor polygons"),
        (5, "neither run lengths nor polygons"),
        ({"size": [H, W]}, "neither run lengths nor polygons"),
    ],
)
def test_a_damaged_mask_is_named_and_never_decoded(tmp_path, segmentation, message):
    found = one_video(tmp_path, annotation(1, 1, segmentation))
    with pytest.raises(ValueError, match=message) as error:
        ytvis.label_map(found, 0)
    assert str(error.value).startswith("object 1 of video 1 in v001/00000.jpg")


# The annotation file


@pytest.mark.parametrize(
    ("videos", "annotations", "message"),
    [
        ([video(1)], [annotation(9, 4, None, None)], "annotation 9 is of video 4, which is not in"),
        ([video(1)], [annotation(9, 1, None)], "annotation 9 has 1 segmentations for the 2 frames"),
        ([video(1, length=5)], [], "video 1 has 2 frames and its length is 5"),
        ([video(1), video(1)], [], "1 video ids twice"),
        ([{"id": 1, "file_names": []}], [], "as YouTube-VIS is: video 1: height: Field required"),
        ([video(1, height=7.5)], [], "as YouTube-VIS is: video 1: height: .*fractional part"),
        ([video(1, width=0)], [], "as YouTube-VIS is: video 1: width: .*greater than 0"),
        (["1"], [], "as YouTube-VIS is: video None: all of it: .*dictionary"),
        ([video(1)], [{"id": 1}], "as YouTube-VIS is: annotation 1: video_id: Field required"),
        (
            [video(1)],
            [annotation(8, 1, None, None), annotation(4711, 1) | {"segmentations": None}],
            "as YouTube-VIS is: annotation 4711: segmentations: .*valid list",
        ),
        (None, [], "as YouTube-VIS is: it lists no videos"),
    ],
)
def test_annotations_that_do_not_fit_are_refused(tmp_path, videos, annotations, message):
    path = write(tmp_path / "a.json", videos, annotations)
    with pytest.raises(ValueError, match=message) as error:
        ytvis.read_annotations(path)
    assert str(path) in str(error.value)


def test_whole_numbers_may_be_written_as_floats(tmp_path):
    """As exports of own data have them."""
    exact = video(1, 1)
    floats = {key: float(exact[key]) for key in ("id", "height", "width", "length")}
    masks = annotation(1.0, 1.0, runs(SQUARE_RUNS))
    (found,) = ytvis.read_annotations(write(tmp_path / "a.json", [exact | floats], [masks]))
    assert (found.id, found.size) == (1, (H, W))
    assert all(isinstance(side, int) for side in found.size)
    np.testing.assert_array_equal(ytvis.label_map(found, 0), SQUARE)


def test_a_file_that_was_replaced_is_read_again(tmp_path):
    path = write(tmp_path / "a.json", [video(1)], [])
    assert len(ytvis.read_annotations(path)) == 1
    write(path, [video(1), video(2)], [])
    assert len(ytvis.read_annotations(path)) == 2


# Splits


@pytest.mark.parametrize(
    ("name", "n_videos", "n_held_out"), [("ytvis2021", 305, 300), ("ovis", 65, 60)]
)
def test_the_last_videos_of_the_file_are_held_out(tmp_path, name, n_videos, n_held_out):
    numbers = np.random.default_rng(0).permutation(np.arange(1, n_videos + 1)).tolist()
    place = {"ytvis2021": "train/instances.json", "ovis": "annotations_train.json"}[name]
    frames = {"ytvis2021": "train/JPEGImages", "ovis": "train"}[name]
    write(tmp_path / name / place, [video(n, 1) for n in numbers], [])
    for number in numbers:
        folder = tmp_path / name / frames / f"v{number:03d}"
        folder.mkdir(parents=True)
        (folder / "00000.jpg").touch()
    train = data.open(name, "train", root=tmp_path)
    validation = data.open(name, "validation", root=tmp_path)
    assert len(validation) == n_held_out
    expected = [f"{name}/{'train' if i < 5 else 'validation'}/{n}" for i, n in enumerate(numbers)]
    assert [*train.ids, *validation.ids] == expected  # the order of the file, not of the numbers


def test_clips_have_frames_and_labels_of_their_video(tmp_path, small):
    videos = [video(8, 3), video(3, 2)]
    square, column = runs(SQUARE_RUNS), coco_string(COLUMN)
    annotations = [annotation(1, 3, square, None), annotation(2, 8, None, column, column)]
    write(tmp_path / "ovis/annotations_train.json", videos, annotations)
    write_frames(tmp_path / "ovis/train", videos)
    clip = data.open("ovis", "train", root=tmp_path)[0]
    assert clip.id == "ovis/train/8"
    assert clip.video.shape == (3, H, W, 3)
    assert clip.video.dtype == np.uint8
    means = clip.video.mean((1, 2, 3))
    np.testing.assert_allclose(means, [8, 48, 88], atol=1)  # JPEG
    np.testing.assert_array_equal(clip.labels, np.stack([0 * COLUMN, COLUMN, COLUMN]))
    (held_out,) = data.open("ovis", "validation", root=tmp_path)[:]
    assert held_out.id == "ovis/validation/3"
    np.testing.assert_array_equal(held_out.labels, np.stack([SQUARE, 0 * SQUARE]))


@pytest.mark.parametrize("name", ["ytvis2021", "ovis"])
def test_there_is_no_test_split(tmp_path, name):
    assert data.splits_of(name) == ("train", "validation")
    with pytest.raises(ValueError, match=f"{name} has no split 'test'; choose from train, valid"):
        data.open(name, "test", root=tmp_path)


def test_more_videos_than_there_are_is_an_error(tmp_path, small):
    videos = [video(1), video(2)]
    write(tmp_path / "ytvis2021/train/instances.json", videos, [])
    write_frames(tmp_path / "ytvis2021/train/JPEGImages", videos)
    with pytest.raises(ValueError, match="n_videos is 2 and ytvis2021 train has 1 videos"):
        data.open("ytvis2021", "train", n_videos=2, root=tmp_path)


# Missing and damaged files


@pytest.fixture
def youtube(tmp_path, small) -> Path:
    """A whole small set with two videos; the folder that holds it."""
    videos = [video(1), video(2)]
    annotations = [annotation(1, 2, runs(SQUARE_RUNS), None)]
    write(tmp_path / "ytvis2021/train/instances.json", videos, annotations)
    write_frames(tmp_path / "ytvis2021/train/JPEGImages", videos)
    return tmp_path


def test_check_of_a_whole_set_finds_nothing_missing(youtube):
    report = data.check("ytvis2021", youtube)
    assert report.missing == ()
    assert report.present == (
        "train/instances.json: 2 videos (1 train, 1 validation), 1 objects",
        "train/JPEGImages: 4 of 4 frames",
    )


def test_check_reads_no_frame_and_no_mask(youtube, monkeypatch):
    monkeypatch.setattr(ytvis, "read_frames", None)
    monkeypatch.setattr(ytvis, "read_annotations", None)
    monkeypatch.setattr(ytvis, "coco", None)
    assert not data.check("ytvis2021", youtube).missing


def test_missing_frames_are_named_before_anything_is_read(youtube):
    (youtube / "ytvis2021/train/JPEGImages/v002/00001.jpg").unlink()
    message = "1 frames of ytvis2021 validation are missing in .*: v002/00001.jpg"
    with pytest.raises(FileNotFoundError, match=message):
        data.open("ytvis2021", "validation", root=youtube)
    assert len(data.open("ytvis2021", "train", root=youtube)) == 1  # has all of its own
    report = data.check("ytvis2021", youtube)
    assert report.missing == ("1 frames: v002/00001.jpg",)
    assert "3 of 4 frames" in str(report)


def test_a_set_without_its_frames_says_so(youtube):
    folder = youtube / "ytvis2021"
    (folder / "train/JPEGImages").rename(folder / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"lacks train/JPEGImages: register at youtube-vos"):
        data.open("ytvis2021", "train", root=youtube)
    assert data.check("ytvis2021", youtube).missing == ("train/JPEGImages, the frames",)


@pytest.mark.parametrize("kept", [0.2, 0.7, 0.99])
def test_a_cut_off_annotation_file_is_told(youtube, kept):
    path = youtube / "ytvis2021/train/instances.json"
    text = path.read_text()
    path.write_text(text[: int(kept * len(text))])
    with pytest.raises(ValueError, match=f"{path} is no whole JSON file .*; download it again"):
        data.open("ytvis2021", "train", root=youtube)
    (line,) = data.check("ytvis2021", youtube).missing
    assert "download it again" in line


def test_a_binary_annotation_file_is_told(youtube):
    path = youtube / "ytvis2021/train/instances.json"
    path.write_bytes(b"PK\x03\x04\xff\xfe")
    with pytest.raises(ValueError, match=f"{path} is no JSON file .*; download it again"):
        data.open("ytvis2021", "train", root=youtube)


def test_a_file_of_videos_without_masks_is_not_the_train_file(youtube):
    write(youtube / "ytvis2021/train/instances.json", [video(1), video(2)], None)
    (line,) = data.check("ytvis2021", youtube).missing
    assert line == "masks in train/instances.json: this is not the file of the train videos"


def test_a_cut_off_frame_is_named(youtube):
    path = youtube / "ytvis2021/train/JPEGImages/v001/00001.jpg"
    path.write_bytes(path.read_bytes()[:-40])
    clips = data.open("ytvis2021", "train", root=youtube)
    with pytest.raises(OSError, match=re.escape(f"{path} is cut off or no picture")):
        clips[0]


def test_a_frame_of_another_size_is_named(youtube):
    path = youtube / "ytvis2021/train/JPEGImages/v001/00001.jpg"
    Image.new("RGB", (5, 6)).save(path)
    clips = data.open("ytvis2021", "train", root=youtube)
    with pytest.raises(ValueError, match="is 5 x 6 pixels and should be 4 x 3 pixels") as error:
        clips[0]
    assert str(path) in str(error.value)


def test_frames_in_grey_become_rgb(youtube):
    path = youtube / "ytvis2021/train/JPEGImages/v001/00000.jpg"
    Image.new("L", (W, H), 200).save(path)
    clip = data.open("ytvis2021", "train", root=youtube)[0]
    np.testing.assert_array_equal(clip.video[0], np.full((H, W, 3), 200))


def test_command_says_what_is_there_and_fails_when_something_is_missing(
    youtube, monkeypatch, capsys
):
    command = ["data", "check", "ytvis2021", "--root", str(youtube)]
    assert main(command) == 1
    shown = capsys.readouterr()
    assert shown.out.startswith(f"ytvis2021 in {youtube / 'ytvis2021'}\n")
    assert "4 of 4 frames" in shown.out
    assert "differs: train/instances.json: 2 videos, 2985 are published" in shown.out
    assert "is not ytvis2021 as published" in shown.err
    monkeypatch.setitem(ytvis.PUBLISHED, "ytvis2021", 2)
    assert main(command) == 0
    assert "differs" not in capsys.readouterr().out
    assert main(["data", "check", "ovis", "--root", str(youtube)]) == 1
    shown = capsys.readouterr()
    assert "missing: annotations_train.json" in shown.out
    assert "songbai.site/ovis" in shown.out
    assert shown.err == f"slotmatch data: not all of ovis is in {youtube / 'ovis'}\n"


def test_prepare_reads_both_splits(youtube, monkeypatch, capsys):
    monkeypatch.setenv("SLOTMATCH_DATA", str(youtube))
    assert main(["data", "ytvis2021"]) == 0
    assert capsys.readouterr().out == (
        "ytvis2021 train: 1 videos of 2x3x4 (frames x rows x columns) with 0 to 0 objects\n"
        "ytvis2021 validation: 1 videos of 2x3x4 (frames x rows x columns) with 1 to 1 objects\n"
    )
