"""The reduced study's size, an hour or so on two CPU cores, and its small form."""

import dataclasses

from experiments.optimizers import Choice

# Two forms of NLCG, and baselines, the strongest first.
ORTHOGONAL = Choice("nlcg", {"preconditioner": "orthogonal"})
RMS = Choice("nlcg", {"preconditioner": "rms"})
MUON = Choice("muon", {})
NESTEROV = Choice("nesterov", {})
ADAMW = Choice("adamw", {})
LAMB = Choice("lamb", {})
SGD = Choice("sgd", {})


@dataclasses.dataclass(frozen=True)
class Size:
    """How large everything is.

    Attributes:
      model: a name in `experiments.models.MODELS`.
      batch_sizes: batch sizes of the paper's recipe, the most important first; None
        is the full batch.
      tuned_batch_sizes: batch sizes of the tuned comparison.
      methods: optimizers of the tuned comparison, with options that are not searched.
      epochs: length of all runs.
      epochs_per_report: epochs after which a run is evaluated.
      steps_per_call: steps in one compiled call, None for all up to a report.
      micro_batch_size: images that batch normalization sees together.
      train_examples: images that are trained on, None for all.
      classes: number of classes, None for all.
      halved_images: whether images have half their height and width.
      validation_examples: images held out in the tuned comparison.
      held_out_in_paper_runs: images held out in runs of the paper's recipe.
      warmup: share of the epochs of tuned runs in which the learning rate rises.
      trials: first trials of each method.
      extensions: how often all methods may get further trials.
      seeds: seeds of the paper's recipe.
      final_seeds: seeds of the final runs of the tuned comparison.
      constant_memory: whether the mean of the adaptive β is tuned anew as a constant.
      swap_methods: methods of the first phase of SWAP, at the first tuned batch size;
        the workers of the second phase use Nesterov, as tuned at the last batch size.
      workers: number of workers of the second phase of SWAP.
      worker_epochs: epochs of each worker.
    """

    model: str
    batch_sizes: tuple[int | None, ...]
    tuned_batch_sizes: tuple[int | None, ...]
    methods: tuple[Choice, ...]
    epochs: int
    epochs_per_report: int
    steps_per_call: int | None
    micro_batch_size: int
    train_examples: int | None = None
    classes: int | None = None
    halved_images: bool = False
    validation_examples: int = 2000
    held_out_in_paper_runs: int = 0
    warmup: float = 1 / 8
    trials: int = 4
    extensions: int = 1
    seeds: tuple[int, ...] = (0, 1, 2)
    final_seeds: tuple[int, ...] = (10, 11, 12)
    constant_memory: bool = False
    swap_methods: tuple[Choice, ...] = ()
    workers: int = 4
    worker_epochs: int = 5


CPU = Size(
    model="resnet8_narrow",
    batch_sizes=(256, None, 32),
    tuned_batch_sizes=(256, None, 32),
    methods=(RMS, ORTHOGONAL, SGD, NESTEROV, ADAMW, LAMB, MUON),
    epochs=30,
    epochs_per_report=10,
    steps_per_call=1,  # convolutions on a CPU
    micro_batch_size=256,  # what a core computes fastest
    train_examples=1024,
    classes=10,
    halved_images=True,
    held_out_in_paper_runs=2000,
    warmup=1 / 10,
    constant_memory=True,
    swap_methods=(NESTEROV, RMS),
)
SMALL = dataclasses.replace(
    CPU,
    epochs=2,
    epochs_per_report=1,
    trials=2,
    seeds=(0,),
    final_seeds=(10,),
    batch_sizes=(32, None),
    tuned_batch_sizes=(32, None),
    methods=(NESTEROV, ORTHOGONAL),
    train_examples=64,
    validation_examples=64,
    held_out_in_paper_runs=64,
    swap_methods=(NESTEROV,),
    workers=2,
    worker_epochs=1,
)
