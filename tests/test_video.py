"""Videos and pictures as people have them: which frames, in which order, and what pixels mean."""

import io
import struct
import warnings
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition
from PIL import Image, ImageCms

from slotmatch.data.pictures import natural_order, picture_files, rgb
from slotmatch.data.video import Show, read_frames, show_of, timed_frames
from slotmatch.segmentation import write_overlay

FIXED = 1 << 16
"""One, as MP4 writes numbers."""
CORNERS = np.full((64, 96, 3), 60, np.uint8)
CORNERS[:32, :48], CORNERS[:32, 48:], CORNERS[32:, :48] = (
    (220, 20, 20),
    (20, 200, 20),
    (20, 20, 220),
)


def write(path, frames, *, codec="libx264", times=None, rate=10, aspect=None, options=None):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels)
            if times:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def greys(n):
    return [np.full((64, 96, 3), 20 + 5 * t, np.uint8) for t in range(n)]


def numbers(video):
    """Which of ``greys`` each frame is."""
    return [round((float(frame.float().mean()) - 20) / 5) for frame in read_frames(video)]


# Order


@pytest.mark.parametrize(
    "names",
    [
        ["1.png", "2.png", "10.png"],
        ["frame_9.jpg", "frame_10.jpg", "frame_100.jpg"],
        ["IMG_1.jpg", "IMG_1 (1).jpg", "IMG_1 (2).jpg", "IMG_2.jpg"],
        ["0.png", "0.25.png", "0.5.png", "1.0.png", "10.5.png"],
        ["1403636579763555584.png", "1403636579763555585.png"],  # beyond the digits of a float
        ["99999.png", "100000.png", "100001.png"],
        ["Frame1.png", "frame2.png", "Frame10.png"],
        ["2.png", "a.png", "a1.png"],
    ],
)
def test_frames_come_in_natural_order(names):
    shuffled = [names[i] for i in np.random.default_rng(0).permutation(len(names))]
    assert [path.name for path in sorted(map(Path, shuffled), key=natural_order)] == names


def test_only_pictures_that_a_person_put_there_count(tmp_path):
    for t in range(3):
        Image.fromarray(CORNERS).save(tmp_path / f"{t}.jpg")
    for litter in ("._0.jpg", ".DS_Store", "Thumbs.db", "notes.txt", ".hidden.png"):
        (tmp_path / litter).write_bytes(b"\0\5\x16\7")
    assert [file.name for file in picture_files(tmp_path)] == ["0.jpg", "1.jpg", "2.jpg"]
    assert len(list(read_frames(tmp_path))) == 3
    Image.fromarray(CORNERS[..., 0]).save(tmp_path / "1.png")
    with pytest.raises(ValueError, match=r"holds 1\.jpg and 1\.png, which would be one frame"):
        list(read_frames(tmp_path))


# Which frames


def test_frames_may_come_one_by_one(tmp_path):
    paths = [tmp_path / f"{t}.png" for t in range(3)]
    for path, pixels in zip(paths, greys(3), strict=True):
        Image.fromarray(pixels).save(path)
    channels_first = [torch.from_numpy(pixels).permute(2, 0, 1) for pixels in greys(3)]
    for video in (greys(3), paths, [str(path) for path in paths], channels_first):
        assert numbers(video) == [0, 1, 2]
        assert show_of(video) == Show(3)
    assert numbers(frame for frame in greys(3)) == [0, 1, 2]
    assert show_of(iter(greys(3))).n_frames is None
    with pytest.raises(FileNotFoundError, match=r"no picture at .*9\.png"):
        numbers([tmp_path / "9.png"])
    with pytest.raises(ValueError, match=r"an array must be uint8 \(T,H,W,3\), got float64"):
        numbers([np.zeros((4, 4, 3))])
    with pytest.raises(TypeError, match="not int"):
        numbers(3)
    pictures = [Image.fromarray(pixels) for pixels in greys(2)]
    for items in (pictures, [None], greys(1)[0].tolist(), b"film.mp4", io.BytesIO(b"film")):
        with pytest.raises(TypeError, match="a frame is an array, a tensor or the path of a pic"):
            numbers(items)


