"""Scores of one model on one data set, in a file: what ``python -m slotmatch evaluate`` does."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from slotmatch import data, evaluation, paths, profiling
from slotmatch.evaluation import PROTOCOLS, Protocol
from slotmatch.model import load
from slotmatch.precision import check_precision
from slotmatch.reporting import results
from slotmatch.settings import Masks, Precision

__all__ = ["evaluate_to_file"]


def evaluate_to_file(
    model: str,
    dataset: str,
    output: str | os.PathLike[str],
    *,
    split: str | None = None,
    n_videos: int | None = None,
    protocol: str | None = None,
    masks: Masks | None = None,
    precision: Precision = "no",
) -> dict[str, Any]:
    """Score a model, print its scores, write those of each video and their origin, return them.

    Args:
        model: what ``slotmatch.model.load`` takes.
        dataset: a name of ``slotmatch.data.NAMES``.
        output: the result file.
        split: None: test, or validation of a real data set.
        n_videos: only the first so many.
        protocol: None: original, or slotcontrast for a real data set.
        masks: None: the protocol's.
        precision: see ``slotmatch.evaluation.evaluate``; the file's config has it.

    Raises:
        ValueError: an unknown name, a protocol that has no rules for the data set, or a precision
            that the device does not have.
        FileNotFoundError: data or model are not on this machine.
    """
    started = time.monotonic()
    paths.check_output(output)
    embedded = dataset in data.EMBEDDED
    split = split or ("test" if embedded else "validation")
    opened = partial(data.open, dataset, split, n_videos=n_videos)
    # Files are looked for before a model is loaded, a model before videos are rendered.
    clips = None if embedded else opened()
    default = "original" if embedded else "slotcontrast"
    rules = evaluation.protocol_for(protocol or default, dataset)
    rules = replace(rules, masks=masks or rules.masks)
    network = load(model).to("cuda" if torch.cuda.is_available() else "cpu")
    check_precision(precision, network.decoder.positions.device)
    clips = clips or opened()
    ids, scores = evaluation.evaluate_samples(network, clips, protocol=rules, precision=precision)
    entry = {
        "metrics": scores,
        "dataset_metrics": evaluation.joined(scores),
        "parameters": profiling.count_parameters(network)["total"][0],
    }
    if Path(model).is_file():
        entry["checkpoint"] = paths.checksum(model)
    content = results.run_results(
        config={"model": model, "masks": rules.masks, "precision": precision}
        | asdict(network.config),
        seeds=[],
        dataset=dataset,
        split=split,
        ids=ids,
        models={"model": entry},
        started=started,
        protocol=asdict(rules),
    )
    content["data"]["videos"] = len(clips)
    results.write_results(output, content)
    print(*_summary(content, rules, clips), f"all of it is in {output}", sep="\n")
    return content


def _summary(content: Mapping[str, Any], rules: Protocol, clips: Sequence[object]) -> Iterator[str]:
    """What was scored, by which rules, and the mean scores."""
    found, (entry,) = content["data"], content["models"].values()
    scored = min(len(clips), rules.n_videos or len(clips))
    what = f"{scored} of {len(clips)} videos of {found['name']} {found['split']}"
    how = f", computed in {half}" if (half := results.half_precision(content)) else ""
    yield f"{content['config']['model']} on {what}{how}"
    yield f"protocol {rules.name}: {PROTOCOLS[rules.name]}"
    texts = results.numbers(content)
    for metric, title in results.SCORES.items():
        if metric in entry["metrics"]:
            yield f"  {title:<14} {texts.get(f'model_{metric}', 'nothing to score')}"
    pieces = "videos" if rules.window is None else f"pieces of {rules.window} frames"
    counted = entry["dataset_metrics"]
    yield (
        f"mean x 100 and its 95 % interval over {len(found['ids'])} {pieces}; FG-ARI counts "
        f"{counted['video_fg_ari_videos']} of them and {counted['image_fg_ari_frames']} frames, "
        f"mBO {counted['video_mbo_videos']} and {counted['image_mbo_frames']}"
    )
