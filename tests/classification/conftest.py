"""Cohorts as the classifiers take them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from hyps_bids.classification.columns import choose_columns
from hyps_bids.classification.contrast import Cohort, Contrast, label_scans
from hyps_bids.classification.features import Schema


def make_cohort(
    frame: pd.DataFrame, contrast: str = "AD:CN", **options: object
) -> tuple[Cohort, Schema]:
    """Make arrays of a simulated table; by default harmonized, with age and sex."""
    defaults = {"covariates": ("age", "sex"), "site": "site", "harmonize": True}
    schema = choose_columns(frame, **{**defaults, **options})  # type: ignore[arg-type]
    classes = Contrast.parse(contrast)
    label = label_scans(frame, "diagnosis", classes)
    rows = frame[label.notna()]
    ids, subject = np.unique(rows["participant_id"], return_inverse=True)
    of_subject = np.zeros(len(ids), dtype=np.int64)
    of_subject[subject] = label.dropna().astype(int)
    cohort = Cohort(schema.matrix(rows), subject, of_subject, tuple(ids), tuple(classes.classes))
    return cohort, schema
