"""N table 1: six networks on MNIST, trimmed at small and at large epsilon, beside HPTD; fine-tuning after either."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from nettrim.experiments.checkpoints import Cell, of_state
from nettrim.experiments.context import Context, Findings, Source, Table, mean
from nettrim.experiments.image_nets import tested, trained
from nettrim.experiments.mnist import Images, load_images
from nettrim.experiments.pruning import OURS, PAPER, Pruned, discrepancy, prune, seek, supports, truncated
from nettrim.experiments.settings import read_settings
from nettrim.experiments.training import Training, train
from nettrim.experiments.verdicts import Claim

PANELS = ("a", "b")  # smaller and larger epsilon
CASCADE = "ours C"
# the paper's method at the paper's discrepancy, and at its pruning; ours at NT's discrepancy, at its sparsity, and at
# the paper's pruning; ours in cascade, as sparse as either
METHODS = ("NT", "NT P", "ours D", "ours S", "ours P", CASCADE)
TRIMMED = "trimmed."
_ROWS = (  # as in the paper
    ("Init. Mod. Acc. (%)", "initial accuracy"),
    ("Total Pruning (%)", "pruning"),
    ("NT Overall Disc. (%)", "discrepancy"),
    ("NT No FT Acc. (%)", "accuracy"),
    ("HPTD No FT Acc. (%)", "HPTD accuracy"),
    ("NT + FT Acc. (%)", "tuned accuracy"),
    ("HPTD + FT Acc. (%)", "HPTD tuned accuracy"),
)
_MORE = (
    ("at the paper's pruning: pruning (%)", "NT P", "pruning"),
    ("at the paper's pruning: discrepancy (%)", "NT P", "discrepancy"),
    ("at the paper's pruning: NT No FT Acc. (%)", "NT P", "accuracy"),
    ("at the paper's pruning: HPTD No FT Acc. (%)", "NT P", "HPTD accuracy"),
    ("at the paper's pruning: NT + FT Acc. (%)", "NT P", "tuned accuracy"),
    ("at the paper's pruning: HPTD + FT Acc. (%)", "NT P", "HPTD tuned accuracy"),
    ("at the paper's pruning: epsilon", "NT P", "epsilon"),
    ("our default, equal discrepancy: pruning (%)", "ours D", "pruning"),
    ("our default, equal discrepancy: discrepancy (%)", "ours D", "discrepancy"),
    ("our default, equal discrepancy: accuracy (%)", "ours D", "accuracy"),
    ("our default, equal discrepancy, + FT: accuracy (%)", "ours D", "tuned accuracy"),
    ("our default, equal discrepancy: HPTD No FT Acc. (%)", "ours D", "HPTD accuracy"),
    ("our default, equal discrepancy: HPTD + FT Acc. (%)", "ours D", "HPTD tuned accuracy"),
    ("our default, equal discrepancy: epsilon", "ours D", "epsilon"),
    ("our default, equal sparsity: pruning (%)", "ours S", "pruning"),
    ("our default, equal sparsity: discrepancy (%)", "ours S", "discrepancy"),
    ("our default, equal sparsity: accuracy (%)", "ours S", "accuracy"),
    ("our default, equal sparsity, + FT: accuracy (%)", "ours S", "tuned accuracy"),
    ("our default, equal sparsity: HPTD No FT Acc. (%)", "ours S", "HPTD accuracy"),
    ("our default, equal sparsity: HPTD + FT Acc. (%)", "ours S", "HPTD tuned accuracy"),
    ("our default, the paper's pruning: pruning (%)", "ours P", "pruning"),
    ("our default, the paper's pruning: discrepancy (%)", "ours P", "discrepancy"),
    ("our default, the paper's pruning: accuracy (%)", "ours P", "accuracy"),
    ("our default, the paper's pruning, + FT: accuracy (%)", "ours P", "tuned accuracy"),
    ("our default, the paper's pruning: HPTD No FT Acc. (%)", "ours P", "HPTD accuracy"),
    ("our default, the paper's pruning: HPTD + FT Acc. (%)", "ours P", "HPTD tuned accuracy"),
    ("our default, the paper's pruning: epsilon", "ours P", "epsilon"),
    ("our default in cascade: Init. Mod. Acc. (%)", CASCADE, "dense accuracy"),
    ("our default in cascade: pruning (%)", CASCADE, "pruning"),
    ("our default in cascade: discrepancy (%)", CASCADE, "discrepancy"),
    ("our default in cascade: accuracy (%)", CASCADE, "accuracy"),
    ("our default in cascade, + FT: accuracy (%)", CASCADE, "tuned accuracy"),
    ("our default in cascade: HPTD No FT Acc. (%)", CASCADE, "HPTD accuracy"),
    ("our default in cascade: HPTD + FT Acc. (%)", CASCADE, "HPTD tuned accuracy"),
    ("our default in cascade: epsilon", CASCADE, "epsilon"),
)
_SEEDS = {
    "seeds": "NT",
    "seeds at the paper's pruning": "NT P",
    "seeds of our default, the paper's pruning": "ours P",
    "seeds of our default in cascade": CASCADE,
}
_EQUAL = {"equal discrepancy": "ours D", "equal sparsity": "ours S"}
_WHOSE = (
    ("our networks are", ("NT", "NT P")),
    ("by our default, they are", ("ours S", "ours P")),
    ("by our default in cascade, they are", (CASCADE,)),
)
Column = Mapping[str, Any]
Network = Callable[[], nn.Module]  # trained when it is first asked for
Found = dict[tuple[str, str, str], dict[str, float]]  # (column, panel, method) -> means over the seeds
Paper = Mapping[str, float]  # N's numbers by their keys, such as "NN2-10K/a: Total Pruning (%)"


def data_source(options: Mapping[str, Any]) -> Source:
    """The data that these options ask for, and whether it is the papers\' own."""
    return load_images(options["stand_in"]).source


