"""The command line: help with examples that are right, completion, tables of 80 columns, JSON, quiet in CI."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
from rich.console import Console
from typer.testing import CliRunner

from salescast.cli import app, output
from salescast.data import dataset
from salescast.errors import UserError
from salescast.pipeline import stages
from salescast.pipeline.run import RunSummary
from salescast.workdir import Workdir

from .conftest import salescast

Finished = tuple[Path, subprocess.CompletedProcess[str]]
ROOT = typer.main.get_command(app.app)
NO_ANSWER = {"serve"}  # it serves until it is stopped


def verbs(command: Any = ROOT, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    children = getattr(command, "commands", {})
    return [path] if not children else [verb for name in children for verb in verbs(children[name], (*path, name))]


def command(verb: tuple[str, ...]) -> Any:
    found: Any = ROOT
    for name in verb:
        found = found.commands[name]
    return found


@pytest.mark.parametrize("verb", [(), *verbs()], ids=" ".join)
def test_help_has_an_example_that_is_right_and_fits_80_columns(verb: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(app.app, [*verb, "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    assert shown.exit_code == 0
    assert max(len(line) for line in shown.stdout.splitlines()) <= 80
    assert "…" not in shown.stdout, "a text is cut off"
    assert "Example:" in shown.stdout
    examples = re.findall(r"`(salescast [^`]*)`", command(verb).help or "")
    assert examples
    for example in examples:
        words = shlex.split(example)[1:]
        name = next(found for found in verbs() if tuple(words[: len(found)]) == found)
        command(name).make_context(" ".join(name), words[len(name) :])  # raises for an option that there is not


@pytest.mark.parametrize("verb", verbs(), ids=" ".join)
def test_every_option_is_explained_and_every_answer_can_be_json(verb: tuple[str, ...]) -> None:
    options = [option for option in command(verb).params if option.param_type_name == "option"]
    assert [option.name for option in options if not option.help] == []
    assert (verb[-1] in NO_ANSWER) != ("--json" in {name for option in options for name in option.opts})


@pytest.mark.parametrize(
    ("typed", "completed"),
    [("salescast fore", "forecast"), ("salescast data im", "import"), ("salescast train --hor", "--horizon")],
)
def test_a_shell_completes(typed: str, completed: str) -> None:
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1), "_SALESCAST_COMPLETE": "complete_bash"}
    command_line = [sys.executable, "-m", "salescast.cli.app"]
    done = subprocess.run(command_line, env=os.environ | words, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [completed]


@pytest.mark.slow
def test_what_a_run_says_fits_80_columns(finished_run: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    workdir, done = finished_run
    summary = json.loads(done.stdout)
    summary["scores"][0] |= {"mape": 1234.5, "bias": -0.12345}
    console = Console(highlight=False, width=80, record=True, file=(workdir / "shown.txt").open("w"))
    monkeypatch.setattr(output, "console", console)
    output.summary(RunSummary(**summary), as_json=False)
    text = console.export_text()
    assert max(len(line) for line in text.splitlines()) <= 80
    for number in ("123450.00%", "-12.35%", f"{summary['answers'][0]['forecast'][0]:,.0f}"):
        assert number in text, "a number is cut off"


@pytest.mark.slow
def test_ci_sees_a_line_a_stage_and_a_line_a_fit(finished_run: Finished) -> None:
    """The fixture ran with CI set, as build systems do, and without a terminal."""
    lines = finished_run[1].stderr.splitlines()
    stages = [line for line in lines if line.endswith(" ...")]
    fits = [line for line in lines if ": bundle " in line]
    assert {"data ...", "training ...", "report ..."} <= set(stages)
    assert len(fits) == len({line.split(" INFO ")[1].split(":")[0] for line in fits}) > 1
    assert [line for line in lines if line not in (*stages, *fits)] == []


@pytest.mark.slow
def test_answers_in_json_are_nothing_but_json(finished_run: Finished) -> None:
    workdir = str(finished_run[0])
    for arguments in (["forecast", "--store", "1", "--dept", "2"], ["materialize"]):
        done = salescast(*arguments, "--workdir", workdir, "--json")
        assert done.returncode == 0 and json.loads(done.stdout), done.stderr
        assert done.stderr == ""


def test_the_work_of_a_backtest_outlives_the_next_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An import replaces all that is in the dataset's folder."""
    dataset.generate(tmp_path / "mine", 2, 2, 60, 1)
    used: list[Path] = []

    def backtest(work: Workdir, *_: Any, **__: Any) -> Any:
        (work.root / "fits").mkdir()
        used.append(work.root)
        raise UserError("enough")

    monkeypatch.setattr(stages, "run_backtest", backtest)
    CliRunner().invoke(app.app, ["backtest", "--data", str(tmp_path / "mine")])
    dataset.generate(tmp_path / "mine", 2, 2, 61, 1)
    assert (used[0] / "fits").is_dir()
    assert used == [tmp_path / "mine.work"]
