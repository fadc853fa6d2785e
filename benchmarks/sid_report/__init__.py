"""Report on codes: every learner of semantic ids on the same items, with the same measures."""
