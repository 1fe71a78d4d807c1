"""Every figure that the documentation quotes, measured again side by side with its peer: ``python -m bench``."""
