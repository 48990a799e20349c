"""Whole runs on tiny settings: what is written, what a second run does not do again, and what is refused."""

import csv
import json
import shutil
from dataclasses import replace

import pytest

from nettrim.errors import InputError
from nettrim.experiments import run as running
from nettrim.experiments.context import Table
from nettrim.experiments.run import reproduce
from nettrim.experiments.settings import read_settings
from nettrim.experiments.writing import shown

_TINY = {
    "recovery": {"features": 12, "supports": [1, 2], "samples": [6, 40, 90], "trials": 3},
    "pcn": {"samples": 80, "tests": 100, "hidden": [6], "sizes": [1, 3, 6], "training": {"epochs": 5, "batch": 20}},
    "mnist-table1": {
        "attempts": 2,
        "columns": {
            "NN2-10K": {
                "samples": 120, "hidden": [6], "discrepancy": {"a": 2.0, "b": 10.0},
                "training": {"epochs": 10, "batch": 30, "rate": 1e-2},
            },
        },
    },
    "mnist-small": {
        "samples": [60], "hidden": [[10, 10]], "tests": 100, "validation": 60, "epsilons": [0.2],
        "training": {"epochs": 30, "batch": 20, "rate": 2e-2},
    },
    "spirals": {
        "hidden": 5, "attempts": 1, "grid": 21, "epsilon": 0.2,
        "networks": {"plain": {"epochs": 60, "rate": 1e-2}, "dropout and l1": {"epochs": 60, "rate": 1e-2, "l1": 1e-2}},
    },
}  # fmt: skip


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Experiments with tiny settings, on data that need no files."""
    monkeypatch.setenv("NETTRIM_DATA", str(tmp_path / "none"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))

    def smaller(name):
        settings = read_settings(name)
        return replace(settings, quick={**settings.quick, **_TINY[name]})

    monkeypatch.setattr(running, "read_settings", smaller)


def test_recovery_writes_its_table_figure_and_facts(tiny, tmp_path):
    pytest.importorskip("matplotlib")
    said = []
    done = reproduce("recovery", tmp_path / "out", quick=True, say=said.append)
    with (tmp_path / "out" / "phase-transition.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 6
    assert {(row["s"], row["P"]): row["recovered"] for row in rows}["1", "90"] == "1.0"
    assert (tmp_path / "out" / "phase-transition.svg").read_text().startswith("<svg")
    facts = json.loads((tmp_path / "out" / "run.json").read_text())
    assert facts["command"] == "nettrim reproduce recovery --quick" and facts["options"]["trials"] == 3
    assert "about" in said[0] and "quick" in said[0]
    assert "quick version" in (tmp_path / "out" / "results.md").read_text()
    assert all(claim.holds for claim in done.findings.claims)


def test_a_second_run_makes_nothing_again_and_an_interrupted_one_goes_on(tiny, tmp_path):
    made: list[str] = []
    reproduce("recovery", tmp_path / "out", quick=True, only=["s=1"], say=made.append)
    first = [line for line in made if line.startswith("s=")]
    assert len(first) == 3 and all(line.startswith("s=1/") for line in first)
    made.clear()
    done = reproduce("recovery", tmp_path / "out", quick=True, say=made.append)
    assert [line.split(":")[0] for line in made if line.startswith("s=")] == ["s=2/P=6", "s=2/P=40", "s=2/P=90"]
    made.clear()
    again = reproduce("recovery", tmp_path / "out", quick=True, say=made.append)
    assert not [line for line in made if line.startswith("s=")]
    assert again.findings.tables == done.findings.tables


def test_other_settings_start_afresh(tiny, tmp_path, monkeypatch):
    reproduce("recovery", tmp_path / "out", quick=True, only=["s=1"])
    monkeypatch.setitem(_TINY, "recovery", {**_TINY["recovery"], "seed": 1})
    made: list[str] = []
    reproduce("recovery", tmp_path / "out", quick=True, only=["s=1"], say=made.append)
    assert len([line for line in made if line.startswith("s=1/")]) == 3


def test_clusters_keep_the_layers_epsilon(tiny, tmp_path):
    done = reproduce("pcn", tmp_path / "out", quick=True)
    (table,) = done.findings.tables
    assert len(table.rows) == 6
    kept = next(claim for claim in done.findings.claims if "keeps eps" in claim.text)
    assert kept.holds


@pytest.mark.slow
def test_table_one_has_the_papers_rows_and_ours_and_compares_nothing_of_another_size(tiny, tmp_path):
    done = reproduce("mnist-table1", tmp_path / "out", quick=True)
    titles = [row[0] for row in done.findings.tables[0].rows]
    assert titles[:7] == [
        "Init. Mod. Acc. (%)", "Total Pruning (%)", "NT Overall Disc. (%)", "NT No FT Acc. (%)",
        "HPTD No FT Acc. (%)", "NT + FT Acc. (%)", "HPTD + FT Acc. (%)",
    ]  # fmt: skip
    assert any("at the paper's pruning" in title for title in titles)
    assert any("equal discrepancy" in title for title in titles) and any("equal sparsity" in title for title in titles)
    assert {str(entry.verdict) for entry in done.compared} == {"not comparable", "not run"}
    assert "stand in" in (tmp_path / "out" / "results.md").read_text()


@pytest.mark.slow
def test_a_page_without_its_parts_goes_on_where_it_was(tiny, tmp_path):
    """From the numbers beside it, as in a clone: nothing is made again but the network that a new part needs."""
    out = tmp_path / "out"
    reproduce("mnist-table1", out, quick=True, only=["NN2-10K/0/a/NT"])
    page = (out / "results.md").read_text()
    shutil.rmtree(out / "parts")
    said: list[str] = []
    reproduce("mnist-table1", out, quick=True, only=["NN2-10K/0/a/NT"], say=said.append)
    assert len(said) == 2 and (out / "results.md").read_text() == page and not (out / "parts").exists()
    done = reproduce("mnist-table1", out, quick=True, only=["NN2-10K/0/b/NT"], say=said.append)
    made = [line.split(":")[0].strip() for line in said if " s  (" in line or "made again" in line]
    assert made == ["NN2-10K/0/trained", "NN2-10K/0/b/NT"]
    assert [table.header for table in done.findings.tables] == [("", "NN2-10K")] * 2
    assert not [note for note in done.findings.notes if "made again" in note]  # training is deterministic


@pytest.mark.slow
def test_small_samples_are_learned_as_they_are_and_standardised(tiny, tmp_path):
    pytest.importorskip("matplotlib")
    done = reproduce("mnist-small", tmp_path / "out", quick=True)
    (table,) = done.findings.tables
    rows = [dict(zip(table.header, row, strict=True)) for row in table.rows]
    assert {row["pixels"] for row in rows} == {"as they are", "standardised"}
    for pixels in ("as they are", "standardised"):
        before, after = [row for row in rows if row["pixels"] == pixels][:2]
        assert before["weights"] == "trained" and before["CA"] > 40  # chance: 10
        assert all(after[f"SR {layer}"] <= before[f"SR {layer}"] for layer in (1, 2, 3))
    texts = [claim.text for claim in done.findings.claims]
    assert any(text.startswith("60 samples: ") for text in texts)
    assert any(text.startswith("60 samples, standardised: ") for text in texts)


def test_the_first_layer_may_run_alone_and_is_told_so(tiny, tmp_path):
    pytest.importorskip("matplotlib")
    done = reproduce("mnist-small", tmp_path / "out", quick=True, only=["P=60/layer 1/0.2"])
    (table,) = done.findings.tables
    before, after = [dict(zip(table.header, row, strict=True)) for row in table.rows]
    assert after["weights"] == "the paper's method, layer 1 alone" and after["SR 1"] < before["SR 1"]
    assert after["epsilon by layer"] == "0.2"
    assert (after["SR 2"], after["SR 3"]) == (before["SR 2"], before["SR 3"])
    assert all("layer 1 trimmed" in claim.text for claim in done.findings.claims)


@pytest.mark.slow
def test_spirals_run_on_generated_points_and_draw_all_figures(tiny, tmp_path):
    pytest.importorskip("matplotlib")
    reproduce("spirals", tmp_path / "out", quick=True)
    figures = {path.stem for path in (tmp_path / "out").glob("*.svg")}
    assert {"classifier-plain", "adjacency-plain", "topology-plain", "last-layer-plain"} <= figures
    assert "generated" in (tmp_path / "out" / "results.md").read_text()


def test_what_cannot_be_run_is_said_in_one_sentence(tiny, tmp_path):
    with pytest.raises(InputError, match="Did you mean 'recovery'"):
        reproduce("recovry", tmp_path / "out")
    with pytest.raises(InputError, match="--only"):
        reproduce("recovery", tmp_path / "out", quick=True, only=["nothing"])
    (tmp_path / "file").write_text("")
    for place in ("file", "file/below"):
        with pytest.raises(InputError, match="a directory"):
            reproduce("recovery", tmp_path / place, quick=True)


def test_a_wrong_pattern_is_refused_beside_finished_parts_and_the_page_stays(tiny, tmp_path):
    reproduce("recovery", tmp_path / "out", quick=True, only=["s=1"])
    page = (tmp_path / "out" / "results.md").read_bytes()
    (tmp_path / "out" / "results.md").write_bytes(page + b"kept")
    for wrong in (["s=3"], ["s=1/P=6", "s=3"], ["s=1/P=7"]):
        with pytest.raises(InputError, match=r"`--only` should be patterns.*'s=[13]/?"):
            reproduce("recovery", tmp_path / "out", quick=True, only=wrong)
    assert (tmp_path / "out" / "results.md").read_bytes() == page + b"kept"
    reproduce("recovery", tmp_path / "out", quick=True, only=["s=1/P=6"])
    assert not (tmp_path / "out" / "results.md").read_bytes().endswith(b"kept")


def test_numbers_are_shown_with_four_digits_and_what_is_missing_as_a_dash():
    assert [shown(value) for value in (1.23456, 12345.6, 7, None, float("nan"), True, "x")] == [
        "1.235", "12346", "7", "–", "–", "yes", "x",
    ]  # fmt: skip
    assert Table("t", "T", ("a",), ((None,),)).rows == ((None,),)
