"""A person's video through a small untrained model: every kind of input, streaming, files out."""

import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import maximum_filter, minimum_filter
from tiny import tiny

import slotmatch
from slotmatch import segmentation
from slotmatch.data.video import Show, read_frames, show_of, timed_frames
from slotmatch.metrics import label_maps
from slotmatch.model import VideoSlotModel, save
from slotmatch.palette import blend, slot_colors
from slotmatch.segmentation import segment, segment_blocks, write_masks, write_overlay

CONFIG = tiny("timm:test_vit", 64, n_heads=4, decoder_hidden=16, position_init="sincos")
HEIGHT, WIDTH = 32, 48

FIXED = 1 << 16
"""One, as MP4 writes numbers."""


@pytest.fixture(scope="module")
def model() -> VideoSlotModel:
    """Untrained, in double precision, with masks that differ from place to place."""
    model = VideoSlotModel(CONFIG, pretrained=False, seed=1)
    with torch.no_grad():
        for layer in model.decoder.layers:
            layer.weight.mul_(3)
    return model.double()


@pytest.fixture(scope="module")
def video() -> np.ndarray:
    """Seven smooth frames, uint8 (T,H,W,3), in which a square moves."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    frames = np.stack([np.stack([5 * rows, 3 * columns, 0 * rows + 90], -1)] * 7).astype(np.uint8)
    for t, frame in enumerate(frames):
        frame[8:20, 4 * t : 4 * t + 12] = (230, 40, 40)
    return frames


def write_video(path: Path, frames: np.ndarray, *, rate: int = 25, turned: bool = False) -> Path:
    """Lossless, so that what is read is what was written; to be shown turned left if asked."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=rate, options={"qp": "0"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "rgb24"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    if turned:  # the matrix in the track's header, as cameras write it: x to -y, y to x
        content = bytearray(path.read_bytes())
        matrix = content.index(b"tkhd") + 44
        content[matrix : matrix + 36] = struct.pack(">9i", 0, -FIXED, 0, FIXED, 0, 0, 0, 0, 1 << 30)
        path.write_bytes(content)
    return path


def write_images(folder: Path, frames: np.ndarray, pattern: str = "frame_{}.png") -> Path:
    folder.mkdir(exist_ok=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / pattern.format(number))
    return folder


def read_video(path: Path) -> np.ndarray:
    return np.stack([frame.permute(1, 2, 0).numpy() for frame in read_frames(path)])


# Segmenting


def test_labels_are_those_of_the_models_masks(model: VideoSlotModel, video: np.ndarray) -> None:
    labels = segment(video, model)
    clip = torch.from_numpy(video).permute(0, 3, 1, 2)[None].double() / 255
    with torch.inference_mode():
        masks = model(clip).masks[0]
    assert labels.shape == video.shape[:3]
    assert labels.dtype == np.uint8
    assert np.array_equal(labels, label_maps(masks, (HEIGHT, WIDTH)))
    assert len(np.unique(labels)) > 1


