"""Configuration: the schema, loading (YAML + dotlist), and the checks that cross sections."""
