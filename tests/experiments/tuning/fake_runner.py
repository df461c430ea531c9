"""A runner that trains nothing: the metrics of a run are a function of its settings."""

import math

from experiments.records.files import RecordWriter


class FakeRunner:
    """Writes records as `experiments.tuning.runner.Runner` does.

    Args:
      loss_of: from a configuration to the loss of its run, NaN if it diverges.
      stop_after: number of runs after which it is killed in the middle of the next.
    """

    def __init__(self, loss_of, stop_after=math.inf):
        self.loss_of, self.stop_after = loss_of, stop_after
        self.ran, self.groups, self.longest = [], [], 0.0

    def dataset(self, config):
        return None

    def run(self, planned):
        self.groups.append(len(planned))
        return [self._run(run) for run in planned]

    def _run(self, planned):
        loss = self.loss_of(planned.config)
        cost = {"step": 1, "gradient_equivalents": 1.0, "seconds": 0.1}
        with RecordWriter(planned.path, planned.config, overwrite=True) as writer:
            for trial in planned.trials:
                writer.write("trial", trial)
            writer.write("step", {**cost, "loss": 2.0, "beta": 0.25, "cosine": 1.0})
            writer.write("step", {**cost, "loss": 2.0, "beta": 0.75, "cosine": 1.0})
            if len(self.ran) == self.stop_after:
                raise KeyboardInterrupt
            self.ran.append(planned.path)
            if math.isnan(loss):
                writer.write("stopped", {"reason": "the loss became nan"})
                return None
            metrics = {
                f"{split}_{name}": value
                for split in ("train", "validation", "test", "test_unaveraged")
                for name, value in (("loss", loss), ("accuracy", -loss))
            }
            writer.write("evaluation", {**cost, **metrics})
            summary = {**cost, **metrics, "compile_seconds": self.compiled(planned)}
            writer.write("summary", summary)
        return summary

    def compiled(self, planned):
        """A time that is the same for runs of one optimizer and batch size."""
        config = planned.config
        options = len(config.optimizer_options)
        return len(config.optimizer) + options / 8 + (config.batch_size or 0) / 512
