import copy
from dataclasses import replace
from functools import partialmethod

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import tiny

from slotmatch import metrics, profiling
from slotmatch.data import Clip
from slotmatch.data.preprocessing import PREPROCESSING, Preprocessing, unit_floats
from slotmatch.evaluation import (
    ORIGINAL,
    PROTOCOLS,
    Protocol,
    baselines,
    evaluate,
    evaluate_samples,
    grid_oracle,
    protocol_for,
    samples,
    score_labels,
    score_masks,
    score_on,
)
from slotmatch.model import VideoSlotModel
from slotmatch.model.network import CHUNK
from slotmatch.settings import Masks, choices

MODEL = tiny()
EMBEDDED = replace(MODEL, backbone="embedded", image_size=32, feature_shape=None)
METRICS = {
    *("video_fg_ari", "image_fg_ari", "video_mbo", "image_mbo", "j", "f", "j_and_f"),
    *("image_fg_ari_frames", "image_mbo_frames"),
    *("slots_in_use", "identity_switches", "mask_entropy"),
}


def random_clips(n: int, size: tuple[int, int, int] = (5, 12, 12)) -> list[Clip]:
    rng = np.random.default_rng(n)
    return [
        Clip(
            rng.integers(0, 256, (*size, 3), np.uint8),
            rng.integers(0, 3, size, np.int32),
            f"random/{i}",
        )
        for i in range(n)
    ]


def labelled(labels: np.ndarray) -> Clip:
    labels = np.asarray(labels, np.int32)
    return Clip(np.zeros((*labels.shape, 3), np.uint8), labels, "made/0")


def blocky(cells: list[list[list[int]]], side: int = 4) -> np.ndarray:
    """Labels (T,H,W) of which each cell is a patch of side x side pixels."""
    return np.kron(np.array(cells, np.int32), np.ones((1, side, side), np.int32))


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("masks", ["decoder", "attention"])
def test_scores_are_those_of_a_loop_written_out(batch_size, masks):
    clips = random_clips(3)
    features = np.random.default_rng(0).standard_normal((3, 5, 9, 6)).astype(np.float16)
    model = VideoSlotModel(MODEL).train(masks == "decoder")
    before = copy.deepcopy(model.state_dict())
    found = evaluate(model, clips, features=features, batch_size=batch_size, masks=masks)
    assert found.keys() == METRICS
    for i, clip in enumerate(clips):
        with torch.no_grad():
            output = model.forward_features(torch.from_numpy(features[i : i + 1]).float())
        soft = (output.masks if masks == "decoder" else output.attention)[0]
        large = F.interpolate(soft.reshape(5, 4, 3, 3), (12, 12), mode="bilinear")
        slots = large.argmax(1).numpy()
        expected = {
            "video_fg_ari": metrics.adjusted_rand_index(clip.labels, slots),
            "video_mbo": metrics.mean_best_overlap(clip.labels, slots),
            "image_fg_ari": np.mean(list(map(metrics.adjusted_rand_index, clip.labels, slots))),
            "identity_switches": metrics.identity_switches(clip.labels, slots),
            "slots_in_use": np.mean([len(np.unique(frame)) for frame in slots]),
            "mask_entropy": -(soft * soft.log()).sum(1).mean().item() / np.log(4),
        }
        for name, value in expected.items():
            assert found[name][i] == pytest.approx(value, abs=1e-5), name
    assert model.training == (masks == "decoder")
    assert all(map(torch.equal, before.values(), model.state_dict().values()))


def test_videos_of_any_length_and_size_keep_their_order():
    clips = random_clips(2) + random_clips(1, (3, 8, 10)) + random_clips(2, (4, 12, 12))
    model = VideoSlotModel(EMBEDDED, pretrained=False)
    together = evaluate(model, clips, batch_size=4)
    for i, clip in enumerate(clips):
        for name, (alone,) in evaluate(model, [clip]).items():
            assert together[name][i] == pytest.approx(alone, abs=1e-5), name


