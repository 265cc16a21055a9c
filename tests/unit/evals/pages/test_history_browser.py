"""The history's page in a real headless browser, from file://: nothing is asked for, nothing is complained about, the filter works by hand and by key."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from toy_page import toy_root

from evals.pages.history.history import SECTIONS, write_history_page

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from browser import Browser, chromium

pytestmark = pytest.mark.skipif(chromium() is None, reason="no chromium on this machine (Debian: apt-get install chromium); .ci/run installs it")

VISIBLE = '[...document.querySelectorAll(".pair")].filter((p) => p.checkVisibility()).map((p) => p.closest("[data-kind]").dataset.kind)'
PRESSED = '[...document.querySelectorAll("[aria-pressed=true]")].map((b) => b.dataset.show)'
WIDTHS = "[document.documentElement.scrollWidth, innerWidth]"


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    return write_history_page(toy_root(tmp_path_factory.mktemp("toy") / "a root with spaces & such")).page


@pytest.fixture(scope="module")
def browser():
    with Browser() as running:
        yield running


def test_it_opens_from_a_file_without_complaint_or_request(browser, page):
    browser.look()
    browser.open(page)
    assert browser.problems() == []
    assert browser.requests() == [page.as_uri()]
    assert browser.run('[...document.querySelectorAll("section")].map((s) => s.id)') == list(SECTIONS)
    assert browser.run("[...document.images].every((i) => i.complete && i.naturalWidth > 0)")
    assert browser.run("document.title") == "Anyloom benchmark history"  # what an answer of the model would have changed
    assert browser.run('[...document.querySelectorAll("nav a")].every((a) => document.querySelector(a.hash))')


def test_the_filter_shows_one_outcome(browser, page):
    browser.look()
    browser.open(page)
    everything = browser.run(VISIBLE)
    assert set(everything) == {"only-a", "only-b", "both-wrong", "both-right"} and browser.run(PRESSED) == ["all"]
    for kind in sorted(set(everything)):
        browser.run(f'document.querySelector("[data-show={kind}]").click()')
        assert browser.run(VISIBLE) == [kind] * everything.count(kind) and browser.run(PRESSED) == [kind] and browser.run("location.hash") == f"#{kind}"
        assert browser.run('document.getElementById("note").textContent').startswith(f"{everything.count(kind)} question")
    browser.run('document.querySelector("[data-show=all]").click()')
    assert browser.run(VISIBLE) == everything and browser.problems() == []


def test_a_link_to_one_outcome_opens_on_it_and_a_link_to_a_section_leaves_it(browser, page):
    browser.look()
    browser.open(page, "#only-b")
    assert set(browser.run(VISIBLE)) == {"only-b"} and browser.run(PRESSED) == ["only-b"]
    browser.run('new Promise((done) => { addEventListener("hashchange", () => setTimeout(done)); location.hash = "#trends"; })')
    assert set(browser.run(VISIBLE)) == {"only-b"}


def test_the_filter_works_by_keyboard(browser, page):
    browser.look()
    browser.open(page)
    browser.run('document.querySelector("[data-show=all]").focus()')
    browser.key("Tab", 9)
    assert browser.run("document.activeElement.dataset.show") == "only-a"
    assert browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    browser.key("Enter", 13, "\r")
    assert set(browser.run(VISIBLE)) == {"only-a"}


def test_the_first_tab_stop_skips_to_the_content(browser, page):
    browser.look()
    browser.open(page)
    browser.key("Tab", 9)
    assert browser.run("[document.activeElement.className, document.activeElement.getBoundingClientRect().left >= 0]") == ["skip", True]


def test_without_scripts_everything_is_shown_and_no_dead_button(browser, page):
    browser.look()
    browser.open(page)
    everything = browser.run(VISIBLE)
    browser.look(scripts=False)
    browser.open(page, "#only-a")
    assert browser.run(VISIBLE) == everything
    assert not browser.run('document.querySelector(".filters").checkVisibility()') and browser.problems() == []


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_follows_the_theme(browser, page, dark):
    browser.look(dark=dark)
    browser.open(page)
    red = int(browser.run("getComputedStyle(document.body).backgroundColor").split("(")[1].split(",")[0])
    assert (red < 60) is dark


def test_a_phone_needs_no_sideways_scrolling(browser, page):
    browser.look(width=390, height=844, phone=True)
    browser.open(page)
    page_width, window = browser.run(WIDTHS)
    assert page_width == window == 390


def test_the_policy_stops_what_escaping_would_have_missed(browser, tmp_path, page):
    text = page.read_text()
    broken = tmp_path / "broken.html"
    injected = '<script>document.title="broken into"</script><img src="https://example.invalid/x.png" alt="" onerror="document.title=1"></main>'
    broken.write_text(text.replace("</main>", injected))
    browser.look()
    browser.open(broken)
    assert browser.run("document.title") == "Anyloom benchmark history"
    assert len([problem for problem in browser.problems() if "Content Security Policy" in problem or "violates" in problem]) >= 2
    assert set(browser.run(VISIBLE)) == {"only-a", "only-b", "both-wrong", "both-right"}
