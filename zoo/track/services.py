"""Trackers `wandb`, `mlflow` and `trackio`: each through its own library, which is imported when a trial begins."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any, Literal

from zoo.track.slots import Tracker


class WandB(Tracker, kind="wandb"):
    """Weights & Biases; ``mode = "offline"`` writes runs into the folder of results, for ``wandb sync``.

    Source: wandb/wandb.
    """

    class Config(Tracker.Config):
        project: str | None = None  # None: the grid's name
        entity: str | None = None
        mode: Literal["online", "offline"] = "online"

    def start(self, project: str, name: str, knobs: Mapping[str, Any]) -> None:
        import wandb

        own = self.config
        self.folder.mkdir(parents=True, exist_ok=True)
        self.run = wandb.init(
            project=own.project or project,
            entity=own.entity,
            name=name,
            config=dict(knobs),
            mode=own.mode,
            dir=str(self.folder),
            reinit="create_new",  # several trials may run at once
            settings=wandb.Settings(silent=True, console="off"),
        )

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self.run.log(dict(figures), step=step)

    def finish(self, figures: Mapping[str, float], status: str) -> None:
        self.run.summary.update({**figures, "status": status})
        self.run.finish(exit_code=0 if status == "done" else 1)


class MLflow(Tracker, kind="mlflow"):
    """MLflow; without a ``uri`` that of the environment, else ``mlflow.db`` in the folder of results.

    Source: mlflow/mlflow.
    """

    class Config(Tracker.Config):
        uri: str | None = None
        experiment: str | None = None  # None: the grid's name

    def start(self, project: str, name: str, knobs: Mapping[str, Any]) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self.folder.mkdir(parents=True, exist_ok=True)
        beside = f"sqlite:///{(self.folder / 'mlflow.db').absolute()}"
        self.client = MlflowClient(self.config.uri or os.environ.get("MLFLOW_TRACKING_URI") or beside)
        wanted = self.config.experiment or project
        known = self.client.get_experiment_by_name(wanted)
        experiment = known.experiment_id if known else self.client.create_experiment(wanted)
        self.run = self.client.create_run(experiment, run_name=name).info.run_id
        params = [Param(path.replace("[", ".").replace("]", ""), str(value)[:500]) for path, value in knobs.items()]
        for start in range(0, len(params), 100):  # the most that one call takes
            self.client.log_batch(self.run, params=params[start : start + 100])

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(self.run, metrics=[Metric(k, v, now, step) for k, v in figures.items()])

    def finish(self, figures: Mapping[str, float], status: str) -> None:
        for name, value in figures.items():
            self.client.log_metric(self.run, f"final.{name}", value)
        self.client.set_tag(self.run, "status", status)
        self.client.set_terminated(self.run, "FINISHED" if status == "done" else "FAILED")


class Trackio(Tracker, kind="trackio"):
    """trackio: a local database that ``trackio show`` opens; ``space_id`` sends it to a Hugging Face Space.

    Source: gradio-app/trackio.
    """

    class Config(Tracker.Config):
        project: str | None = None  # None: the grid's name
        space_id: str | None = None

    def start(self, project: str, name: str, knobs: Mapping[str, Any]) -> None:
        import trackio

        own = self.config
        with redirect_stdout(io.StringIO()):  # it says on standard output what the dashboard is
            self.run = trackio.init(
                project=own.project or project,
                name=name,
                space_id=own.space_id,
                config=dict(knobs),
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self.run.log(dict(figures), step=step)

    def finish(self, figures: Mapping[str, float], status: str) -> None:
        with redirect_stdout(io.StringIO()):
            self.run.log({f"final/{name}": value for name, value in figures.items()})
            self.run.finish()
