"""The figures of a study, one function each: records in, a matplotlib Figure out, pyplot left alone.

In a notebook: `accuracy(fasttransfer.study.records.read_results(folder))`. Every panel is as wide as one column of a
paper that has two, or as both where a study has too many cuts for one. All functions take these arguments:

* `recorded`: the study;
* `score`: "last" check, or the mean of the "best10";
* `target`: draw this task alone;
* `keys`: with a legend.
"""

from fasttransfer.report.figures.by_cut import accuracy, across, decomposition, differences, worth, worth_styles
from fasttransfer.report.figures.first_layer import filters
from fasttransfer.report.figures.learning import curve_styles, curves_of, learning
from fasttransfer.report.figures.of_studies import comparison, volume

__all__ = [
    "accuracy",
    "across",
    "comparison",
    "curve_styles",
    "curves_of",
    "decomposition",
    "differences",
    "filters",
    "learning",
    "volume",
    "worth",
    "worth_styles",
]
