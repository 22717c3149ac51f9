import importlib.util
import io
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from movi_files import encode_example, write_movi, write_records
from PIL import Image

from slotmatch import data
from slotmatch.__main__ import main
from slotmatch.data import movi, tfrecord

FIXTURE = Path(__file__).parent / "fixtures" / "movi"
ORDER = {"train": (1, 2, 0), "validation": (4, 3)}  # tensorflow-datasets shuffles scenes by name
SHARD = "movi_e-train.tfrecord-00000-of-00002"
SECOND = "movi_e-train.tfrecord-00001-of-00002"


@pytest.fixture(scope="module")
def scene():
    """Video and labels by number of the scene: the rule that the fixture was made by."""
    spec = importlib.util.spec_from_file_location("make_fixture", FIXTURE / "make_fixture.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.scene


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SLOTMATCH_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("SLOTMATCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "data"


def clip(seed: int = 0, shape: tuple[int, int, int] = (2, 8, 8)) -> data.Clip:
    rng = np.random.default_rng(seed)
    video = rng.integers(0, 256, (*shape, 3), np.uint8)
    return data.Clip(video, rng.integers(0, 256, shape).astype(np.int32), f"clip {seed}")


@pytest.fixture
def folder(root) -> Path:
    """Five small videos in two shards, as published."""
    return write_movi([clip(i) for i in range(5)], root, "movi_e", "train", 2)


def assert_equal(one: data.Clip, other: data.Clip) -> None:
    np.testing.assert_array_equal(one.video, other.video)
    np.testing.assert_array_equal(one.labels, other.labels)


# The files of tensorflow-datasets


def test_what_tensorflow_datasets_wrote_is_read_to_the_last_pixel(scene):
    for split, order in ORDER.items():
        clips = data.open("movi_e", split, root=FIXTURE)
        assert clips.ids == tuple(f"movi_e/{split}/{i:05d}" for i in range(len(order)))
        for read, number in zip(clips, order, strict=True):
            video, labels = scene(number)
            assert (read.video.dtype, read.labels.dtype) == (np.uint8, np.int32)
            np.testing.assert_array_equal(read.video, video)
            np.testing.assert_array_equal(read.labels, labels)


def test_its_other_features_are_read_too(scene):
    """Floats, integers and text are laid out as TensorFlow does, not only as we write them."""
    folder = movi.data_folder("movi_e", FIXTURE)
    path = folder / movi.read_splits(folder, "movi_e")["validation"].shards[0]
    names = (
        "metadata/video_name",
        "metadata/num_instances",
        "metadata/depth_range",
        "events/collisions/instances",
        "forward_flow",
    )
    (start,) = tfrecord.offsets(path)
    found = tfrecord.decode_example(tfrecord.read_record(path, start), names)
    assert found["metadata/video_name"] == [b"104"]
    assert found["metadata/num_instances"].tolist() == [scene(4)[1].max()]
    assert found["metadata/depth_range"].tolist() == [-1, 1]
    assert found["events/collisions/instances"].tolist() == [0, 65535]
    assert found["forward_flow"].size == 12 * 16 * 16 * 2
    assert set(found["forward_flow"]) == {64}


def test_tfrecord_bytes_by_hand():
    """CRC32C of "123456789" is E3069283 by its definition; masked by hand."""
    rotated = (0xE3069283 >> 15) + ((0xE3069283 & 0x7FFF) << 17)
    assert rotated == 0x2507C60D
    assert tfrecord.masked_crc(b"123456789") == 0x2507C60D + 0xA282EAD8


def test_features_that_nobody_asks_for_are_not_parsed():
    example = tfrecord._Example.FromString(encode_example({"video": [b"frame"]}))
    example.features.feature["forward_flow"] = b"\xff"
    content = example.SerializeToString()
    assert tfrecord.decode_example(content, ["video"]) == {"video": [b"frame"]}
    with pytest.raises(ValueError, match=r"the record is no tf\.train\.Example"):
        tfrecord.decode_example(content, ["video", "forward_flow"])


# Access


def test_any_video_in_any_order(folder):
    clips = data.open("movi_e", "train")
    assert len(clips) == 5
    for i in (3, 0, 4, -5):
        assert_equal(clips[i], clip(i % 5))
    assert [c.id for c in clips[1:4:2]] == ["movi_e/train/00001", "movi_e/train/00003"]
    with pytest.raises(IndexError):
        clips[5]


def test_the_first_videos_need_only_their_shards(folder):
    (folder / SECOND).unlink()
    clips = data.open("movi_e", "train", n_videos=2)
    assert clips.ids == ("movi_e/train/00000", "movi_e/train/00001")
    assert_equal(clips[1], clip(1))
    assert len(data.open("movi_e", "train", n_videos=1)) == 1


def test_places_are_looked_up_once(folder, monkeypatch):
    looked = []
    real = tfrecord.offsets
    monkeypatch.setattr(movi, "offsets", lambda path: looked.append(path.name) or real(path))
    data.open("movi_e", "train", n_videos=1)
    data.open("movi_e", "train")
    data.open("movi_e", "train")
    assert looked == [SHARD, SECOND]
    os.utime(folder / SECOND, ns=(1, 1))
    data.open("movi_e", "train")
    assert looked == [SHARD, SECOND, SECOND]


def test_a_damaged_memory_of_places_is_made_again(folder, tmp_path):
    data.open("movi_e", "train")
    (memory,) = (tmp_path / "cache" / "movi").iterdir()
    memory.write_text('{"half')
    assert_equal(data.open("movi_e", "train")[4], clip(4))


def test_places_of_two_folders_are_not_confused(folder, tmp_path):
    write_movi([clip(7), clip(8)], tmp_path / "other", "movi_e", "train", 2)
    assert_equal(data.open("movi_e", "train")[1], clip(1))
    assert_equal(data.open("movi_e", "train", root=tmp_path / "other")[1], clip(8))


# What is missing or damaged: one sentence each


@pytest.mark.parametrize("name", movi.NAMES)
def test_no_files_at_all(name):
    with pytest.raises(FileNotFoundError) as error:
        data.open(name, "train", n_videos=64)
    message = str(error.value)
    assert f"python -m slotmatch data download {name} --split train --max-videos 64 " in message
    assert re.search(r"-p dataset minimovi_[acde]$", message)
    assert "\n" not in message


def test_a_split_that_does_not_exist(folder):
    with pytest.raises(ValueError, match="movi_a has no split 'test'; choose from train, valid"):
        data.open("movi_a", "test")
    with pytest.raises(ValueError, match="movi_e has no split 'test'; choose from train"):
        data.open("movi_e", "test")


def test_a_missing_shard(folder):
    (folder / SECOND).unlink()
    with pytest.raises(FileNotFoundError) as error:
        data.open("movi_e", "train")
    assert re.search(
        rf"has 1 of the 2 shards needed of movi_e train and {SECOND} is the first one missing: get "
        r"the rest with python -m slotmatch data download movi_e --split train, or ask for n_videos"
        r" of 2 or less$",
        str(error.value),
    )


def test_no_shard_of_a_split(folder):
    (folder / SHARD).unlink()
    (folder / SECOND).unlink()
    with pytest.raises(FileNotFoundError, match="the files of movi_e are not on this machine"):
        data.open("movi_e", "train")


def test_more_videos_than_there_are(folder):
    with pytest.raises(ValueError, match="n_videos is 6 and movi_e train has 5 videos"):
        data.open("movi_e", "train", n_videos=6)


@pytest.mark.parametrize("left", [1, 11, 12, 500, -1, -4])
def test_a_truncated_shard(folder, left):
    path = folder / SHARD
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ValueError, match=rf"{SHARD}: the file ends within the record at byte \d+"):
        data.open("movi_e", "train")


def test_a_record_that_was_cut_after_it_was_found(folder):
    clips = data.open("movi_e", "train", n_videos=2)
    path = folder / SHARD
    path.write_bytes(path.read_bytes()[:-1])
    assert_equal(clips[0], clip(0))
    with pytest.raises(ValueError, match="the file ends within the record"):
        clips[1]


@pytest.mark.parametrize("position", [12, 700, -1])
def test_a_changed_byte_of_a_record(folder, position):
    content = bytearray((folder / SHARD).read_bytes())
    content[position] ^= 1
    (folder / SHARD).write_bytes(content)
    clips = data.open("movi_e", "train")
    with pytest.raises(ValueError, match=rf"{SHARD}: the record at byte \d+ does not have its che"):
        clips[0 if position >= 0 else 1]


@pytest.mark.parametrize("position", [0, 7, 8])
def test_a_changed_byte_of_a_length(folder, position):
    content = bytearray((folder / SHARD).read_bytes())
    content[position] ^= 1
    (folder / SHARD).write_bytes(content)
    with pytest.raises(ValueError, match="no TFRecord starts at byte 0, or its length is damaged"):
        data.open("movi_e", "train")


def test_a_wrong_number_of_videos(folder):
    shutil.copy(folder / SECOND, folder / SHARD)
    with pytest.raises(ValueError, match=f"{SHARD} holds 3 videos and dataset_info.json lists 2"):
        data.open("movi_e", "train")


def png(array: np.ndarray, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, form)
    return file.getvalue()


RGB, GREY = clip(0, (1, 4, 4)).video[0], np.zeros((4, 4), np.uint8)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"segmentations": [png(GREY)]}, "no feature is called 'video'; there are segmentations"),
        ({"video": [png(RGB)]}, "no feature is called 'segmentations'"),
        ({"video": np.zeros(3), "segmentations": [png(GREY)]}, "'video' does not hold a PNG file"),
        ({"video": [], "segmentations": [png(GREY)]}, "'video' does not hold a PNG file"),
        ({"video": [png(GREY)], "segmentations": [png(GREY)]}, r"frame 0 of 'video' is L \(4, 4\)"),
        ({"video": [png(RGB)], "segmentations": [png(RGB)]}, "frame 0 of 'segmentations' is RGB"),
        ({"video": [png(RGB, "BMP")], "segmentations": [png(GREY)]}, "'video' is no PNG file"),
        ({"video": [png(RGB)[:-40]], "segmentations": [png(GREY)]}, "'video' is no PNG file"),
        (
            {"video": [png(RGB), png(RGB[:2])], "segmentations": [png(GREY)] * 2},
            r"frame 1 of 'video' is RGB \(2, 4, 3\): all must be RGB and of one size",
        ),
        (
            {"video": [png(RGB)] * 2, "segmentations": [png(GREY)]},
            r"the video is \(2, 4, 4, 3\) and its segmentations \(1, 4, 4\)",
        ),
    ],
)
def test_a_record_that_is_no_movi_video(root, features, message):
    folder = write_movi([clip()], root, "movi_e", "train")
    shard = "movi_e-train.tfrecord-00000-of-00001"
    write_records(folder / shard, [encode_example(features)])
    with pytest.raises(ValueError, match=message) as error:
        data.open("movi_e", "train")[0]
    assert str(error.value).startswith("movi_e/train/00000, the record at byte 0 of ")


