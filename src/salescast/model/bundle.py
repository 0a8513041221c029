"""A trained model as a folder of state dicts and JSON (no pickle), and forecasts from it.

model_best.pt   weights of the best epoch, trained without the held-out weeks
model_final.pt  weights trained on every label up to the cutoff: these forecast
scalers.json    standardization and category vocabularies of both
model_metadata.json  architecture, input names, quantiles, cutoff, digests, versions, metrics
"""

import hashlib
import io
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from pickle import UnpicklingError
from typing import Final

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

import salescast
from salescast.errors import UserError
from salescast.features.columns import Columns
from salescast.model.arrays import CLOSED
from salescast.model.config import TrainConfig
from salescast.model.inputs import build
from salescast.model.metadata import FORMAT, METADATA, Metadata, SavedMetadata, checksum_of, read_metadata
from salescast.model.network import QuantileMLP, Scaler
from salescast.retail_calendar import calendar
from salescast.runtime.atomic_files import replace_dir
from salescast.runtime.checksums import sha256
from salescast.schema import MEAN_WEIGHTS

FINAL, BEST, SCALERS = "model_final.pt", "model_best.pt", "scalers.json"
CHUNK = 2048  # base rows x horizons per forward pass: activations that fit into the CPU cache

# Exceptions that reading a damaged bundle raises.
UNREADABLE: Final = (
    OSError, RuntimeError, LookupError, TypeError, ValueError, AttributeError, EOFError, UnpicklingError,
)  # fmt: skip

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Forecast:
    """Forecasts of n base rows for H weeks, in the order of the rows given."""

    quantiles: NDArray[np.float64]  # [n, H, Q], calibrated, not decreasing along Q
    mean: NDArray[np.float64]  # [n, H]: what to add up; for slow movers far above the median
    weeks: NDArray[np.datetime64]  # datetime64[D] [n, H]
    levels: tuple[float, ...]  # of the quantiles
    outside: dict[str, int]  # number of values outside their training range, by input (see Scaler.outside)

    def at(self, level: float) -> NDArray[np.float64]:
        """The forecasts [n, H] of one level, such as 0.5. Raises ValueError for a level the model does not have."""
        return self.quantiles[:, :, self.levels.index(level)]


