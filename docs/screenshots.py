"""Takes the screenshots of docs/report.md and README.md: `python docs/screenshots.py --one=PAGE --three=PAGE`.

The pages are those of `python -m maskcl_jax.report`, of one run and of three, on the embedded photographs;
docs/report.md has the commands. Needs playwright, and Chromium from the system's packages.
"""

import argparse
import io
import pathlib
import shutil
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

FOLDER = pathlib.Path(__file__).with_name("screenshots")
COLORS = 200  # of a screenshot: half the bytes, and no difference to see


def main() -> None:
    """Writes the files of docs/screenshots/."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", required=True, help="the page of one run")
    parser.add_argument("--three", required=True, help="the page of three runs")
    arguments = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        one = opened(browser, arguments.one, width=1280, scheme="light")
        save("one_training", one.screenshot(clip=area(one, "header", "#images")))
        one.locator(".map circle").nth(150).hover(force=True)
        one.wait_for_timeout(400)
        first_rows = area(one, "#embeddings", ".neighbors") | {"height": 1645}
        save("one_map", one.screenshot(clip=first_rows))
        three = opened(browser, arguments.three, width=1280, scheme="dark")
        save("three", three.screenshot(clip=area(three, "header", ".map")))
        phone = opened(browser, arguments.one, width=400, scheme="dark")
        save("phone", phone.screenshot(clip=area(phone, "#images", ".map")))
        browser.close()
    beside_the_masks()


def opened(browser: Any, page: str, *, width: int, scheme: str) -> Any:
    """A page in a window as high as the page, so that nothing scrolls."""
    tab = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True).new_page()
    tab.goto(pathlib.Path(page).absolute().as_uri())
    tab.add_style_tag(content="nav { position: static !important }")
    tab.set_viewport_size({"width": width, "height": tab.evaluate("document.body.scrollHeight")})
    tab.wait_for_timeout(500)
    return tab


def area(tab: Any, first: str, last: str) -> dict[str, float]:
    """From the top of one element to the bottom of another, over the whole width."""
    boxes = [tab.locator(selector).first.bounding_box() for selector in (first, last)]
    bottom = boxes[1]["y"] + boxes[1]["height"] + 16
    return {"x": 0, "y": boxes[0]["y"], "width": tab.viewport_size["width"], "height": bottom - boxes[0]["y"]}


def save(name: str, png: bytes) -> None:
    """Writes one screenshot with fewer colors."""
    image = Image.open(io.BytesIO(png)).convert("RGB").quantize(COLORS, dither=Image.Dither.NONE)
    path = FOLDER / f"{name}.png"
    image.save(path, optimize=True)
    print(f"{path}: {path.stat().st_size // 1000} kB")


def beside_the_masks(height: int = 470) -> None:
    """Writes the README's picture: what the methods mask, and the start of a report."""
    masks = Image.open(FOLDER.with_name("figures") / "overview.png").convert("RGB")
    report = Image.open(FOLDER / "one_training.png").convert("RGB")
    report = report.crop((0, 0, report.width, 1150))  # down to the charts
    report = report.resize((round(report.width * height / report.height), height), Image.Resampling.LANCZOS)
    both = Image.new("RGB", (masks.width + 16 + report.width, height), "white")
    both.paste(masks, (0, (height - masks.height) // 2))
    both.paste(report, (masks.width + 16, 0))
    png = io.BytesIO()
    both.save(png, "png")
    save("readme", png.getvalue())


if __name__ == "__main__":
    main()
