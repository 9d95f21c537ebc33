"""Training: from records to a model file. Only the command line imports this package."""
