"""``clasp calibrate``: find the profile that a user's own questions prefer.

``dataset`` reads the questions, ``grid`` says what is tried for each category, ``stages`` where
tokens are dropped, ``sweep`` has the model answer, ``store`` keeps the answers on disk, ``scoring``
compares them with the right ones, ``statistics`` tells differences from chance, ``choice`` decides,
and ``results`` and ``heatmap`` write what was found.
"""

from .choice import CategoryChoice, calibrated_profile, choose
from .dataset import Question, limited, read_questions
from .grid import Cell, Grid
from .scoring import SCORERS
from .stages import Stages
from .store import AnswerStore, OtherCalibration
from .sweep import Prepared, Sweep

__all__ = [
    "SCORERS",
    "AnswerStore",
    "CategoryChoice",
    "Cell",
    "Grid",
    "OtherCalibration",
    "Prepared",
    "Question",
    "Stages",
    "Sweep",
    "calibrated_profile",
    "choose",
    "limited",
    "read_questions",
]
