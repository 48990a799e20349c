"""How programs are solved: `solve` is the one entry, a solver is an immutable value."""

from nettrim.solvers.base import Solution as Solution
from nettrim.solvers.base import Solver as Solver
from nettrim.solvers.base import Start as Start
from nettrim.solvers.base import Status as Status
from nettrim.solvers.cvxpy_solver import Cvxpy as Cvxpy
from nettrim.solvers.hybrid import Hybrid as Hybrid
from nettrim.solvers.lp import LinearAnswer as LinearAnswer
from nettrim.solvers.lp import find_dual_certificate as find_dual_certificate
from nettrim.solvers.lp import lp_available as lp_available
from nettrim.solvers.lp import solve_lp as solve_lp
from nettrim.solvers.refit import refit as refit
from nettrim.solvers.solve import solve as solve
from nettrim.solvers.solve import solve_path as solve_path
from nettrim.solvers.standard_forms import QCQP as QCQP
from nettrim.solvers.standard_forms import QP as QP
from nettrim.solvers.standard_forms import qcqp_of as qcqp_of
from nettrim.solvers.standard_forms import qp_of as qp_of