def run(context: Context) -> Findings:
    """Column by column, seed by seed; epsilon is searched for on the first seed and kept for the others."""
    options = context.options
    images = load_images(options["stand_in"])
    found: Found = {}
    for name, column in options["columns"].items():
        if not context.wanted(name) and context.checkpoints.read(f"{name}/0/trained") is None:
            continue
        data = images.first(column["samples"])
        runs: dict[tuple[str, str], list[Mapping[str, Any]]] = {}  # (panel, method) -> what each seed came to
        for seed in range(options["seeds"]):
            if not context.wanted(f"{name}/{seed}") and context.checkpoints.read(f"{name}/{seed}/trained") is None:
                continue
            dense, cell = trained(context, data, column["hidden"], column["training"], seed, f"{name}/{seed}")
            for panel in PANELS:
                beside: dict[str, Any] = {"initial accuracy": cell.numbers["accuracy"]}
                for method in METHODS:
                    part = trim_column(context, data, dense, name, panel, seed, method)
                    if part is not None:
                        runs.setdefault((panel, method), []).append({**beside, **part.numbers})
                        if method == "NT":  # ours, which may have fewer seeds, is compared with the same ones
                            beside |= {f"NT {key}": part.numbers[key] for key in ("accuracy", "pruning")}
        for (panel, method), made in runs.items():
            found[name, panel, method] = _means(made, options["trapped"])
    tables = tuple(_table(panel, options["columns"], found) for panel in PANELS)
    numbers = {
        f"{column}/{panel}: {title}": found[column, panel, "NT"][key]
        for column in options["columns"] for panel in PANELS if (column, panel, "NT") in found for title, key in _ROWS
    }  # fmt: skip
    claims = _claims(found, sum(name == _network(name) for name in options["columns"]))
    return Findings(tables, numbers, claims if context.quick else (*claims, *at_their_pruning(found, _paper())))


def _paper() -> Paper:
    return {expected.key: expected.value for expected in read_settings("mnist-table1").expected}


def _means(made: Sequence[Mapping[str, Any]], trapped: float) -> dict[str, float]:
    """Means over the seeds, how many there are, and the share of them in which fine-tuned HPTD is trapped."""
    keys = [key for key, value in made[0].items() if isinstance(value, int | float) and all(key in run for run in made)]
    numbers = {key: mean([run[key] for run in made]) for key in keys}
    losses = [run["initial accuracy"] - run["HPTD tuned accuracy"] for run in made if "HPTD tuned accuracy" in run]
    share = mean([float(loss > trapped) for loss in losses]) if losses else 0.0
    return {**numbers, "trapped": share, "seeds": len(made)}


