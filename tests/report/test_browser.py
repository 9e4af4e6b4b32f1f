"""The pages in a real browser: what a reader would see on a desk, on a phone, and in the dark."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
KINDS = ["classification", "generator", "language", "condensation", "stress", "compare", "proof"]
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars"
)
DESK, PHONE = (1280, 740), (360, 740)

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs Chromium and its driver: apt-get install chromium chromium-driver"
)

CONTRASTS = """
const rgb = c => { const p = c.match(/[\\d.]+/g).map(Number); return p.length < 4 ? [...p.slice(0, 3), 1] : p; };
const over = (top, under) => [0, 1, 2].map(i => top[i] * top[3] + under[i] * (1 - top[3])).concat(1);
const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
const lum = c => .2126 * linear(c[0] / 255) + .7152 * linear(c[1] / 255) + .0722 * linear(c[2] / 255);
function ground(e) {
  const layers = [];
  for (; e; e = e.parentElement) {
    const style = getComputedStyle(e), c = rgb(style.backgroundColor);
    if (c[3] > 0 && !(e instanceof SVGElement)) { layers.push(c); if (c[3] === 1) break; }
  }
  return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255, 1]);
}
const found = [];
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const e = walk.currentNode.parentElement, text = walk.currentNode.textContent.trim();
  if (!text || ["SCRIPT", "STYLE"].includes(e.tagName) || !e.getClientRects().length) continue;
  const style = getComputedStyle(e), under = ground(e);
  const ink = rgb(e instanceof SVGElement ? style.fill : style.color);
  ink[3] *= Number(style.opacity);
  const a = lum(over(ink, under)), b = lum(under);
  found.push([text.slice(0, 40), (Math.max(a, b) + .05) / (Math.min(a, b) + .05)]);
}
return found;
"""
CHARTS = """
return [...document.querySelectorAll("svg.chart")].map(svg => {
  const frame = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll("text")].map(t => {
    const r = t.getBoundingClientRect();
    return [t.textContent, r.left, r.top, r.right, r.bottom, parseFloat(getComputedStyle(t).fontSize)];
  });
  return {id: svg.closest("figure").id, width: frame.width, height: frame.height, texts: texts,
          frame: [frame.left, frame.top, frame.right, frame.bottom], natural: svg.viewBox.baseVal.width};
});
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install 'limbeck[dev]'")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def show(browser: Any, page: Path, size: tuple[int, int] = DESK, *, dark: bool = False, media: str = "screen") -> None:
    screen = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": [scheme]})
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.get(page.as_uri())


def overlap(a: list[Any], b: list[Any]) -> float:
    """How deep two texts lie in each other, in pixels."""
    across = min(a[3], b[3]) - max(a[1], b[1])
    down = min(a[4], b[4]) - max(a[2], b[2])
    return min(across, down) if across > 0 and down > 0 else 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_opens_from_disk_without_an_error_and_without_a_request(
    browser: Any, pages: dict[str, Path], kind: str
) -> None:
    show(browser, pages[kind])
    assert browser.get_log("browser") == []
    sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith("data:") and url != pages[kind].as_uri()] == []
    assert browser.execute_script("return document.querySelector('h1').innerText.length") > 20
    assert browser.execute_script("return document.querySelectorAll('h2').length") >= 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [DESK, PHONE, (320, 640), (820, 1100)])
def test_the_page_never_scrolls_sideways(
    browser: Any, pages: dict[str, Path], kind: str, size: tuple[int, int]
) -> None:
    show(browser, pages[kind], size)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= size[0]
    wide = browser.execute_script(
        "return [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, pre, svg, .unseen') && "
        "e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
    )
    assert wide == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dark", [False, True])
def test_every_text_can_be_read(browser: Any, pages: dict[str, Path], kind: str, dark: bool) -> None:
    show(browser, pages[kind], dark=dark)
    found = browser.execute_script(CONTRASTS)
    assert len(found) > 50
    assert [(text, round(ratio, 2)) for text, ratio in found if ratio < 4.5] == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [DESK, PHONE])
