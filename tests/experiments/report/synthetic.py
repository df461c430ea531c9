"""Records that no run made, for the tests of reports."""

import math

from matplotlib.axes import Axes

from experiments.config import RunConfig
from experiments.records.files import RecordWriter, RunRecord


def record(optimizer="sgd", losses=(2.0, 1.0), *, seed=0, cost=1, **settings):
    """A record in memory; ``figures`` of the settings go into its summary."""
    figures = settings.pop("figures", {})
    options = settings.pop("options", {})
    beta = settings.pop("beta", None)
    config = RunConfig(
        optimizer=optimizer, optimizer_options=options, seed=seed, **settings
    )
    steps = []
    for number, loss in enumerate(losses, start=1):
        step = {"step": number - 1, "loss": loss, "seconds": 0.5 * number}
        step["gradient_equivalents"] = cost * number
        steps.append(step if beta is None else {**step, "beta": beta, "cosine": 0.9})
    summary = {
        "step": len(losses),
        "train_loss": losses[-1],
        "gradient_equivalents": cost * len(losses),
        "seconds": 0.5 * len(losses),
        **figures,
    }
    return RunRecord(config, {"commit": "abc"}, [], steps, [], summary, None)


def write(folder, name, settings, losses, *, final, evaluations=1):
    """Writes the file of a record; a run without a final loss diverged."""
    config = RunConfig(**settings)
    with RecordWriter(folder / f"{name}.jsonl", config) as writer:
        for step, loss in enumerate(losses):
            line = {"step": step, "loss": loss, "gradient_equivalents": step + 1}
            line |= {"seconds": 0.1 * (step + 1)}
            if "nlcg" in config.optimizer:
                line |= {"beta": 0.5, "cosine": 0.9}
            writer.write("step", line)
        if final is None:
            writer.write("stopped", {"reason": "the loss became nan"})
            return
        summary = {"gradient_equivalents": len(losses), "seconds": 0.5}
        summary |= {"step": len(losses), "train_loss": final}
        summary |= {"validation_accuracy": 0.5}
        for number in range(evaluations):
            costs = {"step": number + 1, "gradient_equivalents": number + 1}
            writer.write("evaluation", {**summary, **costs})
        writer.write("summary", {**summary, "test_accuracy": 1 - final})


def falling(steps, rate, start=2.0):
    """A loss curve that falls exponentially."""
    return [start * math.exp(-rate * step) for step in range(steps)]


def watched_lines(monkeypatch):
    """The keyword arguments of every later call of ``Axes.plot``."""
    calls, plot = [], Axes.plot

    def watched(axes, *arguments, **settings):
        calls.append({"axes": axes, **settings})
        return plot(axes, *arguments, **settings)

    monkeypatch.setattr(Axes, "plot", watched)
    return calls


def looks_in(axes, calls):
    """Color and dashes of each labeled line in some axes."""
    return {
        call["label"]: (call["color"], call["linestyle"])
        for call in calls
        if call["axes"] is axes and "label" in call
    }
