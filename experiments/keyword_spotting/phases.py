"""The phases: alignment with cross-entropy, then training by the end metric."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.config import RunConfig
from experiments.data.arrays_file import write_arrays
from experiments.keyword_spotting.config import KeywordConfig
from experiments.keyword_spotting.decoder import Transitions
from experiments.keyword_spotting.evaluation import (
    ALARMS_PER_HOUR,
    Detector,
    figures,
    rejects,
    with_context,
)
from experiments.keyword_spotting.model import FrameNetwork, KeywordScorer
from experiments.keyword_spotting.prepare import Prepared, read
from experiments.keyword_spotting.states import (
    Statistics,
    aligned_states,
    spans_of,
    statistics_of,
    uniform_states,
)
from experiments.keyword_spotting.training import Trainer, constants_of, hinges
from experiments.keyword_spotting.windows import Windows, sample_windows
from experiments.records.files import Line, origin
from experiments.training.losses import l2
from nlcg_optax import minimize

PyTree = Any

RATE = 2e-3  # of Adam, for cross-entropy


@dataclasses.dataclass(frozen=True)
class Variant:
    """A way to train by the end metric.

    Attributes:
      hard_negatives: whether windows with swapped halves are negatives.
      iou_sampling: whether windows with the keyword vary.
      mined: whether the windows that the detector scores highest are negatives.
      temperature: that of the decoder's soft maximum in training; zero for the maximum.
      with_priors: whether posteriors are divided by priors.
      from_random: whether training starts from random weights.
    """

    hard_negatives: bool = True
    iou_sampling: bool = True
    mined: bool = True
    temperature: float = 0.0
    with_priors: bool = True
    from_random: bool = False


class Aligned(NamedTuple):
    """The result of training with cross-entropy.

    Attributes:
      params: weights of the network.
      labels: states of the training frames.
      statistics: statistics of the labels.
      moved: share of the keywords' frames that each round of alignment changed.
    """

    params: PyTree
    labels: np.ndarray
    statistics: Statistics
    moved: list[float]


class Phases:
    """All that is trained and evaluated in a study; compiled programs are shared.

    Args:
      config: settings of the study.
      path: the file of the prepared data.
    """

    def __init__(self, config: KeywordConfig, path: Path):
        self.config = config
        self._path = path
        self._network = FrameNetwork(
            config.classes, config.context, config.width, config.depth
        )
        self._frames = Trainer(self._network)
        self._apply = jax.jit(lambda p, x: self._network.apply({"params": p}, x))

    @functools.cached_property
    def data(self) -> Prepared:
        """The prepared data, read when it is first needed."""
        return read(self._path)

    @functools.cached_property
    def _is_keyword(self) -> np.ndarray:
        return np.asarray(self.data.train.words == self.config.keyword)

    @functools.cached_property
    def _inputs(self) -> np.ndarray:
        return with_context(self.data.train.features, self.config.context)

    @functools.cache  # noqa: B019 (lives as long as the study)
    def _detector(self, with_priors: bool) -> Detector:
        return Detector(self._network, self.config, with_priors=with_priors)

    @functools.cache  # noqa: B019
    def _windows_trainer(self, temperature: float, with_priors: bool) -> Trainer:
        scorer = KeywordScorer(self._network, temperature, with_priors)
        return Trainer(scorer, hinges)

    def align(self, seed: int) -> Aligned:
        """Trains with cross-entropy on uniform states, then on those of alignment.

        Alignment ends when it moves less than ``config.moved`` of the keywords' frames.
        """
        config, inputs, keywords = self.config, self._inputs, self._is_keyword
        examples = self.data.train
        frames = examples.features.shape[1]
        labels = uniform_states(examples.spans, keywords, frames, config.states)
        params, moved = None, []
        for _ in range(config.rounds):
            run = self.frame_run(seed, config.epochs)
            params = self._trained(run, labels, params)
            statistics = statistics_of(labels, keywords, config.states)
            logits = self._apply(params, inputs[keywords])
            found = labels.copy()
            found[keywords] = aligned_states(
                jax.nn.log_softmax(logits), statistics, config.states
            )
            moved.append(float(np.mean(found[keywords] != labels[keywords])))
            labels = found
            if moved[-1] < config.moved:
                break
        params = self._trained(self.frame_run(seed, 3 * config.epochs), labels, params)
        return Aligned(
            params, labels, statistics_of(labels, keywords, config.states), moved
        )

    def continued(self, aligned: Aligned, seed: int, epochs: int) -> PyTree:
        """Weights after more epochs with cross-entropy."""
        run = self.frame_run(seed, epochs)
        return self._trained(run, aligned.labels, aligned.params)

    def windows(self, aligned: Aligned, variant: Variant, seed: int) -> Windows:
        """The windows that all optimizers are trained on."""
        config, examples = self.config, self.data.train
        mined = np.zeros((0, 3), np.int64)
        if variant.mined:
            others = np.flatnonzero(~self._is_keyword)
            found, scores = self._detector(True).best_windows(
                aligned.params, aligned.statistics, examples.features[others]
            )
            top = np.argsort(-scores, kind="stable")[: config.mined]
            mined = np.concatenate([others[top, None], found[top]], axis=1)
        return sample_windows(
            examples,
            spans_of(aligned.labels[self._is_keyword], config.states),
            mined,
            config,
            seed,
            hard_negatives=variant.hard_negatives,
            iou_sampling=variant.iou_sampling,
        )

    def train_end_metric(
        self,
        aligned: Aligned,
        variant: Variant,
        run: RunConfig,
        *,
        track: bool,
        test: bool,
    ) -> Line:
        """Trains by the end metric with an optimizer; returns the record's figures.

        A report has the cost and the validation figures after its last step, and the
        loss that this step computed, of the weights before it.

        Args:
          aligned: where training starts, with the states of the frames.
          variant: variant of the loss.
          run: settings of the run.
          track: whether every report evaluates the validation speakers.
          test: whether the test speakers are evaluated at the end.
        """
        windows = self.windows(aligned, variant, run.seed)
        reports: list[Line] = []

        def report(params: PyTree, loss: float, cost: float) -> None:
            reports.append({"gradient_equivalents": cost, "loss": loss})
            if track:
                found = self._rejects(params, aligned.statistics, variant)
                reports[-1]["validation"] = found

        params = (
            self._trainer_of(variant)
            .train(
                run,
                windows.features,
                windows.labels,
                None if variant.from_random else {"network": aligned.params},
                constants_of(aligned.statistics),
                lambda r, cost: report(
                    r.state.params["network"], float(r.metrics["loss"][-1]), cost
                ),
            )
            .params["network"]
        )
        return self._line(params, aligned, variant, run.seed, reports, test=test)

    def minimize_end_metric(
        self, aligned: Aligned, variant: Variant, seed: int, costs: list[float]
    ) -> Line:
        """Minimizes the same loss with `nlcg_optax.minimize`, reported at ``costs``."""
        windows = self.windows(aligned, variant, seed)
        scorer = self._trainer_of(variant).model
        constants = constants_of(aligned.statistics)

        def loss(params: PyTree, inputs: jax.Array, labels: jax.Array) -> jax.Array:
            logits = scorer.apply(
                {"params": params, "batch_stats": constants}, inputs, train=True
            )
            return jnp.mean(hinges(logits, labels, 0.0)) + l2(self.config.l2, params)

        reports: list[Line] = []
        params, state = {"network": aligned.params}, None
        for cost in costs:
            result = minimize(
                loss,
                params,
                (jnp.asarray(windows.features), jnp.asarray(windows.labels)),
                max_evaluations=cost,
                state=state,
            )
            params, state = result.x, result.state
            found = self._rejects(params["network"], aligned.statistics, variant)
            reports.append(
                {
                    "gradient_equivalents": float(result.evaluations),
                    "loss": float(result.fun),
                    "validation": found,
                }
            )
        return self._line(params["network"], aligned, variant, seed, reports, test=True)

    def evaluated(self, params: PyTree, aligned: Aligned, seed: int) -> Line:
        """The figures of a network that was trained with cross-entropy."""
        return self._line(params, aligned, Variant(), seed, [], test=True)

    def _line(
        self,
        params: PyTree,
        aligned: Aligned,
        variant: Variant,
        seed: int,
        reports: list[Line],
        *,
        test: bool,
    ) -> Line:
        found: Line = {"reports": reports}
        for split in ("validation", "test") if test else ("validation",):
            recordings = getattr(self.data, split)
            detector = self._detector(variant.with_priors)
            curve = detector.curve(params, aligned.statistics, recordings)
            found[split] = figures(curve, recordings, seed)
        found["frame_accuracy"] = self._frame_accuracy(params, aligned.labels)
        return found

    def _rejects(
        self, params: PyTree, statistics: Statistics, variant: Variant
    ) -> list[float]:
        recordings = self.data.validation
        detector = self._detector(variant.with_priors)
        return rejects(detector.curve(params, statistics, recordings), recordings.hours)

    def _frame_accuracy(self, params: PyTree, labels: np.ndarray) -> float:
        """Share of the training frames whose most probable class is their label."""
        hits = [
            np.asarray(self._apply(params, part)).argmax(-1) == labels[rows]
            for rows in np.array_split(np.arange(len(labels)), 16)
            for part in [self._inputs[rows]]
        ]
        return float(np.concatenate(hits).mean())

    def frame_run(self, seed: int, epochs: int) -> RunConfig:
        """How frames are trained by cross-entropy."""
        return RunConfig(
            optimizer="adam",
            learning_rate=RATE,
            schedule="cosine",
            batch_size=self.config.batch_size,
            epochs=epochs,
            epochs_per_report=epochs,
            seed=seed,
        )

    def _trained(self, run: RunConfig, labels: np.ndarray, params: PyTree) -> PyTree:
        state = self._frames.train(run, self._inputs, labels, params)
        return jax.device_get(state.params)

    def _trainer_of(self, variant: Variant) -> Trainer:
        return self._windows_trainer(variant.temperature, variant.with_priors)

    def save(self, path: Path, aligned: Aligned) -> None:
        """Writes the result of cross-entropy."""
        leaves = jax.tree.leaves(aligned.params)
        write_arrays(
            path,
            {
                "labels": aligned.labels,
                "stay": np.asarray(aligned.statistics.transitions.stay),
                "move": np.asarray(aligned.statistics.transitions.move),
                "log_priors": np.asarray(aligned.statistics.log_priors),
                "origin": np.array(json.dumps(origin())),
                "moved": np.array(aligned.moved),
                **{f"leaf{n}": np.asarray(leaf) for n, leaf in enumerate(leaves)},
            },
        )

    def load(self, path: Path) -> Aligned:
        """Reads what `save` wrote."""
        shape = jax.eval_shape(self._network.init, jax.random.key(0), self._inputs[:1])[
            "params"
        ]
        leaves, structure = jax.tree.flatten(shape)
        with np.load(path, allow_pickle=False) as arrays:
            leaves = [arrays[f"leaf{n}"] for n in range(len(leaves))]
            return Aligned(
                jax.tree.unflatten(structure, leaves),
                arrays["labels"],
                Statistics(
                    Transitions(
                        jnp.asarray(arrays["stay"]), jnp.asarray(arrays["move"])
                    ),
                    jnp.asarray(arrays["log_priors"]),
                ),
                arrays["moved"].tolist(),
            )


def mean_rejects(line: Line) -> float:
    """The mean of the rejects on validation speakers, by which rates are chosen."""
    return sum(line["validation"]["rejects"]) / len(ALARMS_PER_HOUR)
