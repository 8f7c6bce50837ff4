"""The commands of a sample that trains run as its README gives them (the other: test_cifar)."""

import pytest

from tests.qat import library  # noqa: F401 (skips without torch)
from tests.samples.here import run_here
from tests.samples.test_samples import COMMANDS


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # as for a user
def test_torch_cnn(tmp_path, capsys):
    run_here(COMMANDS["torch-cnn"], tmp_path)  # fails where check finds a broken rule
    scores = dict(line.split() for line in capsys.readouterr().out.splitlines()[:2])
    assert float(scores["int8"]) >= float(scores["float"]) - 0.01 >= 0.9
