"""Making containers: the specification, the spawner, libcrun."""
