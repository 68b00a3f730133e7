"""Pictures and page of a grid, the page in a real browser: it sorts, filters, toggles, asks no host, runs nothing foreign."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from outcomes import outcome
from playwright.sync_api import Page, sync_playwright
from rich.console import Console

from recipes import write
from zoo.report import pictures, session
from zoo.report.page import _inert, library, marked
from zoo.report.page import page as page_of
from zoo.report.pictures import draw
from zoo.report.rows import rows_of
from zoo.report.study import Entry, Study, _thinned
from zoo.trials.grid import plan
from zoo.trials.places import Execution

pytestmark = pytest.mark.pictures
EVIL = "<img src=x onerror=alert(1)>"
GRID = """
[card]
prompts = ["</script><script>alert(2)</script>"]
samples = 2
top = 1
max_tokens = 4

[kinds.ffn.moe]
n_experts = 4
hidden_dim = 16
balance = "loss_free"

[optim.control]
kind = "adamw"
lr = 3e-3

[grid]
seeds = 2

[[grid.variant]]
name = "plain"

[[grid.variant]]
name = "<img src=x onerror=alert(1)>"
set = { "model.layer.ffn" = "moe" }

[[grid.variant]]
name = "wide"
set = { "model.layer.ffn.hidden_dim" = 40 }
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("report")
    before = os.environ.get("ZOO_CACHE")
    os.environ["ZOO_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")
    try:
        grid = plan(write(base, GRID))
        with (base / "said.txt").open("w") as said:
            assert session.run_grid(grid, "*", base / "out", False, Execution(workers=0), Console(file=said))
    finally:
        os.environ.pop("ZOO_CACHE") if before is None else os.environ.update(ZOO_CACHE=before)
    return base / "out"


@pytest.fixture(scope="module")
def chromium() -> str:
    """The browser; where it must be there (CI), its absence is a failure."""
    found = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    if found is None and not os.environ.get("CI"):
        pytest.skip("no Chromium on this machine: install it to test the page in a browser")
    assert found is not None, "CI must install Chromium"
    return found


