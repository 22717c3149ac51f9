"""The whole model: the reference's numbers, streaming, sizes, and files that come back the same."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from released import released_heads
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import normal, tiny
from torch import Tensor, nn
from torch.testing import assert_close

from slotmatch.losses import feature_reconstruction, slot_contrast
from slotmatch.model import (
    PRESETS,
    ModelConfig,
    Preset,
    SlotOutput,
    SlotState,
    VideoSlotModel,
    from_slotcontrast,
    load,
    modules,
    save,
)
from slotmatch.tensors import read_tensors, write_tensors

Oracles = Mapping[str, np.ndarray]
FROM_FEATURES = tiny(decoder_layers=3, n_heads=4, decoder_hidden=16)
EMBEDDED = tiny("embedded", 64, n_heads=4, decoder_hidden=16)


def expect(actual: Tensor, oracles: Oracles, key: str) -> None:
    assert_close(actual, torch.from_numpy(oracles[key]), rtol=1e-10, atol=1e-11)


def video(*, frames: int = 3, seed: int = 0) -> Tensor:
    return torch.rand((1, frames, 3, 64, 64), generator=torch.Generator().manual_seed(seed))


def equal_output(one: SlotOutput, other: SlotOutput) -> bool:
    return all(
        torch.equal(getattr(one, name), getattr(other, name))
        for name in ("slots", "attention", "masks", "reconstruction")
    )


@pytest.fixture
def reference(oracles: Oracles) -> VideoSlotModel:
    """The oracles' recurrent model, in double precision."""
    return from_slotcontrast(released_heads(oracles))


@pytest.fixture
def features(oracles: Oracles) -> Tensor:
    return torch.from_numpy(oracles["model.features"])


# Against the reference


def test_model_gives_the_reference_outputs(
    reference: VideoSlotModel, features: Tensor, oracles: Oracles
) -> None:
    output = reference.forward_features(features)
    expect(output.slots, oracles, "model.state")
    expect(output.attention, oracles, "model.attn_masks")
    expect(output.masks, oracles, "model.decoder_masks")
    expect(output.reconstruction, oracles, "model.reconstruction")
    expect(output.state.predicted, {"last": oracles["model.state_predicted"][:, -1]}, "last")
    assert output.state.frame == 4


def test_model_gives_the_reference_losses_and_all_gradients(
    reference: VideoSlotModel, features: Tensor, oracles: Oracles
) -> None:
    output = reference.forward_features(features)
    reconstruction = feature_reconstruction(output.reconstruction, features)
    contrast = slot_contrast(output.slots)
    expect(reconstruction, oracles, "model.loss_featrec")
    expect(contrast, oracles, "model.loss_contrast")
    total = reconstruction + 0.5 * contrast
    expect(total, oracles, "model.loss_total")
    total.backward()

    # The reader of released weights renames the reference's gradients as it does its weights.
    expected = from_slotcontrast(released_heads(oracles, "model.grad.")).state_dict()
    own = dict(reference.named_parameters())
    assert own.keys() == expected.keys()
    for name, parameter in own.items():
        assert parameter.grad is not None, name
        peak = expected[name].abs().max()
        assert (parameter.grad - expected[name]).abs().max() < 1e-10 * max(peak, 1), name


# The recurrence


def test_frame_by_frame_gives_the_whole_video_and_each_prediction(
    reference: VideoSlotModel, features: Tensor, oracles: Oracles
) -> None:
    state = None
    for t in range(4):
        output = reference.forward_features(features[:, t : t + 1], state=state)
        state = output.state
        assert state.frame == t + 1
        expected = {name: oracles[f"model.{name}"][:, t] for name in ("state", "decoder_masks")}
        expected["predicted"] = oracles["model.state_predicted"][:, t]
        expect(output.slots[:, 0], expected, "state")
        expect(output.masks[:, 0], expected, "decoder_masks")
        expect(state.predicted, expected, "predicted")


