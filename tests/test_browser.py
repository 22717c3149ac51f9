import base64
import io
import json
import re
from html.parser import HTMLParser

import ipywidgets
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image
from traitlets import TraitError

from slotmatch import palette
from slotmatch.browser import SlotBrowser
from slotmatch.browser import widget as browser_module

HOSTILE = '</script><!--<img src=x onerror=alert(1)> & "quoted" $\\frac'


def scene(n_frames=5, height=48, width=64):
    """A dim video, and the true labels of two squares: 1 moves to the right, 2 stands still."""
    frames = np.random.default_rng(0).integers(40, 90, (n_frames, height, width, 3), np.uint8)
    truth = np.zeros((n_frames, height, width), np.int32)
    for t in range(n_frames):
        truth[t, 8:24, 8 + 4 * t : 24 + 4 * t] = 1
        truth[t, 28:44, 40:56] = 2
    frames[truth == 1] += 100
    return frames, truth


def one_hot(labels, n_slots):
    """Label maps (t,h,w) as masks (t,k,h/4,w/4), exact as the squares are whole patches."""
    return np.eye(n_slots, dtype=np.float32)[labels[:, ::4, ::4]].transpose(0, 3, 1, 2)


def teacher_and_student():
    """Teacher slots: moving square, background, still square; the student has them turned."""
    _, truth = scene()
    teacher = np.array([1, 0, 2])[truth]
    student = np.array([2, 1, 0])[teacher]
    return {"teacher": one_hot(teacher, 3), "student": one_hot(student, 4)}, [2, 1, 0, -1]


@pytest.fixture(scope="module")
def matched():
    frames, truth = scene()
    masks, correspondence = teacher_and_student()
    return SlotBrowser(
        frames, masks, "matched & labelled", truth=truth, correspondence=correspondence
    )


