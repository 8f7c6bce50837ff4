import importlib.metadata

import pytest

from qcompile.runtime import host


@pytest.mark.parametrize(
    ("flags", "cpu"),
    [
        ("sse4_2 avx avx2 fma", "avx2"),
        ("avx2 avx512f avx512bw avx512vl", "avx512"),
        ("avx2 avx512f avx512bw avx512_vnni", "vnni"),
        ("avx2 avx_vnni", "vnni"),
        ("", "avx2"),
    ],
)
def test_cpu_from_flags(flags, cpu):
    assert host.cpu_from_flags(frozenset(flags.split())) == cpu


def test_arm_by_machine(monkeypatch):
    monkeypatch.setattr(host.platform, "machine", lambda: "aarch64")
    assert host.host_cpu() == "arm"


def test_flags_of_a_written_cpuinfo(tmp_path, monkeypatch):
    text = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: avx2 avx512bw avx512_vnni\n"
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(host, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(host.platform, "machine", lambda: "x86_64")
    assert host.host_cpu() == "vnni"
    monkeypatch.setattr(host, "_CPUINFO", tmp_path / "absent")
    assert host.host_cpu() == "avx2"


def test_runtimes_tell_what_is_here_and_what_to_install():
    found = {info.name: info for info in host.runtimes()}
    assert list(found) == [
        "onnxruntime",
        "onnxruntime-gpu",
        "tensorrt",
        "tensorrt_rtx_cu13_libs",
        "torch",
    ]
    for name, info in found.items():
        try:
            assert info.version == importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            assert info.version is None
            assert info.missing is not None
            assert "pip install 'qcompile[" in info.missing
    if found["onnxruntime"].version:
        assert "CPUExecutionProvider" in found["onnxruntime"].providers
        assert found["onnxruntime"].devices


def test_gpu_names_come_from_the_driver(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H200, 143771 MiB, 9.0'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert host.gpu_names() == ("NVIDIA H200, 143771 MiB, compute capability 9.0",)
    tool.write_text(
        "#!/bin/sh\n"
        'case "$1" in *compute_cap*) echo "not a valid field"; exit 2;; esac\n'
        "echo 'Tesla T4, 15109 MiB'\n"
    )
    assert host.gpu_names() == ("Tesla T4, 15109 MiB",)
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert host.gpu_names() == ()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert host.gpu_names() == ()
