"""The loss of a training step as a module.

Shapes: B clips, T frames, K slots, D slot width, P patches, F feature width.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from slotmatch.losses import feature_reconstruction, slot_contrast, slot_match
from slotmatch.model import SlotState, VideoSlotModel
from slotmatch.training.recipe import TrainConfig

__all__ = ["Objective", "first_slots", "full_precision"]


class Objective(nn.Module):
    """L = L_rec + alpha L_contrast + beta L_match of a part of a batch, and the attention term.

    A module, so that whatever wraps it (processes, precision) wraps all of it. Its head turns a
    slot into features; it exists for the attention term and is thrown away after training.

    The mean over parts of equal size, and over processes, of this loss and of its gradient is that
    of the whole batch. All terms are means over clips but the contrast, where every clip has its
    negatives in all others: for it the slots of the whole batch are given, of which those of this
    part alone carry a gradient. The contrast's gradient is the sum of what its parts carry.
    """

    def __init__(self, model: VideoSlotModel, config: TrainConfig) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.head: nn.Linear | None = None
        if config.attention_weight:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(config.seed)
                self.head = nn.Linear(model.config.slot_dim, model.config.feature_dim)
            self.head.to(model.decoder.positions)

    def forward(
        self,
        features: Tensor,
        patches: Tensor | None,
        seed: int,
        place: slice,
        teacher_slots: Tensor | None,
        weights: Mapping[str, float],
        everyone: Tensor | None = None,
        among: slice | None = None,
    ) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
        """The loss, its terms (only those with a weight), the slots and the attention.

        Args:
            features: (B,T,P,F) of the clips at ``place`` in the batch of all processes.
            patches: indices of those that are decoded; None: all.
            seed: draws initial slots that are sampled, for the batch of all processes.
            place: which clips of that batch.
            teacher_slots: (B,T,K,D), for the match term.
            weights: of each term.
            everyone: slots of all clips that are contrasted; None: those of ``features``.
            among: which of them are the slots of ``features``.
        """
        output = self.model.forward_features(
            features,
            decode=weights["reconstruction"] > 0,
            patches=patches,
            state=first_slots(self.model, self.config, seed, place),
        )
        by_attention = None
        if self.head is not None and weights["attention"]:
            by_attention = output.attention.mT @ self.head(output.slots)
        device = "cpu" if features.is_meta else features.device.type  # meta knows no precision
        with torch.autocast(device, enabled=False):
            slots, target = full_precision(output.slots), full_precision(features)
            terms = {}
            if output.reconstruction is not None:
                terms["reconstruction"] = feature_reconstruction(
                    full_precision(output.reconstruction),
                    target if patches is None else target[:, :, patches],
                )
            if weights["contrast"]:
                terms["contrast"] = self._contrast(slots, everyone, among)
            if weights["match"] and teacher_slots is not None:
                wanted = full_precision(teacher_slots)
                correspondence = self.config.correspondence
                terms["match"] = slot_match(slots, wanted, correspondence=correspondence)
            if by_attention is not None:
                terms["attention"] = feature_reconstruction(full_precision(by_attention), target)
            loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        # Detached, since processes wait for the gradient of all that a returned tensor depends on.
        return loss, terms, output.slots.detach(), output.attention.detach()

    def slots(self, features: Tensor, seed: int, place: slice) -> Tensor:
        """The slots (B,T,K,D) that ``forward`` finds."""
        state = first_slots(self.model, self.config, seed, place)
        return full_precision(
            self.model.forward_features(features, decode=False, state=state).slots
        )

    def _contrast(self, slots: Tensor, everyone: Tensor | None, among: slice | None) -> Tensor:
        if everyone is None or among is None:
            return slot_contrast(slots, temperature=self.config.temperature)
        together = torch.cat([everyone[: among.start], slots, everyone[among.stop :]])
        loss = slot_contrast(together, temperature=self.config.temperature)
        # Its value is the batch's already; its gradient is divided by the number of parts later.
        n_parts = len(together) / len(slots)
        return loss.detach() + n_parts * (loss - loss.detach())


def first_slots(model: VideoSlotModel, config: TrainConfig, seed: int, place: slice) -> SlotState:
    """What the clips at ``place`` in a batch start from.

    Sampled slots are drawn for the whole batch: its clips have the same ones however it is cut.
    """
    generator = torch.Generator().manual_seed(seed)
    return SlotState(model.initial_slots(config.batch_size, generator)[place], 0)


def full_precision(tensor: Tensor) -> Tensor:
    """At least single precision, which losses need."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
