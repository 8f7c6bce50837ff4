"""What a bundle for TensorRT holds, and what is refused."""

import json
import os
import subprocess
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from qcompile.emit import device_files
from qcompile.emit.device_files import HELPERS
from qcompile.emit.tensorrt_files import (
    EngineOptions,
    EngineRequest,
    trtexec_script,
    write_engine_files,
)
from qcompile.errors import RecipeError
from qcompile.progress import Silent
from qcompile.recipe import Gates
from qcompile.samples import InMemory, Port, Subset
from qcompile.targets.profiles import Profile
from tests.emit.nets import PROFILE, float_model, request, samples


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    return float_model(tmp_path_factory.mktemp("float"))


def written(folder, session, data=None, **fields):
    """Write the files; return ``build.json`` and the notices."""
    progress = Silent()
    data = samples() if data is None else data
    write_engine_files(folder, request(session, **fields), data, session.run, progress)
    return json.loads((folder / "build.json").read_text("utf-8")), progress.notices


def test_all_files_are_there(tmp_path, session):
    gates = Gates(min_sqnr=20, max_drop=0.01)
    options = EngineOptions(workspace_bytes=1 << 28, hardware_compatible="ampere+")
    told, notices = written(tmp_path, session, gates=gates, options=options)
    names = {*EngineRequest.scripts, *HELPERS, "build_engine.sh", "build.json", "samples.npz"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert notices == []
    assert told["profiles"] == {"x": [list(shape) for shape in PROFILE["x"]]}
    assert told["gates"] == {"min_sqnr": 20, "max_drop": 0.01}
    assert (told["samples"], told["inputs"], told["outputs"]) == (6, ["x"], ["y"])
    assert (told["workspace_bytes"], told["hardware_compatible"]) == (1 << 28, "ampere+")
    assert os.access(tmp_path / "build_engine.sh", os.X_OK)


def test_samples_are_those_given_with_their_float_outputs(tmp_path, session):
    data = samples(3)
    written(tmp_path, session, data)
    with np.load(tmp_path / "samples.npz", allow_pickle=False) as archive:
        assert len(archive.files) == 6
        inputs = [archive[f"{i}.input.0"] for i in range(3)]
        outputs = [archive[f"{i}.output.0"] for i in range(3)]
    assert sorted(x.tobytes() for x in inputs) == sorted(f["x"].tobytes() for f in data.feeds)
    for x, y in zip(inputs, outputs, strict=True):
        np.testing.assert_array_equal(session.run({"x": x})["y"], y)


def test_same_samples_in_any_order_give_the_same_bytes(tmp_path, session):
    data = samples()
    folders = [tmp_path / name for name in ("one", "two")]
    for folder, order in zip(folders, (range(6), [3, 1, 5, 0, 2, 4]), strict=True):
        folder.mkdir()
        written(folder, session, Subset(data, list(order)))
    for name in ("samples.npz", "build.json", "build_engine.sh"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_samples_are_limited_and_it_is_said(tmp_path, session, monkeypatch):
    monkeypatch.setattr(device_files, "MOST_SAMPLES", 2)
    told, notices = written(tmp_path, session)
    assert told["samples"] == 2
    assert notices == ["samples.npz holds 2 of 6 samples: at most 2 samples"]
    monkeypatch.setattr(device_files, "MOST_SAMPLES", 9)
    one = 2 * 16 * 64 * 4 + 2 * 32 * 4
    monkeypatch.setattr(device_files, "MOST_BYTES", 3 * one)
    told, notices = written(tmp_path, session)
    assert told["samples"] == 3
    assert notices == ["samples.npz holds 3 of 6 samples: at most 0 MiB"]
    assert (tmp_path / "samples.npz").stat().st_size < 3 * one + 4000


def test_samples_outside_the_profile_are_left_out_and_it_is_said(tmp_path, session):
    data = InMemory([*samples(2).feeds, *samples(3, batch=5).feeds])
    told, notices = written(tmp_path, session, data)
    assert told["samples"] == 2
    assert notices == ["3 sample(s) are outside the engine's shapes, not in samples.npz"]
    told, notices = written(tmp_path, session, samples(1, batch=5))
    assert told["samples"] == 0
    assert "samples.npz is empty: the engine will be built, but not compared" in notices


def test_types_that_numpy_lacks_become_float32(tmp_path, session):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = np.array([[1.5, -2.25]])

    def halves(_):
        return {"y": values.astype(ml_dtypes.bfloat16)}

    write_engine_files(tmp_path, request(session), samples(1), halves, Silent())
    with np.load(tmp_path / "samples.npz", allow_pickle=False) as archive:
        assert archive["0.output.0"].dtype == np.float32
        np.testing.assert_array_equal(archive["0.output.0"], values)


def test_integers_stay_as_they_are(tmp_path):
    port = Port("tokens", np.dtype(np.int64), (1, 4))
    asked = replace(request_of(port), profiles={})
    tokens = np.array([[1 << 40, 2, 3, 4]])
    scores = np.ones((1, 4, 8), np.float16)
    data = InMemory([{"tokens": tokens}])
    write_engine_files(tmp_path, asked, data, lambda _: {"y": scores}, Silent())
    with np.load(tmp_path / "samples.npz", allow_pickle=False) as archive:
        assert archive["0.input.0"].dtype == np.int64
        assert archive["0.input.0"].tolist() == tokens.tolist()
        assert archive["0.output.0"].dtype == np.float16


def request_of(*ports):
    return EngineRequest("model.onnx", ports, ("y",), 11)


@pytest.mark.parametrize(
    ("profiles", "said"),
    [
        ({}, "input x has dynamic dimensions: give its shapes as --shapes x:MIN,OPT,MAX"),
        ({**PROFILE, "z": PROFILE["x"]}, "no such input; there are: x"),
        ({"x": Profile((1, 16), (1, 16), (1, 16))}, "has 2 dimensions"),
        ({"x": Profile((1, 3, 8, 8), (1, 3, 8, 8), (1, 3, 8, 8))}, "the model fixes it to 16"),
    ],
)
def test_profiles_that_contradict_the_model_are_refused(tmp_path, session, profiles, said):
    with pytest.raises(RecipeError, match="--shapes") as caught:
        written(tmp_path, session, profiles=profiles)
    assert said in str(caught.value)


def test_fixed_inputs_get_no_profile(tmp_path, session):
    fixed = Port("mask", np.dtype(np.float32), (1, 4))
    profile = Profile((1, 4), (1, 4), (1, 4))
    asked = replace(request_of(*session.inputs, fixed), profiles={**PROFILE, "mask": profile})
    write_engine_files(tmp_path, asked, InMemory([]), session.run, Silent())
    assert list(json.loads((tmp_path / "build.json").read_text())["profiles"]) == ["x"]
    assert "mask" not in (tmp_path / "build_engine.sh").read_text()


def test_a_scalar_gets_no_profile(tmp_path, session):
    """ONNX Runtime gives scalars and what it does not know the same shape: None."""
    scalar = Port("s", np.dtype(np.float32), None)
    for profile in ({}, {"s": Profile((), (), ())}):
        asked = replace(request_of(*session.inputs, scalar), profiles={**PROFILE, **profile})
        write_engine_files(tmp_path, asked, InMemory([]), session.run, Silent())
        assert list(json.loads((tmp_path / "build.json").read_text())["profiles"]) == ["x"]


# trtexec


def ran(folder, text):
    """Run the script with a trtexec that writes down its arguments; return them."""
    fake = folder / "trtexec"
    fake.write_text('#!/bin/sh\nprintf "%s\\0" "$@" >arguments\n: >.model.engine.partial\n')
    fake.chmod(0o755)
    script = folder / "build_engine.sh"
    script.write_text(text)
    environment = {"PATH": os.environ["PATH"], "TRTEXEC": str(fake)}
    done = subprocess.run(
        ["sh", script], env=environment, cwd="/", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "model.engine").exists()
    return (folder / "arguments").read_text().split("\0")[:-1]


@pytest.mark.parametrize("version", [10, 11])
def test_script_has_the_flags_of_its_major(tmp_path, session, version):
    options = EngineOptions(
        workspace_bytes=1 << 28,
        optimization_level=5,
        version_compatible=True,
        hardware_compatible="same",
        weight_streaming=True,
        strip=True,
        refit=True,
    )
    flags = ran(tmp_path, trtexec_script(request(session, version, options=options)))
    assert ("--stronglyTyped" in flags) == (version == 10)
    assert not [f for f in flags if f.split("=")[0] in {"--fp16", "--int8", "--best", "--calib"}]
    wanted = {
        "--onnx=model.onnx",
        "--minShapes=x:1x16x8x8",
        "--optShapes=x:2x16x8x8",
        "--maxShapes=x:4x16x8x8",
        "--memPoolSize=workspace:268435456B",
        "--builderOptimizationLevel=5",
        "--versionCompatible",
        "--hardwareCompatibilityLevel=sameComputeCapability",
        "--allowWeightStreaming",
        "--stripWeights",
        "--refit",
        "--timingCacheFile=timing.cache",
        "--profilingVerbosity=detailed",
        "--skipInference",
    }
    assert wanted <= set(flags)


def test_script_quotes_names(tmp_path):
    name = 'a b:0/$(touch pwned)`id`"\\'
    profile = Profile((1,), (2,), (3,))
    asked = replace(request_of(), profiles={name: profile, "y": profile}, model="it's $HOME.onnx")
    flags = ran(tmp_path, trtexec_script(asked))
    assert f"--optShapes={name}:2,y:2" in flags
    assert "--onnx=it's $HOME.onnx" in flags
    assert not list(tmp_path.glob("*pwned*"))


@pytest.mark.parametrize("name", ["a,b", "it's"])
def test_script_says_which_name_trtexec_cannot_take(tmp_path, name):
    asked = replace(request_of(), profiles={name: Profile((1,), (2,), (3,))})
    done = subprocess.run(
        ["sh", "-c", trtexec_script(asked), "script"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "trtexec cannot take the name" in done.stderr
    assert "build_engine.py" in done.stderr


def test_script_without_trtexec_says_what_to_set(tmp_path, session):
    script = tmp_path / "build_engine.sh"
    script.write_text(trtexec_script(request(session)))
    environment = {"PATH": os.environ["PATH"], "TRTEXEC": "/nowhere/trtexec"}
    done = subprocess.run(
        ["sh", script], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, "set TRTEXEC" in done.stderr) == (2, True)


def test_archive_has_no_times(tmp_path, session):
    written(tmp_path, session)
    with zipfile.ZipFile(tmp_path / "samples.npz") as archive:
        assert {entry.date_time[0] for entry in archive.infolist()} == {1980}
