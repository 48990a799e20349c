"""Each figure is well-formed SVG that carries what it was given, and nothing of matplotlib's global state changes."""

from __future__ import annotations

import base64
import io
import re
import sys
import time
import xml.etree.ElementTree as ET
from importlib import resources

import numpy as np
import pytest

from nettrim.errors import MissingExtraError
from nettrim.report import canvas, ink, plots

matplotlib = pytest.importorskip("matplotlib")
SVG = "{http://www.w3.org/2000/svg}"
XLINK = "{http://www.w3.org/1999/xlink}href"


def texts(svg: str) -> list[str]:
    return ["".join(node.itertext()).strip() for node in ET.fromstring(svg).iter(f"{SVG}text")]


def pictures(svg: str) -> list[np.ndarray]:
    image = pytest.importorskip("PIL.Image")
    nodes = ET.fromstring(svg).iter(f"{SVG}image")
    codes = [node.attrib[XLINK].removeprefix("data:image/png;base64,") for node in nodes]
    return [np.asarray(image.open(io.BytesIO(base64.b64decode(code))).convert("RGBA")) for code in codes]


def test_adjacency_shows_zeros_as_nothing_and_weights_by_sign() -> None:
    before = np.array([[1.0, -2.0, 0.5], [0.3, 1.0, -1.0]])
    after = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
    svg = plots.adjacency(before, after)
    first, second = pictures(svg)
    assert (first[..., 3] > 0).all()
    assert ((second[..., 3] > 0) == (after != 0)).all()
    assert tuple(second[0, 0, :3]) == ink.POSITIVE and tuple(second[1, 2, :3]) == ink.NEGATIVE
    assert "before: 6 weights" in texts(svg) and "after: 2 weights (33.3 % of entries)" in texts(svg)


def test_ink_is_averaged_over_large_matrices() -> None:
    weight = np.zeros((640, 1280))
    weight[:, :640] = 1.0
    image = ink.weight_image(weight, 1.0, pixels=320)
    assert image.shape == (320, 320, 4)
    assert (image[:, :160, 3] == 255).all() and (image[:, 160:, 3] == 0).all()
    sparse, full = np.zeros((640, 640)), np.ones((640, 640))
    sparse[::2, ::2] = 1.0  # one weight in every block of four
    faint, strong = (ink.weight_image(matrix, 1.0)[..., 3].mean() for matrix in (sparse, full))
    assert 0 < faint < strong


@pytest.mark.parametrize("weight", [np.zeros((3, 4)), np.ones((1, 1)), np.full((2, 2), 1e-30)])
def test_degenerate_matrices_draw(weight: np.ndarray) -> None:
    ET.fromstring(plots.adjacency(weight, np.zeros_like(weight)))
    ET.fromstring(plots.histogram(weight, np.zeros_like(weight)))


def test_a_huge_layer_is_quick_and_small() -> None:
    before = np.random.default_rng(0).standard_normal((1000, 4000))
    after = np.where(np.abs(before) > 1.6, before, 0)
    started = time.process_time()
    size = len(plots.adjacency(before, after)) + len(plots.histogram(before, after))
    assert time.process_time() - started < 3.0
    assert size < 600_000


def test_names_are_text_whatever_they_hold() -> None:
    names = ["<script>alert(1)</script>", "$\\frac{$", "a & b", "\u6f22\u5b57", "nul\x00"]
    svg = plots.sparsity_bars(names, [0.1, 0.9, 0.5, 1.0, 0.0], [False, False, False, False, True])
    assert "<script" not in svg
    shown = texts(svg)
    assert {"<script>alert(1)</script>", "$\\frac{$", "a & b", "nul\ufffd", "0 % (skipped)"} <= set(shown)


def test_tolerances_mark_a_breach_and_a_skipped_layer() -> None:
    svg = plots.tolerance_dots(["a", "b", "c"], [0.05, 0.05, None], [0.02, 0.06, None], [0.05, 0.05, None])
    assert {"skipped", "epsilon asked", "reached", "before refit"} <= set(texts(svg))
    assert "--nt-bad" in svg
    assert "--nt-bad" not in plots.tolerance_dots(["a"], [0.05], [0.05])


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ((0.152, 0.0213, 0.0254), {"0.152", "0.0213", "0.0254"}),
        ((None, 0.0213, None), {"0.0213"}),
        ((5e4, 1e-6, float("nan")), {"5.0e+04", "1.0e-06"}),
        ((0.0, 0.0, 0.0), {"0"}),
        ((None, None, None), set()),
    ],
)
def test_the_network_figure_shows_what_is_known(values: tuple[float | None, ...], shown: set[str]) -> None:
    assert shown <= set(texts(plots.network_dots(*values)))


def test_the_trade_off_has_a_line_a_scheme_and_a_panel_a_measure() -> None:
    points = [
        {"sparsity": s, "discrepancy": s / 10, "accuracy": 1 - s / 9, "scheme": scheme, "epsilon": s / 5}
        for scheme in ("parallel", "cascade")
        for s in (0.9, 0.5)
    ]
    svg = plots.tradeoff_curve(points, [{"sparsity": 0.7, "discrepancy": 0.05}], dense_accuracy=0.99)
    assert {"parallel", "cascade", "discrepancy", "accuracy", "original network", "ε 0.18"} <= set(texts(svg))
    bare = plots.tradeoff_curve([{"sparsity": 0.5, "discrepancy": 0.1}, {"sparsity": None, "discrepancy": 1}])
    assert "accuracy" not in texts(bare)
    ET.fromstring(plots.tradeoff_curve([]))


def test_figures_are_deterministic_and_leave_matplotlib_as_it_was() -> None:
    with matplotlib.rc_context({"font.size": 31.0, "axes.facecolor": "red"}):
        settings = dict(matplotlib.rcParams)
        first = plots.network_dots(0.1, 0.01)
        assert dict(matplotlib.rcParams) == settings
    assert first == plots.network_dots(0.1, 0.01)


def test_figures_use_the_themes_colours_and_no_address() -> None:
    svg = plots.network_dots(0.1, 0.01, 0.02)
    assert "var(--nt-measured, #2468b4)" in svg and "var(--nt-limit" in svg
    assert not set(re.findall(r"https?://[^\"]+", svg)) - {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    left = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", svg))
    assert left <= {"#000000"}  # markers' definitions, drawn over by their uses
    used = set(re.findall(r"url\(#([^)]+)\)", svg)) | set(re.findall(r'href="#([^"]+)"', svg))
    assert used == set(re.findall(r' id="([^"]+)"', svg))


def test_the_style_sheet_holds_every_colour_twice() -> None:
    sheet = (resources.files("nettrim.report") / "templates" / "style.css").read_text("utf-8")
    light, dark = sheet.split("@media (prefers-color-scheme: dark)")[:2]
    for name, value in canvas.PALETTE.items():
        assert f"--nt-{name}: {value};" in light
        assert f"--nt-{name}: #" in dark


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"`matplotlib` should be installed.*nettrim\[report\]"):
        plots.network_dots(0.1, 0.01)