def test_sampled_slots_do_not_depend_on_the_batch():
    model = VideoSlotModel(replace(MODEL, initial_slots="sampled"))
    clips = random_clips(1) * 4
    features = np.random.default_rng(0).standard_normal((1, 5, 9, 6)).astype(np.float16)
    features = features.repeat(4, 0)
    alone, together = (evaluate(model, clips, features=features, batch_size=n) for n in (1, 4))
    assert alone == together
    assert len(set(alone["mask_entropy"])) == 4  # each of the equal videos has its own draw


def test_score_on_gives_means_over_the_clips():
    clips, model = random_clips(3), VideoSlotModel(MODEL)
    features = np.random.default_rng(1).standard_normal((3, 5, 9, 6)).astype(np.float16)
    scores = score_on(clips, features)(model)
    found = evaluate(model, clips, features=features)
    assert scores == {
        name: pytest.approx(np.mean(found[name]))
        for name in ("video_fg_ari", "image_fg_ari", "video_mbo")
    }
    first = score_on(clips, features, protocol=replace(ORIGINAL, n_videos=2))(model)
    assert first["video_mbo"] == pytest.approx(np.mean(found["video_mbo"][:2]))


@pytest.mark.parametrize("n_processes", [2, 3, 7])
def test_processes_share_the_clips_and_find_the_same(n_processes):
    clips, model = random_clips(5), VideoSlotModel(MODEL)
    features = np.random.default_rng(1).standard_normal((5, 5, 9, 6)).astype(np.float16)
    parts = []

    class SentError(Exception):
        pass

    def send(rows):
        parts.append(rows)
        raise SentError

    for number in range(n_processes):
        with pytest.raises(SentError):
            score_on(clips, features, process=(number, n_processes), gather=send)(model)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    everything = [row for rows in parts for row in rows]
    assert len(everything) == 5
    shared = score_on(clips, features, process=(0, n_processes), gather=lambda _: everything)
    assert shared(model) == pytest.approx(score_on(clips, features)(model), abs=1e-6)
    # Draws depend on a video's place, so each process scores all videos.
    sampled = VideoSlotModel(replace(MODEL, initial_slots="sampled"))
    last = score_on(clips, features, process=(n_processes - 1, n_processes), gather=send)
    assert last(sampled) == score_on(clips, features)(sampled)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"masks": "both"}, "masks must be one of .*'both'"),
        ({"batch_size": 0}, "batch_size must be 1 or more"),
        ({}, "no backbone: give features"),
        ({"features": np.zeros((2, 5, 9, 6))}, "features of 2 videos for 3 clips"),
    ],
)
def test_evaluation_refuses_what_does_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluate(VideoSlotModel(MODEL), random_clips(3), **arguments)


def test_nothing_to_score_is_an_error():
    with pytest.raises(ValueError, match="no clips to score"):
        evaluate(VideoSlotModel(MODEL), [], features=np.zeros((0, 5, 9, 6)))


def test_the_default_protocol_changes_nothing():
    clip = random_clips(1)[0]
    (sample,) = samples([clip], ORIGINAL)
    assert sample.video is clip.video
    assert sample.labels is clip.labels
    assert all(protocol_for("original", name) == ORIGINAL for name in ("minimovi_a", "movi_e"))


def test_a_video_passes_in_blocks_as_it_does_at_once(monkeypatch):
    clips = random_clips(2, (7, 12, 12))
    features = np.random.default_rng(0).standard_normal((2, 7, 9, 6)).astype(np.float32)
    for model, seen in (
        (VideoSlotModel(replace(MODEL, initial_slots="sampled")), features),
        (VideoSlotModel(EMBEDDED, pretrained=False), None),
    ):
        assert CHUNK > 7
        whole = evaluate(model, clips, features=seen)
        monkeypatch.setattr(VideoSlotModel, "stream", partialmethod(VideoSlotModel.stream, chunk=3))
        for name, values in evaluate(model, clips, features=seen).items():
            np.testing.assert_allclose(values, whole[name], atol=1e-5, err_msg=name)
        monkeypatch.undo()