class Elements(HTMLParser):
    """Tags with attributes, the text of scripts, and all text outside of scripts and styles."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.scripts, self.text, self.inside = [], [], "", None
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts[-1] += data
        elif self.inside != "style":
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def given(browser):
    """What the script of the fragment is given."""
    (script,) = Elements(browser.html).scripts
    return json.loads(re.search(r"\nfill\((\{.*\})\);\s*$", script).group(1))


def content(browser):
    """What the browser draws from, out of the fragment."""
    return given(browser)["content"]


def image(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_notebook_gets_html_png_and_text(matched):
    bundle = matched._repr_mimebundle_()
    assert set(bundle) == {"text/html", "image/png", "text/plain"}
    sheet = Image.open(io.BytesIO(base64.b64decode(bundle["image/png"])))
    assert sheet.format == "PNG"
    assert sheet.width > 400
    assert bundle["text/plain"] == (
        "SlotBrowser('matched & labelled': 5 of 5 frames, 4 slots, panels truth, teacher, student)"
    )
    fragment = Elements(bundle["text/html"])
    (static,) = fragment.all("img")
    assert base64.b64decode(static["src"].partition(",")[2]) == matched.png
    assert "truth, teacher, student" in static["alt"]
    assert "matched & labelled" in fragment.text


def test_fragment_needs_nothing_from_elsewhere(matched):
    fragment = Elements(matched.html)
    sources = [
        value
        for _, attributes in fragment.tags
        for name, value in attributes.items()
        if name in ("src", "href")
    ]
    assert sources
    assert all(source.startswith("data:") for source in sources)
    assert not fragment.all("link")
    without_pictures = re.sub(r"data:image/\w+;base64,[\w+/=]+", "", matched.html)
    assert not re.search(r"https?:|//\w|@import|url\(|fetch|XMLHttp", without_pictures)


def test_same_content_gives_the_same_bytes(matched):
    frames, truth = scene()
    masks, correspondence = teacher_and_student()

    def build(frames, label="matched & labelled"):
        return SlotBrowser(frames, masks, label, truth=truth, correspondence=correspondence)

    assert build(frames).html == matched.html
    changed = frames.copy()
    changed[2, 0, 0, 0] ^= 1
    ids = {given(item)["id"] for item in (matched, build(changed), build(frames, "other"))}
    assert len(ids) == 3
    assert f'data-slotmatch="{given(matched)["id"]}"' in matched.html


def test_names_cannot_break_out_of_the_page(tmp_path):
    frames, truth = scene()
    browser = SlotBrowser(frames, {HOSTILE: truth}, HOSTILE)
    fragment = Elements(browser.html)
    assert [tag for tag, _ in fragment.tags] == ["div", "style", "p", "img", "script"]
    assert fragment.text.strip() == HOSTILE
    assert content(browser)["panels"][0]["name"] == HOSTILE
    browser.to_html(tmp_path / "page.html")
    page = Elements((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert len(page.scripts) == 1
    assert len(page.all("img")) == 1


def test_soft_masks_are_stored_to_eight_bits():
    frames, _ = scene(2)
    masks = np.random.default_rng(1).dirichlet(np.ones(4), (2, 12, 16)).transpose(0, 3, 1, 2)
    panel = content(SlotBrowser(frames, masks))["panels"][0]
    assert (panel["soft"], panel["size"]) == (True, [16, 12])
    for expected, uri in zip(masks, panel["images"], strict=True):
        stored = np.asarray(image(uri)).reshape(4, 12, 16)
        np.testing.assert_allclose(stored / 255, expected, atol=0.5 / 255 + 1e-6)


def test_fine_soft_masks_are_averaged_down():
    frames, _ = scene(1)
    stripes = np.tile([0.0, 1.0], 48)[None, None, None].repeat(96, axis=2)
    panel = content(SlotBrowser(frames, np.concatenate([stripes, 1 - stripes], axis=1)))["panels"][
        0
    ]
    assert panel["size"] == [48, 48]
    assert np.unique(np.asarray(image(panel["images"][0]))).tolist() == [128]


def test_label_maps_are_stored_as_they_are():
    frames, truth = scene()
    panel = content(SlotBrowser(frames, truth))["panels"][0]
    assert (panel["soft"], panel["size"], panel["groups"]) == (False, [64, 48], [0, 1, 2])
    for expected, uri in zip(truth, panel["images"], strict=True):
        np.testing.assert_array_equal(np.asarray(image(uri)), expected)


def test_half_precision_and_boolean_masks_are_welcome():
    frames, truth = scene()
    masks = one_hot(truth, 3)
    plain = SlotBrowser(frames, masks).html
    assert SlotBrowser(frames, masks.astype(np.float16)).html == plain
    assert SlotBrowser(frames, masks.astype(bool)).html == plain


def test_corresponding_slots_share_a_colour(matched):
    data = content(matched)
    truth, teacher, student = data["panels"]
    assert teacher["groups"] == [0, 1, 2]
    assert student["groups"] == [2, 1, 0, 3]
    assert data["nSlots"] == 4
    colors = [tuple(group["rgb"]) for group in data["groups"]]
    assert len(set(colors)) == 4
    np.testing.assert_array_equal(colors, np.rint(255 * palette.slot_colors(4)))
    assert truth["isTruth"]
    stored = np.asarray(image(truth["images"][0]))
    _, labels = scene()
    np.testing.assert_array_equal(stored, np.array([255, 0, 2])[labels[0]])


def test_without_correspondence_equal_numbers_share_a_colour():
    frames, _ = scene()
    masks, _ = teacher_and_student()
    data = content(SlotBrowser(frames, masks))
    assert [panel["groups"] for panel in data["panels"]] == [[0, 1, 2], [0, 1, 2, 3]]


def test_objects_without_a_slot_get_colours_after_all_slots():
    frames, truth = scene()
    everything = np.zeros_like(truth)
    masks = {"teacher": everything, "student": one_hot(truth, 3)}
    data = content(SlotBrowser(frames, masks, truth=truth))
    stored = np.asarray(image(data["panels"][0]["images"][0]))
    # One of the two objects takes the only teacher slot; the student has slots 0, 1 and 2.
    assert sorted(np.unique(stored)) == [0, 3, 255]
    assert data["nSlots"] == 3
    assert len(data["groups"]) == 4


@pytest.mark.parametrize(
    ("n_frames", "max_frames", "times"),
    [
        (5, 24, [0, 1, 2, 3, 4]),
        (5, 2, [0, 3]),
        (50, 24, list(range(0, 50, 3))),
        (50, None, list(range(50))),
    ],
)
def test_long_videos_are_thinned_out_evenly(n_frames, max_frames, times):
    frames = np.arange(n_frames, dtype=np.uint8)[:, None, None, None].repeat(3, axis=-1)
    frames = np.broadcast_to(frames, (n_frames, 4, 4, 3))
    labels = np.arange(n_frames)[:, None, None] % 7 * np.ones((4, 4), int)
    data = content(SlotBrowser(frames, labels, truth=labels, max_frames=max_frames))
    assert data["times"] == times
    assert data["nTotal"] == n_frames
    assert [np.asarray(image(uri))[0, 0, 0] for uri in data["frames"]] == times
    shown = [np.asarray(image(uri))[0, 0] for uri in data["panels"][1]["images"]]
    assert shown == [time % 7 for time in times]


def test_frames_are_stored_losslessly_until_they_grow_too_large(monkeypatch):
    frames, truth = scene()
    stored = content(SlotBrowser(frames, truth))["frames"]
    np.testing.assert_array_equal(np.stack([np.asarray(image(uri)) for uri in stored]), frames)
    monkeypatch.setattr(browser_module, "_PNG_BUDGET", 1000)
    compressed = content(SlotBrowser(frames, truth))["frames"]
    assert {image(uri).format for uri in compressed} == {"JPEG"}
    assert sum(map(len, compressed)) < sum(map(len, stored))


def test_large_frames_shrink_to_320_pixels_and_keep_their_aspect():
    frames = np.zeros((1, 200, 640, 3), np.uint8)
    browser = SlotBrowser(frames, np.zeros((1, 200, 640), int))
    assert browser.frames.shape == (1, 100, 320, 3)
    assert content(browser)["panels"][0]["size"] == [320, 100]


def test_picture_paints_the_slots_asked_for(matched):
    frames, _ = scene()
    side, gap = 64, 8

    def panels(**options):
        pixels = np.asarray(matched.picture(0, side=side, **options))
        assert pixels.shape == (48, 3 * 64 + 2 * gap, 3)
        return [pixels[:, start : start + 64] for start in (0, 64 + gap, 2 * (64 + gap))]

    for panel in panels(opacity=0):
        np.testing.assert_array_equal(panel, frames[0])
    colors = np.rint(255 * palette.slot_colors(4))
    truth, teacher, student = panels(opacity=1)
    np.testing.assert_array_equal(truth[16, 16], colors[0])
    np.testing.assert_array_equal(truth[0, 0], frames[0, 0, 0])
    np.testing.assert_array_equal(teacher[0, 0], colors[1])
    np.testing.assert_array_equal(teacher[36, 48], colors[2])
    np.testing.assert_array_equal(student, teacher)
    truth, teacher, _ = panels(opacity=1, slots=[2])
    np.testing.assert_array_equal(truth[16, 16], colors[0])
    np.testing.assert_array_equal(teacher[16, 16], frames[0, 16, 16])
    np.testing.assert_array_equal(teacher[36, 48], colors[2])


FRAMES, LABELS = scene(2)
SOFT = one_hot(LABELS, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frames": FRAMES / 255.0}, r"frames must be uint8 \(T,H,W,3\), got float64"),
        ({"frames": FRAMES[0]}, r"got uint8 \(48, 64, 3\)"),
        ({"frames": FRAMES[:0]}, "frames is empty"),
        ({"masks": {}}, "empty dict"),
        ({"masks": SOFT[:1]}, r"'slots' has shape \(1, 3, 12, 16\) but there are 2 frames"),
        ({"masks": SOFT.reshape(2, 3, -1)}, "einops.rearrange"),
        ({"masks": 2 * SOFT}, r"in \[0,1\], got values from 0.0 to 2.0"),
        ({"masks": np.full_like(SOFT, np.nan)}, "from nan to nan .* softmax over the slots"),
        ({"masks": np.zeros((2, 256, 2, 2))}, "256 slots, at most 255"),
        ({"masks": LABELS - 1}, "labels of 'slots' .* got -1 to 1; renumber"),
        ({"masks": LABELS + 300}, "must be 0 to 254, got 300 to 302"),
        ({"masks": {"truth": LABELS}, "truth": LABELS}, "two panels named 'truth'"),
        ({"truth": SOFT}, "'truth' must be label maps"),
        ({"truth": LABELS[:1]}, "'truth' has shape"),
        ({"correspondence": [0, 1, 2]}, "correspondence needs two panels"),
        (
            {"masks": {"a": SOFT, "b": SOFT}, "correspondence": [[0, 1, 2]]},
            "the row of this clip",
        ),
        ({"masks": {"a": SOFT, "b": SOFT}, "correspondence": [0, 1]}, "for each of 3 slots"),
        ({"masks": {"a": SOFT, "b": SOFT}, "correspondence": [0, 1, 3]}, "slots 0 to 2, or -1"),
        ({"max_frames": 0}, "max_frames must be 1 or more"),
    ],
)
def test_wrong_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        SlotBrowser(**({"frames": FRAMES, "masks": SOFT} | arguments))


def test_wrong_picture_arguments_are_named(matched):
    with pytest.raises(ValueError, match="frame must be 0 to 4, got 5"):
        matched.picture(5)
    with pytest.raises(ValueError, match="opacity must be in"):
        matched.picture(0, opacity=1.5)


def test_python_and_the_widget_know_the_same_state():
    browser = SlotBrowser(FRAMES, SOFT, truth=LABELS)
    assert (browser.frame, browser.selected, browser.opacity) == (0, [], 0.55)
    browser.frame = 1
    browser.selected = [2, 0]
    widget = browser.widget()
    assert browser.widget() is widget
    assert (widget.frame, widget.selected, widget.opacity) == (1, [0, 2], 0.55)
    assert widget.content == browser._content
    heard = []
    browser.observe(lambda change: heard.append((change.name, change.new)))
    widget.set_state({"frame": 0, "selected": [1], "opacity": 0.3})  # as a page's message does
    assert (browser.frame, browser.selected, browser.opacity) == (0, [1], 0.3)
    assert heard == [("frame", 0), ("selected", [1]), ("opacity", 0.3)]
    slider = ipywidgets.IntSlider(0, 0, 1)
    ipywidgets.link((slider, "value"), (widget, "frame"))
    slider.value = 1
    assert browser.frame == 1


def test_the_widget_is_the_page_s_module_and_style():
    widget = SlotBrowser(FRAMES, SOFT).widget()
    assert widget._esm == browser_module.asset("browser.mjs")
    assert widget._css == browser_module.asset("browser.css")
    assert not hasattr(SlotBrowser(FRAMES, SOFT), "_esm"), "a page alone opens no channel"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("frame", 2, "frame must be 0 to 1, got 2"),
        ("frame", -1, "frame must be 0 to 1, got -1"),
        ("frame", 0.5, "expected an int"),
        ("selected", [0, 3], r"selected must be slots 0 to 2, each once, got \[0, 3\]"),
        ("selected", [1, 1], r"each once, got \[1, 1\]"),
        ("selected", 1, "expected a list"),
        ("opacity", 1.5, r"opacity must be in \[0,1\], got 1.5"),
    ],
)
def test_a_state_that_cannot_be_is_refused(name, value, message):
    browser = SlotBrowser(FRAMES, SOFT)
    widget = browser.widget()
    for end in (browser, widget):
        with pytest.raises(TraitError, match=message):
            setattr(end, name, value)
    assert browser.values == widget.values == {"frame": 0, "selected": [], "opacity": 0.55}


def test_a_page_starts_where_python_left_it():
    browser = SlotBrowser(FRAMES, SOFT)
    before = given(browser)
    browser.frame, browser.selected = 1, [2]
    after = given(browser)
    assert (after["frame"], after["selected"], after["opacity"]) == (1, [2], 0.55)
    assert after["content"] == before["content"]
    assert after["id"] != before["id"]


@pytest.mark.slow
def test_a_run_notebook_keeps_the_page_and_no_widget():
    notebook = nbformat.v4.new_notebook()
    source = """import numpy as np
