"""The page in a real browser: nothing is fetched, nothing overflows, everything can be read."""

from __future__ import annotations

import os
import shutil

import pytest

from fedsim.study_report import write_study_report
from tests.study_report.studies import make_study

LAPTOP, TELEPHONE = {"width": 1366, "height": 768}, {"width": 390, "height": 844}

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]

OVERLAPS = """() => {
    // Boxes of the names beside points and of the names of rows: none may cover another of its figure.
    const found = [];
    for (const figure of document.querySelectorAll('figure')) {
        const names = [...figure.querySelectorAll('g[id*="-name-"] text, g[id*="ytick"] text')];
        const boxes = names.map(name => name.getBoundingClientRect());
        for (let i = 0; i < boxes.length; i++) for (let j = 0; j < i; j++) {
            const [a, b] = [boxes[i], boxes[j]];
            const w = Math.min(a.right, b.right) - Math.max(a.left, b.left);
            const h = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
            // Boxes hold room above and below the letters, which may touch.
            if (w > 1 && h > 0.35 * Math.min(a.height, b.height))
                found.push([figure.id, names[i].textContent, names[j].textContent]);
        }
    }
    return found;
}"""

OUTSIDE = """() => [...document.querySelectorAll('figure svg')].flatMap(svg => {
    const frame = svg.getBoundingClientRect();
    return [...svg.querySelectorAll('text')].filter(text => {
        const box = text.getBoundingClientRect();
        return box.left < frame.left - 2 || box.right > frame.right + 2
            || box.top < frame.top - 2 || box.bottom > frame.bottom + 2;
    }).map(text => [svg.closest('figure').id, text.textContent]);
})"""


def unavailable(reason):
    """Skip, or fail where a browser was promised."""
    if os.environ.get("FEDSIM_BROWSER") == "1":
        pytest.fail(f"FEDSIM_BROWSER=1, and {reason}", pytrace=False)
    pytest.skip(f"skipped: the page cannot be opened, {reason}; FEDSIM_BROWSER=1 makes this a failure")


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    try:
        from playwright import sync_api as sync
    except ImportError:
        unavailable("playwright is not installed: pip install playwright")
    if path is None:
        unavailable("no chromium, chromium-browser or google-chrome on the path")
    with sync.sync_playwright() as running:
        started = running.chromium.launch(executable_path=path, args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A study of 40 methods, with names as long as they get."""
    folder = make_study(
        tmp_path_factory.mktemp("many") / "study",
        methods=("fedavg", *(f"adafed[scale=min,gamma={0.05 * i:.2f}]" for i in range(39))),
        num_clients=30,
        rounds=3,
        seeds=3,
        every=3,
    )
    write_study_report(folder)
    return folder


@pytest.fixture(params=["rich", "many"])
def folder(request):
    return request.getfixturevalue(request.param)


def opened(browser, folder, size):
    page = browser.new_page(viewport=size)
    page.said, page.asked = [], []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto((folder / "study.html").as_uri())
    return page


@pytest.mark.parametrize("size", [LAPTOP, TELEPHONE], ids=["laptop", "telephone"])
def test_the_page_stands_alone_and_fits(browser, folder, size):
    page = opened(browser, folder, size)
    assert page.said == []
    assert [url for url in page.asked if not url.startswith("data:")] == [(folder / "study.html").as_uri()]
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    figures = page.locator("figure")
    assert figures.count() >= 5
    for place in range(figures.count()):
        box = figures.nth(place).bounding_box()
        assert box["width"] > 200
        assert box["height"] > 80
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= size["width"]
        assert figures.nth(place).locator("svg").is_visible()
    page.close()


@pytest.mark.parametrize("size", [LAPTOP, TELEPHONE], ids=["laptop", "telephone"])
def test_text_in_figures_can_be_read(browser, folder, size):
    page = opened(browser, folder, size)
    sizes = page.evaluate(
        """() => [...document.querySelectorAll('figure svg text')].map(text => {
            const matrix = text.getScreenCTM();
            return parseFloat(getComputedStyle(text).fontSize) * Math.hypot(matrix.a, matrix.b);
        })"""
    )
    assert len(sizes) > 100
    # A figure scrolls on a telephone; its letters do not shrink with the screen.
    assert min(sizes) >= 9.0
    page.close()


def test_no_name_covers_another(browser, folder):
    page = opened(browser, folder, LAPTOP)
    assert page.evaluate(OVERLAPS) == []
    assert page.evaluate(OUTSIDE) == []
    page.close()


def test_the_browser_tests_would_see_what_they_look_for(browser, tmp_path):
    """A page with every fault: the checks above must find them."""
    (tmp_path / "study.html").write_text(
        """<!doctype html><body style="margin:0"><figure id="figure-x"><svg width="900" height="100">
        <g id="x-name-0"><text x="10" y="40">one name</text></g><g id="x-name-1"><text x="12" y="41">two</text></g>
        <text x="880" y="40" style="font-size:40px">outside</text></svg></figure>
        <img src="missing.png"><script>console.error("fault")</script></body>"""
    )
    page = opened(browser, tmp_path, TELEPHONE)
    assert page.evaluate(OVERLAPS) != []
    assert page.evaluate(OUTSIDE) != []
    assert "fault" in page.said
    assert len(page.asked) == 2
    assert page.evaluate("document.documentElement.scrollWidth") > TELEPHONE["width"]
    page.close()
