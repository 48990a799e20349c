"""N and A Theorem 3: a sparse neuron is recovered exactly from Gaussian samples; the phase transition over (s, P)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from nettrim.certificates.recovery import dual_certificate, recovery_probability, samples_for_recovery
from nettrim.experiments import figures
from nettrim.experiments.checkpoints import Cell
from nettrim.experiments.context import Context, Findings, Source, Table, mean
from nettrim.experiments.verdicts import Claim
from nettrim.programs import Program
from nettrim.solvers.lp import find_dual_certificate, solve_lp

_EXACT = 1e-6  # relative error under which a neuron counts as recovered
_PAPERS = {"N": "(11 s + 7) log N", "A": "(6 s + 1) log N"}  # mu = 1, where the theorems begin to promise anything


def data_source(options: Mapping[str, Any]) -> Source:
    """The data that these options ask for, and whether it is the papers\' own."""
    return Source(f"standard Gaussian samples of {options['features']} features")


def run(context: Context) -> Findings:
    """Recovery by the linear program (N eq. 8) and dual certificates, on a grid of supports and sample counts."""
    options = context.options
    features, supports, counts = options["features"], options["supports"], options["samples"]
    cells = {(s, p): context.maybe(f"s={s}/P={p}", partial(_trials, options, s, p)) for s in supports for p in counts}
    done = {place: cell.numbers for place, cell in cells.items() if cell is not None}
    rows = tuple(
        (s, p, got["recovered"], got["certified"], got["least norm"], recovery_probability(s, features, p, "N"),
         recovery_probability(s, features, p, "A"))
        for (s, p), got in done.items()
    )  # fmt: skip
    header = ("s", "P", "recovered", "dual certificate found (LP)", "least-norm certificate (the proof's)",
              "promised by N thm. 3", "promised by A thm. 3")  # fmt: skip
    table = Table("phase-transition", "Share of neurons recovered exactly", header, rows)
    tables = [table, _halfway(options, done)]
    claims = _claims(options, done)
    if len(done) < len(cells):
        return Findings(tuple(tables), {}, tuple(claims))
    rates = [[done[s, p]["recovered"] for s in supports] for p in counts]
    lines = {
        f"{formula}, {paper}": [samples_for_recovery(s, features, 1 + 1e-9, paper) for s in supports]
        for paper, formula in _PAPERS.items()
    }
    paint = partial(figures.heat, rates, supports, counts, lines)
    return Findings(tuple(tables), {}, tuple(claims), {"phase-transition": paint})


def _trials(options: Mapping[str, Any], support: int, samples: int) -> Cell:
    """Neurons with random supports and Gaussian weights: recovered, certified by an LP, certified as the proof does."""
    features, trials = options["features"], options["trials"]
    generator = torch.Generator().manual_seed(options["seed"] * 1_000_003 + 1009 * support + samples)
    recovered, certified, simple, agree = [], [], [], []
    for _ in range(trials):
        inputs = torch.randn(samples, features, generator=generator, dtype=torch.float64)
        weight = torch.zeros(features, dtype=torch.float64)
        chosen = torch.randperm(features, generator=generator)[:support]
        weight[chosen] = torch.randn(support, generator=generator, dtype=torch.float64)
        responses = (inputs @ weight).clamp(min=0)[:, None]
        answer = solve_lp(Program.relu(inputs, responses, 0.0, "strict"))
        exact = float((answer.weight[0] - weight).norm() / weight.norm()) <= _EXACT
        proved = find_dual_certificate(inputs, weight).holds
        recovered.append(float(exact))
        certified.append(float(proved))
        simple.append(float(dual_certificate(inputs, weight).holds))
        agree.append(float(exact or not proved))
    return Cell({
        "recovered": mean(recovered), "certified": mean(certified), "least norm": mean(simple), "agree": mean(agree),
    })  # fmt: skip


def _halfway(options: Mapping[str, Any], done: Mapping[tuple[int, int], Mapping[str, Any]]) -> Table:
    """Where recovery begins to be the rule, against the theorems' sample counts."""
    features, rows = options["features"], []
    for s in options["supports"]:
        rates = sorted((p, got["recovered"]) for (support, p), got in done.items() if support == s)
        half = next((p for p, rate in rates if rate >= 0.5), None)
        sure = next((p for place, (p, _) in enumerate(rates) if all(rate == 1.0 for _, rate in rates[place:])), None)
        theorem = [samples_for_recovery(s, features, 1 + 1e-9, paper) for paper in _PAPERS]
        ratio = sure / (s * math.log(features)) if sure else None
        rows.append((s, half, sure, ratio, *theorem, theorem[0] / sure if sure else None))
    header = ("s", "P where half are recovered", "P from where all are", "that over s log N",
              "(11 s + 7) log N (N)", "(6 s + 1) log N (A)", "N's count over what was needed")  # fmt: skip
    return Table("samples-needed", "Samples needed", header, tuple(rows))


def _claims(options: Mapping[str, Any], done: Mapping[tuple[int, int], Mapping[str, Any]]) -> list[Claim]:
    features, claims = options["features"], []
    for paper in _PAPERS:
        promised = {place: recovery_probability(place[0], features, place[1], paper) for place in done}
        kept = {place: done[place]["recovered"] for place, chance in promised.items() if chance > 0}
        spread = {place: 3 * math.sqrt(promised[place] * (1 - promised[place]) / options["trials"]) for place in kept}
        holds = bool(kept) and all(rate >= promised[place] - spread[place] for place, rate in kept.items())
        least = min(kept.values(), default=math.nan)
        told = f"{len(kept)} of {len(done)} settings are in its reach; the least share recovered there is {least:.3f}"
        count = _PAPERS[paper].replace("log N", "mu log N")
        text = f"P = {count} samples recover w* with probability over 1 - N^(1 - mu)."
        claims.append(Claim(text, f"{paper} thm. 3", holds, told + "."))
    trials = sum(options["trials"] for _ in done)
    agree = mean([got["agree"] for got in done.values()])
    claims.append(
        Claim(
            "Where a dual certificate exists, w* is the program's only solution.", "N prop. 2, A prop. 3", agree == 1.0,
            f"in {100 * agree:g} % of {trials} trials a certified w* was the one found",
        )
    )  # fmt: skip
    return claims
