"""Certificates: optimality, feasibility and network bounds, in float64, knowing no solver."""

from nettrim.certificates.program import Certificate as Certificate
from nettrim.certificates.program import certify as certify
from nettrim.certificates.recovery import RecoveryCertificate as RecoveryCertificate
from nettrim.certificates.recovery import check_dual_certificate as check_dual_certificate
from nettrim.certificates.recovery import dual_certificate as dual_certificate
from nettrim.certificates.recovery import recovery_probability as recovery_probability
from nettrim.certificates.recovery import samples_for_recovery as samples_for_recovery
