"""MOVi's files as TensorFlow Datasets writes them, for tests to read."""

import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from slotmatch import paths
from slotmatch.data import Clip, tfrecord
from slotmatch.data.movi import FEATURES, INFO, NAMES, VERSION, Split, data_folder, read_splits
from slotmatch.data.tfrecord import OVERHEAD, Feature, masked_crc


def write_records(path: str | os.PathLike[str], contents: Iterable[bytes]) -> None:
    """Write one record per content; the file appears when it is complete."""
    with paths.atomic(path) as temporary, temporary.open("wb") as file:
        for content in contents:
            length = tfrecord._LENGTH.pack(len(content))
            file.write(length + tfrecord._FOOTER.pack(masked_crc(length)))
            file.write(content + tfrecord._FOOTER.pack(masked_crc(content)))


def encode_example(features: Mapping[str, Feature]) -> bytes:
    """Serialise features as a ``tf.train.Example``: the same bytes for the same features."""
    example = tfrecord._Example()
    for name, values in features.items():
        feature = tfrecord._Feature()
        if isinstance(values, list):
            feature.bytes_list.value.extend(values)
        elif np.issubdtype(values.dtype, np.floating):
            feature.float_list.value.extend(values.ravel().tolist())
        else:
            feature.int64_list.value.extend(values.ravel().tolist())
        example.features.feature[name] = feature.SerializeToString(deterministic=True)
    return example.SerializeToString(deterministic=True)


def write_movi(
    clips: Sequence[Clip], folder: str | PathLike[str], name: str, split: str, shards: int = 1
) -> Path:
    """Write clips the way MOVi is published, for ``open_split`` or tensorflow-datasets to read.

    Only the features that are known of a clip are written: the frames, the labels and the sizes.

    Args:
        clips: All of one shape.
        folder: Holds the data sets; a split that is there already is replaced.
        name: One of ``NAMES``.
        split: Such as ``train``.
        shards: Number of files, as equal as possible.

    Returns:
        The folder of the set.

    Raises:
        ValueError: another name, a number of shards not from 1 to the number of clips, clips of
            several shapes, or labels outside 0 to 255.
    """
    if name not in NAMES:
        raise ValueError(f"{name!r} is no MOVi set; choose from {', '.join(NAMES)}")
    if not 1 <= shards <= len(clips):
        raise ValueError(f"shards is {shards}; choose from 1 to {len(clips)}, the number of clips")
    target = data_folder(name, folder)
    ends = [len(clips) * i // shards for i in range(shards + 1)]
    lengths = tuple(end - start for start, end in pairwise(ends))
    entry = Split(name, split, lengths)
    shape = clips[0].video.shape
    for shard, (start, end) in zip(entry.shards, pairwise(ends), strict=True):
        write_records(target / shard, (_example(clips[i], shape) for i in range(start, end)))
    here = read_splits(target, name) if (target / INFO).is_file() else {}
    splits = here | {split: entry}
    info = {
        "name": name,
        "configName": "128x128",
        "version": VERSION,
        "fileFormat": "tfrecord",
        "splits": [
            {
                "name": each.split,
                "shardLengths": [str(n) for n in each.shard_lengths],
                "numBytes": str(_content_bytes(target, each)),
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
            for each in splits.values()
        ],
    }
    for file, content in ((FEATURES, _features(shape)), (INFO, info)):
        with paths.atomic(target / file) as temporary:
            temporary.write_text(json.dumps(content, indent=2))
    for old in target.glob(f"{name}-{split}.tfrecord-*"):
        if old.name not in entry.shards:
            old.unlink()
    return target


def _content_bytes(folder: Path, entry: Split) -> int:
    """What the shards of a split take on disk, without the frames around the records."""
    on_disk = sum((folder / shard).stat().st_size for shard in entry.shards)
    return on_disk - OVERHEAD * entry.n_videos


def _example(clip: Clip, shape: tuple[int, ...]) -> bytes:
    if clip.video.shape != shape or clip.labels.shape != shape[:3]:
        raise ValueError(
            f"{clip.id} has a video {clip.video.shape} with labels {clip.labels.shape} and the "
            f"first clip a video {shape}: all must have one shape"
        )
    if clip.labels.min() < 0 or clip.labels.max() > 255:
        raise ValueError(
            f"the labels of {clip.id} go from {clip.labels.min()} to {clip.labels.max()}; a grey "
            "PNG file holds 0 to 255"
        )
    n_frames, height, width = clip.labels.shape
    objects = np.setdiff1d(clip.labels, [0])
    sizes = {"num_frames": n_frames, "height": height, "width": width}
    return encode_example(
        {
            "video": [_png(frame) for frame in clip.video],
            "segmentations": [_png(frame) for frame in clip.labels.astype(np.uint8)],
            "metadata/video_name": [clip.id.encode()],
            "metadata/num_instances": np.array([len(objects)]),
            **{f"metadata/{key}": np.array([size]) for key, size in sizes.items()},
        }
    )


def _png(frame: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "PNG")
    return file.getvalue()


def _features(shape: tuple[int, ...]) -> dict[str, Any]:
    """``features.json`` for what ``write_movi`` writes of videos (T,H,W,3)."""

    def feature(kind: str, **content: Any) -> dict[str, Any]:
        module, name = kind.split(".")
        return {"pythonClassName": f"tensorflow_datasets.core.features.{module}.{name}"} | content

    def size(*sizes: int) -> dict[str, Any]:
        return {"dimensions": [str(n) for n in sizes]} if sizes else {}

    def group(**features: Any) -> dict[str, Any]:
        return feature("features_dict.FeaturesDict", featuresDict={"features": features})

    def number(dtype: str) -> dict[str, Any]:
        content = {"dtype": dtype, "encoding": "none", "shape": size()}
        return feature("tensor_feature.Tensor", tensor=content)

    n_frames, height, width, _ = shape
    frames = {"dtype": "uint8", "encodingFormat": "png", "shape": size(*shape)}
    labels = {"dtype": "uint8", "shape": size(height, width, 1)}
    image = feature("image_feature.Image", image=labels)
    sequence = {"feature": image, "length": str(n_frames)}
    return group(
        video=feature("video_feature.Video", video=frames),
        segmentations=feature("sequence_feature.Sequence", sequence=sequence),
        metadata=group(
            video_name=feature("text_feature.Text", text={}),
            num_instances=number("uint16"),
            num_frames=number("int32"),
            height=number("int32"),
            width=number("int32"),
        ),
    )
