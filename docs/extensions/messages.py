"""The error messages of the package, read from its sources, as a page of the documentation."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import hyps_bids
from hyps_bids import errors

#: What a code looks like.
CODE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
#: Expressions whose names say what stands in their place.
_NAMED = (ast.Name, ast.Attribute)


class Message(NamedTuple):
    """One place in the sources that makes an error."""

    code: str
    exit_code: int
    text: str


def collect_messages(package: Path = Path(hyps_bids.__file__).parent) -> list[Message]:
    """Find all errors with a code in the sources of the package, sorted by code."""
    found = {Message("wrong-usage", errors.UsageError.exit_code, "The command line is wrong.")}
    for path in package.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text if "code=" in text else "")
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                found.update(_of_call(node, tree))
    return sorted(found)


def _of_call(call: ast.Call, module: ast.Module) -> Iterator[Message]:
    code = next((each.value for each in call.keywords if each.arg == "code"), None)
    name = ast.unparse(call.func).rsplit(".", 1)[-1]
    # Readers of files let their caller choose the kind of error.
    kind = getattr(errors, name, errors.BadData)
    exit_code = getattr(kind, "exit_code", errors.BadData.exit_code)
    if isinstance(code, ast.Constant) and isinstance(code.value, str) and call.args:
        text = _text(_assigned(call.args[0], call.lineno, module))
        yield Message(code.value, exit_code, text)
    elif isinstance(code, ast.Name):
        for found, text in _pairs(module):
            yield Message(found, exit_code, text)


def _assigned(node: ast.expr, line: int, module: ast.Module) -> ast.expr:
    """Return what was assigned last before this line, if the message is a variable."""
    found = node
    if isinstance(node, ast.Name):
        values = [
            (each.lineno, each.value)
            for each in ast.walk(module)
            if isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == node.id
        ]
        found = max((each for each in values if each[0] < line), default=(0, node))[1]
    return found


def _pairs(module: ast.Module) -> Iterator[tuple[str, str]]:
    """Find codes that lie beside their message, in a tuple, until the error is made."""
    for node in ast.walk(module):
        if isinstance(node, ast.Tuple):
            texts = [_text(each) for each in node.elts]
            codes = [each for each in texts if "-" in each and CODE.fullmatch(each)]
            words = [each for each in texts if " " in each]
            if len(codes) == 1 and len(words) == 1:
                yield codes[0], words[0]
        elif isinstance(node, ast.IfExp) and CODE.fullmatch(_text(node.orelse)):
            yield _text(node.orelse), "None of several can be used."


def _text(node: ast.expr) -> str:
    """Write a message with the names of what is filled in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(each) for each in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    if isinstance(node, ast.FormattedValue):
        return _text(node.value) if isinstance(node.value, ast.Constant) else _name(node.value)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
        # " ".join([…]) of the parts of a message.
        inner = node.args[0]
        parts = inner.elts if isinstance(inner, ast.List) else []
        return " ".join(map(_text, parts)) or _name(node)
    return _name(node)


def _name(node: ast.expr) -> str:
    """Name what is filled in; the text of another error is one of many."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "str" and node.args:
        node = node.args[0]
    name = ast.unparse(node).rsplit(".", 1)[-1] if isinstance(node, _NAMED) else ""
    return f"⟨{name.strip('_').replace('_', ' ') or '…'}⟩"


class MessagesDirective(SphinxDirective):
    """``hyps-messages``: a definition for each code, with a target ``code-NAME``."""

    def run(self) -> list[nodes.Node]:
        """Make a section for each letter, with its codes."""
        lines: list[str] = []
        messages = collect_messages()
        codes = list(dict.fromkeys(each.code for each in messages))
        for i, code in enumerate(codes):
            if not i or codes[i - 1][0] != code[0]:
                lines += [f"## {code[0].upper()}", ""]
            same = [each for each in messages if each.code == code]
            exits = " or ".join(str(each) for each in sorted({each.exit_code for each in same}))
            lines += [f"(code-{code})=", "", f"`{code}` (exit code {exits})"]
            lines += [f": {_escape(text)}\n" for text in dict.fromkeys(each.text for each in same)]
            lines.append("")
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def _escape(text: str) -> str:
    text = " ".join(text.split())
    return re.sub(r"([\\`*_{}\[\]<>#|$~])", r"\\\1", text)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("hyps-messages", MessagesDirective)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
