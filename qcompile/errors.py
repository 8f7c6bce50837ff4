"""Every error that qcompile raises on purpose.

QcompileError                 shown as one line, exit code 2
    ModelError                the model file: missing, truncated, unsafe, unsupported
    DataError                 calibration or evaluation samples
    RecipeError               an option, a recipe file, or options that contradict each other
    PlanError                 a plan file that does not fit the model or the target
    StatisticsError           a calibration cache that cannot be used
    OutputError               the output folder: exists, unwritable
    RuntimeMissingError       an engine's library is not installed
    PassError                 a pass broke its contract (a defect of qcompile, not of the input)
    EngineError               the engine was built but cannot be loaded or run
    GateError                 the engine works but misses a gate, exit code 3
"""


class QcompileError(Exception):
    """Base of all errors meant for people: the message names what is wrong and what to do."""

    exit_code = 2


class ModelError(QcompileError):
    """The model cannot be read, is unsafe to read, or holds what no stage can handle."""


class DataError(QcompileError):
    """Samples are missing, unreadable or do not fit the model's inputs."""


class RecipeError(QcompileError):
    """An option or a recipe key is unknown, malformed or contradicts another."""


class PlanError(QcompileError):
    """A plan names tensors or nodes that the model lacks, or types that the target lacks."""


class StatisticsError(QcompileError):
    """Cached statistics are damaged or belong to something else."""


class OutputError(QcompileError):
    """The output folder exists already or cannot be written."""


class RuntimeMissingError(QcompileError):
    """A library that the target needs is not installed; the message says which extra has it."""


class PassError(QcompileError):
    """A pass broke its contract: wrong order, wrong ``modified``, or an invalid graph."""

    exit_code = 1


class EngineError(QcompileError):
    """The runtime refuses the emitted engine, or a model, or fails while running it."""


class GateError(QcompileError):
    """The comparison missed a gate that the recipe asks for; the report has been written.

    Attributes:
        report: The ``Report`` of the build.
    """

    exit_code = 3

    def __init__(self, message: str, report: object = None) -> None:
        super().__init__(message)
        self.report = report
