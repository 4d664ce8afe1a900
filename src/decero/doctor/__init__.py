"""Find common problems of a run, before or after training: `decero doctor RUN_OR_CONFIG`."""
