"""The parts of the model against the reference's numbers, and what must hold of any such part."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from tiny import normal
from torch import Tensor, nn
from torch.testing import assert_close

from slotmatch.model.modules import (
    LearnedSlots,
    MLPDecoder,
    SampledSlots,
    SlotAttention,
    SlotPredictor,
    feature_transform,
    sincos_positions,
)
from slotmatch.model.plain import PlainDecoder

Oracles = Mapping[str, np.ndarray]
TRANSFORM = {"layers.": ""}
SLOT_ATTENTION = {"mlp.layers.": "mlp."}
PREDICTOR = {
    "blocks.0.self_attn.qkv.": "to_qkv.",
    "blocks.0.self_attn.out_proj.": "to_out.",
    "blocks.0.linear1.": "mlp.0.",
    "blocks.0.linear2.": "mlp.2.",
    "blocks.0.norm1.": "norm_attention.",
    "blocks.0.norm2.": "norm_mlp.",
}
DECODER = {"pos_emb": "positions"} | {f"mlp.layers.{2 * i}.": f"layers.{i}." for i in range(4)}


def fill(module: nn.Module, oracles: Oracles, case: str, names: dict[str, str]) -> None:
    """Give a module the reference's weights, renamed."""
    weights = {}
    for key in oracles:
        if key.startswith(f"{case}.w."):
            name = key.removeprefix(f"{case}.w.")
            for theirs, ours in names.items():
                if name.startswith(theirs):
                    name = ours + name.removeprefix(theirs)
                    break
            weights[name] = torch.from_numpy(oracles[key])
    module.double().load_state_dict(
        {name: weight.reshape(module.get_parameter(name).shape) for name, weight in weights.items()}
    )


def expect(actual: Tensor, oracles: Oracles, key: str) -> None:
    assert_close(actual, torch.from_numpy(oracles[key]), rtol=1e-10, atol=1e-12)


# Feature transform


def test_transform_gives_the_reference_output(oracles: Oracles) -> None:
    transform = feature_transform(6, 4)
    fill(transform, oracles, "transform", TRANSFORM)
    expect(transform(torch.from_numpy(oracles["transform.in"])), oracles, "transform.out")


# Initial slots


def test_learned_slots_are_one_table_for_all_clips() -> None:
    start = LearnedSlots(5, 8)
    slots = start(3)
    assert slots.shape == (3, 5, 8)
    assert_close(slots[0], start.slots)
    assert_close(slots[1], slots[2])
    slots.sum().backward()
    assert_close(start.slots.grad, torch.full((5, 8), 3.0))


def test_sampled_slots_follow_their_gaussian_and_generator() -> None:
    start = SampledSlots(2000, 4)
    with torch.no_grad():
        start.mean.copy_(torch.tensor([0.0, 1.0, -2.0, 5.0]))
        start.log_std.copy_(torch.tensor([0.1, 1.0, 2.0, 0.5]).log())
    slots = start(2, torch.Generator().manual_seed(0))
    assert slots.shape == (2, 2000, 4)
    flat = slots.flatten(0, 1)
    assert_close(flat.mean(0), start.mean, rtol=0.1, atol=0.1)
    assert_close(flat.std(0), start.log_std.exp(), rtol=0.05, atol=0)
    assert_close(slots, start(2, torch.Generator().manual_seed(0)), rtol=0, atol=0)
    assert not torch.equal(slots, start(2, torch.Generator().manual_seed(1)))
    slots.square().sum().backward()
    assert start.mean.grad is not None
    assert start.log_std.grad is not None
    assert start.log_std.grad.abs().min() > 0


def test_slots_and_positions_start_at_the_scale_of_the_reference() -> None:
    assert LearnedSlots(500, 64).slots.std().item() == pytest.approx(1 / 8, rel=0.03)
    assert MLPDecoder(64, 6, 500).positions.std().item() == pytest.approx(1 / 8, rel=0.03)
    start = SampledSlots(5, 64)
    assert_close(start.log_std.exp(), torch.full((64,), 1 / 8))
    assert start.mean.std().item() == pytest.approx(1 / 8, rel=0.3)


def test_sampled_slots_refuse_to_draw_without_a_generator() -> None:
    start = SampledSlots(2, 4)
    with pytest.raises(ValueError, match=r"need a torch\.Generator"):
        start(1)
    before = torch.get_rng_state()
    start(1, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)


# Slot attention


@pytest.fixture
def attention(oracles: Oracles) -> SlotAttention:
    module = SlotAttention(8)
    fill(module, oracles, "slotattn.plain", SLOT_ATTENTION)
    return module


