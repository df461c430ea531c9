"""The compile command, the table, and the model of pods."""

import dataclasses
import importlib.util
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from experiments.config import RunConfig
from experiments.records.files import origin
from experiments.report import style
from experiments.scaling import __main__ as report
from experiments.scaling import compile as compile_command
from experiments.scaling import model_report, peers
from experiments.scaling.chips import CHIPS, chip_of
from experiments.scaling.compiled_step import Problem, StepCost, cost_of, lower_step
from experiments.scaling.cost_table import Case, Entry, markdown
from experiments.scaling.own_process import StoppedError, call_in_process
from experiments.scaling.pod_model import memory_bytes, step_time
from experiments.training import meshes
from tests.experiments.report.synthetic import looks_in, watched_lines

CASE = Case("v5e:4x4", "data", "adamw", "resnet50", 100, 1600, 1, "jit", "bfloat16")
COST = StepCost(
    argument_bytes=100 * 100**2 * 3 + 5_000_000,
    temporary_bytes=3 * 2**30,
    peak_bytes=4 * 2**30,
    flops=2e12,
    bytes_accessed=8.19e9 + 1e7,
    collectives={"all-reduce": (10, 4_000_000)},
    collective_bytes=4_000_000,
    sent_bytes=2 * 15 / 16 * 4e6,
    compile_seconds=1.0,
)
DEADLINE = 900  # seconds, for what takes two minutes on an idle core


def entry(case=CASE, cost=COST, **changes):
    return Entry(dataclasses.replace(case, **changes), 16, "abc", cost)


def test_the_model_by_hand():
    chip, reference = CHIPS["v5e"], entry(optimizer="heavy_ball")
    found = step_time(reference, reference, chip, 64, 6400)
    # As many images a chip as were compiled. 2e12 / 197e12 = 10.152 ms of operations;
    # 8.19e9 / 819e9 = 10 ms of bytes, the state's own taken off.
    assert found.work == pytest.approx(2e12 / 197e12)
    assert found.update == pytest.approx(2 * 5e6 / 819e9)
    # A ring of 64 sends 2 x 63/64 of 4 MB at 200 GB/s; ten latencies of
    # 2 x 2 dimensions x 4 hops of a microsecond.
    assert found.communication == pytest.approx(2 * 63 / 64 * 4e6 / 200e9 + 10 * 16e-6)
    assert found.efficiency == pytest.approx(found.work / found.total)
    assert step_time(reference, reference, chip, 1, 100).communication == 0
    half = step_time(reference, reference, chip, 64, 3200)
    assert half.work == pytest.approx(found.work / 2)
    assert half.update == found.update
    # Two passes, and 3 MB for the update.
    searching = dataclasses.replace(COST, flops=4e12, bytes_accessed=2 * 8.19e9 + 3e6)
    twice = step_time(entry(cost=searching), reference, chip, 64, 6400)
    assert twice.work == pytest.approx(2 * found.work)
    assert twice.update == pytest.approx(3e6 / 819e9)


def test_only_what_fits_into_memory_is_modeled(tmp_path):
    # 8 MB of arguments, and 3 GiB for 100 images: 16 GiB hold 533, not 534.
    momentum = entry(optimizer="heavy_ball")
    assert memory_bytes(momentum, 4, 400) == COST.argument_bytes + COST.temporary_bytes
    assert model_report.chip_counts(momentum, CHIPS["v5e"], 16 * 533) == [16, 64, 256]
    assert model_report.chip_counts(momentum, CHIPS["v5e"], 16 * 534) == [64, 256]
    rows = model_report.model_table([momentum], 16 * 534).splitlines()[4:]
    assert all(row.startswith("| v5e | Heavy ball | ") for row in rows)
    assert [row.split(" | ")[2] for row in rows] == ["64", "256"]


def test_figures_that_the_model_is_not_for_are_told(tmp_path):
    path = tmp_path / "compiled.jsonl"
    large = entry(cost=StepCost(out_of_memory="20.1G of 15.75G"))
    for unusable in (large, entry(micro_batches=2), entry(layout="hybrid")):
        path.write_text(json.dumps(dataclasses.asdict(unusable)) + "\n")
        with pytest.raises(
            SystemExit, match="error: the model applies to none of the 1 compiled steps"
        ):
            report.main(["--compiled", str(path), "--rounds=0", f"--out={tmp_path}"])
    assert not (tmp_path / "scaling.md").exists()


def test_the_model_refuses_what_it_is_not_for():
    with pytest.raises(ValueError, match="data-parallel step without micro-batches"):
        step_time(entry(layout="hybrid"), entry(), CHIPS["v5e"], 4, 4)
    with pytest.raises(ValueError, match="topology='v6x' is unknown; allowed are"):
        chip_of("v6x:2x2")
    with pytest.raises(ValueError, match="needs Case.*optimizer='heavy_ball'"):
        model_report.model_table([entry()], 1600)


