"""A saved trim loads to the same model, verifies, and is refused when anything was changed."""

import hashlib
import json
import math
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import nettrim
from nettrim import saving
from nettrim.blocks import split
from nettrim.errors import DataError, InputError, ModelError


def net(norm=False):
    torch.manual_seed(0)
    middle = [nn.BatchNorm1d(8)] if norm else []
    model = nn.Sequential(
        nn.Linear(6, 8, bias=not norm), *middle, nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3)
    )
    model(torch.randn(50, 6))
    return model.eval()


@pytest.fixture
def data():
    return torch.randn(60, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scheme": "cascade", "kappa": 0.9},
        {"scheme": "cascade", "kappa": 1e-4, "budget": "neuron"},
        {"scheme": {"*": "cascade"}, "constraint": "strict", "refit": False},
        {"penalty": nettrim.L1(costs=torch.tensor(2.0)), "holdout": 0.5},
    ],
)
def test_round_trip_and_verification(tmp_path, data, norm, options):
    model = net(norm)
    trimmed = nettrim.trim(model, data, epsilon=0.1, **options)
    path = trimmed.save(tmp_path / "out")
    assert sorted(os.listdir(path)) == [
        "model.safetensors", "nettrim.json", "proofs.safetensors", "recipe.toml", "report.json"
    ]  # fmt: skip
    loaded = nettrim.load(path, model)
    assert torch.equal(loaded(data), trimmed.model(data))
    assert json.loads((path / "report.json").read_text()) == trimmed.report.to_dict()
    checked = nettrim.verify(path, model, data)
    assert checked.holds, checked.failures
    assert "every claim holds" in str(checked)
    assert checked.to_dict()["holds"]
    for one, other in zip(checked.report.layers, trimmed.report.layers, strict=True):
        assert one.certified == other.certified
        assert one.epsilon == pytest.approx(other.epsilon, rel=1e-6)
        assert one.gap == pytest.approx(other.gap, abs=1e-6)
        assert one.discrepancy == pytest.approx(other.discrepancy, rel=1e-6, abs=1e-9)
    assert checked.report.network.bound == pytest.approx(trimmed.report.network.bound, rel=1e-6)


def test_costs_per_entry_survive(tmp_path, data):
    penalty = {"2": nettrim.L1(costs=torch.rand(5, 8) + 0.5)}
    path = nettrim.trim(net(), data, epsilon=0.1, penalty=penalty).save(tmp_path / "out")
    assert nettrim.verify(path, net(), data).holds


def resign(path, name):
    """Make the index agree with a file that was changed, as a forger would."""
    index = json.loads((path / "nettrim.json").read_text())
    index["files"][name] = hashlib.sha256((path / name).read_bytes()).hexdigest()
    (path / "nettrim.json").write_text(json.dumps(index))


def test_forged_claims_do_not_verify(tmp_path, data):
    trimmed = nettrim.trim(net(), data, epsilon=0.1, refit=False)
    path = trimmed.save(tmp_path / "out")

    tensors = load_file(path / "model.safetensors")
    tensors["2.weight"] = tensors["2.weight"] * 1.3
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(InputError, match=r"a changed model\.safetensors"):
        nettrim.load(path, net())
    resign(path, "model.safetensors")
    failures = nettrim.verify(path, net(), data).failures
    assert any("2: discrepancy" in text for text in failures)

    trimmed.save(path)
    report = json.loads((path / "report.json").read_text())
    report["layers"][0]["nonzeros_after"] -= 1
    report["layers"][1]["discrepancy"] /= 2
    report["network"]["bound"] /= 2
    (path / "report.json").write_text(json.dumps(report))
    resign(path, "report.json")
    failures = " ".join(nettrim.verify(path, net(), data).failures)
    assert "0: " in failures and "2: discrepancy" in failures and "network: bound" in failures

    trimmed.save(path)
    proofs = load_file(path / "proofs.safetensors")
    proofs["dual.0.0"] = torch.zeros_like(proofs["dual.0.0"])
    save_file(proofs, path / "proofs.safetensors")
    resign(path, "proofs.safetensors")
    assert any("0: gap" in text for text in nettrim.verify(path, net(), data).failures)


