"""From the options to a plan: contrasts, columns, subjects and folds, before anything is fitted."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import kruskal

from hyps_bids.classification.columns import (
    choose_columns,
    feature_sets,
    require_columns,
)
from hyps_bids.classification.contrast import (
    Array,
    Bools,
    Contrast,
    LabeledSubjects,
    label_scans,
    site_association,
)
from hyps_bids.classification.doubts import find_doubts
from hyps_bids.classification.estimators import ESTIMATORS, FEWEST_FOR_TREES, TREES
from hyps_bids.classification.features import Schema, levels_of, text_levels
from hyps_bids.classification.harmonize import FEWEST_CONTROLS
from hyps_bids.cohort.combat import FEWEST_AT_A_SITE
from hyps_bids.cohort.comparable import refuse_mixed_weights
from hyps_bids.cohort.image_contrasts import refuse_several
from hyps_bids.cohort.keys import match_labels, with_nearest
from hyps_bids.cohort.visits import count_sources, first_scans
from hyps_bids.errors import BadData, UsageError
from hyps_bids.messages import format_count, join_names
from hyps_bids.settings import Settings

_LOG = logging.getLogger("hyps_bids")

#: Chance of a false alarm about numbers of scans.
_CHANCE = 0.01
#: A column with more levels than this is hardly a diagnosis.
_MANY_LEVELS = 10
#: Names of columns that are checked for confounding even without --site.
_SITE_LIKE = ("site", "center", "centre", "scanner", "manufacturer", "institution")


@dataclass(frozen=True)
class Plan:
    """Everything about one contrast that is known before anything is fitted."""

    contrast: Contrast
    target: str
    #: The scans to develop with, as table and as arrays; held-out subjects are excluded.
    rows: pd.DataFrame
    subjects: LabeledSubjects
    held_out: LabeledSubjects | None
    #: All columns, and the sets of features to compare.
    schema: Schema
    sets: dict[str, Schema]
    #: Covariates that the reduced sets leave out, because they may tell the diagnosis.
    doubtful: tuple[str, ...]
    estimators: tuple[str, ...]
    #: Site of each subject; None without --site.
    sites: tuple[str, ...] | None
    #: Site of each held-out subject; None without --site or held-out subjects.
    held_out_sites: tuple[str, ...] | None
    #: Marks the subjects that are controls, if the target defines them.
    control: Bools | None
    #: Subjects of whom scans with another class than at their first scan were left out.
    converters: frozenset[str]
    #: Warnings for the card, which have been logged.
    warnings: list[str]

    @property
    def full_set(self) -> str:
        """Name of the set of features that the final model is made from."""
        return "both" if "both" in self.sets else "volumes"


@dataclass
class _Warnings:
    """Warnings about one contrast: each is logged and kept for the card."""

    contrast: str
    texts: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        self.texts.append(text)
        _LOG.warning("%s: %s", self.contrast, text)


def done_scans(wide: pd.DataFrame) -> pd.DataFrame:
    """Take the scans of the group table that are done, and check that each is listed once.

    They must be of one contrast: subjects are compared by their volumes, which differ between
    contrasts, and adjusted for intracranial volume by one slope.
    """
    frame = wide[wide["status"] == "done"].reset_index(drop=True)
    twice = frame.loc[frame["scan"].duplicated(), "scan"]
    if len(twice):
        raise BadData(
            f"scan {twice.iloc[0]} is in the group table more than once", code="scan-listed-twice"
        )
    refuse_several(frame, "A classifier")
    return frame


def list_contrasts(settings: Settings, frame: pd.DataFrame) -> list[Contrast]:
    """List the contrasts of ``--contrast``, or the one of all levels of the target."""
    if settings.contrast:
        contrasts = [Contrast.parse(text) for text in settings.contrast]
        names = [contrast.name for contrast in contrasts]
        for name in names:
            if names.count(name) > 1:
                raise UsageError(
                    f"--contrast: two contrasts have the same name {name}",
                    code="contrast-name-repeated",
                )
        return contrasts
    levels = levels_of(frame[settings.target])
    if len(levels) < 2:
        raise BadData(
            f"--target {settings.target}: the column needs at least 2 levels; it has: "
            f"{', '.join(levels) or 'none'}",
            code="target-levels-too-few",
        )
    if len(levels) > _MANY_LEVELS:
        raise UsageError(
            f"--target {settings.target} has {len(levels)} levels, such as {levels[0]}: name with "
            "--contrast the levels to tell apart",
            code="target-levels-too-many",
        )
    _LOG.info("without --contrast: %s, the first one positive", ":".join(levels))
    return [Contrast({level: (level,) for level in levels})]


def make_plan(settings: Settings, frame: pd.DataFrame, contrast: Contrast) -> Plan:
    """Choose scans, columns, controls, held-out subjects and estimators of one contrast."""
    assert settings.target is not None
    warnings = _Warnings(contrast.text)
    rows, label, converters = _labeled_scans(settings, frame, contrast, warnings)
    schema = choose_columns(settings, rows)
    controls = _controls(settings, rows)
    n_controls = None if controls is None else rows.loc[controls, "participant_id"].nunique()
    if n_controls is not None and schema.icv and n_controls < FEWEST_CONTROLS:
        warnings.add(
            f"fewer than {FEWEST_CONTROLS} subjects are --controls {settings.controls}: the "
            "adjustment for ICV is fitted on all training subjects"
        )
    matrix = schema.matrix(rows, controls)
    held_out = _held_out(settings, rows, set(frame["participant_id"].astype(str)))
    subjects = _subjects(matrix, rows, label, contrast, ~held_out)
    others = _subjects(matrix, rows, label, contrast, held_out) if held_out.any() else None
    estimators = _usable_estimators(settings, subjects, contrast, warnings)
    doubts = find_doubts(subjects, schema)
    for text in (*doubts.warnings, *_visits(subjects)):
        warnings.add(text)
    # Harmonization must not keep the effect of what tells the diagnosis.
    preserve = tuple(name for name in schema.preserve if name not in doubts.covariates)
    schema = replace(schema, preserve=preserve)
    for text in _confounding(settings, rows, subjects):
        warnings.add(text)
    sites, others_sites = (
        _by_subject(rows, some, settings.site) if settings.site and some else None
        for some in (subjects, others)
    )
    if settings.harmonize:
        for text in _not_harmonized(sites or (), others_sites or ()):
            warnings.add(text)
    by_target = controls is not None and str(settings.controls).split("=")[0] == settings.target
    return Plan(
        contrast=contrast,
        target=settings.target,
        rows=rows[~held_out].reset_index(drop=True),
        subjects=subjects,
        held_out=others,
        schema=schema,
        sets=feature_sets(schema, doubts.covariates),
        doubtful=doubts.covariates,
        estimators=estimators,
        sites=sites,
        held_out_sites=others_sites,
        control=np.isin(subjects.ids, rows.loc[controls, "participant_id"].astype(str))
        if by_target
        else None,
        converters=converters,
        warnings=warnings.texts,
    )


def _labeled_scans(
    settings: Settings, frame: pd.DataFrame, contrast: Contrast, warnings: _Warnings
) -> tuple[pd.DataFrame, pd.Series, frozenset[str]]:
    """Take the scans of the contrast and their classes, and name the subjects who change class."""
    in_contrast = text_levels(frame[settings.target]).isin(contrast.levels)
    used = [settings.site] if settings.harmonize or settings.leave_one_site_out else []
    no_site = in_contrast & frame[used].isna().any(axis=1)
    label = label_scans(frame[~no_site], str(settings.target), contrast).dropna()
    if no_site.any():
        warnings.add(f"{format_count(int(no_site.sum()), 'scan')} without {settings.site} left out")
    rows = frame.loc[label.index].reset_index(drop=True)
    refuse_mixed_weights(rows)
    labeled = frame[in_contrast & ~no_site]
    changed = labeled.drop(label.index)
    converters = frozenset(changed["participant_id"].astype(str))
    if converters:
        theirs = labeled[labeled["participant_id"].astype(str).isin(converters)]
        warnings.add(
            f"{format_count(len(changed), 'scan')} of {format_count(len(converters), 'subject')} "
            "left out, because the class is another one than at the subject's first scan of this "
            f"contrast{_order_by(theirs)}"
        )
    if flagged := int(rows["flags"].notna().sum()):
        warnings.add(f"quality flags: {flagged} of {format_count(len(rows), 'scan')}")
    return rows, label.reset_index(drop=True), converters


def _order_by(scans: pd.DataFrame) -> str:
    """Say from what the order of scans follows, with the numbers of subjects."""
    counts = count_sources(scans)
    texts = [f"{name} of {format_count(n, 'subject')}" for name, n in counts.items()]
    return f" (the order is known by {', '.join(texts)})" if texts else ""


def _not_harmonized(sites: Sequence[str], held_out: Sequence[str]) -> Iterator[str]:
    """Warn of sites whose effect cannot be learned from the subjects to develop with."""
    counts = Counter(sites)
    few = sorted(name for name, n in counts.items() if n < FEWEST_AT_A_SITE)
    if len(counts) - len(few) < 2:
        yield f"nothing is harmonized: fewer than 2 sites have {FEWEST_AT_A_SITE} training subjects"
    elif few:
        yield (
            f"not harmonized, because they have fewer than {FEWEST_AT_A_SITE} training subjects: "
            f"sites {join_names(few)}"
        )
    unseen = [name for name in held_out if name not in counts]
    if unseen:
        yield (
            f"{format_count(len(unseen), 'held-out subject')} not harmonized, because their sites "
            f"have no training subjects: {join_names(sorted(set(unseen)))}"
        )


def _visits(subjects: LabeledSubjects) -> Iterator[str]:
    """Warn if one class has more scans per subject than another."""
    scans = np.bincount(subjects.subject)
    groups = [scans[subjects.label == k] for k in range(len(subjects.classes))]
    if np.ptp(scans) > 0 and kruskal(*groups).pvalue < _CHANCE:
        means = zip(subjects.classes, groups, strict=True)
        text = ", ".join(f"{name} {group.mean():.1f}" for name, group in means)
        yield (
            f"scans per subject differ between the classes: {text}. Each subject weighs the same, "
            "but later scans show older people, so that a longer follow-up may look like a "
            "disease; --session-label compares the same visit of everybody"
        )


def _subjects(
    matrix: Array, rows: pd.DataFrame, label: pd.Series, contrast: Contrast, take: Bools
) -> LabeledSubjects:
    ids, subject = np.unique(rows.loc[take, "participant_id"].astype(str), return_inverse=True)
    of_subject = np.zeros(len(ids), dtype=np.int64)
    of_subject[subject] = label[take].astype(int)
    return LabeledSubjects(matrix[take], subject, of_subject, tuple(ids), tuple(contrast.classes))


def _usable_estimators(
    settings: Settings, subjects: LabeledSubjects, contrast: Contrast, warnings: _Warnings
) -> tuple[str, ...]:
    """Leave out estimators that need an inner cross-validation if there are too few subjects."""
    smallest = min(subjects.counts.values())
    if smallest < 2:
        raise BadData(
            f"contrast {contrast.text}: without the held-out subjects, a class has "
            f"{format_count(smallest, 'subject')}; at least 2 are needed",
            code="class-too-small",
        )
    folds = min(settings.folds, smallest)
    if folds < settings.folds:
        warnings.add(
            f"{folds} folds instead of {settings.folds}: the smallest class has {smallest}"
        )
    names = settings.estimators or tuple(
        name for name in ESTIMATORS if smallest >= FEWEST_FOR_TREES or name not in TREES
    )
    largest_fold = -(-smallest // folds)
    if smallest - largest_fold < 2:
        left_out = [name for name in names if ESTIMATORS[name].calibrated]
        names = tuple(name for name in names if name not in left_out)
        without = (
            f"; these estimators need one and are left out: {', '.join(left_out)}"
            if left_out
            else ""
        )
        warnings.add(
            "the folds have too few subjects for an inner cross-validation, so they use the first "
            f"estimator and the first of its settings{without}"
        )
    if not set(names) - {"dummy"}:
        raise BadData(
            f"contrast {contrast.text}: none of the estimators can be used with so few subjects",
            code="no-estimator-left",
        )
    return names


def _controls(settings: Settings, rows: pd.DataFrame) -> Bools | None:
    if settings.controls is None:
        return None
    column, _, level = settings.controls.partition("=")
    if not level:
        raise UsageError(
            f"--controls {settings.controls}: write COLUMN=LEVEL", code="controls-without-level"
        )
    require_columns(rows, "--controls", [column])
    return np.asarray(text_levels(rows[column]) == level, dtype=bool)


def _held_out(settings: Settings, rows: pd.DataFrame, everyone: set[str]) -> Bools:
    """Mark the scans of held-out subjects: COLUMN=LEVEL, or a file with one subject per line."""
    text = settings.held_out
    if text is None:
        return np.zeros(len(rows), dtype=bool)
    ids = rows["participant_id"].astype(str)
    column, equals, level = text.partition("=")
    if equals and column in rows:
        subjects = set(ids[text_levels(rows[column]) == level])
    elif Path(text).is_file():
        named = _listed_subjects(Path(text))
        matched = match_labels(sorted(named), everyone)
        subjects = set(matched.values()) & set(ids)
        if taken := [f"{a} for {b}" for a, b in matched.items() if a != b]:
            _LOG.warning("--held-out %s: these subjects were taken: %s", text, join_names(taken))
        if others := [name for name in sorted(named) if matched.get(name) not in subjects]:
            _LOG.warning(
                "--held-out %s: %d of %d subjects are not in this contrast: %s",
                *(text, len(others), len(named), join_names(others)),
            )
        if unknown := sorted(named - matched.keys()):
            _LOG.warning(
                "--held-out %s: these subjects are not in the group table: %s",
                *(text, with_nearest(unknown, sorted(everyone - {*matched.values()}))),
            )
    else:
        raise UsageError(
            f"--held-out {text}: write COLUMN=LEVEL with a column of the group table, or the path "
            "of a file",
            code="held-out-unknown",
        )
    if not subjects:
        raise BadData(f"--held-out {text}: no subject of this contrast", code="held-out-empty")
    return ids.isin(subjects).to_numpy()


def _listed_subjects(path: Path) -> set[str]:
    """Read the first field of each line of a list, or of a table such as participants.tsv."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadData(
            f"--held-out {path}: cannot be read as UTF-8 text ({error})", code="held-out-unreadable"
        ) from error
    names = [re.split(r"[\t,; ]", line.strip())[0] for line in lines if line.strip()]
    return {f"sub-{name.removeprefix('sub-')}" for name in names if name != "participant_id"}


