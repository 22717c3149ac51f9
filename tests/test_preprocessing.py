from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from slotmatch.backbones import resize_frames
from slotmatch.data import NAMES, Clip
from slotmatch.data.preprocessing import (
    PREPROCESSING,
    Preprocessing,
    centre_offset,
    clip_starts,
    float_frames,
)

MEAN, STD = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])  # ImageNet's, of R, G and B


def clip_of(video: np.ndarray, labels: np.ndarray | None = None) -> Clip:
    labels = np.zeros(video.shape[:3], np.int32) if labels is None else labels
    return Clip(video, labels, "made/0")


def noise(n_frames: int, height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (n_frames, height, width, 3), np.uint8)


def places(n_frames: int, height: int, width: int) -> np.ndarray:
    """A video whose red is the row and whose green is the column of each pixel."""
    video = np.zeros((n_frames, height, width, 3), np.uint8)
    video[..., 0] = np.arange(height)[:, None]
    video[..., 1] = np.arange(width)
    return video


def evaluated(prepare: Preprocessing, clip: Clip) -> Clip:
    """A clip as it is scored: cut, then its frames resized to floats (T,S,S,3) in [0, 1]."""
    clip = prepare.crop(clip)
    if prepare.size is None:
        return clip
    frames = prepare.resize(float_frames(clip.video.copy()))
    return replace(clip, video=frames.permute(0, 2, 3, 1).numpy())


def test_pixels_become_frames_in_floats():
    pixels = np.array([[[0, 51, 255], [102, 0, 0]]], np.uint8)
    expected = [[[0.0, 0.4]], [[0.2, 0.0]], [[1.0, 0.0]]]
    np.testing.assert_allclose(float_frames(pixels), expected, rtol=1e-6)
    assert float_frames(torch.from_numpy(pixels)[None, None]).shape == (1, 1, 3, 1, 2)


def test_clips_start_where_the_reference_cuts_them(oracles):
    for length, expected in zip(
        oracles["data.chunks4.lengths"], oracles["data.chunks4.frames"], strict=True
    ):
        clips = [list(range(s, s + 4)) for s in clip_starts(int(length), 4, aligned=True)]
        assert clips == [row.tolist() for row in expected if row[0] >= 0]


@pytest.mark.parametrize(
    ("n_frames", "aligned", "starts"),
    [
        (11, True, [0, 4]),
        (11, False, [0, 1, 2, 3, 4, 5, 6, 7]),
        (4, True, [0]),
        (4, False, [0]),
        (3, True, []),
        (3, False, []),
    ],
)
def test_clip_starts(n_frames, aligned, starts):
    assert list(clip_starts(n_frames, 4, aligned=aligned)) == starts


def test_clips_need_a_length():
    with pytest.raises(ValueError, match="length 1 or more, got 5 and 0"):
        clip_starts(5, 0, aligned=True)


def test_centre_crops_start_where_the_reference_has_them(oracles):
    for size, offset in oracles["data.center_crop_offsets"]:
        assert centre_offset(int(size), 6) == offset
    # 0.5 and 2.5 go down, 1.5 and 3.5 go up
    assert [centre_offset(6 + odd, 6) for odd in (1, 3, 5, 7)] == [0, 2, 2, 4]