@pytest.mark.parametrize("blocks", [(1, 3), (3, 1), (2, 2)])
def test_blocks_of_any_size_give_the_whole_video(
    reference: VideoSlotModel, features: Tensor, blocks: tuple[int, ...]
) -> None:
    whole = reference.forward_features(features)
    state, outputs = None, []
    for block in features.split(blocks, dim=1):
        outputs.append(reference.forward_features(block, state=state))
        state = outputs[-1].state
    for name in ("slots", "attention", "masks", "reconstruction"):
        joined = torch.cat([getattr(output, name) for output in outputs], dim=1)
        assert_close(joined, getattr(whole, name), rtol=1e-10, atol=1e-12)
    assert_close(state.predicted, whole.state.predicted, rtol=1e-10, atol=1e-12)


def test_the_past_does_not_know_the_future(reference: VideoSlotModel, features: Tensor) -> None:
    changed = features.clone()
    changed[:, 2:] = normal(2, 2, 9, 6)
    before, after = (reference.forward_features(x).slots for x in (features, changed))
    assert_close(before[:, :2], after[:, :2])
    assert (before[:, 2:] - after[:, 2:]).abs().max() > 0.1


def test_the_first_frame_takes_more_iterations(features: Tensor) -> None:
    same = VideoSlotModel(replace(FROM_FEATURES, first_iterations=2)).double()
    more = VideoSlotModel(FROM_FEATURES).double()
    state = SlotState(normal(2, 4, 8), 5)
    one, three = (model.forward_features(features) for model in (same, more))
    assert not torch.allclose(one.slots, three.slots)
    one, three = (model.forward_features(features, state=state) for model in (same, more))
    assert torch.equal(one.slots, three.slots)


def test_clips_of_a_batch_do_not_meet(reference: VideoSlotModel, features: Tensor) -> None:
    both = reference.forward_features(features)
    alone = reference.forward_features(features[1:])
    assert_close(both.slots[1:], alone.slots)
    assert_close(both.masks[1:], alone.masks)


# Symmetries


def test_permuted_initial_slots_permute_everything_but_the_reconstruction(
    reference: VideoSlotModel, features: Tensor
) -> None:
    before, order = reference.forward_features(features), torch.tensor([3, 0, 4, 1, 2])
    with torch.no_grad():
        reference.initial_slots.slots.copy_(reference.initial_slots.slots[order])
    after = reference.forward_features(features)
    for name in ("slots", "attention", "masks"):
        assert_close(getattr(after, name), getattr(before, name)[:, :, order])
    assert_close(after.reconstruction, before.reconstruction)


def test_patches_moved_with_their_positions_move_the_masks_only(
    reference: VideoSlotModel, features: Tensor
) -> None:
    before, places = reference.forward_features(features), torch.tensor([8, 2, 0, 1, 7, 6, 3, 5, 4])
    with torch.no_grad():
        reference.decoder.positions.copy_(reference.decoder.positions[places])
    after = reference.forward_features(features[:, :, places])
    assert_close(after.slots, before.slots)
    assert_close(after.masks, before.masks[..., places])
    assert_close(after.reconstruction, before.reconstruction[:, :, places])


def test_chosen_patches_and_skipped_parts_leave_the_rest_as_it_is(
    reference: VideoSlotModel, features: Tensor
) -> None:
    whole, patches = reference.forward_features(features), torch.tensor([8, 1, 4])
    some = reference.forward_features(features, patches=patches)
    assert_close(some.masks, whole.masks[..., patches])
    assert_close(some.reconstruction, whole.reconstruction[:, :, patches])
    assert_close(some.attention, whole.attention)
    masks_only = reference.forward_features(features, reconstruct=False)
    assert masks_only.reconstruction is None
    assert_close(masks_only.masks, whole.masks)
    slots_only = reference.forward_features(features, decode=False)
    assert slots_only.masks is None
    assert slots_only.reconstruction is None
    assert torch.equal(slots_only.slots, whole.slots)
    assert_close(reference.decode(whole.slots)[0], whole.masks)


def test_mean_error_over_random_patches_is_unbiased(
    reference: VideoSlotModel, features: Tensor
) -> None:
    output = reference.forward_features(features)
    whole = feature_reconstruction(output.reconstruction, features)
    parts = [
        feature_reconstruction(
            reference.decode(output.slots, patches=patches)[1], features[:, :, patches]
        )
        for patches in torch.tensor([8, 2, 0, 1, 7, 6, 3, 5, 4]).split(3)
    ]
    assert_close(torch.stack(parts).mean(), whole)


