"""Token datasets: the spec that both stages agree on, Parquet shards, manifest, card, figures."""
