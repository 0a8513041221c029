"""What belongs together: the bundle that is registered, the fits that were tested in its place, and their backtest.

`evaluation.json`, written last by a backtest, ties the backtest file to the recipe (data, calendar, settings) and the
bundles that made it. A bundle was judged by a backtest if it is the same recipe, fitted up to its own cutoff.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any, Final, Self

from salescast.errors import UserError
from salescast.model import bundle
from salescast.model.recipe import Recipe
from salescast.runtime.atomic_files import replace_file
from salescast.runtime.checksums import sha256
from salescast.workdir import Workdir

REMEDY: Final = "run `salescast train` and `salescast backtest` with the same settings on the same data"


@dataclass(frozen=True)
class Fitted:
    """One bundle by its digests: of what it was made from, and of its content."""

    cutoff: date
    fit_digest: str
    digest: str

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        return cls(date.fromisoformat(values["cutoff"]), str(values["fit_digest"]), str(values["digest"]))


@dataclass(frozen=True)
class Evaluation:
    """The manifest of a backtest, of whose file `backtest` is the digest."""

    recipe: Recipe
    tested: dict[str, Fitted]  # by the cutoff that was forecast from
    backtest: str

    def write(self, path: Path) -> None:
        with replace_file(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), default=str, indent=1))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises UserError for a missing or damaged one."""
        try:
            values = json.loads(path.read_text())
            return cls(
                Recipe.from_dict(values["recipe"]),
                {cutoff: Fitted.from_dict(fitted) for cutoff, fitted in values["tested"].items()},
                str(values["backtest"]),
            )
        except FileNotFoundError:
            raise UserError(f"no backtest in {path.parent}; run `salescast backtest`") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({error!r}); run `salescast backtest` again") from None


@dataclass(frozen=True)
class Judged:
    """The bundle that forecasts the future, and the evaluation of its recipe."""

    final: Fitted
    evaluation: Evaluation


def note(workdir: Workdir, tested: Mapping[date, Path]) -> None:
    """Write the manifest of the backtest in the workdir, made by the bundles in the folders `tested`, by cutoff."""
    described = {cutoff: bundle.read_metadata(folder) for cutoff, folder in tested.items()}
    recipe = Recipe.from_dict(next(iter(described.values())))
    fits = {str(cutoff): Fitted.from_dict(values) for cutoff, values in described.items()}
    Evaluation(recipe, fits, sha256(workdir.backtest)).write(workdir.evaluation)


def judged(workdir: Workdir) -> Judged:
    """The workdir's bundle with the workdir's backtest.

    Raises UserError when one is missing or damaged, and, naming what differs, when the two were not made from the same
    data, settings and code.
    """
    described = bundle.read_metadata(workdir.models)
    bundle.load(workdir.models)  # whose files belong together
    made, final = Recipe.from_dict(described), Fitted.from_dict(described)
    if not workdir.backtest.is_file():
        raise UserError(f"no backtest in {workdir.root}; run `salescast backtest`")
    found = Evaluation.read(workdir.evaluation)
    if sha256(workdir.backtest) != found.backtest:
        raise UserError(f"{workdir.backtest} is damaged or of another backtest; run `salescast backtest` again")
    different = made.differences(found.recipe)
    if different:
        raise UserError(
            f"the bundle in {workdir.models} is not what the backtest judged ({'; '.join(different)}); {REMEDY}"
        )
    for fitted in (final, *found.tested.values()):
        if fitted.fit_digest != made.fit_digest(fitted.cutoff):
            raise UserError(
                f"the fit up to {fitted.cutoff} was made by other code than this: whether the bundle in "
                f"{workdir.models} and the backtest belong together is unknown; {REMEDY}"
            )
    return Judged(final, found)
