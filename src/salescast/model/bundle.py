"""A trained model as a folder: state dicts and JSON, no pickle; and forecasts from it.

model_best.pt   weights of the best epoch on labels that leave the held-out weeks out
model_final.pt  weights learned from every label up to the cutoff: these forecast
scalers.json    standardization and category vocabularies of both
model_metadata.json  architecture, input names, quantiles, cutoff, digests, versions, metrics
"""

import hashlib
import io
import json
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

import salescast
from salescast.errors import UserError
from salescast.features.columns import Columns
from salescast.model.config import TrainConfig
from salescast.model.inputs import build
from salescast.model.network import QuantileMLP, Scaler
from salescast.retail_calendar import calendar
from salescast.runtime.atomic_files import replace_dir

FINAL, BEST, SCALERS, METADATA = "model_final.pt", "model_best.pt", "scalers.json", "model_metadata.json"
FORMAT = 1
CHUNK = 2048  # base rows x horizons per forward pass: its layers fit into a cache

# What files raise that are not what they should be.
BROKEN: Final = (OSError, RuntimeError, LookupError, TypeError, ValueError, AttributeError, EOFError, UnpicklingError)

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Metadata:
    """What a bundle says of itself.

    `factors` multiply the lower and the upper half-widths of the intervals, `trust` the median's distance from the
    anchor.
    """

    config: TrainConfig
    country: str
    cutoff: date
    data_digest: str
    fit_digest: str
    factors: tuple[float, float]
    metrics: dict[str, float | None]
    trust: float = 1.0
    planned: tuple[str, ...] = ()  # columns of planned inputs among the features


@dataclass(frozen=True)
class Forecast:
    """Forecasts of n base rows for H weeks, in the order of the rows given."""

    quantiles: NDArray[np.float64]  # [n, H, Q], calibrated, increasing along Q
    weeks: NDArray[np.datetime64]  # datetime64[D] [n, H]
    levels: tuple[float, ...]  # of the quantiles
    fallback: NDArray[np.int8]  # [n, H], see Inputs
    outside: dict[str, int]  # values unlike any in training, by input (see Scaler.outside)

    def at(self, level: float) -> NDArray[np.float64]:
        """The forecasts [n, H] of one level, such as 0.5. Raises ValueError for a level the model does not have."""
        return self.quantiles[:, :, self.levels.index(level)]


