import dataclasses
import json
import math

import pytest

from experiments import optimizers
from experiments.config import RunConfig
from experiments.records.files import RecordWriter, read_record
from experiments.records.old_names import current_config

AS_BEFORE = {"beta_max": 1.0, "beta_smoothing": 0.0}


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("adam", {"b1": 0.8}, ("adam", {"b1": 0.8})),
        ("nlcg", {"beta_max": "inf"}, ("nlcg", {"beta_max": math.inf})),
        (
            "nlcg_fr",
            {"beta_max": "inf"},
            (
                "nlcg",
                {
                    "rule": "fr",
                    "preconditioner": "none",
                    **AS_BEFORE,
                    "beta_max": math.inf,
                },
            ),
        ),
        (
            "nlcg_fr",
            {},
            ("nlcg", {"rule": "fr", "preconditioner": "none", **AS_BEFORE}),
        ),
        (
            "nlcg_pr+_rms",
            {"beta_smoothing": 0.9, "weight_decay": 0.1},
            (
                "nlcg",
                {
                    "rule": "pr+",
                    "preconditioner": "rms",
                    "beta_max": 1.0,
                    "beta_smoothing": 0.9,
                    "weight_decay": 0.1,
                },
            ),
        ),
        (
            "nlcg_constant_kronecker",
            {"beta": 0.9},
            ("nlcg", {"rule": "constant", "preconditioner": "kronecker", "beta": 0.9}),
        ),
        (
            "nlcg_subspace_orthogonal",
            {},
            (
                "nlcg",
                {
                    "rule": "constant",
                    "preconditioner": "orthogonal",
                    "beta": 0.0,
                    "step": "subspace",
                },
            ),
        ),
        (
            "nlcg_hs_secant",
            {"curvature_period": 2, "across_halves": 1},
            (
                "nlcg",
                {
                    "rule": "hs",
                    "preconditioner": "secant",
                    "step": "curvature",
                    "curvature_period": 2,
                    "across_halves": 1,
                    **AS_BEFORE,
                },
            ),
        ),
        (
            "paper_nlcg_pr",
            {"threshold": 2.0},
            ("paper_nlcg", {"rule": "pr", "threshold": 2.0}),
        ),
        (
            "paper_nlcg_fr_identity_uncontrolled",
            {},
            (
                "paper_nlcg",
                {"rule": "fr", "diagonal_bfgs": False, "step_control": "none"},
            ),
        ),
        (
            "paper_nlcg_fr_online",
            {},
            ("paper_nlcg", {"rule": "fr", "step_control": "online"}),
        ),
    ],
)
def test_an_old_name_becomes_a_name_with_options(name, options, expected):
    old = {"optimizer": name, "optimizer_options": options, "standardisation": "image"}
    config = RunConfig(**current_config(old))
    assert (config.optimizer, config.optimizer_options) == expected
    assert config.standardization == "image"
    optimizers.build(config.optimizer, 0.1, config.optimizer_options)


def test_todays_names_stay():
    config = RunConfig(
        optimizer="paper_nlcg", optimizer_options={"rule": "pr", "threshold": 2.0}
    )
    assert RunConfig(**current_config(dataclasses.asdict(config))) == config


def test_an_old_record_is_read(tmp_path):
    path = tmp_path / "old.jsonl"
    with RecordWriter(path, RunConfig(optimizer_options={"preconditioner": "rms"})):
        pass
    line = json.loads(path.read_text(encoding="utf-8"))
    line["config"] |= {"optimizer": "nlcg_pr+_rms", "optimizer_options": {}}
    line["config"]["standardisation"] = line["config"].pop("standardization")
    path.write_text(json.dumps(line) + "\n", encoding="utf-8")
    found = read_record(path)
    assert found.config.optimizer == "nlcg"
    assert found.config.optimizer_options["preconditioner"] == "rms"
    assert found.header["config"]["optimizer"] == "nlcg_pr+_rms"
