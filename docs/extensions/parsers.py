"""The options of a command, read from its parser, as a page of the documentation."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator
from importlib import import_module

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class ParserDirective(SphinxDirective):
    """``hyps-parser MODULE``: what ``build_parser`` of the module makes, option by option."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Describe the command and its subcommands."""
        parser = import_module(self.arguments[0]).build_parser()
        text = "\n".join(_command(parser, level=2))
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def _command(parser: argparse.ArgumentParser, level: int) -> Iterator[str]:
    """Describe one command in MyST Markdown, with headings of a level for the commands in it."""
    usage = " ".join(parser.format_usage().removeprefix("usage: ").split())
    usage = textwrap.fill(usage, 88, subsequent_indent="    ", break_on_hyphens=False)
    yield from (f"```{{program}} {parser.prog}", "```", "", parser.description or "", "")
    yield from ("```text", usage, "```", "")
    formatter = parser._get_formatter()
    for group in parser._action_groups:
        actions = [each for each in group._group_actions if each.help != argparse.SUPPRESS]
        commands = [each for each in actions if isinstance(each, argparse._SubParsersAction)]
        # Groups of subcommands need no heading beside those of the commands.
        if group.title and len(actions) > len(commands):
            yield from (f"**{group.title[0].upper()}{group.title[1:]}**", "")
        for action in actions:
            if action not in commands:
                yield from _option(formatter, action)
        for action in commands:
            for command in action.choices.values():
                yield from (f"{'#' * level} {command.prog}", "")
                yield from _command(command, level + 1)
    if parser.epilog:
        # Long ones are written for a terminal, with columns.
        long = "\n" in parser.epilog.strip()
        yield from ("```text", parser.epilog, "```", "") if long else (parser.epilog, "")


def _option(formatter: argparse.HelpFormatter, action: argparse.Action) -> Iterator[str]:
    if action.option_strings:
        names = formatter._format_action_invocation(action)
    else:
        names = str(action.metavar or action.dest)
    text = formatter._expand_help(action) if action.help else ""
    if action.choices is not None and not any(str(each) in text for each in action.choices):
        text += f" One of {', '.join(map(str, action.choices))}."
    yield from (f"````{{option}} {names}", text.strip(), "````", "")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("hyps-parser", ParserDirective)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
