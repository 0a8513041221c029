"""Trains on a device of its own: `pretend_device.py PLAN.json [CHECKPOINT]`, started by test_device.py.

Its tensors lie in the host's memory, but torch takes them for those of another device: as on a GPU, an operation that
mixes them with tensors of the host fails, and what reads their values or copies them is noted. With CHECKPOINT the
training dies after writing the checkpoint of that number, and is started again. Prints what was noted, as JSON.

It is a program of its own because a process can have one such device only, and keeps it.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map

from salescast.features.training_set import scan
from salescast.model import bundle
from salescast.training import calibration, trainer
from salescast.training import main as training
from salescast.training.checkpoint import Checkpoint, Checkpoints
from salescast.training.distributed import Group, Placement
from salescast.training.main import run_plan
from salescast.training.plan import Plan

# Operations whose result has a size that only the device knows: a GPU is waited for.
SIZED = ("aten::nonzero", "aten::masked_select", "aten::equal", "aten::_unique2", "aten::bincount")

up: list[str] = []  # operations that brought values to the device
down: list[str] = []  # operations that waited for values of it


class Module(backend_registration._DummyBackendModule):  # type: ignore[misc]
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


NAME = "pretend"
backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=Module())
HERE, THERE = torch.device("cpu"), torch.device(NAME, 0)


class There(torch.Tensor):
    """A tensor of the device; `inner` holds its values."""

    inner: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "There":
        made: There = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.size(), strides=inner.stride(), dtype=inner.dtype, device=THERE
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.name()
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        strangers = [tensor for tensor in tensors if not isinstance(tensor, There)]
        if name == "aten::copy_":
            if strangers:
                (up if isinstance(args[0], There) else down).append(name)
        elif any(tensor.dim() for tensor in strangers):
            raise RuntimeError(f"{name} mixes tensors of {THERE} and {HERE}")
        out = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
        masked = name == "aten::index.Tensor" and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if masked or name in SIZED or (name == "aten::repeat_interleave.Tensor" and kwargs.get("output_size") is None):
            down.append(name)
        if kwargs.get("device") == HERE or name == "aten::_local_scalar_dense":
            down.append(name)
            return out
        written = [at for at, argument in enumerate(func._schema.arguments) if argument.is_write]
        if len(written) == 1 and func._schema.returns:
            return args[written[0]]  # in place
        return tree_map(lambda leaf: There(leaf) if isinstance(leaf, torch.Tensor) else leaf, out)


def _inner(leaf: Any) -> Any:
    if isinstance(leaf, There):
        return leaf.inner
    return HERE if leaf == THERE and isinstance(leaf, torch.device) else leaf


def _copy(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    up.append("aten::_copy_from")
    _inner(target).copy_(_inner(source))
    return target


def _empty(size: Any, dtype: Any = None, *_: Any, **__: Any) -> There:
    return There(torch.empty(size, dtype=dtype))


def _empty_strided(size: Any, stride: Any, dtype: Any = None, *_: Any, **__: Any) -> There:
    return There(torch.empty_strided(size, stride, dtype=dtype))


def _arange(end: Any, dtype: Any = None, *_: Any, **__: Any) -> There:
    return There(torch.arange(end, dtype=dtype))


KERNELS = torch.library.Library("aten", "IMPL")  # they are there as long as it is
KERNELS.impl("empty.memory_format", _empty, "PrivateUse1")
KERNELS.impl("empty_strided", _empty_strided, "PrivateUse1")
KERNELS.impl("_copy_from", _copy, "PrivateUse1")
KERNELS.impl("arange", _arange, "PrivateUse1")


@contextmanager
def connect(want: str) -> Iterator[Group]:
    yield Group(0, 1, Placement(str(THERE), "nccl", None, compile=False))


class DiedError(BaseException):
    """Stands for a kill."""


def noted(owner: Any, name: str, notes: list[dict[str, Any]], steps: Callable[..., int]) -> None:
    """Note what goes up and down during every call of `owner.name`, and how many `steps` it took."""
    whole = getattr(owner, name)

    def call(*arguments: Any, **named: Any) -> Any:
        before = len(up), len(down)
        result = whole(*arguments, **named)
        moved = {"up": len(up) - before[0], "down": len(down) - before[1]}
        notes.append({"what": name, "steps": steps(*arguments), **moved})
        return result

    setattr(owner, name, call)


def mixed() -> bool:
    """True if the device notices a tensor of the host among its own."""
    try:
        torch.ones(2, device=THERE) * torch.ones(2)
    except RuntimeError:
        return True
    return False


def main(path: Path, dies_after: int | None) -> None:
    notes: list[dict[str, Any]] = []
    noted(trainer.Trainer, "epoch", notes, lambda trainer, epoch: int(trainer.steps))
    for name in ("wmape", "shrinkage", "interval_factor"):
        noted(calibration, name, notes, lambda network, samples, *_: -(-samples.size // calibration.BATCH))
    training.connect = connect  # type: ignore[assignment]
    plan = Plan.read(path)
    save = Checkpoints.save

    def dying(self: Checkpoints, number: int, checkpoint: Checkpoint) -> None:
        save(self, number, checkpoint)
        if number == dies_after:
            raise DiedError

    Checkpoints.save = dying  # type: ignore[method-assign]
    try:
        run_plan(plan)
    except DiedError:
        Checkpoints.save = save  # type: ignore[method-assign]
        run_plan(plan)
    model = bundle.load(plan.fits[-1].out)
    rows = scan(plan.training).tail(3).collect()
    here = model.predict(rows).quantiles
    model.network.to(THERE)
    there = model.predict(rows).quantiles
    sys.stdout.write(json.dumps({"mixed": mixed(), "same": bool((here == there).all()), "notes": notes}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
