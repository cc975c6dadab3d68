"""What the commands and the flows do before and after a run of the pipeline."""
