"""The live page: what it loads, how it is fetched, and the student in a real browser."""

import hashlib
import io
import re
import tarfile
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import Book, opened
from PIL import Image
from playwright.sync_api import Browser, Page

from slotmatch import evaluation
from slotmatch.browser import LiveStudent, vendor
from slotmatch.data import Clip, minimovi
from slotmatch.model import VideoSlotModel, load

SETS = ("minimovi_a", "minimovi_c", "minimovi_e")


def registry_with(folder: Path, files: dict[str, bytes]) -> tuple[vendor.Package, str]:
    """An npm registry on disk that has one package of these files."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    path = folder / "@some" / "thing" / "-" / "thing-1.2.3.tgz"
    path.parent.mkdir(parents=True)
    path.write_bytes(packed.getvalue())
    digest = b64encode(hashlib.sha512(packed.getvalue()).digest()).decode()
    wanted = vendor.Package("@some/thing", "1.2.3", f"sha512-{digest}", tuple(files))
    return wanted, folder.as_uri()


def test_a_package_is_fetched_once_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLOTMATCH_CACHE", str(tmp_path / "cache"))
    files = {"dist/a.mjs": b"one", "dist/b.wasm": b"two"}
    wanted, registry = registry_with(tmp_path / "registry", files)
    folder = vendor.fetch(wanted, registry)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "a.mjs": b"one",
        "b.wasm": b"two",
    }
    assert vendor.fetch(wanted, "https://nowhere.invalid") == folder
    other = replace(wanted, version="1.2.4")
    with pytest.raises(RuntimeError, match=r"thing-1\.2\.4\.tgz cannot be fetched"):
        vendor.fetch(other, registry)


def test_other_bytes_are_refused_and_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLOTMATCH_CACHE", str(tmp_path / "cache"))
    wanted, registry = registry_with(tmp_path / "registry", {"a.mjs": b"one"})
    with pytest.raises(RuntimeError, match="its sha512 differs, so it is refused"):
        vendor.fetch(replace(wanted, integrity="sha512-AAAA"), registry)
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_the_element_says_what_to_do_where_it_cannot_run() -> None:
    page = LiveStudent("../_static/live", "mini-student.onnx")._repr_html_()
    assert "python -m http.server" in page
    assert 'src="../_static/live/live.mjs"' in page
    assert "https://" not in page
    assert page == LiveStudent("../_static/live", "mini-student.onnx")._repr_html_()


@pytest.fixture(scope="module")
def live(site: str, chromium: Browser) -> Iterator[tuple[Page, list[str], list[str]]]:
    """The page, served; addresses on other hosts that it asked for; errors in its console."""
    with opened(chromium, site) as heard:
        heard.page.goto(site + "notebooks/07_browse.html")
        heard.page.wait_for_selector(".slotmatch-live[data-ready=yes]")
        yield heard.page, heard.foreign, heard.errors


def seen_by(page: Page, n_slots: int) -> np.ndarray:
    """Masks (T,K,P) of the last run in the page."""
    page.wait_for_selector(".sl-result .sb-live")
    masks = page.evaluate(
        "document.querySelector('.slotmatch-live').slotmatchMasks.map(masks => [...masks])"
    )
    return np.array(masks).reshape(len(masks), n_slots, -1)


def wait_for(page: Page, start: str) -> None:
    """Until the page says something that starts like this."""
    script = "start => document.querySelector('.sl-status').textContent.startsWith(start)"
    page.wait_for_function(script, arg=start)


def by_the_package(model: VideoSlotModel, video: np.ndarray) -> np.ndarray:
    clip = Clip(video, np.zeros(video.shape[:3], int), "own")
    ((_, _, masks),) = evaluation.outputs(model, [clip])
    return masks.numpy()


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_the_student_sees_what_the_package_sees(
    live: tuple[Page, list[str], list[str]], name: str
) -> None:
    page, foreign, errors = live
    model = load("mini-student")
    page.select_option(".slotmatch-live select", label=f"{name}/test/00000")
    page.click(".sl-run")
    wait_for(page, f"{name}/test/00000: frame 24")
    found = seen_by(page, model.config.n_slots)
    expected = by_the_package(model, minimovi.render(name, "test", 0)[0])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
    names = page.locator(".sl-result .sb-name").all_inner_texts()
    assert names == ["truth", "teacher", "student, live"]
    told = page.inner_text(".sl-status")
    assert re.search(r"frame 24, \d+ ms a frame, \d+ of 11 slots in use", told)
    assert foreign == []
    assert errors == []


@pytest.mark.slow
def test_pictures_of_the_readers_own(
    live: tuple[Page, list[str], list[str]], tmp_path: Path
) -> None:
    page, foreign, errors = live
    model = load("mini-student")
    video, _ = minimovi.render("minimovi_a", "test", 1)
    files = [tmp_path / f"frame {t}.png" for t in (1, 2, 10)]
    for file, frame in zip(files, video, strict=False):
        Image.fromarray(frame).save(file)
    page.set_input_files(".sl-file", [str(files[i]) for i in (2, 0, 1)])
    wait_for(page, "3 pictures: frame 3")
    found = seen_by(page, model.config.n_slots)
    np.testing.assert_allclose(found, by_the_package(model, video[:3]), rtol=0, atol=1e-3)
    assert page.locator(".sl-result .sb-name").all_inner_texts() == ["student, live"]
    assert foreign == []
    assert errors == []


@pytest.mark.slow
def test_a_video_of_the_readers_own_is_painted(
    live: tuple[Page, list[str], list[str]], tmp_path: Path
) -> None:
    page, foreign, errors = live
    video, _ = minimovi.render("minimovi_a", "test", 1)
    path = tmp_path / "own.webm"
    with av.open(path, "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=12)
        stream.width = stream.height = 128
        stream.pix_fmt = "yuv420p"
        for frame in video[:12]:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())
    page.set_input_files(".sl-file", str(path))
    wait_for(page, "own.webm: frame 12")
    found = seen_by(page, 11).argmax(1)
    expected = by_the_package(load("mini-student"), video[:12]).argmax(1)
    assert (found == expected).mean() > 0.85  # the encoding changed its pixels
    slider = page.locator(".sl-result .sb-slider")
    canvas = page.locator(".sl-result canvas").first
    before = canvas.evaluate("own => own.toDataURL()")
    slider.fill("11")
    assert canvas.evaluate("own => own.toDataURL()") != before
    assert foreign == []
    assert errors == []


@pytest.mark.slow
def test_what_cannot_be_read_is_said(
    live: tuple[Page, list[str], list[str]], tmp_path: Path
) -> None:
    page, foreign, _ = live
    path = tmp_path / "broken.webm"
    path.write_bytes(b"no video")
    page.set_input_files(".sl-file", str(path))
    wait_for(page, "broken.webm: this browser cannot play")
    other = tmp_path / "other.onnx"
    other.write_bytes(b"no model")
    page.set_input_files(".sl-model", str(other))
    wait_for(page, "other.onnx: ")
    assert foreign == []


@pytest.mark.slow
def test_opened_from_disk_the_page_says_how_to_serve_it(
    book: Book, live: tuple[Page, list[str], list[str]]
) -> None:
    page, _, _ = live
    other = page.context.browser.new_page()
    other.goto((book.html / "notebooks" / "07_browse.html").as_uri())
    other.wait_for_selector(".sb-live")  # the stored masks work all the same
    assert "python -m http.server" in other.inner_text(".sl-status")
    other.close()
