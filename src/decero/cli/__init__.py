"""Define the command line: `decero COMMAND ...`."""
