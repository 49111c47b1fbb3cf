"""What was agreed: topology, schedule, terms, limits. Data, checked; no torch, no network."""
