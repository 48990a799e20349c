"""HOW MUCH IS REALLY GAINED: bytes on disk, latency against the best dense engine, and the break-even sparsity."""

from nettrim.gain.bench import bench, bench_table
from nettrim.gain.latency import Latency, break_even, latency
from nettrim.gain.measure import measure_gain
from nettrim.gain.picking import faster_shrunk
from nettrim.gain.sizes import nonzeros, sizes
from nettrim.gain.sparse_file import load_sparse, save_sparse

__all__ = [
    "Latency",
    "bench",
    "bench_table",
    "break_even",
    "faster_shrunk",
    "latency",
    "load_sparse",
    "measure_gain",
    "nonzeros",
    "save_sparse",
    "sizes",
]
