"""Networks of the gradient-trained learners: how vectors become codes, and codes vectors."""
