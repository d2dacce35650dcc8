"""Two sides of the same images as pictures and as a page: prediction and truth, or two runs."""
