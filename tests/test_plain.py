"""The fast model against the model as it is usually written: equal outputs, equal gradients."""

from collections.abc import Sequence

import pytest
import torch
from tiny import normal, tiny
from torch import Tensor, nn

from slotmatch.model import VideoSlotModel
from slotmatch.model.modules import MLPDecoder
from slotmatch.model.plain import PlainDecoder, as_written

PRECISIONS = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)]
)
MODEL = tiny(
    decoder_layers=3,
    n_heads=4,
    n_slots=7,
    slot_dim=16,
    decoder_hidden=32,
    feature_shape=(25, 12),
    position_init="sincos",
)


def expect_equal(mine: Sequence[Tensor], reference: Sequence[Tensor], tolerance: float) -> None:
    for index, (ours, theirs) in enumerate(zip(mine, reference, strict=True)):
        assert ours.shape == theirs.shape
        error = (ours - theirs).abs().max() / theirs.abs().max()
        assert error < tolerance, f"result {index} of {len(reference)} is {error:.1e} away"


def with_gradients(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Outputs, and the gradients by the inputs of a loss that asks something of all of them."""
    loss = sum(
        (output - normal(*output.shape, seed=i).to(output)).square().mean()
        for i, output in enumerate(outputs)
    )
    return [*outputs, *torch.autograd.grad(loss, inputs)]


@PRECISIONS
@pytest.mark.parametrize("patches", [None, torch.tensor([17, 3, 4])])
def test_the_fast_decoder_equals_the_plain_one_with_its_gradients(
    dtype: torch.dtype, tolerance: float, patches: Tensor | None
) -> None:
    results = []
    for kind in (MLPDecoder, PlainDecoder):
        torch.manual_seed(0)
        decoder = kind(16, 12, 25, hidden=(32, 32, 32), position_init="sincos").to(dtype)
        slots = normal(3, 7, 16, seed=5).to(dtype).requires_grad_()
        masks, reconstruction = decoder(slots, patches=patches)
        assert reconstruction is not None
        inputs = [slots, *decoder.parameters()]
        results.append(with_gradients([masks, reconstruction], inputs))
    assert len(results[0]) == 2 + 1 + 1 + 2 * 4
    expect_equal(*results, tolerance)


@PRECISIONS
def test_the_fast_model_equals_the_plain_one_with_its_gradients(
    dtype: torch.dtype, tolerance: float
) -> None:
    fast = VideoSlotModel(MODEL).to(dtype)
    features = normal(2, 3, 25, 12, seed=9).to(dtype)
    results = []
    for model in (fast, as_written(fast)):
        output = model.forward_features(features)
        assert output.masks is not None
        assert output.reconstruction is not None
        outputs = [output.slots, output.attention, output.masks, output.reconstruction]
        results.append(with_gradients(outputs, list(fast.parameters())))
    expect_equal(*results, tolerance)


def test_both_models_are_one_set_of_parameters_and_the_fast_one_stays_fast() -> None:
    fast = VideoSlotModel(MODEL)
    plain = as_written(fast)
    assert [id(p) for p in plain.parameters()] == [id(p) for p in fast.parameters()]
    assert type(plain.decoder) is PlainDecoder
    assert type(fast.decoder) is MLPDecoder
    with torch.no_grad():
        fast.decoder.positions.zero_()
    assert not plain.decoder.positions.any()


def test_masks_alone_cost_the_plain_model_as_much() -> None:
    plain = as_written(VideoSlotModel(MODEL))
    widths = []
    last: nn.Module = plain.decoder.layers[-1]
    last.register_forward_hook(lambda _, __, output: widths.append(output.shape[-1]))
    output = plain.forward_features(normal(1, 2, 25, 12, seed=0).float(), reconstruct=False)
    assert output.reconstruction is None
    assert widths == [13]
