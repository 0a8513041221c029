"""Training settings, their rules, and their environment variables."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from salescast.config import read
from salescast.errors import UserError
from salescast.schema import QUANTILES, SEASON, TRAINING_SERVICE, TRAINING_SERVICE_SEASONAL

REQUIRED_QUANTILES: Final = (0.1, 0.5, 0.9)  # used by backtest, report and server


@dataclass(frozen=True)
class Rule:
    """The allowed values of a setting, as text for messages and as a predicate."""

    allowed: str
    holds: Callable[[Any], bool]


def _is_integer(value: object, low: int, high: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _at_least(low: int) -> Rule:
    return Rule(f"a whole number, at least {low}", lambda value: _is_integer(value, low))


def _are_quantiles(value: object) -> bool:
    if not isinstance(value, tuple) or not all(_is_number(level) and 0 < level < 1 for level in value):
        return False
    return list(value) == sorted(set(value)) and set(REQUIRED_QUANTILES) <= set(value)


_SWITCH: Final = Rule("true or false", lambda value: isinstance(value, bool))
_POSITIVE: Final = Rule("a number above 0", lambda value: _is_number(value) and value > 0)
_SHARE: Final = Rule("a number from 0 to below 1", lambda value: _is_number(value) and 0 <= value < 1)
RULES: Final[dict[str, Rule]] = {
    "feature_service": Rule(
        f"{TRAINING_SERVICE_SEASONAL} or {TRAINING_SERVICE}",
        lambda value: value in (TRAINING_SERVICE_SEASONAL, TRAINING_SERVICE),
    ),
    "horizon": Rule(f"a whole number of weeks, 1 to {SEASON}", lambda value: _is_integer(value, 1, SEASON)),
    "quantiles": Rule("increasing numbers between 0 and 1, 0.1, 0.5 and 0.9 among them", _are_quantiles),
    "hidden": Rule(
        "whole numbers, at least 1 each, one for every hidden layer",
        lambda value: isinstance(value, tuple) and bool(value) and all(_is_integer(size, 1) for size in value),
    ),
    "dropout": _SHARE,
    "linear": _SWITCH,
    "epochs": _at_least(1),
    "batch_size": _at_least(2),
    "learning_rate": _POSITIVE,
    "weight_decay": Rule("a number, at least 0", lambda value: _is_number(value) and value >= 0),
    "clip_norm": _POSITIVE,
    "ema": _SHARE,
    "patience": _at_least(0),
    "holdout_weeks": _at_least(1),
    "min_history": _at_least(0),
    "seed": Rule("a whole number, 0 to 4294967295", lambda value: _is_integer(value, 0, 2**32 - 1)),
    "device": Rule("auto, cpu or cuda", lambda value: value in ("auto", "cpu", "cuda")),
    "bf16": _SWITCH,
    "compile": _SWITCH,
}


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a fit; part of the bundle and of every digest.

    Units: `horizon`, `holdout_weeks`, `min_history` in weeks; `batch_size` in samples per rank. `bf16` and `compile`
    have an effect on GPUs only, and made nothing faster on the one measured (docs/LOG.md). Raises UserError for a
    value that is not allowed.
    """

    feature_service: str = TRAINING_SERVICE_SEASONAL
    horizon: int = 8
    quantiles: tuple[float, ...] = QUANTILES
    hidden: tuple[int, ...] = (256, 128, 64)
    dropout: float = 0.2
    linear: bool = True
    epochs: int = 20
    batch_size: int = 512
    learning_rate: float = 1e-2
    weight_decay: float = 1e-2
    clip_norm: float = 1.0
    ema: float = 0.99
    patience: int = 0
    holdout_weeks: int = 13
    min_history: int = 4
    seed: int = 42
    device: Literal["auto", "cpu", "cuda"] = "auto"
    bf16: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        for name, rule in RULES.items():
            value = getattr(self, name)
            if not rule.holds(value):
                raise UserError(f"training setting {name} must be {rule.allowed}, got {value!r}; correct it")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict` (JSON lists become tuples). Raises UserError for an unknown name or value."""
        unknown = sorted(values.keys() - {field.name for field in fields(cls)})
        if unknown:
            raise UserError(f"unknown training settings {unknown}; this version knows {[f.name for f in fields(cls)]}")
        known: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**known)


class TrainingSettings(BaseSettings):
    """TrainConfig from environment variables. The names NUM_EPOCHS and BATCH_SIZE are published."""

    model_config = SettingsConfigDict(extra="ignore", populate_by_name=True)

    epochs: int = Field(default=TrainConfig.epochs, validation_alias="NUM_EPOCHS")
    batch_size: int = Field(default=TrainConfig.batch_size, validation_alias="BATCH_SIZE")
    feature_service: str = Field(default=TrainConfig.feature_service, validation_alias="SALESCAST_FEATURE_SERVICE")
    horizon: int = Field(default=TrainConfig.horizon, validation_alias="SALESCAST_HORIZON")
    quantiles: Annotated[tuple[float, ...], NoDecode] = Field(
        default=TrainConfig.quantiles, validation_alias="SALESCAST_QUANTILES"
    )
    hidden: Annotated[tuple[int, ...], NoDecode] = Field(
        default=TrainConfig.hidden, validation_alias="SALESCAST_HIDDEN"
    )
    dropout: float = Field(default=TrainConfig.dropout, validation_alias="SALESCAST_DROPOUT")
    linear: bool = Field(default=TrainConfig.linear, validation_alias="SALESCAST_LINEAR")
    learning_rate: float = Field(default=TrainConfig.learning_rate, validation_alias="SALESCAST_LEARNING_RATE")
    weight_decay: float = Field(default=TrainConfig.weight_decay, validation_alias="SALESCAST_WEIGHT_DECAY")
    clip_norm: float = Field(default=TrainConfig.clip_norm, validation_alias="SALESCAST_CLIP_NORM")
    ema: float = Field(default=TrainConfig.ema, validation_alias="SALESCAST_EMA")
    # Stop after this many epochs without a better held-out WMAPE; 0: train all epochs (docs/LOG.md says why).
    patience: int = Field(default=TrainConfig.patience, validation_alias="SALESCAST_PATIENCE")
    holdout_weeks: int = Field(default=TrainConfig.holdout_weeks, validation_alias="SALESCAST_HOLDOUT_WEEKS")
    min_history: int = Field(default=TrainConfig.min_history, validation_alias="SALESCAST_MIN_HISTORY")
    seed: int = Field(default=TrainConfig.seed, validation_alias="SALESCAST_SEED")
    device: Literal["auto", "cpu", "cuda"] = Field(default=TrainConfig.device, validation_alias="SALESCAST_DEVICE")
    bf16: bool = Field(default=TrainConfig.bf16, validation_alias="SALESCAST_BF16")
    compile: bool = Field(default=TrainConfig.compile, validation_alias="SALESCAST_COMPILE")

    @field_validator("quantiles", "hidden", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """Split a comma-separated list."""
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @field_validator(*RULES)
    @classmethod
    def _allowed(cls, value: object, info: ValidationInfo) -> object:
        rule = RULES[str(info.field_name)]
        if not rule.holds(value):
            raise ValueError(f"must be {rule.allowed}")
        return value


def train_config(*, feature_service: str | None = None, horizon: int | None = None) -> TrainConfig:
    """The configuration from the environment; arguments override it.

    Raises UserError naming the variable or the value that cannot be used.
    """
    given = {"feature_service": feature_service, "horizon": horizon}
    values = {name: getattr(read(TrainingSettings), name) for name in RULES}
    return TrainConfig(**values | {name: value for name, value in given.items() if value is not None})