def test_the_table_compares_with_adamw_and_momentum():
    nlcg = dataclasses.replace(COST, peak_bytes=5 * 2**30, collective_bytes=4_040_000)
    large = StepCost(out_of_memory="20.1G of 15.75G")
    text = markdown(
        [
            entry(optimizer="heavy_ball"),
            entry(),
            entry(optimizer="nlcg", cost=nlcg),
            entry(optimizer="lbfgs_search", cost=large),
            entry(optimizer="lars", cost=StepCost(not_compiled="stopped")),
        ]
    )
    rows = {row.split(" | ")[0]: row for row in text.splitlines()}
    assert (
        "| 5.00 | 1.2500 | 2.00 | 10 all-reduce, 4.00 | 1.0100 |" in rows["| NLCG PR+"]
    )
    assert "| out of memory: 20.1G of 15.75G |" in rows["| L-BFGS, line search"]
    assert "| not compiled: stopped |" in rows["| LARS"]


def test_figures_are_kept_and_read_back(tmp_path):
    path = tmp_path / "compiled.jsonl"
    entries = [entry(), entry(optimizer="heavy_ball")]
    lines = [json.dumps(dataclasses.asdict(one)) for one in entries]
    path.write_text("\n".join(lines) + "\n")
    assert compile_command.read_entries(path) == entries
    report.main(["--compiled", str(path), "--rounds=0", f"--out={tmp_path}"])
    assert model_report.TITLE in (tmp_path / "scaling.md").read_text()
    assert (tmp_path / "scaling.png").stat().st_size > 10_000


def test_figures_name_what_made_them(tmp_path, monkeypatch):
    monkeypatch.setattr(compile_command, "devices_of", lambda topology: [0, 0])
    monkeypatch.setattr(compile_command, "compile_within", lambda *given: COST)
    out = tmp_path / "compiled.jsonl"
    given = ["--topologies=v5e:1x2", "--layouts=data", "--optimizers=adamw"]
    compile_command.main([*given, f"--out={out}"])
    line = json.loads(out.read_text("utf-8"))
    assert line.items() >= origin().items()  # the whole commit, versions, device
    (found,) = compile_command.read_entries(out)
    assert (found.chips, found.commit) == (2, origin()["commit"])


@pytest.mark.devices
def test_cost_of_a_step_on_devices_that_are_there():
    config = RunConfig(model="mlp", optimizer="nlcg", batch_size=16)
    problem = Problem(image_size=8, num_classes=10)
    cost = cost_of(lower_step(config, problem, meshes.make_mesh()))
    parameters = 192 * 64 + 64 + 64 * 64 + 64 + 64 * 10 + 10
    # Parameters, direction and previous gradient, two images of bytes, and scalars.
    assert 0 < cost.argument_bytes - (3 * 4 * parameters + 2 * 8 * 8 * 3) < 200
    # Their gradient is summed over devices, with loss and accuracy.
    assert 4 * parameters <= cost.collective_bytes <= 4 * parameters + 16
    assert set(cost.collectives) == {"all-reduce"}
    # Forward and backward: each weight meets two images in three multiply-adds, the
    # first layer's in two.
    assert cost.flops > 2 * 2 * (3 * parameters - 192 * 64)


def test_a_call_in_a_process_of_its_own_ends_in_time_and_may_die():
    assert call_in_process(math.hypot, 3, 4, seconds=60) == 5
    with pytest.raises(ValueError, match="math domain|nonnegative"):
        call_in_process(math.sqrt, -1, seconds=60)
    with pytest.raises(StoppedError, match=r"stopped after 0\.001 minutes"):
        call_in_process(time.sleep, 60, seconds=0.06)
    with pytest.raises(StoppedError, match="died with exit code 3"):
        call_in_process(os._exit, 3, seconds=60)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layouts": ("rows",)}, "has 'rows'; allowed are"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"minutes": 0.0}, "minutes=0.0 must be above 0"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        compile_command.CompileArguments(**arguments)


def test_the_report_needs_something_to_report(tmp_path):
    with pytest.raises(ValueError, match="rounds=0 with an empty compiled"):
        report.ScalingArguments(compiled=(), rounds=0)
    with pytest.raises(ValueError, match=r"devices=\(2, 4\) must begin with 1"):
        report.ScalingArguments(compiled=(), devices=(2, 4))
    with pytest.raises(ValueError, match="does not exist; make it with"):
        report.ScalingArguments(compiled=(tmp_path / "none.jsonl",))