from slotmatch.browser import SlotBrowser
SlotBrowser(np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 8, 8), int))"""
    notebook.cells = [nbformat.v4.new_code_cell(source)]
    NotebookClient(notebook, timeout=120).execute()
    (output,) = notebook.cells[0].outputs
    assert set(output.data) == {"text/html", "image/png", "text/plain"}
    assert "data-slotmatch" in output.data["text/html"]
    assert "widgets" not in notebook.metadata


# The page itself, in a real browser.


@pytest.fixture
def open_page(chromium):
    """Opens a file in a fresh profile; every test ends with no message and no request elsewhere."""
    contexts, trouble = [], []

    def elsewhere(url):
        return not url.startswith(("file:", "data:"))

    def refuse(route):
        trouble.append(f"request to {route.request.url}")
        route.abort()

    def open_file(path, *, width=1100, **options):
        context = chromium.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        context.route(elsewhere, refuse)
        page = context.new_page()
        page.on("console", lambda message: trouble.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
        page.goto(path.as_uri())
        return page

    yield open_file
    for context in contexts:
        context.close()
    assert trouble == []


@pytest.fixture
def page_of(tmp_path, open_page):
    """The page of a browser, opened and drawn."""

    def show(*browsers, **options):
        path = tmp_path / "page.html"
        browsers[0].to_html(path)
        if len(browsers) > 1:
            text = path.read_text(encoding="utf-8")
            others = "".join(browser.html for browser in browsers[1:])
            path.write_text(text.replace("</body>", others + "</body>"), encoding="utf-8")
        page = open_page(path, **options)
        for root in range(len(browsers)):
            page.locator(".slotmatch-browser").nth(root).locator(".sb-live").wait_for()
        return page

    return show


def canvases(root):
    """The pixels of each panel: a list of uint8 (h,w,3)."""
    uris = root.locator("canvas").evaluate_all("all => all.map(item => item.toDataURL())")
    return [np.asarray(image(uri).convert("RGB")) for uri in uris]


def expected_panels(browser, frame, **options):
    """The same from Python."""
    pixels = np.asarray(browser.picture(frame, **options))
    width = (pixels.shape[1] + 8) // len(browser.panels)
    return [pixels[:, i * width : (i + 1) * width - 8] for i in range(len(browser.panels))]


def assert_alike(shown, expected):
    """Equal but for rounding, and for ties between masks at region borders."""
    assert len(shown) == len(expected)
    for one, other in zip(shown, expected, strict=True):
        assert one.shape == other.shape
        differs = np.abs(one.astype(int) - other).max(-1) > 6
        assert differs.mean() < 0.02


@pytest.mark.slow
def test_page_draws_what_picture_draws(matched, page_of):
    page = page_of(matched)
    assert_alike(canvases(page), expected_panels(matched, 0))
    assert not page.locator(".sb-static").is_visible()
    assert page.locator("figcaption .sb-name").all_inner_texts() == ["truth", "teacher", "student"]
    assert page.title() == "matched & labelled"


@pytest.mark.slow
def test_page_draws_soft_masks_and_large_frames_as_picture_does(page_of):
    rng = np.random.default_rng(3)
    frames = np.asarray(rng.integers(0, 256, (2, 45, 80, 3)), np.uint8).repeat(5, 1).repeat(5, 2)
    masks = rng.dirichlet(0.3 * np.ones(5), (2, 9, 16)).transpose(0, 3, 1, 2)
    browser = SlotBrowser(frames, masks)
    page = page_of(browser)
    assert_alike(canvases(page), expected_panels(browser, 0))


@pytest.mark.slow
def test_slider_moves_through_the_frames(matched, page_of):
    page = page_of(matched)
    slider = page.get_by_role("slider", name="Frame")
    slider.focus()
    first = canvases(page)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator(".sb-frame output").inner_text() == "2 / 4"
    assert slider.get_attribute("aria-valuetext") == "frame 2 of 5"
    assert_alike(canvases(page), expected_panels(matched, 2))
    assert all((one != other).any() for one, other in zip(first, canvases(page), strict=True))
    page.keyboard.press("End")
    assert page.locator(".sb-frame output").inner_text() == "4 / 4"
    slider.fill("0")
    for one, other in zip(first, canvases(page), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_thinned_video_shows_its_own_frame_numbers(page_of):
    frames, truth = scene(9)
    page = page_of(SlotBrowser(frames, truth, max_frames=3))
    page.get_by_role("slider", name="Frame").press("End")
    assert page.locator(".sb-frame output").inner_text() == "6 / 8"


@pytest.mark.slow
def test_opacity_and_checkboxes_repaint(matched, page_of):
    page = page_of(matched)
    page.get_by_role("slider", name="Opacity").fill("100")
    assert_alike(canvases(page), expected_panels(matched, 0, opacity=1))
    assert page.locator(".sb-opacity + output").inner_text() == "100 %"
    page.get_by_role("checkbox", name="slot 1").uncheck()
    page.mouse.move(5, 880)
    assert_alike(canvases(page), expected_panels(matched, 0, opacity=1, slots=[0, 2, 3]))
    page.get_by_role("button", name="None").click()
    assert_alike(canvases(page), expected_panels(matched, 0, opacity=1, slots=[]))
    page.get_by_role("button", name="All").click()
    page.get_by_role("slider", name="Opacity").fill("0")
    assert_alike(canvases(page), expected_panels(matched, 0, opacity=0))


@pytest.mark.slow
def test_views_differ_and_outlines_leave_the_inside_bare(matched, page_of):
    page = page_of(matched)
    regions = canvases(page)[1]
    page.get_by_text("Outlines").click()
    outlines = canvases(page)[1]
    bare = expected_panels(matched, 0, opacity=0)[1]
    centre = np.s_[110:130, 90:110]  # the middle of the moving square, six times enlarged
    assert_alike([outlines[centre]], [bare[centre]])
    assert (np.abs(outlines.astype(int) - bare).max(-1) > 30).any()
    page.get_by_text("Soft").click()
    assert (canvases(page)[1] != regions).any()


@pytest.mark.slow
def test_pointing_lights_up_a_slot_in_every_panel_and_a_click_leaves_it_alone(matched, page_of):
    page = page_of(matched)
    before = canvases(page)
    teacher = page.locator("canvas").nth(1)
    box = teacher.bounding_box()
    square = {"x": box["width"] * 16 / 64, "y": box["height"] * 16 / 48}
    teacher.hover(position=square)
    assert page.locator(".sb-here").nth(1).inner_text() == "slot 0"
    assert page.locator(".sb-slot.sb-lit").all_inner_texts() == ["0"]
    for one, other in zip(before, canvases(page), strict=True):
        assert (one != other).any()
    teacher.click(position=square)
    page.mouse.move(5, 880)
    assert_alike(canvases(page), expected_panels(matched, 0, slots=[0]))
    assert page.locator(".sb-slot.sb-selected").all_inner_texts() == ["0"]
    assert page.locator(".sb-hint").inner_text().startswith("Alone: slot 0.")
    teacher.click(position={"x": 5, "y": 5}, modifiers=["Shift"])
    page.mouse.move(5, 880)
    assert_alike(canvases(page), expected_panels(matched, 0, slots=[0, 1]))
    teacher.click(position=square)
    page.mouse.move(5, 880)
    assert_alike(canvases(page), expected_panels(matched, 0, slots=[0]))
    teacher.click(position=square)
    page.mouse.move(5, 880)
    assert_alike(canvases(page), before)


@pytest.mark.slow
def test_the_boxes_end_a_selection(matched, page_of):
    page = page_of(matched)
    page.locator(".sb-panels").press("2")
    assert_alike(canvases(page), expected_panels(matched, 0, slots=[2]))
    page.get_by_role("checkbox", name="slot 1").uncheck()
    page.mouse.move(5, 880)
    assert_alike(canvases(page), expected_panels(matched, 0, slots=[0, 2, 3]))
    assert page.locator(".sb-slot.sb-selected").count() == 0


@pytest.mark.slow
def test_keys_step_play_and_select(matched, page_of):
    page = page_of(matched)
    frame, panels = page.locator(".sb-slider"), page.locator(".sb-panels")
    for key, expected in [
        ("ArrowRight", "1"),
        ("ArrowRight", "2"),
        ("ArrowLeft", "1"),
        ("End", "4"),
        ("ArrowRight", "4"),
        ("Home", "0"),
        ("ArrowLeft", "0"),
    ]:
        panels.press(key)
        assert frame.input_value() == expected
    panels.press("2")
    panels.press("Shift+Digit0")
    assert_alike(canvases(page), expected_panels(matched, 0, slots=[0, 2]))
    panels.press("2")
    panels.press("2")
    panels.press("9")  # there is no such slot
    assert_alike(canvases(page), expected_panels(matched, 0))
    panels.press("1")
    panels.press("Escape")
    assert_alike(canvases(page), expected_panels(matched, 0))
    panels.press(" ")
    page.wait_for_function("document.querySelector('.sb-slider').value == 2")
    panels.press(" ")
    assert page.locator(".sb-play").inner_text() == "Play"
    page.get_by_role("button", name="None").press(" ")  # the button's own key
    assert page.locator(".sb-play").inner_text() == "Play"
    assert page.locator(".sb-slot input:checked").count() == 0


@pytest.mark.slow
def test_buttons_step(matched, page_of):
    page = page_of(matched)
    page.get_by_role("button", name="Next frame").click()
    page.get_by_role("button", name="Next frame").click()
    page.get_by_role("button", name="Previous frame").click()
    assert page.locator(".sb-frame output").inner_text() == "1 / 4"
    page.mouse.move(5, 880)
    assert_alike(canvases(page), expected_panels(matched, 1))


@pytest.mark.slow
def test_a_finger_selects_too(matched, page_of):
    page = page_of(matched, width=360, has_touch=True)
    teacher = page.locator("canvas").nth(1)
    box = teacher.bounding_box()
    square = {"x": box["width"] * 16 / 64, "y": box["height"] * 16 / 48}
    teacher.tap(position=square)
    assert_alike(canvases(page), expected_panels(matched, 0, slots=[0]))
    teacher.tap(position=square)
    assert_alike(canvases(page), expected_panels(matched, 0))


@pytest.mark.slow
def test_a_static_page_starts_at_its_state(page_of):
    frames, truth = scene()
    browser = SlotBrowser(frames, one_hot(truth, 3), truth=truth)
    browser.frame, browser.selected, browser.opacity = 3, [1], 0.8
    page = page_of(browser)
    assert_alike(canvases(page), expected_panels(browser, 3, slots=[1], opacity=0.8))
    assert page.locator(".sb-opacity + output").inner_text() == "80 %"


WIDGET_PAGE = """<!doctype html>
<html><head><link rel="icon" href="data:,"><style>{css}</style></head><body>
<script type="module">
const heard = {{}};
const model = {{
  values: {values}, sent: [],
  get: name => model.values[name],
  set: (name, value) => {{
    if (JSON.stringify(value) === JSON.stringify(model.values[name])) return;
    model.values[name] = value;
    for (const callback of heard["change:" + name] ?? []) callback();
  }},
  on: (event, callback) => (heard[event] ??= []).push(callback),
  off: (event, callback) => {{ heard[event] = heard[event].filter(own => own !== callback); }},
  save_changes: () => {{
    const {{ content, ...values }} = model.values;
    model.sent.push(values);
  }},
}};
Object.assign(window, {{ model, heard }});
const el = document.body.appendChild(document.createElement("div"));
const module = URL.createObjectURL(new Blob([{text}], {{ type: "text/javascript" }}));
const widget = (await import(module)).default;
window.stop = await widget.render({{ model, el }});
</script></body></html>"""


@pytest.fixture
def widget_page(tmp_path, open_page):
    """A widget in a page whose model is like a kernel's: the values that it sends are kept."""

    def show(browser):
        widget = browser.widget()
        values = json.dumps({"content": widget.content} | widget.values).replace("<", "\\u003c")
        text = json.dumps(widget._esm).replace("<", "\\u003c")
        path = tmp_path / "widget.html"
        page = WIDGET_PAGE.format(css=widget._css, values=values, text=text)
        path.write_text(page, encoding="utf-8")
        page = open_page(path)
        page.locator(".sb-live").wait_for()
        return page

    return show


