"""Tokenizers: each a way to learn codes, all behind `sidrec.sid.tokenizer.Tokenizer`."""
