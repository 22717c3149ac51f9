"""Every reader, fed thousands of damaged files: the right content or one sentence, soon.

Real files are cut, flipped, blanked, doubled and stuffed at places that hypothesis chooses, the
same ones in every run. What is read may differ from the whole file where the format has no
checksum; what may not happen is another kind of error, a crash, a hang, or a file left behind.
"""

import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from movi_files import write_movi
from PIL import Image
from tiny import result, tiny

from slotmatch import data
from slotmatch.data import Clip
from slotmatch.data.davis import read_ids
from slotmatch.data.video import read_frames
from slotmatch.data.ytvis import read_annotations
from slotmatch.model import VideoSlotModel, load, save, slotcontrast
from slotmatch.reporting.results import read_results
from slotmatch.tensors import read_tensors
from slotmatch.training import checkpoint

EXAMPLES = 500
SECONDS = 5
LONGEST = 800
"""Characters of a message."""
EXPECTED = (ValueError, OSError)
THOROUGH = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

pytestmark = pytest.mark.slow


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """A file with one to three of its places damaged, most of them near its start."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        near = draw(st.booleans())
        last = min(len(content), 256) if near else len(content)
        place = draw(st.integers(0, max(last - 1, 0)))
        length = draw(st.integers(1, 64))
        kind = draw(st.sampled_from(["cut", "flip", "blank", "double", "stuff", "number"]))
        if kind == "cut":
            del content[place:]
        elif kind == "flip" and content:
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "blank":
            content[place : place + length] = bytes(len(content[place : place + length]))
        elif kind == "double":
            content[place:place] = content[place : place + length]
        elif kind == "stuff":
            content[place:place] = draw(st.binary(min_size=1, max_size=64))
        elif kind == "number":
            width = draw(st.sampled_from([1, 2, 4, 8]))
            value = draw(st.sampled_from([0, 1, 2 ** (8 * width - 1), 2 ** (8 * width) - 1]))
            content[place : place + width] = value.to_bytes(
                width, draw(st.sampled_from(["big", "little"]))
            )
    return bytes(content)


def noise(n_frames: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n_frames, 16, 16, 3), np.uint8)


def a_video(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.width = stream.height = 32
        for picture in np.kron(noise(6), np.ones((1, 2, 2, 1), np.uint8)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def a_picture(path: Path) -> None:
    Image.fromarray(noise(1)[0]).save(path)


def an_animation(path: Path) -> None:
    first, *rest = (Image.fromarray(frame) for frame in noise())
    first.save(path, save_all=True, append_images=rest)


def ids(path: Path) -> None:
    picture = Image.fromarray((noise(1)[0, ..., 0] % 4).astype(np.uint8), mode="P")
    picture.putpalette(list(range(256)) * 3)
    picture.save(path)


def annotations(path: Path) -> None:
    polygon = [0.0, 0.0, 4.0, 0.0, 4.0, 3.0]
    content = {
        "info": {},
        "videos": [
            {"id": 1, "file_names": ["v/0.jpg", "v/1.jpg"], "height": 6, "width": 8, "length": 2}
        ],
        "categories": [],
        "annotations": [
            {"id": 1, "video_id": 1, "category_id": 1, "iscrowd": 0, "segmentations": own}
            for own in ([{"size": [6, 8], "counts": [0, 6, 42]}, None], [[polygon], [polygon]])
        ],
    }
    path.write_text(json.dumps(content))


def model(path: Path) -> None:
    save(VideoSlotModel(tiny(), seed=0), path)


def a_checkpoint(path: Path) -> None:
    weights = {"weight": torch.ones(3, 4)}
    checkpoint.write(path, checkpoint.Checkpoint({"a": 1}, 5, [{"step": 5.0}], weights, {}, None))


def released(path: Path) -> None:
    torch.save({"state_dict": {"weight": torch.ones(3, 4)}, "epoch": 3}, path)


def a_result(path: Path) -> None:
    entry = {"metrics": {"video_fg_ari": [0.5, None]}}
    path.write_text(json.dumps(result({"teacher": entry}, 2)))


READERS: dict[str, tuple[str, Callable[[Path], None], Callable[[Path], Any]]] = {
    "video": ("clip.mp4", a_video, lambda path: list(read_frames(path))),
    "png": ("frame.png", a_picture, lambda path: list(read_frames(path))),
    "jpeg": ("frame.jpg", a_picture, lambda path: list(read_frames(path))),
    "gif": ("clip.gif", an_animation, lambda path: list(read_frames(path))),
    "webp": ("clip.webp", an_animation, lambda path: list(read_frames(path))),
    "avif": ("clip.avif", an_animation, lambda path: list(read_frames(path))),
    "tiff": ("clip.tiff", an_animation, lambda path: list(read_frames(path))),
    "davis": ("00000.png", ids, read_ids),
    "ytvis": ("instances.json", annotations, read_annotations),
    "model": ("model.safetensors", model, load),
    "tensors": ("more.safetensors", model, read_tensors),
    "checkpoint": ("checkpoint.pt", a_checkpoint, lambda path: checkpoint.read(path, {"a": 1})),
    "released": ("movi_e.ckpt", released, slotcontrast.read_tensors),
    "results": ("results.json", a_result, read_results),
}


@pytest.mark.parametrize("kind", READERS)
def test_a_damaged_file_is_read_or_told_in_one_sentence(kind: str, tmp_path: Path) -> None:
    name, write, read = READERS[kind]
    path = tmp_path / name
    write(path)
    read(path)
    whole = path.read_bytes()
    told = 0

    @THOROUGH
    @given(damaged(whole))
    def feed(content: bytes) -> None:
        nonlocal told
        path.write_bytes(content)
        told += is_told(lambda: read(path), path.name)
        assert [left.name for left in tmp_path.iterdir()] == [name]

    feed()
    assert told > EXAMPLES / 20, "hardly anything was damaged"


def test_a_damaged_movi_shard_is_told_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLOTMATCH_CACHE", str(tmp_path / "cache"))
    labels = np.zeros((4, 16, 16), np.int32)
    folder = write_movi([Clip(noise(), labels, "0")], tmp_path, "movi_a", "train")
    (shard,) = folder.glob("*.tfrecord-*")
    whole = shard.read_bytes()

    @THOROUGH
    @given(damaged(whole))
    def feed(content: bytes) -> None:
        shard.write_bytes(content)
        is_told(lambda: [clip.video for clip in data.open("movi_a", "train", root=tmp_path)], "")

    feed()


def is_told(read: Callable[[], Any], name: str) -> bool:
    """Whether reading ends in an error: then in one sentence with the file's name."""
    started, told = time.process_time(), ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that a video ends early
            read()
    except EXPECTED as error:
        told = f"{type(error).__name__}: {error}"
    assert time.process_time() - started < SECONDS
    if told:
        assert name in told, "the file's name is not in it"
        assert "\n" not in told.strip()
        assert len(told) < LONGEST
    return bool(told)
