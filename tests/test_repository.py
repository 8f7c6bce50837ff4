"""The layout of the repository: link, packages, wheel, lean import, layers, pins, Makefile."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import qcompile
from tests.assets import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PACKAGES = PROJECT["tool"]["setuptools"]["packages"]


def source_files() -> set[str]:
    """Every module as the wheel names it; the link makes passes/ appear as qcompile/passes."""
    tree = {*(ROOT / "qcompile").rglob("*.py"), *(ROOT / "qcompile" / "passes").glob("*.py")}
    return {str(path.relative_to(ROOT)) for path in tree}


def test_link_and_folder_of_passes_are_one():
    link = ROOT / "qcompile" / "passes"
    assert link.is_symlink()
    assert link.readlink() == Path("..", "passes")
    assert link.samefile(ROOT / "passes")


def test_packages_are_the_folders_with_modules():
    folders = {str(Path(name).parent).replace("/", ".") for name in source_files()}
    assert sorted(folders) == sorted(PACKAGES)
    assert sorted(PACKAGES) == PACKAGES
    for name in PACKAGES:
        assert (ROOT / name.replace(".", "/") / "__init__.py").is_file()


@pytest.mark.slow
def test_wheel_holds_every_module(tmp_path):
    wheel = built_wheel(tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        licenses = [name for name in archive.namelist() if name.endswith("/licenses/LICENSE")]
    assert names == source_files() | {"qcompile/py.typed"}
    assert licenses


def built_wheel(folder: Path) -> Path:
    # From a copy, since setuptools leaves build folders beside the sources.
    copy = folder / "source"
    copy.mkdir()
    parts = ["pyproject.toml", "README.md", "LICENSE", "passes", "qcompile"]
    subprocess.run(["cp", "-R", "-P", *(ROOT / part for part in parts), copy], check=True)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, copy]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


@pytest.mark.parametrize("module", ["qcompile", "qcompile.cli.main"])
def test_import_is_lean(module):
    heavy = "torch", "onnxruntime", "tensorrt", "numba", "onnxscript"
    code = f"import sys, {module}; print(*sorted(set(sys.modules) & {set(heavy)!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_public_names_are_sorted_and_there():
    assert sorted(qcompile.__all__) == qcompile.__all__
    for name in qcompile.__all__:
        assert getattr(qcompile, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = qcompile.nonsense


def test_imports_point_downwards():
    command = [Path(sys.executable).parent / "lint-imports", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_runtimes_are_imported_in_runtime_and_emit_alone():
    pattern = re.compile(r"^\s*(import|from) (onnxruntime|tensorrt)\b", re.MULTILINE)
    users = {name for name in source_files() if pattern.search((ROOT / name).read_text("utf-8"))}
    assert {Path(name).parts[1] for name in users} <= {"runtime", "emit"}, users


def test_every_requirement_is_pinned():
    pins = {line.split("==")[0].lower() for line in pinned()}
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"], *extras["cpu"], *extras["dev"]]
    wanted += [*extras["bench"], *extras["torch"], *extras["tensorrt-rtx"]]
    assert {re.split(r"[<>=~ ]", name)[0].lower() for name in wanted} <= pins


def pinned() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_pins_are_exact():
    assert all(re.fullmatch(r"[\w.-]+==[\w.+]+", line) for line in pinned())


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", ".ci/run"])
def test_named_make_verbs_exist(page):
    verbs = set(re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = set(
        re.findall(r"\bmake ([a-z]+)\b(?= +#|`|$)", (ROOT / page).read_text("utf-8"), re.MULTILINE)
    )
    assert named
    assert named <= verbs


def pages() -> list[Path]:
    return sorted(p for top in ("*.md", "samples/*/*.md", "docs/**/*.md") for p in ROOT.glob(top))


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_lead_somewhere(page):
    text = page.read_text("utf-8")
    links = [page.parent / link for link in re.findall(r"\]\(([^)#:]+)\)", text)]
    paths = re.findall(r"`((?:qcompile|passes|tests|samples|docs)/[\w./-]*[\w/])[`:]", text)
    missing = [path for path in [*links, *(ROOT / path for path in paths)] if not path.exists()]
    assert not missing


def test_layers_of_the_docs_are_those_of_the_contract():
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    rows = text.partition("\n## Layers\n")[2].partition("\n## ")[0].splitlines()
    told = [set(re.findall(r"`(\w+)`", row.split("|")[1])) for row in rows if row.startswith("| `")]
    layers = PROJECT["tool"]["importlinter"]["contracts"][0]["layers"]
    assert told == [set(re.findall(r"qcompile\.(\w+)", layer)) for layer in layers]
