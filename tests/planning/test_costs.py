"""What a build says that it will take, before it begins."""

import re
import shutil
from collections import namedtuple

import pytest

from qcompile.errors import OutputError
from qcompile.planning.costs import estimate
from qcompile.planning.sequence import solve_weights
from tests.planning.solving import job_of, samples_of
from tests.planning.tools import graph_of, normal

K = 64
LINE = re.compile(
    r"estimate: about (\d+) (?:s|min), ([\d.]+ [MG]B) of memory, ([\d.]+) (MB) of disk "
    r"for ([\d,]+) weights"
)
Usage = namedtuple("Usage", "total used free")


def chain(width=K):
    body = "[a] h = MatMul(x, w)\n[r] k = Relu(h)\n[b] y = MatMul(k, v)"
    weights = {"w": normal(0, K, width), "v": normal(1, width, K)}
    return graph_of(f'float["n", {K}] x', body, **weights)


def test_the_line(tmp_path):
    found = LINE.fullmatch(estimate(job_of(chain(), tmp_path, group_size=32), samples_of(8, K)))
    assert found
    assert found[5] == f"{2 * K * K:,}"
    assert 300 <= int(found[2].removesuffix(" MB")) < 400


def test_disk_covers_what_is_written(tmp_path):
    job = job_of(chain(1024), tmp_path, group_size=32, algorithm="gptq")
    samples = samples_of(500, K, count=20)
    found = LINE.fullmatch(estimate(job, samples))
    assert found
    told = float(found[3]) * 1e6
    activations = 4 * 1024 * 500 * 20
    assert activations <= told < 2 * activations
    without = LINE.fullmatch(estimate(job, None))
    assert without
    assert float(without[3]) < 1.1
    solve_weights(job, samples)
    used = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert used < told


@pytest.mark.parametrize("free", [0, 10_000])
def test_too_small_a_disk_is_said_before_the_work(tmp_path, monkeypatch, free):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9, free))
    with pytest.raises(OutputError, match=r"solving needs about .* of disk, .* are free") as found:
        estimate(job_of(chain(), tmp_path, group_size=32), samples_of(8, K))
    assert str(tmp_path) in str(found.value)
    assert "QCOMPILE_CACHE" in str(found.value)


def test_more_work_takes_longer(tmp_path):
    def seconds(algorithm, width):
        job = job_of(chain(width), tmp_path / algorithm, group_size=32, algorithm=algorithm)
        (tmp_path / algorithm).mkdir(exist_ok=True)
        found = LINE.fullmatch(estimate(job, samples_of(8, K)))
        assert found
        return int(found[1]) * (60 if f"about {found[1]} min" in found[0] else 1)

    assert seconds("rtn", 8192) < seconds("adaround", 8192)
    assert seconds("rtn", 16384) < seconds("awq", 16384)
    assert seconds("gptq", 64) < seconds("gptq", 8192)


def test_a_model_without_layers_costs_nothing(tmp_path):
    job = job_of(graph_of(f"float[2, {K}] x", "y = Relu(x)"), tmp_path)
    assert "for 0 weights" in estimate(job, samples_of(2, K))
    assert estimate(job, None).startswith("estimate: about 1 s")
