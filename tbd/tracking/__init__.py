"""Recording finished results in MLflow."""
