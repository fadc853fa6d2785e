"""Raw logs in, sidrec's two contracts out: log/ with its manifest, and items.parquet."""
