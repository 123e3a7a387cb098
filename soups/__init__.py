"""Weight interpolation for any PyTorch model: merge checkpoints, sweep coefficients, draw the Pareto front.

Importing this package imports neither torch, numpy nor matplotlib; the modules that need them do.
"""

from soups.errors import UserError

__all__ = ["UserError"]
