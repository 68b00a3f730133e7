"""Pictures and page of a grid, the page in a real browser: it sorts, filters, toggles, asks no host, runs nothing foreign."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright
from rich.console import Console

from recipes import write
from zoo.report import session
from zoo.report.page import _inert, marked
from zoo.report.study import _thinned
from zoo.trials.grid import plan
from zoo.trials.places import Execution

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
    for name in ("effects", "curves", "pareto", "experts"):
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
