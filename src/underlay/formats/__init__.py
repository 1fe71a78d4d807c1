"""What bytes are: inspection in the stream, and the headers and tables of qcow2."""
