"""Lists the names of a TensorRT wheel: what classes have, what it gives, which arguments it takes.

``python make_names.py tensorrt_cu13_bindings-11.4.0.106-cp311-*.whl`` writes ``11.4.json`` beside
this file. The wheel comes from ``pip download tensorrt_cu13_bindings==11.4.0.106 --no-deps``; this
Python must be of its version. The libraries that the wheel links to are not on PyPI and not needed:
names and docstrings are in the extension itself, so hollow libraries stand in for them.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Container
from pathlib import Path
from types import BuiltinFunctionType

LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
FUNCTIONS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
"""What the extension wants of them: ``nm -D --undefined-only tensorrt.so``."""

SOURCE = "".join(f"void {name}(void) {{}}\n" for name in FUNCTIONS)


_SIGNATURE = re.compile(r"^(?:\d+\. )?\w*\((.*)\) -> (.*)$", re.MULTILINE)
"""As pybind11 writes it; of an overloaded function a numbered line each."""


def main(wheel: Path) -> None:
    """Write the list of one wheel."""
    version = wheel.name.split("-")[1]
    major, minor = version.split(".")[:2]
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        for name in LIBRARIES:
            library = f"lib{name}.so.{major}"
            command = ["cc", "-shared", f"-Wl,-soname,{library}", "-o", f"{folder}/{library}"]
            subprocess.run([*command, "-x", "c", "-"], input=SOURCE, text=True, check=True)
        environment = {**os.environ, "LD_LIBRARY_PATH": folder, "PYTHONPATH": folder}
        command = [sys.executable, __file__, "--child"]
        done = subprocess.run(
            command, env=environment, check=True, stdout=subprocess.PIPE, text=True
        )
    found = json.loads(done.stdout)
    lines = [f'"version": "{version}"', f'"functions": {json.dumps(found["functions"])}']
    classes = [f"{json.dumps(name)}: {json.dumps(c)}" for name, c in found["classes"].items()]
    lines.append('"classes": {\n' + ",\n".join(classes) + "\n}")
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    Path(__file__).with_name(f"{major}.{minor}.json").write_text(text, "utf-8")


def child() -> None:
    """Print the names of the bindings that can be imported here, as JSON."""
    import tensorrt_bindings as trt

    classes = {n: c for n, c in vars(trt).items() if isinstance(c, type) and n[0] != "_"}
    functions = {
        name: signature(value.__doc__ or "", classes)
        for name, value in vars(trt).items()
        if name[0] != "_" and isinstance(value, BuiltinFunctionType)
    }
    listed = {name: members(cls, classes) for name, cls in sorted(classes.items())}
    sys.stdout.write(json.dumps({"functions": functions, "classes": listed}, sort_keys=True))


def members(cls: type, classes: Container[str]) -> dict[str, list[str]]:
    """Return each member with the class that it gives and the arguments that it takes."""
    found = {}
    for name in dir(cls):
        member = getattr(cls, name)
        if isinstance(member, property):
            found[name] = signature(getattr(member.fget, "__doc__", None) or "", classes)[:1]
        elif isinstance(member, cls):
            found[name] = [cls.__name__]
        elif name[0] != "_" or name == "__init__":
            found[name] = signature(member.__doc__ or "", classes)
    for name, inside in re.findall(r"def (\w+)\(self, ([^)]*)\):", cls.__doc__ or ""):
        found.setdefault(name, ["", *inside.split(", ")])  # to be overridden, not to be called
    return dict(sorted(found.items()))


def signature(text: str, classes: Container[str]) -> list[str]:
    """Return what a docstring says is given, where that is a class, then the arguments' names."""
    gives, arguments = "", ["self"]
    for inside, after in re.findall(
        r"^(?:\d+\. )?\w*\((.*)\) -> (.*)$", text.strip(), re.MULTILINE
    ):
        word = re.split(r"[.:]", after)[-1]
        gives = next((name for name in (word, word[1:]) if name in classes), "")
        new = re.findall(r"(\w+): ", inside)
        arguments += [name for name in new if name not in arguments]
    return [gives, *arguments[1:]]


if __name__ == "__main__":
    child() if sys.argv[1:] == ["--child"] else main(Path(sys.argv[1]))
