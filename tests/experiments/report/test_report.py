import json
import math

import jax
import pytest

from experiments.report import write as write_module
from experiments.report.__main__ import main
from tests.experiments.report.synthetic import write

SMOOTH = {"optimizer": "nlcg", "optimizer_options": {"preconditioner": "rms"}}


@pytest.fixture
def folder(tmp_path):
    records = tmp_path / "records"
    for seed, final in enumerate((0.1, 0.2, 0.3)):
        sgd = {"optimizer": "sgd", "learning_rate": 0.5, "seed": seed}
        write(records, f"a{seed}", sgd, [2.0, 1.0, final], final=final)
    write(records, "b0", SMOOTH, [2.0, 1.0, 0.05], final=0.05)
    write(records, "b1", {**SMOOTH, "seed": 1}, [2.0, float("nan")], final=None)
    write(records, "c0", {"batch_size": None}, [2.0] * 15, final=0.5)
    return records


def test_the_command_writes_tables_and_pictures(folder, capsys):
    main([str(folder)])
    out = capsys.readouterr().out
    assert "SGD" in out
    report = (folder.parent / "report.md").read_text(encoding="utf-8")
    assert "from 6 runs: data set digits; model mlp; seeds 0, 1, 2;" in report
    assert "### Test accuracy %" in report
    assert "### Validation accuracy %" in report
    assert "### Full batch" in report
    for name in ("loss", "beta", "finals"):
        picture = (folder.parent / f"{name}.png").read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert f"![{name}]({name}.png)" in report
    assert not (folder.parent / "validation_accuracy.png").exists()


def test_a_report_is_made_again_from_its_runs(folder):
    main([str(folder)])
    out = folder.parent
    main([str(out / "runs.csv")])
    first, again = ((p / "report.md").read_text() for p in (out, out / "runs"))
    # The tables are the same up to the fields that only the records have.
    for table in ("### Test accuracy %", "### Batch size 256"):
        rows = [text.partition(table)[2].partition("###")[0] for text in (first, again)]
        assert rows[0] == rows[1]
        assert "| **80.0 [70.0, 90.0]** |" in rows[0] or "0.2000" in rows[0]
    assert "![loss]" not in again
    assert (out / "runs" / "runs.csv").read_text() == (out / "runs.csv").read_text()
    assert (out / "runs" / "finals.png").exists()


def test_accuracy_is_drawn_by_its_name_if_it_was_measured_on_the_way(tmp_path):
    records = tmp_path / "records"
    write(records, "a", {}, [2.0, 1.0], final=0.5, evaluations=2)
    main([str(records)])
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "![validation accuracy](validation_accuracy.png)" in report
    assert (tmp_path / "validation_accuracy.png").exists()


def test_what_cannot_be_reported_ends_with_one_line(folder, tmp_path):
    with pytest.raises(SystemExit, match=r"error: there is no record .* in '.*g'"):
        main([str(tmp_path / "nothing")])
    with pytest.raises(SystemExit, match=r"error: .*No such file .*none.csv"):
        main([str(tmp_path / "none.csv")])
    killed = folder / "c0.jsonl"
    content = killed.read_text(encoding="utf-8")
    # In the middle of a line, and between two.
    for part in (content[:-9], content[: content.rindex('{"kind": "summary"')]):
        killed.write_text(part, encoding="utf-8")
        with pytest.raises(SystemExit, match=r"error: .*c0.jsonl is .* not complete"):
            main([str(folder)])
    killed.write_text('{"kind"\n' + content, encoding="utf-8")
    with pytest.raises(SystemExit, match=r"error: .*c0.jsonl:1 is not a line"):
        main([str(folder)])
    killed.write_text(content, encoding="utf-8")
    with pytest.raises(SystemExit, match=r"error: .*Not a directory: .*c0.jsonl"):
        main([str(folder), f"--out={killed / 'report'}"])


def test_runs_of_which_nothing_is_finite_leave_the_others_their_report(tmp_path):
    records = tmp_path / "records"
    write(records, "a", {"optimizer": "sgd"}, [2.0, 1.0, 0.5], final=0.5)
    write(records, "b", {"optimizer": "sgd", "batch_size": 8}, [math.nan], final=None)
    main([str(records)])
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| SGD | 0.1 | – (1 of 1 diverged) |" in report
    assert "0.5000" in report
    assert (tmp_path / "loss.png").exists()


def test_tables_are_written_before_pictures(folder, monkeypatch):
    def fail(*arguments):
        raise ValueError("no picture")

    monkeypatch.setattr(write_module, "draw_progress", fail)
    with pytest.raises(SystemExit, match="no picture"):
        main([str(folder)])
    assert "0.2000" in (folder.parent / "report.md").read_text(encoding="utf-8")
    assert len((folder.parent / "runs.csv").read_text().splitlines()) == 7


def test_runs_of_several_kinds_are_kept_apart(tmp_path):
    records = tmp_path / "records"
    schedule = {"schedule": "cosine"}
    for number, settings in enumerate(({}, schedule, {**schedule, "model": "cnn"})):
        config, final = {"optimizer": "sgd", **settings}, 0.1 * (number + 1)
        write(records, f"{number}", config, [2.0], final=final)
    text = (records / "2.jsonl").read_text(encoding="utf-8")
    line, rest = text.split("\n", 1)
    header = json.loads(line)
    header["device"] = {"platform": "gpu", "kind": "H200", "count": 1}
    header["versions"] = {**header["versions"], "jax": "0.1.2"}
    (records / "2.jsonl").write_text(f"{json.dumps(header)}\n{rest}", encoding="utf-8")
    main([str(records)])
    for out in (tmp_path, tmp_path / "runs"):
        report = (out / "report.md").read_text(encoding="utf-8")
        assert "data set digits; model mlp, cnn; seeds 0" in report
        assert "| **SGD, model=mlp, schedule=constant** | **0.1000** |" in report
        assert "| SGD, model=mlp, schedule=cosine | 0.2000 |" in report
        assert "| SGD, model=cnn, schedule=cosine | 0.3000 |" in report
        main([str(tmp_path / "runs.csv")])
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert f"; jax {jax.__version__}, 0.1.2; " in report
    assert ", 1 x H200; " in report


def test_a_report_names_every_commit_of_a_resumed_run(tmp_path):
    records = tmp_path / "records"
    write(records, "a", {}, [2.0], final=0.5)
    first, *lines = (records / "a.jsonl").read_text(encoding="utf-8").splitlines()
    header = json.loads(first)
    lines = [first, json.dumps({**header, "kind": "resumed", "commit": "abc"}), *lines]
    (records / "a.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    main([str(records)])
    main([str(tmp_path / "runs.csv")])
    for out in (tmp_path, tmp_path / "runs"):
        report = (out / "report.md").read_text(encoding="utf-8")
        assert f"commit {header['commit'] or 'unknown'}, abc." in report


def test_two_records_of_the_same_settings_and_seed_are_refused(folder):
    again = folder / "again.jsonl"
    again.write_text((folder / "a1.jsonl").read_text())
    with pytest.raises(SystemExit, match=r"a1\.jsonl and .*again.* seed=1; move one"):
        main([str(folder)])
    again.unlink()
    main([str(folder)])
    table = folder.parent / "runs.csv"
    lines = table.read_text(encoding="utf-8").splitlines(keepends=True)
    table.write_text("".join([*lines, lines[1]]), encoding="utf-8")
    with pytest.raises(SystemExit, match=r"runs\.csv:2 and .*runs\.csv:8 .* seed=0"):
        main([str(table)])
