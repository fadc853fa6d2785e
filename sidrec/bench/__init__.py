"""Plans measured on the ranks at hand: the same batches for each, in interleaved rounds, kept as files."""
