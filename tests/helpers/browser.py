"""Headless Chromium for the tests of pages, and what they measure in a page."""

import contextlib
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# Every element that shows text of its own: its size in pixels, and the contrast of the text to what lies behind it by
# the formula of WCAG 2.2. Colors may be `rgb(...)`, or `color(srgb ...)` where CSS mixes them.
TEXTS = """
() => {
  const parse = (text) => {
    const [r, g, b, a = 1] = text.match(/[\\d.]+(e-?\\d+)?/g).map(Number);
    return text.startsWith("color(") ? [255 * r, 255 * g, 255 * b, a] : [r, g, b, a];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[3] * top[i] + (1 - top[3]) * below[i]).concat(1);
  const luminance = (color) => {
    const [r, g, b] = color.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (e) => {
    if (!e) return [255, 255, 255, 1];
    const color = parse(getComputedStyle(e).backgroundColor);
    return color[3] === 1 ? color : over(color, behind(e.parentElement));
  };
  const found = [];
  for (const e of document.body.querySelectorAll("*")) {
    const own = [...e.childNodes].filter((n) => n.nodeType === Node.TEXT_NODE).map((n) => n.data.trim()).join(" ");
    if (!own.trim() || !e.offsetParent || e.closest("script, style, .uplot")) continue;
    const style = getComputedStyle(e), ground = behind(e);
    const light = [luminance(over(parse(style.color), ground)), luminance(ground)].sort((a, b) => b - a);
    found.push({
      tag: e.tagName.toLowerCase(),
      text: own.trim().slice(0, 40),
      size: parseFloat(style.fontSize),
      contrast: (light[0] + 0.05) / (light[1] + 0.05),
    });
  }
  return found;
}
"""


@contextlib.contextmanager
def driver() -> Iterator[Any]:
    """Playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        yield play


def executable(play: Any) -> str:
    """The system's Chromium, else the one that `playwright install chromium` fetched; "" for neither."""
    own = play.chromium.executable_path
    return next(filter(None, map(shutil.which, BROWSERS)), own if pathlib.Path(own).is_file() else "")
