"""Penalties: what "sparse" means. One class a line; see docs/extending.md to add one."""

from nettrim.programs.penalties.base import Penalty as Penalty
from nettrim.programs.penalties.elastic_net import ElasticNet as ElasticNet
from nettrim.programs.penalties.l1 import L1 as L1
from nettrim.programs.penalties.norms import GroupL2Inputs as GroupL2Inputs
from nettrim.programs.penalties.norms import GroupL2Outputs as GroupL2Outputs
from nettrim.programs.penalties.norms import L1Frobenius as L1Frobenius
from nettrim.programs.penalties.norms import MaxNorm as MaxNorm
