"""`nettrim trim`: a model file and calibration data in, a directory with the trimmed model and its proofs out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nettrim.cli import recipes, screen
from nettrim.cli.group import UNFINISHED
from nettrim.cli.opening import open_model
from nettrim.cli.options import AsJson, Data, External, Model, Quiet, Trust, Weights
from nettrim.cli.output import check_checkpoint, check_output
from nettrim.cli.running import Where, run_trim, save_run
from nettrim.data import load_data
from nettrim.executors import Unfinished

_MAIN, _HOW, _WHICH, _WHERE = "What to reach", "How to trim", "Which layers and samples", "Where the work runs"


def command(
    model: Model,
    data: Data,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where the results go: a new "
        "directory, or one of an earlier trim, which is replaced.", rich_help_panel=_MAIN)],
    epsilon: Annotated[list[str] | None, typer.Option(metavar="NUMBER", help="How far each layer's responses may "
        "move, as a fraction of their norm: 0.05 is 5 %. LAYER=NUMBER, several times, for some layers; '*=NUMBER' for "
        "the rest. Needed unless a recipe gives it.", rich_help_panel=_MAIN)] = None,
    recipe: Annotated[Path | None, typer.Option(metavar="FILE", help="A TOML file with any of these options; what "
        "is given on the command line wins.", rich_help_panel=_MAIN)] = None,
    absolute: Annotated[bool | None, typer.Option("--absolute/--relative", metavar="", help="Epsilon in the "
        "units of the responses. \\[default: relative]", rich_help_panel=_MAIN, show_default=False)] = None,
    scheme: Annotated[list[str] | None, typer.Option(metavar="NAME", help="parallel: every layer by itself; "
        "cascade: one after another, each making up for those before it. LAYER=NAME for a mixture. "
        "\\[default: parallel]", rich_help_panel=_HOW)] = None,
    gamma: Annotated[list[str] | None, typer.Option(metavar="NUMBER", help="Cascade: by which factor, >= 1, a "
        "layer's tolerance exceeds what came to it. \\[default: 1.1]", rich_help_panel=_HOW)] = None,
    kappa: Annotated[float | None, typer.Option(metavar="NUMBER", help="Cascade: the last layer's tolerance is "
        "multiplied by it, in (0, 1]. \\[default: 1.0]", rich_help_panel=_HOW)] = None,
    budget: Annotated[str | None, typer.Option(metavar="NAME|N", help="What shares one tolerance: a layer, a "
        "neuron, or N clusters of neurons. \\[default: layer]", rich_help_panel=_HOW)] = None,
    penalty: Annotated[str | None, typer.Option(metavar="NAME", help="What is made small: "
        + ", ".join(recipes.PENALTIES) + ". \\[default: l1]", rich_help_panel=_HOW)] = None,
    penalize_bias: Annotated[bool | None, typer.Option("--penalize-bias/--free-bias", metavar="", help="Whether "
        "biases count as weights. \\[default: free-bias]", rich_help_panel=_HOW, show_default=False)] = None,
    constraint: Annotated[str | None, typer.Option(metavar="NAME", help="distance: to what gives the same "
        "response; strict: the papers' set, in which units that are off must stay off. \\[default: distance]",
        rich_help_panel=_HOW)] = None,
    slack: Annotated[str | None, typer.Option(metavar="NAME", help="Strict cascade: published or positive. "
        "\\[default: published]", rich_help_panel=_HOW)] = None,
    refit: Annotated[bool | None, typer.Option("--refit/--no-refit", metavar="", help="After the weights are chosen, "
        "fit those that are left. \\[default: refit]", rich_help_panel=_HOW, show_default=False)] = None,
    tolerance: Annotated[float | None, typer.Option(metavar="NUMBER", help="The optimality gap asked of the solver, "
        "as a fraction of the penalty. \\[default: 0.0001]", rich_help_panel=_HOW)] = None,
    memory: Annotated[str | None, typer.Option(metavar="SIZE", help="At most this much for samples and working arrays, "
        "such as 800MB or 2GiB; what is larger goes to files. \\[default: no limit]", rich_help_panel=_WHERE)] = None,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="Where programs are solved: cpu, cuda, cuda:1. "
        "\\[default: cpu]", rich_help_panel=_WHERE)] = None,
    executor: Annotated[str | None, typer.Option(metavar="NAME", help="local: threads of this process; "
        "processes: of this machine; ray: a Ray cluster of its own; ray://ADDRESS: one that runs. "
        "\\[default: processes or threads, as the work calls for]", rich_help_panel=_WHERE)] = None,
    checkpoint: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Keep each finished block here, and go on "
        "from what is there: a killed run repeats at most one block a worker.", rich_help_panel=_WHERE)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="The same with the folder DIR.checkpoint.",
        rich_help_panel=_WHERE)] = False,
    shard: Annotated[str | None, typer.Option(metavar="I/N", help="Solve share I of N into the checkpoint, as one job "
        "of an array; a job that finds all blocks finished writes DIR, any other ends with exit "
        "code 3.", rich_help_panel=_WHERE)] = None,
    wait: Annotated[float | None, typer.Option(metavar="SECONDS", help="For --shard jobs that run at the same time: "
        "give up after so long without news of the others. Jobs that wait divide single large layers, too. "
        "\\[default: 0]", rich_help_panel=_WHERE)] = None,
    spread_data: Annotated[bool, typer.Option("--spread-data", metavar="", help="Each worker runs the network on its "
        "part of the samples, instead of one process on all; with --executor ray, or --shard and --wait.",
        rich_help_panel=_WHERE)] = False,
    targets: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Trim these layers only: a name, a glob "
        "pattern, re:EXPRESSION, or a kind such as Linear. Several times for more. \\[default: all that can be]",
        rich_help_panel=_WHICH)] = None,
    ignore: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Leave these as they are; named as for "
        "--targets.", rich_help_panel=_WHICH)] = None,
    batchnorm: Annotated[str | None, typer.Option(metavar="NAME", help="Torch modules: fold, into the layers before; "
        "reestimate, keep them, with the statistics of the trimmed network. \\[default: fold]",
        rich_help_panel=_HOW)] = None,
    positions: Annotated[int | None, typer.Option(metavar="N", help="Convolutions: at most so many positions of each "
        "sample. \\[default: all]", rich_help_panel=_WHICH)] = None,
    num_calibration_samples: Annotated[int | None, typer.Option(metavar="N", help="Calibrate on so many samples, drawn "
        "with --seed. \\[default: all]", rich_help_panel=_WHICH)] = None,
    holdout: Annotated[str | None, typer.Option(metavar="FRACTION|FILE", help="Samples to measure on only, never "
        "to trim with. \\[default: 0.1 from 50 samples on]", rich_help_panel=_WHICH)] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="For every random choice. \\[default: 0]",
        rich_help_panel=_WHICH)] = None,
    weights: Weights = None,
    trust_model: Trust = False,
    allow_external_data: External = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Trim a model: sparse weights, of least l1 norm, whose responses stay within a tolerance of the original ones.

    MODEL is an .onnx file, or package.module:function, a Python function (yours, and run) that returns a torch module.

    DIR gets the trimmed model (model.onnx or model.safetensors), report.json, report.html, recipe.toml (every
    option used; give it back with --recipe) and what [bold]nettrim verify[/bold] needs.

    Examples:

      nettrim trim model.onnx --data calibration.npz --epsilon 0.05 -o trimmed

      nettrim trim model.onnx --data calibration.npz --recipe trimmed/recipe.toml --scheme cascade -o other

      nettrim trim mynets:lenet --weights lenet.safetensors --data calibration.npz --epsilon 0.1 -o trimmed

      nettrim trim model.onnx --data calibration.npz --epsilon 0.05 -o trimmed --resume --executor ray
    """  # fmt: skip
    fraction, held_file = _holdout(holdout)
    given: dict[str, Any] = {
        "epsilon": recipes.number_or_table("--epsilon", epsilon),
        "relative": None if absolute is None else not absolute,
        "scheme": recipes.word_or_table("--scheme", scheme),
        "gamma": recipes.number_or_table("--gamma", gamma),
        "kappa": kappa,
        "budget": recipes.budget(budget),
        "penalty": recipes.penalty(penalty),
        "penalize_bias": penalize_bias,
        "constraint": constraint,
        "slack": slack,
        "refit": refit,
        "tolerance": tolerance,
        "targets": tuple(targets) if targets else None,
        "ignore": tuple(ignore) if ignore else None,
        "batchnorm": batchnorm,
        "positions": positions,
        "num_calibration_samples": num_calibration_samples,
        "holdout": fraction,
        "seed": seed,
    }
    chosen = recipes.make_recipe(recipe, given)
    if checkpoint is None and resume:
        checkpoint = output.with_name(output.name + ".checkpoint")
    where = Where.of(device, executor, checkpoint, shard, memory, wait, spread_data)
    check_output(output)
    check_checkpoint(checkpoint, output)
    opened = open_model(model, weights, trust=trust_model, external=allow_external_data)
    calibration = load_data(data).inputs
    held = None if held_file is None else load_data(held_file).inputs
    try:
        with screen.showing_progress(quiet) as listener, screen.results_only():
            trimmed = run_trim(opened, calibration, held, chosen, listener, where)
    except Unfinished as rest:
        screen.say(str(rest))
        if as_json:
            screen.show_json({"finished": False, "reason": str(rest), "missing": list(rest.missing)})
        raise typer.Exit(UNFINISHED) from rest
    remarks = save_run(trimmed, output)
    if as_json:
        screen.show_json(trimmed.report.to_dict())
    else:
        screen.show_report(trimmed.report)
    if not quiet:
        check = f"nettrim verify {output} --data {data}"
        if opened.path is None:
            check += f" --model {model}" + (f" --weights {weights}" if weights else "") + " --trust-model" * trust_model
        for remark in (*remarks, f"Written to {output}. Check it with: {check}"):
            screen.say(remark, "dim")


def _holdout(text: str | None) -> tuple[float | None, Path | None]:
    """A fraction, or the file that holds the samples."""
    try:
        return (None if text is None else float(text)), None
    except ValueError:
        return None, Path(str(text))
