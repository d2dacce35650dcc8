"""Everything Parquet: the table's rows, staged parts and the one published object per partition."""
