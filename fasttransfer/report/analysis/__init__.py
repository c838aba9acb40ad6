"""From top-1 scores to what a cut costs: paired differences, their parts, their intervals, what is wrong with them.

Pairing is the lesson of the published records: halves of the classes differ in difficulty by more than most
treatments do, so a network is only ever compared with the base of its own target and seed. Means over targets
and seeds are taken of those differences, never the other way round.

All scores are top-1 on the validation images, in [0, 1]; differences are treatment minus base, same unit.
"""