def test_the_model_sees_the_preprocessed_frames_and_is_held_to_their_labels():
    clips = random_clips(1, (3, 10, 17)) + random_clips(1, (2, 13, 8))
    model = VideoSlotModel(EMBEDDED, pretrained=False)
    square = Preprocessing(20, "crop", label_size=14)
    found = evaluate(model, clips, protocol=Protocol("small", square))
    for i, clip in enumerate(clips):
        prepared = square.crop(clip)
        frames = torch.from_numpy(prepared.video.copy()).permute(0, 3, 1, 2)
        video = square.resize(unit_floats(frames))
        with torch.no_grad():
            soft = model(video[None]).masks[0]
        expected = score_masks(prepared, soft)
        assert prepared.labels.shape[1:] == (14, 14)
        for name, value in expected.items():
            assert found[name][i] == pytest.approx(value, abs=1e-6), name


def test_an_object_outside_the_square_is_not_missed():
    labels = np.zeros((2, 4, 8), np.int32)
    labels[:, :, :2] = 1  # left of the middle square
    labels[:, :2, 2:6] = 2
    clip = labelled(labels)
    found = grid_oracle([clip], 2, protocol=Protocol("crop", Preprocessing(4, "crop")))
    assert found["video_mbo"] == [1]
    (whole,) = samples([clip], Protocol("whole", Preprocessing(4)))
    assert np.unique(whole.labels).tolist() == [0, 1, 2]


def test_empty_frames_are_perfect_or_skipped():
    labels = np.zeros((2, 4, 4), int)
    labels[1, :2] = 1
    clip, alone = labelled(labels), labelled(labels[:1])
    split = np.tile([0, 0, 1, 1], (2, 4, 1))  # halves the object
    perfect, skip = (protocol_for("slotcontrast", name) for name in ("movi_e", "ytvis2021"))
    found = score_labels(clip, split, protocol=perfect)
    assert (found["image_fg_ari"], found["image_fg_ari_frames"]) == (0.5, 2)
    assert score_labels(alone, split[:1], protocol=perfect)["video_fg_ari"] == 1
    found = score_labels(clip, split, protocol=skip)
    assert (found["image_fg_ari"], found["image_fg_ari_frames"]) == (0, 1)
    assert np.isnan(score_labels(alone, split[:1], protocol=skip)["video_fg_ari"])


def test_the_first_frame_can_be_left_out_of_the_score():
    labels = blocky([[[1, 1], [2, 2]], [[1, 2], [1, 2]], [[1, 2], [1, 2]]])
    columns = blocky([[[0, 1], [0, 1]]] * 3)
    protocol = protocol_for("slotcontrast_skip_first", "movi_c")
    assert score_labels(labelled(labels), columns)["video_fg_ari"] < 1
    found = score_labels(labelled(labels), columns, protocol=protocol)
    assert found["video_fg_ari"] == found["image_fg_ari"] == 1
    assert found["image_fg_ari_frames"] == 2
    with pytest.raises(ValueError, match=r"made/0 has one frame, and protocol '.*skip_first'"):
        score_labels(labelled(labels[:1]), columns[:1], protocol=protocol)


def test_skipped_frames_are_seen_and_do_not_change_the_others():
    clips, model = random_clips(1), VideoSlotModel(EMBEDDED, pretrained=False)
    whole = evaluate(model, clips)
    skipped = evaluate(model, clips, protocol=replace(ORIGINAL, skip_first=True))
    with torch.no_grad():
        video = torch.from_numpy(clips[0].video).permute(0, 3, 1, 2) / 255
        soft = model(video[None]).masks[0]
    slots = metrics.label_maps(soft, (12, 12))
    expected = metrics.adjusted_rand_index(clips[0].labels[1:], slots[1:])
    assert skipped["video_fg_ari"] == [pytest.approx(expected, abs=1e-5)]
    assert skipped["mask_entropy"] == [pytest.approx(metrics.mask_entropy(soft[1:]), abs=1e-7)]
    assert skipped["video_fg_ari"] != whole["video_fg_ari"]


