"""Released SlotContrast checkpoints: files in their layout are written here, then read."""

import logging
import pickle
import socket
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from released import RELEASES, released_heads, released_shapes
from safetensors.torch import save_file
from tiny import tiny
from torch import Tensor
from torch.testing import assert_close

from slotmatch.backbones import registry
from slotmatch.model import PRESETS, VideoSlotModel, from_slotcontrast, load, save
from slotmatch.model.slotcontrast import describe

Oracles = Mapping[str, np.ndarray]
VIT = "encoder.module.backbone.model."


def lightning(state_dict: Mapping[str, object]) -> dict[str, object]:
    """What Lightning puts around the weights."""
    moments = {"step": torch.tensor(1.0), "exp_avg": torch.zeros(3), "exp_avg_sq": torch.ones(3)}
    return {
        "epoch": 0,
        "global_step": 100_000,
        "pytorch-lightning_version": "1.9.5",
        "state_dict": OrderedDict(state_dict),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_loop.batch_progress": {"total": {}}}},
        "callbacks": {
            "ModelCheckpoint{'monitor': None}": {
                "best_model_path": "checkpoints/step=100000.ckpt",
                "best_model_score": None,
                "kth_value": torch.tensor(float("inf")),
            }
        },
        "optimizer_states": [
            {"state": {0: moments}, "param_groups": [{"lr": 2e-4, "betas": (0.9, 0.999)}]}
        ],
        "lr_schedulers": [{"last_epoch": 100_000, "_last_lr": [2e-4], "lr_lambdas": [None]}],
        "hyper_parameters": {"lr": 0.0004, "names": ["movi_e"], "size": (336, 336)},
    }


@pytest.fixture
def heads(oracles: Oracles) -> dict[str, Tensor]:
    return released_heads(oracles)


@pytest.fixture(scope="module")
def original() -> VideoSlotModel:
    """A small model over an untrained ViT-S/14."""
    config = tiny("dinov2_vits14", 56, decoder_layers=3, n_heads=4, n_slots=3, decoder_hidden=16)
    return VideoSlotModel(config, pretrained=False)


@pytest.fixture
def checkpoint(heads: dict[str, Tensor], tmp_path: Path) -> Path:
    path = tmp_path / "movi.ckpt"
    torch.save(lightning(heads), path)
    return path


def released_names(model: VideoSlotModel) -> dict[str, Tensor]:
    """The tensors of a ViT model under the names and in the shapes of a release."""
    renamed = {
        "initial_slots.": "initializer.",
        "backbone.network.": VIT,
        "transform.": "encoder.module.output_transform.layers.",
        "slot_attention.mlp.": "processor.module.corrector.mlp.layers.",
        "slot_attention.": "processor.module.corrector.",
        "predictor.to_qkv.": "processor.module.predictor.blocks.0.self_attn.qkv.",
        "predictor.to_out.": "processor.module.predictor.blocks.0.self_attn.out_proj.",
        "predictor.mlp.0.": "processor.module.predictor.blocks.0.linear1.",
        "predictor.mlp.2.": "processor.module.predictor.blocks.0.linear2.",
        "predictor.norm_attention.": "processor.module.predictor.blocks.0.norm1.",
        "predictor.norm_mlp.": "processor.module.predictor.blocks.0.norm2.",
        "decoder.layers.0.": "decoder.module.mlp.layers.0.",
        "decoder.layers.1.": "decoder.module.mlp.layers.2.",
        "decoder.layers.2.": "decoder.module.mlp.layers.4.",
        "decoder.layers.3.": "decoder.module.mlp.layers.6.",
        "decoder.positions": "decoder.module.pos_emb",
    }
    tensors = {}
    for name, tensor in model.state_dict().items():
        ours = next(start for start in renamed if name.startswith(start))
        tensors[renamed[ours] + name.removeprefix(ours)] = tensor
    tensors["initializer.slots"] = tensors["initializer.slots"][None]
    tensors["decoder.module.pos_emb"] = tensors["decoder.module.pos_emb"][None, None]
    for name in ("norm.weight", "norm.bias"):  # the released encoder stops before its final norm
        del tensors[VIT + name]
    return tensors