def test_evaluation_of_movi_is_the_references(oracles):
    clip = clip_of(oracles["data.video"], oracles["data.movi_labels"][..., 0].astype(np.int32))
    found = evaluated(replace(PREPROCESSING["movi_e"], size=16), clip)
    expected = oracles["data.movi_val.video_16"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose((found.video - MEAN) / STD, expected, atol=1e-5)
    np.testing.assert_array_equal(found.labels, oracles["data.movi_val.segmentations_16"].argmax(1))
    assert (found.video.dtype, found.labels.dtype) == (np.float32, np.int32)
    assert found.id == "made/0"


def test_labels_take_the_nearest_pixel_and_keep_their_numbers():
    labels = np.array([[[1, 70_000, 3], [-4, 5, 6]]], np.int32)
    found = evaluated(Preprocessing(4), clip_of(noise(1, 2, 3), labels)).labels
    # the centres of 4 pixels lie at 3/8, 9/8, 15/8, 21/8 of 3 columns, and at 1/4 ... of 2 rows
    row, other = [1, 70_000, 70_000, 3], [-4, 5, 5, 6]
    assert found.tolist() == [[row, row, other, other]]


def test_evaluation_cuts_the_middle_before_it_resizes():
    video, labels = places(2, 6, 11), np.zeros((2, 6, 11), np.int32)
    labels[:, :, 1] = 8  # outside the square of columns 2 to 7
    labels[:, 2, 2] = 9
    clip = clip_of(video, labels)
    whole = evaluated(Preprocessing(6, "crop"), clip)
    np.testing.assert_allclose(whole.video * 255, video[:, :, 2:8], atol=1e-4)
    assert np.unique(whole.labels).tolist() == [0, 9]
    assert whole.labels[0, 2, 0] == 9
    large = evaluated(Preprocessing(12, "crop"), clip)
    square = torch.from_numpy(video[:, :, 2:8]).permute(0, 3, 1, 2) / 255
    expected = F.interpolate(square, (12, 12), mode="bicubic").clamp(0, 1).permute(0, 2, 3, 1)
    np.testing.assert_allclose(large.video, expected, atol=1e-6)
    tall = evaluated(Preprocessing(6, "crop"), clip_of(places(1, 11, 6)))
    np.testing.assert_allclose(tall.video[0, :, 0, 0] * 255, np.arange(2, 8), atol=1e-4)


def test_frames_cut_first_and_resized_later_are_the_same():
    prepare = Preprocessing(9, "crop", label_size=5)
    clip = clip_of(noise(2, 6, 11))
    cut, whole = prepare.crop(clip), evaluated(prepare, clip)
    assert (cut.video.dtype, cut.video.shape) == (np.uint8, (2, 6, 6, 3))
    assert cut.labels.shape == whole.labels.shape == (2, 5, 5)
    late = prepare.resize(torch.from_numpy(cut.video).permute(0, 3, 1, 2) / 255)
    np.testing.assert_array_equal(late.permute(0, 2, 3, 1), whole.video)


def test_resizing_is_the_backbones_unless_asked_otherwise():
    frames = torch.rand(2, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Preprocessing(8).resize(frames), resize_frames(frames, 8))
    assert Preprocessing(None).resize(frames) is frames
    stripes = torch.tensor([0.0, 1, 1, 0]).repeat(1, 3, 8, 4)
    rough = Preprocessing(4, interpolation="bilinear").resize(stripes)
    assert (rough == 1).all()  # the two pixels at each centre, whatever is around
    smooth = Preprocessing(4, interpolation="bilinear", antialias=True).resize(stripes)
    # eighths 1 3 5 7 7 5 3 1 of the pixels 1 0 0 1 1 0 0 1 around a centre: 16 of 32
    torch.testing.assert_close(smooth[..., 1:3], torch.full((1, 3, 4, 2), 0.5))


def test_training_draws_one_square_for_the_whole_clip():
    prepare = Preprocessing(6, "crop")
    corners = set()
    for seed in range(40):
        frames = prepare.train(places(3, 6, 9), np.random.default_rng(seed)) * 255
        assert (frames.shape, frames.dtype) == ((3, 3, 6, 6), torch.float32)
        torch.testing.assert_close(frames, frames[:1].expand(3, -1, -1, -1))
        left = round(frames[0, 1, 0, 0].item())
        torch.testing.assert_close(frames[0, 1, 0], torch.arange(left, left + 6.0))
        corners.add(left)
    assert corners == {0, 1, 2, 3}


def test_training_gives_the_short_side_its_size_and_rounds_the_long_one_down():
    # 4 x 7 becomes 6 x 10 (10.5 rounded down), of which 6 columns are drawn
    video = noise(1, 4, 7)
    large = F.interpolate(
        torch.from_numpy(video).permute(0, 3, 1, 2) / 255, (6, 10), mode="bicubic"
    ).clamp(0, 1)
    found = Preprocessing(6, "crop").train(video, np.random.default_rng(3))
    squares = [large[..., left : left + 6] for left in range(5)]
    assert sum(torch.equal(found, square) for square in squares) == 1
    tall = Preprocessing(6, "crop").train(np.moveaxis(video, 1, 2), np.random.default_rng(3))
    assert tall.shape == (1, 3, 6, 6)


def test_pixels_that_the_square_does_not_depend_on_are_cut_off():
    # nothing is resized, so four pixels on either side of the square's 6 columns stay
    lefts = set()
    for seed in range(40):
        frames, cut = Preprocessing(6, "crop").cut(places(1, 6, 15), np.random.default_rng(seed))
        left = cut.corner[1]
        kept = np.arange(max(left - 4, 0), min(left + 10, 15))
        assert frames[0, 0, :, 1].tolist() == kept.tolist()
        assert cut.left_out == (kept[0], 14 - kept[-1], 0, 0)
        lefts.add(left)
    assert lefts == {*range(10)}


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("antialias", [False, True])
def test_a_cut_clip_is_resized_as_whole_frames_are(interpolation, antialias):
    rng, smaller = np.random.default_rng(0), 0
    for seed in range(100):
        height, width, size = (int(n) for n in rng.integers(1, 60, 3))
        video = noise(2, height, width * (1 + seed % 4))
        prepare = Preprocessing(size, "crop", interpolation=interpolation, antialias=antialias)
        frames, cut = prepare.cut(video, np.random.default_rng(seed))
        short, (top, left) = min(video.shape[1:3]), cut.corner
        whole = F.interpolate(
            torch.from_numpy(video).permute(0, 3, 1, 2) / 255,
            [size if n == short else int(n / short * size) for n in video.shape[1:3]],
            mode=interpolation,
            antialias=antialias,
        ).clamp(0, 1)
        expected = whole[..., top : top + size, left : left + size]
        found = prepare.finish(torch.from_numpy(frames.copy()), cut)
        assert torch.equal(found, expected)
        smaller += frames.size < video.size
    assert smaller > 40


def test_a_clip_is_mirrored_as_a_whole():
    prepare = Preprocessing(4, flip_probability=0.5)
    video = noise(5, 4, 4)
    frames = torch.from_numpy(video).permute(0, 3, 1, 2) / 255
    mirrored = 0
    for seed in range(200):
        found = prepare.train(video, np.random.default_rng(seed))
        is_mirrored = torch.equal(found, frames.flip(-1))
        assert is_mirrored or torch.equal(found, frames)
        mirrored += is_mirrored
    assert 70 <= mirrored <= 130  # 100 with a deviation of 7
    again = [prepare.train(video, np.random.default_rng(7)) for _ in range(2)]
    assert torch.equal(*again)


def test_frames_can_be_shrunk_by_nearest_pixels_first():
    prepare = Preprocessing(None, shrink=2)
    video = places(1, 4, 7)
    found = prepare.crop(clip_of(video, video[..., 1].astype(np.int32)))
    # rows 1 and 3 of 4; columns at 7/6, 21/6 and 35/6 of 7
    assert found.video[0, :, 0, 0].tolist() == [1, 3]
    assert found.labels[0, 0].tolist() == found.video[0, 0, :, 1].tolist() == [1, 3, 5]
    assert prepare.train(video, np.random.default_rng(0)).shape == (1, 3, 2, 3)
    small = clip_of(places(1, 2, 3))
    assert prepare.crop(small).video is small.video


def test_every_data_set_has_its_preprocessing():
    assert PREPROCESSING.keys() >= set(NAMES)
    assert (PREPROCESSING["movi_c"].size, PREPROCESSING["ytvis2021"].size) == (336, 518)
    assert PREPROCESSING["movi_c"].flip_probability == 0.5
    assert PREPROCESSING["ytvis2021"].flip_probability == 0
    assert PREPROCESSING["davis2017"] == PREPROCESSING["ovis"] == PREPROCESSING["ytvis2021"]


def test_embedded_clips_stay_what_they_are():
    clip = clip_of(noise(2, 5, 5))
    found = evaluated(PREPROCESSING["minimovi_a"], clip)
    assert found.video is clip.video
    assert found.labels is clip.labels
    frames = PREPROCESSING["minimovi_a"].train(clip.video, np.random.default_rng(0))
    assert torch.equal(frames, torch.from_numpy(clip.video).permute(0, 3, 1, 2).float() / 255)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 0}, "size must be a whole number of 1 or more or None, got 0"),
        ({"size": 8, "square": "pad"}, "square must be one of .*'crop'.*got 'pad'"),
        ({"size": 8, "interpolation": "nearest"}, "interpolation must be one of .*got 'nearest'"),
        (
            {"size": 8, "flip_probability": 1.5},
            "flip_probability must be a number from 0 to 1, got 1.5",
        ),
        ({"size": 8, "shrink": 2.5}, "shrink must be a whole number"),
        ({"size": None, "square": "crop"}, "need a size"),
        ({"size": None, "label_size": 8}, "need a size"),
    ],
)
def test_choices_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing(**fields)


def test_videos_and_labels_that_do_not_fit_are_refused():
    prepare = Preprocessing(4)
    with pytest.raises(ValueError, match=r"uint8 \(T,H,W,3\).*float64 \(2, 4, 4, 3\)"):
        prepare.train(np.zeros((2, 4, 4, 3)), np.random.default_rng(0))
    with pytest.raises(ValueError, match="with a frame or more"):
        evaluated(prepare, clip_of(noise(0, 4, 4)))
    with pytest.raises(ValueError, match=r"made/0 has labels \(1, 4, 4\) for a video"):
        evaluated(prepare, clip_of(noise(2, 4, 4), np.zeros((1, 4, 4), np.int32)))
