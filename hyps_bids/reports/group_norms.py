"""Facts of the group report about norms: the models in ``models/``, and the scans among them."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from hyps_bids.errors import HypsError
from hyps_bids.messages import format_count, join_names
from hyps_bids.norms.card import CALIBRATION_HEAD, calibration_rows, cohort_sentence
from hyps_bids.norms.folder import CARD, README, Card
from hyps_bids.norms.measures import is_shown, title
from hyps_bids.outputs.names import T1W_ALONE, group_path, sidecar_path
from hyps_bids.outputs.reading import NORMS, load_json, read_json_object, read_table, read_wide
from hyps_bids.reports import charts
from hyps_bids.reports.charts import Spec
from hyps_bids.reports.models import ModelChart, ModelTable, TrainedModel, model_folders

_LOG = logging.getLogger("hyps_bids")
#: Largest number of groups that are shown.
_MOST_GROUPS = 8
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class ScoredGroups:
    """How the scans of the group lie among the controls.

    `groups` says what the groups are, `reasons` why scans have no centile, and `rows` have group,
    measure, scans, mean and SD of z, and the shares beyond the outer centiles, under `head`.
    """

    name: str
    groups: str
    chart: Spec
    head: list[str]
    rows: list[list[str]]
    reasons: list[str]


def read_norm_models(output_dir: Path, suffixes: Collection[str] = T1W_ALONE) -> list[TrainedModel]:
    """Read the folders ``models/norms-*`` of images with these suffixes."""
    models = []
    for folder in model_folders(output_dir, "norms-"):
        model = TrainedModel.of_folder(folder, README)
        if not _is_about(folder / CARD, suffixes):
            continue
        model.read(folder / CARD, _add_card)
        model.read(folder / "histogram.tsv", _add_calibration)
        models.append(model)
    return models


def read_scored_groups(
    output_dir: Path, suffixes: Collection[str] = T1W_ALONE
) -> ScoredGroups | None:
    """Summarize the group's table of norms; None without one, or if it is damaged."""
    path = group_path(output_dir, NORMS, suffixes)
    if not path.is_file():
        return None
    try:
        table, facts = read_table(path), read_json_object(sidecar_path(path))["Norms"]
        wide = read_wide(output_dir, suffixes)
        return _summarize(table, wide, str(facts["Name"]), facts.get("GroupColumn"))
    except (OSError, ValueError, KeyError, TypeError, HypsError) as error:
        _LOG.warning("Group report: %s cannot be shown (%s)", path, error)
        return None


def _summarize(
    table: pd.DataFrame, wide: pd.DataFrame, name: str, column: str | None
) -> ScoredGroups | None:
    rows = table[table["measure"].map(is_shown)]
    groups = _groups(rows, wide, column)
    known = rows.assign(group=groups)[rows["z"].notna()]
    if known.empty:
        return None
    # Groups are in the order of their size, and measures in that of the table.
    measures = [m for m in dict.fromkeys(rows["measure"]) if (known["measure"] == m).any()]
    shown, figures, texts = known["group"].value_counts().index[:_MOST_GROUPS], [], []
    for measure in measures:
        for group in shown:
            one = known[(known["measure"] == measure) & (known["group"] == group)]
            if one.empty:
                continue
            z, centile = one["z"], one["centile"]
            quantiles = dict(
                zip(("q5", "q25", "q50", "q75", "q95"), z.quantile(_QUANTILES), strict=True)
            )
            figures.append({"group": group, "measure": title(measure), "n": len(z)} | quantiles)
            texts.append(
                [
                    title(measure),
                    group,
                    f"{len(z):,}",
                    f"{z.mean():+.2f}".replace("-", "−"),
                    f"{z.std():.2f}" if len(z) > 1 else "n/a",
                    f"{100 * (centile < 5).mean():.0f} %",
                    f"{100 * (centile > 95).mean():.0f} %",
                ]
            )
    without = table[table["centile"].isna()].groupby("reason")["scan"].nunique()
    reasons = [f"{format_count(n, 'scan')}: {reason}" for reason, n in without.items()]
    return ScoredGroups(
        name=name,
        groups=f"the levels of {column}" if column in wide else "controls and other scans",
        chart=charts.norm_groups_chart(pd.DataFrame(figures)),
        head=["Measure", "Group", "Scans", "Mean z", "SD", "Below the 5th", "Above the 95th"],
        rows=texts,
        reasons=reasons,
    )


def _groups(rows: pd.DataFrame, wide: pd.DataFrame, column: str | None) -> pd.Series:
    """Name the group of each row: the level of a column, or whether it is a control."""
    if column is None or column not in wide:
        return rows["control"].map({"yes": "controls", "no": "others"}).fillna("others")
    levels = wide.drop_duplicates("scan").set_index("scan")[column].astype("str")
    return rows["scan"].map(levels).fillna("n/a")


def _is_about(card: Path, suffixes: Collection[str]) -> bool:
    """Tell whether norms are of images with these suffixes; damaged ones may be."""
    try:
        return str(load_json(card)["ImageContrast"]).rpartition("_")[2] in suffixes
    except (OSError, ValueError, KeyError, TypeError):
        return True


def _add_card(model: TrainedModel, path: Path) -> None:
    card: Card = load_json(path)
    model.caveats += map(str, card["Warnings"])
    cohort = card["Cohort"]
    rows = [
        ["Controls", cohort_sentence(card)],
        ["Dataset", card["Dataset"]],
        ["Sites", join_names(f"{name} ({n})" for name, n in cohort["Sites"].items())],
        *(
            ["Sites added later", join_names(f"{name} ({n})" for name, n in one["Sites"].items())]
            for one in card.get("Calibrated", ())
        ),
        ["Images", card["ImageContrast"]],
        ["Weights", card["Models"]],
    ]
    if cohort["LeftOut"]:
        left_out = "; ".join(f"{n} because {why}" for why, n in cohort["LeftOut"].items())
        rows.append(["Scans of controls left out", left_out])
    model.headline = f"{cohort['Participants']:,} controls, {cohort['Age']['Min']:.0f} to "
    model.headline += f"{cohort['Age']['Max']:.0f} years old"
    model.tables.append(ModelTable("Whom the norms describe.", [], rows))
    caption = (
        "Calibration: z and centiles of the controls, from folds that did not see them. If the "
        "models are right, z has mean 0 and SD 1, and 5 % are beyond each outer centile."
    )
    model.tables.append(ModelTable(caption, CALIBRATION_HEAD, calibration_rows(card)))


def _add_calibration(model: TrainedModel, path: Path) -> None:
    table = read_table(path)
    titles = {m: title(m) for m in dict.fromkeys(table["measure"]) if is_shown(m)}
    caption = "On the diagonal, as many controls are below a centile as it says."
    chart = charts.norm_calibration_chart(table, titles)
    model.charts.append(ModelChart("Calibration", caption, chart))
