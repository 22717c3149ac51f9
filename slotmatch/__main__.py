"""Segment a video, prepare and check a data set, train, evaluate a model, export it to ONNX."""

import argparse
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slotmatch import paths
from slotmatch.data import NAMES, SPLITS
from slotmatch.settings import Masks, Precision, ProtocolName, Role, Size, choices

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

EXPECTED = (ValueError, OSError, RuntimeError, MemoryError)
"""What a wrong argument, a missing file or a small machine raises, with a message to show."""
MODEL_HELP = (
    "mini-student, mini-teacher, a file of slotmatch.model.save, a "
    ".ckpt that SlotContrast's authors released, or hf://user/name"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0: done. 1: it could not be done, and one sentence on standard error says why. 2: the command
    line is wrong. 130: stopped by Ctrl-C. 141: nobody reads the output any more, as of ``| head``.
    """
    try:
        code = _run(argv)
        if sys.stdout is not None:  # as in a program without a terminal
            sys.stdout.flush()
    except KeyboardInterrupt:
        print("slotmatch: stopped", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the exit
        return 141  # 128 and the number of SIGPIPE, which some systems lack
    return code


def _run(argv: Sequence[str] | None) -> int:
    parser = _parser()
    try:
        if "" in (sys.argv[1:] if argv is None else argv):
            parser.error("an argument is empty: is a variable of the shell not set?")
        arguments = parser.parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a path may have letters that its encoding lacks
            stream.reconfigure(errors="backslashreplace")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _stop)  # so that nothing half written stays behind
    try:
        arguments.run(arguments)
    except BrokenPipeError:
        raise  # it is an OSError, too, and nobody's fault
    except EXPECTED as error:
        sentence = " ".join(str(error).split()) or type(error).__name__
        print(f"slotmatch {arguments.command}: {sentence}", file=sys.stderr)
        return 1
    return 0


def _stop(*_: object) -> None:
    raise SystemExit(128 + signal.SIGTERM)


def segment(arguments: argparse.Namespace) -> None:
    """Write the slot masks of a video as PNG files and, if asked to, a video painted with them."""
    from slotmatch.segmentation import segment_blocks, write_masks, write_overlay

    folder = Path(arguments.output)
    if arguments.overlay:
        paths.check_output(folder / "overlay.mp4")
    blocks = segment_blocks(
        arguments.video, arguments.model, masks=arguments.masks, precision=arguments.precision
    )
    masks = write_masks(chain.from_iterable(blocks), folder / "masks")
    print(f"masks: {masks}")
    if arguments.overlay:
        overlay = write_overlay(arguments.video, _stored(masks), folder / "overlay.mp4")
        print(f"overlay: {overlay}")


def prepare(arguments: argparse.Namespace) -> None:
    """Make what is missing of a data set, read all of it and say what there is."""
    from tqdm.auto import tqdm

    from slotmatch import data

    for split in [arguments.split] if arguments.split else data.splits_of(arguments.dataset):
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


def check(arguments: argparse.Namespace) -> None:
    """Say what of a real data set is here, what is missing and how to get it."""
    from slotmatch import data

    report = data.check(arguments.dataset, arguments.root)
    print(report)
    if report.missing:
        raise FileNotFoundError(f"not all of {report.name} is in {report.folder}")
    if report.differs:
        raise ValueError(
            f"{report.folder} is not {report.name} as published: its scores cannot be compared"
        )


def download(arguments: argparse.Namespace) -> None:
    """Fetch MOVi from its public bucket: what it needs is told first, a stop loses nothing."""
    from slotmatch.data import download as bucket

    server = bucket.Server(arguments.server) if arguments.server else bucket.Server()
    planned = bucket.plan(
        arguments.dataset,
        split=arguments.split,
        n_videos=arguments.max_videos,
        root=arguments.root,
        server=server,
    )
    print(planned, flush=True)
    bucket.fetch(planned, server=server)
    print(f"all of it is in {planned.folder}")


def evaluate(arguments: argparse.Namespace) -> None:
    """Score a model on a data set, print the scores, and write them and where they come from."""
    from slotmatch.experiments.scores import evaluate_to_file

    evaluate_to_file(
        arguments.model,
        arguments.dataset,
        arguments.output,
        split=arguments.split,
        n_videos=arguments.videos,
        protocol=arguments.protocol,
        masks=arguments.masks,
        precision=arguments.precision,
    )


def train(arguments: argparse.Namespace) -> None:
    """Train a teacher or a student; the same command goes on where it was stopped."""
    if arguments.teacher and arguments.role == "teacher":
        raise ValueError(f"--teacher {arguments.teacher} means nothing to a teacher: leave it out")
    if arguments.beta is not None and arguments.role == "teacher":
        raise ValueError(f"--beta {arguments.beta} means nothing to a teacher: leave it out")

    from slotmatch import experiments
    from slotmatch.experiments import runs

    experiment = experiments.select(
        arguments.preset,
        arguments.dataset,
        backbone=arguments.backbone,
        steps=arguments.steps,
        seed=arguments.seed,
    )
    changes: dict[str, Any] = {
        "mixed_precision": arguments.precision,
        "accumulate": arguments.accumulate,
        "gather_negatives": arguments.gather_negatives,
    }
    if arguments.learning_rate is not None:
        changes["learning_rate"] = arguments.learning_rate
    if arguments.beta is not None:
        changes["match_weight"] = arguments.beta
    trained = replace(getattr(experiment, arguments.role), **changes)
    experiment = replace(experiment, **{arguments.role: trained})
    if arguments.dry_run:
        print(runs.foresee(arguments.role, experiment))
        return
    runs.run(
        arguments.role,
        experiment,
        Path(arguments.output),
        teacher_file=arguments.teacher,
        decoded=arguments.decoded,
        workers=arguments.workers,
    )


def export(arguments: argparse.Namespace) -> None:
    """Write a model as an ONNX file that takes a video frame by frame."""
    from slotmatch.model import load
    from slotmatch.sharing.onnx import INPUTS, OUTPUTS, calibration_frames, export_onnx

    paths.check_output(arguments.file)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # warns of its own optimisations
    model = load(arguments.model)
    frames, config = None, model.config
    if arguments.int8 and model.backbone is not None:  # an export refuses one without
        from slotmatch.experiments.precision import calibration_clips

        frames = calibration_frames(calibration_clips(arguments.int8), model.backbone.image_size)
    path = export_onnx(model, arguments.file, calibration=frames)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    print(f"  frames of {config.image_size} x {config.image_size} pixels, {config.n_slots} slots")
    print(f"  from {', '.join(INPUTS)} to {', '.join(OUTPUTS)}")
    if frames is not None:
        print(f"  the backbone in int8, calibrated on {len(frames)} training frames")


def share(arguments: argparse.Namespace) -> None:
    """Write a model with its card into a folder, or push both to the Hugging Face hub."""
    if arguments.folder is None and arguments.push is None:
        raise ValueError("nothing to do: give --folder DIR, --push USER/NAME or both")

    from slotmatch.model import load
    from slotmatch.reporting.results import read_results
    from slotmatch.sharing.card import write_folder
    from slotmatch.sharing.push import push_to_hub

    options: dict[str, Any] = {
        "results": read_results(arguments.results) if arguments.results else None,
        "entry": arguments.entry,
        "about": arguments.about,
        "include_backbone": arguments.with_backbone,
    }
    model = load(arguments.model)
    if arguments.folder is not None:
        folder = write_folder(model, arguments.folder, **options)
        print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    if arguments.push is not None:
        address = push_to_hub(model, arguments.push, private=arguments.private, **options)
        print(f"on the hub, to be loaded from anywhere: load({address!r})")


def _stored(folder: Path) -> Iterator[np.ndarray]:
    """The label maps (H,W) in a folder that ``write_masks`` wrote."""
    from slotmatch.data.files import read_picture
    from slotmatch.data.pictures import picture_files

    return (read_picture(path)[1] for path in picture_files(folder, (".png",)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="slotmatch", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_segment(commands)
    _add_data(commands)
    _add_evaluate(commands)
    _add_train(commands)
    _add_export(commands)
    _add_share(commands)
    return parser


def _add_segment(commands: "Commands") -> None:
    command = _add(commands, "segment", segment, "slot masks of a video")
    command.add_argument("video", metavar="VIDEO", help="a video file, or a folder of images")
    command.add_argument("--model", default="mini-student", help=MODEL_HELP)
    command.add_argument("--output", required=True, metavar="DIR", help="gets masks/00000.png, ...")
    command.add_argument("--overlay", action="store_true", help="write DIR/overlay.mp4 as well")
    command.add_argument(
        "--masks",
        choices=choices(Masks),
        default="decoder",
        help="whose masks; default: %(default)s",
    )
    _add_precision(command)


def _add_data(commands: "Commands") -> None:
    command = commands.add_parser("data", help="prepare or check a data set")
    actions = command.add_subparsers(dest="dataset", required=True, metavar="NAME")
    for name in NAMES:
        action = _add(actions, name, prepare)
        action.add_argument("--split", choices=SPLITS, help="only this one")
        action.add_argument("--videos", type=_positive, metavar="N", help="only the first N videos")
    action = _add(actions, "check", check, "is a real one here, what is missing")
    action.add_argument("dataset", metavar="NAME", choices=NAMES, help=", ".join(NAMES))
    action.add_argument(
        "--root", metavar="DIR", help="holds the data sets; default: SLOTMATCH_DATA"
    )
    action = _add(actions, "download", download, "fetch MOVi")
    movi = [name for name in NAMES if name.startswith("movi_")]
    action.add_argument("dataset", metavar="NAME", choices=movi, help=", ".join(movi))
    action.add_argument("--split", choices=SPLITS, help="only this one")
    action.add_argument(
        "--max-videos", type=_positive, metavar="N", help="only what the first N videos are in"
    )
    action.add_argument("--root", metavar="DIR", help="gets the files; default: SLOTMATCH_DATA")
    action.add_argument("--server", metavar="URL", help="a mirror of storage.googleapis.com")


def _add_evaluate(commands: "Commands") -> None:
    command = _add(commands, "evaluate", evaluate, "score a model")
    command.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    command.add_argument("dataset", metavar="DATASET", choices=NAMES, help=", ".join(NAMES))
    command.add_argument(
        "--split", choices=SPLITS, help="default: test, or validation of a real data set"
    )
    command.add_argument("--videos", type=_positive, metavar="N", help="only the first N videos")
    command.add_argument(
        "--protocol",
        choices=choices(ProtocolName),
        help="rules of the scores; default: original, or slotcontrast for a real data set",
    )
    command.add_argument(
        "--masks", choices=choices(Masks), help="whose masks; default: the protocol's"
    )
    _add_precision(command)
    command.add_argument(
        "--output", default="results.json", metavar="FILE", help="default: %(default)s"
    )


def _add_train(commands: "Commands") -> None:
    command = _add(commands, "train", train, "a teacher or a student")
    command.add_argument("role", choices=choices(Role))
    command.add_argument("--dataset", required=True, metavar="NAME", choices=NAMES)
    command.add_argument("--preset", choices=choices(Size), default="paper")
    command.add_argument("--backbone", default="embedded", help="default: the preset's own pair")
    command.add_argument(
        "--teacher", default="", metavar="MODEL", help=f"of a student: {MODEL_HELP}"
    )
    command.add_argument("--output", required=True, metavar="DIR", help="the run's folder")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--steps", type=_positive, default=0, help="default: the preset's")
    command.add_argument(
        "--beta", type=float, help="weight of a student's SlotMatch term; default: the preset's"
    )
    command.add_argument("--learning-rate", type=float, help="default: the preset's")
    _add_precision(command)
    command.add_argument(
        "--accumulate",
        type=_positive,
        default=1,
        metavar="N",
        help="N micro-batches, for less memory",
    )
    command.add_argument(
        "--gather-negatives", action="store_true", help="of the contrast, from all processes"
    )
    command.add_argument("--workers", type=int, metavar="N", help="processes that read ahead")
    command.add_argument(
        "--decoded", action="store_true", help="keep decoded frames on disk, to read them faster"
    )
    command.add_argument("--dry-run", action="store_true", help="only say what it will take")


def _add_export(commands: "Commands") -> None:
    command = _add(commands, "export", export, "an ONNX file")
    command.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    command.add_argument("file", metavar="FILE", help="gets written, such as student.onnx")
    command.add_argument(
        "--int8",
        nargs="+",
        choices=NAMES,
        metavar="DATASET",
        help="the backbone's convolutions in int8, calibrated on training videos of these",
    )


def _add_share(commands: "Commands") -> None:
    command = _add(commands, "share", share, "a folder with a model card, the hub")
    command.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    command.add_argument("--folder", metavar="DIR", help="gets model.safetensors and its card")
    command.add_argument(
        "--push", metavar="USER/NAME", help="on the hub; needs `hf auth login` or HF_TOKEN"
    )
    command.add_argument("--private", action="store_true", help="if the push makes USER/NAME")
    command.add_argument("--results", metavar="FILE", help="a results.json with its scores")
    command.add_argument("--entry", metavar="NAME", help="which model in there this is")
    command.add_argument("--about", default="", metavar="TEXT", help="a sentence for the card")
    command.add_argument(
        "--with-backbone", action="store_true", help="its weights too, for use without a network"
    )


def _add(
    commands: "Commands", name: str, run: Callable[[argparse.Namespace], None], what: str = ""
) -> argparse.ArgumentParser:
    """A command that calls ``run``, explained by its docstring and, in the list, by ``what``."""
    options: dict[str, Any] = {"help": what} if what else {}
    command = commands.add_parser(name, description=run.__doc__, **options)
    command.set_defaults(run=run)
    return command


def _add_precision(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--precision",
        choices=choices(Precision),
        default="no",
        help="half precision of products, or %(default)s (the default) for single",
    )


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
