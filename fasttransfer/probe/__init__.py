"""Linear heads on the features of a cut: many softmax regressions, trained together (`fasttransfer probe`)."""
