"""DAVIS read from small files in its layout: palette and grey PNG, JPEG, lists of both years."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from slotmatch import data
from slotmatch.__main__ import main
from slotmatch.data import davis

H, W = 4, 6
# 256 colours as in the published files, in which id 1 is dark red and 255 nearly white.
PALETTE = [*(0, 0, 0), *(128, 0, 0), *(0, 128, 0), *(128, 128, 0), *range(12, 256 * 3)]
PALETTE = [value % 256 for value in PALETTE[:-3]] + [224, 224, 192]
IDS = np.array([[0, 0, 1, 1, 2, 2], [0, 3, 3, 1, 2, 2], [0, 0, 0, 0, 0, 0], [255] * 6])
LABELS = np.where(IDS == 255, 0, IDS)


def palette_picture(ids, n_colours=256):
    picture = Image.fromarray(ids.astype(np.uint8), mode="P")
    picture.putpalette(PALETTE[: 3 * n_colours])
    return picture


def write_sequence(root, name, masks, *, year=2017, first=0):
    frames = root / "JPEGImages/480p" / name
    folder = root / {2017: "Annotations_unsupervised", 2016: "Annotations"}[year] / "480p" / name
    frames.mkdir(parents=True)
    folder.mkdir(parents=True)
    for t, mask in enumerate(masks, first):
        Image.new("RGB", (W, H), (30 * t, 60, 90)).save(frames / f"{t:05d}.jpg")
        mask.save(folder / f"{t:05d}.png")


def write_list(root, name, *lines):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture
def davis2017(tmp_path) -> Path:
    """Three sequences, two of them in the validation list, in reverse; the folder of the set."""
    root = tmp_path / "davis2017"
    for name in ("zebra", "ape", "mole"):
        write_sequence(root, name, [palette_picture(IDS), palette_picture(IDS[:, ::-1])])
    write_list(root, "ImageSets/2017/val.txt", "zebra", "ape", "")
    write_list(root, "ImageSets/2017/train.txt", "mole")
    return root


def test_frames_come_in_natural_order_and_litter_does_not_count(tmp_path):
    root = tmp_path / "davis2017"
    for t in (2, 10, 100000):
        write_sequence(root / str(t), "cam", [palette_picture(IDS + t % 4)], first=t)
    for part in (root / str(t) for t in (2, 10, 100000)):
        for path in part.rglob("*.*"):
            target = root / path.relative_to(part).with_name(f"{int(path.stem)}{path.suffix}")
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
    (root / "JPEGImages/480p/cam/._2.jpg").write_bytes(b"\0")
    write_list(root, "ImageSets/2017/val.txt", "cam")
    (clip,) = data.open("davis2017", "validation", root=tmp_path)
    assert [labels.max() for labels in clip.labels] == [5, 5, 3]
    assert clip.labels[:, 0, 0].tolist() == [2, 2, 0]


# Ids


def test_ids_are_palette_indices_and_void_is_unlabelled(davis2017):
    (clip,) = data.open("davis2017", "train", root=davis2017.parent)[:]
    assert clip.id == "davis2017/train/mole"
    assert clip.labels.dtype == np.int32
    np.testing.assert_array_equal(clip.labels, np.stack([LABELS, LABELS[:, ::-1]]))
    assert clip.video.shape == (2, H, W, 3)
    np.testing.assert_allclose(clip.video[1, 0, 0], [30, 60, 90], atol=3)  # JPEG


@pytest.mark.parametrize("kind", ["palette with transparency", "grey", "16 bits", "4 bits"])
def test_ids_do_not_depend_on_how_they_are_stored(tmp_path, kind):
    path, ids = tmp_path / "ids.png", IDS
    if kind == "palette with transparency":
        palette_picture(ids).save(path, transparency=0)
    elif kind == "grey":
        Image.fromarray(ids.astype(np.uint8)).save(path)
    elif kind == "16 bits":
        Image.fromarray(ids.astype(np.uint16)).save(path)
        with Image.open(path) as image:
            assert image.mode == "I;16"
    else:
        palette_picture(LABELS, n_colours=4).save(path, bits=4)
    np.testing.assert_array_equal(davis.read_ids(path), LABELS)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colours_are_no_ids(tmp_path, mode):
    path = tmp_path / "ids.png"
    palette_picture(LABELS).convert(mode).save(path)
    for binary in (False, True):
        with pytest.raises(ValueError, match=f"mode {mode} and has colours in place of ids"):
            davis.read_ids(path, binary=binary)


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "RGBA", "LA", "I;16"])
def test_a_binary_mask_is_what_is_not_zero(tmp_path, mode):
    path, mask = tmp_path / "mask.png", np.arange(H * W).reshape(H, W) % 3 == 0
    grey = Image.fromarray((255 * mask).astype(np.uint8))
    picture = Image.fromarray((65535 * mask).astype(np.uint16)) if mode == "I;16" else grey
    picture.convert(mode).save(path)
    ids = davis.read_ids(path, binary=True)
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, mask)


def test_several_objects_are_one_foreground_in_2016(tmp_path):
    path = tmp_path / "mask.png"
    palette_picture(LABELS).save(path)
    np.testing.assert_array_equal(davis.read_ids(path, binary=True), LABELS > 0)


# Splits


def test_sequences_are_sorted_by_name(davis2017):
    clips = data.open("davis2017", "validation", root=davis2017.parent)
    assert clips.ids == ("davis2017/validation/ape", "davis2017/validation/zebra")
    assert [clip.id for clip in clips] == list(clips.ids)
    first = data.open("davis2017", "validation", n_videos=1, root=davis2017.parent)
    assert first.ids == clips.ids[:1]


def test_frames_are_in_the_order_of_their_numbers(tmp_path):
    root = tmp_path / "davis2017"
    masks = [palette_picture(np.full((H, W), t % 4)) for t in range(12)]
    write_sequence(root, "long", masks[:1], first=11)
    for t in (10, 2, 9):
        Image.new("RGB", (W, H)).save(root / f"JPEGImages/480p/long/{t:05d}.jpg")
        masks[t].save(root / f"Annotations_unsupervised/480p/long/{t:05d}.png")
    (root / "JPEGImages/480p/long/._00002.jpg").touch()  # what macOS leaves on foreign disks
    write_list(root, "ImageSets/2017/train.txt", "long")
    labels = data.open("davis2017", "train", root=tmp_path)[0].labels
    assert labels[:, 0, 0].tolist() == [2, 1, 2, 0]


@pytest.mark.parametrize(
    "lines",
    [
        [
            "/JPEGImages/480p/bus/00000.jpg /Annotations/480p/bus/00000.png",
            "/JPEGImages/480p/bus/00001.jpg /Annotations/480p/bus/00001.png",
            "/JPEGImages/480p/ant/00000.jpg /Annotations/480p/ant/00000.png",
        ],
        ["bus", "ant"],
    ],
    ids=["frames", "names"],
)
def test_2016_reads_both_forms_of_its_lists(tmp_path, lines):
    root = tmp_path / "davis2016"
    grey = Image.fromarray((255 * (IDS == 1)).astype(np.uint8))
    for name in ("bus", "ant", "unlisted"):
        write_sequence(root, name, [grey, grey], year=2016)
    write_list(root, "ImageSets/480p/val.txt", *lines)
    clips = data.open("davis2016", "validation", root=tmp_path)
    assert clips.ids == ("davis2016/validation/ant", "davis2016/validation/bus")
    np.testing.assert_array_equal(clips[1].labels, np.stack(2 * [IDS == 1]))


def test_without_lists_the_official_sequences_that_are_there_make_a_split(tmp_path):
    root = tmp_path / "davis2016"
    grey = Image.new("L", (W, H), 255)
    for name in ("libby", "camel", "bear", "my-cat"):
        write_sequence(root, name, [grey], year=2016)
    clips = {s: data.open("davis2016", s, root=tmp_path) for s in ("train", "validation")}
    assert clips["train"].ids == ("davis2016/train/bear",)
    assert clips["validation"].ids == ("davis2016/validation/camel", "davis2016/validation/libby")
    report = data.check("davis2016", tmp_path)
    assert report.present[1] == "validation: 2 of 20 sequences of the official list"
    assert any(line.startswith("validation: blackswan has no frames") for line in report.missing)


def test_official_lists_have_the_published_sizes_and_nest():
    lists = {
        (name, split): davis.official_sequences(name, split)
        for name in ("davis2016", "davis2017")
        for split in ("train", "validation")
    }
    sizes = {("davis2016", "train"): 30, ("davis2016", "validation"): 20}
    sizes |= {("davis2017", "train"): 60, ("davis2017", "validation"): 30}
    assert {key: len(names) for key, names in lists.items()} == sizes
    assert all(list(names) == sorted(set(names)) for names in lists.values())
    for split in ("train", "validation"):
        assert set(lists["davis2016", split]) < set(lists["davis2017", split])
    assert not set(lists["davis2017", "train"]) & set(lists["davis2017", "validation"])


def test_the_archive_may_stay_in_its_own_folder(davis2017):
    inner = davis2017.rename(davis2017.with_name("unpacked"))
    davis2017.mkdir()
    inner.rename(davis2017 / "DAVIS")
    assert len(data.open("davis2017", "validation", root=davis2017.parent)) == 2


@pytest.mark.parametrize("name", ["davis2017", "davis2016"])
def test_there_is_no_test_split(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name} has no split 'test'; choose from train, valid"):
        data.open(name, "test", root=tmp_path)


# Missing and damaged files


def test_check_of_a_whole_set_finds_nothing_missing(davis2017, capsys):
    report = data.check("davis2017", davis2017.parent)
    assert report.missing == ()
    assert report.present == (
        "train: 1 of 1 sequences of its list in ImageSets",
        "validation: 2 of 2 sequences of its list in ImageSets",
    )
    assert main(["data", "check", "davis2017", "--root", str(davis2017.parent)]) == 0
    assert "2 of 2 sequences" in capsys.readouterr().out


def test_check_decodes_nothing(davis2017, monkeypatch):
    monkeypatch.setattr(davis, "read_frames", None)
    monkeypatch.setattr(davis, "read_picture", None)
    assert not data.check("davis2017", davis2017.parent).missing


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("JPEGImages/480p/ape/00001.jpg", "ape has no frame for mask 00001"),
        ("Annotations_unsupervised/480p/ape/00001.png", "ape has no mask for frame 00001"),
    ],
)
def test_a_missing_file_is_named(davis2017, file, message, capsys):
    (davis2017 / file).unlink()
    with pytest.raises(FileNotFoundError, match=message) as error:
        data.open("davis2017", "validation", root=davis2017.parent)
    assert "DAVIS-2017-Unsupervised-trainval-480p.zip" in str(error.value)
    assert main(["data", "check", "davis2017", "--root", str(davis2017.parent)]) == 1
    assert f"missing: validation: {message}" in capsys.readouterr().out


def test_a_listed_sequence_that_is_not_there_is_an_error(davis2017):
    write_list(davis2017, "ImageSets/2017/val.txt", "zebra", "ape", "yak")
    with pytest.raises(FileNotFoundError, match=r"1 sequences of davis2017.*yak has no"):
        data.open("davis2017", "validation", root=davis2017.parent)


def test_a_set_that_is_not_there_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="the files of davis2017 are not on this machine"):
        data.open("davis2017", "validation", root=tmp_path)
    report = data.check("davis2017", tmp_path)
    assert report.missing == ("train: all 60 sequences", "validation: all 30 sequences")
    assert "davischallenge.org" in str(report)


def test_frames_without_any_sequence_of_the_split_are_told(tmp_path):
    write_sequence(tmp_path / "davis2016", "my-cat", [Image.new("L", (W, H))], year=2016)
    with pytest.raises(FileNotFoundError, match=r"list what is there in ImageSets/480p/val.txt"):
        data.open("davis2016", "validation", root=tmp_path)


def test_an_empty_list_is_told(davis2017):
    write_list(davis2017, "ImageSets/2017/val.txt")
    with pytest.raises(ValueError, match=r"val.txt lists no sequence"):
        data.open("davis2017", "validation", root=davis2017.parent)


@pytest.mark.parametrize("keep", [0, 20, 60])
def test_a_cut_off_mask_is_named(davis2017, keep):
    path = davis2017 / "Annotations_unsupervised/480p/mole/00001.png"
    path.write_bytes(path.read_bytes()[:keep])
    clips = data.open("davis2017", "train", root=davis2017.parent)
    with pytest.raises(OSError, match="is cut off or no picture") as error:
        clips[0]
    assert str(path) in str(error.value)


def test_a_mask_of_another_size_is_named(davis2017):
    path = davis2017 / "Annotations_unsupervised/480p/mole/00001.png"
    palette_picture(IDS[:2]).save(path)
    clips = data.open("davis2017", "train", root=davis2017.parent)
    with pytest.raises(ValueError, match="is 6 x 2 pixels, its frame 6 x 4 pixels") as error:
        clips[0]
    assert str(path) in str(error.value)
