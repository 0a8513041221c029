"""Starting a training: on this machine, or as a job through the Kubeflow SDK."""

import os
import signal
import sys
import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from salescast.errors import UserError
from salescast.runtime import extras
from salescast.tracking import journal
from salescast.tracking.mlflow import check
from salescast.training.plan import Plan

if TYPE_CHECKING:
    from kubeflow.trainer import TrainerClient


def train(plan: Plan, path: Path, processes: int, restarts: int = 1) -> None:
    """Write the plan to `path` and train it with `processes` processes on this machine, as torchrun would.

    A process that dies takes the others with it; all are started again, `restarts` times, from the last checkpoint.
    Where torchrun started this process already, it trains as rank 0, and `processes` and `restarts` are torchrun's.
    Raises UserError with the reason of the first process that failed, and before any work if MLflow cannot be reached.
    """
    if plan.tracking:
        check(plan.tracking.uri)
    plan.write(path)
    if "RANK" in os.environ:
        from salescast.training.main import run_plan

        code = run_plan(plan)
    else:
        code = _elastic(path, processes, restarts)
    if code == journal.UNSENT:
        raise UserError(journal.unsent_message(plan.journal))


def _elastic(path: Path, processes: int, restarts: int) -> int:
    """torchrun in this process: it has imported torch already. Returns the exit code 0 or journal.UNSENT."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=uuid.uuid4().hex,
        max_restarts=restarts,
    )
    main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        elastic_launch(config, sys.executable)("-m", "salescast.training.main", str(path))
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        if failure.exitcode == journal.UNSENT:
            return journal.UNSENT
        raise UserError(f"training failed: {_reason(failure.message)}") from None
    except SignalException:
        raise KeyboardInterrupt from None
    finally:
        for number, handler in handlers.items() if main else ():
            signal.signal(number, handler)
    return 0


def _reason(message: object) -> str:
    """The message of a failed process: its own, else what torch says of it, such as "Signal 9 (SIGKILL) received"."""
    return str(message["message"] if isinstance(message, dict) else message)


def run(plan: str, processes: int) -> None:
    """Train a written plan: as one of the processes if torchrun started this one, else by starting `processes`."""
    if "RANK" in os.environ:
        from salescast.training.main import main

        sys.exit(main([plan]))
    train(Plan.read(Path(plan)), Path(plan), processes)


def train_job(job):  # type: ignore[no-untyped-def]
    """What runs in a job. Its source is sent, so it imports what it needs itself."""
    from salescast.training.launch import run

    # The local backend hands the arguments over as one dictionary, the one for Kubernetes by name.
    run(**job.get("job", job))


def submit(client: "TrainerClient", plan: Path, nodes: int = 1, processes: int = 2) -> str:
    """Start a plan as a TrainJob with the Kubeflow SDK; returns the job's name. The same call for both backends.

    On Kubernetes torchrun starts the processes of every node from the runtime's PET_* variables, in the image of the
    runtime, which has salescast; `plan` is a path on the shared volume. The local process backend would make an
    environment of its own and install torch into it; it is given the packages of this one instead.
    """
    extras.require(extras.KUBEFLOW)
    from kubeflow.trainer import CustomTrainer
    from kubeflow.trainer.backends.localprocess.backend import LocalProcessBackend

    local = isinstance(client.backend, LocalProcessBackend)
    runtime = client.get_runtime("torch-distributed")
    environment = {}
    if local:
        # The new environment's interpreter runs the function with the packages found here, nothing is downloaded;
        # torchrun is then started by `run`, as the environment has no torchrun of its own.
        runtime.trainer.framework = "python"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    trainer = CustomTrainer(
        func=train_job,
        func_args={"job": {"plan": str(plan.resolve()), "processes": processes}},
        num_nodes=None if local else nodes,
        env=environment,
    )
    return str(client.train(runtime=runtime, trainer=trainer))
