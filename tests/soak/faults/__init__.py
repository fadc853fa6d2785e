"""Training that is killed again and again, and must end as if nothing had happened."""