# Decoding piece by piece


@pytest.mark.parametrize("values", [1, 4 * 16, 5 * 4 * 16, 9 * 4 * 16, 3 * 9 * 4 * 16])
@pytest.mark.parametrize("patches", [None, torch.tensor([8, 1, 4, 1])])
def test_pieces_of_any_size_give_the_whole_with_its_gradients(
    monkeypatch: pytest.MonkeyPatch, values: int, patches: Tensor | None
) -> None:
    """One value, one patch, part of a frame, one frame, some of the frames at a time."""
    model, slots = VideoSlotModel(FROM_FEATURES).double(), normal(2, 4, 4, 8).requires_grad_()

    def decoded() -> tuple[Tensor, ...]:
        masks, reconstruction = model.decode(slots, patches=patches)
        loss = (masks * normal(*masks.shape, seed=1)).sum() + reconstruction.square().sum()
        weights = [slots, *model.decoder.parameters()]
        return masks, reconstruction, *torch.autograd.grad(loss, weights)

    whole = decoded()
    monkeypatch.setitem(modules.VALUES_AT_ONCE, "cpu", values)
    for one, other in zip(decoded(), whole, strict=True):
        assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n_frames", [1, 50])
def test_the_decoder_holds_a_bounded_number_of_values(
    monkeypatch: pytest.MonkeyPatch, n_frames: int
) -> None:
    model, seen = VideoSlotModel(FROM_FEATURES), []
    for layer in model.decoder.layers:
        layer.register_forward_hook(lambda _, given, made: seen.append(made.numel()))
    monkeypatch.setitem(modules.VALUES_AT_ONCE, "cpu", 5 * 4 * 16)
    model.decode(torch.randn(1, n_frames, 4, 8))
    assert max(seen) == 5 * 4 * 16  # of a frame's 9 patches, 4 slots and 16 values


# Randomness


def test_seeds_make_the_weights_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = VideoSlotModel(FROM_FEATURES, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again = VideoSlotModel(FROM_FEATURES, seed=3).state_dict()
    other = VideoSlotModel(FROM_FEATURES, seed=4).state_dict()
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["initial_slots.slots"], other["initial_slots.slots"])


def test_sampled_slots_come_from_the_generator_that_is_passed() -> None:
    model = VideoSlotModel(replace(FROM_FEATURES, initial_slots="sampled")).double()
    features = normal(2, 3, 9, 6)
    with pytest.raises(ValueError, match=r"need a torch\.Generator"):
        model.forward_features(features)
    before = torch.get_rng_state()
    one, same, other = (
        model.forward_features(features, generator=torch.Generator().manual_seed(seed)).slots
        for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)
    state = SlotState(normal(2, 4, 8), 1)
    model.forward_features(features, state=state)  # nothing left to draw


# Inputs


def test_cached_half_precision_features_are_welcome() -> None:
    model = VideoSlotModel(FROM_FEATURES)
    features = normal(2, 3, 9, 6).half()
    output = model.forward_features(features)
    assert output.slots.dtype == torch.float32
    assert torch.equal(output.slots, model.forward_features(features.float()).slots)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_features_that_are_not_finite_are_refused(value: float) -> None:
    features = normal(2, 3, 9, 6)
    features[1, 2, 8, 5] = value
    with pytest.raises(ValueError, match="features hold NaN or infinity"):
        VideoSlotModel(FROM_FEATURES).forward_features(features)


