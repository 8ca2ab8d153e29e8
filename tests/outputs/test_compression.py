"""Tests of :mod:`hyps_bids.outputs.compression`, with ISA-L and without it."""

from __future__ import annotations

import gzip
import importlib.util
import io
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import hyps_bids.outputs.compression as installed

CONTENT = np.random.default_rng(0).integers(0, 7, 300_000, np.uint8).tobytes() + bytes(100_000)


@pytest.fixture(params=["ISA-L", "zlib"])
def module(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    if request.param == "ISA-L":
        pytest.importorskip("isal")
        return installed
    for name in ("isal", "isal.igzip", "isal.igzip_lib"):
        monkeypatch.setitem(sys.modules, name, None)
    assert installed.__file__
    spec = importlib.util.spec_from_file_location("without_isal", installed.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def packed(module: ModuleType) -> bytes:
    stream = io.BytesIO()
    with module.compressor(stream) as compressed:
        compressed.write(CONTENT)
    return stream.getvalue()


def test_what_is_written_depends_on_the_content_only(module: ModuleType) -> None:
    content = packed(module)
    assert gzip.decompress(content) == CONTENT
    assert content == packed(module)
    # Flags of optional fields, such as a name, and the time: RFC 1952.
    assert content[3:8] == bytes(5)


def test_files_of_other_programs_are_read(module: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    # Several members, as of bgzip, and zeros behind them, as of tapes
    path.write_bytes(gzip.compress(CONTENT[:1000]) + gzip.compress(CONTENT[1000:]) + bytes(512))
    with module.open_compressed(path) as stream:
        assert stream.read() == CONTENT


@pytest.mark.parametrize("place", [1, 40, 10_000, -8, -1])
def test_damage_is_noticed(module: ModuleType, place: int, tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    content = bytearray(gzip.compress(CONTENT))
    content[place] ^= 16
    path.write_bytes(content)
    with (
        pytest.raises((OSError, EOFError, *module.DAMAGED)),
        module.open_compressed(path) as stream,
    ):
        stream.read()


@pytest.mark.parametrize("kept", [5, 1000, -4])
def test_missing_ends_are_noticed(module: ModuleType, kept: int, tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(CONTENT)[:kept])
    with pytest.raises(EOFError), module.open_compressed(path) as stream:
        stream.read()