@pytest.mark.parametrize("suffix", [".tif", ".webp", ".gif", ".png", ".avif"])
def test_several_pictures_in_one_file_are_a_video(suffix, tmp_path):
    first, *others = map(Image.fromarray, greys(4))
    path = tmp_path / f"several{suffix}"
    told = {} if suffix == ".tif" else {"duration": 100}
    told |= {"lossless": True} if suffix == ".webp" else {}
    first.save(path, save_all=True, append_images=others, **told)
    assert numbers(path) == [0, 1, 2, 3]
    times = [time for _, time in timed_frames(path)]
    if suffix == ".tif":
        assert times == [None] * 4
        assert show_of(path) == Show(4)
    else:
        assert times == [Fraction(t, 10) for t in range(4)]
        assert show_of(path) == Show(4, 10.0)


def test_cover_is_no_video(tmp_path):
    with av.open(str(tmp_path / "film.mp4"), "w") as container:
        film = container.add_stream("libx264", rate=10)
        film.width, film.height, film.pix_fmt = 96, 64, "yuv420p"
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 40, 40, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        for pixels in greys(5):
            container.mux(film.encode(av.VideoFrame.from_ndarray(pixels)))
        container.mux(film.encode())
        pixels = np.full((40, 40, 3), 90, np.uint8)
        container.mux(cover.encode(av.VideoFrame.from_ndarray(pixels)))
        container.mux(cover.encode())
    data = (tmp_path / "film.mp4").read_bytes()
    (tmp_path / "cover_first.mp4").write_bytes(with_tags_first(data))
    for name in ("film.mp4", "cover_first.mp4"):
        assert numbers(tmp_path / name) == [0, 1, 2, 3, 4]
    with av.open(str(tmp_path / "only.mp4"), "w") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 40, 40, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        sound = container.add_stream("aac", rate=44100)
        sound.codec_context.layout = "mono"
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        tone.sample_rate = 44100
        container.mux(sound.encode(tone))
        container.mux(sound.encode())
        container.mux(cover.encode(av.VideoFrame.from_ndarray(pixels)))
        container.mux(cover.encode())
    with pytest.raises(ValueError, match=r"only\.mp4 holds no video"):
        numbers(tmp_path / "only.mp4")


def with_tags_first(data):
    """An MP4 file with the tags before the tracks, as some programs write them."""

    def boxes(start, end):
        while start < end:
            size, kind = struct.unpack(">I4s", data[start : start + 8])
            yield kind, data[start : start + size]
            start += size

    out = b""
    start = 0
    for kind, box in list(boxes(0, len(data))):
        if kind == b"moov":
            inner = list(boxes(start + 8, start + len(box)))
            head, *rest = inner
            rest.sort(key=lambda one: one[0] != b"udta")
            box = box[:8] + head[1] + b"".join(part for _, part in rest)
        out += box
        start += len(box)
    return out


@pytest.mark.parametrize("name", ["notes.txt", "a.nfo", "a.ans"])
def test_text_is_no_film_of_a_terminal(name, tmp_path):
    """Which FFmpeg makes of it."""
    (tmp_path / name).write_text("Frames of today: 24 of 24 usable.\n" * 200)
    with pytest.raises(ValueError, match=rf"{name} holds no video"):
        numbers(tmp_path / name)


@pytest.mark.parametrize(("name", "codec"), [("a.mkv", "libx264"), ("a.webm", "libvpx-vp9")])
def test_file_that_ends_early_says_so(name, codec, tmp_path):
    rng = np.random.default_rng(0)
    noisy = [rng.integers(0, 256, (64, 96, 3)).astype(np.uint8) for _ in range(40)]
    path = write(tmp_path / name, noisy, codec=codec, options={"g": "10"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(read_frames(path))) == 40
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.warns(UserWarning, match=r"promises 4\.00 s and its \d+ frames end at"):
        assert 10 < len(list(read_frames(path))) < 30


def test_hidden_start_of_an_edited_file_is_no_loss(tmp_path):
    source = write(tmp_path / "source.mp4", greys(30), options={"g": "10", "bf": "2"})
    with (
        av.open(str(source)) as whole,
        av.open(
            str(tmp_path / "cut.mp4"), "w", container_options={"avoid_negative_ts": "disabled"}
        ) as cut,
    ):
        own = whole.streams.video[0]
        stream = cut.add_stream_from_template(own)
        shift = int(Fraction(3, 2) / own.time_base)
        for packet in whole.demux(video=0):
            if packet.dts is None or packet.pts < int(1 / own.time_base):
                continue
            packet.pts -= shift
            packet.dts -= shift
            packet.stream = stream
            cut.mux(packet)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(read_frames(tmp_path / "cut.mp4"))) == 15


