"""A package, so that pytest puts the root of the repository on the path."""