def test_a_record_that_is_no_example(root):
    folder = write_movi([clip()], root, "movi_e", "train")
    write_records(folder / "movi_e-train.tfrecord-00000-of-00001", [b"\xff" * 40])
    with pytest.raises(ValueError, match=r"the record is no tf\.train\.Example"):
        data.open("movi_e", "train")[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"name": "movi_', "is no JSON"),
        ("[]", "does not list the shards of a data set"),
        ('{"name": "movi_e", "splits": [{"name": "train"}]}', "does not list .* 'shardLengths'"),
        ('{"name": "movi_d", "splits": []}', "describes movi_d as tfrecord files, not movi_e"),
        ('{"name": "movi_e", "fileFormat": "riegeli", "splits": []}', "movi_e as riegeli files"),
    ],
)
def test_a_damaged_list_of_files(folder, text, message):
    (folder / movi.INFO).write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        data.open("movi_e", "train")
    assert movi.INFO in str(error.value)


# check


def test_check_tells_what_is_there_and_what_is_not(folder, capsys):
    write_movi([clip()], folder.parents[2], "movi_e", "validation")
    (folder / SECOND).unlink()
    report = data.check("movi_e")
    assert report.present == ("validation: 1 of 1 videos in 1 of 1 shards",)
    assert report.missing == ("train: 2 of 5 videos in 1 of 2 shards",)
    assert report.differs == (
        "train: 5 videos, 9749 are published",
        "validation: 1 videos, 250 are published",
    )
    assert report.how == "python -m slotmatch data download movi_e"
    assert main(["data", "check", "movi_e"]) == 1
    shown = capsys.readouterr().out
    assert "missing: train: 2 of 5 videos" in shown
    assert "how to get it: python -m slotmatch data download movi_e" in shown


