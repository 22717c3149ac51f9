"""Segment a video, prepare and check a data set, evaluate a model, export it to ONNX."""

import argparse
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from slotmatch.data import NAMES, SPLITS

EXPECTED = (ValueError, OSError, RuntimeError)
"""What a wrong argument or a missing file raises, with a message made for the reader."""
MASKS = ("decoder", "attention")  # slotmatch.model has them too, but takes seconds to import
MODEL_HELP = "mini-student, mini-teacher, or a file that slotmatch.model.save wrote"
PRINTED = {
    "FG-ARI, video": "video_fg_ari",
    "FG-ARI, image": "image_fg_ari",
    "mBO, video": "video_mbo",
    "mBO, image": "image_mbo",
    "J&F": "j_and_f",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0: done. 1: it could not be done, and one sentence on standard error says why. 2: the command
    line is wrong.
    """
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        arguments.run(arguments)
    except EXPECTED as error:
        sentence = " ".join(str(error).split()) or type(error).__name__
        print(f"slotmatch {arguments.command}: {sentence}", file=sys.stderr)
        return 1
    return 0


def segment(arguments: argparse.Namespace) -> None:
    """Write the slot masks of a video as PNG files and, if asked to, a video painted with them."""
    from slotmatch.segmentation import segment_blocks, write_masks, write_overlay

    folder = Path(arguments.output)
    blocks = segment_blocks(arguments.video, arguments.model, masks=arguments.masks)
    masks = write_masks(chain.from_iterable(blocks), folder / "masks")
    print(f"masks: {masks}")
    if arguments.overlay:
        overlay = write_overlay(arguments.video, _stored(masks), folder / "overlay.mp4")
        print(f"overlay: {overlay}")


def prepare(arguments: argparse.Namespace) -> None:
    """Make what is missing of a data set, read all of it and say what there is."""
    from tqdm.auto import tqdm

    from slotmatch import data

    for split in [arguments.split] if arguments.split else SPLITS:
        clips = data.open(arguments.dataset, split, n_videos=arguments.videos)
        sizes, objects = set(), []
        for clip in tqdm(clips, desc=f"checking {split}", unit="video", disable=None):
            if clip.labels.shape != clip.video.shape[:3]:
                raise ValueError(
                    f"{clip.id} has labels {clip.labels.shape} for a video {clip.video.shape}"
                )
            sizes.add("x".join(map(str, clip.labels.shape)))
            objects.append(np.count_nonzero(np.unique(clip.labels)))
        print(
            f"{arguments.dataset} {split}: {len(objects)} videos of {', '.join(sorted(sizes))} "
            f"(frames x rows x columns) with {min(objects)} to {max(objects)} objects"
        )


def evaluate(arguments: argparse.Namespace) -> None:
    """Score a model on a data set, print the scores, and write them and where they come from."""
    from slotmatch import data, evaluation, profiling, results
    from slotmatch.data import minimovi
    from slotmatch.model import load

    started = time.perf_counter()
    model = load(arguments.model)
    clips = data.open(arguments.dataset, arguments.split, n_videos=arguments.videos)
    entry: dict[str, Any] = {
        "metrics": evaluation.evaluate(model, clips, masks=arguments.masks),
        "parameters": profiling.count_parameters(model)["total"][0],
    }
    if Path(arguments.model).is_file():
        entry["checkpoint"] = results.checksum(arguments.model)
    settings = {"model": arguments.model, "masks": arguments.masks}
    content = {
        "config": settings | asdict(model.config),
        "seeds": [],
        "data": {
            "name": arguments.dataset,
            "version": minimovi.VERSION,
            "split": arguments.split,
            "ids": [clip.id for clip in clips],
        },
        "models": {"model": entry},
        "wall_seconds": time.perf_counter() - started,
    }
    results.write_results(arguments.output, content)
    texts = results.numbers(results.read_results(arguments.output))
    print(f"{arguments.model} on {len(clips)} videos of {arguments.dataset} {arguments.split}")
    for title, metric in PRINTED.items():
        print(f"  {title:<14} {texts.get(f'model_{metric}', 'nothing to score')}")
    print(f"mean x 100 and its 95 % interval over videos; all of it is in {arguments.output}")


def export(arguments: argparse.Namespace) -> None:
    """Write a model as an ONNX file that takes a video frame by frame."""
    from slotmatch.export import INPUTS, OUTPUTS, export_onnx
    from slotmatch.model import load

    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # warns of its own optimisations
    model = load(arguments.model)
    path = export_onnx(model, arguments.file)
    config = model.config
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    print(f"  frames of {config.image_size} x {config.image_size} pixels, {config.n_slots} slots")
    print(f"  from {', '.join(INPUTS)} to {', '.join(OUTPUTS)}")


def _stored(folder: Path) -> Iterator[np.ndarray]:
    """The label maps (H,W) in a folder that ``write_masks`` wrote."""
    from PIL import Image

    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as image:
            yield np.asarray(image)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m slotmatch", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = commands.add_parser(
        "segment", help="slot masks of a video", description=_line(segment)
    )
    command.add_argument("video", metavar="VIDEO", help="a video file, or a folder of images")
    command.add_argument("--model", default="mini-student", help=MODEL_HELP)
    command.add_argument("--output", required=True, metavar="DIR", help="gets masks/00000.png, ...")
    command.add_argument("--overlay", action="store_true", help="write DIR/overlay.mp4 as well")
    _add_masks(command)
    command.set_defaults(run=segment)

    command = commands.add_parser("data", help="prepare a data set", description=_line(prepare))
    command.add_argument("dataset", metavar="NAME", choices=NAMES, help=", ".join(NAMES))
    command.add_argument("--split", choices=SPLITS, help="only this one")
    command.add_argument("--videos", type=_positive, metavar="N", help="only the first N videos")
    command.set_defaults(run=prepare)

    command = commands.add_parser("evaluate", help="score a model", description=_line(evaluate))
    command.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    command.add_argument("dataset", metavar="DATASET", choices=NAMES, help=", ".join(NAMES))
    command.add_argument("--split", choices=SPLITS, default="test", help="default: %(default)s")
    command.add_argument("--videos", type=_positive, metavar="N", help="only the first N videos")
    _add_masks(command)
    command.add_argument(
        "--output", default="results.json", metavar="FILE", help="default: %(default)s"
    )
    command.set_defaults(run=evaluate)

    command = commands.add_parser("export", help="an ONNX file", description=_line(export))
    command.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    command.add_argument("file", metavar="FILE", help="gets written, such as student.onnx")
    command.set_defaults(run=export)
    return parser


def _add_masks(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--masks", choices=MASKS, default=MASKS[0], help="whose masks; default: %(default)s"
    )


def _line(command: Callable[[argparse.Namespace], None]) -> str:
    return command.__doc__ or ""


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
