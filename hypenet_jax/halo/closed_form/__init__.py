"""Output projections fitted by least squares, without a gradient: of stage 1's mixers, and of a whole student."""