def test_check_names_a_damaged_shard(folder):
    with (folder / SECOND).open("ab") as file:
        file.write(b"x")
    first, second = data.check("movi_e").missing
    assert first.startswith("train: 2 of 5 videos in 2 of 2 shards")
    assert f"{SECOND}: the file ends within the record" in second


def test_check_of_nothing(root):
    report = data.check("movi_c")
    assert report.present == ()
    assert report.missing == ("train: 9737 videos", "validation: 250 videos", "test: all videos")


# write_movi


def test_written_videos_are_read_back(root):
    clips = [clip(i, (3, 5, 7)) for i in range(5)]
    folder = write_movi(clips, root, "movi_d", "validation", 3)
    lengths = movi.read_splits(folder, "movi_d")["validation"].shard_lengths
    assert lengths == (1, 2, 2)
    for read, written in zip(data.open("movi_d", "validation"), clips, strict=True):
        assert_equal(read, written)


def test_a_split_is_replaced_and_others_stay(folder, root):
    write_movi([clip(9)], root, "movi_e", "validation")
    write_movi([clip(8)], root, "movi_e", "train")
    assert_equal(data.open("movi_e", "validation")[0], clip(9))
    assert_equal(data.open("movi_e", "train")[0], clip(8))
    assert sorted(path.name for path in folder.iterdir()) == [
        "dataset_info.json",
        "features.json",
        "movi_e-train.tfrecord-00000-of-00001",
        "movi_e-validation.tfrecord-00000-of-00001",
    ]