def _by_subject(rows: pd.DataFrame, subjects: LabeledSubjects, column: str) -> tuple[str, ...]:
    """Return the level of a column at the first scan of each subject."""
    return tuple(text_levels(first_scans(rows).loc[list(subjects.ids), column]).fillna("n/a"))


def _confounding(
    settings: Settings, rows: pd.DataFrame, subjects: LabeledSubjects
) -> Iterator[str]:
    """Warn of columns of sites that give the diagnosis away."""
    columns = [settings.site] if settings.site else []
    columns += [str(c) for c in rows if str(c).lower() in _SITE_LIKE and str(c) not in columns]
    for column in columns:
        strength, p, confounded = site_association(
            subjects.label, _by_subject(rows, subjects, column)
        )
        if confounded:
            yield (
                f"{column} and diagnosis are fully confounded: every level of {column} has one "
                "class only, so the classifier may see the scanner instead of the disease, and "
                "harmonization would remove both. These metrics say nothing about the disease"
            )
        # Chance alone gives a large V with many sites and a small p with many subjects.
        elif strength > 0.5 or (strength > 0.1 and p < 0.05):
            advice = (
                "compare the AUC within sites, which the site cannot help"
                if column == settings.site
                else f"name it with --site {column}, so that p-values take it into account"
            )
            yield (
                f"{column} and diagnosis are associated (Cramér's V {strength:.2f}, p = {p:.2g}), "
                f"so the classifier may see the scanner instead of the disease: {advice}"
            )
