import math

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion
from sklearn.metrics import adjusted_rand_score

from slotmatch.metrics import (
    adjusted_rand_index,
    boundaries,
    dataset_metrics,
    hungarian_iou,
    identity_switches,
    j_and_f,
    label_maps,
    mask_entropy,
    mean_best_overlap,
    slots_in_use,
    video_metrics,
)

ONE_HOT = (
    "perfect_permuted",
    "noisy",
    "single_object_one_slot",
    "object_absent_in_frames",
    "all_background_only",
    "identity_swap",
)
CASES = [
    *[(case, background) for case in ONE_HOT for background in ("bg_ignored", "bg_kept")],
    ("unlabelled_pixels_padded_classes", "bg_kept"),
]
EXACT = {"rel": 0, "abs": 1e-12, "nan_ok": True}


def from_one_hot(masks, background):
    """Label maps (b, t, h, w) of one-hot masks; 0 is what the reference leaves out of the score."""
    labels = masks.argmax(2)
    return labels if background == "bg_ignored" else np.where(masks.any(2), labels + 1, 0)


def mean_and_count(scores):
    counted = [score for score in scores if not math.isnan(score)]
    return [np.mean(counted) if counted else math.nan, len(counted)]


@pytest.fixture(params=CASES, ids=".".join)
def case(request, oracles):
    """A case's pairs of videos, how the empty Rand index counts, and the expected values."""
    name, background = request.param
    true = from_one_hot(oracles[f"mask.{name}.true"], background)
    pred = oracles[f"mask.{name}.pred"].argmax(2)
    empty = "perfect" if background == "bg_ignored" else "skip"

    def expected(metric):
        return oracles[f"mask.{name}.{metric}.{background}"]

    return list(zip(true, pred, strict=True)), empty, expected


def test_scores_equal_the_reference(case):
    videos, empty, expected = case
    per_video = [video_metrics(true, pred, empty=empty) for true, pred in videos]
    scores = dataset_metrics(per_video)
    for key, metric in (("fg_ari", "ari"), ("mbo", "iou_overlap")):
        video, image = f"video_{key}", f"image_{key}"
        assert [scores[video], scores[f"{video}_videos"]] == pytest.approx(
            expected(f"video_{metric}"), **EXACT
        )
        assert [scores[image], scores[f"{image}_frames"]] == pytest.approx(
            expected(f"image_{metric}"), **EXACT
        )
    j_f = [scores["j_and_f"], scores["j"], scores["f"], scores["video_mbo_videos"]]
    assert j_f == pytest.approx(expected("video_jandf"), **EXACT)


def test_single_scores_equal_the_reference(case):
    videos, empty, expected = case
    frames = [
        pair for true, pred in videos for pair in zip(true[:, None], pred[:, None], strict=True)
    ]
    for level, pairs in (("video", videos), ("image", frames)):
        for metric, score in (
            ("ari", lambda true, pred: adjusted_rand_index(true, pred, empty=empty)),
            ("iou_overlap", mean_best_overlap),
            ("iou_hungarian", hungarian_iou),
        ):
            assert mean_and_count(score(*pair) for pair in pairs) == pytest.approx(
                expected(f"{level}_{metric}"), **EXACT
            )
        scores = [j_and_f(*pair) for pair in pairs]
        columns = [mean_and_count(s[key] for s in scores) for key in ("j_and_f", "j", "f")]
        assert [*(mean for mean, _ in columns), columns[0][1]] == pytest.approx(
            expected(f"{level}_jandf"), **EXACT
        )


def test_each_video_scores_as_in_the_reference(case, oracles, request):
    videos, _, _ = case
    name, background = request.node.callspec.params["case"]
    suffix = "bg_dropped" if background == "bg_ignored" else "bg_kept"
    scores = [adjusted_rand_index(*pair) for pair in videos]
    assert scores == pytest.approx(oracles[f"mask.{name}.fn_ari_per_video.{suffix}"], **EXACT)
    iou = oracles[f"mask.{name}.fn_iou_pairwise_video.{suffix}"]
    truth = oracles[f"mask.{name}.true"][:, :, int(background == "bg_ignored") :]
    for pair, pairwise, present in zip(videos, iou, truth.any((1, 3, 4)), strict=True):
        best = pairwise.max(1)[present]
        mean = best.mean() if present.any() else math.nan
        assert mean_best_overlap(*pair) == pytest.approx(mean, **EXACT)