def test_background_can_be_an_object_of_best_overlap():
    labels = blocky([[[0, 0], [0, 1]]])
    slots = blocky([[[0, 0], [2, 1]]])
    without = score_labels(labelled(labels), slots)
    assert without["video_mbo"] == 1
    assert "video_ari" not in without
    found = score_labels(labelled(labels), slots, protocol=protocol_for("randsfq", "movi_d"))
    # background's best slot has 2 of its 3 patches
    assert found["video_mbo"] == found["image_mbo"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["video_iou"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["video_ari"] < found["video_fg_ari"] == 1
    assert found["j_and_f"] == without["j_and_f"] == 1
    empty = labelled(blocky([[[0, 0], [0, 0]]]))
    found = score_labels(empty, slots, protocol=protocol_for("randsfq", "movi_d"))
    assert np.isnan(found["video_fg_ari"])
    assert found["video_mbo"] == 0.5
    assert found["image_mbo_frames"] == 1
    first, second = random_clips(2)
    found = score_labels(first, second.labels, protocol=protocol_for("randsfq", "movi_d"))
    whole = metrics.adjusted_rand_index(first.labels, second.labels, ignore_label=None)
    assert found["video_ari"] == whole


class Counting(list):
    """Clips that remember which of them were read."""

    def __iter__(self):
        self.read = []
        for i, clip in enumerate(list.__iter__(self)):
            self.read.append(i)
            yield clip


def test_only_the_first_videos_are_read_and_scored():
    clips = Counting(random_clips(5))
    features = np.random.default_rng(0).standard_normal((5, 5, 9, 6)).astype(np.float32)
    model = VideoSlotModel(MODEL)
    first = replace(ORIGINAL, n_videos=3)
    ids, found = evaluate_samples(model, clips, features=features, batch_size=2, protocol=first)
    assert ids == ["random/0", "random/1", "random/2"]
    assert clips.read == [0, 1, 2]
    assert found == evaluate(model, clips[:3], features=features[:3], batch_size=2)
    assert len(evaluate(model, clips[:2], features=features[:2], protocol=first)["j"]) == 2


def test_slotcontrast_counts_210_videos_of_ytvis_alone():
    for name in PREPROCESSING:
        first = protocol_for("slotcontrast", name).n_videos
        assert first == (210 if name == "ytvis2021" else None)
        assert protocol_for("slotcontrast_all", name).n_videos is None
    assert protocol_for("slotcontrast_skip_first", "ytvis2021").n_videos == 210


def test_windows_are_samples_of_their_own():
    clip = random_clips(1, (15, 6, 6))[0]
    window = Protocol("window", Preprocessing(None), window=6)
    found = list(samples([clip], window))
    assert [sample.id for sample in found] == ["random/0[0:6]", "random/0[6:12]"]
    np.testing.assert_array_equal(found[1].labels, clip.labels[6:12])
    np.testing.assert_array_equal(found[1].video, clip.video[6:12])
    covered = list(samples([clip], replace(window, cover_end=True)))
    assert [sample.id for sample in covered[2:]] == ["random/0[9:15]"]
    even = Clip(clip.video[:12], clip.labels[:12], "a")
    assert len(list(samples([even], replace(window, cover_end=True)))) == 2
    short = Clip(clip.video[:5], clip.labels[:5], "b")
    assert not list(samples([short], replace(window, cover_end=True)))
    model = VideoSlotModel(EMBEDDED, pretrained=False)
    ids, scores = evaluate_samples(model, [clip, short], protocol=window)
    assert ids == [sample.id for sample in found]
    for name, values in evaluate(model, found).items():
        assert scores[name] == pytest.approx(values, abs=1e-5), name
    with pytest.raises(ValueError, match="cuts videos into windows of 6"):
        evaluate(VideoSlotModel(MODEL), [clip], features=np.zeros((1, 15, 9, 6)), protocol=window)


def test_a_protocol_says_whose_masks():
    clips, model = random_clips(1), VideoSlotModel(EMBEDDED, pretrained=False)
    by_protocol = evaluate(model, clips, protocol=replace(ORIGINAL, masks="attention"))
    assert by_protocol == evaluate(model, clips, masks="attention")
    assert by_protocol != evaluate(model, clips)
    for masks in choices(Masks):
        replace(ORIGINAL, masks=masks)


def test_published_protocols():
    movi, ytvis = (protocol_for("slotcontrast", name) for name in ("movi_e", "ytvis2021"))
    assert (movi.preprocessing.size, movi.empty) == (336, "perfect")
    assert (ytvis.preprocessing.size, ytvis.preprocessing.square) == (518, "crop")
    assert ytvis.empty == protocol_for("slotcontrast", "davis2017").empty == "skip"
    assert protocol_for("slotcontrast", "minimovi_a") == movi
    assert protocol_for("original", "ovis") == replace(ORIGINAL, empty="skip")
    other = protocol_for("randsfq", "ytvis2021")
    square = Preprocessing(256, "crop", interpolation="bilinear", antialias=True)
    assert (other.preprocessing, other.window, other.cover_end) == (square, 20, True)
    assert protocol_for("randsfq", "movi_e").window is None
    pieces = protocol_for("videosaur", "ytvis2021")
    assert (pieces.window, pieces.n_videos) == (6, None)
    assert (pieces.preprocessing.size, pieces.preprocessing.label_size) == (518, 224)
    for name in PROTOCOLS:
        assert protocol_for(name, "ytvis2021").name == name


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: protocol_for("paper", "movi_e"), "no protocol is called 'paper'; choose from ori"),
        (lambda: protocol_for("original", "movi_f"), "no data set is called 'movi_f'; choose from"),
        (lambda: protocol_for("videosaur", "movi_e"), "rules for ytvis2021 only, not movi_e"),
        (lambda: replace(ORIGINAL, empty="drop"), "empty must be one of .*'skip'.*got 'drop'"),
        (lambda: replace(ORIGINAL, masks="both"), "masks must be one of .*'attention'"),
        (
            lambda: replace(ORIGINAL, window=0),
            "window must be a whole number of 1 or more or None, got 0",
        ),
    ],
)
def test_protocols_that_cannot_be_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_oracle_is_perfect_on_labels_made_of_patches():
    clip = labelled(blocky([[[0, 7], [3, 3]], [[7, 0], [3, 0]]]))
    found = grid_oracle([clip], 2)
    for name in ("video_fg_ari", "image_fg_ari", "video_mbo", "image_mbo", "j", "f"):
        assert found[name] == [1]
    assert found["identity_switches"] == found["mask_entropy"] == [0]


