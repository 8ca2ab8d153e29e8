"""Volumes side by side and what is derived from them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from hyps_bids.cohort.derived import (
    derive,
    describe,
    split_column,
    volume_columns,
    volumes,
)
from hyps_bids.cohort.icv import icv_residuals


def long(scan: str, values: dict[tuple[str, str], float | None], icv: float = 1e6) -> pd.DataFrame:
    rows = [[scan, hemi, part, v, v, icv] for (hemi, part), v in values.items()]
    names = ["scan", "hemi", "part", "volume_mm3", "volume_soft_mm3", "icv_mm3"]
    return pd.DataFrame(rows, columns=names)


def halves(*values: float) -> dict[tuple[str, str], float | None]:
    """Volumes of left anterior, left posterior, right anterior, right posterior."""
    parts = [(hemi, part) for hemi in "LR" for part in ("anterior", "posterior")]
    return dict(zip(parts, values, strict=True))


def test_sums() -> None:
    row = volumes(long("a", halves(1, 2, 4, 8))).loc["a"]
    assert row["volume_mm3_L_whole"] == 3
    assert row["volume_mm3_R_whole"] == 12
    assert row["volume_mm3_bilateral_anterior"] == 5
    assert row["volume_soft_mm3_bilateral_whole"] == 15
    assert row["icv_mm3"] == 1e6


def test_a_given_whole_stands() -> None:
    # Soft volumes are rounded, so their sum may differ in the last digit.
    morph = long("a", {("L", "head"): 1.11, ("L", "tail"): 2.22, ("L", "whole"): 3.34})
    assert volumes(morph).loc["a", "volume_mm3_L_whole"] == 3.34


def test_a_missing_side_or_part_makes_sums_missing() -> None:
    morph = long("a", {("L", "head"): None, ("L", "tail"): 2, ("R", "head"): 1, ("R", "tail"): 1})
    row = volumes(morph).loc["a"]
    assert np.isnan(row["volume_mm3_L_whole"])
    assert np.isnan(row["volume_mm3_bilateral_whole"])
    assert row["volume_mm3_R_whole"] == 2
    assert row["volume_mm3_bilateral_tail"] == 3
    only_left = volumes(long("a", {("L", "whole"): 5.0})).loc["a"]
    assert np.isnan(only_left["volume_mm3_R_whole"])
    assert np.isnan(only_left["volume_mm3_bilateral_whole"])


@pytest.mark.parametrize("part", ["hippocampus", "whole"])
def test_one_part_is_the_whole(part: str) -> None:
    frame = volumes(long("a", {("L", part): 3, ("R", part): 4}))
    assert volume_columns(frame) == [f"volume_mm3_{s}_whole" for s in ("L", "R", "bilateral")]
    assert frame["volume_mm3_bilateral_whole"].tolist() == [7]
    assert "anterior_posterior_ratio_L" not in derive(frame)


def test_adapters_of_different_parts_in_one_table() -> None:
    parts = {(hemi, part): i for hemi in "LR" for i, part in ((1, "head-body"), (2, "tail"))}
    other = {("L", "hippocampus"): 5.0, ("R", "hippocampus"): 6.0}
    frame = volumes(pd.concat([long("a", parts), long("b", other)]))
    names = ["head_body", "tail", "whole"]
    assert volume_columns(frame)[:3] == [f"volume_mm3_L_{part}" for part in names]
    assert frame["volume_mm3_bilateral_whole"].tolist() == [6, 11]
    assert np.isnan(frame.loc["b", "volume_mm3_L_tail"])


def test_ratios() -> None:
    row = derive(volumes(long("a", halves(300, 200, 200, 0)))).loc["a"]
    assert row["asymmetry_anterior"] == 0.4
    assert row["asymmetry_whole"] == pytest.approx(300 / 350)
    assert row["anterior_posterior_ratio_L"] == 1.5
    assert row["anterior_posterior_ratio_bilateral"] == 2.5
    # A ratio to zero is missing, not infinite.
    assert np.isnan(row["anterior_posterior_ratio_R"])
    assert row["icv_fraction_soft_L_whole"] == 5e-4


def simulated(n: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    icv = rng.normal(1.5e6, 1.2e5, n)
    sick = np.arange(n) % 2 == 1
    volume = 3000 + 0.002 * (icv - 1.5e6) - 500 * sick + rng.normal(0, 50, n)
    return pd.DataFrame(
        {
            "participant_id": [f"sub-{i:02d}" for i in range(n)],
            "sick": sick,
            "icv_mm3": icv,
            "volume_mm3_L_whole": volume,
        }
    )


def test_residuals_take_icv_out_and_leave_the_group() -> None:
    frame = simulated()
    controls = ~frame["sick"]
    adjusted, adjustments = icv_residuals(frame, controls, "sick=no")
    column = adjusted["icv_residual_mm3_L_whole"]
    made = adjustments["T1w"]["icv_residual_mm3_L_whole"]
    icv, volume = frame["icv_mm3"], frame["volume_mm3_L_whole"]
    slope, intercept = np.polyfit(icv[controls], volume[controls], 1)
    assert made["Slope"] == pytest.approx(slope)
    assert made["Slope"] == pytest.approx(0.002, rel=0.1)
    assert (made["N"], made["FittedOn"]) == (30, "sick=no")
    # Among the controls, the residuals do not depend on ICV and have the mean of the volumes.
    assert np.corrcoef(column[controls], icv[controls])[0, 1] == pytest.approx(0, abs=1e-9)
    assert column[controls].mean() == pytest.approx(volume[controls].mean())
    assert column[~controls].mean() - column[controls].mean() == pytest.approx(-500, abs=40)
    assert np.allclose(column, volume - (slope * icv + intercept) + volume[controls].mean())


def test_repeated_scans_count_once() -> None:
    frame = simulated(20)
    every = pd.Series(True, index=frame.index)
    _, once = icv_residuals(frame, every, "all")
    again = pd.concat([frame, *[frame.iloc[:3]] * 5], ignore_index=True)
    _, repeated = icv_residuals(again, pd.Series(True, index=again.index), "all")
    (first,), (second,) = once["T1w"].values(), repeated["T1w"].values()
    assert second["N"] == first["N"] == 20
    assert second["Slope"] == pytest.approx(first["Slope"])
    assert second["MeanICV"] == pytest.approx(first["MeanICV"])


def test_no_line_no_residuals() -> None:
    frame = simulated(5)
    for rows in (frame.iloc[:2], frame.assign(icv_mm3=1e6), frame.assign(icv_mm3=np.nan)):
        adjusted, adjustments = icv_residuals(rows, pd.Series(True, index=rows.index), "all")
        assert adjusted.empty
        assert not any(adjustments.values())


def test_every_column_is_described() -> None:
    frame = volumes(long("a", halves(1, 1, 1, 1)))
    frame = pd.concat([frame, derive(frame)], axis=1)
    for name in frame.columns.drop("icv_mm3"):
        assert describe(name)["Units"] in ("mm3", "1")
    with pytest.raises(ValueError, match="volume_mm3_M_whole"):
        split_column("volume_mm3_M_whole")
