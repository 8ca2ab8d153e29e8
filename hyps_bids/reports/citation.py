"""The methods text for a paper that uses the results, and the works that it cites."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection
from contextlib import suppress
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from hyps_bids.messages import join_alternatives
from hyps_bids.outputs.provenance import Provenance
from hyps_bids.outputs.writing import write_text
from hyps_bids.settings import SUFFIXES, Suffix

_KEY = r"@(\w+)"
_GROUP = re.compile(rf"\[{_KEY}(?:; {_KEY})*\]")
_CODE = re.compile(r"(`+) ?(.+?) ?\1")

_TEXT = """\
Hippocampi were segmented with HyPS-BIDS {version}, a BIDS App [@bids; @bids_apps] built with \
Nipype [@nipype]. {bias}A 3-D U-Net at 2.5 mm ({localizer}) localized the hippocampi and the \
intracranial space in each {contrasts} image. A Swin UNETR [@swin_unetr] of MONAI [@monai] \
segmented each hippocampus in a box at 1 mm: {network}. Probabilities were resampled to the grid \
of the image. A voxel belongs to the hippocampus where the probabilities of all parts together \
reach one half, and then to the most probable part. Only the largest component of each side was \
kept. Volumes are voxel counts in native space; soft volumes are sums of probabilities. The \
intracranial volume is the sum of the U-Net's intracranial probability.
"""
#: Second paragraph, about participants with several scans.
LONGITUDINAL_METHODS = """\
Scans of a participant at several times were registered to a space midway between all of them \
[@midway], which favors none, by a rigid transform of the intracranial space. In that space, the \
network segmented each hippocampus in the same box at all times, and the images were aligned by \
smooth deformations. The probabilities of all times were averaged along the deformations; the \
volume at each time is that of this mean, enlarged or reduced as its deformation says. Change was \
measured from these volumes, and by the boundary shift integral [@bsi], with two windows of \
intensities that follow the contrast of the tissues [@kn_bsi]. Change per year is the slope of a \
straight line; its standard error follows from the error that is stated for one scan and, with \
three scans or more, from the residuals as well [@moderated].
"""
#: Paragraph about surfaces.
SURFACE_METHODS = """\
Surfaces of the hippocampi were made from the probabilities, interpolated by cubic splines, with \
the marching cubes [@lewiner] of scikit-image [@skimage], at the level at which each surface \
encloses the volume of the voxels.
"""
_SHIPPED = (
    "{base}, pre-trained on synthetic images following SynthSeg [@synthseg], adapted with HyPS "
    "[@hyps] to the manual labels of the Medical Segmentation Decathlon [@msd_data; @msd] "
    "({adapter})"
)
_OTHER = "{base}, adapted with {adapter}, an adapter that follows HyPS [@hyps]"
_N4 = "Bias fields were corrected with N4 [@n4]. "
_CONTRASTS: dict[Suffix, str] = {
    "T1w": "T1-weighted",
    "T2w": "T2-weighted",
    "FLAIR": "FLAIR",
    "UNIT1": "MP2RAGE (UNI)",
    "PDw": "proton-density-weighted",
}
_SHIPPED_NAMES = {"Base": "base-synthetic", "Adapter": "adapter-anteriorposterior"}


def methods_markdown(
    provenance: Provenance,
    suffixes: Collection[str] = ("T1w",),
    *,
    followed: bool = False,
    surfaces: bool = False,
) -> str:
    """Write the methods text as Markdown, for images with these suffixes.

    It has pandoc's citation keys, which :func:`bibtex` resolves. Further paragraphs are
    about participants who were `followed` over time, and about surfaces.
    """
    models = {
        role: f"{model['Name']}, SHA-256 {model['SHA256'][:8]}"
        for role, model in provenance["Models"].items()
    }
    shipped = all(provenance["Models"][r]["Name"] == name for r, name in _SHIPPED_NAMES.items())
    network = (_SHIPPED if shipped else _OTHER).format(
        base=models["Base"], adapter=models["Adapter"]
    )
    text = _TEXT.format(
        version=provenance["SoftwareVersion"],
        bias=_N4 if provenance["BiasFieldCorrection"] == "N4" else "",
        localizer=models["Localizer"],
        network=network,
        contrasts=join_alternatives(_CONTRASTS[s] for s in SUFFIXES if s in suffixes),
    )
    text += f"\n{LONGITUDINAL_METHODS}" if followed else ""
    return text + (f"\n{SURFACE_METHODS}" if surfaces else "")


def write_methods(
    output_dir: Path,
    provenance: Provenance,
    suffixes: Collection[str],
    *,
    followed: bool = False,
    surfaces: bool = False,
) -> None:
    """Write the methods text of scans, also about what earlier runs or other jobs have put there.

    The parameters are those of :func:`methods_markdown`.
    """
    path = output_dir / "logs" / "CITATION.md"
    with suppress(OSError, UnicodeDecodeError):
        before = path.read_text(encoding="utf-8")
        followed = followed or LONGITUDINAL_METHODS in before
        surfaces = surfaces or SURFACE_METHODS in before
        suffixes = {*suffixes, *described_suffixes(before)}
    text = methods_markdown(provenance, suffixes, followed=followed, surfaces=surfaces)
    write_text(path, text)
    write_text(output_dir / "logs" / "CITATION.bib", bibtex())


def described_suffixes(markdown: str) -> set[Suffix]:
    """Return the suffixes of the images that an earlier methods text is about.

    Examples
    --------
    >>> record = {"Name": "x", "SHA256": "0" * 64}
    >>> models = dict.fromkeys(("Localizer", "Base", "Adapter"), record)
    >>> made_by = {"SoftwareVersion": "1", "BiasFieldCorrection": "none", "Models": models}
    >>> sorted(described_suffixes(methods_markdown(made_by, ("T1w", "UNIT1"))))
    ['T1w', 'UNIT1']
    """
    found = re.search(r"in each (.+?) image", markdown)
    return {s for s, words in _CONTRASTS.items() if found and words in found[1]}


def methods_html(
    provenance: Provenance, suffixes: Collection[str] = ("T1w",), *, followed: bool = False
) -> Markup:
    """Write the methods text as HTML, with the list of the works that it cites."""
    return to_html(methods_markdown(provenance, suffixes, followed=followed))


def to_html(markdown: str) -> Markup:
    """Write paragraphs of Markdown with citation keys as HTML, with the list of the works cited.

    Examples
    --------
    >>> print(to_html("Fitted `a ~ b` [@fdr].")[:58])
    <p>Fitted <code>a ~ b</code> (<a href="#ref-fdr">Benjamini
    """
    cited: dict[str, None] = {}

    def link(group: re.Match[str]) -> str:
        keys = re.findall(_KEY, group[0])
        if not references().keys() >= set(keys):
            # This is part of a file's name, not a citation.
            return group[0]
        cited.update(dict.fromkeys(keys))
        return "({})".format("; ".join(f'<a href="#ref-{k}">{_short(k)}</a>' for k in keys))

    text = _CODE.sub(r"<code>\2</code>", _GROUP.sub(link, str(escape(markdown.strip()))))
    paragraphs = "\n".join(f"<p>{one.strip()}</p>" for one in text.split("\n\n"))
    items = "\n".join(f'<li id="ref-{key}">{_full(key)}</li>' for key in cited)
    return Markup(f"{paragraphs}\n<ol>\n{items}\n</ol>")


def bibtex() -> str:
    """Write all works as BibTeX."""
    entries = []
    for key, work in references().items():
        kind = "article" if "journal" in work else "misc"
        fields = dict(work)
        if "eprint" in work:
            fields["archiveprefix"] = "arXiv"
        # Double braces keep the capitals of the title.
        lines = [f"  {name} = {{{value}}}" for name, value in fields.items() if name != "title"]
        lines.insert(1, f"  title = {{{{{work['title']}}}}}")
        entries.append(f"@{kind}{{{key},\n" + ",\n".join(lines) + "\n}\n")
    return "\n".join(entries)


@cache
def references() -> dict[str, dict[str, Any]]:
    """Read the works: key → BibTeX fields, sorted by key."""
    text = (files("hyps_bids") / "data" / "references.toml").read_text(encoding="utf-8")
    return dict(sorted(tomllib.loads(text).items()))


def _short(key: str) -> Markup:
    work = references()[key]
    authors = work["author"].split(" and ")
    more = " et al." if len(authors) > 1 else ""
    return escape(f"{authors[0].split(',')[0]}{more} {work['year']}")


def _full(key: str) -> Markup:
    work = references()[key]
    authors = work["author"].replace(" and others", " et al.").split(" and ")
    place = ""
    if "journal" in work:
        pages = work["pages"].replace("--", "–")
        volume = f" {work['volume']}" if "volume" in work else ""
        place = f" {work['journal']}{volume}: {pages}."
    where = f"doi:{work['doi']}" if "doi" in work else f"arXiv:{work['eprint']}"
    return escape(f"{'; '.join(authors)} ({work['year']}). {work['title']}.{place} {where}")