@dataclass(frozen=True)
class Bundle:
    """A loaded model. `digest` names its content: equal digests forecast equally."""

    metadata: Metadata
    digest: str
    network: QuantileMLP
    scaler: Scaler

    @property
    def horizon(self) -> int:
        return self.metadata.config.horizon

    @property
    def levels(self) -> tuple[float, ...]:
        return self.metadata.config.quantiles

    def predict(self, rows: pl.DataFrame | Columns, horizon: int | None = None) -> Forecast:
        """Forecast the `horizon` weeks (default: all) from each of `rows`: keys, event_timestamp and features.

        A row's forecast does not depend on the other rows (to 1e-6 relative). NaN where a row has no finite anchor.
        Raises UserError for a horizon outside 1..H and for missing columns.
        """
        weeks = self.horizon if horizon is None else horizon
        if not 1 <= weeks <= self.horizon:
            raise UserError(f"horizon must be 1 to {self.horizon} weeks for this model, got {horizon}")
        config = self.metadata.config
        inputs = build(rows, config.feature_service, self.horizon, calendar(self.metadata.country))
        if (*inputs.base_names, *inputs.step_names) != self.scaler.names:
            raise UserError(
                f"the inputs made from {config.feature_service!r} are not those the model was trained on; "
                "train again with this version"
            )
        codes = self.scaler.encode(inputs)
        base, step = torch.from_numpy(inputs.base), torch.from_numpy(inputs.step)
        out = np.empty((len(base), weeks, len(self.levels)))
        horizons, device = self.scaler.horizons(weeks), self.network.mean.device
        size = max(1, CHUNK // weeks)
        for at in range(0, len(base), size):
            part = slice(at, min(at + size, len(base)))
            n = part.stop - at
            numeric = torch.cat([base[part].unsqueeze(1).expand(n, weeks, -1), step[part, :weeks]], dim=2).flatten(0, 1)
            index = torch.cat([codes[part].repeat_interleave(weeks, dim=0), horizons.repeat(n).unsqueeze(1)], dim=1)
            with torch.inference_mode():
                answer = self.network(numeric.to(device), index.to(device)).mean(dim=1)
            out[part] = answer.view(n, weeks, -1).cpu().numpy()
        outside = self.scaler.outside(inputs.base, inputs.step[:, :weeks], codes)
        scale, anchor = inputs.unit[:, :weeks, None], inputs.anchor[:, :weeks, None]
        quantiles = anchor + scale * self._calibrated(out)
        return Forecast(quantiles, inputs.weeks[:, :weeks], self.levels, inputs.fallback[:, :weeks], outside)

    def _calibrated(self, quantiles: NDArray[np.float64]) -> NDArray[np.float64]:
        """The median times the trust in it, and distances from it times the factor of their side."""
        median = quantiles[..., self.network.median, None]
        lower, upper = self.metadata.factors
        distance = quantiles - median
        return np.asarray(self.metadata.trust * median + distance * np.where(distance < 0, lower, upper))


def network(scaler: Scaler, config: TrainConfig) -> QuantileMLP:
    return QuantileMLP(
        scaler, config.hidden, config.quantiles, members=config.members, dropout=config.dropout, linear=config.linear
    )


def _content_digest(parts: dict[str, tuple[Weights, Scaler]], meta: Metadata) -> str:
    """sha256 over what decides a forecast: weights, scalers, settings, cutoff, factors; not over dates and versions."""
    digest = hashlib.sha256(json.dumps(_describe(meta) | {"metrics": None}, sort_keys=True).encode())
    for part, (weights, scaler) in sorted(parts.items()):
        digest.update(f"{part}{json.dumps(scaler.to_dict(), sort_keys=True)}".encode())
        for name, value in sorted(weights.items()):
            digest.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
            digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _describe(meta: Metadata) -> dict[str, Any]:
    values = asdict(meta) | {"cutoff": str(meta.cutoff)}
    return json.loads(json.dumps(values))  # type: ignore[no-any-return]


def save(folder: Path, meta: Metadata, final: tuple[Weights, Scaler], best: tuple[Weights, Scaler]) -> str:
    """Write the bundle as a whole, in the place of an earlier one; returns its digest. Raises OSError."""
    digest = _content_digest({FINAL: final, BEST: best}, meta)
    files: dict[str, bytes] = {}
    for name, (weights, _) in ((FINAL, final), (BEST, best)):
        buffer = io.BytesIO()
        torch.save({key: value.cpu() for key, value in weights.items()}, buffer)
        files[name] = buffer.getvalue()
    files[SCALERS] = json.dumps({FINAL: final[1].to_dict(), BEST: best[1].to_dict()}, indent=1).encode()
    described = _describe(meta) | {
        "format": FORMAT,
        "digest": digest,
        "architecture": "QuantileMLP",
        "inputs": list(final[1].names),
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        "versions": {"salescast": salescast.__version__, "torch": str(torch.__version__)},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    files[METADATA] = json.dumps(described | {"seal": _seal(described)}, indent=1).encode()
    with replace_dir(folder) as temporary:
        for name, content in files.items():
            (temporary / name).write_bytes(content)
    return digest


def _seal(described: dict[str, Any]) -> str:
    """A digest of the metadata themselves: a flipped bit in a factor would be a wrong forecast and no error."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def read_metadata(folder: Path) -> dict[str, Any]:
    """The metadata file as it is. Raises UserError when there is no readable, unchanged one of this format."""
    try:
        described: dict[str, Any] = json.loads((folder / METADATA).read_text())
        seal = described.pop("seal", None)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"no model bundle in {folder}: {METADATA} cannot be read ({error}); train first") from None
    if seal not in (None, _seal(described)):
        raise UserError(f"bundle {folder} is not whole: {METADATA} was changed or damaged; copy it again or train")
    if described.get("format") != FORMAT:
        raise UserError(
            f"bundle {folder} has format {described.get('format')}, this version reads {FORMAT}; train again"
        )
    return described


def finished(folder: Path, fit_digest: str) -> bool:
    """True if `folder` holds the whole bundle of this very fit."""
    try:
        described = read_metadata(folder)
    except UserError:  # none, or a broken one: training puts a whole one in its place
        return False
    return described.get("fit_digest") == fit_digest and not _damaged(folder, described)


def whole(folder: Path) -> bool:
    """True if `folder` holds a bundle with every file it was written with."""
    try:
        return not _damaged(folder, read_metadata(folder))
    except (UserError, OSError):
        return False


def _damaged(folder: Path, described: dict[str, Any]) -> list[str]:
    """Files that are missing or are not the ones the metadata was written with."""
    return [
        name
        for name, expected in described["files"].items()
        if not (folder / name).is_file() or hashlib.sha256((folder / name).read_bytes()).hexdigest() != expected
    ]


def load(folder: Path, part: str = FINAL) -> Bundle:
    """Load a bundle; `part`: FINAL, which forecasts, or BEST.

    Raises UserError if its files do not belong together or are not what they should be: code in them is not run.
    """
    try:
        return _load(folder, part)
    except BROKEN as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"bundle {folder} cannot be used: {type(error).__name__}: {reason}; train again") from None


def _load(folder: Path, part: str) -> Bundle:
    described = read_metadata(folder)
    damaged = _damaged(folder, described)
    if damaged:
        raise UserError(
            f"bundle {folder} is not whole: {damaged} missing or of another model; copy the folder again or train"
        )
    meta = Metadata(
        config=TrainConfig.from_dict(described["config"]),
        country=described["country"],
        cutoff=date.fromisoformat(described["cutoff"]),
        data_digest=described["data_digest"],
        fit_digest=described["fit_digest"],
        factors=(described["factors"][0], described["factors"][1]),
        metrics=described["metrics"],
        trust=described["trust"],
        planned=tuple(described["planned"]),
    )
    scaler = Scaler.from_dict(json.loads((folder / SCALERS).read_text())[part])
    net = network(scaler, meta.config)
    net.load_state_dict(torch.load(folder / part, map_location="cpu", weights_only=True))
    return Bundle(meta, described["digest"], net.eval(), scaler)
