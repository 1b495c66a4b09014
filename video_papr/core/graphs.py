"""Graphs of the engines: a traced program becomes one that OpenVINO or ONNX Runtime runs on this processor.

Each class makes a graph from a program, or from what `dump` gave before, and runs it on tensors.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.export import ExportedProgram


class Graph(Protocol):
    """A compiled graph; one answer at a time."""

    def fits(self, tensors: list[Tensor]) -> bool:
        """Whether it takes tensors of these sizes."""

    def run(self, tensors: list[Tensor]) -> list[Tensor]:
        """Its results for contiguous float32 or integer tensors."""

    def dump(self) -> bytes:
        """What makes it anew."""


class OpenVinoGraph:
    """A graph of OpenVINO."""

    packages = "openvino", "nncf"

    def __init__(self, made: ExportedProgram | bytes, dtype: torch.dtype) -> None:
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if dtype == torch.bfloat16 else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # or every process on the machine computes on the first core
        }
        if isinstance(made, bytes):
            self._compiled = _core().import_model(made, "CPU", settings)
        else:
            self._compiled = _core().compile_model(self._convert(made, dtype), "CPU", settings)
        self._request = self._compiled.create_infer_request()

    @staticmethod
    def _convert(program: ExportedProgram, dtype: torch.dtype) -> Any:
        import openvino

        model = openvino.convert_model(program)
        # It takes every size for free, also those that are part of the graph.
        names = program.graph_signature.user_inputs
        given = [node.meta["val"].shape for node in program.graph.nodes if node.name in names]
        sides = [[side if isinstance(side, int) else -1 for side in shape] for shape in given]
        model.reshape({place: openvino.PartialShape(shape) for place, shape in enumerate(sides)})
        if dtype == torch.int8:
            import nncf

            # Activations become int8 where the processor multiplies int8 (VNNI, AMX); elsewhere weights alone are.
            model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
        return model

    @staticmethod
    def machine() -> str:
        """What a dump is made for."""
        return str(_core().get_property("CPU", "FULL_DEVICE_NAME"))

    def fits(self, tensors: list[Tensor]) -> bool:
        import openvino

        sides = [openvino.PartialShape(list(tensor.shape)) for tensor in tensors]
        ports = zip(self._compiled.inputs, sides, strict=True)
        return all(port.partial_shape.compatible(own) for port, own in ports)

    def run(self, tensors: list[Tensor]) -> list[Tensor]:
        results = self._request.infer([tensor.numpy() for tensor in tensors], share_inputs=True)
        return [torch.from_numpy(results[place]) for place in range(len(results))]

    def dump(self) -> bytes:
        blob: bytes = self._compiled.export_model().getvalue()
        return blob


class OnnxGraph:
    """A graph of ONNX Runtime."""

    packages = "onnxruntime", "onnxscript"

    def __init__(self, made: ExportedProgram | bytes, dtype: torch.dtype) -> None:
        import onnxruntime

        self._model = made if isinstance(made, bytes) else self._convert(made)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(self._model, options, ["CPUExecutionProvider"])

    @staticmethod
    def _convert(program: ExportedProgram) -> bytes:
        exported = torch.onnx.export(program, dynamo=True, verbose=False)
        assert exported is not None
        return bytes(exported.model_proto.SerializeToString())

    @staticmethod
    def machine() -> str:
        """What a dump is made for: ONNX is for all."""
        return ""

    def fits(self, tensors: list[Tensor]) -> bool:
        shapes = zip(self._session.get_inputs(), tensors, strict=True)
        return all(
            len(port.shape) == own.ndim
            and all(
                not isinstance(side, int) or side == n for side, n in zip(port.shape, own.shape, strict=True)
            )
            for port, own in shapes
        )

    def run(self, tensors: list[Tensor]) -> list[Tensor]:
        names = [port.name for port in self._session.get_inputs()]
        given = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
        return [torch.from_numpy(found) for found in self._session.run(None, given)]

    def dump(self) -> bytes:
        return self._model


@cache
def _core() -> Any:
    import openvino

    return openvino.Core()


GRAPHS: dict[str, type[OpenVinoGraph] | type[OnnxGraph]] = {
    "openvino": OpenVinoGraph,
    "onnxruntime": OnnxGraph,
}
