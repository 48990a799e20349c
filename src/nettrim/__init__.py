"""Prune trained networks layer by layer with convex programs, and certify the result."""

from nettrim.api import Trimmed as Trimmed
from nettrim.api import trim as trim
from nettrim.certificates.network import link_denormalize as link_denormalize
from nettrim.certificates.network import link_normalize as link_normalize
from nettrim.certificates.program import Certificate as Certificate
from nettrim.certificates.program import certify as certify
from nettrim.programs import Program as Program
from nettrim.programs.penalties import L1 as L1
from nettrim.programs.penalties import ElasticNet as ElasticNet
from nettrim.programs.penalties import GroupL2Inputs as GroupL2Inputs
from nettrim.programs.penalties import GroupL2Outputs as GroupL2Outputs
from nettrim.programs.penalties import L1Frobenius as L1Frobenius
from nettrim.programs.penalties import MaxNorm as MaxNorm
from nettrim.recipe import Recipe as Recipe
from nettrim.report import Report as Report
from nettrim.results import Event as Event
from nettrim.saving import load as load
from nettrim.solvers import Solution as Solution
from nettrim.solvers import refit as refit
from nettrim.solvers import solve as solve
from nettrim.verifying import VerifyReport as VerifyReport
from nettrim.verifying import verify as verify
from nettrim.version import __version__ as __version__
