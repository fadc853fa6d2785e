"""From log folder and catalog to batches: the reader (this rank's rows; position is state) and the batch."""
