"""What ONNX Runtime takes on a GPU, and what it is refused."""

import pytest

from qcompile.errors import RecipeError
from qcompile.targets import target_named
from qcompile.targets.cuda_kernels import KERNELS, NBITS, NBITS_GROUPS

CUDA = target_named("ort-cuda")


@pytest.mark.parametrize(
    ("device", "schemes"),
    [
        ("cuda", ("weight-only", "fp16", "bf16")),
        ("tensorrt", ("int8", "weight-only", "fp8", "fp16", "bf16")),
    ],
)
def test_schemes_of_each_provider(device: str, schemes: tuple[str, ...]) -> None:
    assert CUDA.schemes(device) == schemes


@pytest.mark.parametrize(
    ("scheme", "device", "words"),
    [
        ("int8", "cuda", ("no kernels for 8-bit activations", "--ep tensorrt", "--int4")),
        ("fp8", "cuda", ("--ep cuda", "--fp16", "--bf16")),
        ("int8-dynamic", "tensorrt", ("it has: --int8",)),
        ("fp16", "rocm", ("--ep rocm", "cuda, tensorrt")),
    ],
)
def test_what_is_refused_says_what_there_is(
    scheme: str, device: str, words: tuple[str, ...]
) -> None:
    with pytest.raises(RecipeError) as refused:
        CUDA.check(scheme, device)
    assert all(word in str(refused.value) for word in words)


def test_weights_of_few_bits_are_stored_as_the_kernel_reads_them() -> None:
    few = CUDA.few_bits()
    assert few.form == "nbits"
    assert {width.stored for width in few.widths.values()} == set(NBITS)
    assert {width.group_sizes for width in few.widths.values()} == {NBITS_GROUPS}
    assert {width.levels for width in few.widths.values()} == {(0,)}


def test_int8_is_symmetric_as_tensorrt_wants_it() -> None:
    types = CUDA.types("int8", "tensorrt")
    assert (types.activation, types.weight, types.symmetric) == ("int8", "int8", True)


def test_the_cuda_provider_alone_is_bound_to_its_kernels() -> None:
    assert CUDA.devices["cuda"].kernels is KERNELS
    assert CUDA.devices["tensorrt"].kernels is None
    assert KERNELS["", "Conv"] >= {"float16", "bfloat16"}
    assert "bfloat16" not in KERNELS["", "MaxPool"]
    assert ("", "Tan") not in KERNELS