def test_a_path_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("plain.mp4", greys(2))
    for name in ("concat:a|b.mp4", "http:x.mp4", "a%03d.mp4"):
        Path("plain.mp4").rename(name)
        assert numbers(name) == [0, 1]
        Path(name).rename("plain.mp4")


def test_overlay_keeps_times_and_pixel_aspect(tmp_path):
    times = [0, 33, 66, 100, 2300, 2333]
    path = write(tmp_path / "vfr.mp4", greys(6), times=times, rate=30, aspect=Fraction(4, 3))
    assert [round(1000 * time) for _, time in timed_frames(path)] == times
    assert show_of(path).pixel_aspect == Fraction(4, 3)
    labels = np.zeros((6, 64, 96), np.uint8)
    shown = write_overlay(path, labels, tmp_path / "overlay.mp4")
    assert [round(1000 * time) for _, time in timed_frames(shown)] == times
    assert show_of(shown).pixel_aspect == Fraction(4, 3)
    even = write_overlay(path, labels, tmp_path / "even.mp4", fps=10)
    assert [time for _, time in timed_frames(even)] == [Fraction(t, 10) for t in range(6)]


# What a pixel means


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_upright(orientation, tmp_path):
    """Stored so that what the tag says makes the corners of it again."""
    undo = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.transpose(1, 0, 2),
        6: lambda x: np.rot90(x, 1),
        7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
        8: lambda x: np.rot90(x, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    Image.fromarray(np.ascontiguousarray(undo(CORNERS))).save(path, exif=exif)
    (frame,) = read_frames(path)
    np.testing.assert_array_equal(frame.permute(1, 2, 0).numpy(), CORNERS)


TURNS = {
    "as it is": ((1, 0, 0, 1), lambda x: x),
    "right": ((0, 1, -1, 0), lambda x: np.rot90(x, -1)),
    "left": ((0, -1, 1, 0), lambda x: np.rot90(x, 1)),
    "half": ((-1, 0, 0, -1), lambda x: np.rot90(x, 2)),
    "mirrored": ((-1, 0, 0, 1), lambda x: x[:, ::-1]),
    "upside down": ((1, 0, 0, -1), lambda x: x[::-1]),
    "transposed": ((0, 1, 1, 0), lambda x: x.transpose(1, 0, 2)),
    "across": ((0, -1, -1, 0), lambda x: x[::-1, ::-1].transpose(1, 0, 2)),
}


@pytest.mark.parametrize("turn", TURNS)
def test_videos_are_upright(turn, tmp_path):
    """x of what is shown is a x + c y, and y is b x + d y."""
    (a, b, c, d), shown = TURNS[turn]
    path = write(tmp_path / "a.mp4", [CORNERS] * 2, options={"crf": "1"})
    data = path.read_bytes()
    start = data.index(b"tkhd") + 4 + 40
    matrix = [a * FIXED, b * FIXED, 0, c * FIXED, d * FIXED, 0, 0, 0, 1 << 30]
    path.write_bytes(data[:start] + struct.pack(">9i", *matrix) + data[start + 36 :])
    got = [frame.permute(1, 2, 0).numpy().astype(int) for frame in read_frames(path)]
    assert got[0].shape == shown(CORNERS).shape
    inner = np.abs(got[0] - shown(CORNERS)).mean(-1)
    assert np.median(inner) < 4
    assert inner[8, 8] < 6
    assert inner[-8, -8] < 6
    assert inner[8, -8] < 6


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_and_floats_are_scaled(suffix, tmp_path):
    ramp = np.linspace(0, 65535, 64 * 96).reshape(64, 96)
    Image.fromarray(ramp.astype(np.uint16)).save(tmp_path / f"0{suffix}")
    (frame,) = read_frames(tmp_path)
    np.testing.assert_allclose(frame[1].numpy(), ramp / 257, atol=0.51)
    values = (ramp / 65535).astype(np.float32)
    np.testing.assert_allclose(rgb(Image.fromarray(values))[..., 2], ramp / 257, atol=0.51)
    Image.fromarray(3 * values).save(tmp_path / "0.tiff")
    with pytest.raises(ValueError, match=r"0\.tiff is damaged .* values from 0 to 3 where 0 to 1"):
        list(read_frames(tmp_path / "0.tiff"))


def test_profiles_are_converted_to_srgb(tmp_path):
    plain = Image.fromarray(CORNERS)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    plain.save(tmp_path / "srgb.png", icc_profile=srgb)
    np.testing.assert_array_equal(
        next(read_frames(tmp_path / "srgb.png")).permute(1, 2, 0), CORNERS
    )
    lab = ImageCms.createProfile("LAB")
    as_lab = ImageCms.profileToProfile(plain, ImageCms.createProfile("sRGB"), lab, outputMode="LAB")
    as_lab.save(tmp_path / "lab.tif", icc_profile=ImageCms.ImageCmsProfile(lab).tobytes())
    (back,) = read_frames(tmp_path / "lab.tif")
    np.testing.assert_allclose(back.permute(1, 2, 0), CORNERS, atol=6)
    plain.save(tmp_path / "broken.png", icc_profile=b"no profile")
    with pytest.raises(ValueError, match=r"broken\.png is damaged"):
        list(read_frames(tmp_path / "broken.png"))


def flat(
    path,
    luma,
    *,
    transfer,
    primaries,
    matrix,
    size=(64, 96),
    codec="libx265",
    ten_bit=True,
    chroma=(0.0, 0.0),
):
    """A frame of one colour, luma in [0, 1], in a Matroska file that says what it means."""
    height, width = size
    kind = "yuv420p10le" if ten_bit else "yuv420p"
    scale, dtype = (4, np.uint16) if ten_bit else (1, np.uint8)
    frame = av.VideoFrame(width, height, kind)
    frame.colorspace, frame.color_range = matrix, 1
    planes = [(16 + 219 * luma, size)] + [
        (128 + 224 * c, (height // 2, width // 2)) for c in chroma
    ]
    for plane, (value, shape) in zip(frame.planes, planes, strict=True):
        buffer = np.zeros((shape[0], plane.line_size // dtype().itemsize), dtype)
        buffer[:, : shape[1]] = round(scale * value)
        plane.update(buffer.tobytes())
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, kind
        stream.options = {"crf": "1", "x265-params": "log-level=none:pools=1"}
        context = stream.codec_context
        context.colorspace, context.color_primaries = matrix, primaries
        context.color_trc, context.color_range = transfer, 1
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    (got,) = read_frames(path)
    return got[:, height // 2, width // 2].tolist()


@pytest.mark.parametrize(
    ("transfer", "luma", "expected"),
    [
        (16, 0.0, 0),
        (16, 0.5807, 255),  # PQ of 203 cd/m2, the white of graphics in ITU-R BT.2408
        (18, 0.75, 255),  # HLG's
        (16, 0.4279, 128),  # PQ of 0.2159 times as much, which is sRGB's middle
        (16, 1.0, 255),
    ],
)
def test_high_dynamic_range_is_shown_as_srgb(transfer, luma, expected, tmp_path):
    got = flat(tmp_path / "a.mkv", luma, transfer=transfer, primaries=9, matrix=9)
    assert got == pytest.approx([expected] * 3, abs=3)


def test_wide_gamut_is_shown_as_srgb(tmp_path):
    """Numbers of Display P3 are stronger colours than in sRGB: about those by its matrix."""
    own = {"transfer": 1, "primaries": 12, "matrix": 1}
    assert flat(tmp_path / "grey.mkv", 0.5, **own) == pytest.approx([127] * 3, abs=2)
    skin = {"luma": 0.5287, "chroma": (-0.0947, 0.1621)}
    plain = flat(tmp_path / "a.mkv", **skin, transfer=1, primaries=1, matrix=1)
    assert plain == pytest.approx([200, 120, 90], abs=3)
    assert flat(tmp_path / "b.mkv", **skin, **own) == pytest.approx([213, 115, 82], abs=9)


@pytest.mark.parametrize(("size", "tagged"), [((64, 96), 5), ((720, 96), 1)])
def test_untagged_colours_follow_the_size(size, tagged, tmp_path):
    red = {"luma": 0.3, "chroma": (-0.1, 0.35), "transfer": 2, "primaries": 2, "size": size}
    red |= {"codec": "libx264", "ten_bit": False}
    untagged = flat(tmp_path / "a.mkv", **red, matrix=2)
    assert untagged == pytest.approx(flat(tmp_path / "b.mkv", **red, matrix=tagged), abs=1)
    other = flat(tmp_path / "c.mkv", **red, matrix=6 if tagged == 1 else 1)
    assert max(abs(a - b) for a, b in zip(untagged, other, strict=True)) > 5


def test_pictures_beyond_measure_are_refused(tmp_path, monkeypatch):
    buffer = io.BytesIO()
    Image.fromarray(CORNERS).save(buffer, "PNG")
    (tmp_path / "0.png").write_bytes(buffer.getvalue())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"0\.png is far too large for a frame"):
        list(read_frames(tmp_path))
