"""A hook of mkdocs.yml: writes every command and its options into docs/command-line.md while the site is built."""

from collections.abc import Iterator
from typing import Any, Final

import typer.main

from salescast.cli import app

PAGE: Final = "command-line.md"
MARK: Final = "<!-- commands -->"


def commands(group: Any, path: tuple[str, ...] = ("salescast",)) -> Iterator[tuple[str, Any]]:
    """Every command with its full name, in the order of the help."""
    for name in group.list_commands(None):
        command = group.commands[name]
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


def default_of(option: Any) -> str:
    """The default of an option as the help shows it, "required", or nothing."""
    if option.required:
        return "required"
    if isinstance(option.show_default, str):
        return option.show_default
    return "" if option.default in (None, False, []) else str(option.default)


def row_of(option: Any) -> str:
    """One line of the table: names, meaning, default."""
    names = [f"`{name}`" for name in (*option.opts, *option.secondary_opts)]
    meaning = f"{option.help} Variable: `{option.envvar}`." if option.envvar else option.help
    return "| " + " | ".join((", ".join(names), meaning.replace("|", "\\|"), default_of(option))) + " |"


def section(name: str, command: Any) -> str:
    """Markdown of one command: heading, help, options."""
    rows = "\n".join(row_of(option) for option in command.params)
    return f"## {name}\n\n{command.help}\n\n| option | meaning | default |\n|---|---|---|\n{rows}"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by MkDocs for each page."""
    if page.file.src_uri != PAGE:
        return markdown
    sections = "\n\n".join(section(*named) for named in commands(typer.main.get_command(app.app)))
    return markdown.replace(MARK, sections)
