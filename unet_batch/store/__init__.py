"""Objects by URI: one class per store that lists, reads and puts, and `Storage` for all stores."""
