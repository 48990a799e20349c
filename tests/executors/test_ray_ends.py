"""How a run on a Ray cluster of its own ends early: Ctrl-C, and the death of the process that started it."""

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import numpy as np
import pytest

pytestmark = [
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, ("ray", "onnx", "typer"))) or not Path("/proc").is_dir(),
        reason="no Ray, ONNX, command line or /proc",
    ),
    pytest.mark.ray,
    pytest.mark.slow,
]

RUN = """
import sys
from nettrim.blocks import split
from nettrim.cli import app
split._ROWS = 4
executor, checkpoint, out = sys.argv[1:]
sys.argv[1:] = ["trim", "model.onnx", "--data", "data.npz", "--epsilon", "0.2", "--budget", "neuron", "--quiet",
                "--executor", executor, "--checkpoint", checkpoint, "-o", out]
sys.exit(app())
"""
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
_WAIT = 120  # seconds


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model and data, and what an uninterrupted run in one process makes of them."""
    import onnx  # noqa: PLC0415  # an extra

    helper, folder = onnx.helper, tmp_path_factory.mktemp("ends")
    generator = np.random.default_rng(0)
    arrays = {
        "v": generator.standard_normal((256, 16)).astype(np.float32),
        "w": generator.standard_normal((8, 256)).astype(np.float32),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "v"], ["h"], "first", transB=1),
            helper.make_node("Relu", ["h"], ["a"], "relu"),
            helper.make_node("Gemm", ["a", "w"], ["y"], "second", transB=1),
        ],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 16])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 8])],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
    np.savez(folder / "data.npz", inputs=generator.standard_normal((1500, 16)).astype(np.float32))
    finish(folder, "whole")
    return folder


def start(folder, executor, name, **environment):
    command = [sys.executable, "-c", RUN, executor, f"{name}-checkpoint", name]
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**ENV, **environment},
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # jobs in the background inherit "ignore"
    )


def finish(folder, name):
    run = start(folder, "local", name)
    error = run.communicate(timeout=_WAIT)[1]
    assert run.returncode == 0, error


def processes(mark):
    """Identifiers of the processes whose environment has the mark: a driver and all that it started."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and mark.encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:  # ended meanwhile, or of another user
            continue
    return found


def ends_of_logs():
    """What the last cluster on this machine wrote while it ended, for a failure that is hard to see again."""
    logs = sorted(Path(tempfile.gettempdir(), "ray", "session_latest", "logs").glob("*"))
    wanted = [path for path in logs if path.name.startswith(("raylet.", "gcs_server.", "python-core-driver"))]
    return "\n".join(f"{path.name}:\n" + "\n".join(path.read_text().splitlines()[-15:]) for path in wanted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_running_and_the_run_goes_on_where_it_was(folder, number):
    """Ctrl-C goes to all processes of a terminal, a kill to the driver alone."""
    mark, name = uuid.uuid4().hex, number.name
    run = start(folder, "ray", name, NETTRIM_TEST_MARK=mark)
    try:
        limit = time.monotonic() + _WAIT
        while len(list((folder / f"{name}-checkpoint").glob("*.block"))) < 2:
            assert run.poll() is None, run.stderr.read()
            assert time.monotonic() < limit
            time.sleep(0.05)
        assert len(processes(mark)) > 3  # the driver, Ray's own, workers
        if number == signal.SIGINT:
            os.killpg(run.pid, number)
        else:
            run.send_signal(number)
        error = run.communicate(timeout=60)[1]
        limit = time.monotonic() + _WAIT  # workers end at once, Ray's agents when a report to the dead head times out
        while left := processes(mark):
            assert time.monotonic() < limit, left
            time.sleep(0.1)
    finally:
        for process in processes(mark):
            os.kill(process, signal.SIGKILL)
    if number == signal.SIGINT:
        assert run.returncode == 130, error + ends_of_logs()
        assert error.strip() == "Interrupted. Finished work is kept: the same command goes on from there."
    assert not (folder / name).exists()
    kept = {path.name: path.stat().st_mtime_ns for path in (folder / f"{name}-checkpoint").glob("*.block")}
    assert 2 <= len(kept) < 66
    finish(folder, name)
    again = {path.name: path.stat().st_mtime_ns for path in (folder / f"{name}-checkpoint").glob("*.block")}
    assert {key: again[key] for key in kept} == kept  # none of them was solved again
    assert (folder / name / "model.onnx").read_bytes() == (folder / "whole" / "model.onnx").read_bytes()