def test_figures_are_there_and_their_texts_neither_overlap_nor_leave_them(
    browser: Any, pages: dict[str, Path], kind: str, size: tuple[int, int]
) -> None:
    show(browser, pages[kind], size)
    charts = browser.execute_script(CHARTS)
    assert charts
    for chart in charts:
        assert chart["width"] > 150, chart["id"]
        assert chart["height"] > 60, chart["id"]
        left, top, right, bottom = chart["frame"]
        for text in chart["texts"]:
            inside = text[1] >= left - 3 and text[2] >= top - 3 and text[3] <= right + 3 and text[4] <= bottom + 3
            assert inside, (chart["id"], text)
            assert text[5] * chart["width"] / chart["natural"] > 7, (chart["id"], text)
        pairs = [(a, b) for i, a in enumerate(chart["texts"]) for b in chart["texts"][:i]]
        assert [(chart["id"], a[0], b[0]) for a, b in pairs if overlap(a, b) > 3] == []


@pytest.mark.parametrize("kind", ["classification", "stress"])
@pytest.mark.parametrize(("width", "media"), [(1280, "screen"), (820, "screen"), (320, "screen"), (700, "print")])
def test_labels_and_values_on_cards_do_not_meet(
    browser: Any, pages: dict[str, Path], kind: str, width: int, media: str
) -> None:
    show(browser, pages[kind], (width, 800), media=media)
    meet = browser.execute_script(
        "return [...document.querySelectorAll('.card dl > div')].filter(row => {"
        "  const [a, b] = ['dt', 'dd'].map(k => row.querySelector(k).getBoundingClientRect());"
        "  return a.right > b.left && a.bottom > b.top + 1; }).map(row => row.innerText)"
    )
    assert meet == []


def test_the_button_turns_dark_and_back_and_remembers_nothing(browser: Any, pages: dict[str, Path]) -> None:
    paper = "return getComputedStyle(document.body).backgroundColor"
    show(browser, pages["classification"])
    light = browser.execute_script(paper)
    button = browser.find_element("id", "theme")
    assert button.get_attribute("aria-pressed") == "false"
    button.click()
    assert browser.execute_script(paper) != light
    assert button.get_attribute("aria-pressed") == "true"
    browser.refresh()
    assert browser.execute_script(paper) == light
    assert browser.execute_script("return localStorage.length + sessionStorage.length + document.cookie.length") == 0
    show(browser, pages["classification"], dark=True)
    browser.find_element("id", "theme").click()
    assert browser.execute_script(paper) == light


def test_wide_tables_scroll_in_their_own_box(browser: Any, pages: dict[str, Path]) -> None:
    show(browser, pages["compare"], PHONE)
    box = "const b = document.querySelector('.scroll'); b.scrollLeft = 50;"
    assert browser.execute_script(box + "return b.scrollWidth > b.clientWidth && b.scrollLeft === 50 && scrollX === 0")


def test_a_printed_page_is_light_and_shows_all_of_a_table(browser: Any, pages: dict[str, Path]) -> None:
    show(browser, pages["classification"], dark=True, media="print")
    assert browser.execute_script("return getComputedStyle(document.documentElement).colorScheme") == "light"
    assert browser.execute_script("return getComputedStyle(document.querySelector('.scroll')).overflowX") == "visible"
    assert browser.execute_script("return getComputedStyle(document.querySelector('#theme')).display") == "none"


def test_a_script_that_slipped_through_would_not_run(browser: Any, pages: dict[str, Path], tmp_path: Path) -> None:
    spoiled = tmp_path / "spoiled.html"
    text = pages["proof"].read_text(encoding="utf8")
    spoiled.write_text(text.replace("</body>", "<script>document.title = 'owned'</script></body>"), encoding="utf8")
    show(browser, spoiled)
    assert browser.title != "owned"
