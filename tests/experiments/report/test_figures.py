import dataclasses
import itertools

import matplotlib.pyplot as plt
import numpy as np
import pytest

from experiments.config import RunConfig
from experiments.records.files import RecordWriter, read_records
from experiments.report import figures, style
from experiments.report.cells import group, looks, short_labels
from tests.experiments.report.synthetic import (
    falling,
    looks_in,
    record,
    watched_lines,
)

# Two seeds of three steps: their losses, and accuracies after the first and the last.
LOSSES = ([4.0, 2.0, 1.0], [6.0, 4.0, 2.0])
ACCURACIES = ([0.25, 0.5], [0.5, 0.75])


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, with their panels."""
    found = []

    def keep(figure, path):
        figure.canvas.draw()
        found.append(figure)

    monkeypatch.setattr(style, "save", keep)
    yield found
    for figure in found:
        plt.close(figure)


def costs(step, cost=4.0):
    return {"step": step, "gradient_equivalents": cost * step, "seconds": 0.5 * step}


@pytest.fixture
def curves_of(tmp_path, drawn):
    """The panels that a figure of the two seeds has, by their horizontal axis."""

    def draw(quantity, accuracy="validation_accuracy", cost=4.0):
        for seed, (losses, accuracies) in enumerate(zip(LOSSES, ACCURACIES)):
            config = RunConfig(optimizer="sgd", seed=seed)
            with RecordWriter(tmp_path / f"{seed}.jsonl", config) as writer:
                for row, loss in enumerate(losses):
                    line = {**costs(row + 1, cost), "step": row, "loss": loss}
                    writer.write("step", line)
                for step, value in zip((1, 3), accuracies):
                    writer.write("evaluation", {**costs(step, cost), accuracy: value})
        cells = group(read_records(tmp_path))
        figures.draw_progress(cells, quantity, tmp_path / "figure.png")
        return {panel.get_xlabel(): panel for panel in drawn[-1].axes}

    return draw


COST_AXES = [("step", 1.0), ("gradient-equivalents", 4.0), ("seconds", 0.5)]


@pytest.mark.parametrize(("axis", "cost"), COST_AXES)
def test_the_loss_is_drawn_against_every_cost(axis, cost, curves_of):
    (line,) = curves_of("loss")[axis].get_lines()
    np.testing.assert_allclose(line.get_xdata(), [cost, 2 * cost, 3 * cost])
    # The medians 5, 3 and 1.5, each the mean of five with the ends repeated.
    expected = [(3 * 5 + 3 + 1.5) / 5, (2 * 5 + 3 + 2 * 1.5) / 5, (5 + 3 + 4.5) / 5]
    np.testing.assert_allclose(line.get_ydata(), expected)


@pytest.mark.parametrize(("axis", "cost"), COST_AXES)
def test_the_accuracy_is_drawn_against_every_cost(axis, cost, curves_of):
    panel = curves_of("validation_accuracy")[axis]
    (line,) = panel.get_lines()
    np.testing.assert_allclose(line.get_xdata(), [cost, 3 * cost])
    np.testing.assert_allclose(line.get_ydata(), [37.5, 62.5])
    (shadow,) = panel.collections
    corners = shadow.get_paths()[0].get_extents()
    assert (corners.x0, corners.x1) == pytest.approx((cost, 3 * cost))
    assert (corners.y0, corners.y1) == pytest.approx((25, 75))


@pytest.mark.parametrize("accuracy", ["validation_accuracy", "test_accuracy"])
def test_the_axis_says_which_accuracy_it_is(accuracy, curves_of):
    panels = curves_of(accuracy, accuracy)
    name = accuracy.partition("_")[0]
    assert panels["step"].get_ylabel() == f"{name} accuracy, %"


def test_gradient_equivalents_that_equal_the_steps_have_no_panel(curves_of):
    assert list(curves_of("loss", cost=1.0)) == ["step", "seconds"]


def test_a_record_that_begins_late_is_drawn_where_it_was(tmp_path, drawn):
    losses = [8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
    pair = []
    for seed, begins_at in enumerate((0, 2)):
        whole = record("sgd", losses, seed=seed)
        evaluations = [{**costs(s), "test_accuracy": s / 8} for s in (2, 8)]
        pair.append(
            dataclasses.replace(
                whole,
                steps=whole.steps[begins_at:],
                evaluations=evaluations[begins_at // 2 :],
            )
        )
    figures.draw_progress(group(pair), "test_accuracy", tmp_path / "figure.png")
    (line,) = drawn[-1].axes[0].get_lines()
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([8], [100.0])
    figures.draw_progress(group(pair[1:]), "loss", tmp_path / "figure.png")
    assert [panel.get_xlabel() for panel in drawn[-1].axes] == ["step", "seconds"]
    (line,) = drawn[-1].axes[0].get_lines()
    shown = np.isfinite(line.get_ydata())
    np.testing.assert_allclose(np.asarray(line.get_xdata())[shown], [5, 6, 7, 8])
    np.testing.assert_allclose(line.get_ydata()[shown][:2], [4.0, 3.0])
    (line,) = drawn[-1].axes[1].get_lines()
    np.testing.assert_allclose(np.asarray(line.get_xdata())[shown], [2.5, 3, 3.5, 4])


@pytest.fixture
def study():
    """Cells like those of a study: many option sets, two batch sizes, failures."""
    sets = [
        {"rule": rule, "preconditioner": kind, "beta_max": bound}
        for rule, kind, bound in itertools.product(
            ("pr+", "fr", "hs"), ("none", "rms", "kronecker"), (0.9, 0.95)
        )
    ]
    methods = [("sgd", {}), ("muon", {"momentum": 0.8}), ("muon", {"momentum": 0.9})]
    methods += [("nlcg", options) for options in sets]
    records = []
    for size, (place, (name, options)), seed in itertools.product(
        (256, None), enumerate(methods), range(3)
    ):
        losses = falling(40, 0.02 * (1 + place % 7) + 0.005 * seed)
        if place == 2 and seed:
            losses = [*losses[:9], float("nan")]
        accuracy = {"test_accuracy": 1 - losses[-1] / 3, "validation_accuracy": 0.5}
        beta = 0.7 if name == "nlcg" else None
        records.append(
            record(
                name,
                losses,
                seed=seed,
                options=options,
                batch_size=size,
                figures=accuracy,
                cost=1.4 if place % 2 else 1,
                beta=beta,
            )
        )
    return group(records)


def test_no_two_methods_of_a_figure_share_color_and_dashes(
    study, drawn, tmp_path, monkeypatch
):
    calls = watched_lines(monkeypatch)
    figures.draw_progress(study, "loss", tmp_path / "loss.png")
    figures.draw_beta(study, tmp_path / "beta.png")
    labels = set(short_labels(study))
    assert len(labels) == 21
    loss, beta = (looks_in(figure.axes[0], calls) for figure in drawn)
    assert set(loss) == labels
    assert len(set(loss.values())) == len(labels)
    # The same method looks the same in both.
    assert beta == {label: loss[label] for label in labels if "NLCG" in label}
    look_of = looks(study)
    assert len({(look.color, look.dashes) for look in look_of.values()}) == 21


def test_every_axis_has_a_label_or_shares_its_neighbors(study, drawn, tmp_path):
    figures.draw_progress(study, "loss", tmp_path / "loss.png")
    figures.draw_beta(study, tmp_path / "beta.png")
    figures.draw_finals(study, tmp_path / "finals.png")
    for figure in drawn:
        for axes in figure.axes:
            assert axes.get_xlabel()
            texts = [text.get_text() for text in axes.get_xticklabels()]
            assert all("10^" not in text and "times" not in text for text in texts)
        assert figure.get_figwidth() <= style.WIDTH
    for axes in drawn[0].axes[::3] + drawn[1].axes:
        assert axes.get_ylabel()


def test_final_figures_are_dots_with_the_range_of_the_seeds(study, drawn, tmp_path):
    figures.draw_finals(study, tmp_path / "finals.png")
    panels = drawn[0].axes
    assert [panel.get_xlabel() for panel in panels[::2]] == [
        "test accuracy, %",
        "validation accuracy, %",
        "training loss",
    ]
    names = [text.get_text() for text in panels[0].get_yticklabels()]
    assert names == list(dict.fromkeys(short_labels(study)))
    sgd = next(cell for cell in study if cell.label == "SGD")
    dots = {line.get_label(): line for line in panels[4].get_lines()}
    assert all(line.get_linestyle() == "None" for line in dots.values())
    np.testing.assert_allclose(dots["SGD"].get_xdata(), [sgd.median("train_loss")])
    bars = panels[4].collections
    (ends,) = bars[0].get_segments()
    np.testing.assert_allclose(
        sorted(ends[:, 0]), sorted(sgd.values("train_loss"))[::2]
    )
    # Two of three seeds of this method diverged: no dot, but a word.
    assert "Muon, momentum 0.9" not in dots
    assert any("2 of 3 diverged" in text.get_text() for text in panels[4].texts)


def test_a_spike_does_not_hide_the_curves():
    figure, axes = plt.subplots()
    axes.plot([2.0, 1e9, 0.5, 0.1])
    axes.plot([1.0, np.nan, 0.5, 0.2])
    figures.limit_loss(axes)
    # From the least loss, .1, to twice the greatest first, 4, with 5 % of the decades.
    np.testing.assert_allclose(axes.get_ylim(), (0.1 / 40**0.05, 4 * 40**0.05))
    plt.close(figure)
