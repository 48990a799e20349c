"""How programs are solved: `solve` is the one entry, a solver is an immutable value."""

from nettrim.solvers.base import Solution as Solution
from nettrim.solvers.base import Solver as Solver
from nettrim.solvers.base import Status as Status
from nettrim.solvers.hybrid import Hybrid as Hybrid
from nettrim.solvers.refit import refit as refit
from nettrim.solvers.solve import solve as solve
