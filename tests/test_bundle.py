"""A bundle is there as a whole or not at all, whatever happens while it is made."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.bundle import (
    Bundle,
    FileDigest,
    Manifest,
    Status,
    default_output,
    file_digest,
    open_bundle,
    versions,
)
from qcompile.errors import OutputError


def fill(bundle: Bundle, content: str, status: Status = "built") -> Path:
    """Write what a build writes, as the pipeline does."""
    bundle.write("model.onnx", content)
    bundle.write("plan.json", content)
    if status == "gate failed":
        bundle.remove_engine()
    bundle.write("report.json", content)
    bundle.write("manifest.json", Manifest(status=status, artifacts=bundle.artifacts()).text())
    return bundle.place(status)


def build(output: Path, content: str, *, force: bool = False, status: Status = "built") -> Path:
    with open_bundle(output, force=force) as bundle:
        return fill(bundle, content, status)


def contents(folder: Path) -> dict[str, str]:
    found = {p.name: p.read_text() for p in folder.iterdir()}
    found.pop("manifest.json")
    return found


def whole(content: str) -> dict[str, str]:
    return dict.fromkeys(("model.onnx", "plan.json", "report.json"), content)


def test_finished_bundle_is_all_there_is(tmp_path: Path) -> None:
    assert build(tmp_path / "a" / "out", "1") == tmp_path / "a" / "out"
    assert contents(tmp_path / "a" / "out") == whole("1")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["out"]


def test_error_leaves_nothing_not_even_parents(tmp_path: Path) -> None:
    def stopped() -> None:
        with open_bundle(tmp_path / "a" / "b" / "out") as bundle:
            bundle.write("model.onnx", "half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "empty folder", "folder", "bundle"])
def test_existing_output_is_refused_and_left_alone(tmp_path: Path, kind: str) -> None:
    output = tmp_path / "out"
    if kind == "file":
        output.write_text("mine")
    elif kind == "bundle":
        build(output, "1")
    else:
        output.mkdir()
        (output / "mine").write_text("mine") if kind == "folder" else None
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputError, match="exists; --force replaces it"):
        build(output, "2")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("manifest", [None, "not JSON", "[]", '{"status": "built"}'])
def test_force_replaces_nothing_but_bundles(tmp_path: Path, manifest: str | None) -> None:
    output = tmp_path / "home"
    output.mkdir()
    (output / "thesis.txt").write_text("mine")
    if manifest is not None:
        (output / "manifest.json").write_text(manifest)
    with pytest.raises(OutputError, match="is not a bundle"):
        build(output, "2", force=True)
    assert (output / "thesis.txt").read_text() == "mine"


def test_force_replaces_a_bundle(tmp_path: Path) -> None:
    build(tmp_path / "out", "1")
    (tmp_path / "out" / "extra").write_text("old")
    build(tmp_path / "out", "2", force=True)
    assert contents(tmp_path / "out") == whole("2")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_force_through_a_link_replaces_what_it_points_to(tmp_path: Path) -> None:
    build(tmp_path / "real", "1")
    (tmp_path / "link").symlink_to("real")
    build(tmp_path / "link", "2", force=True)
    assert (tmp_path / "link").is_symlink()
    assert contents(tmp_path / "real") == whole("2")


def test_failed_force_keeps_the_good_bundle(tmp_path: Path) -> None:
    build(tmp_path / "out", "good")
    for attempt in ("2", "3"):
        where = build(tmp_path / "out", attempt, force=True, status="gate failed")
        assert where == tmp_path / "out.failed"
        assert contents(where) == {"plan.json": attempt, "report.json": attempt}
    assert contents(tmp_path / "out") == whole("good")


@pytest.mark.parametrize("status", [None, "built"])
def test_a_missed_gate_leaves_folders_of_others_alone(tmp_path: Path, status: str | None) -> None:
    build(tmp_path / "out", "good")
    if status:
        build(tmp_path / "out.failed", "mine")
    else:
        (tmp_path / "out.failed").mkdir()
        (tmp_path / "out.failed" / "mine").touch()
    others = tmp_path / "out.failed"
    before = {path.name: path.read_bytes() for path in others.iterdir()}
    for attempt in ("2", "3"):
        where = build(tmp_path / "out", attempt, force=True, status="gate failed")
        assert where == tmp_path / "out.failed-2"
        assert contents(where) == {"plan.json": attempt, "report.json": attempt}
    assert {path.name: path.read_bytes() for path in others.iterdir()} == before
    assert contents(tmp_path / "out") == whole("good")


def test_missed_gate_puts_all_but_the_engine_in_place(tmp_path: Path) -> None:
    assert build(tmp_path / "out", "1", status="gate failed") == tmp_path / "out"
    assert contents(tmp_path / "out") == {"plan.json": "1", "report.json": "1"}
    build(tmp_path / "out", "2", force=True)
    assert contents(tmp_path / "out") == whole("2")


def test_an_engine_that_missed_a_gate_is_never_placed(tmp_path: Path) -> None:
    with open_bundle(tmp_path / "out") as bundle:
        for name in ("model.onnx", "model.onnx.data", "report.json"):
            bundle.write(name, "1")
        bundle.place("gate failed")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["report.json"]


def test_too_long_a_name_is_refused_without_leaving_its_parents(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        build(tmp_path / "new" / ("x" * 250), "1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("output", ["/proc/none/out", "{file}/out", "/"])
def test_unwritable_output_is_refused_up_front(tmp_path: Path, output: str) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with (
        pytest.raises(OutputError),
        open_bundle(Path(output.format(file=file)), force=True),
    ):
        pytest.fail("the build went on")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_live_build_is_left_alone_and_the_slower_one_is_refused(tmp_path: Path) -> None:
    with open_bundle(tmp_path / "out") as slow:
        slow.write("model.onnx", "slow")
        build(tmp_path / "out", "fast")
        with pytest.raises(OutputError, match="cannot be put in place"):
            fill(slow, "slow")
    assert contents(tmp_path / "out") == whole("fast")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_only_leftovers_of_the_same_name_are_removed(tmp_path: Path) -> None:
    build(tmp_path / "out", "0")
    for name in (".out.partial-1-aa", ".out.old-1-bb", ".other.partial-1-cc", ".out.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.onnx").write_text("half")
    build(tmp_path / "out", "1", force=True)
    assert {p.name for p in tmp_path.iterdir()} == {"out", ".other.partial-1-cc", ".out.partial"}


CRASHES = """
import itertools, os, sys
from pathlib import Path
from tests.test_bundle import build, contents, open_bundle, whole

