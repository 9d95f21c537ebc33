"""`nbmf bench`: the codec, the store, training and recall, each measured beside its peers on the same records."""
