"""The options of a run, and how recipes are read, checked and written."""
