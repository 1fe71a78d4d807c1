"""Where images come from: one module for each kind of source, none of which knows another."""
