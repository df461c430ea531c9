r"""ImageNet with ResNet-50 at batch 65,536 on a TPU pod: the configurations.

On every host of a slice of 256 chips (v5e-256: 64 hosts of four chips), with the data
prepared by ``python -m experiments.data.prepare imagenet2012 --source DIRECTORY``::

    python -m experiments.studies.imagenet_pod paper-nlcg \
        --data-dir /mnt/imagenet --record runs/paper-nlcg.jsonl \
        --checkpoint-dir gs://BUCKET/paper-nlcg --processes.auto

From one machine: ``gcloud compute tpus tpu-vm ssh NAME --worker=all --command="..."``.
Rerunning the command resumes after an interruption, on the same slice or another. The
record is a file on the first host; on another slice a new record begins at the step of
the checkpoint, unless the file is copied there.

Batch. 65,536 images are two micro-batches of 32,768, each of 128 images on each of 256
chips; their gradients and losses are averaged before the step. A host reads and decodes
its own 1,024 images of a step. Batch normalization uses 128 images at a time, with any
number of chips. With fewer chips use more micro-batches: ``--config.micro-batches 4``
on 128 chips, 64 on eight.

Schedule. 90 epochs of 19.5 steps: 1,755 steps. In the paper's recipe the learning rate
rises for 1/8 of the run to 0.1 per 256 images, that is 25.6, and falls to a tenth after
51 % and 76.5 % of the run; the value 25.6 is inferred from the paper's smaller batches.
Its L2 factor is that of arXiv 1706.02677. LARS and the recommended NLCG have a warm-up
of five epochs and a cosine schedule; their learning rates are starting points for a
search.

None of these configurations has been run, for lack of a pod. ``experiments.run`` was
run on a few fake images with other settings (``tests/experiments/data``). The step that
was compiled for pods (``experiments/scaling``) has the same network, batch and dtype,
but one micro-batch on 256 chips, no ghost batches and no average of the weights. The
steps of these configurations compile with a small network on virtual devices
(``tests/experiments/studies/test_imagenet_pod.py``).
"""

import dataclasses
import sys
from collections.abc import Sequence

import tyro

from experiments import run
from experiments.config import RunConfig
from experiments.run import RunArguments

MODULE = "experiments.studies.imagenet_pod"

PAPER = RunConfig(
    dataset="imagenet2012",
    model="resnet50",
    optimizer="paper_nlcg",
    learning_rate=25.6,
    schedule="paper",
    batch_size=65_536,
    micro_batches=2,
    ghost_batch_size=128,
    epochs=90,
    epochs_per_report=2,
    l2=1e-4,
    ema_decay=0.9999,
    standardization="imagenet",
    image_size=224,
    decode_workers=32,
    compute_dtype="bfloat16",
    validation_examples=0,
)
LARS = dataclasses.replace(
    PAPER,
    optimizer="lars",
    optimizer_options={"weight_decay": 1e-4, "momentum": 0.9},
    learning_rate=29.0,
    schedule="cosine",
    warmup_epochs=5,
    l2=0.0,
    label_smoothing=0.1,
)
CONFIGS: dict[str, tuple[str, RunConfig]] = {
    "paper-nlcg": ("The paper's NLCG under its recipe.", PAPER),
    "paper-sgd": (
        "SGD under the paper's recipe.",
        dataclasses.replace(PAPER, optimizer="sgd"),
    ),
    "paper-momentum": (
        "Momentum under the paper's recipe.",
        dataclasses.replace(PAPER, optimizer="heavy_ball"),
    ),
    "paper-rmsprop": (
        "RMSProp under the paper's recipe.",
        dataclasses.replace(PAPER, optimizer="rmsprop"),
    ),
    "lars": ("LARS with a cosine.", LARS),
    "nlcg": (
        "NLCG (PR+) on second moments.",
        dataclasses.replace(
            LARS,
            optimizer="nlcg",
            optimizer_options={"preconditioner": "rms", "weight_decay": 1e-4},
            learning_rate=0.01,
        ),
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one of the configurations, any setting of which may be overridden."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    choices = {
        name: (description, RunArguments(config=config))
        for name, (description, config) in CONFIGS.items()
    }
    chosen = tyro.extras.overridable_config_cli(
        choices, prog=f"python -m {MODULE}", args=given
    )
    run.execute(chosen, arguments, MODULE)


if __name__ == "__main__":
    main()
