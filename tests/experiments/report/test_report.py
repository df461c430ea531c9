import pytest

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
    assert "from 6 runs: data set digits, model mlp, seeds 0, 1, 2" in report
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