def test_oracle_loses_an_object_that_is_less_than_half_of_each_patch():
    labels = np.zeros((1, 8, 8), int)
    labels[0, 3:5, 3:5] = 1  # a quarter of a 4 x 4 patch is 4 pixels, and one falls on each
    (overlap,) = grid_oracle([labelled(labels)], 2)["video_mbo"]
    assert overlap == 4 / 64  # everything became background
    assert grid_oracle([labelled(labels)], 8)["video_mbo"] == [1]


def test_blocks_are_right_where_objects_are_blocks():
    still = labelled(blocky([[[1, 2], [0, 3]]] * 2))
    found = baselines.block_grid([still, still], 2, 2)
    assert found.keys() == METRICS
    assert found["video_fg_ari"] == found["video_mbo"] == [1, 1]
    moving = labelled(blocky([[[1, 0], [0, 2]], [[0, 1], [2, 0]]]))
    found = baselines.block_grid([moving], 2, 2)
    assert found["image_fg_ari"] == found["identity_switches"] == [1]
    # Four pieces of 16 pixels, two of each object: pairs in one piece, in one object, of all.
    piece, whole, all_pairs = 4 * 120, 2 * 496, 2016
    chance = piece * whole / all_pairs
    expected = (piece - chance) / ((piece + whole) / 2 - chance)
    assert found["video_fg_ari"] == [pytest.approx(expected)]
    assert baselines.block_grid([still], 1, 1)["video_fg_ari"] == [0]


