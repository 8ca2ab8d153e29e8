"""The subject report: all scans of one subject in one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from hyps_bids.outputs.labels import HEMISPHERES, SIDE_NAMES, WHOLE
from hyps_bids.outputs.series import find_series_of
from hyps_bids.outputs.writing import write_text
from hyps_bids.reports.citation import methods_html, methods_markdown
from hyps_bids.reports.norms import build_norm_sections
from hyps_bids.reports.page import embedded_json, render
from hyps_bids.reports.scan_facts import take_inventory
from hyps_bids.reports.section import Section, State, build_section
from hyps_bids.reports.series_images import FULL_COLOR
from hyps_bids.reports.series_section import SeriesSection, build_series_section
from hyps_bids.reports.state import report_path, state_of

#: Largest size of a report, bytes.
LIMIT = 6_000_000
#: Size of the page itself, bytes: viewer library, style, scripts, methods.
_PAGE = 1_250_000
#: Largest size of a scan's section, bytes.
_SHARE = 1_600_000
#: Largest size of all sections about change over time together, bytes.
_SERIES = 1_200_000


def write_subject_report(
    bids_dir: Path, output_dir: Path, subject: str, *, settings_text: str = ""
) -> Path:
    """Write the report of a subject from its derivatives.

    Nothing is computed anew. What is missing or damaged is logged and said in the report. Several
    jobs may finish scans of a subject at once: the last one to write includes all of them.

    Parameters
    ----------
    bids_dir : Path
        The raw dataset.
    output_dir : Path
        The derivatives dataset.
    subject : str
        Label, without ``sub-``.
    settings_text : str
        Settings of the run, shown as they are.

    Returns
    -------
    Path
        ``OUT_DIR/sub-<subject>.html``; the same derivatives give the same file, but
        for where the raw dataset is from there.

    Raises
    ------
    CannotCreateOutput
        If it cannot be written.
    """
    path = report_path(output_dir, subject)
    state, complete = None, bool(settings_text)
    while state != (now := state_of(bids_dir, output_dir, subject, with_settings=complete)):
        state = now
        write_text(path, _build(bids_dir, output_dir, subject, settings_text, state))
    return path


def _build(bids_dir: Path, output_dir: Path, subject: str, settings_text: str, state: str) -> str:
    found = take_inventory(bids_dir, output_dir, subject)
    over_time = find_series_of(output_dir, subject)
    room = LIMIT - _PAGE - len(settings_text.encode())
    part = min(_SERIES, room // 4) // max(1, len(over_time))
    share = min(_SHARE, (room - part * len(over_time)) // max(1, len(found.scans)))
    sections = [build_section(bids_dir, output_dir, scan, share) for scan in found.scans]
    facts = {section.facts.scan.stem: section.facts for section in sections}
    series = [build_series_section(output_dir, each, facts, part) for each in over_time]
    viewers = {s.anchor: s.viewer for s in sections if s.viewer is not None}
    return render(
        "subject.html.j2",
        # Without a state the report is made again: missing pictures may be there by then.
        outputs_state=""
        if any([s.unseen for s in sections] + [s.unseen for s in series])
        else state,
        unprocessed=found.unprocessed,
        without_image=found.without_image,
        subject=subject,
        sections=sections,
        series=series,
        full=round(100 * FULL_COLOR),
        anchors={section.facts.scan.stem: section.anchor for section in sections},
        verdict=_verdict(sections, series),
        columns=_columns(sections),
        runs=dict.fromkeys(s.run for s in sections if s.run is not None),
        methods=_methods(sections, followed=any(len(s.facts.used) > 1 for s in series)),
        norms=build_norm_sections(
            bids_dir, output_dir, [(s.facts.scan, s.title) for s in sections]
        ),
        viewers=embedded_json(viewers, "viewer-data") if viewers else None,
        settings_text=settings_text,
        side_names=SIDE_NAMES,
    )


def _methods(sections: Sequence[Section], *, followed: bool) -> list[tuple[Markup, list[str]]]:
    """Write each different methods text once, with the titles of its scans."""
    alike: dict[str, list[Section]] = {}
    for section in sections:
        if section.facts.record is not None:
            alike.setdefault(methods_markdown(section.facts.record), []).append(section)
    numbered = []
    for number, group in enumerate(alike.values()):
        assert group[0].facts.record is not None
        suffixes = {section.facts.scan.suffix for section in group}
        text = methods_html(group[0].facts.record, suffixes, followed=followed)
        if number:
            # Tell the anchors of several lists of references apart.
            for start in ('id="ref-', 'href="#ref-'):
                text = Markup(str(text).replace(start, f"{start}{number}-"))
        numbered.append((text, [section.title for section in group]))
    return numbered


def _verdict(sections: Sequence[Section], series: Sequence[SeriesSection]) -> State:
    """Sum up all scans, and what is conspicuous about their change over time."""
    count = len(sections)
    if not count:
        return State("bad", "✗", "No scan of this subject has been processed.")
    bad = sum(s.state.kind == "bad" for s in sections)
    flagged = sum(s.state.kind == "warn" and bool(s.facts.flags) for s in sections)
    unseen = sum(s.state.kind == "warn" and not s.facts.flags for s in sections)
    words = "; ".join(
        f"{n} of {count} {'scan' if count == 1 else 'scans'} {what}"
        for n, what in (
            (bad, "failed or incomplete"),
            (flagged, "flagged: look at the pictures"),
            (unseen, "without pictures"),
        )
        if n
    )
    odd = [s for s in series if s.state.kind != "good"]
    words = "; ".join(
        [*filter(None, [words]), *(f"{s.title.lower()}: {s.state.words}" for s in odd)]
    )
    if words:
        return State("bad", "✗", words) if bad else State("warn", "!", words)
    return State("good", "✓", "No flags" if count == 1 else f"No flags in any of {count} scans")


def _columns(sections: Sequence[Section]) -> list[tuple[str, str]]:
    """Return hemisphere and part of all scans' structures, the whole last on each side."""
    found = dict.fromkeys((p.hemi, p.part) for s in sections for p in s.facts.structures)
    known = [one for one in found if one[0] in HEMISPHERES]
    return sorted(known, key=lambda one: (one[0], one[1] == WHOLE))
