"""JSON files and tables of others are read whole, or the error says what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from hyps_bids.errors import BadData, InvalidBids, MissingInput
from hyps_bids.outputs.reading import load_json, read_json_object, read_text_table
from tests.raising import raises


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_text_is_read_with_and_without_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.json").write_text('{"Name": "Müller"}', encoding=encoding)
    assert read_json_object(tmp_path / "a.json") == {"Name": "Müller"}
    (tmp_path / "a.tsv").write_text("id\tname\n01\tn/a\n", encoding=encoding)
    assert read_text_table(tmp_path / "a.tsv").to_dict("records") == [{"id": "01", "name": "n/a"}]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_of_other_encodings(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.json").write_text('{"Name": "Müller"}', encoding=encoding)
    assert load_json(tmp_path / "a.json") == {"Name": "Müller"}


@pytest.mark.parametrize(
    ("content", "kind", "code"),
    [
        (None, MissingInput, "json-unreadable"),
        (b"{", InvalidBids, "json-invalid"),
        (b'{"a": "\xfc"}', InvalidBids, "json-invalid"),
        (b"[]", InvalidBids, "json-no-object"),
        (b"3", InvalidBids, "json-no-object"),
    ],
)
def test_bad_json(tmp_path: Path, content: bytes | None, kind: type[Exception], code: str) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with raises(kind, code, path, "Write it again."):
        read_json_object(path, error=InvalidBids, unreadable=MissingInput, hint="Write it again.")


@pytest.mark.parametrize("content", [None, b"", b"name\nM\xfcller\n", b"a\tb\n1\n1\t2\t3\n"])
def test_bad_table(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.tsv"
    if content is not None:
        path.write_bytes(content)
    with raises(BadData, "table-unreadable", path):
        read_text_table(path)
