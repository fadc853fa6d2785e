"""Training of the gradient-trained learners: batches, steps, health of the codebooks, resuming."""
