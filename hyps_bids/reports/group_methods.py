"""The methods text of the group level, from the tables and models that it has left."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from hyps_bids import __version__
from hyps_bids.classification.card import CROSS_VALIDATION, HELD_OUT, LEAVE_ONE_SITE_OUT
from hyps_bids.cohort.icv import stored_adjustments
from hyps_bids.cohort.image_contrasts import count_contrasts
from hyps_bids.messages import format_count, join_names
from hyps_bids.outputs.labels import WHOLE
from hyps_bids.outputs.names import T1W_ALONE, group_path, group_space, sidecar_path
from hyps_bids.outputs.reading import (
    CHANGE,
    LINEAR_MODELS,
    NORMS,
    POSTHOC,
    WIDE,
    load_json,
    read_table,
    read_wide,
)
from hyps_bids.outputs.scan import DEFAULT_SUFFIX
from hyps_bids.reports.linear_models import adjustments as adjustment_words
from hyps_bids.reports.linear_models import method_words
from hyps_bids.reports.models import is_about


def group_methods_file(suffixes: Collection[str] = T1W_ALONE) -> Path:
    """Name the file with the text; ``CITATION.md`` beside it is that of the participant level.

    Examples
    --------
    >>> group_methods_file().as_posix(), group_methods_file(["FLAIR"]).name
    ('logs/CITATION_group.md', 'CITATION_group_space-FLAIR.md')
    """
    return Path("logs", f"CITATION_group{group_space(suffixes)}.md")


def group_methods_markdown(output_dir: Path, suffixes: Collection[str] = T1W_ALONE) -> str:
    """Write what the group level has done, in paragraphs of Markdown ready to paste.

    The facts are those of the tables and of the folders of models in OUT_DIR, so that the text
    describes the results that are there. It has pandoc's citation keys, which
    :func:`~hyps_bids.reports.citation.bibtex` resolves.

    Parameters
    ----------
    output_dir : Path
        The derivatives dataset.
    suffixes : collection of str
        Suffixes of the images that the text is about.

    Returns
    -------
    str
        Empty if there are no results of the group level.
    """
    parts = [*_tables(output_dir, suffixes), *_models(output_dir, suffixes)]
    parts += _norms(output_dir, suffixes)
    parts += _classifiers(output_dir, suffixes)
    parts += _adapters(output_dir)
    return "".join(f"{part}\n\n" for part in parts).rstrip("\n") + ("\n" if parts else "")


def _tables(output: Path, suffixes: Collection[str]) -> Iterator[str]:
    path = group_path(output, WIDE, suffixes)
    if not path.is_file():
        return
    wide, sidecar = read_wide(output, suffixes), load_json(sidecar_path(path))
    done = wide[wide["status"] == "done"]
    text = (
        f"Measures of {_scans(done)} of "
        f"{format_count(done['participant_id'].nunique(), 'participant')} were collected with "
        f"HyPS-BIDS {__version__}."
    )
    without = len(wide) - len(done)
    if without:
        text += f" {format_count(without, 'further scan')} had no result."
    adjustments = stored_adjustments(sidecar, f"icv_residual_mm3_L_{WHOLE}")
    if adjustments:
        on = next(iter(adjustments.values()))["FittedOn"]
        whom = "" if on == "all" else f" with {on}"
        subjects = join_names(
            f"{name}{': ' if name else ''}{format_count(one['N'], 'participant')}"
            for name, one in adjustments.items()
        )
        over = f"over {subjects}" if "" in adjustments else f"within each contrast ({subjects})"
        text += (
            " Volumes adjusted for intracranial volume (ICV) were computed as volume − slope × "
            f"(ICV − mean ICV), with the slope of a linear regression {over}{whom}."
        )
    if group_path(output, CHANGE, suffixes).is_file():
        text += _change(done, read_table(group_path(output, CHANGE, suffixes)))
    yield text


def _change(done: pd.DataFrame, change: pd.DataFrame) -> str:
    """Say how change over time was measured, and in whom."""
    of = ", separately for each contrast" if len(count_contrasts(done)) > 1 else ""
    line = (
        " Change over time was the slope of the least-squares line through the volumes of each "
        f"participant with scans at several times{of}"
    )
    methods = change.get("method", pd.Series(dtype="str"))
    followed = change[methods.isin(["volume", "bsi"]) & change["percent_per_year"].notna()]
    if followed.empty:
        return f"{line}."
    count = format_count(followed["participant_id"].nunique(), "participant")
    return (
        f" All scans of each of {count} were registered to a space midway between them, segmented "
        f"in the same boxes{of}, and aligned by smooth deformations, along which the "
        "probabilities of all scans were averaged. Change per year was the slope of a line through "
        "these longitudinal volumes and, as a second measurement, through the boundary shift "
        "integral [@bsi; @kn_bsi]; standard errors follow from the error of one scan."
        + (
            f"{line}, each segmented by itself, as a third."
            if (methods == "cross-sectional").any()
            else ""
        )
    )


def _scans(done: pd.DataFrame) -> str:
    """Count the scans of each contrast.

    Examples
    --------
    >>> _scans(pd.DataFrame({"image_contrast": ["T1w", "T2w", "T1w"]}))
    '2 T1w scans and 1 T2w scan'
    """
    counts = [format_count(n, f"{name} scan") for name, n in count_contrasts(done).items()]
    first = ", ".join(counts[:-1])
    return f"{first} and {counts[-1]}" if first else (counts or ["0 scans"])[-1]


def _models(output: Path, suffixes: Collection[str]) -> Iterator[str]:
    path = group_path(output, LINEAR_MODELS, suffixes)
    if not path.is_file():
        return
    table = read_table(path)
    fitted = table[table["estimate"].notna()]
    if fitted.empty:
        return
    yield " ".join(
        _model(str(formula), rows) for formula, rows in fitted.groupby("model", sort=False)
    )
    methods = set(fitted["method"])
    text = ""
    if methods & {"ols", "ols_hc3", "wls", "wls_hc3"}:
        text += f"Least-squares fits used statsmodels {version('statsmodels')} [@statsmodels]. "
    if methods & {"wls", "wls_hc3"}:
        text += (
            "Changes per year were weighted by the inverse of their squared standard error plus "
            "the variance between participants, which was estimated by the method of Paule and "
            "Mandel [@paule_mandel]. "
        )
    if methods & {"mixed", "mixed_cr2"}:
        text += (
            "Mixed models had the profiled likelihood of lme4 [@mixed_models], and the degrees of "
            "freedom of lmerTest [@satterthwaite]. "
        )
    if "mixed_cr2" in methods:
        text += (
            "Cluster-robust standard errors and their degrees of freedom were those of "
            "clubSandwich [@cluster_robust]. "
        )
    text += (
        "For each coefficient, p-values were corrected for the number of measures by the false "
        "discovery rate [@fdr]. Effect sizes were in units of the residual standard deviation, and "
        "intervals were 95 % confidence intervals."
    )
    posthoc = group_path(output, POSTHOC, suffixes)
    if posthoc.is_file():
        table = read_table(posthoc)
        compared = join_names(table["posthoc"].unique())
        text += (
            f" After the models, estimated marginal means or slopes of {compared} were compared in "
            f"pairs, with p-values corrected by {adjustment_words(table)}."
        )
    yield text


def _model(formula: str, rows: pd.DataFrame) -> str:
    count = rows["measure"].nunique()
    text = (
        f"The model {_code(formula)} was fitted to {format_count(count, 'measure')} of "
        f"{_range(rows['n_subjects'])} participants ({_range(rows['n_scans'])} scans) by "
        f"{method_words(rows)}."
    )
    sites = rows["harmonized"].dropna().unique() if "harmonized" in rows else []
    if not len(sites):
        return text
    longitudinal = (rows["n_scans"] > rows["n_subjects"]).any()
    form = (
        "longitudinal ComBat [@longitudinal_combat]"
        if longitudinal
        else "ComBat [@combat; @combat_imaging]"
    )
    return (
        f"{text} Before, differences between the sites ({sites[0]}) in mean and variance were "
        f"removed from the measures with {form}, which kept the effects of the model's terms; "
        "sites were also a term of the model, so that standard errors and degrees of freedom are "
        "those of comparisons within sites [@two_step_correction]."
    )


def _norms(output: Path, suffixes: Collection[str]) -> Iterator[str]:
    """Describe the norms that the table of centiles is from, or else those in ``models/``."""
    path = group_path(output, NORMS, suffixes)
    cards = sorted((output / "models").glob("norms-*/norms.json"))
    fitted = {}
    for card in cards:
        try:
            content = load_json(card)
            fitted[content["Model"]["SHA256"]] = _fitted_norms(content)
        except (OSError, ValueError, KeyError, TypeError):
            # The report says that this card cannot be read.
            continue
    if not path.is_file():
        return
    try:
        used = load_json(sidecar_path(path))["Norms"]
        text = fitted.get(used["SHA256"]) or (
            f"Each scan was compared with norms fitted before, {used['Name']} [@normative]."
        )
        scans = read_table(path).dropna(subset="centile")["scan"].nunique()
    except (OSError, ValueError, KeyError, TypeError):
        return
    yield f"{text} {format_count(scans, 'scan')} had a z-score and a centile among the controls."


def _fitted_norms(card: Mapping[str, Any]) -> str:
    cohort, age = card["Cohort"], card["Cohort"]["Age"]
    families = {str(facts["Distribution"]) for facts in card["Measures"].values()}
    sites = len(cohort["Sites"])
    skewed = " or, where the data asked for it, sinh-arcsinh [@sinh_arcsinh]"
    return (
        f"Norms [@normative] of {format_count(len(card['Measures']), 'measure')} were fitted to "
        f"{format_count(cohort['Participants'], 'control')} ({card['Controls']}) of "
        f"{age['Min']:.0f} to {age['Max']:.0f} years: the location and spread of a normal"
        f"{skewed if families - {'normal'} else ''} distribution followed smooth functions of age, "
        "and depended on sex and, for volumes, on intracranial volume"
        + (f", with offsets of {sites} sites" if sites > 1 else "")
        + f". Controls were scored in {card['Validation']['Folds']} folds by participant, each by "
        "models that had not seen them."
    )


def _classifiers(output: Path, suffixes: Collection[str]) -> Iterator[str]:
    for path in sorted((output / "models").glob("classifier-*/classifier.json")):
        if not is_about(path.parent, suffixes):
            continue
        try:
            validations = set(read_table(path.with_name("figures.tsv"))["validation"])
            yield " ".join(_classifier(load_json(path), validations))
        except (OSError, ValueError, KeyError, TypeError):
            # The report says that this card cannot be read.
            continue


def _classifier(card: Mapping[str, Any], validations: Collection[str]) -> Iterator[str]:
    sizes = ", ".join(f"{n} {name}" for name, n in card["Cohort"]["Subjects"].items())
    inputs = [*card["Features"], *card["Covariates"]]
    yield (
        f"A classifier of {card['Contrast']} ({card['Target']}; {sizes}) was trained on "
        f"{join_names(inputs)} of {card.get('ImageContrast', DEFAULT_SUFFIX)} images with "
        f"scikit-learn {version('scikit-learn')} [@scikit_learn]."
    )
    yield from _validation(card, validations)
    if card["IcvAdjustment"] != "none":
        yield "Volumes were adjusted for intracranial volume within the training folds."
    if card["Harmonization"] != "none":
        yield (
            "Sites were harmonized within the training folds with ComBat [@combat; "
            "@combat_imaging]."
        )
    selection = f" ({card['Selection']})" if "Selection" in card else ""
    yield f"The final model was {card['Estimator']}{selection}."
    yield from _permutation_tests(card)


def _validation(card: Mapping[str, Any], validations: Collection[str]) -> Iterator[str]:
    """Say how performance was estimated, and what no fold could choose anew."""
    facts, doubtful = card["Validation"], card.get("DoubtfulCovariates")
    beforehand = (
        f", except that {join_names(doubtful)}, which may tell the diagnosis, had been found among "
        "all participants of training; the sets of features named reduced are without them"
        if doubtful
        else ""
    )
    yield (
        f"Performance was estimated by nested cross-validation [@nested_cv] with "
        f"{format_count(facts['Folds'], 'fold')} and {format_count(facts['Repeats'], 'repeat')}, "
        "grouped by participant: whatever was chosen or fitted was chosen and fitted within the "
        f"training folds{beforehand}."
    )
    if LEAVE_ONE_SITE_OUT in validations:
        measured = (
            ", whose own volumes were not harmonized" if card["Harmonization"] != "none" else ""
        )
        yield (
            "In leave-one-site-out validation the participants of each site were predicted by "
            f"models of the other sites{measured}."
        )
    if held_out := card["Cohort"].get("HeldOutSubjects"):
        were = "was" if held_out == 1 else "were"
        yield (
            f"{format_count(held_out, 'participant')} {were} held out: nothing was chosen or "
            "fitted on them, and the final fit of each estimator on each set of features predicted "
            "them."
        )
    enlarged = " and leave-one-site-out" if LEAVE_ONE_SITE_OUT in validations else ""
    yield (
        "The 95 % intervals of metrics were the wider of a t interval with a jackknife variance "
        f"over participants, which in cross-validation{enlarged} was enlarged for the variance due "
        "to training, and a score interval."
    )


def _permutation_tests(card: Mapping[str, Any]) -> Iterator[str]:
    """Say for each validation how labels were shuffled, and the result of each set of features."""
    # Cards of version 0.1 have one test of a single estimator, by set of features.
    tests = [{"Features": name, **test} for name, test in card["PermutationTest"].items()]
    for validation in dict.fromkeys(test.get("Validation") for test in tests):
        mine = [test for test in tests if test.get("Validation") == validation]
        planned = mine[0].get("Planned", mine[0]["Permutations"])
        within = " within sites" if mine[0].get("WithinSites") else ""
        results = "; ".join(map(_test_result, mine))
        text = (
            f"{_tested(validation, mine[0].get('Estimator'))} was tested by "
            f"{format_count(planned, 'shuffle')} of the labels{within}"
        )
        if any(test.get("StoppedEarly") for test in mine):
            text += ", or fewer where ten shuffles were as good before [@sequential_p]"
        yield f"{text}: {results}."


def _tested(validation: str | None, estimator: object) -> str:
    if validation is None:
        return f"The cross-validated AUC of {estimator}"
    if validation == HELD_OUT:
        return "The AUC of the held-out participants, whose predictions stayed the same,"
    where = "one repeat" if validation == CROSS_VALIDATION else validation
    return (
        f"The AUC in {where}, for which settings and estimator were chosen again for each shuffle,"
    )


def _test_result(test: Mapping[str, Any]) -> str:
    early = (
        f" after {format_count(test['Permutations'], 'shuffle')}"
        if test.get("StoppedEarly")
        else ""
    )
    return f"{test['Features']}, AUC {test['AUC']:.2f}, p = {test['P']:.3g}{early}"


def _adapters(output: Path) -> Iterator[str]:
    for folder in sorted((output / "models").glob("adapter-*")):
        try:
            whole = load_json(folder / "summary.json")[WHOLE]
            images = _trained_on(folder)
            yield (
                f"The adapter {re.sub('^adapter-', '', folder.name)} was trained on manual labels "
                f"{images}[@hyps] and cross-validated by participant on "
                f"{whole['hippocampi']} hippocampi of "
                f"{format_count(whole['participants'], 'participant')}."
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue


def _trained_on(adapter: Path) -> str:
    """Say of which images the labels were; adapters of earlier versions do not tell."""
    try:
        names = " and ".join(load_json(adapter / "config.json")["contrasts"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return f"of {names} images "


def _code(text: str) -> str:
    """Mark a formula as code, in which stars mean nothing else."""
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def _range(values: pd.Series) -> str:
    low, high = int(values.min()), int(values.max())
    return str(low) if low == high else f"{low} to {high}"