@pytest.fixture(scope="module")
def opened(folder: Path, chromium: str) -> Iterator[tuple[Page, list[str], list[str]]]:
    """The page in a browser, with everything it complained of and every address it asked for."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme="dark")
        said: list[str] = []
        asked: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: asked.append(request.url))
        page.goto((folder / "report.html").as_uri())
        page.wait_for_selector("#curves svg")
        yield page, said, asked
        browser.close()


def names(page: Page) -> list[str]:
    return page.eval_on_selector_all("#table tbody tr:not([hidden])", "rows => rows.map(r => r.dataset.variant)")


def test_a_grid_leaves_pictures_and_a_small_page(folder: Path):
    for name in ("curves.svg", "effects.svg", "pareto.svg", "experts.svg"):
        assert ET.parse(folder / name).getroot().tag.endswith("svg"), name
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "report.html").stat().st_size < 2_000_000


def test_the_page_asks_no_host_and_has_no_fault(opened: tuple[Page, list[str], list[str]]):
    page, said, asked = opened
    assert said == [] and all(url.startswith(("file:", "data:", "blob:")) for url in asked)
    for name in ("effects", "curves", "pareto", "experts-0"):
        assert page.query_selector(f"#{name} svg") is not None, name
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, (
        "nothing but tables and pictures scrolls sideways"
    )


def test_what_came_from_outside_is_shown_and_not_run(opened: tuple[Page, list[str], list[str]], folder: Path):
    page, said, _ = opened
    assert EVIL in names(page) and page.query_selector("img") is None and said == []
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert EVIL not in text and "<script>alert" not in text


def test_the_table_sorts_by_mouse_and_by_keyboard(opened: tuple[Page, list[str], list[str]]):
    page, _, _ = opened
    values = "rows => rows.map(r => Number(r.children[1].dataset.value))"
    header = page.locator("#table thead th", has_text="bits/byte")
    header.locator("button").click()
    up = page.eval_on_selector_all("#table tbody tr", values)
    assert up == sorted(up) and header.get_attribute("aria-sort") == "ascending"
    header.locator("button").focus()
    page.keyboard.press("Enter")
    assert page.eval_on_selector_all("#table tbody tr", values) == sorted(up, reverse=True)
    assert header.get_attribute("aria-sort") == "descending"


def test_the_switches_reach_the_differences_and_the_costs(opened: tuple[Page, list[str], list[str]]):
    page, said, _ = opened
    points = "els => els.length"
    before = page.eval_on_selector_all("#effects svg .mark-symbol.role-mark path", points)
    page.locator("#none").click()
    assert names(page) == [] and page.inner_text("#shown") == "0 of 3 variants shown"
    assert not page.locator("#curves").is_visible() and not page.locator("#effects").is_visible()
    page.locator("#all").click()
    page.locator("#variants input").last.uncheck()
    page.wait_for_function("views.pareto.signal('shown').length === 2 && views.effects.signal('shown').length === 1")
    page.wait_for_timeout(200)
    after = page.eval_on_selector_all("#effects svg .mark-symbol.role-mark path", points)
    assert (before, after) == (2, 1)
    assert page.locator("[data-variant='<img src=x onerror=alert(1)>'] svg").is_visible(), "the load of its experts"
    page.locator("#all").click()
    assert len(names(page)) == 3 and said == []


def test_pictures_say_what_they_show(opened: tuple[Page, list[str], list[str]]):
    page, _, _ = opened
    said = "id => [...document.querySelectorAll(`#${id}, #${id} *`)].map(e => e.ariaLabel).filter(Boolean)"
    assert any(words.startswith("Difference to plain in bits per byte") for words in page.evaluate(said, "effects"))
    assert any("switched on" in words for words in page.evaluate(said, "curves"))
    assert any("parameters" in words and "stand in the table" in words for words in page.evaluate(said, "pareto"))
    page.locator("[aria-label='Picture of the curves']").focus()  # what scrolls sideways can be reached by keyboard


def test_rows_are_filtered_and_variants_switched_off_everywhere(opened: tuple[Page, list[str], list[str]]):
    page, _, _ = opened
    page.fill("#filter", "WID")
    assert names(page) == ["wide"] and page.inner_text("#shown") == "1 of 3 variants shown"
    assert page.evaluate("views.curves.signal('shown')") == ["wide"]
    page.fill("#filter", "")
    page.locator("#variants input").first.uncheck()
    assert "plain" not in names(page) and len(names(page)) == 2
    assert "plain" not in page.evaluate("views.curves.signal('shown')")
    assert page.locator("details[data-variant=plain]").first.is_hidden()
    page.locator("#variants input").first.check()
    assert len(names(page)) == 3


def test_curves_are_drawn_against_what_is_chosen(opened: tuple[Page, list[str], list[str]]):
    page, _, _ = opened
    page.select_option("#spent", "tokens")
    page.select_option("#measure", "bits per byte")
    assert page.evaluate("[views.curves.signal('spent'), views.curves.signal('measure')]") == [
        "tokens",
        "bits per byte",
    ]
    page.wait_for_function("views.curves.scale('x').domain()[1] > 300")  # 6 steps of 64 tokens


def test_every_control_has_a_name_and_every_trial_its_recipe(opened: tuple[Page, list[str], list[str]]):
    page, _, _ = opened
    unnamed = "els => els.filter(e => !(e.labels?.length || e.textContent.trim() || e.ariaLabel)).length"
    assert page.eval_on_selector_all("input, select, button", unnamed) == 0
    assert page.locator("details[data-variant]").count() == 6
    marks = page.eval_on_selector_all("details[data-variant=wide] mark", "els => els.map(e => e.textContent)")
    assert "hidden_dim = 40" in marks and not any("n_heads" in mark for mark in marks)


def invented(n: int, seeds: int, bits: Callable[[int], float | None] = lambda i: 2.0 + i / 100) -> Study:
    """A study of ``n`` arms that nobody trained; the last one did not finish, and the first has a name that misbehaves."""
    names = ["base\x1b[31m\u202e", *(f"arm {i} {'with a long name ' * (i % 4)}" for i in range(1, n))]
    entries = []
    for i, name in enumerate(names):
        for seed in range(seeds):
            done = i < n - 1
            this = outcome(name, bits(i) + seed / 50 if done else None, seed, "done" if done else "failed", steps=20)
            log = [
                {"step": s, "loss": 5 / s if s < 20 else math.nan, "lr": 1e-3, "tokens": 64 * s, "elapsed": 1.0 * s}
                for s in (1, 10, 20)
            ]
            entries.append(Entry(this, Path("nowhere"), tuple(log) if done else (), ()))
    rows = rows_of([entry.outcome for entry in entries], entries[0].outcome.trial.arm)
    return Study("st\x07udy", entries[0].outcome.trial.arm, tuple(entries), tuple(rows), {"fact": "\x1b]0;"})


def test_of_many_arms_the_best_are_drawn_and_all_are_listed(tmp_path: Path):
    study = invented(70, 2)
    assert [path.name for path in draw(study, tmp_path)] == ["curves.svg", "curves.png", "effects.svg"]
    svg = (tmp_path / "curves.svg").read_text(encoding="utf-8")
    assert "the 12 best of 70 and the baseline" in svg
    drawn = study.drawn(pictures.MANY, pictures.FEW)
    assert drawn == study.variants[:13], "the baseline, and those with the fewest bits per byte"
    assert len({pictures.palette(study)[name] for name in drawn}) == 13, "no two of them share a colour"
    text = page_of(study)
    assert text.count('<input type="checkbox"') == 70 and len(text) < 2_000_000 and '<details id="variants">' in text


def test_no_control_character_gets_into_a_picture_or_the_page(tmp_path: Path):
    study = invented(5, 1)
    draw(study, tmp_path)
    for text in (page_of(study).replace(library(), ""), *(p.read_text("utf-8") for p in tmp_path.glob("*.svg"))):
        assert not {c for c in text if not c.isprintable()} - {"\n", "\t"} and "base\\x1b[31m\\x202e" in text.replace(
            "&#92;", "\\"
        )
    for path in tmp_path.glob("*.svg"):
        ET.parse(path)


def test_a_grid_of_which_nothing_was_scored_has_a_page_all_the_same(tmp_path: Path):
    study = invented(1, 1)
    assert draw(study, tmp_path) == [] and "failed" in page_of(study)
    one = invented(2, 1)  # one arm, scored, and one that failed
    assert [path.stem for path in draw(one, tmp_path)] == ["curves", "curves"] and "failed" in page_of(one)


def test_lines_that_the_baseline_lacks_are_marked():
    assert str(marked("a\nb", "a\n<c>\nb")) == "a\n<mark>&lt;c&gt;</mark>\nb"


def test_data_cannot_leave_its_element():
    value = ["</script><script>", "&", "\u2028"]
    text = str(_inert(value))
    assert json.loads(text) == value and not set("<>&\u2028") & set(text)


def test_curves_are_thinned_evenly_and_keep_their_ends():
    assert _thinned(range(5)) == [0, 1, 2, 3, 4]
    thinned = _thinned(range(1000), 100)
    assert thinned[0] == 0 and thinned[-1] == 999 and len(thinned) == 100
    assert max(b - a for a, b in itertools.pairwise(thinned)) <= 11
