"""The command line: help, examples, completion, tables of 80 columns, JSON, output in CI."""

import io
import json
import os
import pkgutil
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer.main
from rich.console import Console
from typer.testing import CliRunner

import salescast as salescast_package
from salescast.cli import app, output
from salescast.data import dataset
from salescast.errors import UserError
from salescast.pipeline import stages
from salescast.pipeline.run import RunSummary
from salescast.schema import TRAINING_SERVICE, TRAINING_SERVICE_SEASONAL
from salescast.workdir import Workdir

from .conftest import salescast

Finished = tuple[Path, subprocess.CompletedProcess[str]]
ROOT = typer.main.get_command(app.app)
NO_RESULT = {"serve"}  # it serves until it is stopped


def names(group: Any = ROOT, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every command as its words: ("run",), ("data", "import")."""
    children = getattr(group, "commands", {})
    return [path] if not children else [name for child in children for name in names(children[child], (*path, child))]


def command(name: tuple[str, ...]) -> Any:
    node: Any = ROOT
    for word in name:
        node = node.commands[word]
    return node


@pytest.mark.parametrize("name", [(), *names()], ids=" ".join)
def test_help_has_a_valid_example_and_fits_80_columns(name: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(app.app, [*name, "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    assert shown.exit_code == 0
    assert max(len(line) for line in shown.stdout.splitlines()) <= 80
    assert "…" not in shown.stdout, "a text is cut off"
    assert "<bool>" not in shown.stdout
    assert "Example:" in shown.stdout
    examples = re.findall(r"`(salescast [^`]*)`", command(name).help or "")
    assert examples
    for example in examples:
        words = shlex.split(example)[1:]
        used = next(known for known in names() if tuple(words[: len(known)]) == known)
        command(used).make_context(" ".join(used), words[len(used) :])  # raises for an unknown option


@pytest.mark.parametrize("name", names(), ids=" ".join)
def test_every_option_is_explained_and_every_result_can_be_json(name: tuple[str, ...]) -> None:
    options = [option for option in command(name).params if option.param_type_name == "option"]
    assert [option.name for option in options if not option.help] == []
    assert (name[-1] in NO_RESULT) != ("--json" in {flag for option in options for flag in option.opts})


@pytest.mark.parametrize(
    ("typed", "completed"),
    [("salescast fore", "forecast"), ("salescast data im", "import"), ("salescast train --hor", "--horizon")],
)
def test_a_shell_completes(typed: str, completed: str) -> None:
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1), "_SALESCAST_COMPLETE": "complete_bash"}
    command_line = [sys.executable, "-m", "salescast.cli.app"]
    done = subprocess.run(command_line, env=os.environ | words, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [completed]


def test_commands_are_grouped_in_the_order_of_use() -> None:
    shown = CliRunner().invoke(app.app, ["--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"}).stdout
    panels = re.findall(r"^╭─ ([^─]*) ─", shown, re.M)
    assert panels == ["Options", *app.PANELS]
    listed = re.findall(r"^│ ([a-z]+) ", shown, re.M)
    order = [name for panel in app.PANELS for name, its, _ in app.COMMANDS if its == panel]
    order.insert(sum(its == app.START for _, its, _ in app.COMMANDS), "data")
    assert listed == order


def test_the_version_is_shown() -> None:
    assert CliRunner().invoke(app.app, ["--version"]).stdout == f"salescast {salescast_package.__version__}\n"


def test_the_console_script_is_the_command_line() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert pkgutil.resolve_name(project["scripts"]["salescast"]) is app.main
    assert project["version"] == salescast_package.__version__


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"]])
def test_help_loads_no_library_of_the_pipeline(arguments: list[str]) -> None:
    heavy = {"polars", "numpy", "torch", "feast", "mlflow", "kserve", "pandas", "ray"}
    code = f"""
import atexit, sys
from salescast.cli.app import main
atexit.register(lambda: print(sorted({heavy!r} & set(sys.modules)), file=sys.stderr))
main()"""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout and done.stderr.strip() == "[]"


def test_options_name_the_feature_services_of_the_schema() -> None:
    shown = next(option.help for option in command(("train",)).params if option.name == "service")
    assert set(re.findall(r"training_\w+", shown)) == {TRAINING_SERVICE, TRAINING_SERVICE_SEASONAL}


def print_summary(finished: Finished, monkeypatch: pytest.MonkeyPatch, width: int, **changed: Any) -> str:
    """What `salescast run` prints at its end, in a terminal of this width."""
    workdir, done = finished
    summary = json.loads(done.stdout)
    summary["scores"][0] |= {"mape": 1234.5, "bias": -0.12345}
    console = Console(highlight=False, width=width, record=True, file=io.StringIO())
    monkeypatch.setattr(output, "console", console)
    output.summary(RunSummary(**summary | changed), Workdir(workdir), as_json=False)
    return console.export_text()


@pytest.mark.slow
def test_tables_of_a_run_fit_80_columns(finished_run: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    text = print_summary(finished_run, monkeypatch, 80)
    tables, _, rest = text.partition("\nreport ")
    assert max(len(line) for line in tables.splitlines()) <= 80
    answers = json.loads(finished_run[1].stdout)["answers"]
    for number in ("123450.00%", "-12.35%", f"{answers[0]['forecast'][0]:,.0f}"):
        assert number in tables, "a number is cut off"
    paths = [line.split()[-1] for line in f"report {rest}".splitlines()[:3]]
    assert all(Path(path).is_file() for path in paths), "a path can be opened"


@pytest.mark.slow
def test_a_run_ends_with_commands_that_can_be_typed(
    finished_run: Finished, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = print_summary(finished_run, monkeypatch, 60)
    commands = re.findall(r"^\w+ +((?:\w+=inf )?salescast .*)$", text.partition("what to do next\n")[2], re.M)
    assert len(commands) == 3
    for line in commands[:2]:
        done = salescast(*shlex.split(line)[1:], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "forecasts.xlsx").is_file()
    up = shlex.split(commands[2])
    assert up[0] == "SALESCAST_MAX_FEATURE_AGE_DAYS=inf", "these sales are of 2024: the server would refuse them"
    command(("up",)).make_context("up", up[3:])


@pytest.mark.slow
def test_without_a_champion_the_next_commands_name_the_bundle(
    finished_run: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = f"--model-dir {finished_run[0] / 'models'}"
    for served, named in (("the champion", False), ("the last bundle, asked for by name: there is no champion", True)):
        assert (asked in print_summary(finished_run, monkeypatch, 80, served=served)) is named


@pytest.mark.slow
def test_a_drawing_has_no_colour_codes_in_a_pipe_and_uses_the_width(finished_run: Finished) -> None:
    arguments = ("forecast", "--store", "1", "--dept", "2", "--draw", "--workdir", str(finished_run[0]))
    model = {"SALESCAST_MODEL_DIR": str(finished_run[0] / "models")}
    for width in (60, 120):
        done = salescast(*arguments, COLUMNS=str(width), **model)
        assert done.returncode == 0, done.stderr
        assert "\x1b" not in done.stdout
        assert max(map(len, done.stdout.splitlines())) == width
    coloured = salescast(*arguments, FORCE_COLOR="1", **model).stdout
    plain = salescast(*arguments, FORCE_COLOR="1", NO_COLOR="1", **model).stdout
    assert re.search(r"\x1b\[[\d;]*36m", coloured) and not re.search(r"\x1b\[[\d;]*3\dm", plain)


@pytest.mark.slow
def test_a_log_has_a_line_a_stage_and_a_line_a_fit(finished_run: Finished) -> None:
    """The fixture ran without a terminal. A slow fit also shows an epoch now and then."""
    lines = finished_run[1].stderr.splitlines()
    stages = [line for line in lines if line.endswith(" ...")]
    fits = [line for line in lines if ", bundle " in line]
    alive = [line for line in lines if " epoch " in line and line not in fits]
    assert {"data ...", "training ...", "report ..."} <= set(stages)
    assert len(fits) == len({line.split(" of the sales ")[0] for line in fits}) > 1
    assert [line for line in lines if line not in (*stages, *fits, *alive)] == []


@pytest.mark.slow
def test_json_output_is_nothing_but_json(finished_run: Finished) -> None:
    workdir = str(finished_run[0])
    for arguments in (["forecast", "--store", "1", "--dept", "2"], ["materialize"]):
        # Without the variable `materialize` warns, rightly, that these sales are old.
        done = salescast(*arguments, "--workdir", workdir, "--json", SALESCAST_MAX_FEATURE_AGE_DAYS="inf")
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
