"""`nettrim reproduce`: the list, a run, and what it says of words it cannot use."""

from __future__ import annotations

import re
from pathlib import Path

from nettrim.experiments.settings import names


def test_the_list_names_every_experiment_with_its_times(run) -> None:
    result = run("reproduce", "--list")
    assert result.exit_code == 0
    for name in names():
        assert re.search(rf"^{name} .* [\d.]+ +[\d.]+$", result.stdout, re.M), name


def test_without_a_name_the_experiments_are_told(run) -> None:
    result = run("reproduce")
    assert result.exit_code == 2
    assert "`NAME` should be" in result.stderr and "mnist-table1" in result.stderr


def test_a_misspelt_name_gets_its_neighbour(run, tmp_path: Path) -> None:
    result = run("reproduce", "recovry", "-o", str(tmp_path / "out"))
    assert result.exit_code == 2 and "Did you mean 'recovery'?" in result.stderr


def test_missing_data_are_said_with_where_to_put_them(run, tmp_path: Path, monkeypatch) -> None:
    for variable in ("NETTRIM_DATA", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / "none"))
    monkeypatch.setenv("NETTRIM_OFFLINE", "1")
    result = run("reproduce", "mnist-table1", "-o", str(tmp_path / "out"))
    assert result.exit_code == 2
    assert "train-images-idx3-ubyte.gz" in result.stderr and "NETTRIM_DATA" in result.stderr


def test_part_of_an_experiment_ends_with_its_claims(run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("reproduce", "recovery", "--quick", "--only", "s=1/P=60", "-o", str(out))
    assert result.exit_code == 0
    assert "confirmed: Where a dual certificate exists" in result.stdout
    assert "s=1/P=60" in result.stderr and (out / "results.md").is_file()
    assert "s=2" not in result.stderr


def test_a_device_or_a_folder_that_is_not_there_is_said_before_the_work(run, tmp_path: Path) -> None:
    result = run("reproduce", "recovery", "--quick", "--device", "foo", "-o", str(tmp_path / "out"))
    assert result.exit_code == 2 and "`--device` should be a device of this machine" in result.stderr
    (tmp_path / "file").write_text("")
    result = run("reproduce", "recovery", "--quick", "-o", str(tmp_path / "file" / "x"))
    assert result.exit_code == 2 and "`--output` should be a directory" in result.stderr
