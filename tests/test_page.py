"""The page as Chromium shows it. Skipped where there is no Chromium; CI installs it."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_comparison import small, small_pictures
from small_live import FIVE, small_live

from distsgd.report.numbers.summary import summarise
from distsgd.report.page import render

pytestmark = [pytest.mark.browser, pytest.mark.long]

WIDE, NARROW = 1200, 390
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--allow-file-access-from-files",
    "--virtual-time-budget=60000",
)
DARK = ("--force-dark-mode", "--blink-settings=preferredColorScheme=0")
READABLE, VISIBLE = 4.5, 3.0
"""Contrast of text, and of what is drawn, that WCAG 2.1 asks for (1.4.3 and 1.4.11)."""

LISTENER = """<script>
const troubles = [];
addEventListener("error", (event) => troubles.push(`error: ${event.message}`), true);
addEventListener("unhandledrejection", (event) => troubles.push(`rejection: ${event.reason}`));
for (const kind of ["error", "warn"]) console[kind] = (...all) => troubles.push(`${kind}: ${all}`);
</script>"""

PROBE = """<script>
const settled = () => new Promise((done) => setTimeout(done, 200));
const all = (selector, root = document) => Array.from(root.querySelectorAll(selector));
const shapes = ".chart svg .role-mark path, .chart svg .role-mark line, .chart svg .role-mark rect";
const marks = (figure) => all(shapes, figure).map((one) => one.outerHTML);

