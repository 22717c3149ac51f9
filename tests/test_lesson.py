"""The page that explains slots: mistakes cost what the page says, attention is the model's own."""

import numpy as np
import torch

from slotmatch import metrics
from slotmatch.data import minimovi
from slotmatch.experiments.lesson import MISTAKES, attention_by_iteration
from slotmatch.model import load


def test_each_mistake_costs_what_it_should() -> None:
    labels = minimovi.render("minimovi_a", "test", 0)[1].astype(int)
    found = {name: metrics.video_metrics(labels, make(labels)) for name, make in MISTAKES.items()}
    perfect = found["as the truth"]
    assert perfect["video_fg_ari"] == perfect["video_mbo"] == 1
    assert found["floor in four"] == perfect  # neither score looks at the floor
    large = found["masks too large"]
    assert large["video_fg_ari"] == 1  # only pixels of objects count
    assert large["video_mbo"] < 0.9
    for name in ("one in two", "two as one"):
        assert found[name]["video_fg_ari"] < 0.95
        assert found[name]["video_mbo"] < 0.95
    swapped = found["names swapped"]
    assert swapped["image_fg_ari"] == swapped["image_mbo"] == 1
    assert swapped["video_fg_ari"] < 0.95
    assert found["all in one"]["video_fg_ari"] == 0


def test_attention_ends_where_the_models_own_does() -> None:
    model = load("mini-teacher")
    video, _ = minimovi.render("minimovi_a", "test", 0)
    found = attention_by_iteration(model, video[0])
    assert len(found) == model.config.first_iterations
    (output,) = model.stream([torch.from_numpy(video[0]).permute(2, 0, 1)[None]], decode=False)
    own = metrics.label_maps(output.attention[0], (128, 128))[0]
    np.testing.assert_array_equal(found[-1], own)
    assert (found[0] != found[-1]).any()
