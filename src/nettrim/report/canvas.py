"""Matplotlib's place in the house: a blank figure in, a small theme-aware SVG out.

Needs the `report` extra. Colours are matched to CSS custom properties by their value, so that one
picture follows the page's light or dark mode; alone (in a notebook) it falls back to the light ones.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nettrim.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# what each colour says, in every figure: the light value; templates/style.css holds the dark one under the same name
PALETTE = {
    "ink": "#1f2933",
    "muted": "#5f6c7b",
    "grid": "#dfe4ea",
    "surface": "#ffffff",
    "track": "#eceff3",
    "dense": "#97a3b0",  # the original network
    "measured": "#2468b4",  # the trimmed network, what was measured
    "limit": "#d3721a",  # what was asked or what theory allows
    "bad": "#c22f3d",
    "series-2": "#8a4fb3",
    "series-3": "#1c8a76",
    "series-4": "#9c6b1f",
}
SERIES = ("measured", "series-2", "series-3", "series-4")

_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small, selectable, in the page's font
    "text.parse_math": False,  # a layer may be called $x$
    "font.size": 8.5,
    "axes.titlesize": 9.0,
    "axes.labelsize": 8.5,
    "axes.titlelocation": "left",
    "axes.titlecolor": PALETTE["ink"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": PALETTE["dense"],
    "axes.linewidth": 0.6,
    "axes.labelcolor": PALETTE["muted"],
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "text.color": PALETTE["ink"],
    "xtick.color": PALETTE["dense"],
    "ytick.color": PALETTE["dense"],
    "xtick.labelcolor": PALETTE["muted"],
    "ytick.labelcolor": PALETTE["muted"],
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 0.0,
    "ytick.minor.size": 0.0,
    "grid.color": PALETTE["grid"],
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "image.interpolation": "none",
    "svg.hashsalt": "nettrim",  # the same numbers give the same file
}


def draw(width: float, height: float, label: str, paint: Callable[[Figure], None]) -> str:
    """An SVG of width x height inches, painted by `paint`; `label` is its text for screen readers.

    Raises MissingExtraError without matplotlib. Never touches pyplot, and leaves matplotlib's settings as they were.
    """
    try:
        import matplotlib as mpl  # noqa: PLC0415
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise MissingExtraError((error.name or "matplotlib").partition(".")[0], "report") from error
    stream = io.StringIO()
    with warnings.catch_warnings(), mpl.rc_context():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the browser has other fonts
        mpl.rcdefaults()  # the user's style sheet is for the user's figures
        mpl.rcParams.update(_SETTINGS)
        figure = Figure(figsize=(width, height), layout="constrained")
        paint(figure)
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return _tidy(stream.getvalue(), label)


def _tidy(svg: str, label: str) -> str:
    """Strip what a page does not need, bind colours to the page's theme, and make ids unique."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<defs>\s*<style type="text/css">.*?</style>\s*</defs>', "", svg, flags=re.DOTALL)  # would leak out
    names = {value: name for name, value in PALETTE.items()}
    svg = re.sub(
        r"(fill|stroke): (#[0-9a-f]{6})",
        lambda hit: f"{hit[1]}: var(--nt-{names[hit[2]]}, {hit[2]})" if hit[2] in names else hit[0],
        svg,
    )
    svg = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 var(--nt-font, system-ui, sans-serif)", svg)
    svg = re.sub(r"data:image/png;base64,([A-Za-z0-9+/=\s]+)", lambda hit: _small_png(hit[1]), svg)
    used = set(re.findall(r"url\(#([^)]+)\)", svg)) | set(re.findall(r'href="#([^"]+)"', svg))
    prefix = "nt" + hashlib.sha256(svg.encode()).hexdigest()[:8]
    svg = re.sub(r' id="([^"]+)"', lambda hit: f' id="{prefix}{hit[1]}"' if hit[1] in used else "", svg)
    svg = svg.replace("url(#", f"url(#{prefix}").replace('href="#', f'href="#{prefix}')
    view = re.search(r'viewBox="0 0 ([0-9.]+) ([0-9.]+)"', svg)
    width = float(view[1]) if view else 0.0
    root = (
        f'<svg class="nt-figure" role="img" aria-label="{html.escape(label)}" '
        f'style="stroke-linejoin:round;stroke-linecap:butt;width:100%;height:auto;max-width:{1.5 * width:.0f}px" '
        f'viewBox="{view[0].split(chr(34))[1] if view else ""}" '
        'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    return root + re.sub(r">\s+<", "><", svg[svg.index(">") + 1 :]).strip()


def _small_png(encoded: str) -> str:
    """The same picture with a palette in place of four bytes a pixel, when 256 colours are enough."""
    import numpy as np  # noqa: PLC0415
    from PIL import Image  # noqa: PLC0415  (comes with matplotlib)

    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGBA"))
    words = np.ascontiguousarray(pixels).view(np.uint32).ravel()  # one number a colour
    colours, index = np.unique(words, return_inverse=True)
    if len(colours) > 256:
        return "data:image/png;base64," + re.sub(r"\s", "", encoded)
    image: Any = Image.fromarray(index.reshape(pixels.shape[:2]).astype(np.uint8), mode="P")
    image.putpalette(colours.tobytes(), rawmode="RGBA")
    buffer = io.BytesIO()
    image.save(buffer, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