function channels(colour) {
  const [r, g, b, a = 1] = colour.match(/[\\d.]+/g).map(Number);
  return {rgb: [r, g, b], a};
}
function luminance(rgb) {
  const [r, g, b] = rgb.map((c) => c / 255)
    .map((c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function contrast(one, other) {
  const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}
function ground(element) {
  for (let one = element; one; one = one.parentElement) {
    const {rgb, a} = channels(getComputedStyle(one).backgroundColor);
    if (a === 1) return rgb;
  }
  return [255, 255, 255];
}
function texts() {
  const own = (one) => Array.from(one.childNodes).some((n) => n.nodeType === 3 && n.data.trim());
  return all("body *:not(script):not(style)").filter((one) => own(one) && one.checkVisibility());
}
function textContrast(one) {
  const style = getComputedStyle(one);
  const colour = one instanceof SVGElement ? style.fill : style.color;
  return [contrast(channels(colour).rgb, ground(one)), one.textContent.slice(0, 40)];
}

const nameOf = (button) => button.dataset.view ?? button.value;

async function turn(figure, name) {
  const select = figure.querySelector("select");
  if (select) {
    select.value = name;
    select.dispatchEvent(new Event("change", {bubbles: true}));
  } else {
    all("[data-view]", figure).find((one) => one.dataset.view === name).click();
  }
  do await settled(); while (figure.dataset.shown !== name);
}

async function probe() {
  while (!document.documentElement.dataset.drawn) await settled();
  const figures = all("figure[data-picture]");
  const found = {
    marks: Object.fromEntries(figures.map((one) => [one.dataset.picture, marks(one).length])),
    described: figures.every((one) => one.querySelector("svg[aria-label], [aria-label] svg")),
    lowest_text: texts().map(textContrast).sort((a, b) => a[0] - b[0])[0],
    lowest_line: all(".swatch line").map((one) =>
      contrast(channels(getComputedStyle(one).stroke).rgb, ground(one))).sort((a, b) => a - b)[0],
    width: innerWidth,
    overflow: document.documentElement.scrollWidth - innerWidth,
    wide_charts: figures.map((one) => one.querySelector("svg").getBoundingClientRect())
      .filter((box) => box.right > innerWidth + 1 || box.width < 200).length,
    small_buttons: all("button").map((one) => one.getBoundingClientRect())
      .filter((box) => box.height < 24 || box.width < 24).length,
    ground: getComputedStyle(document.body).backgroundColor,
    switched: {}, linked: {}, hidden: {},
  };
  for (const figure of figures) {
    const [first, ...others] = all("[data-view], option", figure).map(nameOf);
    for (const name of others) {
      await turn(figure, first);
      const before = marks(figure).join();
      await turn(figure, name);
      const key = `${figure.dataset.picture} ${name}`;
      found.switched[key] = [figure.dataset.shown, marks(figure).join() !== before];
    }
  }
  const asked = figures.find((one) => one.querySelector('[data-view="epochs"]'));
  await turn(asked, "epochs");
  found.linked = figures.filter((one) => one.querySelector('[data-view="epochs"]'))
    .map((one) => one.dataset.shown);
  const lines = () => all(".mark-line path", asked).length;
  const before = lines();
  document.querySelector(".legend button").click();
  await settled();
  found.hidden = [before, lines()];
  found.requests = performance.getEntriesByType("resource").map((one) => one.name);
  found.troubles = troubles;
  const result = document.createElement("pre");
  result.id = "probe";
  result.textContent = JSON.stringify(found).replaceAll("<", "\\\\u003c");
  document.body.append(result);
}
probe();
</script>"""


FRAME = """<!doctype html><iframe src="page.html" style="width: {width}px; height: 900px"></iframe>
<script>
setInterval(() => {
  const found = document.querySelector("iframe").contentDocument.getElementById("probe");
  if (found && !document.getElementById("probe")) document.body.append(found.cloneNode(true));
}, 200);
</script>"""
"""A window of any width: Chromium's own are at least 500 pixels wide."""


@pytest.fixture(scope="module")
def chromium() -> str:
    """Return the browser, or skip."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("no Chromium: install Debian's package chromium")
    return found


@pytest.fixture(scope="module")
def probed(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """Return what the page says of itself, by the width of the window and the flags."""
    page = _watched(render(*small()), tmp_path_factory.mktemp("page"))
    known: dict[tuple[object, ...], dict[str, Any]] = {}

    def probe(width: int, *flags: str) -> dict[str, Any]:
        if (width, flags) not in known:
            known[width, flags] = _probe(chromium, page, width, flags)
        return known[width, flags]

    return probe


def _watched(html: str, folder: Path) -> Path:
    """Write a page that tells what it is, and return its path."""
    top, rest = html.split("<head>", maxsplit=1)
    body, bottom = rest.rsplit("</body>", maxsplit=1)
    page = folder / "page.html"
    page.write_text(f"{top}<head>{LISTENER}{body}{PROBE}</body>{bottom}", encoding="utf-8")
    return page


def _probe(chromium: str, page: Path, width: int, flags: tuple[str, ...]) -> dict[str, Any]:
    frame = page.with_name(f"{width}.html")
    frame.write_text(FRAME.replace("{width}", str(width)))
    done = subprocess.run(
        [chromium, *FLAGS, *flags, f"--user-data-dir={page.parent / 'profile'}", "--dump-dom", frame.as_uri()],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"DBUS_SESSION_BUS_ADDRESS": "disabled:"},
    )
    found = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    assert found is not None, done.stderr[-2000:]
    content: dict[str, Any] = json.loads(found[1].replace("&amp;", "&").replace("&gt;", ">"))
    return content


Probed = Callable[..., dict[str, Any]]


def test_the_page_loads_without_error(probed: Probed) -> None:
    """The page runs without an error or a warning, and asks no server for anything."""
    found = probed(WIDE)
    assert found["troubles"] == []
    assert found["requests"] == []


def test_every_picture_has_marks(probed: Probed) -> None:
    """Every picture of the comparison is drawn, with marks and with a name for a screen reader."""
    found = probed(WIDE)
    assert len(found["marks"]) == len(small_pictures())
    assert all(count > 1 for count in found["marks"].values())
    assert found["described"]


def test_switching_changes_the_marks(probed: Probed) -> None:
    """Each button and each choice shows its own view: other marks than the view before it."""
    switched = probed(WIDE)["switched"]
    assert len(switched) == sum(len(one.views) - 1 for one in small_pictures())
    for key, (shown, has_changed) in switched.items():
        assert key.endswith(shown)
        assert has_changed, key


def test_one_choice_of_an_axis_is_for_all(probed: Probed) -> None:
    """Choosing epochs in one picture shows epochs in all pictures that offer the same views."""
    assert set(probed(WIDE)["linked"]) == {"epochs"}


def test_an_algorithm_can_be_hidden(probed: Probed) -> None:
    """Pressing an algorithm in the legend takes its line out of the pictures."""
    before, after = probed(WIDE)["hidden"]
    assert after == before - 1


@pytest.mark.parametrize("flags", [(), DARK], ids=["light", "dark"])
def test_text_can_be_read(probed: Probed, flags: tuple[str, ...]) -> None:
    """All text, in pictures too, has the contrast that WCAG asks for, in light and in dark."""
    contrast, text = probed(WIDE, *flags)["lowest_text"]
    assert contrast >= READABLE, text


def test_lines_can_be_seen_in_the_dark(probed: Probed) -> None:
    """The dark page is dark, and every algorithm's colour stands out from it."""
    found = probed(WIDE, *DARK)
    assert found["ground"] == "rgb(22, 24, 27)"
    assert found["lowest_line"] >= VISIBLE


def test_a_telephone_can_show_it(probed: Probed) -> None:
    """At 390 pixels nothing but tables is wider than the screen, and buttons can be touched."""
    found = probed(NARROW)
    assert found["width"] == NARROW
    assert found["overflow"] <= 0
    assert found["wide_charts"] == 0
    assert found["small_buttons"] == 0
    assert found["troubles"] == []


def test_live_runs_are_drawn(chromium: str, tmp_path: Path) -> None:
    """A page with live runs has no error, marks in every picture, and text that can be read."""
    outcomes = [one for one in small_live().outcomes if one.fleet.startswith(FIVE)]
    summary = summarise(outcomes, small_live().summary.settings, is_complete=True)
    page = _watched(render(summary, outcomes), tmp_path)
    found = _probe(chromium, page, WIDE, DARK)
    assert found["troubles"] == []
    assert all(count > 1 for count in found["marks"].values())
    assert all(has_changed for _, has_changed in found["switched"].values())
    assert found["lowest_text"][0] >= READABLE
    assert found["wide_charts"] == 0
