"""The page of a report in a browser: it shows everything, and what can be clicked works."""

import itertools

import pytest
from helpers import browser
from helpers.reports import looked, write_example, write_pages


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The pages of one run and of three."""
    run = write_example(tmp_path_factory.mktemp("runs") / "a <run>")
    return write_pages(tmp_path_factory.mktemp("pages"), run, looked(run))


@pytest.fixture(scope="module")
def chromium():
    """Headless Chromium."""
    pytest.importorskip("playwright", reason="playwright is not installed: pip install playwright")
    with browser.driver() as play:
        path = browser.executable(play)
        if not path:
            pytest.skip(f"no Chromium ({', '.join(browser.BROWSERS)}, playwright's own): apt-get install chromium")
        opened = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def opened(chromium, pages):
    """Opens a page without a network: `opened("one", width, scheme)`. Any script error or request fails the test."""
    contexts, problems = [], []

    def open_page(name: str, width: int = 1400, scheme: str = "light"):
        context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        contexts.append(context)
        tab = context.new_page()
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        tab.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else problems.append(r.url))
        tab.goto((pages / f"{name}.html").as_uri())
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert not problems


@pytest.mark.parametrize("name", ["one", "three"])
def test_a_browser_shows_everything(opened, name):
    """On a phone and on a screen, in light and in dark: all of the page, large enough and with enough contrast."""
    tab = opened(name)
    tab.wait_for_function("[...document.images].every((image) => image.complete)")
    assert tab.evaluate("[...document.images].filter((image) => !image.naturalWidth).length") == 0
    assert tab.locator("#training > .charts canvas").count() == 4
    tab.evaluate("document.querySelectorAll('details').forEach((fold) => (fold.open = true))")
    tab.add_style_tag(content="* { transition: none !important }")  # colors are those of the end
    for width, scheme in itertools.product((1400, 400), ("light", "dark")):
        tab.set_viewport_size({"width": width, "height": 900})
        tab.emulate_media(color_scheme=scheme)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == (
            "rgb(19, 20, 23)" if scheme == "dark" else "rgb(247, 247, 245)"
        )
        texts = tab.evaluate(browser.TEXTS)
        assert {text["tag"] for text in texts} >= {"p", "td", "dd", "th", "h1", "h2", "h3", "h4", "code", "button"}
        assert not [text for text in texts if text["size"] < 11 or text["contrast"] < 4.5], (width, scheme)


def test_hovering_tabs_slider_and_folds_work(opened):
    tab = opened("one")
    circle = tab.locator(".map circle").nth(3)
    circle.scroll_into_view_if_needed()
    before = circle.get_attribute("cx")
    tab.get_by_role("tab", name="UMAP").click()
    assert circle.get_attribute("cx") != before
    tab.get_by_role("tab", name="PCA").click()
    assert circle.get_attribute("cx") == before
    tab.wait_for_timeout(400)  # circles move
    circle.dispatch_event("pointermove", {"clientX": 300, "clientY": 300, "bubbles": True})
    assert tab.locator("#hover").is_visible()
    assert "data:image/webp" in tab.locator("#hover div").evaluate("(image) => image.style.backgroundImage")
    assert "example 3" in tab.locator("#hover p").text_content()
    tab.locator(".player input").fill("0")
    assert tab.locator(".film .step b").text_content() == "0"
    assert tab.locator(".film img:visible").get_attribute("data-step") == "0"
    tab.locator("#config summary").click()
    assert tab.locator("#config .groups").is_visible()
    rate = tab.locator(".chart").filter(has_text="Learning rate")
    assert rate.locator("output").text_content() == "peak0.2"
    loss = tab.locator(".chart").first
    loss.locator(".u-over").hover(position={"x": 2, "y": 50})
    assert loss.locator("output").text_content().startswith("step 1")


def test_play_legend_and_copy_work(opened):
    tab = opened("one")
    step, play = tab.locator(".film .step b"), tab.locator(".play")
    assert step.text_content() == "7"
    play.click()
    assert step.text_content() == "0" and play.get_attribute("aria-label") == "Pause"
    tab.wait_for_function("document.querySelector('.film .step b').textContent === '7'")
    assert play.get_attribute("aria-label") == "Play"  # it stops at the last figure
    play.click()
    play.click()
    tab.wait_for_timeout(700)  # longer than a figure is shown
    assert step.text_content() == "0"

    entry, faded = tab.locator(".legend button").nth(1), tab.locator(".map circle.faded")
    of_class = tab.evaluate("data.maps[0].labels.filter((label) => label === 1).length")
    entry.click()
    assert entry.get_attribute("aria-pressed") == "true"
    assert faded.count() == tab.locator(".map circle").count() - of_class > 0
    entry.click()
    tab.mouse.move(0, 0)
    assert entry.get_attribute("aria-pressed") == "false" and faded.count() == 0

    command = tab.locator(".commands li").nth(2)
    code = command.locator("code").text_content()
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    command.locator(".copy").click()
    command.get_by_text("Copied").wait_for()
    assert tab.evaluate("navigator.clipboard.readText()") == code
    tab.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject() }")
    tab.locator(".copy").first.click()
    tab.get_by_text("Selected").wait_for()
    assert tab.evaluate("getSelection().toString()") == tab.locator(".commands code").first.text_content()
