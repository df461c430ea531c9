"""The state of a run."""

from typing import Any, NamedTuple

import jax

PyTree = Any


class TrainState(NamedTuple):
    """Everything that changes during a run or differs between the runs of a search.

    Attributes:
      step: number of steps taken.
      params: the weights.
      average: exponential average of the weights for evaluation; empty if not used.
      batch_stats: statistics of batch normalization; empty if the model has none.
      opt_state: state of the optimizer.
      learning_rate: peak of the schedule.
      hyperparameters: the run's numbers from `hyperparameters_of`.
      key: random key for the order of the data and the augmentation.
    """

    step: jax.Array
    params: PyTree
    average: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    learning_rate: jax.Array
    hyperparameters: dict[str, jax.Array]
    key: jax.Array
