"""A recipe is checked once, says what is wrong in one sentence, and survives a round trip through TOML."""

import math
import tomllib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nettrim.errors import RecipeError
from nettrim.programs.penalties import L1, ElasticNet, L1Frobenius
from nettrim.recipe import Recipe


def same(one: Recipe, other: Recipe) -> bool:
    return one.to_dict() == other.to_dict()


@pytest.mark.parametrize(
    "options",
    [
        {"epsilon": 0.05},
        {"epsilon": 0, "scheme": "cascade", "gamma": 1, "kappa": 0.5},
        {"epsilon": {"a.b": 0.1, "*": 0.2}, "scheme": {"0": "cascade"}, "gamma": {"2": 1.3}},
        {"epsilon": 3, "relative": False, "budget": 4, "constraint": "strict", "slack": "positive", "refit": False},
        {"epsilon": 0.1, "penalty": ElasticNet(ridge=0.5), "targets": ["a"], "ignore": ["b", 'c "quoted"\n']},
        {"epsilon": 0.1, "penalty": {"a": L1(costs=2.0), "*": L1Frobenius()}, "holdout": 0.25, "positions": 9},
    ],
)
def test_round_trip(options):
    recipe = Recipe(**options)
    assert same(Recipe.from_toml(recipe.to_toml()), recipe)
    assert same(Recipe.from_dict(recipe.to_dict()), recipe)
    assert tomllib.loads(recipe.to_toml()) == recipe.to_dict()


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(), st.floats(0, 1e300), min_size=1), st.lists(st.text()))
def test_round_trip_of_any_names(table, ignored):
    recipe = Recipe(epsilon=table, ignore=tuple(ignored))
    assert same(Recipe.from_toml(recipe.to_toml()), recipe)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epsilon": -0.1}, "`epsilon` should be"),
        ({"epsilon": math.nan}, "`epsilon` should be"),
        ({"epsilon": None}, "`epsilon` should be"),
        ({"epsilon": True}, "`epsilon` should be"),
        ({"epsilon": {"a": -1}}, "`epsilon` should be"),
        ({"scheme": "cascad"}, "Did you mean 'cascade'"),
        ({"gamma": 0.9}, "`gamma` should be"),
        ({"kappa": 0}, "`kappa` should be"),
        ({"kappa": 1.5}, "`kappa` should be"),
        ({"budget": "row"}, "`budget` should be"),
        ({"budget": 0}, "`budget` should be"),
        ({"budget": 2.5}, "`budget` should be"),
        ({"penalty": "l1"}, "`penalty` should be"),
        ({"constraint": "loose"}, "`constraint` should be"),
        ({"slack": "none"}, "`slack` should be"),
        ({"refit": "yes"}, "`refit` should be"),
        ({"targets": ()}, "`targets` should be"),
        ({"targets": [3]}, "`targets` should be"),
        ({"positions": 0}, "`positions` should be"),
        ({"holdout": 1.0}, "`holdout` should be"),
        ({"tolerance": 0}, "`tolerance` should be"),
        ({"seed": -1}, "`seed` should be"),
    ],
)
def test_one_sentence_for_a_bad_value(options, words):
    with pytest.raises(RecipeError, match=words.replace("(", r"\(")):
        Recipe(**{"epsilon": 0.1, **options})


def test_unknown_keys_are_refused_with_the_near_one():
    with pytest.raises(RecipeError, match="'epsilom'.*Did you mean 'epsilon'"):
        Recipe.from_dict({"epsilom": 0.1})
    with pytest.raises(RecipeError, match="Did you mean 'gamma'"):
        Recipe(epsilon=0.1).replace(gama=2)
    with pytest.raises(RecipeError, match="Did you mean 'ridge'"):
        Recipe.from_toml('epsilon = 0.1\n[penalty]\nkind = "ElasticNet"\nrigde = 1.0\n')
    with pytest.raises(RecipeError, match="`epsilon` should be given"):
        Recipe.from_dict({})
    with pytest.raises(RecipeError, match="TOML document"):
        Recipe.from_toml("epsilon = ")


def test_tables_by_layer():
    recipe = Recipe(epsilon={"a": 0.1, "*": 0.3}, scheme={"b": "cascade"}, gamma={"b": 2.0})
    assert (recipe.epsilon_of("a"), recipe.epsilon_of("z")) == (0.1, 0.3)
    assert (recipe.scheme_of("a"), recipe.scheme_of("b")) == ("parallel", "cascade")
    assert (recipe.gamma_of("a"), recipe.gamma_of("b")) == (1.1, 2.0)
    recipe.check_layers(["a", "b"])
    with pytest.raises(RecipeError, match="'b'"):
        recipe.check_layers(["a"])
    with pytest.raises(RecipeError, match="without 'c'"):
        Recipe(epsilon={"a": 0.1}).check_layers(["a", "c"])


def test_per_entry_costs_are_named_in_the_file_and_refused_when_read_back():
    recipe = Recipe(epsilon=0.1, penalty=L1(costs=torch.ones(2, 3)))
    assert recipe.to_dict()["penalty"] == {"kind": "L1", "costs": "tensor 2x3"}
    with pytest.raises(RecipeError, match="only be given in Python"):
        Recipe.from_toml(recipe.to_toml())


def test_a_recipe_cannot_be_changed():
    with pytest.raises(AttributeError):
        Recipe(epsilon=0.1).epsilon = 0.2  # type: ignore[misc]


def test_missing_file(tmp_path):
    with pytest.raises(RecipeError, match="can be read"):
        Recipe.read(tmp_path / "none.toml")


def test_numpy_numbers_become_python_numbers():
    recipe = Recipe(epsilon=np.float32(0.5), gamma={"a": np.float64(1.5)})
    assert type(recipe.epsilon) is float
    assert same(Recipe.from_toml(recipe.to_toml()), recipe)


def test_tables_are_copied():
    table = {"*": 0.1}
    recipe = Recipe(epsilon=table)
    table["*"] = 0.9
    assert recipe.epsilon_of("a") == 0.1
