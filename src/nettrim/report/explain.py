"""The report in plain words: what happened, and what each certificate does and does not promise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nettrim.report import format as fmt
from nettrim.report import rows

if TYPE_CHECKING:
    from nettrim.report.report import Report


@dataclass(frozen=True)
class Promise:
    """One number of the report: what it means and what it does not."""

    term: str
    means: str
    not_means: str


PROMISES: tuple[Promise, ...] = (
    Promise(
        "Discrepancy ≤ epsilon",
        "Each trimmed layer had to answer as the original layer did, up to the distance epsilon. The discrepancy is"
        " how far the weights in the returned model really are, measured in double precision on the calibration "
        "data, relative to the size of the layer's original responses. A unit that was switched off only has to "
        "stay off.",
        "It says nothing about inputs unlike the calibration data, and a layer's distance is not a loss of accuracy.",
    ),
    Promise(
        "Optimality gap",
        "Each layer's weights come from a convex program that looks for the smallest penalty (the sum of absolute "
        "weights, unless another was chosen) within epsilon. A second, dual calculation proves that no weights do "
        "better than a certain bound. The gap is the room left between the two: at 1e-05 the program is solved to a"
        " hundred-thousandth, and anyone can recheck it without trusting the solver.",
        "The penalty stands in for the number of weights. A gap of zero does not prove that no sparser layer "
        "exists, and it speaks of the first stage, which selects the weights, not of the refit after it.",
    ),
    Promise(
        "Refit",
        "When it is on, a second stage keeps the zeros where they are and moves the remaining weights to bring the "
        "layer closer to its original responses. It can only lower a layer's own distance, never raise it, so a "
        "tolerance that was kept before it is kept after it.",
        "It is fitted to the calibration data. Being closer there does not guarantee better accuracy elsewhere, and"
        " the penalty of refitted weights may be larger than the gap suggests.",
    ),
    Promise(
        "Network bound",
        "A theorem combines the layers' tolerances into a limit for the whole network's output on the calibration "
        "data. The measured discrepancy stands beside it and has to stay below it.",
        "It is a worst case, often far above what is measured, and it covers the calibration data only. The held-"
        "out figure is a measurement on data the trim never used; no theorem covers it. Where the network's "
        "structure is outside the theorems there is no bound, and the report says why.",
    ),
    Promise(
        "Certified",
        "“yes” means both were checked for this layer: the weights keep within epsilon, and the optimality gap is "
        "within the tolerance that was asked for.",
        "“no” does not mean the layer is broken: compare its discrepancy with its epsilon. A skipped layer was left"
        " exactly as it was, so there is nothing to certify.",
    ),
    Promise(
        "Sparsity",
        "The fraction of zeros among the weights of all layers, skipped ones included. Biases are not counted.",
        "Zeros alone do not make a network faster. Only units that lost all their weights can be cut out; what that"
        " brings is in the table of true gains, where one was measured.",
    ),
)


def summary(report: Report) -> str:
    """A few sentences for someone who has never seen such a report."""
    if not report.trimmed:
        return (
            "No layer was trimmed: every layer was skipped, for the reasons given in the table, "
            "so the network is as it was."
        )
    network = report.network
    removed = report.nonzeros_before - report.nonzeros_after
    sentences = [
        f"{fmt.count(removed)} of the network's {fmt.count(report.nonzeros_before)} weights were set to zero, "
        f"so {fmt.percent(report.sparsity)} of all its weights are zero now."
    ]
    moved = f"Its output moved by {fmt.percent(network.discrepancy)} of its size on the calibration data"
    if network.discrepancy_holdout is not None:
        moved += f" and by {fmt.percent(network.discrepancy_holdout)} on data the trim never used"
    if network.bound is not None:
        moved += f"; theory allows at most {fmt.percent(network.bound)} on the calibration data"
    sentences.append(moved + ".")
    return " ".join([*sentences, _certified(report)])


def _certified(report: Report) -> str:
    breached = [fmt.clean(layer.name) for layer in report.trimmed if rows.exceeds(layer)]
    if breached:
        return f"Measured beyond the tolerance asked: {', '.join(breached)}. Do not rely on this trim."
    certified, total = sum(layer.certified for layer in report.trimmed), len(report.trimmed)
    if certified == total:
        layers = "The one trimmed layer carries" if total == 1 else f"All {total} trimmed layers carry"
        return f"{layers} a certificate that can be checked without trusting the solver."
    return f"{certified} of {total} trimmed layers carry a full certificate."
