"""In which order layers are trimmed, and on which inputs."""

from nettrim.schemes.run import Trimmer as Trimmer
from nettrim.schemes.run import run_schemes as run_schemes
