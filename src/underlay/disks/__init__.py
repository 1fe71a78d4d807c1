"""How instance disks are stored: one module for each backend, none of which knows another."""
