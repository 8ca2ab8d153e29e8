"""Every option, declared once: its type, its default, its help and the level that uses it.

Each group of options is a frozen dataclass, and :class:`Settings` joins them. The parser of the
command line, the configuration files and their validation are generated from these declarations.
A function that needs one group only can be annotated with that group.
"""

from __future__ import annotations

import json
import math
import os
import re
import tomllib
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from hyps_bids.errors import MissingInput, UsageError
from hyps_bids.messages import is_unicode

Level = Literal["participant", "group"]
#: BIDS suffixes of the images that can be segmented. Contrast-enhanced T1w images are T1w, with the
#: entity ``ce``; quantitative maps, and files with several images such as PDT2, are no such images.
Suffix = Literal["T1w", "T2w", "FLAIR", "UNIT1", "PDw"]
SUFFIXES: tuple[Suffix, ...] = get_args(Suffix)
T = TypeVar("T")
#: Settings that reports show: they decide the results, so all jobs of a dataset share them.
SHOWN_SETTINGS = ("adapter", "base_model", "device", "n4")

#: Names of models, which become names of folders.
_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
#: Largest seed that NumPy accepts.
_LARGEST_SEED = 2**32 - 1


def option(default: T, help: str, metavar: str | None = None, **declaration: Any) -> T:
    """Declare an option as a field of a dataclass; see :class:`Option` for the parameters."""
    return field(default=default, metadata={"help": help, "metavar": metavar, **declaration})


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The arguments that every run needs."""

    bids_dir: Path = field(
        metadata={"help": "BIDS dataset with the images.", "metavar": "BIDS_DIR"}
    )
    output_dir: Path = field(
        metadata={"help": "Derivatives dataset; it may exist.", "metavar": "OUTPUT_DIR"}
    )
    analysis_level: Level = field(
        metadata={
            "help": "The level 'participant' segments each scan; the level 'group' makes tables, "
            "statistics, classifiers and adapters from the results of all scans."
        }
    )


@dataclass(frozen=True, kw_only=True)
class SelectionSettings:
    """Which scans to use."""

    participant_label: tuple[str, ...] = option(
        (), "Use only these participants, with or without 'sub-'.", "LABEL", prefix="sub-"
    )
    exclude_participant_label: tuple[str, ...] = option(
        (), "Leave out these participants, with or without 'sub-'.", "LABEL", prefix="sub-"
    )
    session_label: tuple[str, ...] = option(
        (), "Use only these sessions, with or without 'ses-'.", "LABEL", prefix="ses-"
    )
    suffix: tuple[Suffix, ...] = option(
        ("T1w",),
        f"Use the images with these BIDS suffixes: {', '.join(SUFFIXES)}. Contrast-enhanced T1w "
        "images are T1w.",
        "SUFFIX",
    )
    bids_filter_file: Path | None = option(
        None,
        "Select images by the pybids filters under 't1w', 't2w' and so on in this JSON file.",
        "FILE",
    )
    bids_database_dir: Path | None = option(
        None, "Keep the index of the dataset here, so that later runs start faster.", "DIR"
    )
    skip_bids_validation: bool = option(
        False,
        "Do not check dataset_description.json, and leave out images whose name contradicts their "
        "folder instead of stopping.",
    )


@dataclass(frozen=True, kw_only=True)
class ProcessingSettings:
    """How the networks process images."""

    device: str = option("auto", "Run the networks on this device: auto, cpu, cuda, cuda:N or mps.")
    base_model: Path | None = option(
        None, "Use the base network in this file instead of the shipped one.", "FILE"
    )
    n4: bool = option(
        False,
        "Correct the bias field of each image first. The networks were trained on images with bias "
        "fields and seldom need it.",
        negatable=True,
    )


@dataclass(frozen=True, kw_only=True)
class ExecutionSettings:
    """Where a run works, and how much of the machine it uses."""

    work_dir: Path | None = option(
        None,
        "Use this folder for intermediate files and keep nipype's own there. Without it, they are "
        "in OUTPUT_DIR and removed at the end.",
        "DIR",
        aliases=("-w",),
    )
    clean_workdir: bool = option(False, "Empty the folder of --work-dir before the run.")
    nprocs: int | None = option(
        None,
        "Run this many processes at a time, instead of one for each CPU that the run may use.",
        "N",
        aliases=("--n-cpus",),
    )
    omp_nthreads: int | None = option(
        None, "Let each process use this many threads, instead of its share of the CPUs.", "N"
    )
    mem_gb: float | None = option(
        None, "Process scans within this much memory, instead of all that the run may use.", "GB"
    )
    dry_run: bool = option(False, "List what would be processed, and stop.")
    reports_only: bool = option(
        False, "Build the HTML reports of the existing results, and compute nothing else."
    )
    verbose: int = option(
        0,
        "Log details for debugging; give the option twice to see nipype's messages as well.",
        counted=True,
        least=0,
        aliases=("-v",),
    )


@dataclass(frozen=True, kw_only=True)
class ParticipantSettings:
    """How scans are segmented."""

    adapter: str = option(
        "anteriorposterior",
        "Segment by the protocol of this adapter: the name of a shipped one, or a file.",
        "NAME|FILE",
        maybe_file=True,
    )
    longitudinal: bool | None = option(
        None,
        "Measure the change over time of each participant with several scans of one contrast. By "
        "default this is done where they are of several sessions.",
        negatable=True,
    )
    edits: Path | None = option(
        None,
        "Use the corrected labels (_dseg images) in this derivatives dataset instead of the "
        "networks' labels of their scans. Without this option, scans keep the edits of earlier "
        "runs; with it, scans that have none in it get the networks' labels back.",
        "DIR",
    )
    output_spaces: tuple[str, ...] = option(
        (),
        "Also bring labels and probabilities to the spaces of these templates of TemplateFlow, "
        "such as MNI152NLin2009cAsym or MNI152NLin2009cAsym:res-2, by an affine transform. T1w "
        "means the scan's own space, which is always written. Templates are read from "
        "TEMPLATEFLOW_HOME and never fetched.",
        "SPACE",
    )
    surfaces: bool = option(
        False,
        "Also make a surface of each hippocampus (GIFTI) and measure its area, for scans that are "
        "done already as well. Without this option, the surfaces of earlier runs stay up to date.",
    )
    use_plugin: Path | None = option(
        None,
        "Run the scans with the nipype plugin, such as SLURM, that this YAML, JSON or TOML file "
        "names, instead of on this machine.",
        "FILE",
    )
    stop_on_first_crash: bool = option(False, "Stop the run when the first scan fails.")


@dataclass(frozen=True, kw_only=True)
class ApplyNormSettings:
    """A norm that was fitted before, for scans of either level, and the column of sites."""

    apply_norms: Path | None = option(
        None,
        "Compare each scan with the controls of this norm, a folder models/norms-NAME: centiles of "
        "age, sex and head size. At the group level, --controls calibrates it for new sites.",
        "PATH",
    )
    site: str | None = option(
        None,
        "Take the site or scanner from this column for norms and, at the group level, for "
        "--harmonize and classifiers.",
        "COLUMN",
    )


@dataclass(frozen=True, kw_only=True)
class TableSettings:
    """Which results the group tables hold."""

    keep_missing_images: bool = option(
        False,
        "Keep results whose T1w image is no longer in the dataset in the tables. By default they "
        "are left out, because the image may have been renamed, or the participant withdrawn.",
    )


@dataclass(frozen=True, kw_only=True)
class StatisticsSettings:
    """Linear models of the volumes, and what they share with classifiers."""

    model: tuple[str, ...] = option(
        (),
        "Fit this linear model to each volume in turn, such as 'volume ~ diagnosis + age + sex + "
        "icv'. Participants with several scans get a random intercept and random slopes of what "
        "changes within them; a term such as (time | subject) chooses others.",
        "FORMULA",
    )
    robust_errors: bool = option(
        False,
        "Use standard errors of --model that do not rely on equal variances (HC3) nor, where "
        "participants have several scans, on the random effects (CR2).",
    )
    controls: str | None = option(
        None,
        "Fit the regression of volumes on intracranial volume, and --norms, to these participants "
        "instead of all, and compare with this level in --model.",
        "COLUMN=LEVEL",
    )
    harmonize: bool = option(
        False,
        "Take the differences between the sites of --site out of the measures (ComBat): before "
        "each --model is fitted, keeping the effects of its terms, and within the training folds "
        "of classifiers.",
    )
    posthoc: tuple[str, ...] = option(
        (),
        "Compare all levels of these variables of --model after it, such as diagnosis, "
        "diagnosis:sex or diagnosis|sex (within each sex), the slopes of a number, such as "
        "diagnosis:age, or all.",
        "NAME",
    )


@dataclass(frozen=True, kw_only=True)
class NormSettings:
    """Norms of the measures, fitted to controls."""

    norms: str | None = option(
        None,
        "Fit norms with this name to the measures of the --controls, with smooth effects of age, "
        "with sex, head size and the --site, and compare each scan with them.",
        "NAME",
    )


@dataclass(frozen=True, kw_only=True)
class ClassifierSettings:
    """Classifiers that predict a column of participants.tsv or sessions.tsv."""

    target: str | None = option(
        None, "Train classifiers that predict this column, such as diagnosis.", "COLUMN"
    )
    contrast: tuple[str, ...] = option(
        (),
        "Tell these levels of --target apart, the positive one first: A+C:B joins levels, and "
        "A:B:C makes one classifier of three classes.",
        "A:B",
    )
    features: tuple[str, ...] = option(
        (),
        "Classify by these measures of the wide table, or patterns of them, instead of the "
        "volumes; metadata belong to --covariates and are refused here.",
        "NAME",
    )
    covariates: tuple[str, ...] = option(
        (), "Classify by these metadata as well, such as age and sex.", "COLUMN"
    )
    leave_one_site_out: bool = option(
        False, "Test on each site in turn as well, after training on all others."
    )
    held_out: str | None = option(
        None,
        "Only test on these participants: those with a level, or those listed in a file with one "
        "ID at the start of each line.",
        "COLUMN=LEVEL|FILE",
        maybe_file=True,
    )
    estimators: tuple[str, ...] = option((), "Compare these classifiers instead of all.", "NAME")
    threshold: Literal["prevalence", "0.5", "youden"] = option(
        "prevalence",
        "How to call classes from probabilities: prevalence calls the class whose probability "
        "exceeds its share among the training subjects most, 0.5 the most probable class, and "
        "youden chooses the cut with the best sum of sensitivity and specificity within each "
        "training set.",
    )
    repeats: int = option(5, "Number of cross-validation repeats.", "N")
    permutations: int | None = option(
        None,
        "Number of shuffles of the labels for p-values; 0 does none. The default is 19, 39, 99 or "
        "199, as time allows.",
        "N",
        least=0,
    )
    apply_classifier: Path | None = option(
        None, "Predict the participants with this trained classifier.", "PATH"
    )


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """Adapters that are trained on labeled hippocampi."""

    train_adapter: str | None = option(
        None, "Train an adapter with this name on the images of --labels.", "NAME"
    )
    labels: tuple[Path, ...] = option(
        (), "Use the dseg or mask images of these derivatives datasets.", "DERIVATIVES"
    )
    label_map: str | None = option(
        None,
        "Meaning of the label values, instead of the labels' own dseg.tsv: aseg, whole, "
        "anteriorposterior, a line such as 17:L,53:R, or a TSV file with the columns index, hemi "
        "and part.",
        "MAP",
        maybe_file=True,
    )
    peft: str = option(
        "hyps",
        "Method of the adapter: hyps, pissa, lora, dora, parallel, serial, cps, bitfit, decoder or "
        "full.",
        "METHOD",
    )
    preset: str | None = option(
        None,
        "Named set of adapter settings: paper, or the default with rank 8, bottleneck 8, scale 1 "
        "and dropout 0.",
        "NAME",
    )
    rank: int | None = option(None, "Rank of the low-rank parts, instead of the preset's.", "R")
    bottleneck: int | None = option(None, "Width of the bottlenecks, instead of the preset's.", "D")
    scale: float | None = option(None, "Factor of the bottlenecks, instead of the preset's.", "S")
    dropout: float | None = option(
        None, "Dropout probability of the adapters' inputs, instead of the preset's.", "P"
    )
    layers: tuple[str, ...] = option(
        (),
        "Adapt these layers, instead of the first three: attention, mlp, merging, convolutions.",
        "KIND",
    )
    trainable: tuple[str, ...] = option(
        (),
        "Train the modules whose names begin so as well, instead of decoder and out.",
        "MODULE",
    )
    steps: int = option(300, "Number of optimizer steps of one fit.", "N")
    batch_size: int = option(1, "Number of crops in one optimizer step.", "N")
    learning_rate: float | None = option(
        None, "Learning rate at the start, instead of the method's.", "X"
    )
    stratify: str | None = option(
        None, "Spread the levels of this column evenly over the folds.", "COLUMN"
    )


@dataclass(frozen=True, kw_only=True)
class ValidationSettings:
    """How classifiers and adapters are validated."""

    folds: int = option(5, "Number of cross-validation folds.", "K")
    seed: int = option(
        0, "Seed of folds, weights and augmentation.", "N", least=0, most=_LARGEST_SEED
    )


@dataclass(frozen=True, kw_only=True)
class Settings(
    Arguments,
    SelectionSettings,
    ProcessingSettings,
    ExecutionSettings,
    ApplyNormSettings,
    ParticipantSettings,
    TableSettings,
    StatisticsSettings,
    NormSettings,
    ClassifierSettings,
    AdapterSettings,
    ValidationSettings,
):
    """What the user asked for: made once by the command line, then only read."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """One setting, as the command line and configuration files see it.

    Attributes
    ----------
    name : str
        Name of the setting.
    kind : type
        ``bool``, ``int``, ``float``, ``str`` or ``Path``: the type of a single value.
    several : bool
        Whether the setting is a tuple of values.
    default : object
        The default; :data:`dataclasses.MISSING` for a positional argument.
    help : str
        What the option does, in full sentences; also what None or () as its default means.
    metavar : str or None
        What stands for the value in the help.
    choices : tuple of str
        The only values that are allowed; empty if any is.
    aliases : tuple of str
        Further names on the command line.
    prefix : str
        BIDS prefix that is removed from values.
    maybe_file : bool
        Whether a text may also be the path of a file.
    negatable : bool
        Whether ``--no-NAME`` switches the setting off again.
    counted : bool
        Whether the value is how often the option was given.
    least, most : float
        Smallest and largest whole number that is allowed.
    """

    name: str
    kind: type
    several: bool
    default: Any
    help: str
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    prefix: str = ""
    maybe_file: bool = False
    negatable: bool = False
    counted: bool = False
    least: float = 1
    most: float = math.inf

    @property
    def flags(self) -> list[str]:
        """All names on the command line: words may be joined by hyphens or underscores."""
        hyphens = [f"--{self.name.replace('_', '-')}", *self.aliases]
        underscores = [f"--{n[2:].replace('-', '_')}" for n in hyphens if n.startswith("--")]
        return list(dict.fromkeys(hyphens + underscores))

    @property
    def expected(self) -> str:
        """Say which values are allowed."""
        if self.kind is int:
            end = f" to {self.most}" if self.most < math.inf else ""
            return f"a whole number {'from' if end else 'of at least'} {self.least}{end}"
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        names: dict[type, str] = {bool: "true or false", float: "a positive, finite number"}
        return names.get(self.kind, "a text")

    def check(self, value: object) -> Any:
        """Return a single value in the option's type.

        Raises
        ------
        ValueError
            If it has another type or is out of bounds.
        """
        if isinstance(value, str) and self.kind is Path:
            return read_path(value)
        if self.choices and value not in self.choices:
            raise ValueError(f"{value!r} is not {self.expected}")
        if isinstance(value, str) and self.kind is str:
            return expand_home(value) if self.maybe_file else value.removeprefix(self.prefix)
        if isinstance(value, bool):
            valid = self.kind is bool
        elif isinstance(value, int | float) and self.kind is float:
            valid = 0 < value < math.inf
        else:
            valid = isinstance(value, int) and self.kind is int and self.least <= value <= self.most
        if not valid:
            raise ValueError(f"{value!r} is not {self.expected}")
        return self.kind(value)

    def parse(self, text: str) -> Any:
        """Return the value that a word of the command line stands for; errors as in `check`."""
        value: object = text
        if self.kind in (int, float):
            with suppress(ValueError):
                value = self.kind(text)
        return self.check(value)


def expand_home(text: str) -> str:
    """Replace ``~`` or ``~user`` at the start of a path by the home folder.

    Shells do this only where a word begins, not after ``=`` and not in configuration files.

    Examples
    --------
    >>> expand_home("~/work") == str(Path.home() / "work"), expand_home("a~/b")
    (True, 'a~/b')
    """
    return os.path.expanduser(text)


def read_path(text: str) -> Path:
    """Return the path that a user has typed, with the home folder in place of ``~``.

    Raises
    ------
    ValueError
        If it is empty, as an unset variable of the shell is, or can be no path.
    """
    if not text.strip() or "\0" in text:
        raise ValueError(f"{text!r} is not a path")
    expanded = expand_home(text)
    if expanded.startswith("~") and not Path(expanded).exists():
        raise ValueError(
            f"{text!r} names no home folder; write {'./' + text!r} if the name begins with '~'"
        )
    return Path(expanded)


@dataclass(frozen=True)
class OptionGroup:
    """Options under one heading of the help, for one level or, if it is None, for both."""

    title: str
    level: Level | None
    declarations: type

    @property
    def options(self) -> list[Option]:
        """The declared options, in order."""
        hints = get_type_hints(self.declarations)
        return [
            Option(name=f.name, default=f.default, **_describe_type(hints[f.name]), **f.metadata)
            for f in fields(self.declarations)
        ]


#: All options in the order of the help; the first group holds the positional arguments.
GROUPS = (
    OptionGroup("arguments", None, Arguments),
    OptionGroup("both levels: which scans to use", None, SelectionSettings),
    OptionGroup("both levels: networks", None, ProcessingSettings),
    OptionGroup("both levels: execution", None, ExecutionSettings),
    OptionGroup("both levels: norms and sites", None, ApplyNormSettings),
    OptionGroup("participant level: segmentation", "participant", ParticipantSettings),
    OptionGroup("group level: tables", "group", TableSettings),
    OptionGroup("group level: statistics", "group", StatisticsSettings),
    OptionGroup("group level: norms", "group", NormSettings),
    OptionGroup("group level: classifiers", "group", ClassifierSettings),
    OptionGroup("group level: training of an adapter", "group", AdapterSettings),
    OptionGroup("group level: validation of classifiers and adapters", "group", ValidationSettings),
)


@cache
def all_options() -> tuple[Option, ...]:
    """Return the options of all groups without the positional arguments."""
    return tuple(each for group in GROUPS[1:] for each in group.options)


def unused_options(settings: Settings) -> list[str]:
    """Name the options that were changed although the level does not use them.

    Examples
    --------
    >>> out = {"bids_dir": Path("in"), "output_dir": Path("out"), "analysis_level": "participant"}
    >>> unused_options(Settings(**out, n4=True, target="diagnosis", seed=1))
    ['--target', '--seed']
    """
    alone = settings.analysis_level == "participant" and settings.apply_norms is None
    unused = ["--site"] if alone and settings.site is not None else []
    return unused + [
        each.flags[0]
        for group in GROUPS
        if group.level not in (None, settings.analysis_level)
        for each in group.options
        if getattr(settings, each.name) != each.default
    ]


def check_combinations(settings: Settings) -> None:
    """Refuse options of the group level that would be ignored or contradict each other.

    Raises
    ------
    UsageError
        If two options contradict each other, or one needs another that is not given.
    """
    adapts, classifies = settings.train_adapter is not None, settings.target is not None
    norms = settings.norms is not None or settings.apply_norms is not None
    if adapts != bool(settings.labels):
        text = "--train-adapter NAME and --labels DERIVATIVES must be given together."
        raise UsageError(text, code="adapter-without-labels")
    if settings.posthoc and not settings.model:
        text = "--posthoc needs --model, the formula after which to compare."
        raise UsageError(text, code="posthoc-without-model")
    if settings.robust_errors and not settings.model:
        text = "--robust-errors needs --model, the formula whose errors are meant."
        raise UsageError(text, code="robust-errors-without-model")
    if settings.site and settings.model and not (settings.harmonize or classifies or norms):
        text = (
            "--site has no effect on --model without --harmonize. Add --harmonize, or write "
            f"C({settings.site}) in the formula."
        )
        raise UsageError(text, code="site-unused")
    if settings.contrast and not classifies:
        text = "--contrast needs --target, the column that holds the levels."
        raise UsageError(text, code="contrast-without-target")
    if adapts and (settings.model or classifies or settings.apply_classifier or norms):
        text = (
            "--train-adapter needs a run without --model, --target, --apply-classifier, --norms "
            "and --apply-norms."
        )
        raise UsageError(text, code="adapter-not-alone")
    _check_norms(settings)
    if classifies and settings.folds == 1:
        text = "--folds 1 is too few: cross-validation needs at least two folds."
        raise UsageError(text, code="too-few-folds")
    if settings.site is None and (settings.harmonize or settings.leave_one_site_out):
        text = "--harmonize and --leave-one-site-out need --site, the column of sites."
        raise UsageError(text, code="site-missing")
    if settings.harmonize and not (settings.model or classifies):
        text = "--harmonize needs --model or --target, whose measures it harmonizes."
        raise UsageError(text, code="nothing-to-harmonize")


def _check_norms(settings: Settings) -> None:
    if settings.norms is not None and settings.apply_norms is not None:
        text = (
            "--norms fits norms and applies them, and --apply-norms applies others: both write the "
            "same table, so use one of them in a run."
        )
        raise UsageError(text, code="two-norms")
    if settings.norms is not None and settings.controls is None:
        text = "--norms needs --controls COLUMN=LEVEL, the people who are the norm."
        raise UsageError(text, code="norms-without-controls")
    if settings.norms is not None and not re.fullmatch(_NAME, settings.norms):
        text = f"--norms '{settings.norms}': give a name of letters, digits, '-', '_' and '.'"
        raise UsageError(text, code="norms-name-invalid")


def settings_to_toml(settings: Settings, names: Collection[str] | None = None) -> str:
    """Write the settings that are not defaults as a file for ``--config``.

    Parameters
    ----------
    settings : Settings
        What to write; the positional arguments become a comment.
    names : collection of str, optional
        Write these settings only, without the comment.

    Examples
    --------
    >>> settings = Settings(
    ...     bids_dir=Path("in"), output_dir=Path("out"), analysis_level="group", nprocs=2
    ... )
    >>> print(settings_to_toml(settings))
    # hyps-bids in out group
    nprocs = 2
    <BLANKLINE>
    """
    lines = [f"# hyps-bids {settings.bids_dir} {settings.output_dir} {settings.analysis_level}"]
    lines = [] if names is not None else lines
    for each in all_options():
        value = getattr(settings, each.name)
        if value != each.default and (names is None or each.name in names):
            line = f"{each.name} = {_toml(value)}"
            # TOML is UTF-8, in which some file names cannot be written.
            lines.append(line if is_unicode(line) else f"# not valid in TOML: {line}")
    return "".join(f"{line}\n" for line in lines)


def read_toml(path: Path) -> dict[str, Any]:
    """Read the settings in a configuration file.

    Raises
    ------
    MissingInput
        If the file cannot be read.
    UsageError
        If it is not valid TOML, or has unknown options or values of the wrong kind.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise MissingInput(
            f"{path}: the configuration file cannot be read ({error.strerror}).",
            code="config-unreadable",
        ) from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(
            f"{path}: the configuration file is not valid TOML ({error}).", code="config-not-toml"
        ) from error
    known = {each.name: each for each in all_options()}
    values = {key.replace("-", "_"): value for key, value in content.items()}
    if unknown := sorted(values.keys() - known.keys()):
        raise UsageError(
            f"{path}: the options {', '.join(unknown)} are unknown; the known options are "
            f"{', '.join(sorted(known))}.",
            code="config-option-unknown",
        )
    read = {}
    for name, value in values.items():
        try:
            read[name] = _from_toml(known[name], value)
        except ValueError as error:
            raise UsageError(f"{path}: {name}: {error}.", code="config-value-invalid") from error
    return read


def _from_toml(declared: Option, value: object) -> Any:
    if not declared.several:
        return declared.check(value)
    # A single text may stand without brackets
    values = tuple(map(declared.check, value if isinstance(value, list) else [value]))
    if declared.default and not values:
        raise ValueError("at least one value is needed")
    return values


def _describe_type(hint: Any) -> dict[str, Any]:
    """Describe a field's type by the attributes of :class:`Option`."""
    several = get_origin(hint) is tuple
    if several:
        hint = get_args(hint)[0]
    if get_origin(hint) is Literal:
        return {"kind": str, "several": several, "choices": get_args(hint)}
    kinds = [each for each in get_args(hint) or (hint,) if each is not NoneType]
    return {"kind": kinds[0], "several": several}


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, Path) and str(value).startswith("~"):
        value = f"./{value}"
    # TOML writes strings as JSON does.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
