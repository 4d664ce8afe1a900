"""The command line: `decero COMMAND ...`."""
