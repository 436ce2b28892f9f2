"""Files to records to stores to batches: what structures are, where they lie, and which come next."""
