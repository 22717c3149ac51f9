"""Parts of the recurrent slot model, in the order a frame passes through them.

``feature_transform`` -> ``LearnedSlots`` or ``SampledSlots`` -> ``SlotAttention`` ->
``SlotPredictor`` (to the next frame) and ``MLPDecoder``. The defaults are those of SlotContrast
(Manasyan et al., CVPR 2025), so that its released weights fit; where those differ from the
textbook, the textbook's variant is one named choice away.

Shapes: B clips or frames, K slots, D slot width, P patches, F feature width.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from slotmatch.precision import autocast, full_precision
from slotmatch.settings import GruState, LogitScale, PositionInit, check_choice

__all__ = [
    "LearnedSlots",
    "MLPDecoder",
    "SampledSlots",
    "SlotAttention",
    "SlotPredictor",
    "feature_transform",
    "sincos_positions",
]

VALUES_AT_ONCE = {"cpu": 2**20}
"""Hidden values the decoder holds at once, by type of device: what stays in a CPU's cache."""
VALUES_AT_ONCE_ELSEWHERE = 2**26
"""The same on a GPU, which needs larger pieces to be busy."""


def feature_transform(feature_dim: int, slot_dim: int) -> nn.Sequential:
    """Trainable map from backbone features to slot attention inputs: ``(..., F) -> (..., D)``.

    LayerNorm, Linear to 2F, ReLU, Linear to D. Neither residual nor position code. Equation
    ``eq-transform`` of the book.
    """
    return nn.Sequential(
        nn.LayerNorm(feature_dim),
        nn.Linear(feature_dim, 2 * feature_dim),
        nn.ReLU(),
        nn.Linear(2 * feature_dim, slot_dim),
    )


class LearnedSlots(nn.Module):
    """Initial slots that are parameters: slot k starts from the same vector in every clip.

    This gives a slot's index a meaning, which is what lets student and teacher slots correspond by
    index. Starts as normal noise of standard deviation D^-0.5 (SlotContrast).
    """

    def __init__(self, n_slots: int, slot_dim: int) -> None:
        super().__init__()
        self.slots = nn.Parameter(torch.randn(n_slots, slot_dim) * slot_dim**-0.5)

    def forward(self, batch_size: int, generator: torch.Generator | None = None) -> Tensor:
        """The K slots repeated for each clip: (B,K,D). Nothing is drawn from ``generator``."""
        return repeat(self.slots, "k d -> b k d", b=batch_size)


class SampledSlots(nn.Module):
    """Initial slots drawn from one learned Gaussian with diagonal covariance.

    As in Slot Attention and VideoSAUR. All slots share mean and log standard deviation, so they
    start exchangeable and an index means nothing.
    """

    def __init__(self, n_slots: int, slot_dim: int) -> None:
        super().__init__()
        self.n_slots = n_slots
        self.mean = nn.Parameter(torch.randn(slot_dim) * slot_dim**-0.5)
        self.log_std = nn.Parameter(torch.full((slot_dim,), -0.5 * math.log(slot_dim)))

    def forward(self, batch_size: int, generator: torch.Generator | None = None) -> Tensor:
        """K independent draws for each clip: (B,K,D).

        Raises:
            ValueError: no generator was given; the global one is never used.
        """
        if generator is None:
            raise ValueError(
                'initial slots "sampled" need a torch.Generator: '
                "pass generator=torch.Generator().manual_seed(0)"
            )
        shape = (batch_size, self.n_slots, self.mean.shape[0])
        noise = torch.randn(shape, generator=generator, device=generator.device)
        return self.mean + self.log_std.exp() * noise.to(self.mean)


