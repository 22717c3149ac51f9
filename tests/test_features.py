import errno
import os
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from einops import rearrange
from torch import nn

from slotmatch import backbones, paths
from slotmatch.backbones import cache as features
from slotmatch.backbones import cached_features, weights_checksum
from slotmatch.backbones.embedded import shared_axes, signal_to_noise
from slotmatch.data.clips import content


@dataclass(frozen=True)
class Clip:
    video: np.ndarray
    id: str


class Clips(list):
    """Clips that count how often one is loaded, with their ids known beforehand."""

    def __init__(self, clips):
        super().__init__(clips)
        self.ids = tuple(clip.id for clip in clips)
        self.loaded = 0

    def content(self, position):
        """Known without loading."""
        return content([list.__getitem__(self, position)], 0)

    def __getitem__(self, index):
        self.loaded += 1
        return super().__getitem__(index)

    def __iter__(self):
        for index in range(len(self)):
            yield self[index]


def clips(n=3, n_frames=2, side=8, seed=0):
    rng = np.random.default_rng(seed)
    videos = rng.integers(0, 256, (n, n_frames, side, side, 3), np.uint8)
    return Clips([Clip(video, f"toy/{i}") for i, video in enumerate(videos)])


class Patches(backbones.Backbone):
    """Linear features of 4x4 patches, as cheap as can be; counts the frames it has seen."""

    def __init__(self, *, image_size=8, seed=0, scale=1.0):
        known = backbones.spec("dinov2_vits14")
        what = replace(known, name="patches", feature_dim=5, stride=4)
        generator = torch.Generator().manual_seed(seed)
        network = nn.Linear(48, 5)
        weight = scale * torch.randn(5, 48, generator=generator)
        network.load_state_dict({"weight": weight, "bias": torch.zeros(5)})
        super().__init__(what, network, image_size, pretrained=True)
        self.batches = []

    def patch_features(self, images):
        self.batches.append(len(images))
        pattern = "n c (h i) (w j) -> n (h w) (c i j)"
        return self.network(rearrange(images, pattern, i=4, j=4))


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SLOTMATCH_CACHE", str(tmp_path))
    return tmp_path / "features"


