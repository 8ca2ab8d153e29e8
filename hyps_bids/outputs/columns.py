"""Columns of the tables that we write, with the descriptions that their sidecars carry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

from hyps_bids.outputs.labels import HEMISPHERES, SIDE_NAMES
from hyps_bids.outputs.quality import SCAN_MEASURES, SIDE_MEASURES, quality_bounds


class ICVAdjustment(TypedDict):
    """Regression of a volume on the intracranial volume.

    Attributes
    ----------
    FittedOn : str
        ``all`` or ``column=level``.
    Slope : float
        mm³ per mm³.
    MeanICV : float
        mm³; at this intracranial volume, the adjusted volume is the volume itself.
    N : int
        Number of subjects; a subject with several scans counts once, with their mean.
    """

    FittedOn: str
    Slope: float
    MeanICV: float
    N: int


class ColumnDescription(TypedDict, total=False):
    """What a BIDS sidecar says about a column; sidecars of raw datasets may have other keys too.

    Attributes
    ----------
    Format : str
        ``number`` or ``string``.
    Levels : object
        Values and their meanings, in BIDS a dict; a raw dataset may have anything here.
    ICVAdjustments : dict of str to ICVAdjustment
        By contrast, instead of ICVAdjustment, if the table has several contrasts.
    """

    Description: str
    Units: str
    Format: str
    Levels: object
    ICVAdjustment: ICVAdjustment
    ICVAdjustments: dict[str, ICVAdjustment]


#: Column that states the contrast → description. Tables of version 0.1 lack it: T1w.
SUFFIX_COLUMN = {"suffix": "BIDS suffix of the image, which states its contrast, such as T1w."}
#: Columns in front of every table of the group level → description
KEYS = {
    "participant_id": "Subject, as in participants.tsv.",
    "session_id": "Session; n/a without sessions.",
    "scan": "Name of the image without its suffix, which stands in the entity space unless it is "
    "T1w.",
    **SUFFIX_COLUMN,
}
#: Column of tables that tells contrasts apart → description
CONTRAST_COLUMN = {
    "image_contrast": "Contrast of the image: its suffix, after the entities ce (contrast agent), "
    "echo and part of its name, such as ce-gadolinium_T1w.",
}
#: Column of the volume table → description
MORPH_COLUMNS = {
    **SUFFIX_COLUMN,
    "index": "Label in the segmentation; n/a for the whole hippocampus.",
    "name": "Name of the structure.",
    "hemi": "Hemisphere: L left, R right.",
    "part": "Part of the hippocampus; 'whole' for all of it.",
    "voxels": "Number of voxels with the label. n/a: not in the field of view, not zero.",
    "volume_mm3": "voxels times the volume of a voxel, mm3.",
    "volume_soft_mm3": "Sum of the structure's probability over the voxels within 2 mm (or one "
    "voxel, if that is more) of the segmented hippocampus, times the volume of a voxel, mm3.",
    "icv_mm3": "Intracranial volume, mm3: sum of the localizer network's intracranial probability "
    "at 2.5 mm. Includes cerebrospinal fluid; too small if the field of view cuts the head.",
}
#: Column that surfaces (--surfaces) add to the volume table → description
SURFACE_COLUMNS = {
    "surface_volume_mm3": "Volume that the surface of the whole hippocampus encloses, mm3; it is "
    "made to be volume_mm3, cavities included. n/a for parts.",
    "surface_area_mm2": "Area of this surface, mm2. n/a for parts.",
}
#: Column of the wide table about the order of a participant's scans → description
VISIT_COLUMNS = {
    "scan_number": "Position of the scan among those of its participant and image_contrast that "
    "are done; 1 is the first.",
    "order_source": "Origin of this order, the same for all these scans: acq_time "
    "(dates), age, the order of rows in sessions.tsv or participants.tsv, or name (of sessions and "
    "scans).",
    "years_since_first_scan": "Years since the first of these scans, from dates or ages; n/a if "
    "neither is known for all of them.",
}
#: Column of the wide table about the longitudinal results of the participant → description
SERIES_COLUMNS = {
    "longitudinal_status": "used; refused: the scan does not fit the other scans of its "
    "participant; stale: the longitudinal results are not those of the present scans, are "
    "incomplete or failed. n/a: the participant has none.",
    "longitudinal_reason": "Why the scan was refused, or the results are stale.",
    "longitudinal_flags": "What is conspicuous about the scan among those of its participant, as "
    "codes; sub-*_desc-longitudinal_qc.tsv has the reasons in sentences.",
}
#: Column of the group's table of volumes that longitudinal results add → description
SERIES_MORPH_COLUMNS = {
    "volume_longitudinal_mm3": "Volume from all scans of the participant together, mm3.",
    "bsi_mm3": "Change since the first of these scans by the boundary shift integral, mm3.",
    "icv_longitudinal_mm3": "Mean intracranial volume of these scans, mm3.",
}
#: Column of the table of linear models → description
LINEAR_MODEL_COLUMNS = {
    "model": "The formula.",
    "method": "ols: least squares. ols_hc3: with standard errors that are consistent under "
    "heteroscedasticity (HC3). wls and wls_hc3: the same, with each subject's change per year "
    "weighted by its standard error and the variance between subjects. mixed: linear mixed model, "
    "fitted by REML, with random effects of subjects; used where a subject has several scans. "
    "mixed_cr2: with cluster-robust standard errors (CR2), which hold whatever the covariance of "
    "the scans of a subject.",
    "random": "Random effects of the mixed model, in the notation of lme4.",
    "measure": "Column of the wide table that was modeled.",
    "harmonized": "Column of the sites by which the measures were harmonized (ComBat) before the "
    "model was fitted; n/a if they were not. The model has the sites as further coefficients that "
    "are not shown, so that standard errors and df are those of comparisons within sites.",
    "side": "L, R or bilateral.",
    "part": "Part of the hippocampus.",
    "term": "Term of the formula.",
    "coefficient": "Column of the design matrix: NAME[T.LEVEL] compares LEVEL with the reference "
    "level. '(all)' is the joint test of a term that has several coefficients.",
    "reference": "Level, or mean of levels, with which the coefficient of a categorical variable "
    "compares; NAME=LEVEL in interactions. n/a for numbers, and for the mean of a level itself.",
    "estimate": "Coefficient, in units of the measure.",
    "se": "Standard error of the coefficient.",
    "ci_low": "Lower end of the 95 % confidence interval of the coefficient.",
    "ci_high": "Upper end of the 95 % confidence interval of the coefficient.",
    "statistic": "t of a coefficient, or F of a joint test.",
    "df": "Degrees of freedom of t, or 'numerator, denominator' of F; of mixed models by "
    "Satterthwaite's method.",
    "p": "Two-sided p-value.",
    "p_fdr": "p adjusted over all measures of the model for this coefficient (Benjamini-Hochberg).",
    "effect": "Effect size. For a coefficient: d, which is estimate / residual SD, for a column of "
    "zeros and ones (Cohen's d, adjusted for the other terms), or the same per SD of any other "
    "column. The residual SD of a mixed model includes that between subjects. For a joint test of "
    "least squares: partial eta squared.",
    "effect_low": "Lower end of the 95 % confidence interval of the effect size, from the "
    "noncentral t or F distribution (ols), or scaled from that of the coefficient (mixed).",
    "effect_high": "Upper end of the 95 % confidence interval of the effect size.",
    "effect_kind": "d, d_per_sd or partial_eta2.",
    "n_scans": "Number of scans used.",
    "n_subjects": "Number of subjects with these scans.",
    "n_left_out": "Number of scans of the wide table that were not used, because they failed, are "
    "missing, or lack a value of the measure or of a term.",
    "converged": "Whether the fit ended as it should.",
    "warnings": "Warnings of the fit, or the reason why there is no fit.",
    "notes": "What else is special about the fit: a variance of zero, or why standard errors are "
    "cluster-robust without --robust-errors. Nothing is wrong.",
}
#: Column of the table of harmonized measures, besides KEYS and the measures → description
HARMONIZED_COLUMNS = {
    "model": "The formula whose effects were kept.",
    "harmonized": "Site of the scan.",
    "icv": "Intracranial volume, which is icv_mm3; formulas may call it so.",
}
#: Column of the table of change over time → description
CHANGE_COLUMNS = {
    "participant_id": "Subject, as in participants.tsv.",
    **CONTRAST_COLUMN,
    "measure": "Column of the wide table; bsi_mm3_SIDE_PART, which is none, for the boundary shift "
    "integral.",
    "n_scans": "Number of scans with this volume and a time.",
    "n_sessions": "Number of sessions with these scans.",
    "time_source": "Origin of the times: acq_time (dates) or age. Dates are used if all scans of "
    "the subject have one. Ages in whole years make the change inexact.",
    "span_years": "Years from the first to the last scan.",
    "baseline_mm3": "Value of the fitted line at the first scan, mm3.",
    "mm3_per_year": "Slope of the least-squares line over the subject's scans, mm3 per year.",
    "mm3_per_year_se": "Standard error of the slope. Of longitudinal results by their error model; "
    "cross-sectional: from the residuals of the line, n/a with two scans.",
    "percent_per_year": "Slope in percent of baseline_mm3, per year.",
    "remarks": "Reason why there is no slope.",
    "method": "cross-sectional: line through the volumes of scans that were segmented each by "
    "itself. volume: from longitudinal volumes, to which all scans contribute. bsi: from the "
    "boundary shift integral. Do not compare participants by different methods.",
    "percent_per_year_se": "Standard error of percent_per_year. That of both sides together takes "
    "the errors of the sides as independent.",
    "percent_per_year_low": "Lower end of the 95 % interval of percent_per_year.",
    "percent_per_year_high": "Upper end of the 95 % interval of percent_per_year.",
}

#: Those that tables of version 0.1 lack.
ADDED_CHANGE_COLUMNS = (
    *("method", "percent_per_year_se", "percent_per_year_low", "percent_per_year_high"),
)
#: Column of a series' table of volumes over time → description
LONGITUDINAL_COLUMNS = {
    **SUFFIX_COLUMN,
    "scan": KEYS["scan"],
    "session_id": KEYS["session_id"],
    "visit": "Position of the scan among those of the series that were used; 1 is the first.",
    "years": "Years since the first of these scans; n/a if the date or age of a scan is unknown.",
    "index": MORPH_COLUMNS["index"],
    "name": MORPH_COLUMNS["name"],
    "hemi": MORPH_COLUMNS["hemi"],
    "part": MORPH_COLUMNS["part"],
    "volume_mm3": "Volume in the midway space, to which all scans of the series contribute, mm3. "
    "n/a: not found at this scan, not zero.",
    "volume_mm3_se": "Standard error of the volume by the error model of the table of annual "
    "change, mm3.",
    "change_mm3": "volume_mm3 minus that of the first scan with this structure, mm3.",
    "change_percent": "change_mm3 in percent of the volume at that first scan.",
    "bsi_mm3": "Change since that first scan by the boundary shift integral, mm3: positive if the "
    "structure has grown. n/a if it was refused.",
    "bsi_percent": "bsi_mm3 in percent of the volume at that first scan.",
}
#: Column of a series' table of change per year → description
ANNUAL_CHANGE_COLUMNS = {
    **SUFFIX_COLUMN,
    "hemi": MORPH_COLUMNS["hemi"],
    "part": MORPH_COLUMNS["part"],
    "method": "volume: from volume_mm3 of the table of volumes over time. bsi: from bsi_mm3, the "
    "boundary shift integral.",
    "n_scans": "Number of scans with a value.",
    "span_years": "Years from the first to the last of these scans; n/a if unknown.",
    "time_source": "Origin of the order and of the times: acq_time (dates) or age; sessions.tsv, "
    "participants.tsv (order of rows) or name, which tell the order alone.",
    "baseline_mm3": "Value of the fitted line at the first of these scans, mm3; without a slope, "
    "and for bsi, the volume at that scan.",
    "change_mm3": "Change from the first to the last of these scans, mm3.",
    "change_mm3_se": "Standard error of change_mm3.",
    "change_percent": "change_mm3 in percent of the volume at the first of these scans.",
    "change_percent_low": "Lower end of the 95 % interval of change_percent.",
    "change_percent_high": "Upper end of the 95 % interval of change_percent.",
    "mm3_per_year": "Slope of the line through the scans, mm3 per year.",
    "mm3_per_year_se": "Standard error of the slope, from the error of one scan that the error "
    "model states and, with three scans or more, from the residuals as well.",
    "percent_per_year": "Slope in percent of baseline_mm3, per year.",
    "percent_per_year_se": "Standard error of percent_per_year.",
    "percent_per_year_low": "Lower end of the 95 % interval of percent_per_year.",
    "percent_per_year_high": "Upper end of the 95 % interval of percent_per_year.",
    "remarks": "Why there is no slope or no interval, or what makes them doubtful.",
}
#: Figure of one scan of a series → description
SERIES_FIGURES = {
    "mask_overlap": "Overlap of the intracranial mask with that of the scan that fits best, as a "
    "share of the smaller one.",
    "similarity": "Correlation of the local structure inside the head with that of the scan that "
    "fits best, at 2.5 mm.",
    "residual": "Robust standard deviation of the difference of local structure from the other "
    "scans after the final registration.",
    "rotation_deg": "Rotation from the scan to the midway space, degrees.",
    "translation_mm": "Shift of the middle of the head from the scan to the midway space, mm.",
    "voxel_mm": "Largest side of a voxel of the scan, mm.",
    **{
        f"agreement_{hemi}": f"Dice of the {side} hippocampus as the network found it in this scan "
        "and as all scans of the participant together show it; below 0.85, the scan is measured "
        "by itself."
        for hemi, side in SIDE_NAMES.items()
    },
}
#: Column of a series' QC table → description
SERIES_QC_COLUMNS = {
    **SUFFIX_COLUMN,
    "scan": KEYS["scan"],
    "session_id": KEYS["session_id"],
    "status": "used; refused: its results over time are left out; failed: the scan failed by "
    "itself or, if all scans are failed, there are no results over time at all.",
    "reason": "Why the scan was refused, or what failed, in sentences.",
    "review": "yes: look at this scan before you use its change; no: nothing is conspicuous.",
    "reasons": "Why the scan should be reviewed, in sentences.",
    "flags": "The reasons as codes, separated by spaces, that of a refusal among them.",
    **SERIES_FIGURES,
}

#: Figure of the registration of a scan with a template → description
SPACE_FIGURES = {
    "covered": "Share of the template's intracranial space that the field of view covers.",
    "overlap": "Dice of the intracranial masks of the scan and of the template, at 2.5 mm, where "
    "the field of view covers the template.",
    "hippocampus_L": "Dice of the left hippocampus of the scan with that which the localizer finds "
    "in the template, at 2.5 mm. The localizer is coarse and its protocol larger.",
    "hippocampus_R": "The same on the right side.",
    "similarity": "Share of the variance of intensities in the scan that those of the template "
    "explain (correlation ratio), inside the skull, at 2.5 mm. Low for other contrasts.",
    "scale_least": "Smallest factor by which the transform stretches the scan.",
    "scale_most": "Largest factor by which the transform stretches the scan.",
    "volume_factor": "Factor by which the transform changes volumes (determinant).",
    "rotation_deg": "Rotation of the scan to the template, degrees.",
}
#: Column of a scan's QC table in the space of a template → description
SPACE_QC_COLUMNS = {
    **SUFFIX_COLUMN,
    "scan": KEYS["scan"],
    "session_id": KEYS["session_id"],
    "space": "Template, and its resolution if one was asked for.",
    "status": "done; refused: the registration failed its checks, so there are no images in this "
    "space; stale: they are not those of the present results of the scan (group level only). The "
    "results on the scan's own grid are not affected.",
    "reason": "Why it was refused or is stale, in sentences.",
    "review": "yes: look at the images in this space before you use them; no: nothing is "
    "conspicuous.",
    "reasons": "Why they should be reviewed, in sentences.",
    "flags": "The reasons as codes, separated by spaces, that of a refusal among them.",
    **SPACE_FIGURES,
}

#: Column of the table of comparisons after linear models → description
POSTHOC_COLUMNS = {
    "model": "The formula.",
    "method": LINEAR_MODEL_COLUMNS["method"],
    "measure": "Column of the wide table that was modeled.",
    "side": "L, R or bilateral.",
    "part": "Part of the hippocampus.",
    "posthoc": "What was compared, as given to --posthoc.",
    "by": "Level within which the rows are compared.",
    "interacts_with": "Variables that interact with the compared ones, over which the row "
    "averages or at whose mean it is: the rows may differ between their values.",
    "kind": "mean: estimated marginal mean, with all combinations of the other categorical "
    "variables' levels (and of those with two values) weighted equally and other numbers at their "
    "mean. slope: change per unit of a number, near its mean and averaged in the same way. "
    "mean_difference and slope_difference: the first minus the second.",
    "contrast": "Level of the variables, joined by colons, or the two that are subtracted.",
    "estimate": "Mean, slope or difference, in units of what stands before ~.",
    "se": "Standard error of the estimate.",
    "ci_low": "Lower end of the 95 % confidence interval, not adjusted for their number.",
    "ci_high": "Upper end of the 95 % confidence interval, not adjusted for their number.",
    "statistic": "t. n/a for means, because zero is no hypothesis about them.",
    "df": "Degrees of freedom of t.",
    "p": "Two-sided p-value, not adjusted.",
    "p_adjusted": "p adjusted for all differences between the n_compared means or slopes.",
    "adjustment": "Method of p_adjusted: tukey, or holm where standard errors are robust.",
    "p_holm": "p adjusted by Holm's method for the same differences.",
    "p_fdr": "p adjusted over all measures of the model for this row (Benjamini-Hochberg).",
    "effect": "Difference / residual SD (d); for slopes per SD of the number.",
    "effect_low": "Lower end of the 95 % confidence interval of the effect size.",
    "effect_high": "Upper end of the 95 % confidence interval of the effect size.",
    "effect_kind": "d or d_per_sd.",
    "n_compared": "Number of means or slopes whose differences are one family.",
    "n_scans": "Number of scans used.",
    "n_subjects": "Number of subjects with these scans.",
    "converged": "Whether the fit ended as it should.",
    "warnings": "Warnings of the fit.",
}
#: Column of the table of norms, besides the keys → description
NORM_COLUMNS = {
    "norms": "Name of the norms.",
    "measure": "Column of the wide table.",
    "side": "L, R or bilateral; n/a for asymmetry.",
    "part": "Part of the hippocampus; n/a for the anterior/posterior ratio.",
    "value": "Value of the measure; the card of the norms states the unit.",
    "age": "Age at the scan in years, as it was used.",
    "sex": "F or M, as it was used.",
    "icv_mm3": "Intracranial volume, mm3, as it was used; n/a if it is not known or flagged.",
    "site": "Site, as it was used.",
    "control": "yes: one of the controls of the norms, scored by models that were fitted without "
    "this participant; no: any other scan.",
    "z": "Position among the controls of this age and sex and, for volumes, of this intracranial "
    "volume, as a standard normal score: below 0, smaller than the middle one.",
    "centile": "Percent of these controls who have a smaller value.",
    "centile_low": "Lower end of the 95 % interval of the centile, which comes from the limited "
    "number of controls, not from the error of the scan.",
    "centile_high": "Upper end of this interval.",
    "reason": "Why there is no centile.",
    "remarks": "What to know about the centile.",
}


def qc_columns() -> dict[str, str]:
    """Return the columns of the QC table and their descriptions, bounds included."""
    columns = {
        **SUFFIX_COLUMN,
        "status": "done, or failed: then there are no other outputs of this scan.",
        "reason": "Why the scan failed.",
        "review": "yes: look at this scan before you use its volumes, for the reasons that follow; "
        "no: nothing is conspicuous.",
        "reasons": "Why the scan should be reviewed, in sentences; n/a if there is no reason.",
        "flags": "The same reasons as codes, separated by spaces: measures outside their bounds "
        "(low_NAME, high_NAME), hippocampi that were not found in the field of view (missing_L, "
        "missing_R), and a header that contradicts itself about the size or the direction of "
        "voxels (geometry).",
        "remarks": "What is unusual about the input file or, where labels were edited, how they "
        "differ from those of the networks.",
        "edited": "yes: the labels and what follows from them (voxels, volume_mm3, asymmetry, "
        "component_fraction, border_voxels) are those of an edited file; who edited it is unknown. "
        "Soft volumes and the other measures are those of the networks and raise no flags. "
        "no: all is from the networks.",
    }
    for hemi in HEMISPHERES:
        columns |= {
            f"edit_dice_{hemi}": "Dice of the edited labels with those of the networks, all parts "
            "together.",
            f"edit_difference_mm3_{hemi}": "Volume of the edited labels minus that of the "
            "networks' labels, mm3.",
        }
    names = [f"{name}_{hemi}" for name in SIDE_MEASURES for hemi in HEMISPHERES]
    for name in [*names, *SCAN_MEASURES]:
        known = quality_bounds()[name.removesuffix("_L").removesuffix("_R")]
        bounds = []
        if "low" in known:
            bounds.append(f"low if < {known['low']:g}")
        if "high" in known:
            bounds.append(f"high if > {known['high']:g}")
        flagged = f"Flagged {' or '.join(bounds)}." if bounds else "Not flagged by itself."
        columns[name] = f"{known['description']} {flagged}"
    return columns


def table_columns(kind: str) -> dict[str, str]:
    """Return the columns of a table over all scans, ``morph`` or ``qc``, and their descriptions."""
    return KEYS | (MORPH_COLUMNS if kind == "morph" else qc_columns())


def described(columns: Mapping[str, str]) -> dict[str, ColumnDescription]:
    """Turn column descriptions into the form that BIDS sidecars have."""
    return {name: {"Description": text} for name, text in columns.items()}
