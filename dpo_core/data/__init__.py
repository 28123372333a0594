"""From the rows of a data file to token ids. Imports no torch: the API and the worker use it too."""