def test_the_picture_has_distinct_lines_and_plain_ticks(tmp_path, monkeypatch):
    drawn, calls = [], watched_lines(monkeypatch)
    monkeypatch.setattr(style, "save", lambda figure, path: drawn.append(figure))
    names = ("heavy_ball", "adamw", "lbfgs_search", *peers.PEERS[4:])
    entries = [entry(optimizer=name) for name in names]
    model_report.draw(entries, 65_536, tmp_path / "scaling.png")
    (axes,) = drawn[0].axes
    drawn[0].canvas.draw()
    looks = looks_in(axes, calls)
    assert set(looks) == {peers.label_of(name) for name in names}
    assert len(set(looks.values())) == len(names)
    ticks = [text.get_text() for text in axes.get_xticklabels()]
    assert ticks == ["1", "4", "16", "64", "256"]
    assert axes.get_xlabel() == "chips"
    assert "% of the step" in axes.get_ylabel()
    marked = [line for line in axes.get_lines() if line.get_linestyle() == "None"]
    expected = model_report.chip_counts(entries[0], CHIPS["v5e"], 65_536)
    open_at = set(marked[0].get_xdata())
    assert open_at == {1, 4, 16, 64, 256} - set(expected)
    plt.close(drawn[0])


with_tpu_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="needs the TPU compiler: pip install '.[tpu]'",
)

BYTES_BY_DTYPE = """
import json
from experiments.training import meshes
from experiments.config import RunConfig
from experiments.scaling.compiled_step import Problem, cost_of, lower_step
from experiments.scaling.topologies import devices_of

mesh = meshes.make_mesh(devices=devices_of("v5e:2x2"))
for form in (
    {"partitioning": "jit"},
    {"partitioning": "shard_map"},
    {"partitioning": "shard_map", "gradient_dtype": "bfloat16"},
):
    config = RunConfig(
        model="cnn",
        optimizer="nlcg",
        batch_size=16,
        compute_dtype="bfloat16",
        **form,
    )
    cost = cost_of(lower_step(config, Problem(8, 10), mesh))
    print(json.dumps(cost.collective_bytes_by_dtype))
"""


@pytest.mark.slow
@with_tpu_compiler
def test_in_which_dtype_a_tpu_sends_gradients_of_a_bfloat16_computation():
    done = subprocess.run(
        [sys.executable, "-c", BYTES_BY_DTYPE],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        env={n: v for n, v in os.environ.items() if n != "XLA_FLAGS"}
        | compile_command.ENVIRONMENT,
        timeout=DEADLINE,
    )
    assert done.returncode == 0, done.stderr
    jit, float32, bfloat16 = map(json.loads, done.stdout.splitlines())
    kernels = 9 * 3 * 16 + 9 * 16 * 32
    parameters = kernels + 2 * 16 + 2 * 32 + 32 * 10 + 10
    # Mean and variance of the channels of two layers; loss, label loss and accuracy.
    others = 4 * (2 * (16 + 32) + 3)
    assert float32 == {"f32": 4 * parameters + others}
    assert bfloat16 == {"bf16": 2 * parameters, "f32": others}
    # The compiler's choice: gradients of convolutions as they were computed.
    assert jit["bf16"] == 2 * kernels
    assert jit["f32"] >= 4 * (parameters - kernels)


@pytest.mark.slow
@with_tpu_compiler
def test_a_step_is_compiled_for_a_slice_without_having_one(tmp_path):
    out = tmp_path / "compiled.jsonl"
    command = [
        *(sys.executable, "-m", "experiments.scaling.compile"),
        *("--topologies", "v5e:2x2", "--model", "resnet50_narrow"),
        # As on a pod, activations outweigh the state: 128 images a chip.
        *("--image-size", "64", "--batch-size", "512", f"--out={out}"),
        *("--optimizers", "adamw", "nlcg"),
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        env={n: v for n, v in os.environ.items() if n != "XLA_FLAGS"},
        timeout=DEADLINE,
    )
    assert done.returncode == 0, done.stderr
    entries = compile_command.read_entries(out)
    assert len(entries) == 4
    costs = {(e.case.layout, e.case.optimizer): e.cost for e in entries}
    for layout in ("data", "hybrid"):
        adamw, nlcg = (costs[layout, name] for name in ("adamw", "nlcg"))
        assert nlcg.peak_bytes <= 1.05 * adamw.peak_bytes
        # Besides gradients, a few inner products.
        assert nlcg.collective_bytes <= 1.01 * adamw.collective_bytes
        operations = [cost.collectives["all-reduce"][0] for cost in (nlcg, adamw)]
        assert operations[0] - operations[1] <= 2
    assert "all-gather" not in costs["data", "nlcg"].collectives
    unknown = subprocess.run(
        [*command[:3], "--topologies", "v5e:3x3", f"--out={out}"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        timeout=DEADLINE,
    )
    assert unknown.returncode != 0
    assert "error: topology='v5e:3x3' is not known" in unknown.stderr
