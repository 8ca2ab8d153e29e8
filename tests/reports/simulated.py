"""Simulated derivatives for the group report; no number comes from a person."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from hyps_bids.cohort.derived import derive
from hyps_bids.cohort.icv import icv_residuals
from hyps_bids.outputs.names import group_path, sidecar_path
from hyps_bids.outputs.reading import CHANGE, LINEAR_MODELS, WIDE, read_wide
from hyps_bids.outputs.writing import write_json, write_table
from tests.cohorts import simulate

#: A value that would do harm wherever it is not escaped.
NASTY = "</script><img src=x onerror=alert(1)> \"quoted' {{ 7 * 7 }} 日本"
#: Name of a column that Vega would take for a path if it were a field.
ODD_COLUMN = "a.b[0]'\"<i>"


def wide_table(n: int, *, sessions: int = 1, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Wide and QC table of `n` subjects: a failed, a missing, flagged scans and an outlier."""
    frame = simulate(
        {"CN": n - n // 2, "AD": n // 2}, {"AD": -2}, scans=sessions, sites=("A", "B"), seed=seed
    )
    for part in ("anterior", "posterior", "whole"):
        both = frame[f"volume_mm3_L_{part}"] + frame[f"volume_mm3_R_{part}"]
        frame[f"volume_mm3_bilateral_{part}"] = both
    rng = np.random.default_rng(seed)
    frame = frame.astype({"flags": object, "reason": object})
    qc = frame[["participant_id", "session_id", "scan"]].copy()
    normal = {"confidence": (0.94, 0.02), "entropy": (0.13, 0.03), "agreement": (0.8, 0.04)}
    normal["component_fraction"] = (0.995, 0.002)
    for measure, (middle, spread) in normal.items():
        for side in "LR":
            qc[f"{measure}_{side}"] = rng.normal(middle, spread, len(frame))
    for side in "LR":
        qc[f"border_voxels_{side}"] = 0.0
        qc[f"volume_mm3_{side}"] = frame[f"volume_mm3_{side}_whole"]
    qc["icv_mm3"] = frame["icv_mm3"]
    frame["remarks"] = None
    frame[ODD_COLUMN] = np.where(np.arange(len(frame)) % 2, NASTY, "plain")
    for row in range(4, len(frame), 25):
        frame.loc[row, "flags"] = "low_confidence_L high_entropy_L"
        qc.loc[row, ["confidence_L", "entropy_L"]] = 0.61, 0.52
    frame.loc[3, [c for c in frame if c.startswith("volume_mm3_L")]] *= 0.35
    frame = pd.concat([frame, derive(frame)], axis=1)
    residuals, _ = icv_residuals(frame, frame["status"] == "done", "all")
    frame = pd.concat([frame, residuals], axis=1)
    measures = frame.filter(regex="^(volume|icv|asymmetry|anterior)").columns
    frame.loc[0, ["status", "reason"]] = "failed", f"not an image: {NASTY}"
    frame.loc[1, ["status", "reason"]] = "missing", "no outputs yet"
    frame.loc[:1, measures] = np.nan
    qc.loc[:1, qc.columns[3:]] = np.nan
    frame.loc[:1, ["software_version", "models", "adapter"]] = None
    qc.insert(3, "status", frame["status"])
    return frame, qc


def write_derivatives(
    output: Path, n: int = 60, *, sessions: int = 1, mixed: bool = False
) -> pd.DataFrame:
    """Write the tables that the group level leaves; returns the wide one."""
    wide, qc = wide_table(n, sessions=sessions)
    if mixed:
        wide.loc[5:9, "models"] = "another:1"
    output.mkdir(parents=True, exist_ok=True)
    numbers = set(wide.select_dtypes("number"))
    sidecar = {
        name: {"Description": "Simulated.", "Format": "number" if name in numbers else "string"}
        for name in wide
    }
    sidecar["diagnosis"]["Levels"] = {"CN": "control", "AD": "patient"}
    sidecar["icv_residual_mm3_L_whole"]["ICVAdjustment"] = {"FittedOn": "all", "N": n}
    path = group_path(output, WIDE)
    write_table(path, wide)
    write_json(sidecar_path(path), sidecar)
    write_table(group_path(output, "qc"), qc)
    (output / "dataset_description.json").write_text(json.dumps({"Name": "Simulated <b>"}))
    return wide


def write_models(output: Path, formula: str = "volume ~ diagnosis + age + sex") -> None:
    """Write the table of linear models of the simulated scans."""
    from hyps_bids.cohort.statistics import fit_models

    wide = read_wide(output).assign(noise=1.0)
    table = fit_models(wide, [formula], ("diagnosis", "CN"))
    write_table(group_path(output, LINEAR_MODELS), table)


def write_change(output: Path) -> None:
    """Write the table of change over time; the scans get dates a year apart."""
    from hyps_bids.cohort.annual_change import annual_change

    path, wide = group_path(output, WIDE), read_wide(output)
    wide["acq_time"] = wide["session_id"].map(lambda s: f"{2000 + int(s[4:])}-06-15T10:00:00")
    write_table(path, wide)
    sidecar = json.loads(sidecar_path(path).read_text())
    write_json(sidecar_path(path), sidecar | {"acq_time": {"Format": "string"}})
    table = annual_change(wide[wide["status"] == "done"])
    write_table(group_path(output, CHANGE), table)


def write_classifier(output: Path) -> str:
    """Train a real, small classifier on the simulated scans; returns the folder's name."""
    from hyps_bids.classification.train import train_classifiers
    from hyps_bids.settings import Settings

    settings = Settings(
        bids_dir=output,
        output_dir=output,
        analysis_level="group",
        target="diagnosis",
        contrast=("AD:CN",),
        covariates=("age",),
        estimators=("logistic",),
        folds=2,
        repeats=2,
        permutations=0,
        nprocs=1,
    )
    assert train_classifiers(settings, read_wide(output)) == []
    return "classifier-AD-vs-CN"


def write_adapter(output: Path, scans: int = 6) -> str:
    """Write outputs of training an adapter with simulated metrics; returns the folder's name."""
    from hyps_bids.adaptation.assess import summarize_assessment

    name = "adapter-my protocol"
    folder = output / "models" / name
    rng = np.random.default_rng(0)
    each = product([f"sub-{i:02d}" for i in range(scans)], "LR", ["head", "whole"])
    rows = pd.DataFrame(each, columns=["scan", "hemi", "part"])
    same = {"fold": 1, "space": "native", "status": "ok", "hd95_mm": 1.5, "asd_mm": 0.5}
    rows = rows.assign(participant_id=rows["scan"], **same)
    rows["dice"] = rng.uniform(0.8, 0.9, len(rows))
    rows["volume_mm3"] = rng.normal(3000, 200, len(rows))
    rows["reference_mm3"] = rng.normal(2900, 200, len(rows))
    write_table(folder / "scans.tsv", rows)
    write_json(folder / "summary.json", summarize_assessment(rows))
    log = "step,seconds,loss,learning_rate,metric,value\n"
    (folder / "logs").mkdir()
    for fit in ("fold-1", "final"):
        lines = [f"{k},1,{1 / k},1e-3,dice_whole,{0.9 - 0.1 / k}\n" for k in range(1, 20)]
        (folder / "logs" / f"{fit}.csv").write_text(log + "".join(lines))
    card = "# Adapter\n\n## Data\n\nSimulated.\n\n## Use and limits\n\nNone.\n"
    (folder / "adapter.md").write_text(card)
    return name