def test_blocks_share_a_size_that_they_do_not_divide():
    labels = baselines._blocks((1, 5, 7), 2, 3)[0]
    assert np.unique(labels).tolist() == list(range(6))
    assert np.bincount(labels.ravel()).tolist() == [9, 6, 6, 6, 4, 4]  # 3 or 2 by 3, 2 or 2


def test_chain_follows_the_nearest_centres():
    frames = [[[0.0], [10.0]], [[11.0], [1.0], [50.0]], [[51.0], [2.0]], [[2.0], [12.0]]]
    frames.append([[90.0], [12.0], [2.0]])
    names = baselines.chain([np.array(frame) for frame in frames])
    # 50 is new, and so is 90; the one cluster left for 12 is that of 51.
    assert [name.tolist() for name in names] == [[0, 1], [1, 0, 2], [2, 0], [0, 2], [3, 2, 0]]
    # Squares shun the long way of one cluster: 9 + 9.2 in all is less than 0 + 35.6.
    squared = baselines.chain([np.array([[0, 0], [3, 0]]), np.array([[3, 0], [5.9, 0.9]])])
    assert squared[1].tolist() == [0, 1]


def drifting() -> tuple[Clip, np.ndarray]:
    """Background and two objects whose feature changes by 1 a frame, over more than their gap."""
    cells = np.zeros((8, 4, 4), int)
    cells[:, 0] = 1
    cells[:, 3] = 2
    features = np.where(cells == 0, -20.0, np.where(cells == 1, 0.0, 4.0))
    features = features + np.where(cells > 0, np.arange(8)[:, None, None], 0)
    clip = labelled(np.kron(cells, np.ones((1, 4, 4), int)))
    return clip, features.reshape(1, 8, 16, 1).astype(np.float16)


def test_clusters_of_frames_follow_objects_that_change():
    clip, features = drifting()
    for count in (3, "true"):
        found = baselines.kmeans_per_frame([clip], features, count)
        assert found["video_fg_ari"] == found["image_fg_ari"] == [1]
        assert found["identity_switches"] == [0]
        assert found["slots_in_use"] == [3]
    found = baselines.kmeans_per_video([clip], features, 3)
    assert found["video_fg_ari"][0] < 0.9  # the two ranges of features overlap
    assert found["identity_switches"][0] > 0


def test_clusters_of_a_video_find_an_object_that_comes_back():
    cells = np.zeros((3, 4, 4), int)
    cells[[0, 2], :2] = 5
    cells[:, 3] = 8
    features = np.choose(np.searchsorted([0, 5, 8], cells), [0.0, 1.0, 3.0]).reshape(1, 3, 16, 1)
    clip = labelled(np.kron(cells, np.ones((1, 4, 4), int)))
    found = baselines.kmeans_per_video([clip], features, "true")
    assert found["video_fg_ari"] == found["image_fg_ari"] == [1]
    assert found["slots_in_use"] == [pytest.approx((3 + 2 + 3) / 3)]
    assert found["identity_switches"] == found["mask_entropy"] == [0]
    noise = np.random.default_rng(0).standard_normal((1, 3, 16, 6))
    by_frame = baselines.kmeans_per_frame([clip], noise, "true")
    assert by_frame["slots_in_use"] == found["slots_in_use"]
    most = baselines.kmeans_per_frame([clip], noise, 20)
    assert most["slots_in_use"] == [16]  # a frame has no more patches


