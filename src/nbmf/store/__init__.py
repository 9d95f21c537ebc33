"""Where bytes live: tiers, indexes and archives."""