@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_slot_attention_gives_the_reference_slots_and_masks(
    attention: SlotAttention, oracles: Oracles, iterations: int
) -> None:
    slots, masks = attention(
        torch.from_numpy(oracles["slotattn.plain.slots_in"]),
        torch.from_numpy(oracles["slotattn.plain.features"]),
        iterations,
    )
    expect(slots, oracles, f"slotattn.plain.iters{iterations}.slots")
    expect(masks, oracles, f"slotattn.plain.iters{iterations}.masks")


def test_raw_gru_state_is_the_textbook_variant_and_not_the_reference(oracles: Oracles) -> None:
    textbook = SlotAttention(8, gru_state="raw")
    fill(textbook, oracles, "slotattn.plain", SLOT_ATTENTION)
    slots, _ = textbook(
        torch.from_numpy(oracles["slotattn.plain.slots_in"]),
        torch.from_numpy(oracles["slotattn.plain.features"]),
        2,
    )
    expect(slots, oracles, "slotattn.plain.iters2.not_this_raw_gru_state")
    difference = slots - torch.from_numpy(oracles["slotattn.plain.iters2.slots"])
    assert difference.abs().max() > 1


def test_slots_compete_for_patches(attention: SlotAttention) -> None:
    features = normal(2, 9, 8)
    _, masks = attention(normal(2, 5, 8, seed=1), features, 2)
    assert_close(masks.sum(1), torch.ones(2, 9, dtype=torch.float64))
    _, even = attention(normal(2, 1, 8, seed=1).expand(2, 5, 8), features, 1)
    assert_close(even, torch.full((2, 5, 9), 1 / 5, dtype=torch.float64))


def test_slot_attention_follows_permuted_slots_and_ignores_the_order_of_patches(
    attention: SlotAttention,
) -> None:
    start, features = normal(2, 5, 8), normal(2, 9, 8, seed=1)
    slots, masks = attention(start, features, 3)
    order, places = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([8, 2, 0, 1, 7, 6, 3, 5, 4])
    moved, moved_masks = attention(start[:, order], features[:, places], 3)
    assert_close(moved, slots[:, order])
    assert_close(moved_masks, masks[:, order][:, :, places])


def test_slot_attention_has_the_gradients_of_its_function(attention: SlotAttention) -> None:
    start = normal(1, 2, 8).requires_grad_()
    features = normal(1, 3, 8, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s, f: attention(s, f, 2), (start, features))


@pytest.mark.parametrize(
    ("slots", "features", "iterations", "complaint"),
    [
        ((2, 5, 8), (3, 9, 8), 2, r"\(2, 5, 8\) and \(3, 9, 8\)"),
        ((2, 5, 7), (2, 9, 8), 2, r"expected slots \(B,K,8\)"),
        ((5, 8), (9, 8), 2, "expected slots"),
        ((2, 5, 8), (2, 9, 8), 0, "at least 1, got 0"),
    ],
)
def test_slot_attention_names_what_does_not_fit(
    attention: SlotAttention,
    slots: tuple[int, ...],
    features: tuple[int, ...],
    iterations: int,
    complaint: str,
) -> None:
    with pytest.raises(ValueError, match=complaint):
        attention(torch.zeros(slots), torch.zeros(features), iterations)


def test_slot_attention_names_the_gru_states() -> None:
    with pytest.raises(ValueError, match=r"one of \('normalised', 'raw'\), got 'cooked'"):
        SlotAttention(8, gru_state="cooked")


# Predictor


@pytest.mark.parametrize(
    ("logit_scale", "key"),
    [("multiplied", "out"), ("divided", "not_this_standard_scaling")],
)
def test_predictor_gives_the_reference_output_or_the_standard_one(
    oracles: Oracles, logit_scale: str, key: str
) -> None:
    predictor = SlotPredictor(8, n_heads=2, logit_scale=logit_scale)
    fill(predictor, oracles, "predictor.heads2", PREDICTOR)
    predicted = predictor(torch.from_numpy(oracles["predictor.heads2.in"]))
    expect(predicted, oracles, f"predictor.heads2.{key}")


def test_predictor_follows_permuted_slots() -> None:
    predictor, slots = SlotPredictor(8).double(), normal(2, 5, 8)
    order = torch.tensor([3, 0, 4, 1, 2])
    assert_close(predictor(slots[:, order]), predictor(slots)[:, order])


def test_predictor_starts_with_xavier_blocks_for_q_k_and_v_each() -> None:
    predictor = SlotPredictor(64)
    bound = (6 / 128) ** 0.5
    for block in (*predictor.to_qkv.weight.chunk(3), predictor.to_out.weight):
        assert 0.95 * bound < block.abs().max() <= bound
    assert not predictor.to_qkv.bias.any()
    assert not predictor.to_out.bias.any()


