"""Every option, declared once: its type, its default, its help and the level that uses it.

Each group of options is a frozen dataclass, and :class:`Settings` joins them. The parser of the
command line, the configuration files and their validation are generated from these declarations.
A function that needs one group only can be annotated with that group.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from hyps_bids.errors import MissingInput, UsageError

__all__ = [
    "GROUPS",
    "AdapterSettings",
    "ClassifierSettings",
    "ExecutionSettings",
    "Level",
    "Option",
    "OptionGroup",
    "ParticipantSettings",
    "ProcessingSettings",
    "SelectionSettings",
    "Settings",
    "StatisticsSettings",
    "ValidationSettings",
    "all_options",
    "check_combinations",
    "option",
    "read_toml",
    "settings_to_toml",
    "unused_options",
]

Level = Literal["participant", "group"]
T = TypeVar("T")

#: Largest seed that NumPy accepts.
_LARGEST_SEED = 2**32 - 1


def option(default: T, *, help: str, **declaration: Any) -> T:
    """Declare an option as a field of a dataclass.

    Parameters
    ----------
    default : object
        Value of the setting if the option is not given; None and () mean that it has no value.
    help : str
        What the option does, as one sentence.
    **declaration
        Further attributes of :class:`Option`.
    """
    return field(default=default, metadata={"help": help, **declaration})


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The arguments that every run needs."""

    bids_dir: Path = field(metadata={"help": "BIDS dataset with the T1w images."})
    output_dir: Path = field(metadata={"help": "Derivatives dataset to write; it may exist."})
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
        (),
        help="Use only these participants, given with or without 'sub-'.",
        unset="all participants",
        metavar="LABEL",
        prefix="sub-",
    )
    exclude_participant_label: tuple[str, ...] = option(
        (),
        help="Leave out these participants, given with or without 'sub-'.",
        metavar="LABEL",
        prefix="sub-",
    )
    session_label: tuple[str, ...] = option(
        (),
        help="Use only these sessions, given with or without 'ses-'.",
        unset="all sessions",
        metavar="LABEL",
        prefix="ses-",
    )
    bids_filter_file: Path | None = option(
        None,
        help="Select scans by the pybids filters under 't1w' in this JSON file, as in fMRIPrep.",
        metavar="FILE",
    )
    bids_database_dir: Path | None = option(
        None,
        help="Keep the index of the dataset in this folder, so that later runs start faster.",
        metavar="DIR",
    )
    skip_bids_validation: bool = option(
        False,
        help="Do not check dataset_description.json, and leave out images whose name contradicts "
        "their folder instead of stopping.",
    )


@dataclass(frozen=True, kw_only=True)
class ProcessingSettings:
    """How images are processed by the networks."""

    device: str = option("auto", help="Run the networks on this device: auto, cpu, cuda or cuda:N.")
    base_model: Path | None = option(
        None,
        help="Use the base network in this file.",
        unset="the base that comes with the package",
        metavar="FILE",
    )
    n4: bool = option(
        False,
        help="Correct the bias field of each image first. The networks were trained on images "
        "with bias fields and seldom need it.",
        negatable=True,
    )


@dataclass(frozen=True, kw_only=True)
class ExecutionSettings:
    """Where and with how much of the machine a run works."""

    work_dir: Path | None = option(
        None,
        help="Keep intermediate files in this folder; they need about 70 MB per scan.",
        unset="a folder in OUTPUT_DIR that is removed at the end",
        metavar="DIR",
        aliases=("-w",),
    )
    clean_workdir: bool = option(False, help="Empty the folder of --work-dir before the run.")
    nprocs: int | None = option(
        None,
        help="Run this many processes at a time.",
        unset="one for each CPU that the run may use",
        metavar="N",
        aliases=("--n-cpus",),
    )
    omp_nthreads: int | None = option(
        None,
        help="Let each process use this many threads.",
        unset="chosen from the numbers of CPUs and scans",
        metavar="N",
    )
    mem_gb: float | None = option(
        None,
        help="Use at most this much memory, in GB, to process scans.",
        unset="90 % of the memory that the run may use",
        metavar="GB",
    )
    dry_run: bool = option(False, help="List what would be processed, and stop.")
    reports_only: bool = option(
        False, help="Build the HTML reports of the existing results, and compute nothing else."
    )
    verbose: int = option(
        0,
        help="Log details for debugging; give the option twice to see nipype's messages as well.",
        counted=True,
        least=0,
        aliases=("-v",),
    )


