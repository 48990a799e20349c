"""The version of nettrim that is installed."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("nettrim")
except PackageNotFoundError:  # run from a source tree
    __version__ = "0+unknown"
