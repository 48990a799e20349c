"""The one junction: a layer, its samples and a recipe become programs, and programs become new weights.

A layer makes one program a convolution group (one for all other layers). The bias is one more column of ones,
free of cost unless the recipe penalises it.
"""

from nettrim.layerwise.joint import Answer as Answer
from nettrim.layerwise.joint import Priced as Priced
from nettrim.layerwise.joint import Shares as Shares
from nettrim.layerwise.joint import conclude_joint as conclude_joint
from nettrim.layerwise.joint import land as land
from nettrim.layerwise.joint import price as price
from nettrim.layerwise.joint import rough_multiplier as rough_multiplier
from nettrim.layerwise.joint import zero_squares as zero_squares
from nettrim.layerwise.means import Means as Means
from nettrim.layerwise.means import check_device as check_device
from nettrim.layerwise.measure import Measured as Measured
from nettrim.layerwise.measure import measure as measure
from nettrim.layerwise.measure import original_responses as original_responses
from nettrim.layerwise.pieces import make_pieces as make_pieces
from nettrim.layerwise.task import Backing as Backing
from nettrim.layerwise.task import LayerOutcome as LayerOutcome
from nettrim.layerwise.task import LayerTask as LayerTask
from nettrim.layerwise.task import Piece as Piece
from nettrim.layerwise.task import Totals as Totals
from nettrim.layerwise.trim import conclude as conclude
from nettrim.layerwise.trim import record as record
from nettrim.layerwise.trim import trim_layer as trim_layer
from nettrim.layerwise.trim import trim_piece as trim_piece
