"""A report with something in every section."""

from qcompile.report.schema import (
    Artifact,
    CalibrationSummary,
    FloatNode,
    Kernels,
    PlanSummary,
    Report,
)
from qcompile.report.schema_results import (
    Agreement,
    ComparisonSection,
    Gate,
    LayerRow,
    OutputRow,
    Score,
    Speed,
)
from qcompile.report.schema_source import Canonicalization, Data, ModelFacts, PassRecord

SOFTMAX = "the int8 kernel is 7.5 times slower than float"
EVERYTHING = Report(
    output="/builds/net-int8-ort-cpu",
    model=ModelFacts(
        path="net.onnx",
        sha256="ab" * 32,
        bytes=1_100_000,
        opset=17,
        nodes=124,
        parameters=269_722,
        operators={"Softmax": 2, "Conv": 19, "Add": 9},
    ),
    canonical=Canonicalization(
        passes=(
            PassRecord(
                name="clean-up", modified=True, seconds=0.1, nodes_before=124, nodes_after=30
            ),
        ),
        relative_l2=3.1e-7,
        samples=4,
    ),
    data=Data(
        calibration="calib/",
        found=512,
        calibration_samples=410,
        evaluation_samples=102,
        held_back=True,
    ),
    calibration=CalibrationSummary(
        method="auto", chosen={"mse": 20, "minmax": 11}, tensors=31, reused=31, seconds=3.1
    ),
    plan=PlanSummary(
        scheme="int8",
        target="ort-cpu",
        device="vnni",
        host_cpu="avx2",
        nodes={"int8": 27, "float": 3},
        by_op={"Conv": {"int8": 19}, "Add": {"int8": 8, "float": 1}, "Softmax": {"float": 2}},
        tensors={"activation": 31, "weight": 20},
        int8_share=0.991,
        float_nodes=(
            FloatNode(name="s1", op="Softmax", reason=SOFTMAX),
            FloatNode(name="s2", op="Softmax", reason=SOFTMAX),
            FloatNode(name="[bold]a[/]", op="Add", reason="left out by --exclude"),
        ),
    ),
    kernels=Kernels(
        expected={"com.microsoft::QLinearConv": 19},
        obtained={"com.microsoft::QLinearConv": 18},
        missing=("/layer1/conv",),
    ),
    engine=ComparisonSection(
        samples=102,
        outputs=(
            OutputRow(
                name="logits",
                sqnr_db=31.23,
                sqnr_interval=(30.8, 31.7),
                cosine=0.99932,
                max_abs_error=0.512,
            ),
            OutputRow(name="twin", identical=True, note="equal, bit for bit"),
        ),
        agreements=(Agreement(name="top-1", share=0.98, interval=(0.95, 0.99), count=102),),
        scores=(
            Score(
                name="top-1 accuracy",
                float_value=0.8065,
                engine_value=0.8055,
                difference=-0.001,
                interval=(-0.004, 0.002),
                count=102,
            ),
        ),
    ),
    simulated=ComparisonSection(samples=102, outputs=(OutputRow(name="logits", sqnr_db=35.75),)),
    layers=(
        LayerRow(name="conv_out", kind="activation", op="Conv", sqnr_db=19.1),
        LayerRow(name="w\x1b[31m", kind="weight", op="Conv", sqnr_db=31.2),
    ),
    speed=Speed(float_ms=1.2, engine_ms=0.401, ratio=2.99, interval=(2.9, 3.1), pairs=40),
    gates=(
        Gate(name="not-slower", wanted=1.0, measured=2.99, passed=True),
        Gate(name="min-sqnr", wanted=40.0, measured=31.23, passed=False, note="output 'logits'"),
    ),
    notices=("only 20 samples", "clip [0, 6] was widened"),
    artifacts=(
        Artifact(path="model.onnx", bytes=300_000, sha256="0"),
        Artifact(path="model.onnx.data", bytes=25_000, sha256="0"),
        Artifact(path="plan.json", bytes=20_000, sha256="0"),
    ),
)
