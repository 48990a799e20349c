"""The optional packages of the ONNX front end, imported in one place."""

from __future__ import annotations

from nettrim.errors import MissingExtraError

try:
    import onnx
    import onnx.external_data_helper
    import onnx.inliner
    import onnx.reference
    import onnx.version_converter
    import onnxruntime
except ModuleNotFoundError as error:  # pragma: no cover - needs an installation without the extra
    raise MissingExtraError((error.name or "onnx").partition(".")[0], "onnx") from error

__all__ = ["onnx", "onnxruntime"]
