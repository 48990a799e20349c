"""Writing an ONNX model: nothing private in it, checked, compared, and never half a file."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nettrim.errors import ModelError, should
from nettrim.files import atomic_write
from nettrim.models.onnx_file import check
from nettrim.models.onnx_graph import sub_graphs
from nettrim.models.onnx_import import onnx

_PATH = re.compile(r"""File "|(?:^|[\s"'=(:])(?:[A-Za-z]:\\|~?/)[\w.@ -]+[/\\][\w.@-]""")


def clean(model: Any) -> Any:
    """A copy without what exporters record about the machine they ran on.

    Nodes, values and tensors lose their metadata and nodes their doc strings, where exporters keep stack
    traces; model and graph keep theirs unless a local path is in it.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for index in reversed(range(len(copy.metadata_props))):
        entry = copy.metadata_props[index]
        if _PATH.search(entry.value) or _PATH.search(entry.key):
            del copy.metadata_props[index]
    _clean_text(copy)
    _clean_graph(copy.graph)
    return copy


def write_model(model: Any, path: str | os.PathLike[str], agrees: Callable[[Any], None]) -> None:
    """Write a cleaned model to `path` in one step: checker first, then `agrees` on what was read back.

    `agrees` raises when the written model does not predict what it should. On any error no file is left.
    """
    path = Path(path)
    cleaned = clean(model)
    check(cleaned, repr(path.name))
    data = cleaned.SerializeToString()
    try:
        atomic_write(path, data, lambda written: agrees(onnx.load_model_from_string(written.read_bytes())))
    except OSError as error:
        raise ModelError(should("path", "a place that can be written", f"{str(path)!r}: {error.strerror}")) from error


def _clean_graph(graph: Any) -> None:
    _clean_text(graph)
    del graph.metadata_props[:]
    for values in (graph.input, graph.output, graph.value_info, graph.initializer):
        for value in values:
            _clean_text(value)
            del value.metadata_props[:]
    for node in graph.node:
        node.ClearField("doc_string")
        del node.metadata_props[:]
        for attribute in node.attribute:
            attribute.ClearField("doc_string")
        for inner in sub_graphs(node):
            _clean_graph(inner)


def _clean_text(part: Any) -> None:
    if _PATH.search(part.doc_string):
        part.ClearField("doc_string")