@pytest.mark.slow
def test_the_widget_and_its_model_follow_each_other(widget_page):
    frames, truth = scene()
    browser = SlotBrowser(frames, one_hot(truth, 3), HOSTILE, truth=truth)
    browser.frame = 2
    page = widget_page(browser)
    assert page.locator(".sb-title").inner_text() == HOSTILE
    assert_alike(canvases(page), expected_panels(browser, 2))
    # from the reader to the model
    page.get_by_role("slider", name="Frame").fill("4")
    page.locator(".sb-panels").press("1")
    page.get_by_role("slider", name="Opacity").fill("80")
    sent = page.evaluate("model.sent")
    assert sent == [
        {"frame": 4, "selected": [], "opacity": 0.55},
        {"frame": 4, "selected": [1], "opacity": 0.55},
        {"frame": 4, "selected": [1], "opacity": 0.8},
    ]
    browser.widget().set_state(sent[-1])
    assert (browser.frame, browser.selected, browser.opacity) == (4, [1], 0.8)
    # and back
    page.evaluate("[model.set('frame', 1), model.set('selected', [0, 2])]")
    assert page.locator(".sb-slider").input_value() == "1"
    assert page.locator(".sb-slot.sb-selected").all_inner_texts() == ["0", "2"]
    assert_alike(canvases(page), expected_panels(browser, 1, slots=[0, 2], opacity=0.8))
    # and no more once the view is gone
    page.get_by_role("button", name="Play").click()
    page.evaluate("stop()")
    assert page.evaluate("Object.values(heard).flat().length") == 0
    assert page.get_by_role("button", name="Play").is_visible()


