import csv
import io

import pytest
import rich.console

from experiments.batch_sizes import batch_size_table
from experiments.cells import (
    by_batch_size,
    group,
    optimizer_family,
    optimizer_label,
    short_labels,
)
from experiments.config import RunConfig
from experiments.curves import FAMILY_COLOURS
from experiments.optimizers import OPTIMIZERS
from experiments.records import RecordWriter, read_records
from experiments.report import main
from experiments.runs_table import write_runs
from experiments.tables import markdown_table, rich_table


def write(folder, name, settings, losses, *, final):
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
        else:
            summary = {"gradient_equivalents": len(losses), "seconds": 0.5}
            summary |= {"train_loss": final, "test_accuracy": 1 - final}
            evaluation = {**summary, "step": len(losses)}
            evaluation |= {"validation_accuracy": 0.5}
            writer.write("evaluation", evaluation)
            writer.write("summary", summary)


@pytest.fixture
def folder(tmp_path):
    records = tmp_path / "records"
    for seed, final in enumerate((0.1, 0.2, 0.3)):
        sgd = {"optimizer": "sgd", "learning_rate": 0.5, "seed": seed}
        write(records, f"a{seed}", sgd, [2.0, 1.0, final], final=final)
    smooth = {"optimizer": "nlcg_pr+_rms", "optimizer_options": {"beta_smoothing": 0.9}}
    write(records, "b0", smooth, [2.0, 1.0, 0.05], final=0.05)
    write(records, "b1", {**smooth, "seed": 1}, [2.0, float("nan")], final=None)
    write(records, "c0", {"batch_size": None}, [2.0] * 15, final=0.5)
    return records


def test_records_are_grouped_by_everything_but_the_seed(folder):
    rows = by_batch_size(group(read_records(folder)))
    labels = {name: [cell.label for cell in cells] for name, cells in rows.items()}
    assert labels == {
        "batch size 256": ["SGD", "NLCG PR+ · rms, β smoothing 0.9"],
        "full batch": ["NLCG PR+ · rms"],
    }


def test_a_table_says_median_range_and_divergence(folder):
    cells = by_batch_size(group(read_records(folder)))["batch size 256"]
    lines = markdown_table(cells).splitlines()
    assert lines[2] == (
        "| **SGD** | **0.5** | **0.2000 [0.1000, 0.3000]** | **80.0 [70.0, 90.0]** "
        "| **3** | **0.50** |"
    )
    assert "| – (1 of 2 diverged) |" in lines[3]
    console = rich.console.Console(file=io.StringIO(), width=80)
    console.print(rich_table("title", cells))
    text = console.file.getvalue()
    assert "SGD" in text
    assert "0.2000" in text


def test_accuracy_against_batch_size_has_a_column_for_each_method(folder):
    # The same method at another batch size, with options that were searched.
    tuned = {"optimizer": "nlcg_pr+_rms", "batch_size": 8}
    tuned["optimizer_options"] = {"beta_smoothing": 0.9, "beta_max": 0.87654}
    write(folder, "d0", tuned, [1.0] * 7, final=0.25)
    cells = group(read_records(folder))
    assert batch_size_table(cells).splitlines() == [
        "| batch | steps | SGD | NLCG PR+ · rms |",
        "|---|---:|---:|---:|",
        "| 8 | 7 |  | **75.0** |",
        "| 256 | 3 | **80.0 [70.0, 90.0]** | – |",
        "| full | 15 |  | **50.0** |",
    ]
    # Two of one method at a batch size are told apart by their options.
    write(folder, "e0", {"optimizer": "nlcg_pr+_rms"}, [1.0], final=0.1)
    labels = short_labels(group(read_records(folder)))
    assert labels == [
        "SGD",
        "NLCG PR+ · rms, β smoothing 0.9",
        "NLCG PR+ · rms",
        "NLCG PR+ · rms",
        "NLCG PR+ · rms",
    ]


def test_every_run_has_a_line_with_its_figures(folder, tmp_path):
    write_runs(group(read_records(folder)), tmp_path / "runs.csv")
    with (tmp_path / "runs.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 6
    assert [line["seed"] for line in lines] == ["0", "1", "2", "0", "1", "0"]
    assert lines[2] | {"commit": ""} == {
        "optimizer": "sgd",
        "batch_size": "256",
        "options": "",
        "learning_rate": "0.5",
        "l2": "0",
        "seed": "2",
        "steps": "3",
        "train_loss": "0.3",
        "train_accuracy": "",
        "validation_accuracy": "",
        "test_loss": "",
        "test_accuracy": "0.7",
        "gradient_equivalents": "3",
        "seconds": "0.5",
        "commit": "",
    }
    assert lines[3]["options"] == "beta_smoothing=0.9"
    assert lines[4]["train_loss"] == ""


def test_the_command_writes_tables_and_curves(folder, capsys):
    main([str(folder)])
    assert "SGD" in capsys.readouterr().out
    report = (folder.parent / "report.md").read_text(encoding="utf-8")
    assert "from 6 records" in report
    assert "### Full batch, 15 steps" in report
    for name in ("curves", "loss", "accuracy", "batch_sizes"):
        picture = (folder.parent / f"{name}.png").read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert f"![{name}]({name}.png)" in report


def test_what_cannot_be_reported_ends_with_a_message(folder, tmp_path):
    with pytest.raises(SystemExit, match=r"error: there is no record .* in '.*g'"):
        main([str(tmp_path / "nothing")])
    killed = folder / "c0.jsonl"
    content = killed.read_text(encoding="utf-8")
    # In the middle of a line, and between two.
    for part in (content[:-9], content[: content.rindex('{"kind": "summary"')]):
        killed.write_text(part, encoding="utf-8")
        with pytest.raises(SystemExit, match=r"error: .*c0.jsonl is .* not come to"):
            main([str(folder)])
    killed.write_text('{"kind"\n' + content, encoding="utf-8")
    with pytest.raises(SystemExit, match=r"error: .*c0.jsonl:1 is not a line"):
        main([str(folder)])
    killed.write_text(content, encoding="utf-8")
    with pytest.raises(SystemExit, match=r"error: .*Not a directory: .*c0.jsonl"):
        main([str(folder), f"--out={killed / 'report'}"])


def test_every_optimizer_has_a_label_and_a_colour_of_its_family():
    labels = {optimizer_label(RunConfig(optimizer=name)) for name in OPTIMIZERS}
    assert len(labels) == len(OPTIMIZERS)
    assert {optimizer_family(name) for name in OPTIMIZERS} == set(FAMILY_COLOURS)
