"""`fasttransfer probe`: many softmax regressions on the features of a cut, trained together."""
