import os
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
from matplotlib.colors import rgb_to_hsv
from scipy.ndimage import binary_dilation, binary_erosion

from slotmatch import data
from slotmatch.data.minimovi import NAMES, MiniMovi, render

N_OBJECTS = {
    "minimovi_a": (3, 8),
    "minimovi_c": (3, 8),
    "minimovi_d": (6, 12),
    "minimovi_e": (6, 12),
}
N_VIDEOS = 2  # of each set, for the look at the scenes


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with the first two test videos of minimovi_a."""
    folder = tmp_path_factory.mktemp("data")
    MiniMovi("minimovi_a", "test", n_videos=2, root=folder)
    return folder


@pytest.fixture
def copied_root(root, tmp_path):
    """The same, free to be damaged."""
    return shutil.copytree(root, tmp_path / "data")


@pytest.fixture(scope="module")
def scenes():
    """Videos and labels of the first training videos, by name."""
    return {name: [render(name, "train", i) for i in range(N_VIDEOS)] for name in NAMES}


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.npz")}


def tracks(labels):
    """Centres (t, n, 2) of the objects in pixels; nan where fewer than 60 pixels are seen."""
    rows, columns = np.indices(labels.shape[1:])
    centres = np.full((len(labels), labels.max(), 2), np.nan)
    for t, frame in enumerate(labels):
        for k in range(labels.max()):
            mask = frame == k + 1
            if mask.sum() >= 60:
                centres[t, k] = rows[mask].mean(), columns[mask].mean()
    return centres


def speeds(labels):
    """Pixels from each frame to the next (t - 1, n)."""
    return np.linalg.norm(np.diff(tracks(labels), axis=0), axis=-1)


def check_ids_against_colors(video, labels):
    """Plain objects have one hue each and the floor is nearly grey, so colours tell ids."""
    hsv = rgb_to_hsv(video / 255)
    window = np.ones((1, 3, 3))
    for k in range(1, labels.max() + 1):
        inside = binary_erosion(labels == k, window) & (hsv[..., 1] > 0.3)
        hues = np.exp(2j * np.pi * hsv[inside, 0])
        # Over all frames together: an object that hid another's id or took it would stand out.
        deviation = np.degrees(np.abs(np.angle(hues / hues.mean())))
        assert inside.sum() > 24 * 30
        assert (deviation < 20).mean() > 0.99
    outside = ~binary_dilation(labels > 0, np.ones((1, 5, 5)))
    assert (hsv[outside, 1] < 0.35).mean() > 0.999


def test_a_clip_is_a_video_with_its_labels(root):
    clips = data.open("minimovi_a", "test", n_videos=2, root=root)
    assert len(clips) == 2
    assert [clip.id for clip in clips] == ["minimovi_a/test/00000", "minimovi_a/test/00001"]
    for clip in clips:
        assert (clip.video.shape, clip.video.dtype) == ((24, 128, 128, 3), np.uint8)
        assert (clip.labels.shape, clip.labels.dtype) == ((24, 128, 128), np.int32)
        assert 3 <= clip.labels.max() <= 8
        assert len(np.unique(clip.labels)) == clip.labels.max() + 1
        assert 0.1 < (clip.labels > 0).mean() < 0.6
        check_ids_against_colors(clip.video, clip.labels)
    assert (clips[0].video != clips[1].video).any()


def test_what_is_not_simulated_is_refused():
    with pytest.raises(ValueError, match="'movi_c' is not simulated; choose from minimovi_a, "):
        render("movi_c", "test", 0)


def test_clips_are_a_sequence(root):
    clips = data.open("minimovi_a", "test", n_videos=2, root=root)
    np.testing.assert_array_equal(clips[-1].video, clips[1].video)
    assert [clip.id for clip in clips[::-1]] == list(clips.ids[::-1])
    assert clips[np.int64(1)].id == clips.ids[1]
    with pytest.raises(IndexError):
        clips[2]


def test_the_data_folder_comes_from_the_environment(root, monkeypatch):
    monkeypatch.setenv("SLOTMATCH_DATA", str(root))
    before = files(root)
    assert len(data.open("minimovi_a", "test", n_videos=1)) == 1
    assert files(root) == before


def test_files_are_read_when_asked_for_and_rendered_again_when_damaged(copied_root, capfd):
    intact = files(copied_root)
    first = min(copied_root.rglob("*.npz"))
    first.write_bytes(first.read_bytes()[:5000])  # half a file
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clips = data.open("minimovi_a", "test", n_videos=2, root=copied_root)
        clips[1]
    with pytest.warns(UserWarning, match=r"00000\.npz is damaged .*; rendering it again"):
        clips[0]
    assert files(copied_root) == intact
    assert capfd.readouterr().out == ""  # a notebook's output may go there


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"", b"not an archive", "wrong key", "broken data"])
def test_every_kind_of_damage_is_repaired(copied_root, content):
    intact = files(copied_root)
    path = min(copied_root.rglob("*.npz"))
    if content == "wrong key":
        np.savez(path, pictures=np.zeros(3))
    elif content == "broken data":
        middle = len(intact[path.relative_to(copied_root)]) // 2
        damaged = bytearray(path.read_bytes())
        damaged[middle : middle + 50] = bytes(50)
        path.write_bytes(damaged)
    else:
        path.write_bytes(content)
    clips = data.open("minimovi_a", "test", n_videos=2, root=copied_root)
    with pytest.warns(UserWarning, match="damaged"):
        clips[0]
    assert files(copied_root) == intact


@pytest.mark.slow
def test_a_stopped_run_is_resumed(copied_root):
    intact = files(copied_root)
    first, second = sorted(copied_root.rglob("*.npz"))
    first.unlink()
    unfinished = first.parent / ".writing-1" / first.name
    unfinished.parent.mkdir()
    unfinished.write_bytes(b"half")
    kept = second.stat().st_mtime_ns
    data.open("minimovi_a", "test", n_videos=2, root=copied_root)
    assert first.read_bytes() == intact[first.relative_to(copied_root)]
    assert second.stat().st_mtime_ns == kept


RUN = """
import os, sys
from slotmatch.data.minimovi import MiniMovi
if __name__ == "__main__":
    root, n_cores, *sizes = sys.argv[1:]
    os.cpu_count = lambda: int(n_cores)
    for n in sizes:
        MiniMovi("minimovi_e", "validation", n_videos=int(n), root=root)
