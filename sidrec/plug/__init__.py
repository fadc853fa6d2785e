"""SID-Coord in other people's TorchRec models: batches, planners, sharders, optimizers and pipelines stay theirs."""

from sidrec.plug.attach import attach as attach
from sidrec.plug.attach import embedding_parameters as embedding_parameters
from sidrec.plug.attach import load_without_sids as load_without_sids
from sidrec.plug.sid_coord import SidCoord as SidCoord
from sidrec.plug.statistics import ItemCounts as ItemCounts
from sidrec.plug.statistics import StatFeatures as StatFeatures