def trim_column(
    context: Context, data: Images, dense: Network, name: str, panel: str, seed: int, method: str
) -> Cell | None:
    """One trimmed network by one of METHODS; none at the paper's pruning where NT prunes as much already."""
    key = f"{name}/{seed}/{panel}/{method}"
    first = context.checkpoints.read(f"{name}/0/{panel}/NT")
    if method.endswith(" P") and first is not None:
        most = _kept(name, panel, first.numbers["before"]) * (1 + context.options["within"])
        if first.numbers["total"] <= most:
            context.meet(key)  # its name is right, though there is nothing to do
            return None
    return context.maybe(key, partial(_trim, context, data, dense, name, panel, seed, method))


def _kept(name: str, panel: str, before: int) -> float:
    """The weights that the paper's network keeps, of `before`."""
    return before * (1 - _paper()[f"{_network(name)}/{panel}: Total Pruning (%)"] / 100)


def _network(column: str) -> str:
    """The network of the paper that a column stands for: "CNN-10K" for "CNN-10K padded"."""
    return column.partition(" ")[0]


def _trim(context: Context, data: Images, network: Network, name: str, panel: str, seed: int, method: str) -> Cell:
    options, dense = context.options, network()
    column = options["columns"][name]
    calibration = data.train.to(context.device or "cpu")
    how = dict(PAPER if method.startswith("NT") else OURS)
    if isinstance(column["hidden"], str):
        how["targets"] = ("8", "10")  # N retrains the fully connected layers alone
    how["scheme"] = "cascade" if method == CASCADE else "parallel"
    more = {"device": context.device, "tolerance": options["tolerance"], "budget": options["budget"], **how}

    def attempt(epsilon: float) -> Pruned:
        context.say(f"  {name}/{seed}/{panel}/{method}: trimming at epsilon {epsilon:.4g}")
        return prune(dense, calibration, epsilon, **more)

    if seed == 0:
        first = None if method == "NT" else _needed(context, data, network, name, panel, "NT")
        if method in ("NT P", "ours S", "ours P", CASCADE):
            assert first is not None
            target = kept = first.numbers["total"]
            if method != "ours S":
                theirs = _kept(name, panel, first.numbers["before"])
                target = theirs if method.endswith(" P") else min(theirs, kept)
            # about how the weights that are kept fall with epsilon
            start = first.numbers["epsilon"] * (kept / target) ** 2
            pruned = seek(attempt, lambda found: found.total, target, start, rising=False,
                          within=options["within"], most=options["attempts"])  # fmt: skip
        else:
            target = column["discrepancy"][panel] if first is None else first.numbers["discrepancy"]
            start = target / 100 * options["start"] if first is None else first.numbers["epsilon"]
            pruned = seek(attempt, lambda found: found.discrepancy, target, start, within=options["within"],
                          most=options["attempts"])  # fmt: skip
    else:
        other = _first_seed(context, data, column, name, panel, method)
        pruned = attempt(other)
    numbers = pruned.numbers() | {
        "dense accuracy": tested(dense, data, context),  # of this very network, which a record's need not be
        "pruning": 100 * (1 - pruned.total / pruned.before),
        "accuracy": tested(pruned.model, data, context),
        **_tuned(context, data, pruned.model, column, seed, ""),
    }
    numbers |= _hptd(context, data, dense, pruned, column, seed)
    return Cell(numbers, of_state(pruned.model, TRIMMED))


def _needed(context: Context, data: Images, dense: Network, name: str, panel: str, method: str) -> Cell:
    """What the first seed came to: others build on it, so it is made even where it was not asked for."""
    key = f"{name}/0/{panel}/{method}"
    return context.cell(key, partial(_trim, context, data, dense, name, panel, 0, method))


def _first_seed(context: Context, data: Images, column: Column, name: str, panel: str, method: str) -> float:
    dense, _ = trained(context, data, column["hidden"], column["training"], 0, f"{name}/0")
    return float(_needed(context, data, dense, name, panel, method).numbers["epsilon"])


