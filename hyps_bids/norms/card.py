"""The card of norms for readers."""

from __future__ import annotations

from pathlib import Path

from hyps_bids.messages import join_names
from hyps_bids.norms.folder import Card
from hyps_bids.norms.measures import title
from hyps_bids.norms.sample import FEW, FEWEST, FEWEST_AT_SITE
from hyps_bids.outputs.writing import write_template

#: Heading of the table of :func:`calibration_rows`.
CALIBRATION_HEAD = ["measure", "scans", "z: mean", "z: SD", "below the 5th", "above the 95th"]


def calibration_rows(card: Card) -> list[list[str]]:
    """Return calibration by measure, as texts."""
    rows = []
    for name, facts in card["Measures"].items():
        one = facts["Calibration"]
        rows.append(
            [
                title(name),
                f"{one['n']:,.0f}",
                f"{one['z_mean']:+.2f}".replace("-", "−"),
                f"{one['z_sd']:.2f}",
                f"{one['below_5']:.1f} %",
                f"{one['above_95']:.1f} %",
            ]
        )
    return rows


def cohort_sentence(card: Card) -> str:
    """Say in a sentence who the controls are."""
    cohort = card["Cohort"]
    age = cohort["Age"]
    sexes = {"F": "women", "M": "men"}
    counts = join_names(f"{n:,} {sexes[name]}" for name, n in cohort["Sexes"].items())
    sites = len(cohort["Sites"])
    return (
        f"{cohort['Participants']:,} controls ({card['Controls']}; {counts}), {age['Min']:.0f} to "
        f"{age['Max']:.0f} years old (mean {age['Mean']:.1f}, SD {age['SD']:.1f}), with "
        f"{cohort['Scans']:,} {'scan' if cohort['Scans'] == 1 else 'scans'} from "
        f"{sites} {'site' if sites == 1 else 'sites'}"
    )


def write_card(path: Path, card: Card) -> None:
    """Write the card in Markdown."""
    values = {
        "card": card,
        "cohort": cohort_sentence(card),
        "head": CALIBRATION_HEAD,
        "rows": calibration_rows(card),
        "titles": {name: title(name) for name in card["Measures"]},
        "few": FEW,
        "fewest": FEWEST,
        "fewest_at_site": FEWEST_AT_SITE,
    }
    write_template(path, "hyps_bids.norms", "card.md.jinja", values)
