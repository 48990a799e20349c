"""The mathematics: activations as preimages, penalties, budgets, and the program they make."""

from nettrim.programs.activations import ACTIVATIONS as ACTIVATIONS
from nettrim.programs.activations import Activation as Activation
from nettrim.programs.activations import get_activation as get_activation
from nettrim.programs.budgets import budget_groups as budget_groups
from nettrim.programs.budgets import group_sums as group_sums
from nettrim.programs.program import Program as Program
