"""Which codec and which tier: pure decisions, and the moves that carry them out."""
