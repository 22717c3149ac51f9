import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba

from slotmatch import palette
from slotmatch.reporting import plots


@pytest.fixture(autouse=True)
def _agg_and_closed():
    mpl.use("Agg")
    yield
    plt.close("all")


def lightness_and_hue(rgb):
    """OKLab of sRGB in [0,1] (n,3), from its published matrices."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_cones = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    to_lab = [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
    return np.cbrt(linear @ np.transpose(to_cones)) @ np.transpose(to_lab)


def closest_pair(rgb):
    lab = lightness_and_hue(rgb)
    distances = np.linalg.norm(lab[:, None] - lab, axis=-1)
    return distances[~np.eye(len(rgb), dtype=bool)].min()


def test_slot_colours_are_apart_and_keep_their_place():
    sixteen = palette.slot_colors(16)
    assert sixteen.shape == (16, 3)
    # 0.02 in OKLab is a difference one just notices side by side.
    assert closest_pair(sixteen) > 0.1
    assert closest_pair(sixteen[:7]) > 0.12
    np.testing.assert_array_equal(palette.slot_colors(5), sixteen[:5])
    np.testing.assert_array_equal(palette.slot_colors(20)[16:], sixteen[:4])
    assert palette.slot_colors(0).shape == (0, 3)
    with pytest.raises(ValueError, match="n must be 0 or more slots, got -1"):
        palette.slot_colors(-1)


def test_methods_have_colours_of_their_own():
    colors = list(plots.METHOD_COLORS.values())
    assert closest_pair(np.array([to_rgba(color)[:3] for color in colors])) > 0.1
    with pytest.raises(TypeError):
        plots.METHOD_COLORS["teacher"] = "red"


def test_objects_take_the_slots_that_cover_them_best():
    truth = np.array([[0, 0, 5, 5, 5, 9]])
    slots = np.array([[1, 1, 0, 0, 1, 3]])
    # Object 5 overlaps slot 0 by 2 of 3 pixels and slot 1 by 1 of 5; object 9 is slot 3.
    for kind in (np.int64, np.uint8):
        named = plots.align_truth(truth.astype(kind), slots.astype(kind))
        np.testing.assert_array_equal(named, [[-1, -1, 0, 0, 0, 3]])


def test_pairing_is_the_best_in_total_and_one_to_one():
    # Alone, object 1 would take slot 0, which covers it by 3/7 against 2/5 of slot 1. But then
    # object 2, which only slot 0 covers (2/5), would get nothing: 3/7 is less than 2/5 + 2/5.
    truth = np.array([1, 1, 1, 1, 1, 2, 2, 0])
    slots = np.array([0, 0, 0, 1, 1, 0, 0, 2])
    np.testing.assert_array_equal(plots.align_truth(truth, slots), [1, 1, 1, 1, 1, 0, 0, -1])


def test_objects_beyond_the_slots_get_numbers_after_them():
    truth = np.array([1, 1, 1, 2, 3, 3])
    slots = np.zeros(6, int)
    # IoU with the only slot: 3/6, 1/6 and 2/6.
    np.testing.assert_array_equal(plots.align_truth(truth, slots), [0, 0, 0, 1, 2, 2])


def test_a_video_keeps_one_pairing():
    truth = np.array([[1, 1, 1, 0], [1, 0, 0, 0]])
    slots = np.array([[0, 0, 0, 1], [1, 0, 0, 0]])
    # In the second frame alone object 1 would be slot 1.
    np.testing.assert_array_equal(plots.align_truth(truth, slots), [[0, 0, 0, -1], [0, -1, -1, -1]])


def test_pairing_names_wrong_input():
    with pytest.raises(ValueError, match=r"one shape, got \(2,\) and \(3,\)"):
        plots.align_truth(np.zeros(2, int), np.zeros(3, int))
    with pytest.raises(ValueError, match="0 or more"):
        plots.align_truth(np.zeros(2, int), np.array([0, -1]))


def test_blend_mixes_inside_and_outlines_more_strongly():
    frame = np.full((4, 7, 3), 100, np.uint8)
    labels = np.zeros((4, 7), int)
    labels[:, 3:] = 1
    colors = np.array([[1.0, 0.0, 0.2], [0.0, 0.0, 0.0]])
    painted = palette.blend(frame, labels, opacity=0.4, colors=colors)
    # 100 + 0.4 (255 - 100) = 162; the border gets 0.72 of the colour: 100 + 0.72 * 155 = 211.6.
    inside = np.broadcast_to([162, 60, 80], (4, 2, 3))
    np.testing.assert_array_equal(painted[:, :2], inside)
    np.testing.assert_array_equal(painted[:, 2], np.broadcast_to([212, 28, 65], (4, 3)))
    np.testing.assert_array_equal(painted[:, 3], np.full((4, 3), 28))
    np.testing.assert_array_equal(painted[:, 4:], np.full((4, 3, 3), 60))


def test_blend_takes_any_number_as_a_slot():
    """Colours repeat after the 16th; a table of so many would not fit in memory."""
    labels = np.array([[3, 3 + 16 * 10**12]] * 2)
    painted = palette.blend(np.zeros((2, 2, 3), np.uint8), labels)
    np.testing.assert_array_equal(painted[:, 0], painted[:, 1])


def test_blend_leaves_negative_labels_bare():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 6, 6, 3)).astype(np.uint8)
    labels = np.full((2, 6, 6), -1)
    labels[1, 2:4, 2:4] = 3
    painted = palette.blend(frames, labels, opacity=1)
    np.testing.assert_array_equal(painted[labels < 0], frames[labels < 0])
    slot = np.rint(255 * palette.slot_colors(4)[3])
    np.testing.assert_array_equal(painted[labels == 3], np.broadcast_to(slot, (4, 3)))


@pytest.mark.parametrize(
    ("frames", "labels", "opacity", "message"),
    [
        (np.zeros((2, 2, 3)), np.zeros((2, 2), int), 0.5, "frames must be uint8"),
        (np.zeros((2, 2), np.uint8), np.zeros((2, 2), int), 0.5, r"got uint8 \(2, 2\)"),
        (np.zeros((2, 2, 3), np.uint8), np.zeros((1, 2), int), 0.5, "resize them first"),
        (np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2)), 0.5, "labels must be integers"),
        (np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), int), 2, r"opacity must be in \[0,1\]"),
    ],
)
def test_blend_names_wrong_input(frames, labels, opacity, message):
    with pytest.raises(ValueError, match=message):
        palette.blend(frames, labels, opacity=opacity)


def test_overlay_shows_the_blend():
    frame = np.full((3, 4, 3), 90, np.uint8)
    labels = np.array([[0, 0, 1, 1]] * 3)
    axes = plots.overlay(frame, labels, opacity=0.3)
    (shown,) = axes.get_images()
    np.testing.assert_array_equal(shown.get_array(), palette.blend(frame, labels, opacity=0.3))
    given = plt.figure().add_subplot()
    assert plots.overlay(frame, labels, given) is given


def drawn(figure):
    """What a person sees of a sheet: its picture, column names and row names."""
    (axes,) = figure.axes
    (image,) = axes.get_images()
    columns = [label.get_text() for label in axes.get_xticklabels()]
    return np.asarray(image.get_array()), columns, [t.get_text() for t in axes.get_yticklabels()]


def test_mask_grid_shows_even_frames_and_a_row_a_map():
    frames = np.arange(9, dtype=np.uint8)[:, None, None, None] * np.ones((4, 5, 3), np.uint8)
    teacher = np.ones((9, 4, 5), int)
    truth = np.zeros((9, 4, 5), int)
    truth[:, 1:3, 1:4] = 7
    figure = plots.mask_grid(frames, {"truth": truth, "teacher": teacher}, 3, opacity=1)
    sheet, columns, rows = drawn(figure)
    assert columns == ["frame 0", "frame 4", "frame 8"]
    assert rows == ["video", "truth", "teacher"]
    assert sheet.shape == (3 * 4 + 2, 3 * 5 + 2, 3)
    np.testing.assert_array_equal(sheet[:4, 6:11], frames[4])
    slot = np.rint(255 * palette.slot_colors(2)[1])
    np.testing.assert_array_equal(sheet[10:, 12:], np.broadcast_to(slot, (4, 5, 3)))
    np.testing.assert_array_equal(sheet[6, 7], slot)
    np.testing.assert_array_equal(sheet[5, 6], frames[4, 0, 0])
    np.testing.assert_array_equal(sheet[4], np.full((17, 3), 255))


def test_mask_grid_of_a_short_video_and_of_truth_alone():
    frames = np.zeros((2, 4, 5, 3), np.uint8)
    truth = np.zeros((2, 4, 5), int)
    truth[:, :, 3:] = 1
    truth[:, :, :1] = 2
    sheet, columns, rows = drawn(plots.mask_grid(frames, {"truth": truth}, opacity=1))
    assert (columns, rows) == (["frame 0", "frame 1"], ["video", "truth"])
    first, second = sheet[6, 0], sheet[6, 4]
    assert first.any()
    assert second.any()
    assert (first != second).any()
    assert not sheet[6, 1].any()


def test_long_and_odd_row_names_do_not_break_the_sheet():
    frames = np.zeros((2, 9, 32, 3), np.uint8)
    name = r"$\frac a student with a very long name"
    figure = plots.mask_grid(frames, {name: np.zeros((2, 9, 32), int)})
    figure.canvas.draw()
    _, _, (_, shown) = drawn(figure)
    assert shown.endswith("\N{HORIZONTAL ELLIPSIS}")
    assert name.startswith(shown[:-1])


def test_a_banner_has_two_rows_of_five_painted_frames_under_its_words():
    frames = np.zeros((9, 24, 24, 3), np.uint8)
    maps = {name: np.full((9, 24, 24), slot) for slot, name in enumerate(("teacher", "student"))}
    figure = plots.banner(frames, maps, "Title", "A sentence.")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    assert pixels.shape == (630, 1200, 3)
    assert [text.get_text() for text in figure.texts] == ["Title", "A sentence."]
    painted = np.rint(0.55 * 255 * palette.slot_colors(2))
    np.testing.assert_allclose(
        pixels[160:380, 5:-5], np.broadcast_to(painted[0], (220, 1190, 3)), atol=2
    )
    np.testing.assert_allclose(
        pixels[400:620, 5:-5], np.broadcast_to(painted[1], (220, 1190, 3)), atol=2
    )


def test_mask_grid_names_wrong_input():
    frames = np.zeros((2, 4, 5, 3), np.uint8)
    with pytest.raises(ValueError, match="n_frames=0"):
        plots.mask_grid(frames, {}, 0)
    with pytest.raises(ValueError, match=r"frames \(0, 4, 5, 3\)"):
        plots.mask_grid(frames[:0], {})
    with pytest.raises(ValueError, match=r"map 'student' must be \(2, 4, 5\), got \(2, 2, 2\)"):
        plots.mask_grid(frames, {"student": np.zeros((2, 2, 2), int)})


def test_training_curves_join_the_entries_of_a_column():
    log = pd.DataFrame(
        {
            "step": [0, 10, 20, 30],
            "loss": [4.0, 2.0, 1.0, 0.5],
            "score": [np.nan, 0.1, np.nan, 0.3],
            "note": list("abcd"),
        }
    )
    axes = plots.training_curves(log, ylabel="value", log_scale=True)
    loss, score = axes.get_lines()
    np.testing.assert_array_equal(loss.get_xydata(), log[["step", "loss"]])
    np.testing.assert_array_equal(score.get_xydata(), [[10, 0.1], [30, 0.3]])
    assert (loss.get_marker(), score.get_marker()) == ("", "o")
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("optimiser step", "value")
    assert axes.get_yscale() == "log"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["loss", "score"]
    (only,) = plots.training_curves(log, columns=["loss"]).get_lines()
    assert only.get_label() == "loss"
    with pytest.raises(ValueError, match=r"no column \['lost'\] in the log; it has \['step'"):
        plots.training_curves(log, columns=["lost"])


def test_score_bars_show_value_interval_and_colour():
    scores = {"teacher": (60.0, 55.0, 64.0), "student": (58.25, 58.25, 62.0), "mine": (-2.0, -3, 1)}
    axes = plots.score_bars(scores, xlabel="FG-ARI (%)")
    bars = axes.patches
    assert [bar.get_width() for bar in bars] == [60.0, 58.25, -2.0]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(scores)
    assert axes.yaxis_inverted(), "drawn top to bottom"
    assert bars[0].get_facecolor()[:3] == to_rgba(plots.METHOD_COLORS["teacher"])[:3]
    assert bars[1].get_facecolor()[:3] == to_rgba(plots.METHOD_COLORS["student"])[:3]
    (whiskers,) = [item for item in axes.collections if len(item.get_segments()) == 3]
    ends = [segment[:, 0].tolist() for segment in whiskers.get_segments()]
    assert ends == [[55.0, 64.0], [58.25, 62.0], [-3.0, 1.0]]
    assert [text.get_text() for text in axes.texts] == ["60.0", "58.2", "-2.0"]
    assert axes.get_xlabel() == "FG-ARI (%)"
    with pytest.raises(ValueError, match="at least one method"):
        plots.score_bars({})
    with pytest.raises(ValueError, match=r"'k': estimate 3 is outside its interval \[4, 5\]"):
        plots.score_bars({"k": (3, 4, 5)})


def test_cost_scatter_places_models_by_cost_and_score():
    scores = {"teacher": (60.0, 55.0, 64.0), "student": (58.0, 58.0, 62.0), "mine": (40.0, 30, 41)}
    costs = {"student": 4.5, "teacher": 9.0, "mine": 0.5}
    axes = plots.cost_scatter(scores, costs, ylabel="FG-ARI (%)")
    points = axes.containers
    assert [tuple(point.lines[0].get_xydata()[0]) for point in points] == [
        *((9.0, 60.0), (4.5, 58.0), (0.5, 40.0)),
    ]
    bars = [point.lines[2][0].get_segments()[0].tolist() for point in points]
    assert bars == [
        *([[9.0, 55.0], [9.0, 64.0]], [[4.5, 58.0], [4.5, 62.0]], [[0.5, 30.0], [0.5, 41.0]]),
    ]
    assert axes.get_xscale() == "log"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("ms per frame (log scale)", "FG-ARI (%)")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(scores)
    looks = [(point.lines[0].get_color(), point.lines[0].get_marker()) for point in points]
    assert looks[0][0] == plots.METHOD_COLORS["teacher"]
    assert [len(set(look)) for look in zip(*looks, strict=True)] == [3, 3]
    axes.figure.canvas.draw()
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert not any("mathdefault" in label for label in labels), "numbers, not powers of ten"


def test_cost_scatter_names_wrong_input():
    with pytest.raises(ValueError, match="at least one method"):
        plots.cost_scatter({}, {})
    with pytest.raises(ValueError, match=r"'k': estimate 3 is outside its interval \[4, 5\]"):
        plots.cost_scatter({"k": (3, 4, 5)}, {"k": 1})
    for costs in ({"other": 1}, {"k": 0}, {}):
        with pytest.raises(ValueError, match=r"a cost above 0 for each of \['k'\], got \{"):
            plots.cost_scatter({"k": (4, 4, 5)}, costs)


def test_other_methods_do_not_share_a_colour():
    axes = plots.score_bars(dict.fromkeys(("teacher", "one", "student", "two"), (1, 0, 2)))
    assert len({bar.get_facecolor() for bar in axes.patches}) == 4


def test_paired_scatter_counts_only_videos_with_both_scores():
    teacher = [10, 20, 30, np.nan, 50]
    student = [12, 18, 36, 40, 50]
    axes = plots.paired_scatter(teacher, student, metric="mBO (%)")
    points, means = axes.collections
    np.testing.assert_array_equal(points.get_offsets(), [[10, 12], [20, 18], [30, 36], [50, 50]])
    np.testing.assert_array_equal(means.get_offsets(), [[27.5, 29]])
    assert "higher in 2, lower in 1 of 4 videos" in axes.get_title()
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("teacher mBO (%)", "student mBO (%)")
    assert axes.get_xlim() == axes.get_ylim()
    (diagonal,) = axes.get_lines()
    np.testing.assert_array_equal(diagonal.get_xdata(), diagonal.get_ydata())
    with pytest.raises(ValueError, match="none of the 2 videos has both scores"):
        plots.paired_scatter([np.nan, 1], [1, np.nan])
    with pytest.raises(ValueError, match=r"got shapes \(2,\) and \(3,\)"):
        plots.paired_scatter([1, 2], [1, 2, 3])


def test_identical_scores_still_have_an_axis():
    axes = plots.paired_scatter([5.0], [5.0])
    assert axes.get_xlim() == (4.0, 6.0)


def test_style_gives_back_what_it_changed_and_leaves_interactive_mode_alone() -> None:
    before = dict(mpl.rcParams)
    interactive = mpl.is_interactive()
    try:
        with plots.style():
            assert mpl.rcParams["axes.spines.top"] is False
            assert mpl.rcParams["axes.facecolor"] == "white"
            # What a notebook's backend does when the first figure is drawn.
            mpl.interactive(not interactive)
        assert mpl.is_interactive() is not interactive
    finally:
        mpl.interactive(interactive)
    assert dict(mpl.rcParams) == before
