"""Released SlotContrast checkpoints: files in their layout are written here, then read."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from released import released_heads
from torch import Tensor
from torch.testing import assert_close

from slotmatch.model import ModelConfig, VideoSlotModel, from_slotcontrast, load, save

Oracles = Mapping[str, np.ndarray]
VIT = "encoder.module.backbone.model."


def lightning(state_dict: Mapping[str, object]) -> dict[str, object]:
    """What Lightning puts around the weights."""
    return {
        "epoch": 0,
        "global_step": 100_000,
        "pytorch-lightning_version": "2.1.0",
        "state_dict": dict(state_dict),
        "loops": {"fit_loop": {"state_dict": {}}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": []}],
        "hyper_parameters": {"lr": 0.0004, "names": ["movi_e"], "size": (336, 336)},
    }


@pytest.fixture
def heads(oracles: Oracles) -> dict[str, Tensor]:
    return released_heads(oracles)


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
    assert model.config == ModelConfig(
        backbone=None,
        image_size=None,
        feature_shape=(9, 6),
        n_slots=5,
        slot_dim=8,
        decoder_hidden=16,
    )
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


def test_a_checkpoint_with_its_backbone_needs_no_download(tmp_path: Path) -> None:
    config = ModelConfig(
        backbone="dinov2_vits14", image_size=56, n_slots=3, slot_dim=8, decoder_hidden=16
    )
    original = VideoSlotModel(config, pretrained=False)
    path = tmp_path / "movi.ckpt"
    torch.save(lightning(released_names(original)), path)
    model = from_slotcontrast(path)
    assert model.config == config
    assert model.backbone.pretrained
    video = torch.rand((1, 2, 3, 40, 40), generator=torch.Generator().manual_seed(0))
    expected, output = original(video), model(video)
    assert torch.equal(output.slots, expected.slots)
    assert torch.equal(output.masks, expected.masks)
    assert torch.equal(output.reconstruction, expected.reconstruction)


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
    with pytest.raises(ValueError, match=r"movi\.ckpt is not a checkpoint, is cut short"):
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
    with pytest.raises(ValueError, match="holds more than tensors and plain values"):
        from_slotcontrast(path)
    assert not sprung.exists()


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        from_slotcontrast(tmp_path / "movi.ckpt")


@pytest.mark.parametrize(
    ("missing", "complaint"),
    [
        ("initializer.slots", r"tensors missing that give the model's sizes.*initial_slots\.slots"),
        ("decoder.module.pos_emb", r"missing that give the model's sizes.*decoder\.positions"),
        ("processor.module.corrector.to_q.weight", r"missing: slot_attention\.to_q\.weight"),
        ("decoder.module.mlp.layers.6.bias", r"missing: decoder\.layers\.3\.bias"),
    ],
)
def test_missing_tensors_are_named(heads: dict[str, Tensor], missing: str, complaint: str) -> None:
    del heads[missing]
    with pytest.raises(ValueError, match=complaint):
        from_slotcontrast(heads)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("loss.temperature", r"not tensors of a SlotContrast model: loss\.temperature"),
        ("decoder.module.mlp.layers.1.weight", r"not tensors of a SlotContrast model: decoder"),
        ("processor.module.corrector.to_z.weight", r"unexpected: slot_attention\.to_z\.weight"),
    ],
)
def test_tensors_that_do_not_belong_are_named(
    heads: dict[str, Tensor], name: str, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        from_slotcontrast(heads | {name: torch.zeros(1)})


def test_tensors_of_another_shape_are_named(heads: dict[str, Tensor]) -> None:
    heads["processor.module.corrector.to_k.weight"] = torch.zeros(8, 7)
    with pytest.raises(ValueError, match=r"slot_attention\.to_k\.weight \(8, 7\) for \(8, 8\)"):
        from_slotcontrast(heads)


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
