"""Training without labels: it learns, goes on after a kill as if none had been, and says no."""

import math

import pytest

from tests.qat import library  # noqa: F401 (skips without torch)

import torch  # isort: skip

import copy

from qcompile import qat
from qcompile.errors import DataError, ModelError
from qcompile.progress import Silent
from qcompile.qat.checkpoint import FILE
from qcompile.recipe import Recipe
from tests.qat import nets

TRAINING = qat.Training(epochs=4, batch=4, rate=1e-3)


@pytest.fixture(scope="module")
def prepared():
    net, x = nets.lively(nets.Depthwise)
    rounding = qat.Rounding(weights=4, learned=True)
    recipe = Recipe(target="tensorrt", sm=(87,))
    model = qat.prepare(net, (x,), recipe, calibration=[x], rounding=rounding)
    return model, net


@pytest.fixture(scope="module")
def samples():
    shape = nets.SHAPES[nets.Depthwise][1:]
    return [
        (torch.randn(1, *shape, generator=torch.Generator().manual_seed(i)),) for i in range(24)
    ]


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


class KilledError(Exception):
    pass


class Kill(Silent):
    """Stops training at a step, as a signal would: between any two of them."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def step(self, stage, done, total):
        if done == self.at:
            raise KilledError


def test_training_lowers_the_loss_and_leaves_the_teacher(prepared, samples):
    model, net = copy.deepcopy(prepared[0]), prepared[1]
    before = state(net)
    done = qat.distill(model, net, samples, TRAINING)
    assert len(done.losses) == 4 * 6
    assert sum(done.losses[-6:]) < 0.7 * sum(done.losses[:6])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not model.training


def test_after_a_kill_the_result_is_the_same(prepared, samples, tmp_path):
    whole, stopped = copy.deepcopy(prepared[0]), copy.deepcopy(prepared[0])
    wanted = qat.distill(whole, prepared[1], samples, TRAINING)
    with pytest.raises(KilledError):
        qat.distill(
            stopped, prepared[1], samples, TRAINING, checkpoints=tmp_path, progress=Kill(15)
        )
    again, log = copy.deepcopy(prepared[0]), Silent()
    done = qat.distill(again, prepared[1], samples, TRAINING, checkpoints=tmp_path, progress=log)
    assert done.resumed == 2
    assert "goes on behind epoch 2" in log.notices[0]
    assert done.losses == wanted.losses
    found = again.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in whole.state_dict().items())


def test_another_seed_is_another_training(prepared, samples, tmp_path):
    one, two = copy.deepcopy(prepared[0]), copy.deepcopy(prepared[0])
    short = qat.Training(epochs=1, batch=8, rate=1e-3)
    first = qat.distill(one, prepared[1], samples, short, checkpoints=tmp_path)
    other, log = qat.Training(epochs=1, batch=8, rate=1e-3, seed=1), Silent()
    second = qat.distill(two, prepared[1], samples, other, checkpoints=tmp_path, progress=log)
    assert first.losses != second.losses
    assert "belongs to another training" in log.notices[0]


def test_divergence_is_said_and_the_last_checkpoint_stays(prepared, samples, tmp_path):
    model = copy.deepcopy(prepared[0])
    bad = [*samples[:20], (torch.full_like(samples[0][0], math.inf),)]
    with pytest.raises(
        ModelError, match=r"training diverged: the loss of step .* take a rate below"
    ):
        qat.distill(model, prepared[1], bad, TRAINING)
    good = copy.deepcopy(prepared[0])
    short = qat.Training(epochs=1, batch=4, rate=1e-3)
    qat.distill(good, prepared[1], samples, short, checkpoints=tmp_path)
    kept = (tmp_path / FILE).read_bytes()
    nan = [(torch.full_like(value[0], math.nan),) for value in samples]
    with pytest.raises(ModelError, match="diverged"):
        qat.distill(good, prepared[1], nan, TRAINING, checkpoints=tmp_path)
    assert (tmp_path / FILE).read_bytes() == kept


def test_a_damaged_checkpoint_is_noticed(prepared, samples, tmp_path):
    (tmp_path / FILE).write_bytes(b"not a checkpoint")
    log = Silent()
    short = qat.Training(epochs=1, batch=8, rate=1e-3)
    model = copy.deepcopy(prepared[0])
    qat.distill(model, prepared[1], samples[:8], short, checkpoints=tmp_path, progress=log)
    assert "is damaged" in log.notices[0]


def test_no_samples(prepared):
    with pytest.raises(DataError, match="no samples to train on"):
        qat.distill(prepared[0], prepared[1], [])


def test_samples_of_two_sizes_are_named(prepared):
    model, net = prepared
    shape = nets.SHAPES[nets.Depthwise][1:]
    mixed = [(torch.zeros(1, *shape),), (torch.zeros(1, *shape[:2], 8),)]
    with pytest.raises(DataError, match=r"sizes \[4, 16, 8\] and \[4, 16, 16\].*batch = 1"):
        qat.distill(copy.deepcopy(model), net, mixed, TRAINING)
