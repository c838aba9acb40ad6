"""The differences between two networks that a study is read by, with the names and headings they have everywhere.

Terminal table, page, CSV and comparison take their columns from here. Each difference pairs networks of one target,
seed and n. Those with the base are the paper's: the base was trained for one schedule, a copied network for two. The
others compare networks of equal training, of which the pretrained weights' own is not a part.
"""

from __future__ import annotations

from dataclasses import dataclass

from fasttransfer.study.cells import ALL_TREATMENTS, BASE, BASE_PLUS, PRETRAINED_TREATMENTS

PRETRAINED, PRETRAINED_PLUS = PRETRAINED_TREATMENTS
NOT_COUNTED = "the training that the pretrained weights come from is not counted"
TREATMENTS = ALL_TREATMENTS  # in the order of tables and legends

Key = tuple[str, int]  # treatment, n; n is 0 for the base and for base+
Contrast = tuple[tuple[Key, float], ...]  # the weight of each network of one target and seed


def level(key: Key) -> Contrast:
    """Return the contrast that is the top-1 of one network."""
    return ((key, 1.0),)


def minus(left: Key, right: Key) -> Contrast:
    """Return the contrast left - right."""
    return ((left, 1.0), (right, -1.0))


@dataclass(frozen=True)
class Effect:
    """The top-1 of the treatment `left` minus that of `right`.

    Attributes:
        name: in sentences and comparisons; the treatment where that is compared with the base.
        left, right: treatments, BASE and BASE_PLUS included.
        short: the heading in a terminal; by default the name.
        title: the heading on a page, before the networks; by default the name.
        is_gain: whether a positive number is a gain, written with its sign; else it is a cost.
    """

    name: str
    left: str
    right: str
    short: str = ""
    title: str = ""
    is_gain: bool = False

    @property
    def networks(self) -> str:
        """The networks compared, as in "selffer+ - selffer"."""
        return f"{self.left} - {self.right}"

    @property
    def heading(self) -> str:
        """The heading in a terminal."""
        return self.short or self.name

    @property
    def is_from_base(self) -> bool:
        """Return whether it is a comparison of the paper, with a base, which has had less training."""
        return BASE in (self.left, self.right)

    def contrast(self, n: int) -> Contrast:
        """Return the effect at `n` as weights of networks."""
        left, right = ((one, 0 if one in (BASE, BASE_PLUS) else n) for one in (self.left, self.right))
        return minus(left, right)


FROM_BASE = {name: Effect(name, name, BASE, is_gain=True) for name in TREATMENTS}
GAIN = Effect("gain", BASE_PLUS, BASE, is_gain=True)  # of one more schedule of training

FREEZING = Effect("freezing", "selffer+", "selffer")
SPECIFICITY = Effect("specificity", "selffer", "transfer")
FROZEN_COST = Effect("both", "selffer+", "transfer")  # freezing + specificity
BOOST = Effect("boost", "transfer+", "selffer+", title="lasting boost", is_gain=True)
# What the pretrained weights are worth, at equal training but for what NOT_COUNTED says.
WORTH = Effect("worth", PRETRAINED, "selffer", title="frozen", is_gain=True)
WORTH_PLUS = Effect("worth+", PRETRAINED_PLUS, "selffer+", title="fine-tuned", is_gain=True)
# The paper's; their difference is the specificity over the same runs.
LOST = Effect("lost", BASE, "transfer", title="lost by transfer")
CO_ADAPTATION = Effect("co-adaptation", BASE, "selffer", short="co-adapt.")

AT_EQUAL_TRAINING = (FREEZING, SPECIFICITY, FROZEN_COST, BOOST)
PARTS = (FREEZING, SPECIFICITY, BOOST)  # the first two add up to the frozen cost
WORTHS = (WORTH, WORTH_PLUS)
EFFECTS = (*FROM_BASE.values(), *AT_EQUAL_TRAINING, *WORTHS, LOST, CO_ADAPTATION)  # of one n
