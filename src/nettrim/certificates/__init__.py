"""Certificates: optimality, feasibility and network bounds, in float64, knowing no solver."""

from nettrim.certificates.program import Certificate as Certificate
from nettrim.certificates.program import certify as certify
