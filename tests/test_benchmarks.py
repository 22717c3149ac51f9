"""The benchmarks count what they say; no test asks how fast anything is."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny

from benchmarks import inference, onehot, reference, scoring
from benchmarks.__main__ import MEASUREMENTS, main
from benchmarks.comparison import Comparison, Settings
from slotmatch import metrics, paths
from slotmatch.model import PRESETS, ModelConfig, Preset, VideoSlotModel
from slotmatch.profiling import PeakMemory
from slotmatch.reporting.results import read_results


def turns(*totals: float) -> list[dict[str, float]]:
    return [{"decoder": total / 2, "total": total} for total in totals]


def test_ratios_are_those_of_each_turn() -> None:
    # The second turn met a busy machine: it doubles both times and leaves their ratio.
    comparison = Comparison(
        title="decoding",
        unit="ms per frame",
        baseline="plain",
        turns={"plain": turns(30, 60, 32), "fast": turns(10, 20, 16), "onnx": [{"total": 8}] * 3},
        memory={"fast": PeakMemory(3 * 2**20, 5 * 2**20)},
        facts={"fast": {"GFLOP": 2.5}},
    )
    row = comparison.summary().loc["fast"]
    assert row["total"] == 16
    assert row["decoder"] == 8
    assert (row["fastest"], row["slowest"]) == (10, 20)
    assert (row["from"], row["times faster"], row["to"]) == (2.5, 3, 3)
    assert (row["MiB before"], row["MiB added"]) == (3, 2)
    assert comparison.summary().loc["plain", "times faster"] == 1
    assert np.isnan(comparison.summary().loc["onnx", "decoder"])
    assert "ms per frame" in str(comparison)
    assert comparison.record()["turns"] == comparison.turns


@pytest.mark.parametrize("seed", range(3))
def test_one_mask_per_label_gives_the_same_scores(seed: int) -> None:
    true = scoring.regions(4, 40, 5, seed=seed)
    true[1] = 0  # a frame without objects
    pred = scoring.regions(4, 40, 6, seed=seed + 10)
    expected = onehot.video_metrics(true, pred)
    found = metrics.video_metrics(true, pred)
    assert set(found) - set(expected) == {"image_fg_ari_frames", "image_mbo_frames"}
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-6)


def test_half_precision_takes_part_if_asked() -> None:
    preset = PRESETS["mini"]
    usual, asked = inference.contenders(preset), inference.contenders(preset, bf16=True)
    assert {own.precision for own in usual.values()} == {"no"}
    halves = {"fast teacher, bf16", "fast student, bf16", "student, attention masks, bf16"}
    assert asked.keys() - usual.keys() == halves
    added = asked["fast student, bf16"]
    assert replace(added, precision="no") == asked["fast student"]
    student = replace(added, config=tiny("embedded_small", 32))
    model = student.build()
    assert inference.timing(model, student, 2)()["total"] > 0
    assert 50 < inference.same_slot(model, student, 2) <= 100
    assert inference.same_slot(model, replace(student, precision="no"), 2) == 100


def test_the_command_names_the_measurements_it_has(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--only", "a,z"])
    assert "z is not among a, b, c, d, e, f" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"({letter}) " in shown for letter in MEASUREMENTS)


STAND_IN = {
    "configuration.py": """
def load_config(path, overrides):
    said = dict(text.split("=", 1) for text in overrides)
    return type("Config", (), {"model": said, "optimizer": None})
""",
    "models.py": """
import torch
from slotmatch.data.preprocessing import unit_floats
from slotmatch.model import from_slotcontrast
from tests.released import released_shapes

class Model(torch.nn.Module):
    def __init__(self, shapes):
        super().__init__()
        self.tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}

    def state_dict(self):
        return self.tensors

    def load_state_dict(self, tensors):
        assert tensors.keys() == self.tensors.keys()
        for name, tensor in tensors.items():
            assert tensor.shape == self.tensors[name].shape, name
        self.tensors = tensors

    def forward(self, inputs):
        model = from_slotcontrast(self.tensors)
        mean, std = model.backbone.mean, model.backbone.std
        frames = inputs["video"] * std.view(3, 1, 1) + mean.view(3, 1, 1)
        return {"decoder": {"masks": model(frames).masks}}

def build(model, optimizer):
    assert model["globals.DINO_MODEL"] == "vit_small_patch14_dinov2"
    assert model["model.encoder.backbone.pretrained"] == "false"
    numbers = [int(model["globals." + name]) for name in
               ("NUM_SLOTS", "SLOT_DIM", "FEAT_DIM", "NUM_PATCHES")]
    return Model(released_shapes(*numbers))
""",
}
"""In place of their package: it speaks their tensor names, and computes with our importer."""


def test_the_released_implementation_runs_beside_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ModelConfig("dinov2_vits14", 28, n_slots=3, slot_dim=16, decoder_hidden=1024)
    with pytest.raises(FileNotFoundError, match=r"movi_e\.yaml is not there: give a checkout of"):
        reference.released_model(tmp_path, "movi_e", VideoSlotModel(config, pretrained=False))
    for name, text in {**STAND_IN, "__init__.py": ""}.items():
        path = tmp_path / "slotcontrast" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    for path in reference.CONFIGS.values():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    monkeypatch.setattr(sys, "path", [*sys.path, str(paths.REPOSITORY)])
    monkeypatch.setattr(reference, "peak_memory", lambda *_, **__: PeakMemory(1, 2))
    sizes = {"movi_e": Preset(config, config, "test")}
    monkeypatch.setattr(Settings, "sizes", property(lambda _: sizes))
    (found,) = reference.compare(tmp_path, Settings(repeats=2, bf16=True))
    assert set(found.turns) == set(found.memory)
    for role in ("teacher", "student"):
        assert found.facts[f"theirs, {role}"]["largest difference of a mask"] < 1e-6
        for way in ("attention masks", "bf16", "attention masks, bf16"):
            assert len(found.turns[f"ours, {role}, {way}"]) == 2
    theirs = sys.modules["slotcontrast.models"].Model
    monkeypatch.setattr(theirs, "state_dict", lambda own: {**own.tensors, "more": 0})
    with pytest.raises(ValueError, match=r"tensors that ours lacks: \['more'\]"):
        reference.released_model(tmp_path, "movi_e", VideoSlotModel(config, pretrained=False))


@pytest.mark.slow
def test_everything_is_measured_and_stored_in_one_command(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--repeats", "2", "--device", "cpu"]
    run = subprocess.run(
        [*command, "--output", str(output)], cwd=paths.REPOSITORY, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]
    results = read_results(output)
    assert list(results["measurements"]) == list(MEASUREMENTS)
    assert results["environment"]["packages"]["torch"]
    assert results["environment"]["hardware"]["threads"] >= 1
    for letter, comparisons in results["measurements"].items():
        for found in comparisons:
            assert found["title"].startswith(f"({letter}) ")
            assert found["title"] in run.stdout
            assert all(len(turns) == 2 for turns in found["turns"].values())
            assert all(turn["total"] > 0 for turns in found["turns"].values() for turn in turns)
    (found,) = results["measurements"]["a"]
    assert {"plain teacher", "fast student", "student, attention masks"} <= set(found["turns"])
    fast, light = (found["summary"][name] for name in ("fast student", "student, attention masks"))
    assert light["GFLOP"] < fast["GFLOP"]
    assert light["parameters"] < fast["parameters"]
    if sys.platform == "linux":
        (streaming,) = results["measurements"]["e"]
        assert all(memory["peak"] > memory["before"] for memory in streaming["memory"].values())
