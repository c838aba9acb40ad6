"""From top-1 scores to what a cut costs: paired differences, their parts, their intervals, what is wrong with them.

Pairing is the lesson of the published records: halves of the classes differ in difficulty by more than most
treatments do, so a network is only ever compared with the base of its own target and seed. Means over targets
and seeds are taken of those differences, never the other way round.

All scores are top-1 on the validation images, in [0, 1]; differences are treatment minus base, same unit.
"""

from fasttransfer.core.intervals import Estimate, NoiseKind, difference, estimate, t_quantile
from fasttransfer.report.analysis.advice import Advice, Choice, advise
from fasttransfer.report.analysis.comparison import Comparison, Line, Volume, compare, images_per_class, pooled
from fasttransfer.report.analysis.confounds import confounds
from fasttransfer.report.analysis.convergence import GAIN_LIMIT, Convergence, convergence
from fasttransfer.report.analysis.decomposition import Decomposition, decompose
from fasttransfer.report.analysis.effects import (
    BOOST,
    CO_ADAPTATION,
    FREEZING,
    FROM_BASE,
    FROZEN_COST,
    GAIN,
    LOST,
    PARTS,
    SPECIFICITY,
    Contrast,
    Effect,
    Key,
    minus,
)
from fasttransfer.report.analysis.noise import Noise
from fasttransfer.report.analysis.pairs import (
    PairedScores,
    Score,
    chance,
    class_count,
    mean_chance,
    pair_scores,
    score_of,
    targets_of,
)
from fasttransfer.report.analysis.stuck import STUCK_SHARE, budget_of, recovered, share_at_chance, stuck
from fasttransfer.report.analysis.summary import Row, Summary, summarise

__all__ = [
    "BOOST",
    "CO_ADAPTATION",
    "FREEZING",
    "FROM_BASE",
    "FROZEN_COST",
    "GAIN",
    "GAIN_LIMIT",
    "LOST",
    "PARTS",
    "SPECIFICITY",
    "STUCK_SHARE",
    "Advice",
    "Choice",
    "Comparison",
    "Contrast",
    "Convergence",
    "Decomposition",
    "Effect",
    "Estimate",
    "Key",
    "Line",
    "Noise",
    "NoiseKind",
    "PairedScores",
    "Row",
    "Score",
    "Summary",
    "Volume",
    "advise",
    "budget_of",
    "chance",
    "class_count",
    "compare",
    "confounds",
    "convergence",
    "decompose",
    "difference",
    "estimate",
    "images_per_class",
    "mean_chance",
    "minus",
    "pair_scores",
    "pooled",
    "recovered",
    "score_of",
    "share_at_chance",
    "stuck",
    "summarise",
    "t_quantile",
    "targets_of",
]
