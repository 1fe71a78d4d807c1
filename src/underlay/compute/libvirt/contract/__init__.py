"""The contract's themes as the libvirt driver keeps them: thin methods, each of which hands on to a function."""