# What can be read


def test_sizes_come_from_the_tensors(checkpoint: Path) -> None:
    model = from_slotcontrast(checkpoint)
    assert model.config == tiny(decoder_layers=3, n_heads=4, n_slots=5, decoder_hidden=16)
    assert not model.training
    assert next(model.parameters()).dtype == torch.float64


def test_file_content_and_bare_weights_give_one_model(
    checkpoint: Path, heads: dict[str, Tensor], oracles: Oracles
) -> None:
    features = torch.from_numpy(oracles["model.features"])
    for source in (checkpoint, str(checkpoint), lightning(heads), heads):
        slots = from_slotcontrast(source).forward_features(features).slots
        assert_close(slots, torch.from_numpy(oracles["model.state"]), rtol=1e-10, atol=1e-11)


def test_the_number_of_heads_is_the_callers_to_say(
    heads: dict[str, Tensor], oracles: Oracles
) -> None:
    features = torch.from_numpy(oracles["model.features"])
    other = from_slotcontrast(heads, n_heads=2).forward_features(features).slots
    assert (other - torch.from_numpy(oracles["model.state"])).abs().max() > 0.1
    with pytest.raises(ValueError, match="slot_dim 8 is not divisible by n_heads 3"):
        from_slotcontrast(heads, n_heads=3)