def files(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_cached_features_are_those_of_the_backbone_in_half_precision(cache):
    data, backbone = clips(), Patches()
    found = cached_features(data, backbone, name="toy")
    assert (found.array.shape, found.array.dtype) == ((3, 2, 4, 5), np.float16)
    for expected, clip in zip(found, data, strict=True):
        video = rearrange(torch.from_numpy(clip.video), "t h w c -> 1 t c h w") / 255
        np.testing.assert_array_equal(expected, backbone(video)[0].half().numpy())
    assert not found.array.flags.writeable
    assert Path(found.array.filename).parent == cache


def test_second_call_reads_the_file_and_only_the_first_clip(cache):
    data, backbone = clips(), Patches()
    first = cached_features(data, backbone, name="toy")
    backbone.batches.clear()
    data.loaded = 0
    second = cached_features(data, backbone, name="toy")
    assert backbone.batches == []
    assert data.loaded == 1
    np.testing.assert_array_equal(first, second)
    assert len(files(cache)) == 1


def test_what_is_kept_is_in_single_precision_whatever_surrounds_it(cache):
    data, backbone = clips(), Patches()
    with torch.autocast("cpu", torch.bfloat16):
        found = cached_features(data, backbone, name="toy")
        video = rearrange(torch.from_numpy(data[0].video), "t h w c -> 1 t c h w") / 255
        assert backbone(video).dtype == torch.bfloat16
    np.testing.assert_array_equal(found[0], backbone(video)[0].half().numpy())


def test_a_full_disk_is_told_before_anything_is_encoded(cache, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    backbone = Patches()
    with pytest.raises(OSError, match=r"features need .* GB and .* left: make room, or set"):
        cached_features(clips(), backbone, name="toy")
    assert backbone.batches == []
    assert files(cache) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
@pytest.mark.slow
def test_a_disk_that_is_truly_full_kills_no_process(cache):
    cache.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(cache)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this machine mounts nothing")
    try:
        with pytest.raises(OSError, match="make room"):
            cached_features(clips(n=100, n_frames=400), Patches(), name="toy")
        assert files(cache) == []
    finally:
        subprocess.run(["umount", str(cache)], check=True)


def test_frames_are_encoded_in_batches_across_clips():
    data, backbone = clips(n=5, n_frames=3), Patches()
    found = cached_features(data, backbone, name="toy", batch_size=4)
    assert backbone.batches == [4, 4, 4, 3]
    whole = cached_features(data, Patches(), name="other name", batch_size=100)
    np.testing.assert_array_equal(found, whole)


@pytest.mark.parametrize(
    ("data", "backbone", "name"),
    [
        (clips(), Patches(), "toy v2"),
        (clips(seed=1), Patches(), "toy"),
        (Clips([*clips()[:2], replace(clips(seed=1)[2], id=clips()[2].id)]), Patches(), "toy"),
        (clips(n=2), Patches(), "toy"),
        (clips(n_frames=1), Patches(), "toy"),
        (Clips([replace(clip, id=clip.id + "x") for clip in clips()]), Patches(), "toy"),
        (Clips(list(clips())[::-1]), Patches(), "toy"),
        (clips(), Patches(seed=1), "toy"),
        (clips(), Patches(image_size=16), "toy"),
    ],
    ids=["name", "frames", "last frames", "number", "length", "ids", "order", "weights", "size"],
)
def test_whatever_changes_a_feature_gets_a_file_of_its_own(cache, data, backbone, name):
    usual = Patches()
    cached_features(clips(), usual, name="toy")
    cached_features(data, backbone, name=name)
    assert len(files(cache)) == 2
    assert backbone.batches
    usual.batches.clear()
    cached_features(clips(), usual, name="toy")
    assert usual.batches == []


def test_backbones_of_different_normalisation_do_not_share_a_file(cache):
    bright = Patches()
    bright.spec = replace(bright.spec, mean=(0.0, 0.0, 0.0))
    cached_features(clips(), Patches(), name="toy")
    cached_features(clips(), bright, name="toy")
    assert len(files(cache)) == 2


def test_clips_without_known_ids_share_the_file_of_those_with(cache):
    cached_features(clips(), Patches(), name="toy")
    plain, backbone = list(clips()), Patches()
    cached_features(plain, backbone, name="toy")
    assert backbone.batches == []


def test_a_failure_leaves_nothing_behind(cache):
    data, backbone = clips(), Patches()
    data.append(Clip(data[0].video[:, :4], "toy/small"))
    data.ids += ("toy/small",)
    with pytest.raises(ValueError, match=r"clip toy/small is \(2, 4, 8, 3\) and the first one"):
        cached_features(data, backbone, name="toy", batch_size=2)
    assert backbone.batches == [2, 2, 2], "it failed half way"
    assert files(cache) == []
    good = cached_features(clips(), backbone, name="toy")
    assert np.abs(good).min(axis=(1, 2, 3)).all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "no clips of toy"),
        ([Clip(np.zeros((2, 8, 8, 3), np.float32), "a")], "clip a is float32"),
        ([Clip(np.zeros((2, 8, 8), np.uint8), "a")], r"must be uint8 \(T,H,W,3\)"),
    ],
)
def test_unfit_clips_are_named(cache, data, message):
    with pytest.raises(ValueError, match=message):
        cached_features(data, Patches(), name="toy")
    assert not cache.exists() or files(cache) == []


def test_features_beyond_half_precision_are_refused(cache):
    with pytest.raises(ValueError, match="features of patches pass the range of float16"):
        cached_features(clips(), Patches(scale=1e6), name="toy")
    assert files(cache) == []
    with pytest.raises(ValueError, match="batch_size must be 1 or more, not 0"):
        cached_features(clips(), Patches(), name="toy", batch_size=0)


def test_the_cache_is_where_the_environment_says(cache):
    cached_features(clips(), Patches(), name="toy")
    assert paths.cache_dir() / "features" == cache
    assert features.cached_features is backbones.cached_features


def test_checksum_covers_names_types_shapes_and_values():
    def of(**tensors):
        module = nn.Module()
        for name, tensor in tensors.items():
            module.register_buffer(name, tensor)
        return weights_checksum(module)

    base = of(a=torch.zeros(2, 3), b=torch.ones(1))
    assert base == of(b=torch.ones(1), a=torch.zeros(2, 3))
    others = [
        of(a=torch.zeros(3, 2), b=torch.ones(1)),
        of(a=torch.zeros(2, 3, dtype=torch.int32), b=torch.ones(1)),
        of(a=torch.zeros(2, 3), c=torch.ones(1)),
        of(a=torch.zeros(2, 3), b=torch.full((1,), 1 + 1e-7)),
        of(a=torch.zeros(2, 3)),
    ]
    assert len({base, *others}) == 6
    strided = torch.arange(6.0).reshape(3, 2).T
    assert of(a=strided) == of(a=strided.contiguous())
    assert of(a=torch.ones(2, dtype=torch.bfloat16)) != of(a=torch.ones(2, dtype=torch.float16))


# Axes