@dataclass(frozen=True, kw_only=True)
class ParticipantSettings:
    """How scans are segmented at the participant level."""

    adapter: str = option(
        "anteriorposterior",
        help="Segment by the protocol of this adapter: the name of a shipped one, or a file.",
        metavar="NAME|FILE",
    )
    use_plugin: Path | None = option(
        None,
        help="Run the scans with the nipype plugin that this YAML, JSON or TOML file names, such "
        "as SLURM.",
        unset="processes on this machine",
        metavar="FILE",
    )
    stop_on_first_crash: bool = option(False, help="Stop the run when the first scan fails.")


@dataclass(frozen=True, kw_only=True)
class StatisticsSettings:
    """Linear models of the volumes."""

    model: tuple[str, ...] = option(
        (),
        help="Fit this linear model to each volume in turn, such as 'volume ~ diagnosis + age + "
        "sex + icv'; participants with several scans get a random intercept.",
        metavar="FORMULA",
    )
    controls: str | None = option(
        None,
        help="Fit the regression of volumes on intracranial volume to these participants only.",
        unset="all participants",
        metavar="COLUMN=LEVEL",
    )


@dataclass(frozen=True, kw_only=True)
class ClassifierSettings:
    """Classifiers that predict a column of participants.tsv or sessions.tsv."""

    target: str | None = option(
        None,
        help="Train classifiers that predict this column, such as diagnosis.",
        metavar="COLUMN",
    )
    contrast: tuple[str, ...] = option(
        (),
        help="Tell these levels of --target apart, the positive one first: A+C:B joins levels, "
        "and A:B:C makes one classifier of three classes.",
        unset="all levels, if they are few",
        metavar="A:B",
    )
    features: tuple[str, ...] = option(
        (),
        help="Classify by these measures of the wide table, which may be patterns; name metadata "
        "with --covariates.",
        unset="the volumes of all parts",
        metavar="NAME",
    )
    covariates: tuple[str, ...] = option(
        (), help="Classify by these metadata as well, such as age and sex.", metavar="COLUMN"
    )
    site: str | None = option(
        None, help="Take the site or scanner from this column.", metavar="COLUMN"
    )
    harmonize: bool = option(
        False, help="Harmonize the features between sites within the training folds."
    )
    leave_one_site_out: bool = option(
        False, help="Test on each site in turn as well, after training on all others."
    )
    held_out: str | None = option(
        None,
        help="Use these participants for testing only: those with a level, or those listed in a "
        "file with one ID at the start of each line.",
        metavar="COLUMN=LEVEL|FILE",
    )
    estimators: tuple[str, ...] = option(
        (), help="Compare only these classifiers.", unset="all classifiers", metavar="NAME"
    )
    repeats: int = option(5, help="Number of cross-validation repeats.", metavar="N")
    permutations: int = option(
        200, help="Number of permutations of the labels for the p-value.", metavar="N"
    )
    apply_classifier: Path | None = option(
        None, help="Predict the participants with this trained classifier.", metavar="PATH"
    )


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """Adapters that are trained on labeled hippocampi."""

    train_adapter: str | None = option(
        None, help="Train an adapter with this name on the images of --labels.", metavar="NAME"
    )
    labels: tuple[Path, ...] = option(
        (),
        help="Train on the labeled hippocampi (dseg or mask images) of these derivatives datasets.",
        metavar="DERIVATIVES",
    )
    label_map: str | None = option(
        None,
        help="Meaning of the label values: aseg, whole, anteriorposterior, a line such as "
        "17:L,53:R, or a TSV file with the columns index, hemi and part.",
        unset="the dseg.tsv of the labels",
        metavar="MAP",
    )
    peft: str = option(
        "hyps",
        help="Method of the adapter: hyps, pissa, lora, dora, parallel, serial, cps, bitfit, "
        "decoder or full.",
        metavar="METHOD",
    )
    preset: str | None = option(
        None, help="Named set of adapter settings: default or paper.", metavar="NAME"
    )
    rank: int | None = option(
        None, help="Rank of the low-rank parts.", unset="that of --preset, or 8", metavar="R"
    )
    bottleneck: int | None = option(
        None, help="Width of the bottlenecks.", unset="that of --preset, or 8", metavar="D"
    )
    scale: float | None = option(
        None, help="Factor of the bottlenecks.", unset="that of --preset, or 1", metavar="S"
    )
    dropout: float | None = option(
        None,
        help="Probability with which the inputs of the added parts are dropped in training.",
        unset="that of --preset, or 0",
        metavar="P",
    )
    layers: tuple[str, ...] = option(
        (),
        help="Kinds of layers to adapt: attention, mlp, merging and convolutions.",
        unset="attention, mlp and merging",
        metavar="KIND",
    )
    trainable: tuple[str, ...] = option(
        (),
        help="Train the modules whose names begin with these words as well.",
        unset="decoder and out",
        metavar="MODULE",
    )
    steps: int = option(300, help="Number of optimizer steps of one fit.", metavar="N")
    batch_size: int = option(1, help="Number of crops in one optimizer step.", metavar="N")
    learning_rate: float | None = option(
        None, help="Learning rate at the start.", unset="that of the method", metavar="X"
    )
    stratify: str | None = option(
        None, help="Spread the levels of this column evenly over the folds.", metavar="COLUMN"
    )


