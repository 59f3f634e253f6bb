"""The report as a browser shows it: phone and desktop, light and dark, filters, hostile text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from headless import Browser
from matplotlib.image import imread
from report_folders import HOSTILE, evaluation_row, sample, write_evaluation, write_files
from report_folders import write_training as write_run

from trainer.report.__main__ import write_report
from trainer.samples import clean

PHONE, DESKTOP = 360, 1280


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods that differ, problems of which one is all hostile text, and a training run."""
    root = tmp_path_factory.mktemp("report")
    exact = write_evaluation(root / "exact", "l1_exact", problems=30)
    wrong = [sample("amc", problem, 3600, "exact", k) for problem in range(30) for k in range(2)]
    wrong = [row | {"reason": "wrong", "answer": "no"} for row in wrong]
    wrong[0]["text"] = HOSTILE
    wrong[2] |= {"reason": "no_answer", "answer": None, "text": "I give up. Łódź"}
    row = evaluation_row("amc", 3600, "exact", behaviour={HOSTILE: 1.0})
    content = {"method": f"s1 {HOSTILE}", "model": HOSTILE, "rows": [row]}
    s1 = write_files(root / "s1", {"evaluation.json": content}, {"samples.jsonl": wrong})
    return write_report([exact, s1, write_run(root / "train")], root / "out", 1000)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_it_is_drawn_without_network_or_complaint(browser, page, tmp_path, width, dark):
    browser.open(page, width=width, dark=dark)
    assert browser.requests() == [page.as_uri()]
    assert browser.complaints() == []
    assert browser.run("typeof window.owned") == "undefined"
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    assert browser.run("document.querySelectorAll('article').length") == 20
    narrowest = "Math.min(...[...document.querySelectorAll('figure svg')].map(s => s.clientWidth))"
    assert browser.run(narrowest) > 0.85 * min(width, 400)
    # What a letter of a figure measures on the screen, in pixels: legible.
    measure = """(() => {
      const scale = m => Math.hypot(m.a, m.b);
      return [...document.querySelectorAll('svg text')]
        .map(t => parseFloat(getComputedStyle(t).fontSize) * scale(t.getScreenCTM()));
    })()"""
    assert min(browser.run(measure)) > 8
    browser.screenshot(tmp_path / "page.png")
    image = imread(tmp_path / "page.png")[..., :3]
    corner, darkest, lightest = image[2, 2].mean(), image.min(), image.max()
    assert (corner < 0.2) == dark and darkest < 0.2 and lightest > 0.8


def test_text_in_figures_contrasts_in_dark_too(browser, page):
    """Matplotlib leaves black to SVG's default, which a dark page would swallow."""
    luminance = """(() => {
      const light = c => c.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0) / 765;
      const page = light(getComputedStyle(document.body).backgroundColor);
      return [...document.querySelectorAll('svg text')]
        .map(t => Math.abs(light(getComputedStyle(t).fill) - page));
    })()"""
    for dark in (False, True):
        browser.open(page, width=DESKTOP, dark=dark)
        assert min(browser.run(luminance)) > 0.25


def choose(browser: Browser, control: str, value: str) -> None:
    """Set a control as a user does: by the text of an option, or of the search field."""
    browser.run(f"""(() => {{
      const control = document.getElementById({control!r});
      const options = [...(control.options || [])];
      const option = options.find(o => o.text === {value!r});
      if (options.length && !option) throw new Error(options.map(o => o.text).join());
      control.value = option ? option.value : {value!r};
      control.dispatchEvent(new Event('input'));
    }})()""")


def shown(browser: Browser) -> list[str]:
    """The problems of the cards."""
    heads = "[...document.querySelectorAll('article > .soft:first-child')].map(e => e.textContent)"
    return browser.run(heads)


def test_filters_and_search(browser, page):
    browser.open(page, width=DESKTOP)
    names = browser.run("['a', 'b'].map(id => document.getElementById(id).selectedOptions[0].text)")
    assert names[0] == "l1_exact · 3600 tokens" and names[1].startswith("s1 </script>")
    choose(browser, "verdict", "A correct, B not")
    count = browser.run("document.getElementById('count').textContent")
    assert count == "20 of 30 matching problems shown; 31 to choose from"
    browser.run("document.getElementById('more').click()")
    assert len(shown(browser)) == 30 and browser.run("document.getElementById('more').hidden")
    # Every second sample of A is right: the card shows the pair that matches.
    verdicts = (
        "[...document.querySelectorAll('article:first-child .sample > div > div:first-child')"
    )
    texts = browser.run(f"{verdicts}].map(e => e.textContent)")
    assert texts[0].startswith("✔ correct") and texts[1].startswith("✘ wrong")
    choose(browser, "verdict", "both correct")
    assert shown(browser) == []
    choose(browser, "verdict", "A or B: no_answer")
    assert shown(browser) == ["amc · amc-1"]
    choose(browser, "verdict", "any verdict")
    choose(browser, "search", "łÓDŹ give")
    assert shown(browser) == ["amc · amc-1"]
    choose(browser, "search", "no such words")
    assert shown(browser) == []
    choose(browser, "search", "")
    choose(browser, "data", "rollouts of train")
    assert shown(browser) == []
    choose(browser, "b", "step 12 · train")
    assert shown(browser) == ["rollouts of train · train-7"]
    assert browser.complaints() == []


def test_order_and_turning_samples(browser, page):
    browser.open(page, width=PHONE)
    choose(browser, "b", "nothing")
    choose(browser, "order", "most tokens first")
    line = (
        "[...document.querySelectorAll('.sample > div > div:first-child')].map(e => e.textContent)"
    )
    tokens = [int(text.split("” · ")[1].split()[0]) for text in browser.run(line)]
    assert tokens == sorted(tokens, reverse=True) and len(set(tokens)) > 5
    before = browser.run(line)[0]
    browser.run("document.querySelector('[aria-label=\"next sample\"]').click()")
    assert browser.run(line)[0] != before
    assert "sample 2 of 2" in browser.run("document.querySelector('.turn').textContent")
    assert browser.run("document.querySelector('[aria-label=\"next sample\"]').disabled")


def test_text_is_shown_as_it_is_and_the_answer_marked(browser, page):
    browser.open(page, width=DESKTOP)
    choose(browser, "search", "amc-0")
    text = "[...document.querySelectorAll('.sample pre')].map(e => e.textContent)"
    assert browser.run(text)[1] == clean(HOSTILE)
    marks = browser.run("[...document.querySelectorAll('mark')].map(e => e.textContent)")
    assert marks[0] == "41"  # after 𝟏, one character in Python and two units in JavaScript
    assert browser.run("document.querySelector('.thinking').textContent").endswith("</think>")
    assert browser.run("typeof window.owned") == "undefined"
