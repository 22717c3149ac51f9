"""The rendered book: whole, self-contained, and with the numbers of its own runs."""

import json
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
import yaml
from conftest import Book, opened
from playwright.sync_api import Browser

from slotmatch.paths import NOTEBOOKS, REPOSITORY
from slotmatch.reporting.results import comparison_table, numbers

pytestmark = pytest.mark.slow


class Element(NamedTuple):
    tag: str
    attributes: dict[str, str]


class _Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[Element] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(Element(tag, {name: value or "" for name, value in attrs}))


@cache
def elements(page: Path) -> list[Element]:
    parser = _Elements()
    parser.feed(page.read_text())
    return parser.found


def documents() -> list[str]:
    contents = yaml.safe_load((REPOSITORY / "_toc.yml").read_text())
    chapters = [chapter["file"] for part in contents["parts"] for chapter in part["chapters"]]
    return [contents["root"], *chapters]


def pages(book: Book) -> list[Path]:
    return [book.html / f"{name}.html" for name in documents()]


def text(page: Path) -> str:
    """What a reader sees, roughly: no tags, single spaces."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", page.read_text()))


def test_every_page_is_there_and_the_front_page_leads_to_the_first(book: Book) -> None:
    assert [page for page in pages(book) if not page.is_file()] == []
    assert "book/intro.html" in (book.html / "index.html").read_text()


def test_nothing_is_loaded_from_elsewhere(book: Book) -> None:
    loading = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src"}
    foreign = [
        (page.name, element)
        for page in book.html.rglob("*.html")
        for element in elements(page)
        if element.attributes.get("rel") != "canonical"  # an address to name, not to load
        and (address := element.attributes.get(loading.get(element.tag, "")))
        and re.match(r"(https?:)?//", address)
    ]
    assert foreign == []


def test_every_link_between_pages_and_to_files_leads_somewhere(book: Book) -> None:
    broken = []
    for page in pages(book):
        for element in elements(page):
            address = element.attributes.get("href") or element.attributes.get("src") or ""
            parts = urlsplit(address)
            if parts.scheme or parts.netloc or element.tag == "base":
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            anchors = (
                {found.attributes.get("id") for found in elements(target)}
                if (target.suffix == ".html" and target.is_file() and parts.fragment)
                else {parts.fragment}
            )
            if not target.exists() or unquote(parts.fragment) not in anchors:
                broken.append((page.name, address))
    assert broken == []


def test_the_numbers_in_the_text_are_those_of_the_run(book: Book) -> None:
    quoted = numbers(book.results("03_distill"))
    source = (REPOSITORY / "book" / "intro.md").read_text()
    keys = re.findall(r"03_distill\.ipynb::(\w+):([^`]+)`", source)
    assert len(keys) >= 8
    intro = text(book.html / "book" / "intro.html")
    for key, form in keys:
        assert format(quoted[key], form) in intro, key


def test_what_is_printed_is_the_table_and_the_page_to_open(printed_book: tuple[Book, str]) -> None:
    book, printed = printed_book
    assert comparison_table(book.results("03_distill")).to_string() in printed
    assert printed.endswith(f"Open {book.html / 'index.html'}\n")


def test_downloads_are_the_executed_notebooks(book: Book) -> None:
    names = [path.name for path in sorted(NOTEBOOKS.glob("*.ipynb"))]
    assert names
    for name in names:
        served = nbformat.read(book.html / "_sources" / "notebooks" / name, as_version=4)
        cells = [cell for cell in served.cells if cell.cell_type == "code"]
        assert all(cell.execution_count for cell in cells), name
        assert any(cell.outputs for cell in cells), name
        hidden = [c for c in cells if "injected-parameters" in c.metadata.get("tags", ())]
        assert [c.metadata["tags"] for c in hidden] == [["injected-parameters", "hide-input"]]
        assert str(book.output) not in json.dumps(served), name


def test_the_bibliography_holds_every_reference(book: Book) -> None:
    entries = re.findall(r"^@", (REPOSITORY / "book/references.bib").read_text(), re.MULTILINE)
    page = book.html / "book" / "references.html"
    listed = [e for e in elements(page) if "citation" in e.attributes.get("class", "").split()]
    assert len(listed) == len(entries)


def test_search_knows_every_page(book: Book) -> None:
    index = (book.html / "searchindex.js").read_text()
    for name in documents():
        assert f'"{name}"' in index


def test_a_second_run_does_no_work(book: Book) -> None:
    page = book.html / "index.html"
    before = page.stat().st_mtime_ns
    n_jobs = len(list(NOTEBOOKS.glob("*.ipynb"))) + 1
    assert book.reproduce().count("up to date") == n_jobs
    assert page.stat().st_mtime_ns == before


def test_formulas_are_drawn_from_disk_without_a_network(book: Book, chromium: Browser) -> None:
    with opened(chromium, "file:") as heard:
        heard.page.goto((book.html / "book" / "method.html").as_uri())
        heard.page.wait_for_selector("mjx-container")
        drawn = "document.querySelectorAll('div.math mjx-container').length >= 9"
        heard.page.wait_for_function(drawn)
        assert heard.page.locator("mjx-merror").count() == 0
        assert heard.foreign == []


def test_search_finds_from_disk_without_a_network(book: Book, chromium: Browser) -> None:
    with opened(chromium, "file:") as heard:
        heard.page.goto((book.html / "search.html").as_uri() + "?q=predictor")
        heard.page.locator("#search-results li a[href*='book/method.html']").first.wait_for()
        assert heard.foreign == []
