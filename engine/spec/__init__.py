"""The frozen description of a model: its types, the tensors they imply, the rules they keep, what they cost."""

from engine.spec.model import ModelSpec as ModelSpec
from engine.spec.tensors import Shapes as Shapes
from engine.spec.types import FORMAT_VERSION as FORMAT_VERSION
from engine.spec.types import Absolute as Absolute
from engine.spec.types import Activation as Activation
from engine.spec.types import Alibi as Alibi
from engine.spec.types import AttentionSpec as AttentionSpec
from engine.spec.types import Cluster as Cluster
from engine.spec.types import Embedding as Embedding
from engine.spec.types import FeedForward as FeedForward
from engine.spec.types import Labels as Labels
from engine.spec.types import LayerSpec as LayerSpec
from engine.spec.types import OutputCluster as OutputCluster
from engine.spec.types import Pooler as Pooler
from engine.spec.types import Position as Position
from engine.spec.types import Rotary as Rotary
from engine.spec.types import SharedTable as SharedTable
from engine.spec.types import Sinusoid as Sinusoid
from engine.spec.types import Table as Table
from engine.spec.types import Task as Task
from engine.spec.types import Vocabulary as Vocabulary
