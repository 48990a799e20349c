"""Layers as units of work: blocks of neurons that are solved apart, kept on disk, and put together again."""

from nettrim.blocks.run import Blocks as Blocks
from nettrim.blocks.run import Trimmer as Trimmer
from nettrim.blocks.work import LayerWork as LayerWork
