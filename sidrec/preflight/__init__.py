"""What is known of a run before anything is allocated: whether it fits, ranks agree and the data is sane."""
