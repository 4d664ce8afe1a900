"""Define the settings of a run: sections, YAML files and the command line."""
