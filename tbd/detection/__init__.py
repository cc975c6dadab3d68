"""The statistics: scores in, a detector or a verdict out, and how those are written. Knows no models and no servers."""
