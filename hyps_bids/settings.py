"""The settings of one run: made once by the command line, then only read."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

__all__ = ["Settings", "of_group_level"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the user asked for.

    Attributes
    ----------
    bids_dir, output_dir : Path
        Input dataset and output folder, as given, never resolved through symbolic links.
    analysis_level : {"participant", "group"}
        Which level to run.
    participant_label, exclude_participant_label, session_label : tuple of str
        Labels without ``sub-`` or ``ses-``; empty means all (or none, for the exclusion).
    bids_filter_file : Path or None
        pybids filters for the query ``t1w``, as in fMRIPrep.
    bids_database_dir : Path or None
        Folder of a reusable pybids index.
    skip_bids_validation : bool
        Do not check the input dataset's description and names.
    work_dir : Path or None
        Folder of intermediate files; a folder in `output_dir`, removed at the end, if None.
    clean_workdir : bool
        Empty the work folder before the run.
    nprocs, omp_nthreads : int or None
        Processes at a time and threads of each; what the machine allows if None.
    mem_gb : float or None
        Memory to use at most, GB; what the machine allows if None.
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    adapter : str
        Name of a shipped adapter or path of a safetensors file.
    base_model : Path or None
        The base of the adapter; the shipped one if None.
    n4 : bool
        Correct the bias field before anything else.
    use_plugin : Path or None
        nipype plugin settings, YAML, JSON or TOML: ``plugin`` and ``plugin_args``.
    stop_on_first_crash : bool
        End the run at the first scan that fails.
    dry_run : bool
        List what would be done and stop.
    reports_only : bool
        Build the HTML reports of what is there and compute nothing else.
    verbose : int
        0 warnings and progress, 1 information, 2 debugging.
    model : tuple of str
        Formulas of group statistics; ``volume`` stands for each volume in turn.
    controls : str or None
        ``COLUMN=LEVEL``: on whom volumes are regressed on the ICV; on all if None.
    target : str or None
        Column of participants.tsv (or sessions.tsv) that a classifier predicts.
    contrast : tuple of str
        What to tell apart: ``A:B``, ``A+C:B`` or ``A:B:C``; the first is the positive class.
    features : tuple of str
        Columns of the wide table to classify with; the default set if empty.
    covariates : tuple of str
        More columns to classify with: the metadata.
    site : str or None
        Column with the site or scanner.
    harmonize : bool
        Harmonize the features by `site`, within training folds.
    leave_one_site_out : bool
        Evaluate on each site in turn, trained on the others.
    held_out : str or None
        ``COLUMN=LEVEL``, or a file of participants, to test on only.
    estimators : tuple of str
        Classifiers to compare; all if empty.
    folds, repeats : int
        Folds of cross-validation, and how often it is repeated with other folds.
    permutations : int
        Label permutations behind the p-value.
    apply_classifier : Path or None
        A trained classifier to predict with.
    train_adapter : str or None
        Name of the adapter to train on `labels`.
    labels : tuple of Path
        Derivatives datasets with labeled hippocampi.
    label_map : str or None
        What the labels mean: a preset or a TSV file; the dataset's own dseg.tsv if None.
    peft : str
        Method of the adapter.
    preset : str or None
        Named settings of the adapter, such as ``paper``.
    rank, bottleneck : int or None
        Of the adapter; those of the preset if None.
    scale, dropout : float or None
        Of the adapter; those of the preset if None.
    layers, trainable : tuple of str
        Kinds of layers to adapt, and prefixes of modules that train beside; the preset's if empty.
    steps, batch_size : int
        Optimizer steps of one fit, and crops per step.
    learning_rate : float or None
        At the start; the method's own if None.
    stratify : str or None
        Column of participants.tsv whose levels are spread evenly over the folds.
    seed : int
        Of folds, weights and augmentation.
    """

    bids_dir: Path
    output_dir: Path
    analysis_level: Literal["participant", "group"]
    participant_label: tuple[str, ...] = ()
    exclude_participant_label: tuple[str, ...] = ()
    session_label: tuple[str, ...] = ()
    bids_filter_file: Path | None = None
    bids_database_dir: Path | None = None
    skip_bids_validation: bool = False
    work_dir: Path | None = None
    clean_workdir: bool = False
    nprocs: int | None = None
    omp_nthreads: int | None = None
    mem_gb: float | None = None
    device: str = "auto"
    adapter: str = "anteriorposterior"
    base_model: Path | None = None
    n4: bool = False
    use_plugin: Path | None = None
    stop_on_first_crash: bool = False
    dry_run: bool = False
    reports_only: bool = False
    verbose: int = 0
    # from here on, of the group level
    model: tuple[str, ...] = ()
    controls: str | None = None
    target: str | None = None
    contrast: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    covariates: tuple[str, ...] = ()
    site: str | None = None
    harmonize: bool = False
    leave_one_site_out: bool = False
    held_out: str | None = None
    estimators: tuple[str, ...] = ()
    folds: int = 5
    repeats: int = 5
    permutations: int = 200
    apply_classifier: Path | None = None
    train_adapter: str | None = None
    labels: tuple[Path, ...] = ()
    label_map: str | None = None
    peft: str = "hyps"
    preset: str | None = None
    rank: int | None = None
    bottleneck: int | None = None
    scale: float | None = None
    dropout: float | None = None
    layers: tuple[str, ...] = ()
    trainable: tuple[str, ...] = ()
    steps: int = 300
    batch_size: int = 1
    learning_rate: float | None = None
    stratify: str | None = None
    seed: int = 0


def of_group_level(settings: Settings) -> list[str]:
    """Name the settings that differ from their defaults and that only the group level uses.

    Examples
    --------
    >>> out = {"bids_dir": Path("in"), "output_dir": Path("out"), "analysis_level": "participant"}
    >>> of_group_level(Settings(**out, n4=True, target="diagnosis", seed=1))
    ['target', 'seed']
    """
    every = fields(Settings)
    first = next(i for i, field in enumerate(every) if field.name == "model")
    return [f.name for f in every[first:] if getattr(settings, f.name) != f.default]