"""


@pytest.mark.slow
def test_two_runs_write_the_same_bytes_whatever_was_asked_for_before(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(RUN)
    # Each video by a process of its own, against all by one; other hash seeds.
    for folder, n_cores, *sizes in (("one", "2", "1", "2"), ("two", "1", "2")):
        subprocess.run(
            [sys.executable, script, tmp_path / folder, n_cores, *sizes],
            env={**os.environ, "PYTHONHASHSEED": n_cores},
            check=True,
        )
    first, second = files(tmp_path / "one"), files(tmp_path / "two")
    assert len(first) == 2
    assert first == second
    assert len(set(first.values())) == 2


@pytest.mark.slow
def test_splits_hold_different_videos(scenes):
    video, _ = render("minimovi_a", "validation", 0)
    assert (video != scenes["minimovi_a"][0][0]).any()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_number_of_objects(name, scenes):
    fewest, most = N_OBJECTS[name]
    for _, labels in scenes[name]:
        ids = np.unique(labels)
        assert fewest <= ids[-1] <= most
        np.testing.assert_array_equal(ids, np.arange(len(ids)))


@pytest.mark.slow
def test_ids_are_right_under_occlusion(scenes):
    for video, labels in scenes["minimovi_a"]:
        check_ids_against_colors(video, labels)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_objects_are_large_and_stay_in_view(name, scenes):
    for _, labels in scenes[name]:
        pixels = (labels[..., None] == np.arange(1, labels.max() + 1)).sum((1, 2))
        # A small object may rest behind a large one for most of a video, but not all of them.
        assert (pixels >= 20).mean() > 0.85
        assert (pixels >= 20).any(0).all()
        assert (pixels[-1] >= 20).mean() > 0.8
        assert np.median(pixels) > 150
        assert 0.15 < (labels > 0).mean() < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_objects_move_a_few_pixels_from_frame_to_frame(name, scenes):
    steps = np.concatenate([speeds(labels).ravel() for _, labels in scenes[name]])
    steps = steps[np.isfinite(steps)]
    moving = steps[steps > 0.3]
    assert len(moving) > 0.2 * len(steps)
    assert 0.5 < np.median(moving) < 4
    assert np.percentile(moving, 95) < 10


@pytest.mark.slow
def test_all_objects_are_tossed_in_c_and_few_in_d(scenes):
    first = {
        name: np.concatenate([speeds(labels)[0] for _, labels in scenes[name]])
        for name in ("minimovi_c", "minimovi_d")
    }
    assert np.nanmean(first["minimovi_c"] > 0.5) > 0.8
    assert np.nanmean(first["minimovi_d"] > 0.5) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_camera_moves_in_e_alone(name, scenes):
    for video, labels in scenes[name]:
        floor = (labels[0] == 0) & (labels[-1] == 0)
        change = np.abs(video[0].astype(int) - video[-1])[floor].max(-1)
        # The median does not see the shadows, which move in every set.
        if name == "minimovi_e":
            assert np.median(change) > 3
        else:
            assert np.median(change) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_no_object_is_black(name, scenes):
    for video, labels in scenes[name]:
        for k in range(1, labels.max() + 1):
            brightest_channel = video[labels == k].max(-1)
            assert np.median(brightest_channel) > 35
