"""Where work runs: threads, processes, a Ray cluster, or the jobs of an array. Knows nothing of pruning."""

from nettrim.executors.base import ClusterError as ClusterError
from nettrim.executors.base import Executor as Executor
from nettrim.executors.base import OutOfMemory as OutOfMemory
from nettrim.executors.local import LocalExecutor as LocalExecutor
from nettrim.executors.processes import Processes as Processes
from nettrim.executors.ray_cluster import Ray as Ray
from nettrim.executors.shard import Shard as Shard
from nettrim.executors.shard import Unfinished as Unfinished
