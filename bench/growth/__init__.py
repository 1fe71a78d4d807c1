"""How time grows: the same rows again and again, each time with more of something, so that they make curves."""