def test_the_source_stays_as_it_was(heads: dict[str, Tensor]) -> None:
    before = {name: tensor.clone() for name, tensor in heads.items()}
    model = from_slotcontrast(heads)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert all(torch.equal(heads[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("file", "preset", "role", "size"),
    [
        ("movi_c.ckpt", "movi_c", "student", "11 slots of width 64 over dinov2_vits14 at 336 px"),
        ("movi_e.ckpt", "movi_e", "teacher", "15 slots of width 128 over dinov2_vitb14 at 336 px"),
        ("ytvis.ckpt", "ytvis2021", "teacher", "7 slots of width 64 over dinov2_vitb14 at 518 px"),
    ],
)
def test_every_tensor_of_a_release_finds_its_place(
    file: str, preset: str, role: str, size: str
) -> None:
    shapes = released_shapes(**RELEASES[file])
    assert len(shapes) == 217
    with torch.device("meta"):
        model = from_slotcontrast({name: torch.empty(shape) for name, shape in shapes.items()})
    assert model.config == getattr(PRESETS[preset], role)
    assert describe(model.config) == f"the sizes of SlotContrast's {preset} model: {size}"
    final_norm = 2 * model.config.feature_dim  # the only weights that a release leaves out
    n_weights = sum(parameter.numel() for parameter in model.parameters())
    assert n_weights - final_norm == sum(torch.Size(shape).numel() for shape in shapes.values())


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.slow
def test_a_release_of_full_size_is_read_from_its_file(tmp_path: Path, no_network: None) -> None:
    """The 364 MB of ytvis.ckpt; each tensor is filled with its number in the file."""
    shapes = released_shapes(**RELEASES["ytvis.ckpt"])
    numbered = {name: torch.full(shapes[name], float(i)) for i, name in enumerate(shapes)}
    torch.save(lightning(numbered), tmp_path / "ytvis.ckpt")
    del numbered
    model = load(tmp_path / "ytvis.ckpt")
    (tmp_path / "ytvis.ckpt").unlink()
    assert model.config == PRESETS["ytvis2021"].teacher
    own = model.state_dict()
    assert model.backbone is not None
    assert own["backbone.network.pos_embed"].shape == (1, 1370, 768)
    # Our names of the heads in the order of the file, and timm's own of the backbone.
    heads = [
        "initial_slots.slots",
        *(f"transform.{i}.{kind}" for i in (0, 1, 3) for kind in ("weight", "bias")),
        *(f"slot_attention.to_{letter}.weight" for letter in "kvq"),
        *(f"slot_attention.gru.{w}_{g}" for w in ("weight", "bias") for g in ("ih", "hh")),
        *(f"slot_attention.mlp.{i}.{kind}" for i in (0, 1, 3) for kind in ("weight", "bias")),
    ]
    places = {name: float(i) for i, name in enumerate(shapes)}
    released = [name for name in shapes if not name.startswith(VIT)][: len(heads)]
    for ours, theirs in zip(heads, released, strict=True):
        assert own[ours].unique().tolist() == [places[theirs]], ours
    for theirs in shapes:
        if theirs.startswith(VIT):
            tensor = own["backbone.network." + theirs.removeprefix(VIT)]
            assert tensor.flatten()[[0, -1]].tolist() == [places[theirs]] * 2, theirs


def test_a_checkpoint_with_its_backbone_needs_no_download(
    tmp_path: Path, original: VideoSlotModel, no_network: None
) -> None:
    path = tmp_path / "movi.ckpt"
    torch.save(lightning(released_names(original)), path)
    model = from_slotcontrast(path)
    assert model.config == original.config
    assert model.backbone.pretrained
    video = torch.rand((1, 2, 3, 40, 40), generator=torch.Generator().manual_seed(0))
    expected, output = original(video), model(video)
    assert torch.equal(output.slots, expected.slots)
    assert torch.equal(output.masks, expected.masks)
    assert torch.equal(output.reconstruction, expected.reconstruction)


def test_an_imported_model_saved_alone_finds_its_backbone_at_the_publishers(
    tmp_path: Path, original: VideoSlotModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published ViT has a final norm, which a release lacks and no feature depends on."""
    model, path = from_slotcontrast(released_names(original)), tmp_path / "teacher.safetensors"
    save(model, path)
    assert path.stat().st_size < 3_000_000
    published = original.backbone.network.state_dict()
    published["norm.weight"] = torch.full_like(published["norm.weight"], 7.0)
    file = tmp_path / "dinov2.safetensors"
    save_file(published, file)
    monkeypatch.setattr(registry, "_weights_source", lambda *_: {"file": str(file)})
    again, video = load(path), torch.rand((1, 1, 3, 56, 56))
    assert torch.equal(again(video).masks, model(video).masks)
    published["blocks.11.norm2.bias"] = published["blocks.11.norm2.bias"] + 1
    save_file(published, file)
    with pytest.raises(ValueError, match="was trained on dinov2_vits14 weights with SHA-256"):
        load(path)


def test_load_takes_a_release_and_says_what_for(
    checkpoint: Path, oracles: Oracles, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        model = load(checkpoint)
    features = torch.from_numpy(oracles["model.features"])
    slots = model.forward_features(features).slots
    assert_close(slots, torch.from_numpy(oracles["model.state"]), rtol=1e-10, atol=1e-11)
    assert caplog.messages == [
        "movi.ckpt has sizes of no release: 5 slots of width 8 over features 9 x 6 without a "
        "backbone; its predictor gets 4 heads"
    ]


def test_a_backbone_of_another_size_is_left_out_with_a_warning(
    heads: dict[str, Tensor], oracles: Oracles
) -> None:
    tiny = {
        VIT + key.removeprefix("vit.w."): torch.from_numpy(oracles[key])
        for key in oracles
        if key.startswith("vit.w.")
    }
    with pytest.warns(UserWarning, match=f"{len(tiny)} tensors of a backbone other than ViT-S"):
        model = from_slotcontrast(heads | tiny)
    assert model.backbone is None
    assert model.config == from_slotcontrast(heads).config


def test_an_imported_model_can_be_saved_and_loaded(checkpoint: Path, oracles: Oracles) -> None:
    model, path = from_slotcontrast(checkpoint), checkpoint.with_suffix(".safetensors")
    save(model, path)
    features = torch.from_numpy(oracles["model.features"])
    assert torch.equal(
        load(path).forward_features(features).masks, model.forward_features(features).masks
    )


# What cannot


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_file_that_is_cut_short_says_so(checkpoint: Path, share: float) -> None:
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"movi\.ckpt is not a checkpoint or is cut short"):
        from_slotcontrast(checkpoint)


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("plain_pickle", [False, True])
def test_objects_are_refused_and_never_run(
    heads: dict[str, Tensor], tmp_path: Path, plain_pickle: bool
) -> None:
    path, sprung = tmp_path / "movi.ckpt", tmp_path / "sprung"
    content = lightning(heads) | {"callbacks": Trap(sprung)}
    if plain_pickle:
        path.write_bytes(pickle.dumps(content["callbacks"], protocol=2))
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=r"holds more than tensors .*getattr\), which could run"):
        from_slotcontrast(path)
    assert not sprung.exists()


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        from_slotcontrast(tmp_path / "movi.ckpt")


@pytest.mark.parametrize(
    ("missing", "complaint"),
    [
        ("initializer.slots", r"missing that give its sizes, initializer\.slots$"),
        ("decoder.module.pos_emb", r"missing that give its sizes, decoder\.module\.pos_emb$"),
        ("processor.module.corrector.to_q.weight", r"missing: processor.*corrector\.to_q\.weight$"),
        ("decoder.module.mlp.layers.6.bias", r"missing: decoder\.module\.mlp\.layers\.6\.bias$"),
    ],
)
def test_missing_tensors_are_named(heads: dict[str, Tensor], missing: str, complaint: str) -> None:
    del heads[missing]
    with pytest.raises(ValueError, match=complaint):
        from_slotcontrast(heads)


def test_one_error_names_all_that_is_wrong_as_the_file_names_it(heads: dict[str, Tensor]) -> None:
    del heads["processor.module.predictor.blocks.0.linear2.bias"]
    heads["processor.module.corrector.to_k.weight"] = torch.zeros(8, 7)
    foreign = ("loss.temperature", "decoder.module.mlp.layers.1.weight", "decoder.mask")
    with pytest.raises(ValueError) as refusal:  # noqa: PT011 (the message is checked below)
        from_slotcontrast(heads | dict.fromkeys(foreign, torch.zeros(1)))
    assert str(refusal.value) == (
        "the tensors of the checkpoint do not fit the model's config: "
        "missing: processor.module.predictor.blocks.0.linear2.bias; "
        "unexpected: decoder.mask, decoder.module.mlp.layers.1.weight, loss.temperature; "
        "of another shape: processor.module.corrector.to_k.weight (8, 7) for (8, 8)"
    )


def test_another_kind_of_model_is_told_by_its_names() -> None:
    other = {f"features.{i}.weight": torch.zeros(1) for i in range(12)}
    with pytest.raises(
        ValueError,
        match=r"not a SlotContrast model: .*initializer\.slots, .* do not "
        r"belong: features\.0\.weight, .*features\.9\.weight and 2 more$",
    ):
        from_slotcontrast(other)


def test_slots_without_rows_are_refused(heads: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"initializer\.slots must hold rows .*, not \(8,\)"):
        from_slotcontrast(heads | {"initializer.slots": torch.zeros(8)})


def test_hidden_layers_must_agree(heads: dict[str, Tensor]) -> None:
    heads["decoder.module.mlp.layers.2.weight"] = torch.zeros(12, 16)
    with pytest.raises(ValueError, match=r"hidden layers .* one width, got \[16, 12, 16\]"):
        from_slotcontrast(heads)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({}, "expected a state dict"),
        ({"state_dict": {}}, "expected a state dict"),
        ({"state_dict": {"a": 1.0}}, "not tensors: a$"),
        ({"state_dict": {"a\nb": 1.0}}, r"not tensors: 'a\\nb'$"),
        (lightning({}) | {"state_dict": None}, "not tensors: epoch, global_step"),
    ],
)
def test_content_that_is_no_state_dict_is_refused(
    content: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        from_slotcontrast(content)


def test_a_file_with_a_list_inside_is_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "list.ckpt")
    with pytest.raises(ValueError, match="expected a state dict"):
        from_slotcontrast(tmp_path / "list.ckpt")