def test_a_failure_while_writing_leaves_what_was_there(folder, root):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    wrong = clip(9)
    wrong.labels[0, 0, 0] = 256
    with pytest.raises(ValueError, match="labels of clip 9 go from 1 to 256; a grey PNG file hold"):
        write_movi([clip(8), wrong], root, "movi_e", "train")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("shards", [0, 3])
def test_a_number_of_shards_that_cannot_be(root, shards):
    with pytest.raises(ValueError, match=f"shards is {shards}; choose from 1 to 2"):
        write_movi([clip(0), clip(1)], root, "movi_e", "train", shards)


def test_clips_of_several_shapes_are_refused(root):
    with pytest.raises(ValueError, match="all must have one shape"):
        write_movi([clip(0), clip(1, (3, 8, 8))], root, "movi_e", "train")


def test_our_description_of_the_features_is_tensorflow_datasets_own(root):
    folder = write_movi([clip(0, (12, 16, 16))], root, "movi_e", "train")
    ours = json.loads((folder / movi.FEATURES).read_text())["featuresDict"]["features"]
    theirs = json.loads((movi.data_folder("movi_e", FIXTURE) / movi.FEATURES).read_text())
    theirs = theirs["featuresDict"]["features"]
    for name in ("video", "segmentations"):
        assert ours[name] == theirs[name]
    metadata = theirs["metadata"]["featuresDict"]["features"]
    assert ours["metadata"]["featuresDict"]["features"].items() <= metadata.items()
