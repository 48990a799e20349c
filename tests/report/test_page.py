"""The HTML page: self-contained, escaped, whole or not written, and complete with little as with much."""

from __future__ import annotations

import os
import re
import stat
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from nettrim.errors import InputError, MissingExtraError
from nettrim.report import Report, Section, page, render_page
from nettrim.report.explain import summary
from nettrim.report.gain import gain_table
from nettrim.report.page import page_html

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
VOID = {"meta", "link", "br", "img", "hr"}


class Outline(HTMLParser):
    """Reads a page, insisting that every element is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []
        self.addresses: list[str] = []  # everything a browser would follow or fetch
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("href", "src", "xlink:href", "srcset", "action"):
                self.addresses.append(value or "")
            self.addresses += re.findall(r"url\(([^)]*)\)", value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_everything_is_on_the_page(full: Report, tmp_path: Path) -> None:
    path = full.to_html(tmp_path / "report.html", title="Digits & more")
    assert path == tmp_path / "report.html"
    html = path.read_text("utf-8")
    outline = Outline(html)
    text = " ".join(outline.text)
    for expected in (
        "Digits & more", "Scheme: parallel", "96.3 %", "8.1e-06", "Theorem 1", "bytes on disk", "2.83 × smaller",
        "1.41 × faster", "\u22120.61 points", "1 sample was a duplicate <i>", "gamma", "Refit", "Network bound",
        "its input is shared by two layers", "Latency: median of 50 runs",
    ):  # fmt: skip
        assert expected in text, expected
    assert outline.tags.count("svg") == 4 + 2 * 4
    assert html.count("data:image/png;base64,") == 2 * 4


def test_names_cannot_break_out_and_nothing_is_fetched(full: Report) -> None:
    html = page_html("<script>1</script>", [Section('"><img src=x onerror=1>', full, "<b>bold</b>")])
    outline = Outline(html)
    assert not {"script", "img", "b", "i"} & set(outline.tags)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    check_self_contained(html)


def check_self_contained(html: str) -> None:
    outline = Outline(html)
    assert outline.addresses and all(address.startswith(("#", "data:")) for address in outline.addresses)
    assert "default-src 'none'" in html and "@import" not in html


def test_two_sections_share_a_summary_and_one_trade_off(full: Report, tmp_path: Path) -> None:
    cascade = replace(full, result=replace(full.result, scheme="cascade"))
    path = render_page("Both", [Section("Parallel", full, "One.\n\nTwo."), Section("Cascade", cascade)], tmp_path / "p")
    html = path.read_text("utf-8")
    outline = Outline(html)
    assert "At a glance" in html and html.count("The trade-off") == 1
    assert outline.tags.count("svg") == 1 + 2 * (3 + 2 * 4)
    assert "<p>One.</p>" in html and "<p>Two.</p>" in html
    assert 'href="#part-2"' in html and 'id="part-2"' in html


def test_little_is_enough(
    report: Callable[..., Report], layer: Callable[..., Any], skipped: Callable[..., Any]
) -> None:
    no_bound = {"bound": None, "bound_reason": "layers are joined by a sum", "discrepancy_holdout": None}
    dead = layer("dead", (5, 7), weight_after=torch.zeros(5, 7), nonzeros_after=0, discrepancy=0.0, neurons={"dead": 5})
    cases = {
        "one layer": report(layer()),
        "all skipped": report(skipped("a"), skipped("b"), network={"discrepancy": 0.0}),
        "no holdout, no bound": report(layer(), network=no_bound),
        "dead": report(dead),
        "one weight": report(layer("w", (1, 1), sparsity=0.0)),
        "no layers": report(),
        "not finite": report(layer(gap=float("nan")), network={"discrepancy": float("nan"), "bound": float("inf")}),
        "double": report(layer(weight_before=torch.ones(2, 2).double(), weight_after=torch.eye(2).bfloat16())),
    }
    pages = {name: page_html(name, [Section("s", case)]) for name, case in cases.items()}
    for html in pages.values():
        Outline(html)
        assert re.findall(r">\s*(nan|inf|None)\s*<", html) == []
    assert "layers are joined by a sum" in pages["no holdout, no bound"]
    assert "No held-out data was given." in pages["no holdout, no bound"]
    assert "No layer was trimmed" in pages["all skipped"]
    assert "0 of 7 inputs still read" in pages["dead"] and "0 of 5 neurons still fed" in pages["dead"]
    assert "True gain" not in pages["one layer"] and "Recipe used" not in pages["one layer"]
    assert "The trade-off" not in pages["one layer"]


def test_a_report_read_back_still_makes_a_page(full: Report) -> None:
    html = page_html("t", [Section("s", Report.from_dict(full.to_dict()))])
    assert Outline(html).tags.count("svg") == 4
    assert "the weights cannot be drawn" in html


def test_five_large_layers_stay_small_and_quick(
    report: Callable[..., Report], layer: Callable[..., Any], tmp_path: Path
) -> None:
    large = layer("large", (1000, 4000), 0.93)
    layers = [replace(large, name=f"layer {index}") for index in range(5)]
    started = time.process_time()
    path = report(*layers).to_html(tmp_path / "r.html")
    assert time.process_time() - started < 15.0
    assert path.stat().st_size < 3_000_000


def test_of_many_layers_the_largest_are_drawn(
    report: Callable[..., Report], layer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = [layer(f"l{index}", (4, 4 + index), 0.5) for index in range(5)]
    monkeypatch.setattr(page, "MATRICES", 3)
    html = page_html("t", [Section("s", report(*layers))])
    assert re.findall(r"<h4>(\w+)", html) == ["l2", "l3", "l4"] and "2 smaller layers are not drawn" in html


def test_a_file_is_written_whole_or_not_at_all(small: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "report.html"
    target.write_text("before")

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(InputError, match=r"`path` should be a file that can be written\. Got .*No space left"):
        small.to_html(target)
    assert target.read_text() == "before"
    assert list(tmp_path.iterdir()) == [target]


def test_a_directory_that_is_not_there_is_one_sentence(small: Report, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`path` should be a file that can be written. Got '.*nowhere/r.html'"):
        small.to_html(tmp_path / "nowhere" / "r.html")
    with pytest.raises(InputError, match="should be a file"):
        small.to_html(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_written_file_has_the_users_permissions(small: Report, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    path = small.to_html(tmp_path / "r.html")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_the_same_report_gives_the_same_page(report: Callable[..., Report], layer: Callable[..., Any]) -> None:
    section = Section("s", report(layer()))
    assert page_html("t", [section]) == page_html("t", [section])


def test_a_page_needs_a_section(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`sections` should be at least one Section. Got none."):
        render_page("t", [], tmp_path / "r.html")


def test_without_jinja_the_extra_is_named(small: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r"`jinja2` should be installed.*nettrim\[report\]"):
        small.to_html(tmp_path / "r.html")
    assert list(tmp_path.iterdir()) == []


def test_the_summary_says_how_far_to_trust(report: Callable[..., Report], layer: Callable[..., Any]) -> None:
    assert "All 2 trimmed layers carry a certificate" in summary(report(layer("a"), layer("b")))
    assert "1 of 2 trimmed layers" in summary(report(layer("a"), layer("b", certified=False)))
    assert "beyond the tolerance asked: b." in summary(report(layer("a"), layer("b", discrepancy=0.06)))


def test_a_package_that_another_one_lacks_is_named(
    small: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """matplotlib is there and cannot be imported, because something below it is not."""

    class Lacking:
        @staticmethod
        def find_spec(name: str, *_: object) -> None:
            if name == "matplotlib.figure":
                raise ModuleNotFoundError("No module named 'PIL'", name="PIL")

    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Lacking, *sys.meta_path])
    with pytest.raises(MissingExtraError, match=r"`PIL` should be installed"):
        small.to_html(tmp_path / "r.html")


@pytest.mark.parametrize("shape", [(0, 6), (6, 0), (0, 0), (0, 3, 3, 3)])
def test_a_layer_without_weights(
    report: Callable[..., Report], layer: Callable[..., Any], tmp_path: Path, shape: tuple[int, ...]
) -> None:
    weight = torch.zeros(shape)
    empty = replace(layer("empty"), shape=shape, weight_before=weight, weight_after=weight, nonzeros_after=0)
    page = report(layer("full"), empty).to_html(tmp_path / "r.html").read_text(encoding="utf-8")
    assert "empty" in Outline(page).text and " × ".join(map(str, shape)) in page


def test_gains_tell_losses_too() -> None:
    table = gain_table({"latency": {"dense": 1.0, "shrunk": 2.0}, "extra": {"dense": 3.0}, "bytes": {"dense": 0}})
    assert table is not None
    assert table.stages == ("dense", "shrunk")
    assert [(row[0], row[2]) for row in table.rows] == [
        ("bytes on disk", "–"),
        ("latency", "2.00 × slower"),
        ("extra", "–"),
    ]
    fast = {"latency": {"dense": 1.05, "shrunk": 1.0}, "verdicts": {"latency": {"shrunk": "no gain"}}}
    table = gain_table(fast)
    assert table is not None and [(row[0], row[2]) for row in table.rows] == [("latency", "no gain")]
    for odd in (3, {"latency": 3}, {"latency": {"shrunk": None}}, {"bytes": {"shrunk": "no gain"}}):
        table = gain_table({**fast, "verdicts": odd})
        assert table is not None and table.rows[0][2] == "1.05 × faster", "reports of earlier versions"
    assert gain_table(None) is None and gain_table({"note": "nothing measured"}) is None
