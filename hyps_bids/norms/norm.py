"""The door of this room: what others fit, score and calibrate norms with."""

from hyps_bids.norms.calibrate import calibrate_site
from hyps_bids.norms.fit import fit_norm
from hyps_bids.norms.model import Norm

__all__ = ["Norm", "calibrate_site", "fit_norm"]