def test_other_data_or_model_is_refused(tmp_path, data):
    path = nettrim.trim(net(), data, epsilon=0.1).save(tmp_path / "out")
    with pytest.raises(DataError, match="`data` should be"):
        nettrim.verify(path, net(), data + 1)
    other = net()
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    with pytest.raises(ModelError, match="one with other tensors"):
        nettrim.verify(path, other, data)
    with pytest.raises(ModelError, match="`model` should be"):
        nettrim.load(path, nn.Sequential(nn.Linear(6, 8)))
    with pytest.raises(ModelError, match="`model` should be"):
        nettrim.load(path, nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3)))


def test_large_multipliers_are_left_out_and_said_so(tmp_path, data, monkeypatch):
    monkeypatch.setattr(split, "_ROWS", 2)
    recipe = nettrim.Recipe(epsilon=0.1, budget="neuron", certificate_megabytes=0.0)
    trimmed = nettrim.trim(net(), data, recipe=recipe, checkpoint=tmp_path / "blocks")
    assert len([*(tmp_path / "blocks").glob("*.block")]) > 3
    said = [note for note in trimmed.report.result.notes if "certificate_megabytes = 0" in note]
    assert len(said) == len(trimmed.report.layers)  # once a layer, however many blocks there are
    path = trimmed.save(tmp_path / "out")
    checked = nettrim.verify(path, net(), data)
    assert checked.holds and len(checked.notes) == 3 and "too large to keep" in checked.notes[0]
    assert checked.unchecked == ("0", "2", "4") and "cannot be" in str(checked)
    tensors = load_file(path / "model.safetensors")
    tensors["2.weight"] = tensors["2.weight"] * 1.3
    save_file(tensors, path / "model.safetensors")
    resign(path, "model.safetensors")
    assert not nettrim.verify(path, net(), data).holds


def forge(path, change):
    """Alter report.json by `change`, and sign it."""
    report = json.loads((path / "report.json").read_text())
    change(report)
    (path / "report.json").write_text(json.dumps(report))
    resign(path, "report.json")


@pytest.mark.parametrize(
    "change",
    [
        lambda report: report.update(sparsity=0.99),
        lambda report: report.update(nonzeros_before=10**6),
        lambda report: report.update(format=99),
        lambda report: report["layers"].pop(),
        lambda report: report["layers"][0].update(objective=0.1),
        lambda report: report["layers"][0].update(shape=[80, 60]),
        lambda report: report["layers"][0].update(skipped="by name"),
        lambda report: report["layers"][0].update(gap=None),
        lambda report: report["layers"][0].update(epsilon=math.inf),
        lambda report: report["layers"][0].update(discrepancy=math.nan),
        lambda report: report["network"].update(samples=60_000),
        lambda report: report["recipe"].update(tolerance=1e-9),
    ],
)
def test_no_number_of_a_report_can_be_another(tmp_path, data, change):
    path = nettrim.trim(net(), data, epsilon=0.1).save(tmp_path / "out")
    assert nettrim.verify(path, net(), data).holds
    forge(path, change)
    assert nettrim.verify(path, net(), data).failures


@pytest.mark.parametrize("change", [lambda report: report.update(layers=3), lambda report: report.pop("network")])
def test_what_is_no_report_is_refused(tmp_path, data, change):
    path = nettrim.trim(net(), data, epsilon=0.1).save(tmp_path / "out")
    forge(path, change)
    with pytest.raises(InputError, match=r"report\.json"):
        nettrim.verify(path, net(), data)


def test_multipliers_that_went_missing_are_missed(tmp_path, data):
    path = nettrim.trim(net(), data, epsilon=0.1).save(tmp_path / "out")
    proofs = load_file(path / "proofs.safetensors")
    save_file({name: values for name, values in proofs.items() if name != "dual.0.0"}, path / "proofs.safetensors")
    resign(path, "proofs.safetensors")
    with pytest.raises(InputError, match="dual"):
        nettrim.verify(path, net(), data)


@pytest.mark.parametrize("refit", [False, True])
def test_the_weights_returned_are_those_that_the_proof_speaks_of(tmp_path, data, refit):
    """Dense weights are feasible and have no discrepancy, but are not what was proved to be near optimal."""
    trimmed = nettrim.trim(net(), data, epsilon=0.1, refit=refit)
    path = trimmed.save(tmp_path / "out")
    tensors, dense = load_file(path / "model.safetensors"), net().state_dict()
    place = ((tensors["2.weight"] == 0) & (dense["2.weight"] != 0)).nonzero()[0].tolist()
    tensors["2.weight"][tuple(place)] = 1e-6
    save_file(tensors, path / "model.safetensors")
    resign(path, "model.safetensors")
    failures = " ".join(nettrim.verify(path, net(), data).failures)
    assert ("outside the support" if refit else "not those") in failures


