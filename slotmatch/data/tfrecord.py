"""TFRecord files and the ``tf.train.Example`` inside each record, without TensorFlow.

A file is a plain sequence of records. Each is, little-endian: the length as uint64, a checksum of
those 8 bytes as uint32, the content, a checksum of the content as uint32. The checksum is CRC32C,
rotated and shifted by a constant ("masked"), as TensorFlow's ``tfrecord`` guide describes
(https://www.tensorflow.org/tutorials/load_data/tfrecord). An example is a protocol buffer, a map
from the name of a feature to a list of bytes, of floats or of integers.
"""

import os
import struct
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

__all__ = [
    "OVERHEAD",
    "Feature",
    "decode_example",
    "masked_crc",
    "offsets",
    "read_record",
]

Feature = list[bytes] | np.ndarray
"""A list of bytes, float32 (N,) or int64 (N,)."""

_HEADER, _FOOTER = struct.Struct("<QI"), struct.Struct("<I")
_LENGTH = struct.Struct("<Q")
OVERHEAD = _HEADER.size + _FOOTER.size
"""Bytes of a record around its content."""


def masked_crc(content: bytes) -> int:
    """TFRecord's checksum: CRC32C rotated right by 15 bits plus a constant, modulo 2**32."""
    crc = google_crc32c.value(content)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def offsets(path: str | os.PathLike[str]) -> list[int]:
    """Where each record of a file starts. Only lengths are read, so this is quick.

    Raises:
        ValueError: a length with a wrong checksum, or a file that ends within a record.
    """
    size, found, position = os.stat(path).st_size, [], 0
    with Path(path).open("rb") as file:
        while position < size:
            found.append(position)
            position += OVERHEAD + _length(file, position)
    if position > size:
        raise ValueError(_truncated(path, found[-1]))
    return found


def read_record(path: str | os.PathLike[str], offset: int) -> bytes:
    """The content of the record that starts at byte ``offset``, both checksums checked.

    Raises:
        ValueError: the file ends within the record, or its bytes are not the ones written.
    """
    with Path(path).open("rb") as file:
        n_bytes = _length(file, offset)
        content, footer = file.read(n_bytes), file.read(_FOOTER.size)
    if len(content) < n_bytes or len(footer) < _FOOTER.size:
        raise ValueError(_truncated(path, offset))
    if _FOOTER.unpack(footer)[0] != masked_crc(content):
        raise ValueError(
            f"{path}: the record at byte {offset} does not have its checksum (CRC32C): the file "
            "is damaged; delete it and fetch it again"
        )
    return content


def _length(file: BinaryIO, offset: int) -> int:
    file.seek(offset)
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size:
        raise ValueError(_truncated(file.name, offset))
    length, crc = _HEADER.unpack(header)
    if crc != masked_crc(header[: _LENGTH.size]):
        raise ValueError(
            f"{file.name}: no TFRecord starts at byte {offset}, or its length is damaged (wrong "
            "CRC32C); delete the file and fetch it again"
        )
    return int(length)


def _truncated(path: str | os.PathLike[str], offset: int) -> str:
    return f"{path}: the file ends within the record at byte {offset}; delete it and fetch it again"


def decode_example(content: bytes, names: Collection[str]) -> dict[str, Feature]:
    """The features called ``names`` of a serialised ``tf.train.Example``; no other is parsed.

    Raises:
        ValueError: the bytes are no example, or it has no such feature.
    """
    try:
        found = _Example.FromString(content).features.feature
        for name in names:
            if name not in found:
                there = ", ".join(sorted(found))
                raise ValueError(f"no feature is called {name!r}; there are {there}")
        return {name: _values(_Feature.FromString(found[name])) for name in names}
    except DecodeError as error:
        raise ValueError(f"the record is no tf.train.Example: {error}") from error


def _values(feature: Any) -> Feature:
    kind = feature.WhichOneof("kind")
    if kind == "float_list":
        return np.array(feature.float_list.value, np.float32)
    if kind == "int64_list":
        return np.array(feature.int64_list.value, np.int64)
    return list(feature.bytes_list.value)


def _field(name: str, number: int, kind: str, **more: Any) -> dict[str, Any]:
    scalar = {"type": f"TYPE_{kind.upper()}"}
    message = {"type": "TYPE_MESSAGE", "typeName": f".tf.{kind}"}
    optional = {"name": name, "number": number, "label": "LABEL_OPTIONAL"}
    return optional | (message if kind[0].isupper() else scalar) | more


def _messages() -> tuple[Any, Any]:
    """``Example`` and ``Feature``, their fields numbered as in tensorflow/core/example/*.proto.

    Features inside an example are declared as the bytes that they are on disk: MOVi's optical flow,
    over a million integers, would take much longer to parse than the frames take to decode.
    """
    repeated = {"label": "LABEL_REPEATED"}
    kinds = {"bytes_list": "BytesList", "float_list": "FloatList", "int64_list": "Int64List"}
    lists = [
        {"name": message, "field": [_field("value", 1, name.split("_")[0], **repeated)]}
        for name, message in kinds.items()
    ]
    feature = {
        "name": "Feature",
        "oneofDecl": [{"name": "kind"}],
        "field": [
            _field(name, number, message, oneofIndex=0)
            for number, (name, message) in enumerate(kinds.items(), start=1)
        ],
    }
    entry = {
        "name": "FeatureEntry",
        "field": [_field("key", 1, "string"), _field("value", 2, "bytes")],
        "options": {"mapEntry": True},
    }
    features = {
        "name": "Features",
        "field": [_field("feature", 1, "Features.FeatureEntry", **repeated)],
        "nestedType": [entry],
    }
    example = {"name": "Example", "field": [_field("features", 1, "Features")]}
    file = {
        "name": "example.proto",
        "package": "tf",
        "syntax": "proto3",
        "messageType": [*lists, feature, features, example],
    }
    pool = DescriptorPool()  # of our own: TensorFlow in the same process registers these names too
    pool.Add(ParseDict(file, FileDescriptorProto()))
    example_class, feature_class = (
        GetMessageClass(pool.FindMessageTypeByName(f"tf.{name}")) for name in ("Example", "Feature")
    )
    return example_class, feature_class


_Example, _Feature = _messages()
