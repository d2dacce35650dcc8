"""Objects by URI: one class per store that lists, reads and puts, and the one door to all of them."""
