"""Question sets: reading them, what counts as the same question, what Great Expectations asks of them."""
