"""What calibration loads: its memory and time on a small model are mostly imports."""

import subprocess
import sys


def test_the_commands_load_no_compiler_no_runtime_and_no_picture_library():
    code = "import sys, qcompile.commands; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    loaded = set(done.stdout.split())
    assert "qcompile.calibrate.collect" in loaded
    assert not {"numba", "onnxruntime", "PIL", "torch"} & loaded
