import io

import pytest
import rich.console

from experiments.cells import by_batch_size, group, optimizer_family, optimizer_label
from experiments.config import RunConfig
from experiments.curves import FAMILY_COLOURS
from experiments.optimizers import OPTIMIZERS
from experiments.records import RecordWriter, read_records
from experiments.report import main
from experiments.tables import markdown_table, rich_table


def write(folder, name, settings, losses, *, final):
    config = RunConfig(**settings)
    with RecordWriter(folder / f"{name}.jsonl", config) as writer:
        for step, loss in enumerate(losses):
            line = {"step": step, "loss": loss, "gradient_equivalents": step + 1}
            if "nlcg" in config.optimizer:
                line |= {"beta": 0.5, "cosine": 0.9}
            writer.write("step", line)
        if final is None:
            writer.write("stopped", {"reason": "the loss became nan"})
        else:
            summary = {"gradient_equivalents": len(losses), "seconds": 0.5}
            summary |= {"train_loss": final, "test_accuracy": 1 - final}
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


def test_the_command_writes_tables_and_curves(folder, capsys):
    main([str(folder)])
    assert "SGD" in capsys.readouterr().out
    report = (folder.parent / "report.md").read_text(encoding="utf-8")
    assert "from 6 records" in report
    assert "### Full batch, 15 steps" in report
    assert (folder.parent / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_every_optimizer_has_a_label_and_a_colour_of_its_family():
    labels = {optimizer_label(RunConfig(optimizer=name)) for name in OPTIMIZERS}
    assert len(labels) == len(OPTIMIZERS)
    assert {optimizer_family(name) for name in OPTIMIZERS} == set(FAMILY_COLOURS)
