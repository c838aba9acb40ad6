"""How transferable is each layer of a network? The study of Yosinski et al. 2014 at today's speed."""

__version__ = "0.1.0"