@pytest.mark.slow
def test_play_moves_on_and_stops(matched, page_of):
    page = page_of(matched)
    button = page.get_by_role("button", name="Play")
    button.click()
    page.wait_for_function("document.querySelector('.sb-slider').value == 2")
    page.get_by_role("button", name="Pause").click()
    stopped = page.locator(".sb-slider").input_value()
    page.wait_for_timeout(400)
    assert page.locator(".sb-slider").input_value() == stopped


@pytest.mark.slow
def test_browsers_on_one_page_do_not_disturb_each_other(matched, page_of):
    frames, truth = scene()
    other = SlotBrowser(frames, truth, HOSTILE)
    page = page_of(matched, other, matched)
    roots = [page.locator(".slotmatch-browser").nth(i) for i in range(3)]
    before = [canvases(root) for root in roots]
    roots[2].get_by_role("slider", name="Frame").fill("3")
    roots[2].get_by_text("Outlines").click()
    for root, pixels in zip(roots[:2], before, strict=False):
        assert_alike(canvases(root), pixels)
        assert root.locator("input[value=regions]").is_checked()
    assert (canvases(roots[2])[0] != before[2][0]).any()
    assert roots[1].locator(".sb-title").inner_text() == HOSTILE


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone_page_fits_and_reads(matched, page_of, scheme):
    page = page_of(matched, width=360, color_scheme=scheme, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    text, ground = page.evaluate(
        """() => [getComputedStyle(document.querySelector('.sb-hint')).color,
                  getComputedStyle(document.body).backgroundColor]"""
    )
    brightness = [sum(map(int, re.findall(r"\d+", color)[:3])) / 765 for color in (text, ground)]
    assert abs(brightness[0] - brightness[1]) > 0.7
    assert (brightness[1] < 0.5) == (scheme == "dark")
    sizes = page.locator("button, .sb-slot").evaluate_all(
        "all => all.map(item => item.getBoundingClientRect().height)"
    )
    assert min(sizes) >= 24, "large enough for a finger"


@pytest.mark.slow
def test_page_without_scripts_shows_the_sheet(matched, tmp_path, open_page):
    matched.to_html(tmp_path / "page.html")
    page = open_page(tmp_path / "page.html", java_script_enabled=False, width=360)
    sheet = page.locator(".sb-static")
    assert sheet.is_visible()
    box = sheet.bounding_box()
    assert 200 < box["width"] <= 360
    assert page.locator("canvas").count() == 0
    assert page.get_by_text("matched & labelled").is_visible()
