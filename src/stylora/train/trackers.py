"""Experiment trackers beside TensorBoard: a run of each is opened in the run's own folder, and closed whatever happens.

transformers' callbacks log into a run that is open already, so its name and place are ours to say; what they log is theirs. (They
could not open one with swanlab >= 0.9 anyway: they ask `swanlab.get_run() is None`, which raises there.) The trackers' own environment
variables come first. Knows no trainer; each tracker is imported only where it is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from stylora.errors import UserError

PROJECT = "stylora"


@contextmanager
def tracked(names: Sequence[str], folder: Path, *, run_name: str) -> Iterator[None]:
    """Runs of these trackers are open inside; they end as failed where an exception ends it. For the first process only.

    names: as in `report_to`; those that nothing has to be opened for pass through
    Raises UserError where a tracker refuses: nobody is logged in, or its server does not answer.
    """
    with ExitStack() as opened:
        for name in names:
            if name in OPENERS:
                opened.enter_context(OPENERS[name](folder, run_name))
        yield


@contextmanager
def wandb_run(folder: Path, run_name: str) -> Iterator[None]:
    """Files in `folder/wandb`."""
    import wandb

    try:
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), name=os.environ.get("WANDB_NAME", run_name),
            dir=os.environ.get("WANDB_DIR", str(folder)),
        )  # fmt: skip
    except wandb.errors.Error as error:
        raise _refused("wandb", error, "`wandb login`, or set WANDB_MODE=offline") from error
    with run:
        yield


@contextmanager
def swanlab_run(folder: Path, run_name: str) -> Iterator[None]:
    """Files in `folder/swanlog`."""
    import swanlab

    chosen = "SWANLAB_LOG_DIR" in os.environ
    try:
        run = swanlab.init(
            project=os.environ.get("SWANLAB_PROJ_NAME") or os.environ.get("SWANLAB_PROJECT", PROJECT),
            experiment_name=os.environ.get("SWANLAB_EXP_NAME", run_name), logdir=os.environ.get("SWANLAB_LOG_DIR", str(folder / "swanlog")),
        )  # fmt: skip
    except (OSError, RuntimeError, swanlab.exceptions.AuthenticationError) as error:  # requests' errors are OSErrors
        raise _refused("swanlab", error, "`swanlab login`, or set SWANLAB_MODE=offline") from error
    try:
        with run:
            yield
    finally:
        if not chosen:  # in local mode it is set for the rest of the process, where the next stage would find it
            os.environ.pop("SWANLAB_LOG_DIR", None)


@contextmanager
def mlflow_run(folder: Path, run_name: str) -> Iterator[None]:
    """A database `folder/mlflow.db`, where MLFLOW_TRACKING_URI names no other place."""
    import mlflow

    ours = not os.environ.get("MLFLOW_TRACKING_URI")
    try:
        if ours:
            mlflow.set_tracking_uri(f"sqlite:///{folder.absolute().as_posix()}/mlflow.db")
        if "MLFLOW_RUN_ID" not in os.environ:  # there transformers goes on with that one
            mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
            mlflow.start_run(run_name=run_name)
    except mlflow.exceptions.MlflowException as error:
        raise _refused("mlflow", error, "set MLFLOW_TRACKING_URI to a server or a database that can be opened") from error
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    finally:
        mlflow.end_run(status)
        if ours:
            mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # as it was: the next stage has a folder of its own


def _refused(name: str, error: Exception, do: str) -> UserError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return UserError("train.report_to", got=f"{name}, which says: {reason}", expected="a tracker that takes runs", do=do)


OPENERS: dict[str, Callable[[Path, str], AbstractContextManager[None]]] = {
    "wandb": wandb_run, "swanlab": swanlab_run, "mlflow": mlflow_run,
}  # fmt: skip