def test_attention_masks_come_without_running_the_decoder(
    model: VideoSlotModel, video: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = torch.from_numpy(video).permute(0, 3, 1, 2)[None].double() / 255
    with torch.inference_mode():
        attention = model(clip, decode=False).attention[0]
    decoded = segment(video, model)
    monkeypatch.setattr(type(model.decoder), "forward", None)
    labels = segment(video, model, masks="attention")
    assert np.array_equal(labels, label_maps(attention, (HEIGHT, WIDTH)))
    blocks = segment_blocks(video, model, chunk=3, masks="attention")
    assert np.array_equal(np.concatenate(list(blocks)), labels)
    assert not np.array_equal(labels, decoded)


@pytest.mark.parametrize(("n_slots", "dtype"), [(256, np.uint8), (257, np.int32)])
def test_labels_hold_every_slot(video: np.ndarray, n_slots: int, dtype: type) -> None:
    many = VideoSlotModel(replace(CONFIG, n_slots=n_slots), pretrained=False)
    assert segment(video[:1], many).dtype == dtype


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_any_chunk_gives_the_whole_video(
    model: VideoSlotModel, video: np.ndarray, chunk: int
) -> None:
    assert np.array_equal(segment(video, model, chunk=chunk), segment(video, model, chunk=100))


def test_every_kind_of_video_gives_the_same_labels(
    model: VideoSlotModel, video: np.ndarray, tmp_path: Path
) -> None:
    expected = segment(video, model)
    tensor = torch.from_numpy(video).permute(0, 3, 1, 2)
    kinds = [
        tensor,
        tensor.double() / 255,
        video[:, :, ::-1][:, :, ::-1],  # strides that torch does not take
        write_images(tmp_path / "frames", video),
        str(write_video(tmp_path / "video.mkv", video)),
    ]
    for kind in kinds:
        assert np.array_equal(segment(kind, model), expected)


def test_memory_does_not_grow_with_the_video(model: VideoSlotModel, video: np.ndarray) -> None:
    """Frames are read when their block is due, and blocks arrive while the rest is unread."""
    taken = 0

    class Endless(torch.Tensor):
        def __iter__(self) -> Iterator[torch.Tensor]:
            nonlocal taken
            frame = torch.from_numpy(video[0]).permute(2, 0, 1)
            while True:
                taken += 1
                yield frame

    endless = torch.zeros(1, 3, HEIGHT, WIDTH).as_subclass(Endless)
    blocks = segment_blocks(endless, model, chunk=2)
    for number in range(1, 4):
        assert next(blocks).shape == (2, HEIGHT, WIDTH)
        assert taken == 2 * number
    blocks.close()


def test_sampled_slots_follow_the_seed(video: np.ndarray) -> None:
    sampled = VideoSlotModel(replace(CONFIG, initial_slots="sampled"), pretrained=False, seed=1)
    before = torch.get_rng_state()
    one, same = (segment(video[:2], sampled, seed=seed) for seed in (0, 0))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(one, same)
    assert any(not np.array_equal(one, segment(video[:2], sampled, seed=s)) for s in (1, 2, 3))


def test_a_saved_model_serves_by_its_path(
    model: VideoSlotModel, video: np.ndarray, tmp_path: Path
) -> None:
    save(model, tmp_path / "m.safetensors", include_backbone=True)
    labels = segment(video[:2], tmp_path / "m.safetensors", device="cpu", progress=False)
    assert np.array_equal(labels, segment(video[:2], model))


def test_a_bar_is_shown_on_demand(
    model: VideoSlotModel, video: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    segment(video, model, chunk=4)
    assert capsys.readouterr().err == ""
    segment(video, model, chunk=4, progress=True)
    assert "7/7" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (np.zeros((0, 8, 8, 3), np.uint8), "no frames: give at least one"),
        (np.zeros((2, 8, 8), np.uint8), r"uint8 \(T,H,W,3\), got uint8 \(2, 8, 8\)"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"\(T,3,H,W\) go in as a tensor"),
        (np.zeros((2, 8, 8, 3)), "got float64"),
        (torch.zeros(2, 8, 8, 3), r"\(T,3,H,W\) of uint8 or of floats in \[0, 1\], got torch"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), r"got torch\.int64"),
        (torch.full((2, 3, 8, 8), 255.0), "frame 0 has values from 255 to 255.*divide by 255"),
        (torch.full((2, 3, 8, 8), float("nan")), "frame 0 has values from nan to nan"),
        (torch.zeros(2, 3, 0, 8), "frame 0 is 8 x 0 pixels"),
    ],
)
def test_videos_that_are_none_are_refused(
    model: VideoSlotModel, wrong: np.ndarray | torch.Tensor, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        segment(wrong, model)


def test_models_and_chunks_that_cannot_serve_are_refused(
    model: VideoSlotModel, video: np.ndarray
) -> None:
    blind = VideoSlotModel(tiny(decoder_layers=3, n_heads=4))
    with pytest.raises(ValueError, match="no backbone, so it cannot see a video"):
        segment(video, blind)
    with pytest.raises(ValueError, match="whole number of frames from 1 on, got 0"):
        segment(video, model, chunk=0)
    with pytest.raises(ValueError, match=r"one of \('decoder', 'attention'\), got 'both'"):
        segment(video, model, masks="both")
    with pytest.raises(FileNotFoundError, match="neither a file nor a model"):
        segment(video, "mini-professor")


# Reading


def test_frames_of_a_folder_come_in_natural_order(video: np.ndarray, tmp_path: Path) -> None:
    many = np.stack([np.full((2, 2, 3), 10 * t, np.uint8) for t in range(12)])
    folder = write_images(tmp_path / "frames", many)
    (folder / "notes.txt").write_text("not a frame")
    assert [int(frame.max()) for frame in read_frames(folder)] == [10 * t for t in range(12)]
    assert show_of(folder) == Show(12, 12.0)


def test_grey_and_transparent_images_become_rgb(tmp_path: Path) -> None:
    Image.new("L", (4, 2), 7).save(tmp_path / "0.png")
    Image.new("RGBA", (4, 2), (1, 2, 3, 4)).save(tmp_path / "1.png")
    frames = list(read_frames(tmp_path))
    assert [frame[:, 0, 0].tolist() for frame in frames] == [[7, 7, 7], [1, 2, 3]]
    assert frames[0].shape == (3, 2, 4)


def test_video_files_are_read_as_they_are_meant_to_be_seen(
    video: np.ndarray, tmp_path: Path
) -> None:
    plain = write_video(tmp_path / "plain.mp4", video, rate=25)
    assert np.array_equal(read_video(plain), video)
    assert show_of(plain) == Show(7, 25.0)
    turned = write_video(tmp_path / "turned.mp4", video, turned=True)
    assert np.array_equal(read_video(turned), np.rot90(video, axes=(1, 2)))


def test_what_is_missing_or_damaged_says_so(
    model: VideoSlotModel, video: np.ndarray, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match="no video file or folder of frames at"):
        segment(tmp_path / "nothing.mp4", model)
    with pytest.raises(FileNotFoundError, match=r"holds no frames: no file ends in \.png"):
        segment(tmp_path, model)
    cut = write_video(tmp_path / "cut.mp4", video)
    cut.write_bytes(cut.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"cut\.mp4 is damaged, cut short or no video"):
        segment(cut, model)
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(ValueError, match=r"text\.mp4 is damaged, cut short or no video"):
        segment(tmp_path / "text.mp4", model)


def test_damaged_and_unequal_images_say_which(video: np.ndarray, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "frames", video)
    Image.new("RGB", (5, 4)).save(folder / "frame_3.png")
    with pytest.raises(ValueError, match="frame 3 is 5 x 4 pixels and the first 48 x 32"):
        list(read_frames(folder))
    (folder / "frame_2.png").write_bytes((folder / "frame_1.png").read_bytes()[:60])
    with pytest.raises(ValueError, match=r"frame_2\.png is damaged or no image"):
        list(read_frames(folder))


# Writing


@pytest.fixture
def labels() -> np.ndarray:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([(rows // 8 + columns // (8 + t)) % 5 for t in range(7)]).astype(np.uint8)


def test_masks_come_back_from_an_archive(labels: np.ndarray, tmp_path: Path) -> None:
    path = write_masks(labels, tmp_path / "deep" / "masks.npz")
    assert np.array_equal(np.load(path)["labels"], labels)
    with pytest.raises(ValueError, match="no label maps"):
        write_masks([], tmp_path / "none.npz")
    assert not (tmp_path / "none.npz").exists()


def test_masks_come_back_from_palette_images(labels: np.ndarray, tmp_path: Path) -> None:
    folder = write_masks((frame for frame in labels), tmp_path / "masks")
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == [f"{t:05d}.png" for t in range(7)]
    images = [Image.open(file) for file in files]
    assert np.array_equal(np.stack([np.array(image) for image in images]), labels)
    colors = np.array(images[0].convert("RGB")) / 255
    assert np.allclose(colors, slot_colors(5)[labels[0]], atol=0.5 / 255)


def test_masks_do_not_overwrite_a_folder_nor_leave_half_of_one(
    labels: np.ndarray, tmp_path: Path
) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "precious.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="new or an empty folder"):
        write_masks(labels, taken)
    assert [file.name for file in taken.iterdir()] == ["precious.txt"]
    for wrong in (-1, 256):
        with pytest.raises(ValueError, match=rf"frame 1 has {wrong} to {wrong}: write a \.npz"):
            write_masks([labels[0], np.full((2, 2), wrong)], tmp_path / "half")
    with pytest.raises(ValueError, match=r"integers \(H,W\), got float64 \(2, 2\)"):
        write_masks([np.zeros((2, 2))], tmp_path / "half")
    with pytest.raises(ValueError, match=r"integers \(H,W\), got int64 \(0, 2\)"):
        write_masks(np.zeros((1, 0, 2), np.int64), tmp_path / "half")
    assert [entry.name for entry in tmp_path.iterdir()] == ["taken"]


def test_overlay_shows_each_slot_in_its_colour(
    video: np.ndarray, labels: np.ndarray, tmp_path: Path
) -> None:
    path = write_overlay(video, labels, tmp_path / "overlay.mp4", opacity=0.6)
    assert show_of(path) == Show(7, 12.0)
    seen = read_video(path).astype(int)
    painted = np.stack(
        [blend(frame, owner, opacity=0.6) for frame, owner in zip(video, labels, strict=True)]
    )
    # The format halves the resolution of colour, so compare away from the outlines, on average.
    around = (1, 7, 7)
    inside = maximum_filter(labels, around) == minimum_filter(labels, around)
    assert inside.mean() > 0.2
    assert np.abs(seen - painted)[inside].mean() < 8
    assert np.abs(seen - video).mean() > 30


def test_overlay_paints_floats_as_their_bytes(video: np.ndarray, labels: np.ndarray) -> None:
    floats = torch.from_numpy(video).permute(0, 3, 1, 2) / 255
    pictures = [picture for picture, _ in segmentation._painted(floats, labels, 0.0)]
    assert np.array_equal(pictures, video)


def test_overlay_keeps_the_files_rate_and_pads_odd_sizes(
    video: np.ndarray, labels: np.ndarray, tmp_path: Path
) -> None:
    source = write_video(tmp_path / "video.mkv", video, rate=25)
    assert show_of(write_overlay(source, labels, tmp_path / "o.mp4")).rate == 25
    slow = write_overlay(source, labels, tmp_path / "o.mp4", fps=7.5)
    assert show_of(slow) == Show(7, 7.5)
    odd = read_video(write_overlay(video[:, :, :-1], labels[:, :, :-1], tmp_path / "odd.mp4"))
    assert odd.shape == video.shape
    assert np.abs(odd[:, :, -1].astype(int) - odd[:, :, -2]).mean() < 20


def test_overlay_refuses_what_does_not_fit_and_leaves_nothing(
    video: np.ndarray, labels: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "overlay.mp4"
    with pytest.raises(ValueError, match="the label maps end after 5 frames, the other goes on"):
        write_overlay(video, labels[:5], path)
    with pytest.raises(ValueError, match="the video ends after 3 frames, the other goes on"):
        write_overlay(video[:3], labels, path)
    with pytest.raises(ValueError, match="to fit the frames"):
        write_overlay(video, labels[:, 1:], path)
    for fps in (0, -1, 1e-9, 1e9, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"fps must be from 0\.001 to 1000, got"):
            write_overlay(video, labels, path, fps=fps)
    for suffix in (".txt", ".gif", ".avi", ".m3u8", ""):  # AVI mixes times up, HLS is many files
        with pytest.raises(ValueError, match=r"names no format of overlays: end it in \.mp4, "):
            write_overlay(video, labels, path.with_suffix(suffix))
    wide = np.zeros((1, 1, 20_000), np.uint8)
    with pytest.raises(ValueError, match="at most 16384 pixels a side, the video 20000 x 1: cut"):
        write_overlay(np.stack([wide] * 3, -1), wide, path)
    with pytest.raises(ValueError, match="no frames"):
        write_overlay(video[:0], labels[:0], path)
    assert not any(tmp_path.iterdir())
    path.mkdir()
    with pytest.raises(IsADirectoryError, match=r"overlay\.mp4 is a folder"):
        write_overlay(video, iter(()), path)  # before a frame is read


def test_overlay_that_cannot_be_written_is_one_sentence(
    video: np.ndarray, labels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise av.error.ExternalError(1, "Generic error in an external library")

    monkeypatch.setattr(av.VideoFrame, "from_ndarray", full)
    with pytest.raises(ValueError, match=r"o\.mp4 could not be written: .*Generic error"):
        write_overlay(video, labels, tmp_path / "o.mp4")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("milliseconds", "expected"),
    [
        ([100, 0, 0, 0, 100], [0, 0.04, 0.08, 0.12, 0.12 + 1 / 90_000]),
        ([0, 100, 0, 100, 0], [0, 0.04, 0.08, 0.14, 0.18]),
        ([0.02, 0.02, 0.02, 0.02, 0.02], [t / 90_000 for t in range(5)]),
        ([10**7, 1, 0, 0, 0], [0, 10_000, 11_000, 12_000, 13_000]),
    ],
)
def test_overlay_takes_any_times(
    milliseconds: list[float], expected: list[float], tmp_path: Path
) -> None:
    """Missing ones follow at the file's rate, 0.001 at least; equal ones are a tick apart."""
    path = tmp_path / "a.png"
    first, *others = (Image.new("L", (16, 16), 40 * t) for t in range(5))
    first.save(path, save_all=True, append_images=others, duration=milliseconds)
    shown = write_overlay(path, np.zeros((5, 16, 16), np.uint8), tmp_path / "o.mp4")
    assert [float(time) for _, time in timed_frames(shown)] == pytest.approx(expected, abs=2e-5)


# The package's front door


def test_importing_the_package_is_light_and_segment_is_there() -> None:
    code = (
        "import sys, slotmatch; assert 'torch' not in sys.modules; "
        "assert 'segment' in dir(slotmatch); assert slotmatch.__version__[0].isdigit()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert slotmatch.segment is segment
    with pytest.raises(AttributeError, match="no attribute 'segmant'"):
        slotmatch.segmant  # noqa: B018
