import io

import rich.console

from experiments.report.cells import Cell, by_batch_size, group, short_labels
from experiments.report.tables import (
    Column,
    batch_size_table,
    column_fields,
    final_table,
    make_table,
)
from tests.experiments.report.synthetic import record

NAN = float("nan")
RMS = {"rule": "pr+", "preconditioner": "rms"}


def cell(optimizer, finals, **settings):
    """A cell with one seed per final loss; test accuracy is one less the loss."""
    runs = []
    for seed, final in enumerate(finals):
        figures = {"test_accuracy": 1 - final, "validation_accuracy": 1 - final / 2}
        runs.append(
            record(optimizer, [2.0, final], seed=seed, figures=figures, **settings)
        )
    return Cell(tuple(runs))


def rows(table):
    return [line.strip("| ").split(" | ") for line in table.splitlines()]


def test_records_are_grouped_by_everything_but_the_seed():
    nlcg = {"options": RMS | {"beta_max": 0.9}}
    records = [
        record("sgd", seed=1),
        record("nlcg", **nlcg),
        record("sgd", seed=2),
        record("nlcg", batch_size=None, **nlcg),
        record("sgd", learning_rate=0.5),
    ]
    cells = group(records)
    assert [len(one.records) for one in cells] == [2, 1, 1, 1]
    found = {name: len(members) for name, members in by_batch_size(cells).items()}
    assert found == {"batch size 256": 3, "full batch": 1}


def test_a_table_has_medians_ranges_and_counts_failures():
    cells = [
        cell("sgd", (0.3, 0.1, 0.2), learning_rate=0.5),
        cell("muon", (0.9, NAN, NAN), learning_rate=0.25),
        cell("adam", (0.6, NAN, 0.8), learning_rate=0.125),
    ]
    text = final_table(cells).markdown()
    head, _, sgd, muon, adam = rows(text.partition("\n\n")[0])
    assert head == [
        "method",
        "learning rate",
        "training loss",
        "validation accuracy %",
        "test accuracy %",
    ]
    # By hand: the median of .1, .2, .3; of .9 and two failures; of .6, .8 and one.
    assert sgd == [
        "**SGD**",
        "**0.5**",
        "**0.2000 [0.1000, 0.3000]**",
        "**90.0 [85.0, 95.0]**",
        "**80.0 [70.0, 90.0]**",
    ]
    assert muon[2:] == ["– (2 of 3 diverged)", "–", "–"]
    assert adam[2] == "0.8000 [0.6000, 0.8000] (1 of 3 diverged)"
    # The seed that diverged counts as the worst in accuracy, too: of 40, 20 and it.
    assert adam[4] == "20.0 [20.0, 40.0]"
    # All ran as long, at the same cost.
    note = text.partition("\n\n")[2]
    assert note == "In every row: steps 2, gradient-equivalents 2, seconds 1.0.\n"


def test_no_column_repeats_another_and_constant_ones_become_a_note():
    table = make_table(
        [
            Column("method", "method", ["a", "b"]),
            Column("steps", "steps", ["60", "80"]),
            Column("gradient-equivalents", "gradients", ["60", "80"]),
            Column("seconds", "seconds", ["1.0", "1.0"]),
            Column("mean β", "mean β", ["–", "–"]),
        ]
    )
    assert [column.heading for column in table.columns] == ["method", "steps"]
    assert table.note == (
        "In every row: seconds 1.0. In every row, gradient-equivalents equal steps."
    )
    # A cost that differs from the steps is shown.
    cells = [cell("sgd", (0.1,)), cell("nlcg", (0.2,), cost=1.4, options=RMS)]
    headings = [column.heading for column in final_table(cells).columns]
    assert "gradient-equivalents" in headings
    # The only row keeps its figures.
    headings = [column.heading for column in final_table(cells[:1]).columns]
    assert {"steps", "seconds"} <= set(headings)


def test_the_terminal_has_the_same_figures_in_eighty_columns():
    cells = [cell("sgd", (0.3, 0.1, 0.2)), cell("muon", (0.9, 0.8, 0.7))]
    console = rich.console.Console(file=io.StringIO(), width=80)
    console.print(final_table(cells, with_range=False).terminal("title"))
    text = console.file.getvalue()
    for part in ("title", "SGD", "0.2000", "val. %", "test %", "80.0"):
        assert part in text
    assert "[" not in text


def test_fields_have_equal_decimals_and_a_large_loss_is_no_long_number():
    cells = [cell("sgd", (0.0123,)), cell("muon", (4.5,)), cell("adam", (3e13,))]
    fields = column_fields(cells, "train_loss", 3)
    assert fields == ["0.0123", "4.5000", "3.00e+13"]
    assert column_fields(cells, "seconds", 2) == ["1.0", "1.0", "1.0"]


def test_accuracy_by_batch_size_has_a_column_per_method():
    cells = [
        cell("sgd", (0.1, 0.2, 0.3)),
        # Its tuned bound is not the same at all batch sizes, nor part of its name.
        cell("nlcg", (0.25,), batch_size=8, options=RMS | {"beta_max": 0.8}),
        cell("nlcg", (NAN, NAN, 0.1), options=RMS | {"beta_max": 0.9}),
        cell("nlcg", (0.5,), batch_size=None, options=RMS | {"beta_max": 0.7}),
    ]
    assert rows(batch_size_table(cells).markdown()) == [
        ["batch", "steps", "SGD", "NLCG PR+, RMS"],
        ["---|---:|---:|---:"],
        ["8", "2", "", "**75.0**"],
        ["256", "2", "**80.0 [70.0, 90.0]**", "–"],
        ["full", "2", "", "**50.0**"],
    ]
    validation = batch_size_table(cells, "validation_accuracy").markdown()
    assert "**90.0 [85.0, 95.0]**" in validation


def test_labels_have_the_options_that_tell_methods_apart():
    pair = [
        cell("nlcg", (0.1,), options=RMS | {"beta_max": 0.8}),
        cell("nlcg", (0.1,), options=RMS | {"beta_max": 0.9}),
        cell("nlcg", (0.1,), options={"rule": "fr", "beta_max": 0.9}),
    ]
    assert short_labels(pair) == [
        "NLCG PR+, RMS, β ≤ 0.8",
        "NLCG PR+, RMS, β ≤ 0.9",
        "NLCG FR",
    ]
