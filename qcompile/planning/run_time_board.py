"""Measured effect where activations are rounded at run time, so that no grid can be switched."""

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from qcompile.plan import Plan
from qcompile.planning.switchboard import mean_noise
from qcompile.runtime.ort import Session
from qcompile.samples import Array, Samples


class RunTimeBoard:
    """Rounds any set of nodes by writing a model for it, and measures its outputs.

    Attributes:
        units: Names of the nodes that compute on codes, in graph order.
        reference: What the float model gives.
        floats: Names of the outputs that noise is measured on.
    """

    def __init__(
        self,
        model: ir.Model,
        plan: Plan,
        rewrite: Callable[[Plan], ir.Model],
        samples: Samples,
        jobs: int,
    ) -> None:
        """Run the float model.

        Args:
            model: The lowered float graph.
            plan: All nodes together.
            rewrite: Writes a plan into the graph.
            samples: A few samples; each question runs all of them.
            jobs: Threads.
        """
        self._plan, self._rewrite, self._samples, self._jobs = plan, rewrite, samples, jobs
        self.units = [node.name or "" for node in model.graph if plan.is_quantized(node.name or "")]
        self.reference = self._outputs(model)
        self.floats = [name for name, array in self.reference[0].items() if _is_float(array)]

    def run(self, on: Collection[str]) -> list[dict[str, Array]]:
        """Return what each sample gives with some units rounded."""
        alone = {
            name: entry
            if name in on
            else entry.model_copy(update={"precision": "float", "reason": "not asked for"})
            for name, entry in self._plan.nodes.items()
        }
        return self._outputs(self._rewrite(self._plan.model_copy(update={"nodes": alone})))

    def noise_of(self, found: Sequence[Mapping[str, Array]]) -> float:
        """Return the mean over float outputs of noise power over signal power."""
        return mean_noise(self.reference, found, self.floats)

    def scored(self, found: Sequence[Mapping[str, Array]]) -> list[dict[str, Array]]:
        """Return the outputs as they are."""
        return [dict(arrays) for arrays in found]

    def _outputs(self, model: ir.Model) -> list[dict[str, Array]]:
        session = Session(model, threads=self._jobs, optimize=False)
        return [session.run(self._samples[index]) for index in range(len(self._samples))]


def _is_float(array: Array) -> bool:
    return bool(array.dtype == np.float32)
