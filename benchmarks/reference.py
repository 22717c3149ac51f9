"""SlotContrast's released implementation beside ours: same weights, same frames, equal masks.

``python -m benchmarks.reference CHECKOUT`` runs a checkout of github.com/martius-lab/slotcontrast
that is yours, with the packages it imports beside ours: pytorch-lightning, torchmetrics, omegaconf,
webdataset and imageio. Nothing of it is part of this project. Its backbone gets frames that are
normalised before the clock starts; ours does that itself.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.comparison import INPUTS, Comparison, Settings
from benchmarks.inference import Contender, frames_of, prepare, timing
from slotmatch.backbones import spec
from slotmatch.data.preprocessing import float_frames
from slotmatch.model import ModelConfig, VideoSlotModel
from slotmatch.model.slotcontrast import released_name
from slotmatch.profiling import milliseconds, peak_memory, take_turns
from slotmatch.reporting.results import run_results, write_results

__all__ = ["compare", "main", "released_masks", "released_model"]

CONFIGS = {
    name: Path("configs", "slotcontrast", f"{name}.yaml") for name in ("movi_e", "ytvis2021")
}
"""In the checkout, by data set."""
OUTPUT = Path(__file__).parent / "reference.json"


def released_model(checkout: Path, dataset: str, ours: VideoSlotModel) -> nn.Module:
    """Their model of a data set, in the sizes and with the weights of ours, where ours is.

    Raises:
        FileNotFoundError: this is no checkout of theirs.
        ModuleNotFoundError: a package that it imports is not installed.
        ValueError: tensors of theirs have no counterpart in ours.
    """
    file = checkout / CONFIGS[dataset]
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is not there: give a checkout of github.com/martius-lab/slotcontrast"
        )
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))
    from slotcontrast import configuration, models

    config = configuration.load_config(file, _sizes(ours.config))
    model: nn.Module = models.build(config.model, config.optimizer)
    named = {released_name(name): tensor for name, tensor in ours.state_dict().items()}
    own = model.state_dict()
    if foreign := own.keys() - named.keys():
        raise ValueError(f"this version of theirs has tensors that ours lacks: {sorted(foreign)}")
    model.load_state_dict({name: named[name].reshape(own[name].shape) for name in own})
    return model.to(ours.decoder.positions.device).eval()


def _sizes(config: ModelConfig) -> list[str]:
    """What their configuration has to say for our sizes."""
    assert config.backbone is not None
    known = spec(config.backbone)
    return [
        f"globals.NUM_SLOTS={config.n_slots}",
        f"globals.SLOT_DIM={config.slot_dim}",
        f"globals.DINO_MODEL={known.network.partition('.')[0]}",
        f"globals.FEAT_DIM={config.feature_dim}",
        f"globals.NUM_PATCHES={config.n_patches}",
        f"model.decoder.hidden_dims={[config.decoder_hidden] * config.decoder_layers}",
        "model.encoder.backbone.pretrained=false",
    ]


@torch.inference_mode()
def released_masks(model: nn.Module, frames: Tensor) -> Tensor:
    """Their decoder's masks (1,T,K,P) of normalised frames (1,T,3,H,W)."""
    masks: Tensor = model({"video": frames})["decoder"]["masks"]
    return masks


def _normalised(contender: Contender, n_frames: int, device: str) -> Tensor:
    """The frames of a measurement as their backbone takes them."""
    assert contender.config.backbone is not None
    known = spec(contender.config.backbone)
    frames = float_frames(frames_of(contender, n_frames))
    mean, std = (torch.tensor(values)[:, None, None] for values in (known.mean, known.std))
    return ((frames - mean) / std)[None].to(device)


def timing_theirs(model: nn.Module, frames: Tensor) -> Callable[[], dict[str, float]]:
    """The job whose time counts."""
    masks = partial(released_masks, model, frames)
    return lambda: {"total": milliseconds(masks, frames.device) / frames.shape[1]}


def prepare_theirs(
    checkout: Path, dataset: str, contender: Contender, n_frames: int, device: str
) -> Callable[[], dict[str, float]]:
    """The job whose memory counts."""
    model = released_model(checkout, dataset, contender.build(device))
    return timing_theirs(model, _normalised(contender, n_frames, device))


def compare(checkout: Path, settings: Settings) -> Iterator[Comparison]:
    """Theirs and ours at both of the paper's sizes, in turns."""
    for dataset, preset in settings.sizes.items():
        jobs: dict[str, Callable[[], dict[str, float]]] = {}
        memory, facts = {}, {}
        device, n_frames = settings.device, settings.frames
        for role in ("teacher", "student"):
            config = getattr(preset, role)
            ways = {
                f"ours, {role}": Contender(config),
                f"ours, {role}, attention masks": Contender(config, decode=False),
            }
            if settings.bf16:
                ways |= {
                    f"{name}, bf16": replace(way, precision="bf16") for name, way in ways.items()
                }
            own = ways[f"ours, {role}"]
            model, frames = own.build(device), _normalised(own, n_frames, device)
            theirs = released_model(checkout, dataset, model)
            gap = (released_masks(theirs, frames) - _our_masks(model, own, n_frames)).abs()
            facts[f"theirs, {role}"] = {"largest difference of a mask": float(gap.max())}
            jobs[f"theirs, {role}"] = timing_theirs(theirs, frames)
            jobs |= {name: timing(model, way, n_frames) for name, way in ways.items()}
            memory[f"theirs, {role}"] = peak_memory(
                prepare_theirs,
                *(checkout, dataset, own, n_frames, device),
                device=device,
            )
            memory |= {
                name: peak_memory(prepare, way, n_frames, device, device=device)
                for name, way in ways.items()
            }
        turns = take_turns(jobs, repeats=settings.repeats)
        yield Comparison(
            f"beside SlotContrast's code, {dataset}",
            *("ms per frame", "theirs, teacher", turns, memory, facts),
        )


@torch.inference_mode()
def _our_masks(model: VideoSlotModel, contender: Contender, n_frames: int) -> Tensor:
    frames = float_frames(frames_of(contender, n_frames))[None].to(model.decoder.positions.device)
    masks = model.forward_features(model.encode(frames), reconstruct=False).masks
    assert masks is not None
    return masks


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and store with the raw times."""
    parser = argparse.ArgumentParser("python -m benchmarks.reference", description=__doc__)
    parser.add_argument("checkout", type=Path, help="of github.com/martius-lab/slotcontrast")
    parser.add_argument("--repeats", type=int, default=7, help="turns that are measured (7)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the result file to write")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=["cpu", "cuda"], default=default)
    parser.add_argument("--bf16", action="store_true", help="ours in half precision as well")
    options = parser.parse_args(arguments)
    settings = Settings(options.repeats, device=options.device, bf16=options.bf16)
    started = time.monotonic()
    found: list[dict[str, Any]] = []
    for comparison in compare(options.checkout.resolve(), settings):
        print(comparison, end="\n\n", flush=True)
        found.append(comparison.record())
    results = run_results(
        config={**asdict(settings), "weights": "untrained"},
        models={},
        started=started,
        **INPUTS,
    )
    write_results(options.output, results | {"measurements": {"reference": found}})


if __name__ == "__main__":
    main()
