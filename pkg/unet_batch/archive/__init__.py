"""Where images come from: stores, listings, shards and decoders."""
