"""Every experiment of the list has settings, code and, where the papers print numbers, those numbers."""

import pytest

from nettrim.errors import InputError
from nettrim.experiments.run import load
from nettrim.experiments.settings import names, read_settings
from nettrim.experiments.verdicts import Sense

NAMES = (
    "cascade-vs-parallel mnist-figures mnist-small mnist-table1 pcn recovery spirals spirals-tables validation-set"
).split()


def test_all_of_the_papers_experiments_are_there():
    assert list(names()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_has_words_times_and_code(name):
    settings, module = load(name)
    assert settings.title and settings.source
    assert 0 < settings.minutes["quick"] < 2 < settings.minutes["full"]
    assert callable(module.run) and callable(module.data_source)
    keys = [entry.key for entry in settings.expected]
    assert len(keys) == len(set(keys))
    assert all(entry.where for entry in settings.expected)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("mnist-table1", "NN2-10K/a: Total Pruning (%)", 40.86),
        ("mnist-table1", "CNN-60K/b: NT + FT Acc. (%)", 99.26),
        ("spirals", "plain after layer 2", 2663),
        ("spirals-tables", "dropout/175 after layer 2", 1743),
        ("spirals-tables", "dropout and l1/200 after layer 3", 70),
        ("mnist-small", "P=1000 after SR 4", 0.43),
        ("mnist-small", "P=300 before CA (10% noise)", 61.5),
    ],
)
def test_some_numbers_are_as_printed(name, key, value):
    assert {entry.key: entry.value for entry in read_settings(name).expected}[key] == value


def test_how_many_numbers_the_papers_print():
    counts = {name: len(read_settings(name).expected) for name in NAMES}
    assert counts["mnist-table1"] == 2 * 7 * 6
    assert counts["mnist-small"] == 2 * (3 + 3 + 4 + 4) + 4 * 6
    assert counts["spirals-tables"] == 2 * 5 * (1 + 3)


def test_traps_are_words_not_numbers():
    trapped = [entry.key for entry in read_settings("mnist-table1").expected if entry.instead == "EMT"]
    assert len(trapped) == 5


def test_quick_options_lie_over_the_full_ones():
    settings = read_settings("recovery")
    assert settings.options(quick=True)["features"] < settings.options(quick=False)["features"]
    assert settings.options(quick=True)["seed"] == settings.full["seed"]


def test_a_misspelt_name_gets_its_neighbour():
    with pytest.raises(InputError, match="Did you mean 'spirals'"):
        read_settings("spiral")


def test_what_the_runs_were_tuned_to_is_set_not_judged():
    entries = read_settings("mnist-table1").expected
    chosen = [entry.key.partition(": ")[2] for entry in entries if entry.sense is Sense.SET]
    assert chosen.count("Init. Mod. Acc. (%)") == chosen.count("NT Overall Disc. (%)") == 12 and len(chosen) == 24
    spirals = [entry.key for entry in read_settings("spirals").expected if entry.sense is Sense.SET]
    assert spirals == ["plain discrepancy (%)", "dropout and l1 discrepancy (%)"]