def test_predictor_names_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="slot_dim 10 is not divisible by n_heads 4"):
        SlotPredictor(10)
    with pytest.raises(ValueError, match=r"one of \('multiplied', 'divided'\), got 'none'"):
        SlotPredictor(8, logit_scale="none")
    with pytest.raises(ValueError, match=r"expected slots \(B,K,8\), got \(5, 8\)"):
        SlotPredictor(8)(torch.zeros(5, 8))


# Position codes


def test_position_codes_are_sines_of_row_and_column_and_tell_patches_apart() -> None:
    codes = sincos_positions(16, 8)
    assert codes.shape == (16, 8)
    assert codes.abs().max() <= 1
    # Two wavelengths, 8 and 4 patches: sin, sin, cos, cos of the row at even places, the column at
    # odd ones. Patch 6 of a 4 x 4 grid is in row 1, column 2.
    root = 0.5**0.5
    expected = torch.tensor([root, 1, 1, 0, root, 0, 0, -1])
    assert_close(codes[6], expected, rtol=0, atol=1e-6)
    assert torch.pdist(codes).min() > 0.5
    assert sincos_positions(16, 6).shape == (16, 6)


def test_position_codes_need_a_square_grid() -> None:
    with pytest.raises(ValueError, match="square number of patches, got 12"):
        sincos_positions(12, 8)


# Decoder


@pytest.fixture
def decoder(oracles: Oracles) -> MLPDecoder:
    module = MLPDecoder(8, 6, 9, hidden=(16, 12, 16))
    fill(module, oracles, "decoder", DECODER)
    return module


@pytest.mark.parametrize("kind", [MLPDecoder, PlainDecoder])
def test_decoder_gives_the_reference_output(kind: type[MLPDecoder], oracles: Oracles) -> None:
    decoder = kind(8, 6, 9, hidden=(16, 12, 16))
    fill(decoder, oracles, "decoder", DECODER)
    masks, reconstruction = decoder(torch.from_numpy(oracles["decoder.slots"]))
    expect(masks, oracles, "decoder.masks")
    expect(reconstruction, oracles, "decoder.reconstruction")


def test_decoding_some_patches_gives_what_decoding_all_gives_there(decoder: MLPDecoder) -> None:
    slots = normal(2, 5, 8)
    masks, reconstruction = decoder(slots)
    patches = torch.tensor([7, 0, 3])
    some_masks, some = decoder(slots, patches=patches)
    assert_close(some_masks, masks[:, :, patches])
    assert_close(some, reconstruction[:, patches])


def test_masks_alone_are_the_same_masks(decoder: MLPDecoder) -> None:
    slots = normal(2, 5, 8)
    masks, nothing = decoder(slots, reconstruct=False)
    assert nothing is None
    assert_close(masks, decoder(slots)[0])
    assert_close(masks.sum(1), torch.ones(2, 9, dtype=torch.float64))


def test_permuted_slots_permute_masks_and_leave_the_reconstruction(decoder: MLPDecoder) -> None:
    slots, order = normal(2, 5, 8), torch.tensor([3, 0, 4, 1, 2])
    masks, reconstruction = decoder(slots)
    moved_masks, moved = decoder(slots[:, order])
    assert_close(moved_masks, masks[:, order])
    assert_close(moved, reconstruction)


def test_one_slot_explains_everything(decoder: MLPDecoder) -> None:
    masks, _ = decoder(normal(2, 1, 8))
    assert_close(masks, torch.ones(2, 1, 9, dtype=torch.float64))


def test_decoder_names_what_does_not_fit(decoder: MLPDecoder) -> None:
    slots = normal(2, 5, 8)
    with pytest.raises(ValueError, match=r"expected slots \(B,K,8\), got \(2, 4, 5, 8\)"):
        decoder(normal(2, 4, 5, 8))
    with pytest.raises(ValueError, match=r"vector of torch\.long indices, got torch\.int32"):
        decoder(slots, patches=torch.tensor([1], dtype=torch.int32))
    with pytest.raises(ValueError, match=r"shape \(1, 2\)"):
        decoder(slots, patches=torch.tensor([[1, 2]]))
    with pytest.raises(ValueError, match="at least one hidden layer"):
        MLPDecoder(8, 6, 9, hidden=())
    with pytest.raises(ValueError, match=r"one of \('normal', 'sincos'\), got 'fourier'"):
        MLPDecoder(8, 6, 9, position_init="fourier")
