"""What to do about a checkpoint that appeared."""
