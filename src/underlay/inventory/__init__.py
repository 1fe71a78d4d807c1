"""Where the records of instances come from: one module for each kind of inventory, none of which knows another."""