def _tuned(
    context: Context,
    data: Images,
    model: nn.Module,
    column: Column,
    seed: int,
    prefix: str,
    masks: Mapping[str, Tensor] | None = None,
) -> dict[str, float]:
    """Accuracy after fine-tuning on the support; the model given is not changed by it."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    device = context.device or "cpu"
    tuning = Training(**{**column["training"], **context.options["tuning"]})
    train(model, data.train.to(device), data.train_labels.to(device), tuning, seed + 1000, masks or supports(model))
    found = {f"{prefix}tuned accuracy": tested(model, data, context)}
    model.load_state_dict(state)
    return found


def _hptd(
    context: Context, data: Images, dense: nn.Module, pruned: Pruned, column: Column, seed: int
) -> dict[str, float]:
    """HPTD: as many weights of each layer truncated as this method pruned, then fine-tuned in the same way."""
    old, new = supports(dense), supports(pruned.model)
    keep = {name: int(mask.sum()) for name, mask in new.items() if not bool((mask == old[name]).all())}
    cut = truncated(dense, keep)
    return {
        "HPTD accuracy": tested(cut, data, context),
        "HPTD discrepancy": discrepancy(dense, cut, data.train.to(context.device or "cpu")),
        **_tuned(context, data, cut, column, seed, "HPTD "),
    }


def _table(panel: str, columns: Mapping[str, Any], found: Found) -> Table:
    shown = [name for name in columns if (name, panel, "NT") in found]
    rows: list[tuple[Any, ...]] = [
        (title, *(found[name, panel, "NT"].get(key) for name in shown)) for title, key in _ROWS
    ]
    for title, method, key in _MORE:
        rows.append((title, *(found.get((name, panel, method), {}).get(key) for name in shown)))
    rows.append(
        ("HPTD: discrepancy without FT (%)", *(found[name, panel, "NT"].get("HPTD discrepancy") for name in shown))
    )
    rows.append(("HPTD: share of seeds trapped (EMT)", *(found[name, panel, "NT"]["trapped"] for name in shown)))
    rows.append(
        ("NT: share of seeds certified in every layer", *(found[name, panel, "NT"]["certified"] for name in shown))
    )
    rows.append(("epsilon", *(found[name, panel, "NT"].get("epsilon") for name in shown)))
    for title, method in (_SEEDS | {f"seeds of our default, {told}": key for told, key in _EQUAL.items()}).items():
        rows.append((title, *(found.get((name, panel, method), {}).get("seeds") for name in shown)))
    size = "smaller" if panel == "a" else "larger"
    return Table(f"table-1{panel}", f"Table 1 ({panel}): {size} epsilon", ("", *shown), tuple(rows))


def _claims(found: Found, columns: int) -> tuple[Claim, ...]:
    """What holds in the scenarios (the paper's `columns` networks, two panels) that have run. Only all of them together
    refute that something happens in some."""
    cells = {place[:2]: got for place, got in found.items() if place[2] == "NT" and place[0] == _network(place[0])}
    if not cells:
        return ()
    names = sorted({name for name, _ in cells})
    scenarios = columns * len(PANELS)
    whole, among = len(cells) == scenarios, f" ({len(cells)} of {scenarios} scenarios)"
    small = [got["initial accuracy"] - got["accuracy"] for (_, panel), got in cells.items() if panel == "a"]
    claims = []
    if small:
        near = max(small)
        told = f"the largest loss is {near:.2f} points ({len(small)} of {columns} networks)"
        text = "At small epsilon the test accuracy stays close to the initial one."
        claims.append(Claim(text, "N section 6", near <= 0.5, told))
    holds, told = _beside_hptd(cells.values())
    claims.append(Claim("With fine-tuning Net-Trim beats HPTD in every scenario.", "N section 6", holds, told + among))
    basic = {place: got["accuracy"] - got["HPTD tuned accuracy"] for place, got in cells.items()}
    wins = sum(gain > 0 for gain in basic.values())
    if whole:
        claims.append(Claim("Without fine-tuning Net-Trim beats fine-tuned HPTD in many scenarios.", "N section 6",
                            2 * wins >= len(basic), f"in {wins} of {len(basic)}"))  # fmt: skip
    worst = max(got["HPTD accuracy"] for got in cells.values())
    claims.append(Claim("HPTD without fine-tuning makes very large errors (accuracy under 75 %).", "N table 1, row 5",
                        worst < 75, f"its accuracy is up to {worst:.2f} %{among}"))  # fmt: skip
    trapped = [place for place, got in cells.items() if got["trapped"] == 1.0]
    if whole or trapped:
        told = ", ".join(f"{name} ({panel})" for name, panel in trapped) or "in none"
        claims.append(
            Claim("HPTD is trapped in early minima in some scenarios.", "N table 1, EMT", bool(trapped), told)
        )
    both = [name for name in names if all((name, panel) in cells for panel in PANELS)]
    if both:
        more = all(cells[name, "b"]["pruning"] > cells[name, "a"]["pruning"] for name in both)
        told = "; ".join(
            f"{name} {cells[name, 'a']['pruning']:.1f} to {cells[name, 'b']['pruning']:.1f} %" for name in both
        )
        claims.append(Claim("More discrepancy prunes more.", "N section 6", more, told))
    for text, method in _EQUAL.items():
        pairs = [found[place] for place in found if place[2] == method and "NT accuracy" in found[place]]
        if pairs:
            better = sum(_at_least(ours["accuracy"], ours["NT accuracy"]) for ours in pairs)
            told = f"in {better} of {len(pairs)} scenarios, the same seeds; " + ", ".join(
                f"{ours['accuracy']:.2f} against {ours['NT accuracy']:.2f} % at "
                f"{ours['pruning']:.1f} against {ours['NT pruning']:.1f} % pruned" for ours in pairs
            )  # fmt: skip
            claims.append(Claim(f"Our default at {text} is at least as accurate.", "here", better == len(pairs), told))
    return tuple(claims)


def _at_least(one: float, other: float) -> bool:
    """Of two accuracies in percent, which are means over seeds, rounded in their last digits."""
    return one >= other - 1e-9


def _beside_hptd(runs: Collection[Mapping[str, float]]) -> tuple[bool, str]:
    """Whether all of them are, fine-tuned, at least as accurate as HPTD; and in how many cases, by how much."""
    gains = [run["tuned accuracy"] - run["HPTD tuned accuracy"] for run in runs]
    wins = sum(_at_least(run["tuned accuracy"], run["HPTD tuned accuracy"]) for run in runs)
    return wins == len(gains), f"in {wins} of {len(gains)}, by {min(gains):.2f} to {max(gains):.2f} points"


def at_their_pruning(found: Found, paper: Paper) -> list[Claim]:
    """Where as much is pruned as in the paper, at most half a point less: accuracy beside the paper's and HPTD's."""
    claims = []
    for whose, methods in _WHOSE:
        cells = {
            (name, panel): numbers
            for (name, panel, method), numbers in found.items()
            if method in methods and numbers["pruning"] >= paper[f"{_network(name)}/{panel}: Total Pruning (%)"] - 0.5
        }
        if not cells:
            continue
        for title, key in (("NT No FT Acc. (%)", "accuracy"), ("NT + FT Acc. (%)", "tuned accuracy")):
            theirs = {place: paper[f"{_network(place[0])}/{place[1]}: {title}"] for place in cells}
            wins = sum(_at_least(got[key], theirs[place]) for place, got in cells.items())
            told = ", ".join(
                f"{place[0]} ({place[1]}) {got[key]:.2f} against {theirs[place]:.2f} % at {got['pruning']:.1f} % pruned"
                for place, got in cells.items()
            )
            text = f"Pruned as much as the paper's, at most half a point less, {whose} at least as accurate, {title}."
            holds = wins == len(cells)
            claims.append(Claim(text, "N table 1", holds, f"in {wins} of {len(cells)}; {told}"))
        beside = [got for got in cells.values() if "HPTD tuned accuracy" in got]  # parts of earlier versions lack it
        if beside:
            text = f"Pruned as much as the paper's and fine-tuned, {whose} at least as accurate as HPTD's."
            claims.append(Claim(text, "N section 6", *_beside_hptd(beside)))
    return claims
