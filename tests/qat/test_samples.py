"""The commands of a sample that trains run as its README gives them (the other: test_cifar)."""

import pytest

from tests.qat import library  # noqa: F401 (skips without torch)
from tests.samples.test_samples import COMMANDS, run


@pytest.mark.slow
def test_torch_cnn(tmp_path):
    train, check = COMMANDS["torch-cnn"]
    said = run(train, tmp_path)
    scores = dict(line.split() for line in said.splitlines()[:2])
    assert float(scores["int8"]) >= float(scores["float"]) - 0.01 >= 0.9
    run(check, tmp_path)  # ends with 1 where a rule is broken
