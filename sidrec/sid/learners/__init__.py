"""Learners of semantic ids: each a `sidrec.sid.tokenizer.Tokenizer`; `registry` lists them."""
