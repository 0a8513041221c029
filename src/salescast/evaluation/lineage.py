"""Which bundle and which backtest belong together.

A backtest writes `evaluation.json` last. It ties the backtest file to the recipe (data, calendar, settings) and to the
bundles that made it. A backtest evaluates a bundle if both have the same recipe and the same code.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any, Final, Self

from salescast.errors import UserError
from salescast.model import bundle
from salescast.model.metadata import SavedMetadata, read_metadata
from salescast.model.recipe import Recipe
from salescast.runtime.atomic_files import replace_file
from salescast.runtime.checksums import sha256
from salescast.workdir import Workdir

REMEDY: Final = "run `salescast train` and `salescast backtest` with the same settings on the same data"


@dataclass(frozen=True)
class Fitted:
    """One bundle, identified by the digest of its recipe and cutoff and by the digest of its content."""

    cutoff: date
    fit_digest: str
    digest: str

    @classmethod
    def from_metadata(cls, saved: SavedMetadata) -> Self:
        return cls(saved.metadata.cutoff, saved.metadata.fit_digest, saved.digest)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From parsed JSON. Raises KeyError, TypeError, ValueError."""
        return cls(date.fromisoformat(values["cutoff"]), str(values["fit_digest"]), str(values["digest"]))


@dataclass(frozen=True)
class Evaluation:
    """The manifest of a backtest; `backtest` is the digest of its file."""

    recipe: Recipe
    tested: dict[str, Fitted]  # by cutoff
    backtest: str

    def write(self, path: Path) -> None:
        with replace_file(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), default=str, indent=1))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises UserError for a missing or damaged manifest."""
        try:
            values = json.loads(path.read_text())
            return cls(
                Recipe.from_dict(values["recipe"]),
                {cutoff: Fitted.from_dict(fitted) for cutoff, fitted in values["tested"].items()},
                str(values["backtest"]),
            )
        except FileNotFoundError:
            raise UserError(f"no backtest in {path.parent}; run `salescast backtest`") from None
        except UserError as error:
            raise UserError(f"{path} is of another version ({error}); run `salescast backtest` again") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({error!r}); run `salescast backtest` again") from None


@dataclass(frozen=True)
class Candidate:
    """A bundle that may be promoted, and the evaluation of its recipe."""

    final: Fitted
    evaluation: Evaluation


def write_evaluation(workdir: Workdir, tested: Mapping[date, Path]) -> None:
    """Write the manifest of the workdir's backtest, which the bundles in the folders `tested` (by cutoff) made."""
    saved = {cutoff: read_metadata(folder) for cutoff, folder in tested.items()}
    recipe = next(iter(saved.values())).metadata.recipe
    fits = {str(cutoff): Fitted.from_metadata(one) for cutoff, one in saved.items()}
    Evaluation(recipe, fits, sha256(workdir.backtest)).write(workdir.evaluation)


def candidate(workdir: Workdir) -> Candidate:
    """The workdir's bundle with the workdir's backtest.

    Raises UserError when one is missing or damaged, and when the two differ in data, settings or code; the message
    names the differences.
    """
    saved = read_metadata(workdir.models)
    bundle.load(workdir.models)  # refuses damaged files
    recipe, final = saved.metadata.recipe, Fitted.from_metadata(saved)
    if not workdir.backtest.is_file():
        raise UserError(f"no backtest in {workdir.root}; run `salescast backtest`")
    evaluation = Evaluation.read(workdir.evaluation)
    if sha256(workdir.backtest) != evaluation.backtest:
        raise UserError(f"{workdir.backtest} is damaged or of another backtest; run `salescast backtest` again")
    different = recipe.differences(evaluation.recipe)
    if different:
        raise UserError(
            f"the bundle in {workdir.models} is not what the backtest evaluated ({'; '.join(different)}); {REMEDY}"
        )
    for fitted in (final, *evaluation.tested.values()):
        if fitted.fit_digest != recipe.fit_digest(fitted.cutoff):
            raise UserError(
                f"the fit up to {fitted.cutoff} was made by other code than this version's, so the backtest may not "
                f"apply to the bundle in {workdir.models}; {REMEDY}"
            )
    return Candidate(final, evaluation)