def test_samples_held_out_by_themselves_are_not_claimed_again(tmp_path, data):
    path = nettrim.trim(net(), data, epsilon=0.1, holdout=data + 1).save(tmp_path / "out")
    checked = nettrim.verify(path, net(), data)
    assert checked.holds and "held-out" in checked.notes[-1]


def test_the_directory_is_whole_or_not_there(tmp_path, data, monkeypatch):
    trimmed = nettrim.trim(net(), data, epsilon=0.1)
    target = tmp_path / "deep" / "out"
    trimmed.save(target)
    trimmed.save(target)  # its own kind is replaced
    assert os.listdir(tmp_path / "deep") == ["out"]
    (target / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="something else"):
        trimmed.save(target)
    (target / "notes.txt").unlink()
    (tmp_path / "link").symlink_to(target)
    trimmed.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    (tmp_path / "link").unlink()
    assert os.listdir(tmp_path / "deep") == ["out"]

    before = (target / "nettrim.json").read_bytes()

    def broken(self, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", broken)
    with pytest.raises(InputError, match="No space left"):
        trimmed.save(target)
    with pytest.raises(InputError, match="No space left"):
        trimmed.save(tmp_path / "other")
    monkeypatch.undo()
    assert (target / "nettrim.json").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["deep"] and os.listdir(tmp_path / "deep") == ["out"]


def test_jobs_that_write_the_same_directory_take_turns(tmp_path):
    """Always one of them is there, whole; none fails and nothing is left beside it."""

    def write(number):
        made = tmp_path / f"made-{number}"
        made.mkdir()
        (made / "content").write_text(str(number))
        saving._replace(made, tmp_path / "out")

    for _ in range(5):
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, range(40)))
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        assert 0 <= int((tmp_path / "out" / "content").read_text()) < 40


@pytest.mark.skipif(os.name != "posix", reason="elsewhere there is no umask")
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_directory_has_the_permissions_that_the_user_asks_for(tmp_path, data, mask):
    trimmed = nettrim.trim(net(), data, epsilon=0.1)
    before = os.umask(mask)
    try:
        trimmed.save(tmp_path / "out")
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~mask
    assert (tmp_path / "out" / "report.json").stat().st_mode & 0o777 == 0o666 & ~mask


def test_directories_that_hold_something_else_are_refused(tmp_path, data):
    trimmed = nettrim.trim(net(), data, epsilon=0.1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="holds something else"):
        trimmed.save(tmp_path / "mine")
    (tmp_path / "file").write_text("a file")
    with pytest.raises(InputError, match="`directory` should be"):
        trimmed.save(tmp_path / "file")
    with pytest.raises(InputError, match="can be written"):
        trimmed.save(tmp_path / "file" / "below")
    (tmp_path / "empty").mkdir()
    trimmed.save(tmp_path / "empty")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"format": 1}', '{"format": 99, "files": {}}', '{"format": 1, "files": {"../x": "0"}}']
)
def test_a_damaged_index(tmp_path, data, content):
    path = nettrim.trim(net(), data, epsilon=0.1).save(tmp_path / "out")
    (path / "nettrim.json").write_text(content)
    with pytest.raises(InputError, match="`directory` should be"):
        nettrim.load(path, net())


def test_missing_files(tmp_path, data):
    with pytest.raises(InputError, match=r"has no nettrim\.json"):
        nettrim.load(tmp_path / "none", net())
    path = nettrim.trim(net(), data, epsilon=0.1).save(tmp_path / "out")
    (path / "recipe.toml").unlink()
    with pytest.raises(InputError, match=r"without a readable recipe\.toml"):
        nettrim.load(path, net())


def test_no_pickle_and_no_local_paths(tmp_path, data):
    path = nettrim.trim(net(), data, epsilon=0.1).save(tmp_path / "out")
    for file in path.iterdir():
        content = file.read_bytes()
        assert str(tmp_path).encode() not in content
        assert content[:1] == b"{" or content[8:9] == b"{" or file.suffix == ".toml"  # JSON, safetensors, TOML
