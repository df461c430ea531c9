"""A run without an interruption, once per file."""

import pytest

from experiments.records.files import read_record
from experiments.records.run import record_run
from experiments.training import compile_program, make_program
from tests.experiments.records.interrupted import CONFIG


@pytest.fixture(scope="module")
def compiled(few_digits):
    return compile_program(make_program(CONFIG, few_digits), few_digits)


@pytest.fixture(scope="module")
def whole(compiled, few_digits, tmp_path_factory):
    """A run without an interruption."""
    path = tmp_path_factory.mktemp("whole") / "run.jsonl"
    record_run(path, compiled, CONFIG, few_digits)
    return read_record(path)