@dataclass(frozen=True)
class Bundle:
    """A loaded model. Bundles with equal `digest` give equal forecasts."""

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
                "run `salescast train` with this version"
            )
        codes = self.scaler.encode(inputs)
        step = inputs.step[:, :weeks]
        output = self._network_output(torch.from_numpy(inputs.base), torch.from_numpy(step), codes)
        outside = self.scaler.outside(inputs.base, step, codes)
        scale, anchor = inputs.unit[:, :weeks, None], inputs.anchor[:, :weeks, None]
        spread = np.where(scale > CLOSED, scale, 0.0) * self._calibrated(output)
        quantiles = np.maximum(anchor + spread, inputs.floor[:, None, None])
        mean = sum(weight * quantiles[:, :, self.levels.index(level)] for level, weight in MEAN_WEIGHTS.items())
        slow = inputs.slow_mean[:, :weeks]
        return Forecast(
            quantiles, np.where(np.isfinite(slow), slow, mean), inputs.weeks[:, :weeks], self.levels, outside
        )

    def _network_output(self, base: Tensor, step: Tensor, codes: Tensor) -> NDArray[np.float64]:
        """Quantiles [n, H, Q] in units, the mean over the heads, of inputs [n, Fb], [n, H, Fs] and codes [n, C]."""
        n, weeks = step.shape[:2]
        out = np.empty((n, weeks, len(self.levels)))
        horizons, device = self.scaler.horizons(weeks), self.network.mean.device
        size = max(1, CHUNK // weeks)
        for start in range(0, n, size):
            part = slice(start, min(start + size, n))
            count = part.stop - start
            expanded = base[part].unsqueeze(1).expand(count, weeks, -1)
            numeric = torch.cat([expanded, step[part]], dim=2).flatten(0, 1)
            index = torch.cat([codes[part].repeat_interleave(weeks, dim=0), horizons.repeat(count)[:, None]], dim=1)
            with torch.inference_mode():
                quantiles = self.network(numeric.to(device), index.to(device)).mean(dim=1)
            out[part] = quantiles.view(count, weeks, -1).cpu().numpy()
        return out

    def _calibrated(self, quantiles: NDArray[np.float64]) -> NDArray[np.float64]:
        """Shrink the median towards the anchor (0) and scale the distances from it by the factor of their side."""
        median = quantiles[..., self.network.median, None]
        lower, upper = self.metadata.factors
        distance = quantiles - median
        return np.asarray(self.metadata.shrinkage * median + distance * np.where(distance < 0, lower, upper))


def network(scaler: Scaler, config: TrainConfig) -> QuantileMLP:
    return QuantileMLP(scaler, config.hidden, config.quantiles, dropout=config.dropout, linear=config.linear)


def save(folder: Path, meta: Metadata, final: tuple[Weights, Scaler], best: tuple[Weights, Scaler]) -> str:
    """Write the bundle atomically, replacing an earlier one; returns its digest. Raises OSError."""
    digest = _content_digest({FINAL: final, BEST: best}, meta)
    files: dict[str, bytes] = {}
    for name, (weights, _) in ((FINAL, final), (BEST, best)):
        buffer = io.BytesIO()
        torch.save({key: value.cpu() for key, value in weights.items()}, buffer)
        files[name] = buffer.getvalue()
    files[SCALERS] = json.dumps({FINAL: final[1].to_dict(), BEST: best[1].to_dict()}, indent=1).encode()
    values = meta.to_dict() | {
        "format": FORMAT,
        "digest": digest,
        "architecture": "QuantileMLP",
        "inputs": list(final[1].names),
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        "versions": {"salescast": salescast.__version__, "torch": str(torch.__version__)},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    files[METADATA] = json.dumps(values | {"checksum": checksum_of(values)}, indent=1).encode()
    with replace_dir(folder) as temporary:
        for name, content in files.items():
            (temporary / name).write_bytes(content)
    return digest


def _content_digest(parts: dict[str, tuple[Weights, Scaler]], meta: Metadata) -> str:
    """sha256 of what decides a forecast: weights, scalers, settings, cutoff, factors; not of times and versions."""
    digest = hashlib.sha256(json.dumps(meta.to_dict() | {"metrics": None}, sort_keys=True).encode())
    for part, (weights, scaler) in sorted(parts.items()):
        digest.update(f"{part}{json.dumps(scaler.to_dict(), sort_keys=True)}".encode())
        for name, value in sorted(weights.items()):
            digest.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
            digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def is_finished(folder: Path, fit_digest: str) -> bool:
    """True if `folder` holds the complete bundle of this fit."""
    try:
        saved = read_metadata(folder)
    except UserError:  # missing or damaged: training replaces it
        return False
    return saved.metadata.fit_digest == fit_digest and not _damaged_files(folder, saved)


def is_complete(folder: Path) -> bool:
    """True if `folder` holds a bundle with every file it was written with."""
    try:
        return not _damaged_files(folder, read_metadata(folder))
    except (UserError, OSError):
        return False


def _damaged_files(folder: Path, saved: SavedMetadata) -> list[str]:
    """Names of files that are missing or do not have the checksum in the metadata."""
    return [
        name
        for name, expected in saved.checksums.items()
        if not (folder / name).is_file() or sha256(folder / name) != expected
    ]


def load(folder: Path, part: str = FINAL) -> Bundle:
    """Load a bundle with the weights of `part`: FINAL or BEST. No code in its files is run.

    Raises UserError when files are missing, damaged or of different models.
    """
    try:
        return _load(folder, part)
    except UNREADABLE as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"bundle {folder} cannot be used: {type(error).__name__}: {reason}; run `salescast train`"
        ) from None


def _load(folder: Path, part: str) -> Bundle:
    saved = read_metadata(folder)
    damaged = _damaged_files(folder, saved)
    if damaged:
        raise UserError(
            f"bundle {folder} is not complete: {damaged} missing or of another model; copy the folder again or run "
            "`salescast train`"
        )
    scaler = Scaler.from_dict(json.loads((folder / SCALERS).read_text())[part])
    model = network(scaler, saved.metadata.config)
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    weights = torch.load(folder / part, map_location="cpu", weights_only=True)
    model.load_state_dict({name: value.reshape(shapes[name]) for name, value in weights.items()})
    return Bundle(saved.metadata, saved.digest, model.eval(), scaler)