def test_a_single_image_scores_as_in_the_reference(oracles):
    true = from_one_hot(oracles["mask.noisy.true"], "bg_ignored")[:, 1]
    pred = oracles["mask.noisy.pred"].argmax(2)[:, 1]
    for metric, score in (("ari", adjusted_rand_index), ("iou_overlap", mean_best_overlap)):
        expected = oracles[f"mask.noisy_frame1_4d.image_{metric}.bg_ignored"]
        got = mean_and_count(score(*pair) for pair in zip(true, pred, strict=True))
        assert got == pytest.approx(expected, **EXACT)


@pytest.mark.parametrize("score", [adjusted_rand_index, mean_best_overlap, video_metrics])
def test_what_the_reference_refuses_is_refused(score, oracles):
    soft = oracles["refused.soft_prediction.pred"][0]
    true, pred = (oracles[f"refused.different_frames.{x}"].argmax(2)[0] for x in ("true", "pred"))
    with pytest.raises(ValueError, match="integers, got float32"):
        score(true, soft[:, 0])
    with pytest.raises(ValueError, match=r"equal shapes, got \(4, 9, 9\).*\(3, 9, 9\)"):
        score(true, pred)


def test_rand_index_worked_out_by_hand():
    # Table [[2, 1, 0], [0, 1, 2]]: 2 pairs together in both, 6 in the truth, 3 in the prediction,
    # 15 in all, so (2 - 6 * 3 / 15) / ((6 + 3) / 2 - 6 * 3 / 15) = 0.8 / 3.3.
    true, pred = np.array([1, 1, 1, 2, 2, 2]), np.array([0, 0, 1, 1, 2, 2])
    assert adjusted_rand_index(true, pred) == pytest.approx(8 / 33)
    # Background joined to either object changes nothing.
    true, pred = np.append(true, [0, 0, 0]), np.append(pred, [0, 2, 5])
    assert adjusted_rand_index(true, pred) == pytest.approx(8 / 33)


def test_rand_index_equals_scikit_learns():
    rng = np.random.default_rng(0)
    for n_true, n_pred in ((2, 2), (3, 15), (12, 4), (1, 3)):
        true, pred = rng.integers(n_true, size=500), rng.integers(n_pred, size=500)
        pred[:200] = true[:200]
        expected = adjusted_rand_score(true, pred)
        assert adjusted_rand_index(true, pred, ignore_label=None) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("true", "pred", "score"),
    [
        ([3, 3, 3, 3], [7, 7, 7, 7], 1.0),  # one object in one slot: denominator 0
        ([1, 2, 3, 4], [9, 8, 7, 6], 1.0),  # every pixel apart in both: denominator 0
        ([5], [0], 1.0),  # one pixel
        ([3, 3, 3, 3], [7, 7, 8, 8], 0.0),  # one object split over slots
        ([1, 1, 2, 2], [7, 7, 7, 7], 0.0),  # two objects in one slot
        ([0, 0, 3, 3], [1, 2, 7, 7], 1.0),  # predictions on the background do not count
    ],
)
def test_degenerate_rand_indices(true, pred, score):
    assert adjusted_rand_index(np.array(true), np.array(pred)) == score


def test_truth_without_objects_is_perfect_or_skipped():
    true, pred = np.zeros((2, 3, 3), int), np.arange(18).reshape(2, 3, 3)
    assert adjusted_rand_index(true, pred) == 1.0
    assert math.isnan(adjusted_rand_index(true, pred, empty="skip"))
    assert math.isnan(mean_best_overlap(true, pred))
    assert math.isnan(hungarian_iou(true, pred))
    assert all(math.isnan(score) for score in j_and_f(true, pred).values())
    perfect, skipped = (video_metrics(true, pred, empty=empty) for empty in ("perfect", "skip"))
    assert (perfect["video_fg_ari"], perfect["image_fg_ari_frames"]) == (1.0, 2)
    assert math.isnan(skipped["video_fg_ari"])
    assert skipped["image_fg_ari_frames"] == skipped["image_mbo_frames"] == 0


def test_overlaps_worked_out_by_hand():
    true = np.array([1, 1, 1, 2, 2, 2, 0, 0])
    pred = np.array([0, 0, 1, 1, 1, 1, 1, 2])
    # Object 1: 2/3 with slot 0, 1/7 with slot 1. Object 2: 3/5 with slot 1, whose pixel on the
    # background is in the union. Slot 2 has no object and costs nothing.
    assert mean_best_overlap(true, pred) == pytest.approx((2 / 3 + 3 / 5) / 2)
    # A slot may be the best of several objects, unless each object needs a slot of its own.
    merged = np.array([0, 0, 0, 0, 0, 0, 1, 1])
    assert mean_best_overlap(true, merged) == pytest.approx(1 / 2)
    assert hungarian_iou(true, merged) == pytest.approx(1 / 4)