def spread(deviations, n=4000, seed=0):
    """Points around (1, -2, 3) with these deviations along known orthonormal axes."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.tensor([[2.0, 1.0, 2.0], [-2.0, 2.0, 1.0], [-1.0, -2.0, 2.0]]).T / 3
    points = torch.randn(n, 3, generator=generator) * torch.tensor(deviations)
    return points @ axes.T + torch.tensor([1.0, -2.0, 3.0]), axes


def test_steady_axes_have_the_most_signal_for_their_noise():
    """The loudest of three axes is as noisy as it is loud, the faintest is noisier still."""
    signal, axes = spread([3.0, 1.0, 0.1])
    noise = spread([3.0, 0.5, 1.0], seed=1)[0]
    noise = noise - noise.mean(0)
    offset, matrix = signal_to_noise(signal, noise, 2)
    torch.testing.assert_close(offset, signal.mean(0))
    seen = (signal - offset) @ matrix
    torch.testing.assert_close(seen.std(0, correction=0), torch.ones(2), rtol=1e-3, atol=0)
    along = (signal - offset) @ axes
    correlation = torch.corrcoef(torch.cat([seen, along], 1).T)[:2, 2:].abs()
    assert correlation[0, 1] > 0.95  # two to one
    assert correlation[1, 0] > 0.95  # one to one, where principal axes would put it first
    torch.testing.assert_close(signal_to_noise(signal, noise, 1)[1], matrix[:, :1])
    mirrored = signal_to_noise(2 - signal, noise, 2)[1]
    torch.testing.assert_close(mirrored, matrix, rtol=1e-4, atol=1e-4)


def whitened(values):
    """Uncorrelated columns of unit variance."""
    centred = values - values.mean(0)
    u, _, _ = torch.linalg.svd(centred, full_matrices=False)
    return u * len(values) ** 0.5


def test_shared_axes_are_those_of_which_both_views_tell():
    """Of three sources one is in both views, one in both under noise, and one in the first only."""
    sources = torch.randn(4000, 5, generator=torch.Generator().manual_seed(0))
    both, faint, alone, other, noise = sources.T
    first = whitened(torch.stack([alone + both, both - faint, faint], 1))
    second = whitened(
        torch.stack([both, faint + 0.8 * noise, other], 1)
        @ torch.rand(3, 3, generator=torch.Generator().manual_seed(1))
    )
    turns = shared_axes(first, second, 3)
    for turn in turns:
        torch.testing.assert_close(turn.T @ turn, torch.eye(3), rtol=0, atol=1e-5)
    seen = torch.cat([first @ turns[0], second @ turns[1]], 1)
    correlation = torch.corrcoef(seen.T)[:3, 3:]
    torch.testing.assert_close(correlation, correlation.diag().diag(), rtol=0, atol=1e-4)
    assert correlation[0, 0] > 0.99
    assert correlation[1, 1] == pytest.approx(1 / 1.64**0.5, abs=0.03)
    assert correlation[2, 2] < 0.06
    assert abs(torch.corrcoef(torch.stack([seen[:, 0], both]))[0, 1]) > 0.99
    fewer = shared_axes(first, second, 1)
    assert all(torch.equal(one, all_[:, :1]) for one, all_ in zip(fewer, turns, strict=True))


@pytest.mark.parametrize(
    ("first", "second", "n_components", "message"),
    [
        ((4, 3), (5, 3), 1, r"two views of the same places must be .*\(\(4, 3\), \(5, 3\)\)"),
        ((4,), (4,), 1, "two views"),
        ((4, 3), (4, 2), 3, "n_components must be 1 to the width of"),
        ((4, 3), (4, 2), 0, "not 0"),
    ],
)
def test_shared_axes_name_wrong_input(first, second, n_components, message):
    with pytest.raises(ValueError, match=message):
        shared_axes(torch.zeros(first), torch.zeros(second), n_components)


@pytest.mark.parametrize(
    ("signal", "noise", "n_components", "message"),
    [
        ((3,), (3,), 1, r"must be \(N,C\) and \(M,C\)"),
        ((1, 3), (4, 3), 1, "N of 2 or more"),
        ((4, 3), (4, 2), 1, r"\(\(4, 3\), \(4, 2\)\)"),
        ((4, 3), (4, 3), 0, "n_components must be 1 to 3, not 0"),
        ((4, 3), (4, 3), 4, "n_components must be 1 to 3, not 4"),
    ],
)
def test_axes_name_wrong_input(signal, noise, n_components, message):
    with pytest.raises(ValueError, match=message):
        signal_to_noise(torch.zeros(signal), torch.zeros(noise), n_components)
