"""Files: JSON, parquet, and writing without leaving half a file."""
