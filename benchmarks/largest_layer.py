"""The largest layer of the paper (N section 6): 1,569 inputs, 512 neurons, 60,000 samples, on a GPU where there is one.

    make bench-largest    (or: python benchmarks/largest_layer.py [--device cuda] [--neurons 512] [--samples 60000])

The fully connected layer behind two 5 x 5 convolutions of 32 filters, padded, each with max pooling; trained here on
MNIST (NETTRIM_DATA) for a few epochs, so that its inputs are real features. The paper tells of up to 20 seconds a
column, and of minutes on 64 processors. The layer is solved in one go, after a small one that pays for the device's
start; what is timed is `solve`, from the program to certified weights. Without a GPU a share of the neurons
(--neurons 16) shows the same layer; a neuron's time then tells that of all, but for what is done once. Writes
results/largest-layer.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from cases import CONSTRAINTS
from problems import Case, Net, images, layer_case, with_ones
from torch import nn

from nettrim.experiments.training import Training, accuracy, train
from nettrim.layerwise.matrices import augmented
from nettrim.solvers import Solution, solve

RESULT = Path(__file__).parent / "results" / "largest-layer.json"
TRAINING = Training(epochs=3, batch=100, rate=1e-3, cosine=True)


def network(device: torch.device, count: int) -> Net:
    """The fully connected layers on `count` samples, (512, 1569) and (10, 513) with the biases."""
    data = images()
    left = data.side // 4
    torch.manual_seed(0)
    convolutions = nn.Sequential(
        nn.Unflatten(1, (1, data.side, data.side)),
        *(nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Flatten(),
    )
    dense, last = nn.Linear(32 * left * left, 512), nn.Linear(512, 10)
    model = nn.Sequential(convolutions, dense, nn.ReLU(), last).to(device)
    train(model, data.train.to(device), data.train_labels.to(device), TRAINING, seed=0)
    share = accuracy(model, data.test.to(device), data.test_labels.to(device)) / 100
    with torch.no_grad():
        parts = [convolutions(part.to(device)).cpu() for part in data.train[:count].split(1000)]
    weights = [augmented(layer.weight, layer.bias).detach().cpu() for layer in (dense, last)]
    inputs = [with_ones(torch.cat(parts))]
    responses = [torch.relu(inputs[0] @ weights[0].T)]
    inputs.append(with_ones(responses[0]))
    responses.append(inputs[1] @ weights[1].T)
    return Net("convolutions-512-10", weights, inputs, responses, share)


def timed(case: Case, tolerance: float, device: torch.device) -> tuple[Solution, float, float]:
    """The solution, seconds on the wall, and the most GiB of the device's memory that were taken (0 on a CPU)."""
    there, initial = case.program.to(device), case.initial.to(device)  # as in a trim, whose layers are captured there
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    solution = solve(there, tolerance, initial=initial)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
    return solution, seconds, peak


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--neurons", type=int, default=512, help="the first ones of the layer")
    parser.add_argument("--samples", type=int, default=60_000)
    parser.add_argument("--epsilon", type=float, default=0.05, help="as a share of each neuron's response")
    parser.add_argument("--tolerance", type=float, default=1e-3)
    parser.add_argument("--constraints", nargs="+", default=list(CONSTRAINTS), choices=CONSTRAINTS)
    options = parser.parse_args()
    device = torch.device(options.device)
    net = network(device, options.samples)
    inputs, weight = net.inputs[0], net.weights[0][: options.neurons]
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    size = f"{inputs.shape[1]} inputs, {len(weight)} of 512 neurons, {len(inputs)} samples"
    print(f"{size}, on {device} ({where}); the network is {100 * net.accuracy:.2f} % right", flush=True)
    results = []
    for constraint in options.constraints:
        timed(layer_case(net, 0, options.epsilon, constraint, rows=4, samples=2000), options.tolerance, device)
        case = layer_case(net, 0, options.epsilon, constraint, rows=len(weight))
        solution, seconds, peak = timed(case, options.tolerance, device)
        live = [state for state, counts in zip(solution.status, case.live.tolist(), strict=True) if counts]
        told = {
            "device": where, "constraint": constraint, "epsilon": options.epsilon, "tolerance": options.tolerance,
            "inputs": inputs.shape[1], "neurons": len(weight), "live": len(live), "samples": len(inputs),
            "seconds": round(seconds, 2), "certified": sum(state.certified for state in live),
            "feasible": sum(state.feasible for state in live), "kept": int((solution.weight != 0).sum()),
            "dense": weight.numel(), "gemms": round(solution.gemms), "peak GiB": round(peak, 2),
        }  # fmt: skip
        results.append(told)
        share = told["kept"] / told["dense"]
        print(
            f"{constraint}, epsilon {options.epsilon}: {seconds:.1f} s, {told['certified']} of {len(live)} live neurons"
            f" certified to {options.tolerance:g}, {told['feasible']} feasible, {share:.1%} of the weights kept, "
            f"{told['gemms']} products of the layer, {peak:.1f} GiB on the device",
            flush=True,
        )
        RESULT.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