class SlotAttention(nn.Module):
    """Slots that compete for the patches of one frame (Locatello et al., 2020, algorithm 1).

    Equations ``eq-attention`` and ``eq-gru`` of the book. Two details follow SlotContrast. The
    returned attention is the softmax over slots *before* it is renormalised over patches. And
    ``gru_state="normalised"`` hands the layer-normalised slots to the GRU as its hidden state;
    ``"raw"`` hands over the slots themselves, as the paper's algorithm has it. Weights of one
    do not serve the other.
    """

    def __init__(
        self, slot_dim: int, *, gru_state: GruState = "normalised", eps: float = 1e-8
    ) -> None:
        super().__init__()
        check_choice("gru_state", gru_state, GruState)
        self.slot_dim, self.gru_state, self.eps = slot_dim, gru_state, eps
        self.norm_features = nn.LayerNorm(slot_dim)
        self.norm_slots = nn.LayerNorm(slot_dim)
        self.to_q = nn.Linear(slot_dim, slot_dim, bias=False)
        self.to_k = nn.Linear(slot_dim, slot_dim, bias=False)
        self.to_v = nn.Linear(slot_dim, slot_dim, bias=False)
        self.gru = nn.GRUCell(slot_dim, slot_dim)
        self.mlp = nn.Sequential(
            nn.LayerNorm(slot_dim),
            nn.Linear(slot_dim, 4 * slot_dim),
            nn.ReLU(),
            nn.Linear(4 * slot_dim, slot_dim),
        )

    def project(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of transformed features (...,P,D), of any number of frames at once."""
        features = self.norm_features(features)
        return self.to_k(features), self.to_v(features)

    def iterate(
        self, slots: Tensor, keys: Tensor, values: Tensor, iterations: int
    ) -> tuple[Tensor, Tensor]:
        """Corrected slots (B,K,D) and the last attention (B,K,P), from keys and values (B,P,D)."""
        batch = slots.shape[0]
        for _ in range(iterations):
            normalised = self.norm_slots(slots)
            logits = self.to_q(normalised) @ rearrange(keys, "b p d -> b d p")
            scaled = full_precision(logits) * self.slot_dim**-0.5
            attention = scaled.softmax(dim=1)  # slots compete for a patch
            weights = attention + self.eps
            means = (weights / weights.sum(dim=-1, keepdim=True)).to(values.dtype)
            updates = (means @ values).to(slots.dtype)
            state = normalised if self.gru_state == "normalised" else slots
            with autocast(slots, "no"):  # a GPU's GRU would round the slots themselves
                slots = self.gru(
                    rearrange(updates, "b k d -> (b k) d"), rearrange(state, "b k d -> (b k) d")
                )
            slots = rearrange(slots, "(b k) d -> b k d", b=batch)
            slots = slots + self.mlp(slots)
        return slots, attention

    def forward(self, slots: Tensor, features: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
        """Slots (B,K,D) corrected by one frame's features (B,P,D), and their attention (B,K,P).

        The features are transformed ones. Attention sums to one over the slots.

        Raises:
            ValueError: shapes that do not belong together, or fewer than one iteration.
        """
        same = slots.ndim == features.ndim == 3 and slots.shape[0] == features.shape[0]
        if not (same and slots.shape[2] == features.shape[2] == self.slot_dim):
            raise ValueError(
                f"expected slots (B,K,{self.slot_dim}) and features (B,P,{self.slot_dim}), "
                f"got {tuple(slots.shape)} and {tuple(features.shape)}"
            )
        if iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {iterations}")
        return self.iterate(slots, *self.project(features), iterations)


class SlotPredictor(nn.Module):
    """Slots expected in the next frame: one pre-norm transformer block, (B,K,D) -> (B,K,D).

    The K slots attend to each other. There is no position code, so permuted slots give permuted
    predictions. ``logit_scale="multiplied"`` multiplies the products of queries and keys by the
    root of the head width (SlotContrast; sharper than usual by the head width); ``"divided"``
    divides by it (Vaswani et al., 2017). Weights of one do not serve the other.
    """

    def __init__(
        self, slot_dim: int, *, n_heads: int = 4, logit_scale: LogitScale = "multiplied"
    ) -> None:
        super().__init__()
        check_choice("logit_scale", logit_scale, LogitScale)
        if slot_dim % n_heads:
            raise ValueError(f"slot_dim {slot_dim} is not divisible by n_heads {n_heads}")
        self.slot_dim, self.n_heads, self.logit_scale = slot_dim, n_heads, logit_scale
        self.norm_attention = nn.LayerNorm(slot_dim)
        self.to_qkv = nn.Linear(slot_dim, 3 * slot_dim)
        self.to_out = nn.Linear(slot_dim, slot_dim)
        self.norm_mlp = nn.LayerNorm(slot_dim)
        self.mlp = nn.Sequential(
            nn.Linear(slot_dim, 4 * slot_dim), nn.ReLU(), nn.Linear(4 * slot_dim, slot_dim)
        )
        for block in (*self.to_qkv.weight.data.chunk(3), self.to_out.weight.data):
            nn.init.xavier_uniform_(block)  # each of q, k, v for itself: a wider bound than for all
        nn.init.zeros_(self.to_qkv.bias)
        nn.init.zeros_(self.to_out.bias)

    def forward(self, slots: Tensor) -> Tensor:
        """Predicted slots (B,K,D).

        Raises:
            ValueError: slots are not (B,K,D) with the width of this block.
        """
        if slots.ndim != 3 or slots.shape[2] != self.slot_dim:
            raise ValueError(f"expected slots (B,K,{self.slot_dim}), got {tuple(slots.shape)}")
        root = math.sqrt(self.slot_dim / self.n_heads)
        qkv = self.to_qkv(self.norm_attention(slots))
        q, k, v = rearrange(qkv, "b k (three h d) -> three b h k d", three=3, h=self.n_heads)
        scale = root if self.logit_scale == "multiplied" else 1 / root
        attended = F.scaled_dot_product_attention(q, k, v, scale=scale)
        slots = slots + self.to_out(rearrange(attended, "b h k d -> b k (h d)"))
        return slots + self.mlp(self.norm_mlp(slots))


def sincos_positions(n_patches: int, slot_dim: int) -> Tensor:
    """Sines and cosines of the row and the column of each patch of a square grid: (P,D).

    Wavelengths go geometrically from twice the grid's side down to four patches.

    Raises:
        ValueError: the number of patches is not a square.
    """
    side = math.isqrt(n_patches)
    if side**2 != n_patches:
        raise ValueError(
            f'position_init "sincos" needs a square number of patches, got {n_patches}'
        )
    n_waves = math.ceil(slot_dim / 4)
    wavelengths = torch.logspace(math.log10(2 * side), math.log10(4), n_waves)
    phases = 2 * math.pi * torch.arange(side)[:, None] / wavelengths
    axis = torch.cat([phases.sin(), phases.cos()], dim=1)
    rows = repeat(axis, "h d -> (h w) d", w=side)
    columns = repeat(axis, "w d -> (h w) d", h=side)
    return torch.stack([rows, columns], dim=2).flatten(1)[:, :slot_dim]


class MLPDecoder(nn.Module):
    """Features and masks decoded from slots, patch by patch (DINOSAUR's broadcast decoder).

    Equation ``eq-decoder`` of the book. An MLP reads slot + position and returns F features and
    one mask logit; masks are the softmax of the logits over slots, and the reconstruction is
    the sum of the slots' features weighted by their masks. Written in an equal but cheaper
    form: its first layer is applied to slots and positions apart, W(slot + pos) = W slot + W
    pos, and its last layer to the hidden vectors mixed by the masks, since these sum to one: K
    times fewer products in the largest layer.

    ``hidden`` is one width per hidden layer. Positions are a learned table that starts as normal
    noise of standard deviation D^-0.5 (``position_init="normal"``, SlotContrast) or as
    ``sincos_positions`` (``"sincos"``).
    """

    def __init__(
        self,
        slot_dim: int,
        feature_dim: int,
        n_patches: int,
        *,
        hidden: Sequence[int] = (1024, 1024, 1024),
        position_init: PositionInit = "normal",
    ) -> None:
        super().__init__()
        check_choice("position_init", position_init, PositionInit)
        if not hidden:
            raise ValueError("hidden must name the width of at least one hidden layer, got none")
        self.slot_dim, self.feature_dim, self.n_patches = slot_dim, feature_dim, n_patches
        if position_init == "normal":
            positions = torch.randn(n_patches, slot_dim) * slot_dim**-0.5
        else:
            positions = sincos_positions(n_patches, slot_dim)
        self.positions: Tensor = nn.Parameter(positions)
        widths = [slot_dim, *hidden, feature_dim + 1]
        self.layers = nn.ModuleList(
            nn.Linear(width, next_width) for width, next_width in pairwise(widths)
        )

    def forward(
        self, slots: Tensor, *, patches: Tensor | None = None, reconstruct: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Masks (B,K,P) and the reconstruction (B,P,F) of slots (B,K,D).

        Masks sum to one over slots. ``patches``, a vector of patch indices, decodes only those, in
        that order, and P is their number: patches do not depend on each other, so the mean error
        over a random subset is an unbiased estimate of the whole. With ``reconstruct=False`` there
        are masks only, for less.

        Raises:
            ValueError: slots of another rank or width, or patches that are not a vector of indices.
        """
        if slots.ndim != 3 or slots.shape[2] != self.slot_dim:
            raise ValueError(f"expected slots (B,K,{self.slot_dim}), got {tuple(slots.shape)}")
        positions = self.positions
        if patches is not None:
            if patches.ndim != 1 or patches.dtype != torch.long:
                raise ValueError(
                    "patches must be a vector of torch.long indices, "
                    f"got {patches.dtype} of shape {tuple(patches.shape)}"
                )
            positions = positions[patches]
        layers = cast("list[nn.Linear]", list(self.layers))
        widest = slots.shape[1] * max(layer.out_features for layer in layers[:-1])
        values = VALUES_AT_ONCE.get(slots.device.type, VALUES_AT_ONCE_ELSEWHERE)
        n_patches = max(1, values // widest)
        n_frames = max(1, n_patches // max(1, len(positions)))
        of_positions = F.linear(positions, layers[0].weight).split(n_patches)
        strips = []
        for some in slots.split(n_frames):
            of_slots = layers[0](some)
            pieces = [self._piece(of_slots, places, reconstruct) for places in of_positions]
            strips.append([torch.cat(parts, dim=1) for parts in zip(*pieces, strict=True)])
        masks, *features = (torch.cat(parts) for parts in zip(*strips, strict=True))
        return rearrange(masks, "b p k -> b k p"), features[0] if reconstruct else None

    def logits(self, slots: Tensor) -> Tensor:
        """What the masks are the softmax of: (B,K,P) of slots (B,K,D), all patches at once."""
        first, last = cast("nn.Linear", self.layers[0]), cast("nn.Linear", self.layers[-1])
        hidden = self.hidden(first(slots), F.linear(self.positions, first.weight))
        return rearrange(hidden @ last.weight[-1] + last.bias[-1], "b p k -> b k p")

    def hidden(self, of_slots: Tensor, of_positions: Tensor) -> Tensor:
        """The last hidden vectors (b,p,K,H) of what the first layer makes of slots and positions.

        That is (b,K,H) and (p,H).
        """
        hidden = rearrange(of_slots, "b k h -> b 1 k h") + rearrange(of_positions, "p h -> p 1 h")
        hidden = hidden.relu_()
        for layer in list(self.layers)[1:-1]:
            hidden = layer(hidden).relu_()
        return hidden

    def _piece(self, of_slots: Tensor, of_positions: Tensor, reconstruct: bool) -> list[Tensor]:
        """Masks (b,p,K) and, if asked, features (b,p,F) of what ``hidden`` takes."""
        last = cast("nn.Linear", self.layers[-1])
        hidden = self.hidden(of_slots, of_positions)
        masks = full_precision(hidden @ last.weight[-1] + last.bias[-1]).softmax(dim=-1)
        if not reconstruct:
            return [masks]
        mixed = (rearrange(masks.to(hidden.dtype), "b p k -> b p 1 k") @ hidden).squeeze(-2)
        return [masks, F.linear(mixed, last.weight[:-1], last.bias[:-1])]
