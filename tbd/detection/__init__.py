"""The statistics: arrays of scores in, a detector or a verdict out. Knows no files, no models and no servers."""
