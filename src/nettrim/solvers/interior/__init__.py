"""Interior point: the sure way for rows that defeat ADMM and the polish, in at most 80 Newton steps a path.

Nearly dead neurons and bounds that are tight in more ways than there are weights have no vertex that an active set
finds quickly; a central path does not mind. With w = p - q, y = X w + tau r the pre-activation less its share of the
ball, and r = alpha - beta the multipliers of lower <= y <= upper, the perturbed conditions are

    p (c - X'r) = q (c + X'r) = alpha (y - lower) = beta (upper - y) = mu,
    tau = eps^2 / (mu + sqrt(mu^2 + eps^2 R^2)),

R the norm of r over the ball's entries of a budget group: the ball's own barrier is eliminated in closed form, so the
only coupling between a group's rows is the scalar R. tau = 1 / (2 lambda) in the regularised form. Eliminating all but
w leaves one positive definite system a row,

    (X' D X + E^-1) dw = rhs,    D = 1 / ((alpha / (y - lower) + beta / (upper - y))^-1 + tau),    E = p/zp + q/zq,

and a rank-one correction for R. Steps are Mehrotra's predictor and corrector from an infeasible start (Wright,
Primal-Dual Interior-Point Methods, 1997, chapter 10), lengthened by Gondzio's correctors. The path begins with the few
samples that are near their bound, and others join it on its way.
"""

from nettrim.solvers.interior.crossover import crossover as crossover
from nettrim.solvers.interior.solve import Central as Central
from nettrim.solvers.interior.solve import solve_interior as solve_interior
