"""Sharing a model: a folder of weights, config and model card, on disk or the Hugging Face hub.

`push_to_hub` puts a model there, and ``slotmatch.model.load("hf://user/name")`` takes it back.
Only safetensors and JSON travel: nothing in a shared model is ever run.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from timm.models import get_pretrained_cfg

from slotmatch import backbones, paths, profiling
from slotmatch.model import VideoSlotModel
from slotmatch.model.files import FILE_FORMAT, save
from slotmatch.model.hub import WEIGHTS
from slotmatch.reporting.results import SCORES, half_precision, numbers

__all__ = ["CARD", "CONFIG", "model_card", "write_folder"]

CONFIG, CARD = "config.json", "README.md"
Texts = Mapping[str, str | float | int]
TAGS = ("object-centric-learning", "slot-attention", "unsupervised", "video-segmentation")


def model_card(
    model: VideoSlotModel,
    *,
    title: str,
    address: str = WEIGHTS,
    about: str = "",
    results: Mapping[str, Any] | None = None,
    entry: str | None = None,
    sha256: str | None = None,
    licence: str = "mit",
) -> str:
    """The text of a model card, front matter included, checked by huggingface_hub's own reader.

    Args:
        model: what is described.
        title: its heading.
        address: what ``load`` is to be given in the example.
        about: a sentence or two on what the model is and where it comes from.
        results: what ``results.read_results`` gave, for scores and training settings.
        entry: which of the models in there this is. May be left out if there is one, or one with
            the checksum of these weights.
        sha256: checksum of the file with the weights.
        licence: identifier of the weights' licence, as the hub spells it.

    Raises:
        ValueError: results without this model: an unknown entry, several to choose from, or
            another number of parameters; an entry of no results.
    """
    if entry is not None and results is None:
        raise ValueError(f"entry {entry!r} is one of results: give them too, or leave it out")
    config = model.config
    name = None if results is None else _entry(results, model, entry, sha256)
    texts = {} if results is None else numbers(results)
    body = _shipped("card.md").format(
        title=title,
        about=about
        or "A slot model that finds and follows objects in video, trained without masks.",
        version=metadata.version("slotmatch"),
        address=address,
        n_slots=config.n_slots,
        n_patches=config.n_patches,
        model=_table(_facts(model, sha256)),
        backbone=_backbone_text(model),
        training=_training_text(results, name),
        scores=_scores_text(results, texts, name, sha256),
        supervision=(
            "* The backbone's features saw labels of images, so the system as a whole is not "
            "unsupervised.\n"
            if config.backbone is not None and backbones.spec(config.backbone).supervised
            else ""
        ),
        licence=licence,
        citation=_citation(),
    )
    front = ModelCardData(
        license=licence,
        library_name="slotmatch",
        pipeline_tag="image-segmentation",
        tags=["slotmatch", *TAGS],
        base_model=_base_model(config.backbone),
        model_name=title,
        eval_results=_eval_results(results, texts, name) or None,
    )
    return str(ModelCard(f"---\n{front.to_yaml()}\n---\n\n{body}"))


def write_folder(
    model: VideoSlotModel,
    folder: str | os.PathLike[str],
    *,
    title: str | None = None,
    address: str = WEIGHTS,
    about: str = "",
    results: Mapping[str, Any] | None = None,
    entry: str | None = None,
    licence: str = "mit",
    include_backbone: bool = False,
) -> Path:
    """Write what is shared of a model, ``model.safetensors``, ``config.json`` and ``README.md``.

    ``title`` is the folder's name if it is left out; see `model_card` for the others and
    `slotmatch.model.save` for ``include_backbone``, which an untrained backbone turns on. The
    config is there for readers and for the hub: ``load`` finds its own inside the weights' file.

    Raises:
        FileExistsError: the folder has a README.md that belongs to something else.
        ValueError: the results are not of this model; then nothing is written.
    """
    folder = Path(folder)
    if (folder / CARD).exists() and not (folder / WEIGHTS).exists():
        raise FileExistsError(
            f"{folder / CARD} is there and no {WEIGHTS} beside it: a model card would take its "
            "place, so give a folder of its own"
        )
    untrained = model.backbone is not None and not model.backbone.pretrained
    config = {"library_name": "slotmatch", "format": FILE_FORMAT, **asdict(model.config)}
    with (
        paths.atomic(folder / WEIGHTS) as weights,
        paths.atomic(folder / CONFIG) as readable,
        paths.atomic(folder / CARD) as card,
    ):
        save(model, weights, include_backbone=include_backbone or untrained)
        readable.write_text(json.dumps(config, indent=2) + "\n")
        text = model_card(
            model,
            title=title or folder.resolve().name,
            address=address,
            about=about,
            results=results,
            entry=entry,
            sha256=paths.checksum(weights),
            licence=licence,
        )
        card.write_text(text, encoding="utf-8")
    return folder


def _entry(
    results: Mapping[str, Any], model: VideoSlotModel, entry: str | None, sha256: str | None
) -> str:
    """Which of the models in a result file is this one."""
    models = results["models"]
    if entry is None:
        same = [name for name in models if sha256 and models[name].get("checkpoint") == sha256]
        chosen = same or list(models)
        if len(chosen) != 1:
            raise ValueError(
                f"the results hold {', '.join(models)}: say which of them this model is (entry)"
            )
        entry = chosen[0]
    if entry not in models:
        raise ValueError(f"the results hold {', '.join(models)}, not {entry!r}")
    expected, found = models[entry].get("parameters"), _n_parameters(model)
    if expected not in (None, found):
        raise ValueError(
            f"the results' {entry} has {expected:,} parameters, this model {found:,}: "
            "they are scores of another one"
        )
    return entry


def _n_parameters(model: VideoSlotModel) -> int:
    return profiling.count_parameters(model)["total"][0]


def _shipped(name: str) -> str:
    return (files("slotmatch.sharing") / name).read_text(encoding="utf-8")


def _citation() -> str:
    """The paper as a BibTeX entry, from CITATION.cff, which says what to cite."""
    paper = yaml.safe_load(_shipped("CITATION.cff"))["preferred-citation"]
    names = [f"{who['family-names']}, {who['given-names']}" for who in paper["authors"]]
    entries = {
        "title": paper["title"],
        "author": " and ".join(names).replace("ø", "{\\o}"),
        "journal": paper["journal"],
        "year": paper["year"],
        "url": paper["url"],
    }
    lines = [f"  {name:<7} = {{{value}}}," for name, value in entries.items()]
    return "\n".join(["@article{slotmatch,", *lines, "}"])


def _facts(model: VideoSlotModel, sha256: str | None) -> list[tuple[str, str]]:
    config = model.config
    facts = [
        ("backbone, frozen", config.backbone or "none: the model runs from features"),
        ("input", f"{config.image_size} x {config.image_size} px" if config.image_size else "-"),
        ("patches", f"{config.n_patches} with features of width {config.feature_dim}"),
        ("slots", f"{config.n_slots} of width {config.slot_dim}, {config.initial_slots}"),
        ("parameters", f"{_n_parameters(model) / 1e6:.2f} M, the backbone's included"),
    ]
    if sha256:
        facts.append((f"SHA-256 of {WEIGHTS}", f"`{sha256}`"))
    return facts


def _backbone_text(model: VideoSlotModel) -> str:
    if model.backbone is None:
        return "Give it features of a backbone of your own (`forward_features`)."
    if not model.backbone.pretrained:
        return "The backbone was never trained; it is in the file."
    return (
        f"Backbone: {model.backbone.spec.provenance}. If its weights are not in the file, loading "
        "gets them from there and compares their checksum."
    )


def _training_text(results: Mapping[str, Any] | None, entry: str | None) -> str:
    """The settings in a result file, as they stand there; nothing is guessed."""
    config = {} if results is None else results["config"]
    training = config.get("training", {})
    training = training if "steps" in training else training.get(entry)
    if results is None or not training:
        return "The settings of its training were not recorded with its scores."
    run = {key: value for key, value in config.get("parameters", {}).items() if key != "output"}
    settings = {"run": run, "training": training}  # without where its owner keeps files
    seeds = ", ".join(map(str, results["seeds"])) or "not recorded"
    return (
        f"Seeds: {seeds}. The settings that were recorded with the scores:\n\n"
        f"```json\n{json.dumps(settings, indent=1)}\n```"
    )


def _scores_text(
    results: Mapping[str, Any] | None, texts: Texts, entry: str | None, sha256: str | None
) -> str:
    if results is None or entry is None:
        return (
            "None were given with this model. Measure before you rely on it: `slotmatch evaluate`."
        )
    data = results["data"]
    rows = [(SCORES[key], str(texts[f"{entry}_{key}"])) for key in _scored(texts, entry)]
    protocol = results.get("protocol", {})
    window, masks = protocol.get("window"), protocol.get("masks") or results["config"].get("masks")
    pieces = "videos" if window is None else f"pieces of {window} frames"
    version = f" (version {data['version']})" if data["version"] is not None else ""
    how = f", protocol `{protocol['name']}`" if "name" in protocol else ""
    how += f", masks of the {masks}" if masks else ""
    how += f", computed in {half}" if (half := half_precision(results)) else ""
    text = (
        f"{len(data['ids'])} {pieces} of {data['name']}{version}, split {data['split']}{how}. "
        "Mean over them times 100, with its 95 % interval.\n\n"
        f"{_table(rows, 'metric', 'score')}\n\n"
    )
    measured = results["models"][entry].get("checkpoint")
    if measured is None:
        return text + "Which file of weights was measured is not recorded."
    if measured == sha256:
        return text + "Measured with this very file of weights."
    return (
        text + f"Measured with a file of SHA-256 `{measured}`, which is not byte for byte this one."
    )


def _scored(texts: Texts, entry: str) -> list[str]:
    return [key for key in SCORES if f"{entry}_{key}" in texts]


def _eval_results(
    results: Mapping[str, Any] | None, texts: Texts, entry: str | None
) -> list[EvalResult]:
    if results is None or entry is None:
        return []
    data, half = results["data"], half_precision(results)
    return [
        EvalResult(
            task_type="image-segmentation",
            task_name="Unsupervised video object segmentation",
            dataset_type=data["name"],
            dataset_name=data["name"],
            dataset_split=data["split"],
            metric_type=key,
            metric_name=SCORES[key],
            metric_value=round(float(texts[f"{entry}_{key}_mean"]), 1),
            metric_args={"precision": half} if half else None,
        )
        for key in _scored(texts, entry)
    ]


def _base_model(backbone: str | None) -> str | None:
    """The backbone's own name on the hub, for those that come from there."""
    if backbone is None or (what := backbones.spec(backbone)).recipe is not None:
        return None
    config = get_pretrained_cfg(what.network)
    return None if config is None else config.hf_hub_id or None


def _table(rows: list[tuple[str, str]], *heading: str) -> str:
    lines = [heading or ("", ""), ("---", "---"), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
