"""Every page in a real browser, in light and dark and on a phone; what surrounds the pages."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from xml.etree import ElementTree

import pytest
import yaml
from conftest import Book, opened
from PIL import Image
from playwright.sync_api import Browser, Page, Response
from test_book import documents, elements, text

from slotmatch.browser import vendor
from slotmatch.paths import BUILD, REPOSITORY

pytestmark = pytest.mark.slow

AXE = vendor.Package(
    "axe-core",
    "4.14.1",
    "sha512-FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==",
    ("axe.min.js",),
)
"""The rules of accessible pages (MPL-2.0), of which the tests alone make use."""
PAGES = [*documents(), "404", "genindex", "py-modindex", "search"]
VIEWS = {
    "light": ("light", 1280),
    "dark": ("dark", 1280),
    "phone": ("light", 390),
    "phone_dark": ("dark", 390),
}
JUDGED = ("light", "phone_dark")
"""Views for axe-core, which takes as long as all else: both themes and both widths."""
LONGEST = 8_000  # pixels of a page in a screenshot
BASE = "https://slotmatch.github.io/slotmatch/"


@dataclass(frozen=True)
class Visit:
    """What a page did and looked like in a browser.

    ``widths`` are those of its content, by view; ``faults`` are axe-core's, by view; ``weights``
    are the bytes of what it loaded, by address.
    """

    errors: list[str]
    foreign: list[str]
    widths: dict[str, int]
    faults: dict[str, list[str]]
    weights: dict[str, int]


@pytest.fixture(scope="module")
def axe() -> str:
    return (vendor.fetch(AXE) / "axe.min.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module", params=PAGES)
def visit(request: pytest.FixtureRequest, site: str, chromium: Browser, axe: str) -> Visit:
    """A page seen in every view, each with a screenshot in ``_build/screenshots``."""
    widths, faults, weights = {}, {}, {}

    def weigh(response: Response) -> None:
        weights[response.url] = int(response.headers.get("content-length", 0))

    with opened(chromium, site) as heard:
        page = heard.page
        page.on("response", weigh)
        for view, (theme, width) in VIEWS.items():
            page.emulate_media(color_scheme=theme, reduced_motion="reduce")
            page.set_viewport_size({"width": width, "height": 900})
            page.goto(f"{site}{request.param}.html")
            page.wait_for_load_state("networkidle")
            assert page.evaluate("document.documentElement.dataset.theme") == theme
            widths[view] = page.evaluate("document.documentElement.scrollWidth")
            if view in JUDGED:
                page.evaluate(axe)
                faults[view] = serious(page)
            shoot(page, BUILD / "screenshots" / view / f"{request.param.replace('/', '_')}.jpg")
        return Visit(heard.errors, heard.foreign, widths, faults, weights)


def serious(page: Page) -> list[str]:
    """What axe-core calls serious or critical: rule, place, and how to fix it."""
    found = page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
    return [
        f"{rule['id']} at {' '.join(map(str, node['target']))}: {node['failureSummary']}"
        for rule in found
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


def shoot(page: Page, path: Path) -> None:
    width, height = page.evaluate("[innerWidth, document.documentElement.scrollHeight]")
    path.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(
        path=path,
        type="jpeg",
        quality=60,
        full_page=True,
        clip={"x": 0, "y": 0, "width": width, "height": min(height, LONGEST)},
        animations="disabled",
    )


def test_a_page_has_no_error_in_the_console_and_asks_no_other_host(visit: Visit) -> None:
    assert visit.errors == []
    assert visit.foreign == []


def test_a_page_does_not_scroll_sideways(visit: Visit) -> None:
    assert visit.widths == {view: width for view, (_, width) in VIEWS.items()}


def test_axe_finds_no_serious_fault(visit: Visit) -> None:
    assert visit.faults == {view: [] for view in JUDGED}


def test_a_page_and_its_pictures_are_light(visit: Visit) -> None:
    shared = ("/_static/", "/searchindex.js")  # by all pages, loaded once; the live page's runtime
    own = [
        weight
        for address, weight in visit.weights.items()
        if address.startswith("http") and not any(part in address for part in shared)
    ]
    assert 10_000 < sum(own) < 3_000_000


def test_every_page_has_one_address(book: Book) -> None:
    config = yaml.safe_load((REPOSITORY / "_config.yml").read_text())
    told = config["sphinx"]["config"]
    assert {config["html"]["baseurl"], told["ogp_site_url"]} == {BASE}
    assert BASE.endswith(told["notfound_urls_prefix"])
    listed = ElementTree.parse(book.html / "sitemap.xml").findall("{*}url/{*}loc")
    assert {found.text for found in listed} == {f"{BASE}{name}.html" for name in documents()}
    assert f"Sitemap: {BASE}sitemap.xml\n" in (book.html / "robots.txt").read_text()


def test_the_page_for_missing_ones_works_at_any_depth(book: Book) -> None:
    page = book.html / "404.html"
    addresses = [
        element.attributes.get("href") or element.attributes.get("src") or "#"
        for element in elements(page)
        if element.tag in ("a", "img", "link", "script")
    ]
    own = [found for found in addresses if not found.startswith(("#", "https://"))]
    prefix = "/slotmatch/"
    assert [found for found in own if not found.startswith(prefix)] == []
    paths = [book.html / urlsplit(found.removeprefix(prefix)).path for found in own]
    assert [path for path in paths if not path.exists()] == []
    assert f"{prefix}book/intro.html" in own


@pytest.mark.parametrize("name", documents())
def test_what_other_sites_show_of_a_link(book: Book, name: str) -> None:
    found = {
        element.attributes["property"]: element.attributes["content"]
        for element in elements(book.html / f"{name}.html")
        if element.attributes.get("property", "").startswith("og:")
    }
    assert found["og:url"] == f"{BASE}{name}.html"
    assert len(found["og:title"]) > 3
    assert len(found["og:description"]) > 30
    with Image.open(book.html / found["og:image"].removeprefix(BASE)) as picture:
        assert picture.size == (1200, 630)


def test_the_first_page_says_how_to_cite(book: Book) -> None:
    page = book.html / "book" / "intro.html"
    assert "@article{slotmatch," in text(page)
    assert "@inproceedings" not in text(page)
    linked = {element.attributes.get("href", "") for element in elements(page)}
    (file,) = (address for address in linked if address.endswith("/CITATION.cff"))
    served = (book.html / "book" / file).resolve()
    assert served.read_bytes() == (REPOSITORY / "CITATION.cff").read_bytes()


def test_the_changelog_is_a_page(book: Book) -> None:
    first = (REPOSITORY / "CHANGELOG.md").read_text().splitlines()[4]
    assert first.removeprefix("## ") in text(book.html / "book" / "changelog.html")


def test_a_page_says_what_all_were_made_with(book: Book) -> None:
    page = text(book.html / "book" / "environment.html")
    environment = book.results("03_distill")["environment"]
    assert environment["packages"]["torch"] in page
    assert environment["hardware"]["cpu"] in page
