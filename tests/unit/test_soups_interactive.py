"""The interactive page as a browser lays it out: text that can be read on a telephone, labels that do not overlap.

Skipped where there is no Chromium.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from soups.figures import Inputs, draw
from soups.interactive import page
from soups.results import Result

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
# What the page looks like in a frame of the given width, as JSON in the title of the page around it: a window of
# Chromium itself cannot be as narrow as a telephone.
AROUND = """<!doctype html><title>0</title><iframe style="border: 0; width: {width}px; height: 3000px"></iframe>
<script type="text/plain">{page}</script>
<script>
const frame = document.querySelector("iframe");
frame.onload = () => {{
  const doc = frame.contentDocument, all = selector => [...doc.querySelectorAll(selector)];
  const box = node => {{
    const {{ left, top, width, height }} = node.getBoundingClientRect();
    const scale = node.ownerSVGElement ? node.ownerSVGElement.getScreenCTM().a : 1;
    const size = scale * parseFloat(frame.contentWindow.getComputedStyle(node).fontSize);
    return {{ text: node.textContent, named: node.classList.contains("name"), left, top, width, height, size }};
  }};
  const swatch = item => item.querySelector("svg") ? item.querySelector("svg").innerHTML : item.innerHTML;
  document.title = JSON.stringify({{
    texts: all(".panels svg text").map(box),
    panels: all(".panels > *").map(box),
    marks: all(".panels .point").map(box),
    legend: Object.fromEntries(all("ul.legend li").map(item => [item.textContent, swatch(item)])),
    overflow: doc.documentElement.scrollWidth - doc.documentElement.clientWidth,
  }});
}};
frame.srcdoc = document.querySelector("script").textContent.replaceAll("<\\\\/", "</");
</script>"""


def laid_out(figure, width, folder):
    """Return boxes of the texts, panels and marks of a page, and the swatches of its legend."""
    (folder / "around.html").write_text(AROUND.format(width=width, page=page(figure).replace("</", "<\\/")))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command += ["--virtual-time-budget=2000", "--dump-dom", (folder / "around.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode:
        pytest.skip("Chromium does not start here")
    found = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert found
    content = found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&nbsp;", " ").replace("&amp;", "&")
    return json.loads(content)


def sweep(num_points, bend=0.5):
    rows = []
    for share in np.linspace(0, 1, num_points).tolist():
        place = 0.5 + np.arctan(12 * (share - 0.5)) / np.arctan(6) / 2  # crowded at both ends
        means = {"detail": 1 - place, "brevity": place + bend * place * (1 - place)}
        scores = {metric: [mean - 0.01, mean, mean + 0.01] for metric, mean in means.items()}
        rows.append(Result(str(share), {"detail": 1 - share, "brevity": share}, means, 3, scores))
    return rows


FRONT = Inputs({"main": sweep(11)}, init={"detail": 0.48, "brevity": 0.5})


def overlap(a, b):
    wide = min(a["left"] + a["width"], b["left"] + b["width"]) - max(a["left"], b["left"])
    high = min(a["top"] + a["height"], b["top"] + b["height"]) - max(a["top"], b["top"])
    return wide > 1 and high > 3  # boxes of text are higher than what is drawn


@pytest.mark.parametrize("width", [375, 1200])
def test_text_can_be_read_and_labels_do_not_overlap(width, tmp_path):
    found = laid_out(draw("front", FRONT), width, tmp_path)
    assert min(text["size"] for text in found["texts"]) >= 11
    assert found["overflow"] == 0
    texts = found["texts"]
    assert {"detail", "brevity", "knee, 0.5", "init", "Detail", "Brevity"} <= {text["text"] for text in texts}
    assert not [(a["text"], b["text"]) for i, a in enumerate(texts) for b in texts[:i] if overlap(a, b)]
    assert all(text["left"] >= 0 and text["left"] + text["width"] <= width for text in texts)


@pytest.mark.parametrize(("width", "num_columns"), [(375, 1), (1240, 3)])
def test_panels_are_stacked_where_there_is_no_room_beside_each_other(width, num_columns, tmp_path):
    figure = draw("grid", Inputs({name: sweep(5) for name in "abcdef"}))
    found = laid_out(figure, width, tmp_path)
    assert len({round(panel["left"]) for panel in found["panels"]}) == num_columns
    assert min(panel["width"] for panel in found["panels"]) >= 220
    assert min(text["size"] for text in found["texts"]) >= 11
    assert found["overflow"] == 0


def test_a_spider_map_fits_on_a_telephone(tmp_path):
    metrics = {f"accuracy of boxes:number {i}": float(i) for i in range(5)}
    scores = {name: [value] for name, value in metrics.items()}
    figure = draw("spider", Inputs({"main": [Result(name, {name: 1.0}, metrics, 1, scores) for name in "ab"]}))
    found = laid_out(figure, 375, tmp_path)
    assert min(text["size"] for text in found["texts"]) >= 11
    panel = found["panels"][0]
    for text in found["texts"]:
        assert 0 <= text["left"] < text["left"] + text["width"] <= 375
        assert panel["top"] <= text["top"] < text["top"] + text["height"] <= panel["top"] + panel["height"]


def test_the_legend_shows_lines_and_markers(tmp_path):
    legend = laid_out(draw("front", FRONT), 1200, tmp_path)["legend"]
    line, init, knee = (legend[name] for name in ("straight line", "init", "knee"))
    assert "stroke-dasharray" in line
    assert "<path" not in line
    assert "<path" in init
    assert "<line" not in init
    assert 'fill="none"' in knee
    assert len(set(legend.values())) == len(legend)