@dataclass(frozen=True, kw_only=True)
class ValidationSettings:
    """How classifiers and adapters are validated."""

    folds: int = option(5, help="Number of cross-validation folds.", metavar="K")
    seed: int = option(
        0,
        help="Seed of the random numbers for folds, weights and augmentation.",
        metavar="N",
        least=0,
        most=_LARGEST_SEED,
    )


@dataclass(frozen=True, kw_only=True)
class Settings(
    Arguments,
    SelectionSettings,
    ProcessingSettings,
    ExecutionSettings,
    ParticipantSettings,
    StatisticsSettings,
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
    choices : tuple of str
        The only values that are allowed; empty if any is.
    help : str
        What the option does, as one sentence.
    unset : str
        What happens if the option is not given and its default is no value.
    metavar : str or None
        What stands for the value in the help.
    aliases : tuple of str
        Further names on the command line.
    prefix : str
        BIDS prefix, which values may have and lose.
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
    choices: tuple[str, ...] = ()
    help: str
    unset: str = ""
    metavar: str | None = None
    aliases: tuple[str, ...] = ()
    prefix: str = ""
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
        names: dict[type, str] = {bool: "true or false", float: "a positive, finite number"}
        return names.get(self.kind, "a text")

    def check(self, value: object) -> Any:
        """Return a single value in the option's type.

        Raises
        ------
        ValueError
            If it has another type or is out of bounds.
        """
        if isinstance(value, str) and self.kind in (str, Path):
            return self.kind(value.removeprefix(self.prefix))
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


@dataclass(frozen=True)
class OptionGroup:
    """A group of options in the help.

    Attributes
    ----------
    title : str
        Its heading.
    level : {"participant", "group"} or None
        The only level that uses it; both if None.
    declarations : type
        The dataclass that declares the options.
    """

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
    OptionGroup("participant level: segmentation", "participant", ParticipantSettings),
    OptionGroup("group level: statistics", "group", StatisticsSettings),
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
    return [
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
    if bool(settings.labels) != (settings.train_adapter is not None):
        raise UsageError(
            "--train-adapter NAME and --labels DERIVATIVES must be given together.",
            code="adapter-without-labels",
        )
    if settings.contrast and settings.target is None:
        raise UsageError(
            "--contrast needs --target, the column that holds the levels.",
            code="contrast-without-target",
        )
    others = settings.model or settings.target or settings.apply_classifier
    if settings.train_adapter is not None and others:
        raise UsageError(
            "--train-adapter cannot be combined with --model, --target or --apply-classifier; "
            "give these in a run of their own.",
            code="adapter-not-alone",
        )
    if settings.target is not None and settings.folds == 1:
        raise UsageError(
            "--folds 1 is too few: cross-validation needs at least two folds.",
            code="too-few-folds",
        )
    if settings.site is None and (settings.harmonize or settings.leave_one_site_out):
        raise UsageError(
            "--harmonize and --leave-one-site-out need --site, the column of sites.",
            code="site-missing",
        )


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
            lines.append(f"{each.name} = {_toml(value)}")
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
        content = tomllib.loads(path.read_text(encoding="utf-8"))
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
    # a single text may stand without brackets
    return tuple(map(declared.check, value if isinstance(value, list) else [value]))


def _describe_type(hint: Any) -> dict[str, Any]:
    """Describe a field's type by the attributes of :class:`Option`."""
    if get_origin(hint) is Literal:
        return {"kind": str, "several": False, "choices": get_args(hint)}
    kinds = [each for each in get_args(hint) or (hint,) if each not in (NoneType, Ellipsis)]
    return {"kind": kinds[0], "several": get_origin(hint) is tuple}


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, int | float):
        return str(value)
    # TOML writes strings as JSON does.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