def test_image_scores_leave_out_frames_without_objects():
    true = np.array([[[1, 1, 2, 2]], [[1, 1, 0, 0]], [[0, 0, 0, 0]]])
    pred = np.array([[[5, 5, 6, 6]], [[5, 6, 6, 6]], [[5, 6, 7, 8]]])
    scores = video_metrics(true, pred)
    # Frame 0: 1 and 1. Frame 1: the object is split (ARI 0), its best IoU is 1/2. Frame 2: empty.
    assert scores["image_fg_ari"] == pytest.approx((1 + 0 + 1) / 3)
    assert scores["image_fg_ari_frames"] == 3
    assert scores["image_mbo"] == pytest.approx((1 + 1 / 2) / 2)
    assert scores["image_mbo_frames"] == 2
    # Pooled: object 1 has 3 of its 4 pixels in slot 5, which has one more; object 2 fills 2 of the
    # 6 pixels of slot 6.
    assert scores["video_mbo"] == pytest.approx((3 / 5 + 2 / 6) / 2)


def test_video_metrics_agrees_with_the_single_scores():
    rng = np.random.default_rng(1)
    true, pred = rng.integers(4, size=(3, 12, 10)), rng.integers(5, size=(3, 12, 10))
    pred = np.where(rng.random(true.shape) < 0.6, true, pred)
    for ignore_label in (0, 2, None):
        scores = video_metrics(true, pred, ignore_label=ignore_label)
        options = {"ignore_label": ignore_label}
        assert scores["video_fg_ari"] == adjusted_rand_index(true, pred, **options)
        assert scores["video_mbo"] == mean_best_overlap(true, pred, **options)
        assert {key: scores[key] for key in ("j", "f", "j_and_f")} == j_and_f(true, pred, **options)
        frames = [adjusted_rand_index(*pair, **options) for pair in zip(true, pred, strict=True)]
        assert scores["image_fg_ari"] == pytest.approx(np.mean(frames))


def relabelled(labels, values):
    """The label maps with value i replaced by ``values[i]``."""
    return values[labels]


@pytest.mark.parametrize(
    "values",
    [
        np.array([3, -1, 4, 1, 2]),
        np.array([-128, 127, 0, -1, 5], np.int8),
        np.array([255, 0, 254, 7, 8], np.uint8),
        np.array([0, 256, 1, 2, 3]),
        np.array([-(2**40), 2**40, 0, 17, -3]),
        np.array([2**64 - 1, 2**63, 2**63 + 1, 5, 0], np.uint64),
    ],
    ids=["permuted", "int8", "uint8", "one past a byte", "sparse", "uint64"],
)
def test_labels_are_only_names(values):
    rng = np.random.default_rng(2)
    true, pred = rng.integers(5, size=(2, 4, 30, 24))
    pred = np.where(rng.random(true.shape) < 0.7, true, pred)
    expected = video_metrics(true, pred)
    renamed = video_metrics(true, relabelled(pred, values))
    assert renamed == expected
    renamed = video_metrics(relabelled(true, values), pred, ignore_label=int(values[0]))
    assert renamed == pytest.approx(expected, abs=1e-14)


def test_video_scores_ignore_the_order_of_frames_and_pixels():
    rng = np.random.default_rng(3)
    true, pred = rng.integers(4, size=(2, 5, 9, 7))
    scores = video_metrics(true, pred)
    assert video_metrics(true[::-1], pred[::-1]) == pytest.approx(scores)
    flipped = video_metrics(true[..., ::-1].swapaxes(1, 2), pred[..., ::-1].swapaxes(1, 2))
    assert flipped == pytest.approx(scores)


def test_tensors_and_arrays_of_any_integer_type_score_alike():
    rng = np.random.default_rng(4)
    true, pred = rng.integers(4, size=(2, 3, 8, 8))
    scores = video_metrics(true, pred)
    assert video_metrics(torch.tensor(true), torch.tensor(pred, dtype=torch.int32)) == scores
    assert video_metrics(true.astype(np.uint16), torch.tensor(pred, dtype=torch.uint8)) == scores
    assert video_metrics(np.asfortranarray(true), pred) == scores


