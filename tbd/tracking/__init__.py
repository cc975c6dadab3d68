"""Finished results into MLflow."""