class Stop(Exception): pass

def die_before(step):
    left = [step]
    def hook(event, args):
        if event in ("os.rename", "os.mkdir", "os.rmdir", "os.remove", "open"):
            if left[0] == 0:
                os._exit(9)
            left[0] -= 1
    sys.addaudithook(hook)

output = Path(sys.argv[1]) / "out"
for status in ("built", "gate failed"):
    build(output, "old", force=output.exists())
    for step in itertools.count():
        child = os.fork()
        if child == 0:
            die_before(step)
            build(output, f"new {step}", force=True, status=status)
            os._exit(0)
        died = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        if output.exists():
            assert contents(output) in (whole("old"), whole(f"new {step}")), (status, step)
        try:
            with open_bundle(output, force=True):
                raise Stop
        except Stop:
            pass
        kept = contents(output)
        assert kept in (whole("old"), whole(f"new {step}")), (status, step, kept)
        assert not [p for p in output.parent.iterdir() if p.name.startswith(".")], (status, step)
        if not died:
            break
        build(output, "old", force=True)
    assert step > 10, step
print("ok")
"""


def test_a_build_killed_at_any_step_leaves_a_whole_bundle(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", CRASHES, str(tmp_path)],
        capture_output=True,
        check=False,
        text=True,
        timeout=120,
        cwd=Path(__file__).parent.parent,
    )
    assert run.stdout == "ok\n", run.stderr


@given(st.binary(max_size=3000), st.dictionaries(st.text(max_size=5), st.floats(0, 1e6)))
def test_manifest_survives_its_own_text(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, seconds: dict[str, float]
) -> None:
    path = tmp_path_factory.getbasetemp() / "data.bin"
    path.write_bytes(data)
    manifest = Manifest(source={"m.onnx": file_digest(path)}, seconds=seconds)
    assert Manifest.model_validate_json(manifest.text()) == manifest
    assert manifest.source["m.onnx"].bytes == len(data)


def test_file_digest_is_sha256(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    assert file_digest(path) == FileDigest(
        bytes=3, sha256="ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_artifacts_are_listed_by_relative_path(tmp_path: Path) -> None:
    with open_bundle(tmp_path / "out") as bundle:
        (bundle.folder / "b").mkdir()
        bundle.write("b/x.bin", "1")
        bundle.write("a.json", "2")
        bundle.write("report.json", "3")
        assert list(bundle.artifacts()) == ["a.json", "b/x.bin"]


def test_default_output_says_model_scheme_and_target() -> None:
    assert default_output(Path("x/net.v2.onnx"), "int8", "ort-cpu") == Path("net.v2-int8-ort-cpu")


def test_versions_are_known_without_importing_anything_heavy() -> None:
    code = "import sys, json, qcompile.bundle as b; b.versions(); print(json.dumps([*sys.modules]))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"onnx", "onnxruntime", "torch", "numpy"} & set(json.loads(run.stdout))
    assert {"python", "onnx", "onnx-ir", "numpy"} <= set(versions())
