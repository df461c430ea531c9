"""Optimizers by name and options.

Each is one `register` call, which states how it is built, its label and color, the
extra arguments and the cost of its ``update``, and the space in which it is tuned.
"""

from experiments.optimizers import ablations as ablations
from experiments.optimizers import baselines as baselines
from experiments.optimizers import learning_rate_free as learning_rate_free
from experiments.optimizers import ours as ours
from experiments.optimizers import soap as soap
from experiments.optimizers.naming import Choice as Choice
from experiments.optimizers.naming import choice_of as choice_of
from experiments.optimizers.naming import text_of as text_of
from experiments.optimizers.registration import OPTIMIZERS as OPTIMIZERS
from experiments.optimizers.registration import Optimizer as Optimizer
from experiments.optimizers.registration import build as build
from experiments.optimizers.registration import color_of as color_of
from experiments.optimizers.registration import (
    finds_learning_rate as finds_learning_rate,
)
from experiments.optimizers.registration import label_of as label_of
from experiments.optimizers.registration import register as register
from experiments.optimizers.registration import search_space as search_space
from experiments.optimizers.spaces import DECOUPLED as DECOUPLED
from experiments.optimizers.spaces import L2 as L2
from experiments.optimizers.spaces import Dimension as Dimension
from experiments.optimizers.spaces import SearchSpace as SearchSpace
from experiments.optimizers.spaces import space_around as space_around
