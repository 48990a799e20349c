"""From the middle of an optimal face to a vertex: as good, feasible, no denser than the dimension of what is fixed."""

import pytest
import torch

from nettrim import Program, solve
from nettrim.solvers.interior import crossover, solve_interior
from nettrim.solvers.problem import make_problem


def costs_of(problem):
    like = torch.zeros(problem.rows, problem.design.width, dtype=torch.float64)
    return problem.penalty.full(like).expand(like.shape)


def layer(seed=0, samples=60, neurons=12, features=80, constraint="strict", budget="layer"):
    """ReLU features of points in the plane: far more columns than the samples have numerical rank."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(samples, 2, generator=generator, dtype=torch.float64) * 2 - 1
    first = torch.randn(2, features, generator=generator, dtype=torch.float64)
    shift = torch.rand(features, generator=generator, dtype=torch.float64) + 1
    inputs = torch.relu(points @ first + shift)
    weight = torch.randn(neurons, features, generator=generator, dtype=torch.float64)
    responses = torch.relu(inputs @ weight.T)
    epsilon = 0.01 * float(responses.norm())
    return Program.relu(inputs, responses, epsilon, constraint=constraint, budget=budget), weight


@pytest.mark.parametrize("constraint", ["strict", "distance"])
@pytest.mark.parametrize("budget", ["layer", "neuron"])
def test_a_vertex_of_the_face(constraint, budget):
    program, _ = layer(constraint=constraint, budget=budget)
    problem = make_problem(program)
    group = problem.select((problem.groups == 0).nonzero()[:, 0])
    costs, central = costs_of(group), solve_interior(group, 1e-4)
    dense = central.found.weight
    sparse = crossover(group, dense, central.found.dual, costs, 1e-4)
    value, before = float((sparse.abs() * costs).sum()), float((dense.abs() * costs).sum())
    assert value == pytest.approx(before, rel=1e-4)
    soft, hard = group.distance(group.design.forward(sparse))
    assert float(soft.norm()) <= float(group.epsilon[0]) * (1 + 1e-4)
    assert float(hard.abs().max()) <= 1e-9
    assert bool((sparse * dense >= 0).all())
    for row in range(group.rows):
        product = group.design.forward(sparse[row : row + 1])[0]
        met = torch.minimum((product - group.lower[row]).abs(), (product - group.upper[row]).abs()) <= 1e-6
        pressed = group.distance(group.design.forward(dense))[0][row] != 0
        fixed = met | pressed | (group.lower[row] == group.upper[row])
        assert int((sparse[row] != 0).sum()) <= int(torch.linalg.matrix_rank(group.design.take(fixed.nonzero()[:, 0])))


def test_equal_columns_need_one_weight():
    """Four copies of every column: any split costs as much; a vertex uses one copy."""
    program, _ = layer(features=6, neurons=4, budget="neuron")
    copies = Program(
        program.inputs.repeat(1, 4),
        program.lower,
        program.upper,
        program.epsilon,
        program.groups,
        program.penalty,
        program.constraint,
    )
    problem = make_problem(copies)
    central = solve_interior(problem, 1e-6)
    sparse = torch.cat(
        [
            crossover(problem.select(torch.tensor([row])), central.found.weight[[row]], central.found.dual[[row]],
                      costs_of(problem)[[row]], 1e-6)
            for row in range(problem.rows)
        ]
    )  # fmt: skip
    assert int((central.found.weight != 0).sum(dim=1).max()) > 6
    assert int((sparse != 0).sum(dim=1).max()) <= 6
    assert float(sparse.abs().sum()) == pytest.approx(float(central.found.weight.abs().sum()), rel=1e-6)


@pytest.mark.parametrize("constraint", ["strict", "distance"])
def test_no_certified_answer_is_dense(constraint):
    program, weight = layer(constraint=constraint, samples=100, neurons=20)
    answer = solve(program, tolerance=1e-3, initial=weight)
    assert answer.certificate.gap <= 1e-3
    assert answer.certificate.violation <= 1e-9
    assert int((answer.weight != 0).sum()) <= 0.5 * answer.weight.numel()