@pytest.mark.parametrize("size", [(24, 24), (60, 90), (5, 40), (2, 2), (1, 1), (3, 3), (128, 128)])
def test_boundaries_are_regions_minus_their_erosion(size):
    rng = np.random.default_rng(5)
    blocks = rng.integers(3, size=(2, -(-size[0] // 9), -(-size[1] // 9)))
    labels = np.kron(blocks, np.ones((9, 9), int))[:, : size[0], : size[1]]
    radius = max(1, round(0.02 * math.hypot(*size)))
    square = np.ones((2 * radius + 1, 2 * radius + 1))
    expected = np.zeros(labels.shape, bool)
    for t, frame in enumerate(labels):
        for value in np.unique(frame):
            region = frame == value
            expected[t] |= region & ~binary_erosion(region, square)
    np.testing.assert_array_equal(boundaries(labels), expected)
    np.testing.assert_array_equal(boundaries(torch.tensor(labels[0])), expected[0])


def test_j_and_f_worked_out_by_hand():
    # In 6 by 6 pixels the boundary is one pixel wide, so all of these regions is boundary but what
    # lies a pixel inside. The object has 3 x 4 pixels, 10 of them boundary; the slot has one column
    # less. Both in frame 0, neither in frame 1, which therefore scores 0.
    true, pred = np.zeros((2, 2, 6, 6), int)
    true[0, 1:4, 1:5] = 1
    pred[0, 1:4, 1:4] = 1
    scores = j_and_f(true, pred)
    assert scores["j"] == pytest.approx(9 / 12 / 2)
    # The slot's boundary is 8 of its 9 pixels: the columns 1 and 3 and the ends of column 2. They
    # share with the object's boundary column 1 and the ends of columns 2 and 3.
    assert scores["f"] == pytest.approx(2 * 7 / (10 + 8) / 2)
    assert scores["j_and_f"] == pytest.approx((scores["j"] + scores["f"]) / 2)


def test_objects_left_without_a_slot_score_zero():
    true = np.array([[[1, 2, 3, 4]]])
    one_slot = np.zeros_like(true)
    assert j_and_f(true, one_slot)["j"] == pytest.approx(1 / 4 / 4)
    assert hungarian_iou(true, one_slot) == pytest.approx(1 / 4 / 4)
    assert mean_best_overlap(true, one_slot) == pytest.approx(1 / 4)


def test_data_set_scores_weigh_videos_and_frames():
    true = np.array([[[1, 1, 2, 2]]])
    good = video_metrics(true, true)
    bad = video_metrics(np.tile(true, (3, 1, 1)), np.zeros((3, 1, 4), int))
    empty = video_metrics(0 * true, true, empty="skip")
    scores = dataset_metrics([good, bad, empty])
    assert scores["video_fg_ari"] == pytest.approx((1 + 0) / 2)
    assert scores["image_fg_ari"] == pytest.approx((1 * 1 + 3 * 0) / 4)
    assert scores["video_mbo"] == pytest.approx((1 + 1 / 2) / 2)
    assert scores["image_mbo"] == pytest.approx((1 * 1 + 3 * 1 / 2) / 4)
    assert (scores["image_fg_ari_frames"], scores["image_mbo_frames"]) == (4, 4)
    assert (scores["video_fg_ari_videos"], scores["video_mbo_videos"]) == (2, 2)
    assert math.isnan(dataset_metrics([empty])["image_fg_ari"])


def test_label_maps_enlarge_before_the_largest_is_taken(oracles):
    soft = oracles["resize.square_up.soft_patches"]
    expected = oracles["resize.square_up.hard"].argmax(2)
    np.testing.assert_array_equal(label_maps(soft, (14, 14)), expected)
    np.testing.assert_array_equal(label_maps(torch.tensor(soft[0]), (14, 14)), expected[0])
    assert label_maps(soft, (14, 14)).dtype == np.int32
    first = label_maps(soft, (4, 4)).repeat(4, 2).repeat(4, 3)[..., 1:15, 1:15]
    assert (first != expected).any()  # largest first, then enlarged, is something else


def test_the_lowest_slot_wins_a_tie(oracles):
    soft, hard = oracles["argmax_tie.soft"], oracles["argmax_tie.hard"]
    maps = label_maps(soft.reshape(1, 1, 3, 4), (2, 2))
    np.testing.assert_array_equal(maps, hard.argmax(2))
    assert label_maps(np.float32([[[0.5], [0.50001]]]), (1, 1)).item() == 1  # and nothing else


def test_label_maps_of_a_grid_that_is_not_square():
    owner = np.array([[0, 1, 2], [2, 0, 1]])
    masks = np.eye(3)[owner.ravel()].T[None]  # (t=1, k=3, p=6)
    np.testing.assert_array_equal(label_maps(masks, (2, 3), grid=(2, 3)), owner[None])
    half = torch.tensor(masks, dtype=torch.float16, requires_grad=True)
    larger = label_maps(half, (4, 6), grid=(2, 3))
    np.testing.assert_array_equal(larger[0, [0, 0, 3, 3], [0, 5, 0, 5]], [0, 2, 2, 1])


@pytest.mark.parametrize(
    ("shape", "size", "grid", "message"),
    [
        ((2, 3, 5), (8, 8), None, r"5 patches do not fill a grid of 2 x 2: pass grid="),
        ((2, 3, 6), (8, 8), (2, 2), "6 patches do not fill a grid of 2 x 2"),
        ((2, 3, 4), (0, 8), None, "at least one pixel"),
        ((4,), (8, 8), None, "slots, patches"),
        ((2, 0, 4), (8, 8), None, "not empty"),
    ],
)
def test_label_maps_refuses_what_it_cannot_place(shape, size, grid, message):
    with pytest.raises(ValueError, match=message):
        label_maps(np.ones(shape), size, grid=grid)


def test_label_maps_refuses_a_broken_models_output():
    with pytest.raises(ValueError, match="not finite"):
        label_maps(np.full((1, 2, 4), np.nan), (8, 8))


def test_slots_in_use():
    pred = np.zeros((2, 2, 5), int)
    pred[0, 0] = [0, 1, 1, 7, 7]  # 6, 2 and 2 of the 10 pixels
    pred[1, 0, 0] = 3
    assert slots_in_use(pred) == (3 + 2) / 2
    assert slots_in_use(pred, min_share=0.2) == (3 + 1) / 2
    assert slots_in_use(pred, min_share=0.5) == 1
    with pytest.raises(ValueError, match=r"min_share.*got 20"):
        slots_in_use(pred, min_share=20)


def test_identity_switches():
    true = np.array([[1, 2, 2], [1, 2, 2], [0, 2, 2], [1, 2, 2]])[:, None]
    kept = np.array([[5, 6, 6], [5, 6, 6], [5, 6, 6], [5, 6, 6]])[:, None]
    assert identity_switches(true, kept) == 0
    # Object 1 is hidden in frame 2 and comes back in another slot: 1 of its 2 steps. Object 2
    # changes its slot once in 3 steps.
    swapped = np.array([[5, 6, 6], [5, 6, 6], [5, 7, 7], [8, 7, 7]])[:, None]
    assert identity_switches(true, swapped) == pytest.approx(2 / 5)
    # Slot 5 has more of the object in the first frame, and a smaller IoU.
    large = np.array([[5, 5, 6, *[5] * 7], [6, 6, 6, *[5] * 7]])[:, None]
    assert identity_switches(np.array([[1] * 3 + [0] * 7] * 2)[:, None], large) == 0
    assert math.isnan(identity_switches(true[:1], kept[:1]))
    assert math.isnan(identity_switches(0 * true, kept))


def test_mask_entropy():
    certain = np.array([[[1.0, 0.0], [0.0, 1.0]]])
    assert mask_entropy(certain) == 0
    assert mask_entropy(torch.full((2, 5, 7), 0.2)) == pytest.approx(1)
    shares = np.array([[[0.25, 1.0], [0.75, 0.0]]])
    entropy = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    assert mask_entropy(shares) == pytest.approx(entropy / 2)
    assert mask_entropy(np.ones((1, 1, 4))) == 0
    for values in ([[3.0], [-2.0]], [[0.5], [0.52]]):
        with pytest.raises(ValueError, match="soft-max"):
            mask_entropy(np.array([values]))
    with pytest.raises(ValueError, match=r"got \(3,\)"):
        mask_entropy(np.ones(3))


def test_errors_name_the_value_and_the_fix():
    maps = np.ones((2, 4, 4), int)
    with pytest.raises(ValueError, match=r"\('perfect', 'skip'\), got 'zero'"):
        adjusted_rand_index(maps, maps, empty="zero")
    with pytest.raises(ValueError, match="got bool"):
        mean_best_overlap(maps, maps > 0)
    with pytest.raises(ValueError, match="add a frame axis"):
        video_metrics(maps[0], maps[0])
    with pytest.raises(ValueError, match=r"\(0, 4, 4\) have no pixels"):
        video_metrics(maps[:0], maps[:0])
    many = np.arange(2**11).reshape(1, 1, -1).repeat(16, 0)
    for score, labels in ((adjusted_rand_index, np.arange(2**14)), (video_metrics, many)):
        with pytest.raises(ValueError, match="are these label maps"):
            score(labels, labels)
    with pytest.raises(ValueError, match="videos is empty"):
        dataset_metrics([])
    with pytest.raises(ValueError, match="rows, columns"):
        boundaries(maps[0, 0])
