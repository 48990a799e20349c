"""The spirals: the H2O file where it is, else the CMU points by their formula, labelled as such."""

import math

import pytest
import torch

from nettrim.errors import DataError
from nettrim.experiments.mnist import VARIABLE
from nettrim.experiments.spiral import cmu_spirals, load_spirals
from nettrim.experiments.training import mlp, start_as_h2o


def table(count: int = 200) -> str:
    rows = [f"{math.sin(i)},{math.cos(i)},{'Red' if i % 2 else 'Black'}" for i in range(count)]
    return "\n".join(["x,y,color", *rows])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    (tmp_path / "spiral").mkdir()
    return tmp_path / "spiral"


def test_the_file_is_read(folder):
    (folder / "h2o_spiral.csv").write_text(table())
    data = load_spirals()
    assert data.source.papers and data.points.shape == (200, 2)
    assert data.points[3].tolist() == pytest.approx([math.sin(3), math.cos(3)])
    assert data.labels[:4].tolist() == [0, 1, 0, 1]


def test_without_it_the_generated_points_say_so(folder):
    data = load_spirals()
    assert not data.source.papers and "generated" in data.source.name and VARIABLE in data.source.name
    assert len(data.points) == 194 and int(data.labels.sum()) == 97


def test_the_generated_points_are_two_spirals_mirrored():
    points, labels = cmu_spirals().points, cmu_spirals().labels
    assert torch.allclose(points[labels == 1], -points[labels == 0])
    radii = points[labels == 1].norm(dim=1)
    assert float(radii[0]) == pytest.approx(1.4) and bool((radii.diff() < 0).all())
    assert float(radii[-1] / radii[0]) == pytest.approx(8 / 104, rel=1e-4)


@pytest.mark.parametrize("text", ["", "x,y\n1,2", table(199), table().replace("Red", "Black"), "x,y,color\na,b,c"])
def test_another_layout_is_refused(folder, text):
    (folder / "h2o_spiral.csv").write_text(text)
    with pytest.raises(DataError, match=r"h2o_spiral\.csv"):
        load_spirals()


def test_networks_start_as_h2o_starts_them():
    points = cmu_spirals().points
    model = mlp((2, 50, 40, 2))
    start_as_h2o(model, points, seed=0)
    first, second, last = (module for module in model if isinstance(module, torch.nn.Linear))
    reach = math.sqrt(6 / 52) / points.std(0)
    assert (first.weight.abs() <= reach).all() and (first.weight.abs().amax(0) > 0.9 * reach).all()
    assert float(second.weight.detach().abs().max()) == pytest.approx(math.sqrt(6 / 90), rel=0.01)
    assert float(last.weight.detach().abs().max()) == pytest.approx(4 * math.sqrt(6 / 42), rel=0.1)
    assert [set(layer.bias.tolist()) for layer in (first, second, last)] == [{0.5}, {1.0}, {0.0}]
    again = mlp((2, 50, 40, 2))
    start_as_h2o(again, points, seed=0)
    assert torch.equal(first.weight, next(again.parameters()))
