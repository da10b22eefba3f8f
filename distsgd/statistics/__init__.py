"""What several seeds say: spreads, ratios, simultaneous intervals."""
