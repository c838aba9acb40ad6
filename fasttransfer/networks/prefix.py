"""Names that bench/ still imports from here; to be removed when it imports them from `caffenet`."""

from fasttransfer.networks.caffenet import kept_cut as kept_cut
from fasttransfer.networks.caffenet import rounded_cuts as rounded_cuts
