"""What usually goes wrong before or after a run, looked for and said with its mend: `decero doctor RUN_OR_CONFIG`."""
