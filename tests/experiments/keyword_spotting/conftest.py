"""Clips of synthetic speech for all tests of keyword spotting."""

import numpy as np
import pytest

from tests.experiments.speech_files import arrays


@pytest.fixture(scope="session")
def speech():
    return arrays()


@pytest.fixture(scope="session")
def source(speech, tmp_path_factory):
    folder = tmp_path_factory.mktemp("speech")
    np.savez(folder / "part.npz", **speech)
    return folder
