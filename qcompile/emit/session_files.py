"""What a machine with onnxruntime-gpu needs to run and judge a bundle by itself.

Beside what ``device_files`` writes go ``session_options.json`` (providers with their options) and
``run_session.py``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from qcompile.emit.device_files import DeviceRequest
from qcompile.runtime.provider import Provider

CONTEXT = "model_ctx.onnx"


@dataclass(frozen=True)
class SessionRequest(DeviceRequest):
    """A session to make elsewhere.

    Attributes:
        provider: Who runs it; its paths are relative to the folder.
        context: An EPContext model is to be written and run.
    """

    scripts: ClassVar = ("run_session.py",)
    description: ClassVar = "session_options.json"

    provider: Provider
    context: bool = False

    def own_fields(self) -> Mapping[str, object]:
        """Return providers, session options and what is to be written."""
        return {
            "providers": [[name, dict(options)] for name, options in self.provider.chain],
            "session": dict(self.provider.entries),
            "rewrites": self.provider.rewrites,
            "context": CONTEXT if self.context else None,
        }