def test_videos_that_are_clustered_may_differ_in_length():
    """As real ones do: their features are a list, not one array."""
    (clip, features), short = drifting(), 5
    cut = Clip(clip.video[:short], clip.labels[:short], "cut")
    for method in (baselines.kmeans_per_frame, baselines.kmeans_per_video):
        found = method([clip, cut], [features[0], features[0, :short]], 3)
        alone = method([cut], features[:, :short], 3)
        assert found["video_fg_ari"][1] == alone["video_fg_ari"][0]


def test_k_means_is_repeatable():
    clips = random_clips(2)
    features = np.random.default_rng(0).standard_normal((2, 5, 9, 6))
    first, again, other = (
        baselines.kmeans_per_frame(clips, features, 4, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again != other


@pytest.mark.parametrize("count", [0, "two", 2.5])
def test_k_means_needs_a_number_of_clusters(count):
    with pytest.raises(ValueError, match='n_clusters must be 1 or more, or "true"'):
        baselines.kmeans_per_video(random_clips(1), np.zeros((1, 5, 9, 6)), count)


def test_parameters_are_counted_by_part():
    d, p, hidden = 8, 4, 8
    model = VideoSlotModel(replace(EMBEDDED, decoder_hidden=hidden), pretrained=False)
    f = model.config.feature_dim
    counts = profiling.count_parameters(model)
    assert counts["transform"] == (2 * f + f * 2 * f + 2 * f + 2 * f * d + d,) * 2
    assert counts["initial_slots"] == (4 * d, 4 * d)
    assert counts["predictor"] == (12 * d**2 + 13 * d,) * 2
    assert counts["slot_attention"] == (17 * d**2 + 17 * d,) * 2
    decoder = d * hidden + hidden + hidden * (f + 1) + f + 1 + p * d
    assert counts["decoder"] == (decoder, decoder)
    assert counts["backbone"][0] > 100_000
    assert counts["backbone"][1] == 0
    assert counts["total"] == tuple(
        sum(counts[part][i] for part in counts if part != "total") for i in (0, 1)
    )


def test_models_take_turns_being_timed(monkeypatch):
    turns = []
    monkeypatch.setattr(VideoSlotModel, "stream", lambda self, *_, **__: turns.append(self) or [])
    first, second = (VideoSlotModel(EMBEDDED, pretrained=False) for _ in range(2))
    video = np.zeros((3, 16, 16, 3), np.uint8)
    times = profiling.ms_per_frame({"a": first, "b": second}, video, repeats=2)
    assert turns == [first, second] * 3  # the first turn warms up
    assert {name: len(values) for name, values in times.items()} == {"a": 2, "b": 2}


def test_time_counts_the_whole_stream(monkeypatch):
    monkeypatch.setattr(VideoSlotModel, "stream", partialmethod(VideoSlotModel.stream, chunk=2))
    model = VideoSlotModel(EMBEDDED, pretrained=False)
    seen = []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True
    )
    (times,) = profiling.ms_per_frame(
        {"a": model}, np.zeros((3, 16, 16, 3), np.uint8), repeats=1
    ).values()
    assert times[0] > 0
    assert [args[0].shape[1] for args, _ in seen] == [2, 1] * 2
    assert [getattr(kwargs["state"], "frame", 0) for _, kwargs in seen] == [0, 2] * 2


def test_timing_refuses_models_that_see_no_frames():
    with pytest.raises(ValueError, match="a have no backbone"):
        profiling.ms_per_frame({"a": VideoSlotModel(MODEL)}, np.zeros((3, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=r"video must be uint8 \(T,H,W,3\), got float64"):
        profiling.ms_per_frame({}, np.zeros((3, 8, 8, 3)))
