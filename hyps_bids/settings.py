"""The settings of one run: made once by the command line, then only read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["Settings"]


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
    verbose : int
        0 warnings and progress, 1 information, 2 debugging.
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
    verbose: int = 0
