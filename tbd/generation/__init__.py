"""From prompts to answers: what is computed together, what was computed before, and the engines."""