def test_shapes_that_do_not_fit_are_named(reference: VideoSlotModel, features: Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected features \(B,T,9,6\), got \(4, 9, 6\)"):
        reference.forward_features(features[0])
    with pytest.raises(ValueError, match=r"got \(2, 4, 8, 6\)"):
        reference.forward_features(features[:, :, 1:])
    with pytest.raises(ValueError, match=r"got \(2, 0, 9, 6\)"):
        reference.forward_features(features[:, :0])
    state = reference.forward_features(features).state
    with pytest.raises(ValueError, match=r"state of slots \(1, 5, 8\), got \(2, 5, 8\)"):
        reference.forward_features(features[:1], state=state)
    with pytest.raises(ValueError, match="no backbone: give features to forward_features"):
        reference(torch.zeros(1, 1, 3, 28, 28))


def test_video_goes_through_the_frozen_backbone() -> None:
    model = VideoSlotModel(EMBEDDED, pretrained=False).train()
    clip = video()
    output = model(clip)
    encoded = model.forward_features(model.encode(clip))
    assert torch.equal(output.slots, encoded.slots)
    assert output.reconstruction.shape == (1, 3, 16, EMBEDDED.feature_dim)
    output.reconstruction.sum().backward()
    assert not model.backbone.training
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith("backbone."), name


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"n_slots": 0}, "n_slots must be a whole number of 1 or more, got 0"),
        ({"slot_dim": 8.0}, r"slot_dim must be a whole number of 1 or more, got 8\.0"),
        ({"slot_dim": 10}, "slot_dim 10 is not divisible by n_heads 4"),
        ({"gru_state": "x"}, r"gru_state must be one of \('normalised', 'raw'\), got 'x'"),
        ({"initial_slots": "x"}, r"one of \('learned', 'sampled'\)"),
        ({"predictor_logits": "x"}, r"one of \('multiplied', 'divided'\)"),
        ({"position_init": "x"}, r"one of \('normal', 'sincos'\)"),
        ({"backbone": "embedded"}, "either backbone and image_size, or feature_shape"),
        ({"feature_shape": None}, "either backbone and image_size, or feature_shape"),
    ],
)
def test_configs_that_cannot_be_are_refused(changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        replace(FROM_FEATURES, **changes)


# Presets


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def on_paper(config: ModelConfig) -> VideoSlotModel:
    """The model without memory for its weights."""
    with torch.device("meta"):
        return VideoSlotModel(config, pretrained=False)


PARTS = ("backbone", "transform", "initial_slots", "slot_attention", "predictor", "decoder")


@pytest.mark.parametrize(
    ("preset", "role", "parts", "total"),
    [
        ("movi_c", "teacher", (86579712, 1281088, 704, 70720, 49984, 2990849), 90973057),
        ("movi_c", "student", (22056192, 345664, 704, 70720, 49984, 2597249), 25120513),
        ("movi_e", "teacher", (86579712, 1379456, 1920, 280704, 198272, 3093249), 91533313),
        ("movi_e", "student", (22056192, 394880, 1920, 280704, 198272, 2699649), 25631617),
        ("ytvis2021", "teacher", (86579712, 1281088, 448, 70720, 49984, 3041601), 91023553),
        ("ytvis2021", "student", (22056192, 345664, 448, 70720, 49984, 2648001), 25171009),
    ],
)
def test_presets_have_the_published_parameter_counts(
    preset: str, role: str, parts: tuple[int, ...], total: int
) -> None:
    model = on_paper(getattr(PRESETS[preset], role))
    assert tuple(parameters(model.get_submodule(part)) for part in PARTS) == parts
    assert parameters(model) == total
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == total - parts[0]


def test_presets_without_a_published_config_borrow_their_sizes() -> None:
    for ours, published in [("movi_d", "movi_e"), ("davis2017", "ytvis2021")]:
        assert PRESETS[ours].teacher == PRESETS[published].teacher
        assert PRESETS[ours].student == PRESETS[published].student
        assert PRESETS[ours].origin.startswith("ours")


def test_the_mini_student_is_at_least_3_6_times_smaller() -> None:
    mini = PRESETS["mini"]
    teacher, student = (parameters(on_paper(config)) for config in (mini.teacher, mini.student))
    assert teacher / student >= 3.6


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_teacher_and_student_of_a_preset_can_be_compared(preset: str) -> None:
    teacher, student = PRESETS[preset].teacher, PRESETS[preset].student
    for name in ("n_slots", "slot_dim", "n_patches"):
        assert getattr(teacher, name) == getattr(student, name)
    assert teacher.grid**2 == teacher.n_patches


def test_a_preset_of_unlike_models_is_refused() -> None:
    with pytest.raises(ValueError, match="need one n_slots, got 4 and 5"):
        Preset(FROM_FEATURES, replace(FROM_FEATURES, n_slots=5), "a mistake")


# Files


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save(VideoSlotModel(FROM_FEATURES, seed=1), path)
    return path


def rewritten(path: Path, **header: str) -> Path:
    """The file with other entries in its header."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = file.metadata() | header
    save_file(tensors, path, metadata=header)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_saved_model_comes_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    config = replace(
        FROM_FEATURES, gru_state="raw", predictor_logits="divided", position_init="sincos"
    )
    model, path = VideoSlotModel(config, seed=5).to(dtype).train(), tmp_path / "m.safetensors"
    save(model, path)
    again = load(path)
    assert again.config == config
    assert not again.training
    features = normal(2, 3, 9, 6).to(dtype)
    assert again.forward_features(features).slots.dtype == dtype
    assert equal_output(again.forward_features(features), model.forward_features(features))
    assert list(tmp_path.iterdir()) == [path]


def test_equal_models_give_equal_bytes(tmp_path: Path) -> None:
    path, contents = tmp_path / "m.safetensors", set()
    for model in [VideoSlotModel(FROM_FEATURES, seed=5) for _ in range(4)]:
        save(model, path)
        contents.add(path.read_bytes())
    save(load(path), path)
    contents.add(path.read_bytes())
    assert len(contents) == 1
    save(VideoSlotModel(FROM_FEATURES, seed=6), path)
    assert path.read_bytes() not in contents


def test_a_saved_model_finds_its_pretrained_backbone_again(tmp_path: Path) -> None:
    model, path = VideoSlotModel(EMBEDDED), tmp_path / "m.safetensors"
    save(model, path)
    again = load(path)
    assert again.backbone.pretrained
    assert equal_output(again(video()), model(video()))
    heads = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert path.stat().st_size < 4 * heads + 10_000


def test_an_untrained_backbone_is_kept_inside_or_refused(tmp_path: Path) -> None:
    model, path = VideoSlotModel(EMBEDDED, pretrained=False), tmp_path / "m.safetensors"
    save(model, path, include_backbone=True)
    again = load(path)
    assert not again.backbone.pretrained
    assert equal_output(again(video()), model(video()))
    save(model, path)
    with pytest.raises(ValueError, match="trained on embedded weights with SHA-256"):
        load(path)


def test_backbone_weights_with_another_checksum_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save(VideoSlotModel(EMBEDDED, pretrained=False), path, include_backbone=True)
    with pytest.raises(ValueError, match="with SHA-256 0000, but those at hand have"):
        load(rewritten(path, backbone_sha256="0000"))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_file_that_is_cut_short_says_so(saved: Path, share: float) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="cut short or not a safetensors file: copy it again"):
        load(saved)


def test_tensors_of_another_type_are_named(saved: Path) -> None:
    tensors, header = read_tensors(saved)
    write_tensors({name: tensor.int() for name, tensor in tensors.items()}, saved, header)
    with pytest.raises(ValueError, match=r"of another type: .*decoder.* torch\.int32"):
        load(saved)


def test_files_that_are_not_ours_are_refused(saved: Path) -> None:
    path = saved.with_name("other.safetensors")
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="was not written by slotmatch"):
        load(path)
    with pytest.raises(ValueError, match=r"format is 'slotmatch 9', not 'slotmatch 1'"):
        load(rewritten(saved, format="slotmatch 9"))


def test_a_config_of_another_version_or_other_sizes_is_refused(saved: Path) -> None:
    config = asdict(FROM_FEATURES)
    with pytest.raises(ValueError, match=r"header this version cannot read.*momentum"):
        load(rewritten(saved, config=json.dumps(config | {"momentum": 1})))
    with pytest.raises(ValueError, match=r"header this version cannot read.*n_slots"):
        load(rewritten(saved, config=json.dumps(config | {"n_slots": -1})))
    with pytest.raises(ValueError, match=r"initial_slots\.slots \(4, 8\) for \(5, 8\)"):
        load(rewritten(saved, config=json.dumps(config | {"n_slots": 5})))
    with pytest.raises(ValueError, match=r"missing: decoder\.layers\.4\.bias"):
        load(rewritten(saved, config=json.dumps(config | {"decoder_layers": 4})))


def test_an_unknown_name_lists_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="'mini-professor' is neither a file nor a model"):
        load("mini-professor")
    with pytest.raises(FileNotFoundError, match="neither a file nor a model"):
        load(tmp_path)
